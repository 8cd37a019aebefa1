package lan

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/internal/nettest"
)

// lookWhile has look succeed while change goes on and on.
func lookWhile(t *testing.T, change func(), look func() error) {
	t.Helper()
	over := make(chan struct{})
	var busy sync.WaitGroup
	busy.Go(func() {
		for {
			select {
			case <-over:
				return
			default:
				change()
			}
		}
	})
	for range 30 {
		if err := look(); err != nil {
			t.Error(err)
			break
		}
	}
	close(over)
	busy.Wait()
}

// Links that come and go meanwhile, as those of guests do, spoil no look at the
// network.
func TestReadHostWhileItChanges(t *testing.T) {
	nettest.NeedRoot(t)
	bridge := func(name string) netlink.Link {
		la := netlink.NewLinkAttrs()
		la.Name = name
		return &netlink.Bridge{LinkAttrs: la}
	}
	for i := range 100 { // more than the kernel tells in one message
		link := bridge(fmt.Sprintf("many%d", i))
		if err := netlink.LinkAdd(link); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = netlink.LinkDel(link) })
	}
	lookWhile(t, func() {
		link := bridge("fleeting")
		_ = netlink.LinkAdd(link)
		_ = netlink.LinkDel(link)
	}, func() error {
		_, err := readHost()
		return err
	})
}

// The same of what moves to a bridge.
func TestBelongingsWhileAddressesChange(t *testing.T) {
	nettest.NeedRoot(t)
	nettest.Bridge(t, "br8", "")
	bridge, err := netlink.LinkByName("br8")
	if err != nil {
		t.Fatal(err)
	}
	address := func(i int) *netlink.Addr {
		return &netlink.Addr{IPNet: netlink.NewIPNet(net.IPv4(10, 50, byte(i>>8), byte(i)))}
	}
	const many = 2000 // more than the kernel tells in one message
	for i := range many {
		if err := netlink.AddrAdd(bridge, address(i)); err != nil {
			t.Fatal(err)
		}
	}
	lookWhile(t, func() {
		_ = netlink.AddrAdd(bridge, address(many))
		_ = netlink.AddrDel(bridge, address(many))
	}, func() error {
		_, err := dump(unix.RTM_GETADDR, unix.RTM_NEWADDR)
		return err
	})
}

func TestWaysOut(t *testing.T) {
	nettest.NeedRoot(t)
	for _, nic := range []string{"nic0", "nic1"} {
		nettest.Wire(t, nic, nettest.NewHost(t, nic), "eth0")
	}
	run(t, "ip", "addr", "add", "198.51.100.2/24", "dev", "nic0")
	run(t, "ip", "addr", "add", "203.0.113.2/24", "dev", "nic1")
	const both = "nexthop via 198.51.100.1 nexthop via 203.0.113.1"
	for _, tt := range []struct {
		routes []string
		want   string
	}{
		{[]string{"default via 198.51.100.1"}, "nic0"},
		{[]string{"default via 198.51.100.1 metric 1", "default via 203.0.113.1 metric 2", "default via 198.51.100.9 metric 3"}, "nic0 nic1"},
		{[]string{"default " + both}, "nic0 nic1"},
		{[]string{"unreachable default"}, ""},
		{[]string{"10.0.0.0/8 via 198.51.100.1"}, ""},
	} {
		for _, route := range tt.routes {
			run(t, "ip", append([]string{"route", "add"}, strings.Fields(route)...)...)
		}
		h, err := readHost()
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(h.exits)
		if got := strings.Join(h.exits, " "); got != tt.want {
			t.Errorf("%q lead out by %q, want %q", tt.routes, got, tt.want)
		}
		for _, route := range tt.routes {
			run(t, "ip", append([]string{"route", "del"}, strings.Fields(route)...)...)
		}
	}
}
