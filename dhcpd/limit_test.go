package dhcpd

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

func TestClientLimit(t *testing.T) {
	h := newHandler(t, testConfig())
	answered := func(mac boot.MAC, now time.Time) (n int) {
		for range 2 * clientBurst {
			if h.Decide(ask{mac: mac, message: discover}.packet(), now).Reply != nil {
				n++
			}
		}
		return n
	}
	if n := answered(macA, t0); n != clientBurst {
		t.Errorf("%d of a burst were answered", n)
	}
	if n := answered(node, t0); n != clientBurst {
		t.Errorf("%d of another's were answered", n)
	}
	if n := answered(macA, t0.Add(time.Second)); n != clientRate {
		t.Errorf("%d were answered a second later", n)
	}
	if n := h.limited.Total(); n != 6*clientBurst-2*clientBurst-clientRate {
		t.Errorf("counted %d", n)
	}
}

// Whoever calls every address taken does not empty the pool.
func TestDeclinesAreBounded(t *testing.T) {
	cfg := testConfig()
	h := newHandler(t, cfg)
	grab := func(mac boot.MAC) bool {
		d := h.Decide(ask{mac: mac, message: discover}.packet(), t0)
		if d.Reply == nil {
			return false
		}
		a := d.Reply.Packet.YourIPAddr.String()
		h.Decide(ask{mac: mac, message: request, server: us, requested: a}.packet(), t0)
		h.Decide(ask{mac: mac, message: decline, server: us, requested: a}.packet(), t0)
		return true
	}
	for range 10 {
		grab(macA)
	}
	if n := len(h.held.held); n != maxAccused {
		t.Errorf("one client has put %d addresses out of use", n)
	}
	for i := range 1000 {
		grab(boot.MAC{2, 0, 0, 0, byte(i >> 8), byte(i)})
	}
	if n, want := len(h.held.held), h.table.size/8; n != want {
		t.Errorf("%d addresses are out of use, want %d", n, want)
	}
	if n := h.accusations.Total(); n == 0 {
		t.Error("nothing was counted")
	}
	if !grab(macB) {
		t.Error("there is no address any more")
	}
	// An address that is only offered cannot be declined.
	if d := h.Decide(ask{mac: node, message: discover}.packet(), t0); d.Reply == nil {
		t.Fatal("no offer")
	}
	if d := h.Decide(ask{mac: node, message: decline, server: us, requested: "10.77.0.51"}.packet(), t0); d.Commit != nil {
		t.Errorf("got %s", d)
	}
}

// Strangers, however many, leave addresses for the machines that are known.
func TestPoolKeepsAddressesForKnownMachines(t *testing.T) {
	inv := testInventory()
	inv.Machines[macA] = boot.Machine{MAC: macA}
	inv.Machines[macB] = boot.Machine{MAC: macB}
	cfg := testConfig()
	cfg.Inventory = func() *boot.Inventory { return inv }
	h := newHandler(t, cfg)
	take := func(mac boot.MAC) bool {
		d := h.Decide(ask{mac: mac, message: discover}.packet(), t0)
		if d.Reply == nil {
			return false
		}
		return h.Decide(ask{mac: mac, message: request, server: us, requested: d.Reply.Packet.YourIPAddr.String()}.packet(), t0).Commit != nil
	}
	n := 0
	for i := range 1000 {
		if take(boot.MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}) {
			n++
		}
	}
	// 201 addresses, one reserved, ten kept: two and what they may be said to
	// have declined.
	if n != 190 {
		t.Errorf("strangers have %d addresses", n)
	}
	for _, mac := range []boot.MAC{macA, macB, node} {
		if !take(mac) {
			t.Errorf("%s got no address", mac)
		}
	}
	// A neighbour declines in the name of one whatever it gets.
	for range 2 * maxAccused {
		l, _ := h.table.last(macA)
		h.Decide(ask{mac: macA, message: decline, server: us, requested: l.Addr.String()}.packet(), t0)
		if !take(macA) {
			t.Fatal("a known machine has no address left")
		}
	}
	if h.exhausted.Total() != 810 {
		t.Errorf("counted %d", h.exhausted.Total())
	}
	// An INIT-REBOOT is no way around.
	if d := h.Decide(ask{mac: boot.MAC{2, 1}, message: request, requested: "10.77.0.60"}.packet(), t0.Add(time.Minute)); d.Commit != nil {
		t.Errorf("got %s", d)
	}
}

// A stranger whose lease has ended comes back only while there is more than what
// is kept.
func TestPoolKeepsAddressesFromThoseWhoComeBack(t *testing.T) {
	inv := testInventory()
	inv.Machines[macA] = boot.Machine{MAC: macA}
	cfg := testConfig()
	cfg.Inventory = func() *boot.Inventory { return inv }
	cfg.Pool.Last = ip("10.77.0.54") // four beside the reserved one, one of them kept
	h := newHandler(t, cfg)
	take := func(i byte, now time.Time) bool {
		mac := boot.MAC{2, 0, 0, 0, 0, i}
		d := h.Decide(ask{mac: mac, message: discover}.packet(), now)
		if d.Reply == nil {
			// It may also just go on using what it had.
			l, _ := h.table.last(mac)
			return h.Decide(ask{mac: mac, message: request, ciaddr: l.Addr.String()}.packet(), now).Commit != nil
		}
		return h.Decide(ask{mac: mac, message: request, server: us, requested: d.Reply.Packet.YourIPAddr.String()}.packet(), now).Commit != nil
	}
	later := t0.Add(2 * time.Hour)
	for i := range byte(3) {
		if !take(i, t0) || !take(10+i, later) {
			t.Errorf("stranger %d got no address", i)
		}
	}
	for i := range byte(3) {
		if take(i, later) {
			t.Errorf("stranger %d got the last address", i)
		}
	}
	if d := h.Decide(ask{mac: macA, message: discover}.packet(), later); d.Reply == nil {
		t.Error("the known machine got none")
	}
}

// Exhausted means exhausted: an address is given on only after its lease ended,
// and then the one whose lease ended first.
func TestOnlyExpiredLeasesAreReclaimed(t *testing.T) {
	cfg := testConfig()
	cfg.Pool.Last = ip("10.77.0.54") // four beside the reserved one
	h := newHandler(t, cfg)
	take := func(i byte, now time.Time) string {
		mac := boot.MAC{2, 0, 0, 0, 0, i}
		d := h.Decide(ask{mac: mac, message: discover}.packet(), now)
		if d.Reply == nil {
			return "none"
		}
		a := d.Reply.Packet.YourIPAddr.String()
		h.Decide(ask{mac: mac, message: request, server: us, requested: a}.packet(), now)
		return strings.TrimPrefix(a, "10.77.0.")
	}
	var got []string
	for i := range byte(5) {
		got = append(got, take(i, t0.Add(time.Duration(i)*time.Minute)))
	}
	got = append(got, take(9, t0.Add(time.Hour-time.Second)), take(9, t0.Add(time.Hour)), take(8, t0.Add(time.Hour)), take(0, t0.Add(61*time.Minute)))
	if got := strings.Join(got, " "); got != "50 52 53 54 none none 50 none 52" {
		t.Errorf("got %s", got)
	}
}

func TestBootLeaseTime(t *testing.T) {
	pxe := map[uint8]string{60: "PXEClient"}
	tests := []struct {
		name    string
		last    string // of the pool
		boot    time.Duration
		mac     boot.MAC
		options map[uint8]string
		want    time.Duration
	}{
		{name: "firmware, large pool", last: "10.77.0.250", mac: macA, options: pxe, want: time.Hour},
		{name: "firmware, pool nearly empty", last: "10.77.0.59", mac: macA, options: pxe, want: 10 * time.Minute},
		{name: "system, pool nearly empty", last: "10.77.0.59", mac: macA, want: time.Hour},
		{name: "reserved address", last: "10.77.0.59", mac: node, options: pxe, want: time.Hour},
		{name: "firmware, configured", last: "10.77.0.250", boot: time.Minute, mac: macA, options: pxe, want: time.Minute},
		{name: "system, configured", last: "10.77.0.250", boot: time.Minute, mac: macA, want: time.Hour},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := testConfig()
			cfg.Pool.Last, cfg.BootLeaseTime = ip(tt.last), tt.boot
			var leases []Lease
			for i := range byte(8) {
				leases = append(leases, Lease{Addr: netip.AddrFrom4([4]byte{10, 77, 0, 52 + i}), MAC: boot.MAC{2, i}, State: Bound, Expires: t0.Add(time.Hour)})
			}
			h := newHandler(t, cfg, leases...)
			d := h.Decide(ask{mac: tt.mac, message: request, server: us, requested: map[boot.MAC]string{macA: "10.77.0.50", node: "10.77.0.51"}[tt.mac], options: tt.options}.packet(), t0)
			if d.Commit == nil || d.Commit.Expires.Sub(t0) != tt.want || d.Reply.Packet.IPAddressLeaseTime(0) != tt.want {
				t.Errorf("got %s, %+v", d, d.Commit)
			}
		})
	}
}

func TestPoolSize(t *testing.T) {
	server := netip.MustParsePrefix("10.0.0.5/28")
	r := func(a, b string) Range { return Range{ip(a), ip(b)} }
	for _, tt := range []struct {
		pool Pool
		want int
	}{
		{Pool{}, 0},
		{Pool{Range: r("10.0.0.0", "10.0.0.15")}, 13},
		{Pool{Range: r("10.0.0.6", "10.0.0.9")}, 4},
		{Pool{Range: r("10.0.0.6", "10.0.0.9"), Exclude: []Range{r("10.0.0.1", "10.0.0.6"), r("10.0.0.5", "10.0.0.7"), r("10.0.0.9", "10.0.0.20")}}, 1},
	} {
		tab := newTable(server, tt.pool, nil)
		var got []string
		for {
			a, ok := tab.pick(t0)
			if !ok {
				break
			}
			got = append(got, a.String())
			tab.set(Lease{Addr: a, MAC: macA, State: Bound, Expires: t0.Add(time.Hour)})
		}
		if tab.size != tt.want || len(got) != tt.want || tab.free(t0) != 0 || tab.free(t0.Add(time.Hour)) != tt.want {
			t.Errorf("%v: size %d, gave %v, want %d", tt.pool, tab.size, got, tt.want)
		}
	}
}

func TestReturnsUseUpNoRequests(t *testing.T) {
	l := newClientLimit()
	mac, now := boot.MAC{2}, time.Unix(1_000_000, 0)
	returned := 0
	for range 1000 {
		if l.allow(mac, dhcpv4.MessageTypeRelease, now) || l.allow(mac, dhcpv4.MessageTypeDecline, now) {
			returned++
		}
	}
	if returned != clientBurst {
		t.Errorf("%d returns of an address were allowed, want %d", returned, clientBurst)
	}
	if !l.allow(mac, dhcpv4.MessageTypeDiscover, now) {
		t.Error("a machine in whose name addresses are given back cannot ask for one")
	}
}
