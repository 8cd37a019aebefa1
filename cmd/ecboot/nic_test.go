package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/every-channel/ecboot/internal/nettest"
	"github.com/every-channel/ecboot/internal/timeline"
)

// TestBootOnANICOfThisMachine boots guests on the network of a NIC that has this
// machine's address, in both ways, and wants the NIC back as it was.
func TestBootOnANICOfThisMachine(t *testing.T) {
	needGuests(t)
	for i, tt := range []struct{ way, address string }{
		{"uplink", "10.79.0.2/24"},
		{"parent", "10.79.1.9/24"},
	} {
		t.Run(tt.way, func(t *testing.T) {
			t.Parallel()
			router, nic := nettest.NewHost(t, "router"), fmt.Sprintf("nic%d", i)
			nettest.Wire(t, nic, router, "lan0")
			router.Run(t, "ip", "addr", "add", fmt.Sprintf("10.79.%d.1/24", i), "dev", "lan0")
			link, err := netlink.LinkByName(nic)
			if err != nil {
				t.Fatal(err)
			}
			addr, err := netlink.ParseAddr(fmt.Sprintf("10.79.%d.2/24", i))
			if err != nil {
				t.Fatal(err)
			}
			if err := netlink.AddrAdd(link, addr); err != nil {
				t.Fatal(err)
			}
			config := filepath.Join(t.TempDir(), "ecboot.toml")
			text := fmt.Sprintf("[server]\nstate_dir = %q\n\n[segment.%s]\n%[2]s = %[3]q\naddress = %[4]q\npool = \"10.79.%[5]d.100-10.79.%[5]d.110\"\n",
				t.TempDir(), tt.way, nic, tt.address, i)
			if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			doc := bootReport(t, "run", "--config", config, "--segment", tt.way, "--accel", "tcg", "--first-stage", "ipxe")
			wantStages(t, doc.Stages, timeline.Kernel, timeline.Initrd, timeline.Linux, timeline.Userland)
			have, err := netlink.AddrList(link, netlink.FAMILY_V4)
			if err != nil || len(have) != 1 || !have[0].Equal(*addr) {
				t.Errorf("%s has the addresses %v, %v", nic, have, err)
			}
			for _, name := range []string{"br-uplink", "ecmv-parent"} {
				if _, err := netlink.LinkByName(name); err == nil && strings.HasSuffix(name, tt.way) {
					t.Errorf("%s is left", name)
				}
			}
		})
	}
}
