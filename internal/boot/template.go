package boot

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Vars is what a template may name, by its fields' names in lower case.
type Vars struct {
	MAC     string
	UUID    string
	Name    string // host name
	Address string // of the machine
	Server  string // address of the boot server
	Profile string
}

// varNames are the names that a template knows.
var varNames = []string{"mac", "uuid", "name", "address", "server", "profile"}

func (v Vars) get(name string) string {
	return [...]string{v.MAC, v.UUID, v.Name, v.Address, v.Server, v.Profile}[slices.Index(varNames, name)]
}

// Expand fills in a template: {mac}, {uuid}, {name}, {address}, {server} and
// {profile} become what they are of this boot, "{{" is a brace. A value that is
// not known leaves nothing.
func Expand(template string, v Vars) (string, error) { return expand(template, v.get) }

// CheckTemplate says what is wrong with a template, nil if nothing is.
func CheckTemplate(template string) error {
	_, err := expand(template, func(string) string { return "" })
	return err
}

func expand(template string, get func(string) string) (string, error) {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(template, "{")
		b.WriteString(before)
		if !found {
			return b.String(), nil
		}
		if strings.HasPrefix(rest, "{") {
			b.WriteByte('{')
			template = rest[1:]
			continue
		}
		name, after, closed := strings.Cut(rest, "}")
		if !closed {
			return "", errors.New("has a { without a }; write {{ for the brace itself")
		}
		if !slices.Contains(varNames, name) {
			return "", fmt.Errorf("names {%s}, which is not known: write one of {%s}, or {{ for the brace itself", name, strings.Join(varNames, "}, {"))
		}
		b.WriteString(get(name))
		template = after
	}
}
