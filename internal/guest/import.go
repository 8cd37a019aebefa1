package guest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
)

// maxImport is far more than all guests of a host need.
const maxImport = 1 << 20

// ParseMACs reads the addresses that guests have: a JSON object of names and
// addresses, or lines of the form
//
//	web = "02:01:27:a1:f0:c0"
//	web 02:01:27:a1:f0:c0
//
// with comments behind #, and headers in brackets, which say nothing. An error
// names every line that is wrong.
func ParseMACs(r io.Reader) (map[string]boot.MAC, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxImport+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxImport {
		return nil, fmt.Errorf("has more than %d bytes: it is no list of addresses", maxImport)
	}
	p := importParser{macs: map[string]boot.MAC{}, line: map[string]int{}, owner: map[boot.MAC]string{}}
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		p.json(data)
	} else {
		p.lines(string(data))
	}
	if len(p.wrong) > 0 {
		return nil, errors.Join(p.wrong...)
	}
	if len(p.macs) == 0 {
		return nil, errors.New(`names no guest: write a line such as web = "02:01:27:a1:f0:c0" for each`)
	}
	return p.macs, nil
}

type importParser struct {
	macs  map[string]boot.MAC
	line  map[string]int // of each name
	owner map[boot.MAC]string
	wrong []error
}

func (p *importParser) complain(line int, format string, args ...any) {
	p.wrong = append(p.wrong, fmt.Errorf("line %d: %w", line, fmt.Errorf(format, args...)))
}

// pair takes one guest's address.
func (p *importParser) pair(line int, name, text string) {
	if err := checkAssignable(name); err != nil {
		p.complain(line, "%q %w", name, err)
		return
	}
	if first, twice := p.line[name]; twice {
		p.complain(line, "%s is named in line %d already", name, first)
		return
	}
	p.line[name] = line
	m, err := boot.ParseMAC(text)
	if err != nil {
		p.complain(line, "%s: %q is not an Ethernet address such as 02:01:27:a1:f0:c0", name, text)
		return
	}
	if err := checkMAC(m); err != nil {
		p.complain(line, "%s: %v %w", name, m, err)
		return
	}
	if other, twice := p.owner[m]; twice {
		p.complain(line, "%s: %v is the address of %s, too, in line %d", name, m, other, p.line[other])
		return
	}
	p.macs[name], p.owner[m] = m, name
}

// json reads token by token: decoded into a map, a name that is there twice
// would be one.
func (p *importParser) json(data []byte) {
	d := json.NewDecoder(bytes.NewReader(data))
	line := func() int { return 1 + bytes.Count(data[:d.InputOffset()], []byte("\n")) }
	token := func() (json.Token, bool) {
		t, err := d.Token()
		if err != nil {
			p.complain(line(), "is not JSON: %v", err)
		}
		return t, err == nil
	}
	if _, ok := token(); !ok {
		return
	}
	for d.More() {
		name, ok := token()
		if !ok {
			return
		}
		value, ok := token()
		if !ok {
			return
		}
		text, isText := value.(string)
		if !isText {
			p.complain(line(), "%v is %v, and not an address in quotes", name, value)
			return
		}
		p.pair(line(), name.(string), text) // a key is a string
	}
	if _, ok := token(); !ok {
		return
	}
	if _, err := d.Token(); err != io.EOF {
		p.complain(line(), "more follows behind the object")
	}
}

func (p *importParser) lines(text string) {
	n := 0
	for line := range strings.Lines(text) {
		n++
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]") {
			continue
		}
		name, mac, ok := strings.Cut(line, "=")
		if !ok {
			fields := strings.Fields(line)
			if len(fields) != 2 {
				p.complain(n, `%q is not the name of a guest and its address, such as web = "02:01:27:a1:f0:c0"`, line)
				continue
			}
			name, mac = fields[0], fields[1]
		}
		p.pair(n, unquote(name), unquote(mac))
	}
}

// unquote takes off quotes of either kind. What is in them needs no escapes.
func unquote(s string) string {
	s = strings.TrimSpace(s)
	if n := len(s); n > 1 && (s[0] == '"' || s[0] == '\'') && s[n-1] == s[0] {
		return s[1 : n-1]
	}
	return s
}

// Imported is what an import did, names in order.
type Imported struct {
	Added      []string // had no address yet
	Replaced   []string // had another one
	Unchanged  []string
	Undeclared []string // of all these: those that the configuration does not declare; they will have it once it does
}

// Import gives guests the addresses that they have elsewhere, all or, when there
// is a conflict, none; the error names every conflict. With replace guests lose
// the address that they were assigned before.
func (s MACStore) Import(c *config.Config, macs map[string]boot.MAC, replace bool) (done Imported, err error) {
	err = s.Update(func(persisted map[string]boot.MAC) (map[string]boot.MAC, error) {
		var after map[string]boot.MAC
		done, after, err = merge(c, persisted, macs, replace)
		return after, err
	})
	if err != nil {
		return Imported{}, err
	}
	return done, nil
}

// hasWritten reports whether the configuration gives a guest this address.
func hasWritten(g config.DeclaredGuest, m boot.MAC) bool {
	return slices.ContainsFunc(g.NICs, func(n config.GuestNIC) bool { return n.MAC == m })
}

// merge lays macs over persisted.
func merge(c *config.Config, persisted, macs map[string]boot.MAC, replace bool) (done Imported, after map[string]boot.MAC, err error) {
	var wrong []error
	conflict := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }
	after = maps.Clone(persisted)
	names := slices.Sorted(maps.Keys(macs))
	for _, name := range names {
		m := macs[name]
		guest, _, _ := strings.Cut(name, "/")
		g, declared := c.DeclaredGuest(guest)
		before, had := persisted[name]
		if declared && hasWritten(*g, m) {
			done.Unchanged = append(done.Unchanged, name)
			continue
		}
		switch {
		case had && before == m:
			done.Unchanged = append(done.Unchanged, name)
		case had && !replace:
			conflict("%s has %v already, not %v: use --replace to give it the new one", name, before, m)
		case had:
			done.Replaced = append(done.Replaced, name)
		default:
			done.Added = append(done.Added, name)
		}
		if !declared {
			done.Undeclared = append(done.Undeclared, name)
		} else if !slices.Contains(CardNames(*g), name) {
			conflict("%s is not assigned an address: the configuration writes those of its network cards", name)
		}
		after[name] = m
	}
	// Only now, so that two may exchange theirs.
	owner := map[boot.MAC]string{}
	for _, name := range slices.Sorted(maps.Keys(after)) {
		m := after[name]
		if other, twice := owner[m]; twice {
			conflict("%v is the address of both %s and %s", m, other, name)
		}
		owner[m] = name
	}
	for _, m := range written(c.Guests) {
		guest, _, _ := strings.Cut(owner[m], "/")
		if g, declared := c.DeclaredGuest(guest); declared && hasWritten(*g, m) {
			continue
		}
		if name := owner[m]; name != "" && macs[name] == m {
			conflict("%v of %s is written for a network card in the configuration", m, name)
		}
	}
	for _, machine := range c.Machines {
		name := owner[machine.MAC]
		if name == "" || macs[name] != machine.MAC || machine.Name == "" {
			continue
		}
		guest, _, _ := strings.Cut(name, "/")
		if g, declared := c.DeclaredGuest(guest); !declared || g.Contradicts(machine) {
			conflict("%v of %s is the address of the [[machine]] %s in the configuration", machine.MAC, name, machine.Name)
		}
	}
	return done, after, errors.Join(wrong...)
}
