package dhcpd

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
)

func TestPoolFillsUpInOrder(t *testing.T) {
	server := netip.MustParsePrefix("10.0.0.5/29")
	pool := Pool{Range: Range{ip("10.0.0.0"), ip("10.0.0.7")}, Exclude: []Range{{ip("10.0.0.3"), ip("10.0.0.4")}}}
	tab := newTable(server, pool, nil)
	var got []string
	for i := byte(1); ; i++ {
		a, ok := tab.pick(t0)
		if !ok {
			break
		}
		got = append(got, a.String())
		tab.set(Lease{Addr: a, MAC: boot.MAC{i}, State: Bound, Expires: t0.Add(time.Hour)})
	}
	// Not the network, the broadcast and the server's own address.
	if want := "10.0.0.1 10.0.0.2 10.0.0.6"; strings.Join(got, " ") != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestPoolReclaimsWhatIsFreeForLongest(t *testing.T) {
	at := func(minutes int) time.Time { return t0.Add(time.Duration(minutes) * time.Minute) }
	tab := newTable(netip.MustParsePrefix("10.0.0.254/24"), Pool{Range: Range{ip("10.0.0.1"), ip("10.0.0.4")}}, []Lease{
		{Addr: ip("10.0.0.1"), MAC: boot.MAC{1}, State: Bound, Expires: at(10)},
		{Addr: ip("10.0.0.2"), MAC: boot.MAC{2}, State: Released, Expires: at(-5)},
		{Addr: ip("10.0.0.3"), MAC: boot.MAC{3}, State: Bound, Expires: at(-9)},
		{Addr: ip("10.0.0.4"), MAC: boot.MAC{4}, State: Declined, Expires: at(5)},
	})
	if a, ok := tab.pick(at(0)); !ok || a != ip("10.0.0.3") {
		t.Errorf("got %s %v", a, ok)
	}
	// A reserved address is passed over, and is still there afterwards.
	tab.reserve(map[netip.Addr]bool{ip("10.0.0.3"): true})
	if a, ok := tab.pick(at(0)); !ok || a != ip("10.0.0.2") || tab.size != 3 || tab.free(at(0)) != 1 {
		t.Errorf("got %s %v, %d of %d free", a, ok, tab.free(at(0)), tab.size)
	}
	tab.reserve(nil)
	if a, ok := tab.pick(at(0)); !ok || a != ip("10.0.0.3") {
		t.Errorf("got %s %v", a, ok)
	}
	tab.set(Lease{Addr: ip("10.0.0.3"), MAC: boot.MAC{5}, State: Bound, Expires: at(60)})
	tab.set(Lease{Addr: ip("10.0.0.2"), MAC: boot.MAC{6}, State: Bound, Expires: at(60)})
	if a, ok := tab.pick(at(0)); ok {
		t.Errorf("%s was given though it is taken", a)
	}
	// Machine 3 lost its address; a quarantine ends as a lease does.
	if l, ok := tab.last(boot.MAC{3}); ok {
		t.Errorf("machine 3 still has %v", l)
	}
	if a, ok := tab.pick(at(6)); !ok || a != ip("10.0.0.4") {
		t.Errorf("got %s %v", a, ok)
	}
}

func TestDeclinedAddressIsNobodys(t *testing.T) {
	h := newHandler(t, testConfig())
	h.Decide(ask{mac: macA, message: request, server: us, requested: "10.77.0.50"}.packet(), t0)
	h.Decide(ask{mac: macA, message: decline, server: us, requested: "10.77.0.50"}.packet(), t0)
	if d := h.Decide(ask{mac: macA, message: discover}.packet(), t0); d.Reply.To == ip("10.77.0.50") {
		t.Error("the address was offered again to the machine that declined it")
	}
	for _, mac := range []boot.MAC{macA, macB} {
		d := h.Decide(ask{mac: mac, message: request, requested: "10.77.0.50"}.packet(), t0)
		if d.Reply.Packet.MessageType() != 6 {
			t.Errorf("%s: %s", mac, d)
		}
	}
}

// Of several addresses that a machine had, it gets the last one again.
func TestLastAddressWins(t *testing.T) {
	h := newHandler(t, testConfig(),
		Lease{Addr: ip("10.77.0.60"), MAC: macA, State: Bound, Expires: t0.Add(time.Minute)},
		Lease{Addr: ip("10.77.0.61"), MAC: macA, State: Released, Expires: t0.Add(-time.Minute)})
	if d := h.Decide(ask{mac: macA, message: discover}.packet(), t0); d.Reply.To != ip("10.77.0.60") {
		t.Error(d)
	}
}

func TestBroadcast(t *testing.T) {
	for p, want := range map[string]string{"10.77.0.1/24": "10.77.0.255", "10.1.2.3/8": "10.255.255.255", "192.0.2.9/29": "192.0.2.15", "192.0.2.1/32": "192.0.2.1"} {
		if got := broadcast(netip.MustParsePrefix(p)); got != ip(want) {
			t.Errorf("%s: got %s, want %s", p, got, want)
		}
	}
}
