package dhcpd

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/nettest"
)

func probing() Config {
	cfg := testConfig()
	cfg.ProbeTime = DefaultProbeTime
	return cfg
}

// Only an address that is new to its client is probed.
func TestWhatIsProbed(t *testing.T) {
	h := newHandler(t, probing(),
		Lease{Addr: ip("10.77.0.60"), MAC: macA, State: Bound, Expires: t0.Add(time.Hour)},
		Lease{Addr: ip("10.77.0.61"), MAC: macB, State: Bound, Expires: t0.Add(-time.Hour)})
	offer := func(a ask) string {
		a.message = discover
		d := h.Decide(a.packet(), t0)
		if d.Reply == nil {
			return "silence"
		}
		if !d.Probe.IsValid() {
			return d.Reply.Packet.YourIPAddr.String()
		}
		return "probe " + d.Probe.String()
	}
	stranger := boot.MAC{2}
	for _, tt := range []struct {
		ask  ask
		want string
	}{
		{ask{mac: macA}, "10.77.0.60"}, // has it
		{ask{mac: macB}, "10.77.0.61"}, // had it
		{ask{mac: stranger}, "probe 10.77.0.50"},
		{ask{mac: stranger}, "probe 10.77.0.50"}, // nobody has had the time to answer
		{ask{mac: node}, "probe 10.77.0.51"},     // reserved, and never used
	} {
		if got := offer(tt.ask); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.ask.mac, got, tt.want)
		}
	}
	h.silent(ip("10.77.0.50"))
	if got := offer(ask{mac: stranger}); got != "10.77.0.50" {
		t.Errorf("after nobody answered: %s", got)
	}
	if d := h.Decide(ask{mac: stranger, message: request, server: us, requested: "10.77.0.50"}.packet(), t0); d.Probe.IsValid() {
		t.Errorf("an ACK waits for a probe: %s", d)
	}
}

func TestConflict(t *testing.T) {
	h := newHandler(t, probing())
	first := h.Decide(ask{mac: macA, message: discover}.packet(), t0)
	d := h.conflict(first, macB, t0)
	if d.Commit == nil || *d.Commit != (Lease{ip("10.77.0.50"), macB, Conflict, t0.Add(quarantineTime)}) || !strings.Contains(d.Warn, macB.String()) {
		t.Errorf("got %s, %q", d, d.Warn)
	}
	if who, ok := h.Who(ip("10.77.0.50"), t0); ok {
		t.Errorf("the address is %s's", who)
	}
	second := h.Decide(ask{mac: macA, message: discover, requested: "10.77.0.50"}.packet(), t0)
	if second.Probe != ip("10.77.0.52") {
		t.Errorf("got %s", second)
	}
	// The client was faster than the answer.
	h.Decide(ask{mac: macA, message: request, server: us, requested: "10.77.0.52"}.packet(), t0)
	if d := h.conflict(second, macB, t0); d.Commit != nil {
		t.Errorf("took away what was acknowledged: %s", d)
	}
	// The quarantine ends.
	if d := h.Decide(ask{mac: boot.MAC{2}, message: discover, requested: "10.77.0.50"}.packet(), t0.Add(quarantineTime)); d.Probe != ip("10.77.0.50") {
		t.Errorf("got %s", d)
	}
}

// A router that answers for everybody keeps nobody from an address.
func TestProxyARP(t *testing.T) {
	h := newHandler(t, probing())
	for i := range byte(20) {
		d := h.Decide(ask{mac: boot.MAC{2, i}, message: discover}.packet(), t0)
		if c := h.conflict(d, macB, t0); (c.Commit != nil) != (i < maxAccused) {
			t.Errorf("%d: %s", i, c)
		}
	}
}

// A reserved address that somebody uses is not forced on its machine.
func TestReservedAddressInConflict(t *testing.T) {
	h := newHandler(t, probing())
	d := h.Decide(ask{mac: node, message: discover}.packet(), t0)
	h.conflict(d, macB, t0)
	if d := h.Decide(ask{mac: node, message: discover}.packet(), t0); d.Reply == nil || d.Probe != ip("10.77.0.50") {
		t.Errorf("got %s", d)
	}
}

// Somebody uses an address of the pool without having asked: dhclient gets
// another one, and the next time at once.
func TestAddressInUseIsNotOffered(t *testing.T) {
	nettest.Need(t, "dhclient")
	l := startLab(t, func(cfg *Config) {
		cfg.Store = NewMemoryStore()
		cfg.ProbeTime = DefaultProbeTime
	})
	squatter := nettest.NewHost(t, "squatter")
	nettest.Connect(t, "br0", squatter, "eth0")
	squatter.Run(t, "ip", "addr", "add", "10.77.0.50/24", "dev", "eth0")
	mac := strings.TrimSpace(squatter.Run(t, "cat", "/sys/class/net/eth0/address"))
	h := newClient(t)
	args := []string{"-4", "-d", "-v", "-sf", "/bin/true", "-lf", "/run/leases", "-pf", "/run/pid", "eth0"}
	start(t, h.Command(t.Context(), "dhclient", args...))
	if e := l.await(t, "os.ack"); e.Detail != "10.77.0.52" {
		t.Errorf("got %+v", e)
	}
	want := []Lease{{Addr: ip("10.77.0.50"), State: Conflict}, {Addr: ip("10.77.0.52"), State: Bound}}
	got := l.cfg.Store.Leases()
	if !slices.EqualFunc(got, want, func(a, b Lease) bool { return a.Addr == b.Addr && a.State == b.State }) || got[0].MAC.String() != mac {
		t.Errorf("got %v", got)
	}
	if c := l.Counters(); c.Conflicts != 1 {
		t.Errorf("counted %+v", c)
	}
}

func TestARP(t *testing.T) {
	probe := arpProbe(macA, ip("10.77.0.50"))
	if got, want := hex.EncodeToString(probe), "0001080006040001"+"52540000000a00000000"+"0000000000000a4d0032"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	// Somebody else's probe says that they are about to use the address.
	if a, station, ok := arpClaim(probe); a != ip("10.77.0.50") || station != macA || !ok {
		t.Errorf("%s %s %v", a, station, ok)
	}
	reply, _ := hex.DecodeString("0001080006040002" + "52540000000b0a4d0033" + "52540000000a00000000")
	if a, station, ok := arpClaim(reply); a != ip("10.77.0.51") || station != macB || !ok {
		t.Errorf("%s %s %v", a, station, ok)
	}
}

func FuzzARP(f *testing.F) {
	f.Add(arpProbe(macA, ip("10.77.0.50")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, _, ok := arpClaim(b); ok && (!a.Is4() || a == netip.Addr{}) {
			t.Errorf("claims %s", a)
		}
	})
}
