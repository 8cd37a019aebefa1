package config

import (
	"reflect"
	"strings"
	"testing"
)

func TestSetMachine(t *testing.T) {
	m := Machine{Name: "old", Next: NextAlways, Options: map[string]string{"42": "10.0.0.1"}}
	for _, set := range [][2]string{
		{"name", "new"}, {"address", "10.77.0.9"}, {"profile", "rescue"}, {"next", "once"}, {"nbp", "ipxe.efi"}, {"chainload", "true"},
		{"tags", "a, b"}, {"option.ntp-servers", "10.0.0.2"}, {"option.42", ""},
	} {
		if err := m.Set(set[0], set[1]); err != nil {
			t.Errorf("%s: %v", set[0], err)
		}
	}
	want := Machine{Name: "new", Address: m.Address, Profile: "rescue", Next: NextOnce, NBP: "ipxe.efi", Chainload: true,
		Tags: []string{"a", "b"}, Options: map[string]string{"ntp-servers": "10.0.0.2"}}
	if m.Address.String() != "10.77.0.9" || !reflect.DeepEqual(m, want) {
		t.Errorf("got  %+v\nwant %+v", m, want)
	}
	for _, set := range [][2]string{{"name", ""}, {"address", ""}, {"next", ""}, {"chainload", ""}, {"tags", ""}} {
		if err := m.Set(set[0], set[1]); err != nil {
			t.Errorf("%s: %v", set[0], err)
		}
	}
	if m.Name != "" || m.Address.IsValid() || m.Next != NextAlways || m.Chainload || len(m.Tags) != 0 {
		t.Errorf("taken back: %+v", m)
	}
	before := m
	for _, tt := range []struct{ key, value, want string }{
		{"mac", "525400000001", "no key of a machine's"}, {"name", "a.b", "has a dot"}, {"address", "x", "is not an address"},
		{"next", "never", "always"}, {"chainload", "yes", "neither true nor false"}, {"tags", "a/b", "is not a tag"},
		{"option.x", "1", "not known by name"}, {"nbp", "x.efi", "no boot program"}, {"name", "a\"\nmac = 1", "is not a host name"},
	} {
		if err := m.Set(tt.key, tt.value); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s=%s: %v, want %q", tt.key, tt.value, err, tt.want)
		}
	}
	if !reflect.DeepEqual(m, before) {
		t.Errorf("a wrong value changed the machine: %+v", m)
	}
}

func TestParseMachineID(t *testing.T) {
	for in, want := range map[string]string{
		"525400ABCDEF": "52:54:00:ab:cd:ef", "52-54-00-ab-cd-ef": "52:54:00:ab:cd:ef", "Node1": "node1",
		"01020304-0506-0708-090A-0B0C0D0E0F10": "01020304-0506-0708-090a-0b0c0d0e0f10",
	} {
		if id, err := ParseMachineID(in); err != nil || id.String() != want {
			t.Errorf("%s: %v, %v", in, id, err)
		}
	}
	for _, bad := range []string{"", "a b", "a.b", "01:00:5e:00:00:01", "-"} {
		if id, err := ParseMachineID(bad); err == nil {
			t.Errorf("%q was accepted as %v", bad, id)
		}
	}
}
