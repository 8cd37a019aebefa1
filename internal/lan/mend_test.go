package lan

import (
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/every-channel/ecboot/internal/nettest"
)

// numberless is the network without the numbers that links get one after another.
func numberless(t *testing.T) string {
	t.Helper()
	lines := strings.Split(regexp.MustCompile(`(?m)^\d+: `).ReplaceAllString(network(t), ""), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestMendMakesAgainWhatOthersHaveUndone(t *testing.T) {
	moved := netip.MustParsePrefix("10.79.0.2/24")
	for name, tt := range map[string]struct {
		cfg  Config
		harm string
		want string
	}{
		"a bridge is deleted":        {Config{Uplink: "nic0"}, "ip link del ecbr-nic0", "bridge ecbr-nic0 made"},
		"a NIC is taken out":         {Config{Uplink: "nic0"}, "ip link set nic0 nomaster", "nic0 put into ecbr-nic0"},
		"an address is deleted":      {Config{Uplink: "nic0"}, "ip addr del 10.79.0.3/24 dev ecbr-nic0", "addresses and routes of nic0 moved to ecbr-nic0"},
		"an added address, too":      {Config{Uplink: "nic0", Address: private}, "ip addr del 10.77.0.1/24 dev ecbr-nic0", "10.77.0.1/24 added to ecbr-nic0"},
		"a bridge is taken down":     {Config{Bridge: "br8", Address: private}, "ip link set br8 down", "br8 brought up"},
		"a macvlan is deleted":       {Config{Parent: "nic0", Address: moved}, "ip link del ecmv-nic0", "macvlan ecmv-nic0 made on nic0"},
		"a bridge with NAT is, too":  {Config{Name: "lab", Bridge: "br8", Address: private, NAT: true}, "ip link del br8", "ipv4/conf/br8/forwarding set to 1"},
		"a firewall's table is gone": {Config{Name: "lab", Bridge: "br8", Address: private, NAT: true}, "nft delete table ip ecboot_lab", "nftables table ecboot_lab made"},
	} {
		t.Run(name, func(t *testing.T) {
			nettest.Need(t, "nft")
			office(t)
			before := network(t)
			tt.cfg.NoteDir = t.TempDir()
			s, err := Open(tt.cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { s.Close() }()
			if mended, err := s.Mend(); len(mended) > 0 || err != nil {
				t.Fatalf("before anything was done: %q, %v", mended, err)
			}
			var opened string
			await(t, "a quiet network", func() bool {
				last := opened
				opened = numberless(t)
				return opened == last
			})
			harm := strings.Fields(tt.harm)
			run(t, harm[0], harm[1:]...)
			if opened == numberless(t) {
				t.Fatal("no harm was done")
			}
			mended, err := s.Mend()
			if err != nil || !slices.Contains(mended, tt.want) {
				t.Errorf("mended %q, %v, want %q among it", mended, err, tt.want)
			}
			var diff string
			await(t, "the old network", func() bool {
				diff = cmp.Diff(opened, numberless(t))
				return diff == "" || t.Failed()
			})

			// The same, found by a successor.
			if err := s.Hold(os.Getpid()); err != nil {
				t.Fatal(err)
			}
			if err := s.Leave(); err != nil {
				t.Fatal(err)
			}
			run(t, harm[0], harm[1:]...)
			if s, err = Open(tt.cfg); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(s.Warnings(), "\n"); !strings.Contains(got, tt.want) {
				t.Errorf("the successor says %q, want %q", got, tt.want)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			await(t, "the network as it was", func() bool {
				diff = cmp.Diff(before, network(t))
				return diff == "" || t.Failed()
			})
		})
	}
}

func TestRenamedNICGetsEverythingBack(t *testing.T) {
	for name, cfg := range map[string]Config{
		"a port of a bridge":         {Uplink: "nic0"},
		"a parent without addresses": {Parent: "nic0", Address: netip.MustParsePrefix("10.79.0.2/24")},
	} {
		t.Run(name, func(t *testing.T) {
			office(t)
			cfg.NoteDir = t.TempDir()
			s, err := Open(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			run(t, "ip", "link", "set", "nic0", "down")
			run(t, "ip", "link", "set", "nic0", "name", "lan9")
			run(t, "ip", "link", "set", "lan9", "up")
			if _, err := s.Mend(); err != nil {
				t.Error(err)
			}
			run(t, "ip", "addr", "add", "10.79.0.77/24", "dev", "lan9")
			await(t, "the move of what a DHCP client adds", func() bool {
				return strings.Contains(run(t, "ip", "addr", "show", "dev", s.Interface()), "10.79.0.77/24")
			})
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			have := run(t, "ip", "addr", "show", "dev", "lan9") + run(t, "ip", "route", "show", "dev", "lan9")
			for _, want := range []string{"10.79.0.2/24", "10.79.0.77/24", "2001:db8:79::2/64", "default via 10.79.0.1"} {
				if !strings.Contains(have, want) {
					t.Errorf("the NIC lacks %q: %s", want, have)
				}
			}
			for _, key := range []string{"ipv6/conf/lan9/disable_ipv6", "ipv4/conf/lan9/arp_ignore"} {
				if value, err := readSetting(key); value != "0" || err != nil {
					t.Errorf("%s is %q, %v", key, value, err)
				}
			}
		})
	}
}
