//go:build linux

package main

import (
	"encoding/hex"
	"slices"
	"strings"
	"testing"
)

func TestIsButton(t *testing.T) {
	// What Linux says in a q35 and, with the button of its other device, a microvm.
	const fixed = "0101000030000100" + "627574746f6e2f706f776572" + "0000000000000000" + "4c4e58505752424e3a30300000000000" + "80000000" + "01000000"
	const device = "0101000030000100" + "627574746f6e2f706f776572" + "0000000000000000" + "504e50304330433a3030000000000000" + "80000000" + "01000000"
	for _, tt := range []struct {
		name, event string
		want        bool
	}{
		{"the fixed button", fixed, true},
		{"a device", device, true},
		{"a wake-up", strings.Replace(fixed, "80000000", "02000000", 1), false},
		{"the sleep button", strings.Replace(fixed, "706f776572", "736c656570", 1), false},
		{"another attribute", strings.Replace(fixed, "30000100", "30000200", 1), false},
		{"too short", "01010000" + "28000100" + fixed[16:88], false},
		{"its attribute is cut off", fixed[:60], false},
		{"no attribute", fixed[:8], false},
		{"less than a header", fixed[:6], false},
		{"nothing", "", false},
	} {
		event, err := hex.DecodeString(tt.event)
		if err != nil {
			t.Fatal(err)
		}
		if got := isButton(event); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

func TestMountPoints(t *testing.T) {
	table := `rootfs / rootfs rw,size=227788k,nr_inodes=56947 0 0
proc /proc proc rw,relatime 0 0
/dev/vda /srv/a\040b\134040\043c ext4 rw,relatime 0 0
tmpfs /srv/a\040b\134040\043c/d tmpfs rw 0 0
`
	want := []string{`/srv/a b\040#c/d`, `/srv/a b\040#c`, "/proc", "/"}
	if got := mountPoints(table); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := mountPoints(""); len(got) != 0 {
		t.Errorf("%q of nothing", got)
	}
}
