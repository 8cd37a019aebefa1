package lan

import (
	"context"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/every-channel/ecboot/internal/nettest"
)

// reaches reports whether a host gets an answer to a ping, waiting briefly.
func reaches(h *nettest.Host, target string) bool {
	return h.Command(context.Background(), "ping", "-c1", "-W1", target).Run() == nil
}

// crossroads is a machine with a way out to the world, by nic0, and a side network
// on nic1. It routes what comes from the side, and nothing that comes from the world.
func crossroads(t *testing.T) (world, side *nettest.Host) {
	t.Helper()
	nettest.NeedRoot(t)
	nettest.Need(t, "ip", "ping", "nft")
	world, side = nettest.NewHost(t, "world"), nettest.NewHost(t, "side")
	nettest.Wire(t, "nic0", world, "eth0")
	nettest.Wire(t, "nic1", side, "eth0")
	for _, args := range []string{
		"addr add 198.51.100.2/24 dev nic0", "addr add 10.90.0.1/24 dev nic1", "route add default via 198.51.100.1",
	} {
		run(t, "ip", strings.Fields(args)...)
	}
	for nic, on := range map[string]string{"nic0": "0", "nic1": "1"} {
		if err := writeSetting(forwarding(nic), on); err != nil {
			t.Fatal(err)
		}
	}
	world.Run(t, "ip", "addr", "add", "198.51.100.1/24", "dev", "eth0")
	world.Run(t, "ip", "route", "add", "10.0.0.0/8", "via", "198.51.100.2")
	side.Run(t, "ip", "addr", "add", "10.90.0.2/24", "dev", "eth0")
	side.Run(t, "ip", "route", "add", "default", "via", "10.90.0.1")
	return world, side
}

// client is a machine on a bridge whose router is there.
func client(t *testing.T, bridge, network string) *nettest.Host {
	t.Helper()
	h := nettest.NewHost(t, "client-"+bridge)
	nettest.Connect(t, bridge, h, "eth0")
	h.Run(t, "ip", "addr", "add", network+".50/24", "dev", "eth0")
	h.Run(t, "ip", "route", "add", "default", "via", network+".1")
	return h
}

func TestNATLetsTheSegmentOutAndNobodyIn(t *testing.T) {
	world, side := crossroads(t)
	settings := func() (all string) {
		for _, nic := range []string{"nic0", "nic1"} {
			value, _ := readSetting(forwarding(nic))
			all += nic + " " + value + "\n"
		}
		return all + run(t, "nft", "list", "ruleset")
	}
	before := settings()

	s, err := Open(Config{Name: "lab", Bridge: "br8", Address: private, NAT: true, NoteDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	guest := client(t, "br8", "10.77.0")
	if out := run(t, "nft", "list", "tables"); !strings.Contains(out, "table ip ecboot_lab") {
		t.Errorf("the tables are %s", out)
	}

	// The world has a route back to the guest's own address, which it must
	// not need.
	world.Run(t, "ip", "route", "del", "10.0.0.0/8")
	guest.Run(t, "ping", "-c1", "-W5", "198.51.100.1")
	world.Run(t, "ip", "route", "add", "10.0.0.0/8", "via", "198.51.100.2")
	for _, h := range []*nettest.Host{world, side} {
		if reaches(h, "10.77.0.50") {
			t.Errorf("the %s reaches the guest", h.Name)
		}
	}
	if reaches(world, "10.90.0.2") {
		t.Error("the world is let through to the side network, as it was not before")
	}
	guest.Run(t, "ip", "addr", "add", "10.66.0.1/32", "dev", "lo")
	run(t, "ip", "route", "add", "10.66.0.1", "via", "10.77.0.50")
	if guest.Command(context.Background(), "ping", "-c1", "-W1", "-I", "10.66.0.1", "198.51.100.1").Run() == nil {
		t.Error("a foreign source is let out")
	}

	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if reaches(guest, "198.51.100.1") {
		t.Error("the guest is let out although the segment is closed")
	}
	if diff := cmp.Diff(before, settings()); diff != "" {
		t.Errorf("the firewall is not as it was:\n%s", diff)
	}
}

// Two segments have the same way out, and need the same settings of it.
func TestNATOfTwoSegments(t *testing.T) {
	world, _ := crossroads(t)
	dir := t.TempDir()
	open := func(name, network string) (*Segment, *nettest.Host) {
		s, err := Open(Config{Name: name, Bridge: "br-" + name, Address: netip.MustParsePrefix(network + ".1/24"), NAT: true, NoteDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s, client(t, "br-"+name, network)
	}
	closed := func() {
		t.Helper()
		for _, address := range []string{"10.77.0.50", "10.78.0.50", "10.90.0.2"} {
			if reaches(world, address) {
				t.Errorf("the world reaches %s", address)
			}
		}
	}
	first, one := open("lab", "10.77.0")
	second, two := open("test", "10.78.0")
	for _, guest := range []*nettest.Host{one, two} {
		guest.Run(t, "ping", "-c1", "-W5", "198.51.100.1")
	}
	closed()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	two.Run(t, "ping", "-c1", "-W5", "198.51.100.1")
	closed()
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if value, _ := readSetting(forwarding("nic0")); value != "0" {
		t.Errorf("forwarding of the way out is %s and was 0", value)
	}
}

// The way out becomes a port of another segment's bridge, which must not let in
// what the NIC did not.
func TestNATOverABridgeThatComesLater(t *testing.T) {
	world, _ := crossroads(t)
	dir := t.TempDir()
	open := func(cfg Config) *Segment {
		cfg.NoteDir = dir
		s, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	lab := open(Config{Name: "lab", Bridge: "br8", Address: private, NAT: true})
	office := open(Config{Name: "office", Bridge: "br9", Uplink: "nic0"})
	closed := func() {
		t.Helper()
		if reaches(world, "10.90.0.2") {
			t.Error("the world is let through to the side network, as it was not before")
		}
	}
	closed()
	guest := client(t, "br8", "10.77.0")
	if _, err := lab.Mend(); err != nil {
		t.Fatal(err)
	}
	guest.Run(t, "ping", "-c1", "-W5", "198.51.100.1")
	closed()
	run(t, "ip", "link", "del", "br9")
	if _, err := office.Mend(); err != nil {
		t.Fatal(err)
	}
	closed()
}

// A laptop is taken from its cable to the radio and back.
func TestNATFollowsTheDefaultRoute(t *testing.T) {
	world, _ := crossroads(t)
	radio := nettest.NewHost(t, "radio")
	plug := func() {
		nettest.Wire(t, "nic2", radio, "eth0")
		run(t, "ip", "addr", "add", "203.0.113.2/24", "dev", "nic2")
		if err := writeSetting(forwarding("nic2"), "0"); err != nil {
			t.Fatal(err)
		}
		radio.Run(t, "ip", "addr", "add", "203.0.113.1/24", "dev", "eth0")
		radio.Run(t, "ip", "route", "add", "10.0.0.0/8", "via", "203.0.113.2")
	}
	plug()
	rules := func() string { return run(t, "nft", "list", "ruleset") }
	before := rules()

	s, err := Open(Config{Name: "lab", Bridge: "br8", Address: private, NAT: true, NoteDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	guest := client(t, "br8", "10.77.0")
	mended := func(want ...string) {
		t.Helper()
		if got, err := s.Mend(); !slices.Equal(got, want) || err != nil {
			t.Errorf("mended %q, %v", got, err)
		}
	}
	run(t, "ip", "route", "del", "default")
	mended() // between two networks
	run(t, "ip", "route", "add", "default", "via", "203.0.113.1")
	mended("the default route is on nic2 now, and clients are let out there")
	mended()
	guest.Run(t, "ping", "-c1", "-W5", "203.0.113.1")
	for _, address := range []string{"10.77.0.50", "10.90.0.2"} {
		if reaches(radio, address) || reaches(world, address) {
			t.Errorf("%s is reached from outside", address)
		}
	}
	run(t, "nft", "delete", "table", "ip", "ecboot_lab")
	mended("nftables table ecboot_lab made")
	run(t, "ip", "route", "replace", "default", "via", "198.51.100.1")
	mended()
	for _, address := range []string{"198.51.100.1", "203.0.113.1"} {
		guest.Run(t, "ping", "-c1", "-W5", address)
	}
	// It is taken out of its socket, and put into it again.
	run(t, "ip", "link", "del", "nic2")
	mended()
	plug()
	run(t, "ip", "route", "replace", "default", "via", "203.0.113.1")
	mended("the default route is on nic2 now, and clients are let out there")
	guest.Run(t, "ping", "-c1", "-W5", "203.0.113.1")
	if reaches(radio, "10.90.0.2") {
		t.Error("the side network is reached from outside")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, nic := range []string{"nic0", "nic2"} {
		if value, _ := readSetting(forwarding(nic)); value != "0" {
			t.Errorf("forwarding of %s is %s and was 0", nic, value)
		}
	}
	if diff := cmp.Diff(before, rules()); diff != "" {
		t.Errorf("the firewall is not as it was:\n%s", diff)
	}
}

func TestNATWarnsOfAFirewallThatDrops(t *testing.T) {
	nettest.NeedRoot(t)
	nettest.Need(t, "nft")
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader("table ip docker {\n chain FORWARD {\n type filter hook forward priority 0; policy drop;\n }\n chain other {\n }\n}\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { run(t, "nft", "delete", "table", "ip", "docker") })
	if got := strings.Join(strictChains(), "; "); got != "chain docker FORWARD" {
		t.Errorf("found %q", got)
	}
}
