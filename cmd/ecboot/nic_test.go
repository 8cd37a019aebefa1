package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/every-channel/ecboot/internal/api"
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

// Guests on macvtaps of a NIC boot from the ecboot of the same host, and they,
// the host and the network behind the NIC reach one another; afterwards the NIC
// is as it was.
func TestUpOnAParent(t *testing.T) {
	t.Parallel()
	const host, neighbour = "10.85.0.2", "10.85.0.1"
	u := newUpHost(t, "parent", fmt.Sprintf(`memory = "512M"
[segment.lan]
parent = "eth0"
address = "%s/24"
pool = "10.85.0.100-10.85.0.109"
[guest.on-macvtap]
backend = "qemu"
autostart = true
stop_timeout = "1s"
[[guest.on-macvtap.nic]]
macvtap = "eth0"
[guest.on-parent]
backend = "qemu"
firmware = "uefi"
autostart = true
stop_timeout = "1s"
[[guest.on-parent.nic]]
segment = "lan"
`, host))
	lan := nettest.NewHost(t, "neighbour")
	nettest.Bridge(t, "parent", "")
	nettest.Connect(t, "parent", u.Host, "eth0")
	nettest.Connect(t, "parent", lan, "eth0")
	lan.Run(t, "ip", "addr", "add", neighbour+"/24", "dev", "eth0")
	u.Run(t, "ip", "addr", "add", host+"/24", "dev", "eth0")
	u.Run(t, "ip", "route", "add", "default", "via", neighbour)
	network := func() string {
		return u.Run(t, "sh", "-c", "ip -br link; ip -4 addr; ip -4 route; cd /proc/sys/net/ipv4/conf/eth0 && cat arp_ignore arp_announce rp_filter")
	}
	before := network()

	s := u.up(t)
	s.until(t, "serving "+host+"/24 on ecmv-lan")
	ping := func(from *nettest.Host, to string) {
		t.Helper()
		from.Run(t, "ping", "-c1", "-W10", to)
	}
	ping(lan, host)
	var addresses []string
	for _, name := range []string{"on-macvtap", "on-parent"} {
		s.logged(t, name, "ecboot: reported to", 1) // it has its address
		s.atShell(t, name, 1)
		g := s.guest(t, name)
		if len(g.Addresses) != 1 {
			t.Fatalf("%+v", g)
		}
		ping(lan, g.Addresses[0])
		ping(u.Host, g.Addresses[0])
		addresses = append(addresses, g.Addresses[0])
	}
	for _, to := range []string{addresses[1], host, neighbour} {
		s.typed(t, "on-macvtap", "ping -c 1 "+to, "64 bytes from "+to)
	}
	// A link that somebody deletes is told.
	gone := s.guest(t, "on-macvtap").NICs[0].Link
	u.Run(t, "ip", "link", "del", gone)
	s.awaitGuest(t, "on-macvtap", func(g api.Guest) bool {
		return slices.ContainsFunc(g.Drift, func(d string) bool { return strings.Contains(d, "the port "+gone+" is gone") })
	})
	s.cmd.Process.Signal(syscall.SIGTERM)
	if code := s.end(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	u.wantNothing(t)
	ping(lan, host)
	if after := network(); after != before {
		t.Errorf("the network was\n%s\nand is\n%s", before, after)
	}
}
