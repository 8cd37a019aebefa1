package dhcpd

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

// relayedConfig serves two networks behind relays beside the interface's own,
// the second as a proxy.
func relayedConfig() Config {
	cfg := fullConfig()
	inv := &boot.Inventory{
		Machines: map[boot.MAC]boot.Machine{node: {MAC: node, Name: "node1", Addr: "10.9.0.77"}},
		Profiles: map[string]boot.Profile{"default": {Name: "default"}},
		Default:  "default",
	}
	inventory := func() *boot.Inventory { return inv }
	cfg.Relayed = []Subnet{
		{netip.MustParsePrefix("10.9.0.1/24"), Network{
			Pool: Pool{Range: Range{ip("10.9.0.10"), ip("10.9.0.19")}}, LeaseTime: 10 * time.Minute,
			Router: ip("10.9.0.254"), DNS: []netip.Addr{ip("10.9.0.2")}, Domain: "nine.example",
			Inventory: inventory, AnswerUnknown: true, Authoritative: true}},
		{netip.MustParsePrefix("10.10.0.1/24"), Network{Mode: ModeProxy, Inventory: inventory}},
	}
	return cfg
}

// relayInfo is option 82 with a circuit and a selected link.
func relayInfo(link string) map[uint8]string {
	a := ip(link).As4()
	return map[uint8]string{82: "\x01\x04eth1\x05\x04" + string(a[:])}
}

func TestRelayedNetworks(t *testing.T) {
	bound := func(mac boot.MAC, a string) Lease {
		return Lease{Addr: ip(a), MAC: mac, State: Bound, Expires: t0.Add(time.Hour)}
	}
	ten9 := string([]byte{10, 9, 0, 0})
	tests := []struct {
		name   string
		leases []Lease
		ask    ask
		want   string
	}{
		{name: "ours", ask: ask{mac: macA, message: discover},
			want: "OFFER 10.77.0.50, unicast to chaddr 10.77.0.50"},
		{name: "a relay", ask: ask{mac: macA, message: discover, giaddr: "10.9.0.1", broadcast: true},
			want: "OFFER 10.9.0.10, relay 10.9.0.1"},
		{name: "a second relay of a network", ask: ask{mac: macA, message: discover, giaddr: "10.9.0.5"},
			want: "OFFER 10.9.0.10, relay 10.9.0.5"},
		{name: "reserved there", ask: ask{mac: node, message: discover, giaddr: "10.9.0.1"},
			want: "OFFER 10.9.0.77, relay 10.9.0.1"},
		{name: "reserved here", ask: ask{mac: node, message: discover},
			want: "OFFER 10.77.0.51, unicast to chaddr 10.77.0.51"},
		{name: "nobody's relay", ask: ask{mac: macA, message: discover, giaddr: "192.0.2.1"},
			want: "silence"},
		{name: "everybody as a relay", ask: ask{mac: macA, message: discover, giaddr: "10.9.0.255"},
			want: "silence"},
		{name: "ourselves as a relay", ask: ask{mac: macA, message: discover, giaddr: us},
			want: "silence"},
		{name: "request", ask: ask{mac: macA, message: request, server: us, requested: "10.9.0.10", giaddr: "10.9.0.1"},
			want: "ACK 10.9.0.10, relay 10.9.0.1, bound 10.9.0.10"},
		{name: "request for an address of another network", ask: ask{mac: macA, message: request, server: us, requested: "10.77.0.50", giaddr: "10.9.0.1"},
			want: "NAK 0.0.0.0, relay 10.9.0.1"},
		{name: "renewing past the relay", leases: []Lease{bound(macA, "10.9.0.10")}, ask: ask{mac: macA, message: request, ciaddr: "10.9.0.10"},
			want: "ACK 10.9.0.10, unicast to ciaddr 10.9.0.10, bound 10.9.0.10"},
		{name: "rebinding through the relay", leases: []Lease{bound(macA, "10.9.0.10")}, ask: ask{mac: macA, message: request, ciaddr: "10.9.0.10", giaddr: "10.9.0.1"},
			want: "ACK 10.9.0.10, relay 10.9.0.1, bound 10.9.0.10"},
		{name: "a lease in each network", leases: []Lease{bound(macA, "10.9.0.15"), bound(macA, "10.77.0.60")}, ask: ask{mac: macA, message: discover, giaddr: "10.9.0.1"},
			want: "OFFER 10.9.0.15, relay 10.9.0.1"},
		{name: "moved here from there", leases: []Lease{bound(macA, "10.9.0.15")}, ask: ask{mac: macA, message: request, requested: "10.9.0.15"},
			want: "NAK 0.0.0.0, broadcast 255.255.255.255"},
		{name: "release past the relay", leases: []Lease{bound(macA, "10.9.0.10")}, ask: ask{mac: macA, message: release, server: us, ciaddr: "10.9.0.10"},
			want: "silence, released 10.9.0.10"},
		{name: "decline through the relay", leases: []Lease{bound(macA, "10.9.0.10")}, ask: ask{mac: macA, message: decline, server: us, requested: "10.9.0.10", giaddr: "10.9.0.1"},
			want: "silence, declined 10.9.0.10"},
		{name: "ciaddr in a DISCOVER is nobody's address", ask: ask{mac: macA, message: discover, ciaddr: "10.9.0.10"},
			want: "OFFER 10.77.0.50, unicast to chaddr 10.77.0.50"},

		{name: "link selection", ask: ask{mac: macA, message: discover, giaddr: "10.77.0.9", options: relayInfo("10.9.0.0")},
			want: "OFFER 10.9.0.10, relay 10.77.0.9"},
		{name: "link selection of nobody's network", ask: ask{mac: macA, message: discover, giaddr: "10.77.0.9", options: relayInfo("192.0.2.0")},
			want: "silence"},
		{name: "link selection does not make a relay known", ask: ask{mac: macA, message: discover, giaddr: "192.0.2.1", options: relayInfo("10.9.0.0")},
			want: "silence"},
		{name: "link selection by a client", ask: ask{mac: macA, message: discover, options: relayInfo("10.9.0.0")},
			want: "OFFER 10.77.0.50, unicast to chaddr 10.77.0.50"},
		{name: "subnet selection", ask: ask{mac: macA, message: discover, giaddr: "10.77.0.9", options: map[uint8]string{118: ten9}},
			want: "OFFER 10.9.0.10, relay 10.77.0.9"},
		{name: "relay information cut short", ask: ask{mac: macA, message: discover, giaddr: "10.9.0.1", options: map[uint8]string{82: "\x05\x04\x0a"}},
			want: "OFFER 10.9.0.10, relay 10.9.0.1"},

		{name: "a proxied network", ask: ask{mac: node, message: discover, giaddr: "10.10.0.1", options: bios},
			want: "OFFER 0.0.0.0, relay 10.10.0.1"},
		{name: "a proxied network, unknown machine", ask: ask{mac: macA, message: discover, giaddr: "10.10.0.1", options: bios},
			want: "silence"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := testNetworks(t, relayedConfig(), tt.leases...).Decide(tt.ask.packet(), t0).String(); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// What a machine behind a relay is told is its own network's, and what the relay
// said comes back to the byte.
func TestRelayedOptions(t *testing.T) {
	ten9 := string([]byte{10, 9, 0, 0})
	info := relayInfo("10.9.0.0")[82]
	a := ask{mac: macA, message: discover, giaddr: "10.9.0.1", options: map[uint8]string{55: "\x01\x03\x06\x0f\x1c", 82: info, 118: ten9}}
	p := testNetworks(t, relayedConfig()).Decide(a.packet(), t0).Reply.Packet
	want := dhcpv4.Options{
		1: {255, 255, 255, 0}, 3: {10, 9, 0, 254}, 6: {10, 9, 0, 2}, 15: []byte("nine.example"), 28: {10, 9, 0, 255},
		51: {0, 0, 0x02, 0x58}, 53: {2}, 54: {10, 77, 0, 1}, 58: {0, 0, 0x01, 0x2c}, 59: {0, 0, 0x02, 0x0d},
		82: []byte(info), 118: []byte(ten9),
	}
	if diff := cmp.Diff(want, p.Options); diff != "" {
		t.Error(diff)
	}
	// RFC 3046 §2.2: the relay's option comes last.
	if b := p.ToBytes(); !strings.HasSuffix(strings.TrimRight(string(b), "\x00"), "\x52\x0c"+info+"\xff") {
		t.Errorf("option 82 is not the last:\n% x", b)
	}
}

func TestRelayedLeasesLiveInOneStore(t *testing.T) {
	cfg := relayedConfig()
	cfg.Store = NewMemoryStore()
	s := offlineServer(t, cfg)
	for giaddr, a := range map[string]string{"": "10.77.0.50", "10.9.0.1": "10.9.0.10"} {
		s.exchange(ask{mac: macA, message: request, server: us, requested: a, giaddr: giaddr}.packet().ToBytes())
	}
	s = offlineServer(t, cfg)
	var got []string
	for _, l := range s.Leases() {
		got = append(got, l.Addr.String()+" "+s.Who(l.Addr))
	}
	if diff := cmp.Diff([]string{"10.9.0.10 " + macA.String(), "10.77.0.50 " + macA.String()}, got); diff != "" {
		t.Error(diff)
	}
	if d, err := s.networks.free(ip("10.9.0.10"), t0); err != nil || d.Commit.State != Released {
		t.Errorf("release: %+v, %v", d.Commit, err)
	}
}

// Anybody can be a relay. One that is of no network is counted, told of once a
// minute, and not answered.
func TestStrangeRelay(t *testing.T) {
	n := testNetworks(t, relayedConfig())
	a := ask{mac: macA, message: discover, giaddr: "192.0.2.1"}
	for i, warn := range []bool{true, false, false} {
		d := n.Decide(a.packet(), t0.Add(time.Duration(i)*time.Second))
		if d.Reply != nil || (d.Warn != "") != warn || warn && !strings.Contains(d.Warn, "192.0.2.1") {
			t.Errorf("%d: %s, warning %q", i, d, d.Warn)
		}
	}
	if d := n.Decide(a.packet(), t0.Add(time.Hour)); !strings.Contains(d.Warn, "so far 4") {
		t.Errorf("after an hour: %q", d.Warn)
	}
}

func TestPort4011BehindARelay(t *testing.T) {
	n := testNetworks(t, relayedConfig())
	a := ask{mac: node, message: request, server: us, options: uefi}
	for from, want := range map[string]string{
		"10.10.0.60": "ACK 0.0.0.0, unicast to ciaddr 10.10.0.60",
		"10.9.0.60":  "ACK 0.0.0.0, unicast to ciaddr 10.9.0.60",
		"192.0.2.1":  "silence",
	} {
		if got := n.DecideBoot(a.packet(), ip(from), t0).String(); got != want {
			t.Errorf("from %s: %s, want %s", from, got, want)
		}
	}
}

func TestBadRelayedNetworks(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"overlaps with 10.77.0.0/24": func(c *Config) { c.Relayed[0].Relay = netip.MustParsePrefix("10.0.0.1/8") },
		"overlaps with 10.9.0.0/24":  func(c *Config) { c.Relayed[1].Relay = netip.MustParsePrefix("10.9.0.129/25") },
		"give an IPv4 address":       func(c *Config) { c.Relayed[0].Relay = netip.Prefix{} },
		"is no range within":         func(c *Config) { c.Relayed[0].Pool.Last = ip("10.77.0.20") },
	} {
		cfg := relayedConfig()
		change(&cfg)
		if _, err := cfg.withDefaults(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
