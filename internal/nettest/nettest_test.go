package nettest

import (
	"net"
	"strings"
	"testing"
)

func TestMain(m *testing.M) { Main(m) }

func TestHostsReachEachOtherOverABridge(t *testing.T) {
	NeedRoot(t)
	Need(t, "ip", "ping")
	Bridge(t, "br0", "10.78.0.1/24")
	a, b := NewHost(t, "a"), NewHost(t, "b")
	for addr, h := range map[string]*Host{"10.78.0.2/24": a, "10.78.0.3/24": b} {
		Connect(t, "br0", h, "eth0")
		h.Run(t, "ip", "addr", "add", addr, "dev", "eth0")
	}
	for _, target := range []string{"10.78.0.1", "10.78.0.3"} {
		a.Run(t, "ping", "-c1", "-W5", target)
	}
}

func TestTheTestHasANamespaceOfItsOwn(t *testing.T) {
	NeedRoot(t)
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range links {
		names = append(names, l.Name)
	}
	if got := strings.Join(names, " "); got != "lo" {
		t.Errorf("a fresh namespace has the links %q, want lo", got)
	}
}
