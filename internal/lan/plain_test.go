package lan

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/every-channel/ecboot/internal/nettest"
)

func TestInterfaceIsServedAsItIs(t *testing.T) {
	nettest.NeedRoot(t)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "plain0", MTU: 1500}, PeerName: "plain1"}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	defer netlink.LinkDel(veth)
	open := func(address string) (*Segment, error) {
		cfg := Config{Interface: "plain0", NoteDir: t.TempDir()}
		if address != "" {
			cfg.Address = netip.MustParsePrefix(address)
		}
		return Open(cfg)
	}
	refused := func(want string, cfg Config) {
		t.Helper()
		s, err := Open(cfg)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	refused("is down", Config{Interface: "plain0"})
	for _, name := range []string{"plain0", "plain1"} {
		if err := setUp(name); err != nil {
			t.Fatal(err)
		}
	}
	refused("has no IPv4 address", Config{Interface: "plain0"})
	refused("there is no NIC plain9", Config{Interface: "plain9"})
	refused("without Ethernet", Config{Interface: "lo"})
	refused("choose one", Config{Interface: "plain0", Bridge: "br0"})

	s, err := open("10.81.0.1/24")
	if err != nil {
		t.Fatal(err)
	}
	if s.Interface() != "plain0" || s.Address().String() != "10.81.0.1/24" {
		t.Errorf("%s %s", s.Interface(), s.Address())
	}
	if _, err := s.Tap([6]byte{2}); err == nil || !strings.Contains(err.Error(), `uplink = "plain0"`) {
		t.Errorf("tap: %v", err)
	}
	if again, err := open(""); err != nil || again.Address() != s.Address() {
		t.Errorf("the address that it has: %v, %v", again, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	link, err := net.InterfaceByName("plain0")
	if err != nil {
		t.Fatal(err)
	}
	addrs, _ := link.Addrs()
	for _, a := range addrs {
		if strings.HasPrefix(a.String(), "10.81.") {
			t.Errorf("%s was left", a)
		}
	}
}
