package dhcpd

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

var update = flag.Bool("update", false, "write the golden replies anew")

var (
	t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

	// macA and macB are anybody; node is in the inventory, with a reserved
	// address.
	macA = boot.MAC{0x52, 0x54, 0, 0, 0, 0xa}
	macB = boot.MAC{0x52, 0x54, 0, 0, 0, 0xb}
	node = boot.MAC{0x52, 0x54, 0, 0, 0, 0x1}
)

func testInventory() *boot.Inventory {
	return &boot.Inventory{
		Machines: map[boot.MAC]boot.Machine{
			node: {MAC: node, Name: "node1", Addr: "10.77.0.51"},
		},
		Profiles: map[string]boot.Profile{"default": {Name: "default"}},
		Default:  "default",
	}
}

func testConfig() Config {
	inv := testInventory()
	return Config{
		Server: netip.MustParsePrefix("10.77.0.1/24"),
		Network: Network{
			Pool:          Pool{Range: Range{ip("10.77.0.50"), ip("10.77.0.250")}},
			Inventory:     func() *boot.Inventory { return inv },
			AnswerUnknown: true,
			Authoritative: true,
		},
		Now: func() time.Time { return t0 },
	}
}

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

func newHandler(t testing.TB, cfg Config, leases ...Lease) *Handler {
	t.Helper()
	return testNetworks(t, cfg, leases...).handlers[0]
}

func testNetworks(t testing.TB, cfg Config, leases ...Lease) *networks {
	t.Helper()
	cfg, err := cfg.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	return newNetworks(cfg, leases)
}

// ask makes a request as a client would. Options are written as code and text.
type ask struct {
	mac       boot.MAC
	message   dhcpv4.MessageType
	xid       byte
	server    string // option 54
	requested string // option 50
	ciaddr    string
	giaddr    string
	broadcast bool
	options   map[uint8]string
}

func (a ask) packet() *dhcpv4.DHCPv4 {
	p := &dhcpv4.DHCPv4{
		OpCode:        dhcpv4.OpcodeBootRequest,
		HWType:        iana.HWTypeEthernet,
		TransactionID: dhcpv4.TransactionID{0, 0, 0, a.xid},
		ClientHWAddr:  a.mac.HardwareAddr(),
		ClientIPAddr:  net.ParseIP(a.ciaddr).To4(),
		GatewayIPAddr: net.ParseIP(a.giaddr).To4(),
		Options:       dhcpv4.Options{},
	}
	if a.message != dhcpv4.MessageTypeNone {
		p.UpdateOption(dhcpv4.OptMessageType(a.message))
	}
	if a.broadcast {
		p.SetBroadcast()
	}
	if a.server != "" {
		p.UpdateOption(dhcpv4.OptServerIdentifier(net.ParseIP(a.server)))
	}
	if a.requested != "" {
		p.UpdateOption(dhcpv4.OptRequestedIPAddress(net.ParseIP(a.requested)))
	}
	for code, value := range a.options {
		p.Options[code] = []byte(value)
	}
	// What the handler sees has gone over the wire.
	p, err := dhcpv4.FromBytes(p.ToBytes())
	if err != nil {
		panic(err)
	}
	return p
}

// String writes a decision down in one line.
func (d Decision) String() string {
	s := "silence"
	if d.Reply != nil {
		s = fmt.Sprintf("%s %s, %s %s", d.Reply.Packet.MessageType(), d.Reply.Packet.YourIPAddr, d.Reply.Way, d.Reply.To)
	}
	if d.Commit != nil {
		s += fmt.Sprintf(", %s %s", d.Commit.State, d.Commit.Addr)
	}
	return s
}

const (
	discover = dhcpv4.MessageTypeDiscover
	request  = dhcpv4.MessageTypeRequest
	decline  = dhcpv4.MessageTypeDecline
	release  = dhcpv4.MessageTypeRelease
	inform   = dhcpv4.MessageTypeInform

	us    = "10.77.0.1"
	other = "10.77.0.2"
)

func TestDecide(t *testing.T) {
	bound := func(mac boot.MAC, a string) Lease {
		return Lease{Addr: ip(a), MAC: mac, State: Bound, Expires: t0.Add(time.Hour)}
	}
	expired := func(mac boot.MAC, a string) Lease {
		return Lease{Addr: ip(a), MAC: mac, State: Bound, Expires: t0.Add(-time.Hour)}
	}
	with := func(change func(*Config)) *Config {
		cfg := testConfig()
		change(&cfg)
		return &cfg
	}
	polite := with(func(c *Config) { c.Authoritative = false })
	tests := []struct {
		name   string
		cfg    *Config
		leases []Lease
		ask    ask
		want   string
	}{
		// DISCOVER
		{name: "new machine", ask: ask{mac: macA, message: discover},
			want: "OFFER 10.77.0.50, unicast to chaddr 10.77.0.50"},
		{name: "broadcast flag", ask: ask{mac: macA, message: discover, broadcast: true},
			want: "OFFER 10.77.0.50, broadcast 255.255.255.255"},
		{name: "relay, in spite of the broadcast flag", ask: ask{mac: macA, message: discover, giaddr: "10.77.0.9", broadcast: true},
			want: "OFFER 10.77.0.50, relay 10.77.0.9"},
		{name: "relay of another segment", ask: ask{mac: macA, message: discover, giaddr: "192.0.2.1"},
			want: "silence"},
		{name: "ciaddr in a DISCOVER is nobody's address", ask: ask{mac: macA, message: discover, ciaddr: "192.0.2.7"},
			want: "OFFER 10.77.0.50, unicast to chaddr 10.77.0.50"},
		{name: "reserved address", ask: ask{mac: node, message: discover, requested: "10.77.0.77"},
			want: "OFFER 10.77.0.51, unicast to chaddr 10.77.0.51"},
		{name: "reserved address is still another's", leases: []Lease{bound(macA, "10.77.0.51")}, ask: ask{mac: node, message: discover},
			want: "OFFER 10.77.0.50, unicast to chaddr 10.77.0.50"},
		{name: "reserved addresses are not in the pool", leases: []Lease{bound(macB, "10.77.0.50")}, ask: ask{mac: macA, message: discover},
			want: "OFFER 10.77.0.52, unicast to chaddr 10.77.0.52"},
		{name: "same address again", leases: []Lease{bound(macA, "10.77.0.99")}, ask: ask{mac: macA, message: discover, requested: "10.77.0.77"},
			want: "OFFER 10.77.0.99, unicast to chaddr 10.77.0.99"},
		{name: "same address again after it expired", leases: []Lease{expired(macA, "10.77.0.99")}, ask: ask{mac: macA, message: discover},
			want: "OFFER 10.77.0.99, unicast to chaddr 10.77.0.99"},
		{name: "the address it had was reserved since", leases: []Lease{bound(macA, "10.77.0.51")}, ask: ask{mac: macA, message: discover},
			want: "OFFER 10.77.0.50, unicast to chaddr 10.77.0.50"},
		{name: "the address it asks for", ask: ask{mac: macA, message: discover, requested: "10.77.0.77"},
			want: "OFFER 10.77.0.77, unicast to chaddr 10.77.0.77"},
		{name: "the address it asks for is another's", leases: []Lease{bound(macB, "10.77.0.77")}, ask: ask{mac: macA, message: discover, requested: "10.77.0.77"},
			want: "OFFER 10.77.0.50, unicast to chaddr 10.77.0.50"},
		{name: "the address it asks for is none of the pool", ask: ask{mac: macA, message: discover, requested: "10.77.0.7"},
			want: "OFFER 10.77.0.50, unicast to chaddr 10.77.0.50"},
		{name: "a pool of nothing", cfg: with(func(c *Config) { c.Pool = Pool{} }), ask: ask{mac: macA, message: discover},
			want: "silence"},
		{name: "a pool of nothing, reserved address", cfg: with(func(c *Config) { c.Pool = Pool{} }), ask: ask{mac: node, message: discover},
			want: "OFFER 10.77.0.51, unicast to chaddr 10.77.0.51"},

		// REQUEST, SELECTING
		{name: "selecting", ask: ask{mac: macA, message: request, server: us, requested: "10.77.0.50"},
			want: "ACK 10.77.0.50, unicast to chaddr 10.77.0.50, bound 10.77.0.50"},
		{name: "selecting, another server", ask: ask{mac: macA, message: request, server: other, requested: "10.77.0.50"},
			want: "silence"},
		{name: "selecting, taken since", leases: []Lease{bound(macB, "10.77.0.50")}, ask: ask{mac: macA, message: request, server: us, requested: "10.77.0.50"},
			want: "NAK 0.0.0.0, broadcast 255.255.255.255"},
		{name: "selecting, reserved for another", ask: ask{mac: macA, message: request, server: us, requested: "10.77.0.51"},
			want: "NAK 0.0.0.0, broadcast 255.255.255.255"},
		{name: "selecting our own address", ask: ask{mac: macA, message: request, server: us, requested: us},
			want: "NAK 0.0.0.0, broadcast 255.255.255.255"},
		{name: "selecting, not authoritative", cfg: polite, ask: ask{mac: macA, message: request, server: us, requested: "10.77.0.9"},
			want: "NAK 0.0.0.0, broadcast 255.255.255.255"},
		{name: "no address", ask: ask{mac: macA, message: request, server: us},
			want: "silence"},

		// REQUEST, INIT-REBOOT
		{name: "init-reboot", leases: []Lease{bound(macA, "10.77.0.60")}, ask: ask{mac: macA, message: request, requested: "10.77.0.60"},
			want: "ACK 10.77.0.60, unicast to chaddr 10.77.0.60, bound 10.77.0.60"},
		{name: "init-reboot, wrong network", ask: ask{mac: macA, message: request, requested: "192.168.1.5"},
			want: "NAK 0.0.0.0, broadcast 255.255.255.255"},
		{name: "init-reboot, wrong network, relayed", ask: ask{mac: macA, message: request, requested: "192.168.1.5", giaddr: "10.77.0.9"},
			want: "NAK 0.0.0.0, relay 10.77.0.9"},
		{name: "init-reboot, wrong network, not authoritative", cfg: polite, ask: ask{mac: macA, message: request, requested: "192.168.1.5"},
			want: "silence"},
		{name: "init-reboot, another address", leases: []Lease{bound(macA, "10.77.0.60")}, ask: ask{mac: macA, message: request, requested: "10.77.0.61"},
			want: "NAK 0.0.0.0, broadcast 255.255.255.255"},
		{name: "init-reboot, another address, not authoritative", cfg: polite, leases: []Lease{bound(macA, "10.77.0.60")}, ask: ask{mac: macA, message: request, requested: "10.77.0.61"},
			want: "NAK 0.0.0.0, broadcast 255.255.255.255"},
		{name: "init-reboot, no record", ask: ask{mac: macA, message: request, requested: "10.77.0.60"},
			want: "ACK 10.77.0.60, unicast to chaddr 10.77.0.60, bound 10.77.0.60"},
		{name: "init-reboot, no record, not authoritative", cfg: polite, ask: ask{mac: macA, message: request, requested: "10.77.0.60"},
			want: "silence"},
		{name: "init-reboot, another's", leases: []Lease{bound(macB, "10.77.0.60")}, ask: ask{mac: macA, message: request, requested: "10.77.0.60"},
			want: "NAK 0.0.0.0, broadcast 255.255.255.255"},
		{name: "init-reboot, not the reserved address", leases: []Lease{bound(node, "10.77.0.60")}, ask: ask{mac: node, message: request, requested: "10.77.0.60"},
			want: "NAK 0.0.0.0, broadcast 255.255.255.255"},

		// REQUEST, RENEWING and REBINDING
		{name: "renewing", leases: []Lease{bound(macA, "10.77.0.60")}, ask: ask{mac: macA, message: request, ciaddr: "10.77.0.60"},
			want: "ACK 10.77.0.60, unicast to ciaddr 10.77.0.60, bound 10.77.0.60"},
		{name: "renewing after it expired", leases: []Lease{expired(macA, "10.77.0.60")}, ask: ask{mac: macA, message: request, ciaddr: "10.77.0.60"},
			want: "ACK 10.77.0.60, unicast to ciaddr 10.77.0.60, bound 10.77.0.60"},
		{name: "renewing what another got", leases: []Lease{bound(macB, "10.77.0.60")}, ask: ask{mac: macA, message: request, ciaddr: "10.77.0.60"},
			want: "NAK 0.0.0.0, broadcast 255.255.255.255"},
		{name: "rebinding with another server's lease, not authoritative", cfg: polite, ask: ask{mac: macA, message: request, ciaddr: "10.77.0.20"},
			want: "silence"},

		// DECLINE, RELEASE, INFORM
		{name: "decline", leases: []Lease{bound(macA, "10.77.0.60")}, ask: ask{mac: macA, message: decline, server: us, requested: "10.77.0.60"},
			want: "silence, declined 10.77.0.60"},
		{name: "decline of another's", leases: []Lease{bound(macB, "10.77.0.60")}, ask: ask{mac: macA, message: decline, server: us, requested: "10.77.0.60"},
			want: "silence"},
		{name: "decline to another server", leases: []Lease{bound(macA, "10.77.0.60")}, ask: ask{mac: macA, message: decline, server: other, requested: "10.77.0.60"},
			want: "silence"},
		{name: "release", leases: []Lease{bound(macA, "10.77.0.60")}, ask: ask{mac: macA, message: release, server: us, ciaddr: "10.77.0.60"},
			want: "silence, released 10.77.0.60"},
		{name: "release of another's", leases: []Lease{bound(macB, "10.77.0.60")}, ask: ask{mac: macA, message: release, server: us, ciaddr: "10.77.0.60"},
			want: "silence"},
		{name: "inform", ask: ask{mac: macA, message: inform, ciaddr: "10.77.0.20"},
			want: "ACK 0.0.0.0, unicast to ciaddr 10.77.0.20"},
		{name: "inform from elsewhere", ask: ask{mac: macA, message: inform, ciaddr: "192.0.2.1"},
			want: "silence"},
		{name: "inform without an address", ask: ask{mac: macA, message: inform},
			want: "silence"},

		// Not for us
		{name: "BOOTP", ask: ask{mac: macA}, want: "silence"},
		{name: "another server's message", ask: ask{mac: macA, message: dhcpv4.MessageTypeOffer}, want: "silence"},
		{name: "no MAC", ask: ask{message: discover}, want: "silence"},
		{name: "a group's MAC", ask: ask{mac: boot.MAC{1}, message: discover}, want: "silence"},
		{name: "unknown machine", cfg: with(func(c *Config) { c.AnswerUnknown = false }), ask: ask{mac: macA, message: discover},
			want: "silence"},
		{name: "known machine", cfg: with(func(c *Config) { c.AnswerUnknown = false }), ask: ask{mac: node, message: discover},
			want: "OFFER 10.77.0.51, unicast to chaddr 10.77.0.51"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := testConfig()
			if tt.cfg != nil {
				cfg = *tt.cfg
			}
			n := testNetworks(t, cfg, tt.leases...)
			if got := n.Decide(tt.ask.packet(), t0).String(); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestRequestsThatAreNone(t *testing.T) {
	h := newHandler(t, testConfig())
	for name, change := range map[string]func(*dhcpv4.DHCPv4){
		"a reply":                func(p *dhcpv4.DHCPv4) { p.OpCode = dhcpv4.OpcodeBootReply },
		"another link type":      func(p *dhcpv4.DHCPv4) { p.HWType = iana.HWTypeInfiniband },
		"a long hardware addr":   func(p *dhcpv4.DHCPv4) { p.ClientHWAddr = make(net.HardwareAddr, 16) },
		"an empty hardware addr": func(p *dhcpv4.DHCPv4) { p.ClientHWAddr = nil },
	} {
		p := ask{mac: macA, message: discover}.packet()
		change(p)
		if d := h.Decide(p, t0); d.Reply != nil {
			t.Errorf("%s was answered: %s", name, d)
		}
	}
}

// The offer to a client that chose another server is free for the next.
func TestOfferNotTaken(t *testing.T) {
	cfg := testConfig()
	cfg.Pool.Last = cfg.Pool.First
	h := newHandler(t, cfg)
	h.Decide(ask{mac: macA, message: discover}.packet(), t0)
	if d := h.Decide(ask{mac: macB, message: discover}.packet(), t0); d.Reply != nil || d.Warn == "" {
		t.Errorf("the offered address was offered again: %s", d)
	}
	h.Decide(ask{mac: macA, message: request, server: other, requested: "10.77.0.88"}.packet(), t0)
	if d := h.Decide(ask{mac: macB, message: discover}.packet(), t0); d.Reply == nil {
		t.Error("the address is still held back")
	}
}

func TestNAKHoldsNothingElse(t *testing.T) {
	h := newHandler(t, testConfig())
	a := ask{mac: macA, message: request, requested: "192.168.1.5", ciaddr: "192.168.1.5", giaddr: "10.77.0.9",
		options: map[uint8]string{55: "\x01\x03\x06", 61: "\x01abcdef", 82: "\x01\x04port"}}
	p := h.Decide(a.packet(), t0).Reply.Packet
	want := dhcpv4.Options{53: {6}, 54: {10, 77, 0, 1}, 56: []byte("192.168.1.5 is not on this segment"), 61: []byte("\x01abcdef"), 82: []byte("\x01\x04port")}
	if diff := cmp.Diff(want, p.Options); diff != "" {
		t.Error(diff)
	}
	if !p.IsBroadcast() || !p.ClientIPAddr.IsUnspecified() || !p.ServerIPAddr.IsUnspecified() {
		t.Errorf("broadcast %v, ciaddr %s, siaddr %s", p.IsBroadcast(), p.ClientIPAddr, p.ServerIPAddr)
	}
}

func fullConfig() Config {
	cfg := testConfig()
	cfg.Router = ip("10.77.0.254")
	cfg.DNS = []netip.Addr{ip("10.77.0.2"), ip("9.9.9.9")}
	cfg.NTP = []netip.Addr{ip("10.77.0.3")}
	cfg.Domain = "lab.example"
	return cfg
}

func TestOptions(t *testing.T) {
	always := dhcpv4.Options{
		1: {255, 255, 255, 0}, 3: {10, 77, 0, 254}, 6: {10, 77, 0, 2, 9, 9, 9, 9}, 51: {0, 0, 0x0e, 0x10}, 53: {2},
		54: {10, 77, 0, 1}, 58: {0, 0, 0x07, 0x08}, 59: {0, 0, 0x0c, 0x4e},
	}
	plus := func(more dhcpv4.Options) dhcpv4.Options {
		all := dhcpv4.Options{}
		for _, m := range []dhcpv4.Options{always, more} {
			for code, value := range m {
				all[code] = value
			}
		}
		return all
	}
	uuid := "\x00" + strings.Repeat("u", 16)
	ipxe := "\x13\x01\x01\x18\x01\x01\xeb\x03\x01\x00\x00"
	const script = "http://10.77.0.1/ipxe/52:54:00:00:00:01"
	tests := []struct {
		name    string
		message dhcpv4.MessageType
		options map[uint8]string
		want    dhcpv4.Options
		file    string
	}{
		{name: "asks for little", options: map[uint8]string{55: "\x01\x03"}, want: always},
		{name: "asks for more", options: map[uint8]string{55: "\x01\x03\x0c\x0f\x1c\x2a\x42\x43"},
			want: plus(dhcpv4.Options{12: []byte("node1"), 15: []byte("lab.example"), 28: {10, 77, 0, 255}, 42: {10, 77, 0, 3}})},
		{name: "asks for nothing and gets all",
			want: plus(dhcpv4.Options{12: []byte("node1"), 15: []byte("lab.example"), 28: {10, 77, 0, 255}, 42: {10, 77, 0, 3}})},
		{name: "BIOS", options: map[uint8]string{55: "\x01", 60: "PXEClient:Arch:00000:UNDI:002001", 93: "\x00\x00", 97: uuid},
			want: plus(dhcpv4.Options{43: {6, 1, 8, 255}, 60: []byte("PXEClient"), 66: []byte("10.77.0.1"), 67: []byte("undionly.kpxe"), 97: []byte(uuid)}),
			file: "undionly.kpxe"},
		{name: "UEFI", options: map[uint8]string{55: "\x01", 60: "PXEClient:Arch:00007:UNDI:003016", 93: "\x00\x07"},
			want: plus(dhcpv4.Options{43: {6, 1, 8, 255}, 60: []byte("PXEClient"), 66: []byte("10.77.0.1"), 67: []byte("snponly.efi")}),
			file: "snponly.efi"},
		{name: "an architecture without a boot program", options: map[uint8]string{55: "\x01", 60: "PXEClient", 93: "\x00\x0b"},
			want: always},
		{name: "UEFI HTTP Boot", options: map[uint8]string{55: "\x01", 60: "HTTPClient:Arch:00016:UNDI:003001", 93: "\x00\x10"},
			want: plus(dhcpv4.Options{60: []byte("HTTPClient"), 67: []byte("http://10.77.0.1/nbp/snponly.efi")}),
			file: "http://10.77.0.1/nbp/snponly.efi"},
		{name: "iPXE", options: map[uint8]string{55: "\x01", 60: "PXEClient:Arch:00000:UNDI:002001", 77: "iPXE", 93: "\x00\x00", 175: ipxe},
			want: plus(dhcpv4.Options{66: []byte("10.77.0.1"), 67: []byte(script), 175: {176, 1, 1}}),
			file: script},
		{name: "an identifier that is too long is not echoed", options: map[uint8]string{55: "\x01", 61: strings.Repeat("x", 300)}, want: always},
		{name: "inform", message: inform, options: map[uint8]string{55: "\x01"},
			want: dhcpv4.Options{1: always[1], 3: always[3], 6: always[6], 53: {5}, 54: always[54]}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := ask{mac: node, message: discover, options: tt.options}
			if tt.message == inform {
				a.message, a.ciaddr = inform, "10.77.0.51"
			}
			p := newHandler(t, fullConfig()).Decide(a.packet(), t0).Reply.Packet
			if diff := cmp.Diff(tt.want, p.Options); diff != "" {
				t.Error(diff)
			}
			if p.BootFileName != tt.file {
				t.Errorf("file is %q, want %q", p.BootFileName, tt.file)
			}
			if got, want := p.ServerIPAddr.Equal(net.IPv4(10, 77, 0, 1)), tt.file != ""; got != want {
				t.Errorf("siaddr is %s", p.ServerIPAddr)
			}
		})
	}
}

func TestHTTPPortInURL(t *testing.T) {
	cfg := testConfig()
	for port, want := range map[uint16]string{0: "http://10.77.0.1/x", 80: "http://10.77.0.1/x", 8080: "http://10.77.0.1:8080/x"} {
		cfg.HTTPPort = port
		if got := cfg.url("/x"); got != want {
			t.Errorf("port %d: got %s, want %s", port, got, want)
		}
	}
}

// The codec would cut the name off and the machine would ask for half of it.
func TestLongBootFileNameIsRefused(t *testing.T) {
	inv := testInventory()
	inv.Machines[node] = boot.Machine{MAC: node, NBP: strings.Repeat("n", 128)}
	cfg := testConfig()
	cfg.Inventory = func() *boot.Inventory { return inv }
	h := newHandler(t, cfg)
	a := ask{mac: node, message: discover, options: map[uint8]string{60: "PXEClient", 93: "\x00\x07"}}
	d := h.Decide(a.packet(), t0)
	if d.Reply.Packet.BootFileName != "" || !strings.Contains(d.Warn, "128 bytes") {
		t.Errorf("file %q, warning %q", d.Reply.Packet.BootFileName, d.Warn)
	}
	if d := h.Decide(a.packet(), t0); d.Warn != "" {
		t.Errorf("said again: %s", d.Warn)
	}
	inv.Machines[node] = boot.Machine{MAC: node, NBP: strings.Repeat("n", 127)}
	if d := h.Decide(a.packet(), t0); len(d.Reply.Packet.BootFileName) != 127 {
		t.Errorf("a name that just fits became %q", d.Reply.Packet.BootFileName)
	}
}

// An address that is reserved while the server runs is taken from the pool, and
// given back to it when it is not reserved any more.
func TestInventoryChanges(t *testing.T) {
	inv := testInventory()
	cfg := testConfig()
	cfg.Pool.Last = ip("10.77.0.51")
	cfg.Inventory = func() *boot.Inventory { return inv }
	h := newHandler(t, cfg)
	offer := func(mac boot.MAC) string {
		return h.Decide(ask{mac: mac, message: discover}.packet(), t0).String()
	}
	if got := offer(macA); !strings.HasPrefix(got, "OFFER 10.77.0.50") {
		t.Error(got)
	}
	if got := offer(macB); got != "silence" {
		t.Errorf("a reserved address was offered: %s", got)
	}
	inv = &boot.Inventory{}
	if got := offer(macB); !strings.HasPrefix(got, "OFFER 10.77.0.51") {
		t.Error(got)
	}
	inv = testInventory()
	if d := h.Decide(ask{mac: macB, message: request, server: us, requested: "10.77.0.51"}.packet(), t0); !strings.HasPrefix(d.String(), "NAK") {
		t.Error(d)
	}
}

func TestWho(t *testing.T) {
	h := newHandler(t, testConfig())
	h.Decide(ask{mac: macA, message: discover}.packet(), t0)
	if mac, ok := h.Who(ip("::ffff:10.77.0.50"), t0); !ok || mac != macA {
		t.Errorf("offered address: %s %v", mac, ok)
	}
	if mac, ok := h.Who(ip("10.77.0.50"), t0.Add(offerTime)); ok {
		t.Errorf("long after the offer it is still %s's", mac)
	}
	if _, ok := h.Who(ip("10.77.0.60"), t0); ok {
		t.Error("an address that was never used is somebody's")
	}
}

// Only firmware says its UUID: what a machine boots after it must be known by
// what the firmware said.
func TestKnownByUUID(t *testing.T) {
	const uuid = "75757575-7575-7575-7575-757575757575"
	inv := testInventory()
	inv.ByUUID = map[string]boot.Machine{uuid: {UUID: uuid, Name: "node2", Addr: "10.77.0.52"}}
	cfg := testConfig()
	cfg.AnswerUnknown = false
	cfg.Inventory = func() *boot.Inventory { return inv }
	n := testNetworks(t, cfg)
	firmware := map[uint8]string{60: "PXEClient:Arch:00007:UNDI:003016", 93: "\x00\x07", 97: "\x00" + strings.Repeat("u", 16)}
	os := ask{mac: macA, message: discover}
	if d := n.Decide(os.packet(), t0); d.Reply != nil {
		t.Errorf("nobody knows it yet: %s", d)
	}
	if c := n.Client(macA, t0); c.UUID != "" || c.MAC != macA {
		t.Errorf("client %+v", c)
	}
	want := "OFFER 10.77.0.52, unicast to chaddr 10.77.0.52"
	if d := n.Decide(ask{mac: macA, message: discover, options: firmware}.packet(), t0); d.String() != want {
		t.Errorf("firmware: %s", d)
	}
	if d := n.Decide(os.packet(), t0); d.String() != want {
		t.Errorf("operating system: %s", d)
	}
	if c := n.Client(macA, t0); c.UUID != uuid || c.Kind != boot.KindPXE || c.Arch() != boot.ArchX64 {
		t.Errorf("client %+v", c)
	}
	if d := n.Decide(ask{mac: macB, message: discover, options: map[uint8]string{60: "PXEClient"}}.packet(), t0); d.Reply != nil || n.Client(macB, t0).Kind != boot.KindOS {
		t.Errorf("a stranger: %s, %+v", d, n.Client(macB, t0))
	}

	// After a restart nothing is remembered but the lease.
	n = testNetworks(t, cfg, Lease{Addr: ip("10.77.0.52"), MAC: macA, State: Bound, Expires: t0.Add(time.Hour)})
	if d := n.Decide(ask{mac: macA, message: request, ciaddr: "10.77.0.52"}.packet(), t0); !strings.HasPrefix(d.String(), "ACK 10.77.0.52") {
		t.Errorf("renewal: %s", d)
	}
	if d := n.Decide(os.packet(), t0); d.Reply != nil {
		t.Errorf("discover: %s", d)
	}
	if d := n.Decide(ask{mac: macA, message: request, ciaddr: "10.77.0.52"}.packet(), t0.Add(2*time.Hour)); d.Reply != nil {
		t.Errorf("renewal after the end: %s", d)
	}
}

func TestBadConfig(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"give an IPv4 address": func(c *Config) { c.Server = netip.MustParsePrefix("fe80::1/64") },
		"is no range within":   func(c *Config) { c.Pool.First = ip("10.78.0.1") },
		"lease time":           func(c *Config) { c.LeaseTime = -time.Second },
	} {
		cfg := testConfig()
		change(&cfg)
		if _, err := cfg.withDefaults(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// readPacket reads a captured packet: hexadecimal, with comments.
func readPacket(t testing.TB, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var digits []byte
	for line := range bytes.Lines(text) {
		if line[0] != '#' {
			digits = append(digits, bytes.TrimSpace(line)...)
		}
	}
	b, err := hex.DecodeString(string(digits))
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return b
}

func packetFiles(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/packets/*.hex")
	if err != nil || len(files) == 0 {
		t.Fatalf("no captured packets: %v", err)
	}
	return files
}

// Requests of real clients, captured on the wire, and our replies to the byte.
// Run with -update after a change that is meant, and read the difference.
func TestGoldenPackets(t *testing.T) {
	for _, path := range packetFiles(t) {
		name := strings.TrimSuffix(filepath.Base(path), ".hex")
		t.Run(name, func(t *testing.T) {
			req, err := dhcpv4.FromBytes(readPacket(t, path))
			if err != nil {
				t.Fatal(err)
			}
			d := newHandler(t, fullConfig()).Decide(req, t0)
			if d.Reply == nil {
				t.Fatal("silence")
			}
			got := fmt.Sprintf("%s\n%s: %s\n%s", d, d.Told.Stage, d.Told.Detail, hex.Dump(d.Reply.Packet.ToBytes()))
			golden := strings.TrimSuffix(path, ".hex") + ".reply"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// FuzzReply sends anything to the handler, twice, and checks what comes out.
func FuzzReply(f *testing.F) {
	for _, path := range packetFiles(f) {
		f.Add(readPacket(f, path))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		req, err := dhcpv4.FromBytes(b)
		if err != nil {
			return
		}
		n := testNetworks(t, relayedConfig())
		proxy := testNetworks(t, proxyConfig())
		for _, decide := range []func() Decision{
			func() Decision { return n.Decide(req, t0) },
			func() Decision { return n.Decide(req, t0) },
			func() Decision { return n.DecideBoot(req, ip("10.9.0.60"), t0) },
			func() Decision { return proxy.Decide(req, t0) },
			func() Decision { return proxy.DecideBoot(req, ip("10.77.0.60"), t0) },
		} {
			d := decide()
			if d.Reply == nil {
				continue
			}
			out := d.Reply.Packet.ToBytes()
			if len(out) > 1472 {
				t.Errorf("the reply has %d bytes: it does not fit into a frame", len(out))
			}
			reply, err := dhcpv4.FromBytes(out)
			if err != nil {
				t.Fatalf("the reply cannot be decoded: %v", err)
			}
			if len(reply.BootFileName) > maxFile || reply.BootFileName != d.Reply.Packet.BootFileName {
				t.Errorf("file became %q", reply.BootFileName)
			}
			if reply.TransactionID != req.TransactionID || !bytes.Equal(reply.ClientHWAddr, req.ClientHWAddr) {
				t.Error("the reply is to another request")
			}
			switch reply.MessageType() {
			case dhcpv4.MessageTypeOffer, dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak:
			default:
				t.Errorf("the reply is a %s", reply.MessageType())
			}
			if _, ours := n.at(d.Reply.To); d.Reply.Way != ToAll && !ours {
				t.Errorf("the reply leaves our networks: %s", d)
			}
		}
	})
}
