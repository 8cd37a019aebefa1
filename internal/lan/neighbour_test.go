package lan

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/every-channel/ecboot/internal/nettest"
)

func TestNeighbourIsWhoeverSpokeLast(t *testing.T) {
	nettest.NeedRoot(t)
	nettest.Need(t, "ip", "ping")
	nettest.Bridge(t, "br0", "10.78.0.1/24")
	peer := nettest.NewHost(t, "peer")
	nettest.Connect(t, "br0", peer, "eth0")
	peer.Run(t, "ip", "addr", "add", "10.78.0.2/24", "dev", "eth0")
	addr := netip.MustParseAddr("10.78.0.2")
	if mac, ok := Neighbour("br0", addr); ok {
		t.Fatalf("%s is known as %x before it has said anything", addr, mac)
	}
	peer.Run(t, "ping", "-c1", "-W5", "10.78.0.1")
	mac, ok := Neighbour("br0", addr)
	have := strings.Fields(peer.Run(t, "cat", "/sys/class/net/eth0/address"))[0]
	if !ok || net.HardwareAddr(mac[:]).String() != have {
		t.Errorf("the neighbour at %s is %x (%v), want %s", addr, mac, ok, have)
	}
	if _, ok := Neighbour("br0", netip.MustParseAddr("10.78.0.9")); ok {
		t.Error("an address that nobody has is known")
	}
	if _, ok := Neighbour("br9", addr); ok {
		t.Error("a link that is not there has neighbours")
	}
}
