package config

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/every-channel/ecboot/internal/boot"
)

// MachineKeys are the keys of a machine that Set knows; "option.NAME" is one of
// options.
var MachineKeys = []string{"name", "address", "profile", "next", "nbp", "chainload", "tags", "option.NAME"}

// Set gives a machine's key a value, written as on a command line: lists with
// commas, an option as "option.NAME". An empty value takes it away.
func (m *Machine) Set(key, value string) error {
	var line string
	option, isOption := strings.CutPrefix(key, "option.")
	switch {
	case isOption:
		if value != "" {
			if _, err := boot.ParseOption(option, value); err != nil {
				return err
			}
		}
		options := map[string]string{}
		for name, v := range m.Options {
			options[name] = v
		}
		options[option] = value
		if value == "" {
			delete(options, option)
		}
		m.Options = options
		return nil
	case key == "chainload":
		line = "chainload = " + strconv.FormatBool(value == "true")
		if value != "true" && value != "false" && value != "" {
			return fmt.Errorf("chainload %q is neither true nor false", value)
		}
	case key == "tags":
		var quoted []string
		for _, t := range strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' }) {
			quoted = append(quoted, quote(t))
		}
		line = "tags = [" + strings.Join(quoted, ", ") + "]"
	case key == "next" && value == "":
		line = `next = "always"`
	case key == "name" || key == "address" || key == "profile" || key == "next" || key == "nbp":
		line = key + " = " + quote(value)
	default:
		return fmt.Errorf("%q is no key of a machine's; they are %s", key, strings.Join(MachineKeys, ", "))
	}
	r := newReader("", []byte(line))
	before := *m
	machineSettings(&section{r: r, in: r.document()}, m)
	if len(r.problems) > 0 {
		*m = before
		return errors.New(r.problems[0].message())
	}
	return nil
}

// Check compares the values with one another, as reading a file does: a
// configuration can be changed once it has been read.
func (c *Config) Check() error {
	_, err := Parse("", []byte(c.Show()))
	var problems Problems
	if !errors.As(err, &problems) {
		return err
	}
	return errors.New(problems[0].message())
}

// MachineID is how people name a machine that the configuration or they
// themselves declare: a MAC address, a UUID or a host name.
type MachineID struct {
	MAC  boot.MAC
	UUID string
	Name string
}

// ParseMachineID reads one of the three. Anything that could be a host name is
// one.
func ParseMachineID(s string) (id MachineID, err error) {
	if id.MAC, err = macAddress.parse(s); err == nil {
		return id, nil
	}
	if id.UUID, err = boot.ParseUUID(s); err == nil {
		return id, nil
	}
	if id.Name, err = hostName.parse(s); err == nil {
		return id, nil
	}
	return MachineID{}, fmt.Errorf("%q is neither a MAC address nor a UUID nor a host name", s)
}

// String returns what ParseMachineID reads.
func (id MachineID) String() string {
	switch {
	case id.MAC != boot.MAC{}:
		return id.MAC.String()
	case id.UUID != "":
		return id.UUID
	}
	return strings.ToLower(id.Name)
}

// ID is the identity by which the machine is known on the network.
func (m Machine) ID() MachineID {
	switch {
	case m.MAC != boot.MAC{}:
		return MachineID{MAC: m.MAC}
	case m.UUID != "":
		return MachineID{UUID: m.UUID}
	}
	return MachineID{Name: m.Name}
}

// Machine finds a declared machine by any of its names.
func (c *Config) Machine(id MachineID) (*Machine, bool) {
	for i, m := range c.Machines {
		if id.MAC != (boot.MAC{}) && m.MAC == id.MAC || id.UUID != "" && m.UUID == id.UUID || id.Name != "" && strings.EqualFold(m.Name, id.Name) {
			return &c.Machines[i], true
		}
	}
	return nil, false
}
