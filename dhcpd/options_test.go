package dhcpd

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

// answer decides a request and reads the reply as its client would, overloaded
// fields included.
func answer(t *testing.T, cfg Config, a ask) *dhcpv4.DHCPv4 {
	t.Helper()
	d := newHandler(t, cfg).Decide(a.packet(), t0)
	if d.Reply == nil {
		t.Fatal("silence")
	}
	p, err := decode(d.Reply.Packet.ToBytes())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestConfiguredOptions(t *testing.T) {
	cfg := fullConfig()
	cfg.Search = []string{"lab.example", "example"}
	cfg.Routes = []Route{{netip.MustParsePrefix("10.9.0.0/16"), ip("10.77.0.9")}, {netip.MustParsePrefix("192.0.2.128/25"), ip("10.77.0.8")}}
	cfg.Options = []boot.Option{{Code: 26, Data: []byte{0x23, 0x28}}, {Code: 42, Data: []byte{10, 77, 0, 9}}, {Code: 209, Data: []byte("segment")}}
	inv := testInventory()
	inv.Machines[macB] = boot.Machine{MAC: macB, Options: []boot.Option{{Code: 209, Data: []byte("machine")}, {Code: 67, Data: []byte("own.efi")}, {Code: 66, Data: []byte("10.77.0.7")}}}
	cfg.Inventory = func() *boot.Inventory { return inv }
	asks := map[uint8]string{55: "\x01\x03\x06\x77\x79\xf9"}

	p := answer(t, cfg, ask{mac: macA, message: discover, options: asks})
	for code, want := range map[uint8]string{
		119: "\x03lab\x07example\x00\x07example\x00",
		121: "\x10\x0a\x09\x0a\x4d\x00\x09" + "\x19\xc0\x00\x02\x80\x0a\x4d\x00\x08" + "\x00\x0a\x4d\x00\xfe",
		249: "\x10\x0a\x09\x0a\x4d\x00\x09" + "\x19\xc0\x00\x02\x80\x0a\x4d\x00\x08" + "\x00\x0a\x4d\x00\xfe",
		26:  "\x23\x28",
		42:  "\x0a\x4d\x00\x09", // in place of the configured NTP server, and not asked for
		209: "segment",
	} {
		if got := p.Options[code]; string(got) != want {
			t.Errorf("option %d is %q, want %q", code, got, want)
		}
	}
	if p := answer(t, cfg, ask{mac: macA, message: discover, options: map[uint8]string{55: "\x01"}}); p.Options[119] != nil || p.Options[121] != nil {
		t.Errorf("sent without being asked for: %v", p.Options)
	}
	p = answer(t, cfg, ask{mac: macB, message: discover, options: map[uint8]string{60: "PXEClient", 93: "\x00\x07"}})
	if string(p.Options[209]) != "machine" || string(p.Options[67]) != "own.efi" || p.BootFileName != "own.efi" || p.ServerIPAddr.String() != "10.77.0.7" {
		t.Errorf("the machine's own: %v, file %q, siaddr %s", p.Options, p.BootFileName, p.ServerIPAddr)
	}
	p = answer(t, cfg, ask{mac: macB, message: discover, options: map[uint8]string{77: "iPXE", 93: "\x00\x07", 175: "\x13\x01\x01\x24\x01\x01"}})
	if !strings.HasPrefix(p.BootFileName, "http://10.77.0.1/ipxe/") {
		t.Errorf("iPXE is given %q", p.BootFileName)
	}
}

func TestOptionsThatCannotBe(t *testing.T) {
	for want, change := range map[string]func(*Config){
		`search domain "a..b"`:         func(c *Config) { c.Search = []string{"a..b"} },
		"IPv4 routes only":             func(c *Config) { c.Routes = []Route{{netip.MustParsePrefix("fd00::/8"), ip("10.77.0.9")}} },
		"DHCP option 53 cannot be set": func(c *Config) { c.Options = []boot.Option{{Code: 53, Data: []byte{1}}} },
	} {
		cfg := testConfig()
		change(&cfg)
		if _, err := cfg.withDefaults(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// What does not fit goes into the fields that are empty, and then the least
// important is left out.
func TestReplyFits(t *testing.T) {
	long := func(n int) []byte { return bytes.Repeat([]byte{'x'}, n) }
	pxe := map[uint8]string{60: "PXEClient", 93: "\x00\x07"}
	with := func(options map[uint8]string, code uint8, value string) map[uint8]string {
		m := map[uint8]string{code: value}
		for c, v := range options {
			m[c] = v
		}
		return m
	}
	tests := []struct {
		name    string
		own     []boot.Option
		options map[uint8]string
		max     int
		sent    []uint8 // of own
		wire    byte    // option 52
	}{
		{name: "fits", own: []boot.Option{{Code: 200, Data: long(100)}}, max: 548, sent: []uint8{200}},
		{name: "fits when the client takes more", own: []boot.Option{{Code: 200, Data: long(600)}}, options: map[uint8]string{57: "\x05\xdc"}, max: 1472, sent: []uint8{200}},
		{name: "option 57 is too small to be true", own: []boot.Option{{Code: 200, Data: long(100)}}, options: map[uint8]string{57: "\x00\x10"}, max: 548, sent: []uint8{200}},
		{name: "never more than a frame", own: []boot.Option{{Code: 200, Data: long(900)}, {Code: 201, Data: long(900)}}, options: map[uint8]string{57: "\xff\xff"}, max: 1472, sent: []uint8{200}},
		{name: "into the file", own: []boot.Option{{Code: 200, Data: long(220)}, {Code: 201, Data: long(100)}}, max: 548, sent: []uint8{200, 201}, wire: 1},
		{name: "into file and sname", own: []boot.Option{{Code: 200, Data: long(220)}, {Code: 201, Data: long(100)}, {Code: 202, Data: long(50)}}, max: 548, sent: []uint8{200, 201, 202}, wire: 3},
		{name: "the boot file stays", own: []boot.Option{{Code: 200, Data: long(200)}, {Code: 201, Data: long(100)}, {Code: 202, Data: long(50)}}, options: pxe, max: 548, sent: []uint8{200, 202}, wire: 2},
		{name: "what is asked for goes first", own: []boot.Option{{Code: 200, Data: long(220)}, {Code: 201, Data: long(220)}}, options: with(pxe, 55, "\x01\xc9"), max: 548, sent: []uint8{201}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := testConfig()
			cfg.Options = tt.own
			h := newHandler(t, cfg)
			d := h.Decide(ask{mac: macA, message: discover, options: tt.options}.packet(), t0)
			wire := d.Reply.Packet.ToBytes()
			if len(wire) > tt.max {
				t.Errorf("%d bytes", len(wire))
			}
			var overload byte
			if b := d.Reply.Packet.Options[52]; len(b) > 0 {
				overload = b[0]
			}
			if overload != tt.wire {
				t.Errorf("option 52 is %d, want %d", overload, tt.wire)
			}
			p, err := decode(wire)
			if err != nil {
				t.Fatal(err)
			}
			var sent []uint8
			for _, o := range tt.own {
				if got := p.Options[o.Code]; got != nil {
					sent = append(sent, o.Code)
					if !bytes.Equal(got, o.Data) {
						t.Errorf("option %d is %q", o.Code, got)
					}
				}
			}
			if !cmp.Equal(sent, tt.sent) {
				t.Errorf("sent %d, want %d", sent, tt.sent)
			}
			if (len(sent) < len(tt.own)) != (h.cut.Total() == 1) {
				t.Errorf("%d replies were counted as cut", h.cut.Total())
			}
			for _, code := range []uint8{1, 51, 53, 54} {
				if p.Options[code] == nil {
					t.Errorf("option %d is missing", code)
				}
			}
			if tt.options[60] != "" && (p.BootFileName == "" || string(p.Options[60]) != "PXEClient") {
				t.Errorf("file %q, option 60 %q", p.BootFileName, p.Options[60])
			}
		})
	}
}

// A client may put options into sname and file.
func TestOverloadedRequest(t *testing.T) {
	p := ask{mac: macA, message: request, server: us}.packet()
	p.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionOptionOverload, []byte{3}))
	p.BootFileName = "\x32\x04\x0a\x4d\x00\x63\xff" // 50, 10.77.0.99
	p.ServerHostName = "\x3d\x03abc\xff"
	req, err := decode(p.ToBytes())
	if err != nil {
		t.Fatal(err)
	}
	d := newHandler(t, testConfig()).Decide(req, t0)
	if got := d.String(); got != "ACK 10.77.0.99, unicast to chaddr 10.77.0.99, bound 10.77.0.99" || string(d.Reply.Packet.Options[61]) != "abc" {
		t.Errorf("got %s, %v", got, d.Reply.Packet.Options)
	}
	p.BootFileName = strings.Repeat("\xfe", 127) // an option longer than the field
	if _, err := decode(p.ToBytes()); err == nil || !strings.Contains(err.Error(), "overloaded") {
		t.Errorf("got %v", err)
	}
}

// A network's option 43 is for the devices of some vendor. In an offer to
// firmware it would send the boot elsewhere.
func TestVendorOptionsLeaveBootsAlone(t *testing.T) {
	cfg := testConfig()
	cfg.Options = []boot.Option{{Code: 43, Data: []byte("vendor")}}
	h := newHandler(t, cfg)
	offer := func(mac boot.MAC, class string) []byte {
		p := ask{mac: mac, message: discover}.packet()
		if class != "" {
			p.UpdateOption(dhcpv4.OptClassIdentifier(class))
		}
		d := h.Decide(p, t0)
		if d.Reply == nil {
			t.Fatalf("no offer for %q", class)
		}
		return d.Reply.Packet.Options[43]
	}
	if got := offer(macA, ""); string(got) != "vendor" {
		t.Errorf("an operating system got %q", got)
	}
	if got := offer(node, "PXEClient:Arch:00000:UNDI:002001"); string(got) == "vendor" {
		t.Error("firmware got another vendor's option 43")
	}
}
