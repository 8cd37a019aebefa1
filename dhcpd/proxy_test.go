package dhcpd

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

// What firmware and iPXE say of themselves.
var (
	bios     = map[uint8]string{60: "PXEClient:Arch:00000:UNDI:002001", 93: "\x00\x00"}
	uefi     = map[uint8]string{60: "PXEClient:Arch:00007:UNDI:003016", 93: "\x00\x07"}
	httpBoot = map[uint8]string{60: "HTTPClient:Arch:00016:UNDI:003001", 93: "\x00\x10"}
	ipxeROM  = map[uint8]string{60: "PXEClient:Arch:00000:UNDI:002001", 77: "iPXE", 93: "\x00\x00", 175: "\x13\x01\x01\x18\x01\x01\xeb\x03\x01\x00\x00"}
	pi       = map[uint8]string{60: "PXEClient:Arch:00041:UNDI:002001", 93: "\x00\x29"}
	arm64    = map[uint8]string{60: "PXEClient:Arch:00011:UNDI:003016", 93: "\x00\x0b"}
)

func proxyConfig() Config {
	cfg := testConfig()
	cfg.Mode = ModeProxy
	cfg.Pool = Pool{}
	return cfg
}

func TestProxyDecides(t *testing.T) {
	tests := []struct {
		name string
		ask  ask
		want string
	}{
		{"firmware", ask{mac: node, message: discover, options: bios},
			"OFFER 0.0.0.0, broadcast 255.255.255.255"},
		{"firmware behind a relay", ask{mac: node, message: discover, options: bios, giaddr: "10.77.0.9"},
			"OFFER 0.0.0.0, relay 10.77.0.9"},
		{"iPXE", ask{mac: node, message: discover, options: ipxeROM},
			"OFFER 0.0.0.0, broadcast 255.255.255.255"},
		{"an operating system", ask{mac: node, message: discover},
			"silence"},
		{"no boot program", ask{mac: node, message: discover, options: arm64},
			"silence"},
		{"request to the other server", ask{mac: node, message: request, options: bios, server: other, requested: "10.77.0.60"},
			"silence"},
		{"request to nobody", ask{mac: node, message: request, options: bios, requested: "10.77.0.60"},
			"silence"},
		{"request to us", ask{mac: node, message: request, options: bios, server: us},
			"ACK 0.0.0.0, broadcast 255.255.255.255"},
		{"request to us with an address", ask{mac: node, message: request, options: bios, server: us, ciaddr: "10.77.0.60"},
			"ACK 0.0.0.0, unicast to ciaddr 10.77.0.60"},
		{"request to us with an address elsewhere", ask{mac: node, message: request, options: bios, server: us, ciaddr: "192.0.2.7"},
			"ACK 0.0.0.0, broadcast 255.255.255.255"},
		{"release", ask{mac: node, message: release, server: us, ciaddr: "10.77.0.60"}, "silence"},
		{"decline", ask{mac: node, message: decline, server: us, requested: "10.77.0.60"}, "silence"},
		{"inform", ask{mac: node, message: inform, ciaddr: "10.77.0.60"}, "silence"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := newHandler(t, proxyConfig()).Decide(tt.ask.packet(), t0).String(); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
	t.Run("unknown machine", func(t *testing.T) {
		cfg := proxyConfig()
		cfg.AnswerUnknown = false
		h := newHandler(t, cfg)
		if d := h.Decide(ask{mac: macA, message: discover, options: bios}.packet(), t0); d.Reply != nil || d.Asked.Stage != "" {
			t.Errorf("got %s, %+v", d, d.Asked)
		}
		if d := h.Decide(ask{mac: node, message: discover, options: bios}.packet(), t0); d.Reply == nil {
			t.Error("a known machine got nothing")
		}
	})
}

// The offers of a proxy, option by option: nothing in them is about addresses.
func TestProxyOptions(t *testing.T) {
	const (
		script = "http://10.77.0.1/ipxe/52:54:00:00:00:01"
		efi    = "http://10.77.0.1/nbp/snponly.efi"
	)
	tests := []struct {
		name    string
		options map[uint8]string
		want    dhcpv4.Options
		file    string
	}{
		{"BIOS", bios, dhcpv4.Options{43: {6, 1, 8, 255}, 60: []byte("PXEClient"), 66: []byte(us), 67: []byte("undionly.kpxe")}, "undionly.kpxe"},
		{"UEFI", uefi, dhcpv4.Options{60: []byte("PXEClient"), 66: []byte(us), 67: []byte("snponly.efi")}, "snponly.efi"},
		{"UEFI HTTP Boot", httpBoot, dhcpv4.Options{60: []byte("HTTPClient"), 67: []byte(efi)}, efi},
		{"Raspberry Pi", pi, dhcpv4.Options{43: []byte(raspberryPiMenu), 60: []byte("PXEClient"), 66: []byte(us), 67: []byte("bootcode.bin")}, "bootcode.bin"},
		{"iPXE", ipxeROM, dhcpv4.Options{43: {6, 1, 8, 255}, 60: []byte("PXEClient"), 66: []byte(us), 67: []byte(script)}, script},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inv := testInventory()
			inv.NBPs = map[boot.Platform]string{boot.RaspberryPi: "bootcode.bin"}
			cfg := proxyConfig()
			cfg.Inventory = func() *boot.Inventory { return inv }
			p := newHandler(t, cfg).Decide(ask{mac: node, message: discover, options: tt.options}.packet(), t0).Reply.Packet
			tt.want[53], tt.want[54] = []byte{2}, []byte{10, 77, 0, 1}
			if diff := cmp.Diff(tt.want, p.Options); diff != "" {
				t.Error(diff)
			}
			if p.BootFileName != tt.file || p.ServerIPAddr.String() != us || !p.YourIPAddr.IsUnspecified() || !p.IsBroadcast() {
				t.Errorf("file %q, siaddr %s, yiaddr %s, broadcast %v", p.BootFileName, p.ServerIPAddr, p.YourIPAddr, p.IsBroadcast())
			}
		})
	}
}

func TestPort4011(t *testing.T) {
	at := func(a string, options map[uint8]string) ask {
		return ask{mac: node, message: request, server: us, ciaddr: a, options: options}
	}
	tests := []struct {
		name string
		ask  ask
		from string
		want string
	}{
		{"UEFI", at("10.77.0.60", uefi), "10.77.0.60", "ACK 0.0.0.0, unicast to ciaddr 10.77.0.60"},
		{"BIOS", at("10.77.0.60", bios), "10.77.0.60", "ACK 0.0.0.0, unicast to ciaddr 10.77.0.60"},
		{"without ciaddr", at("", uefi), "10.77.0.60", "ACK 0.0.0.0, unicast to ciaddr 10.77.0.60"},
		{"an old iPXE", at("10.77.0.60", ipxeROM), "10.77.0.60", "ACK 0.0.0.0, unicast to ciaddr 10.77.0.60"},
		{"from elsewhere", at("10.77.0.60", uefi), "192.0.2.7", "silence"},
		{"from nowhere", at("10.77.0.60", uefi), "0.0.0.0", "silence"},
		{"from ourselves", at("10.77.0.60", uefi), us, "silence"},
		{"from everybody", at("10.77.0.60", uefi), "10.77.0.255", "silence"},
		{"an operating system", at("10.77.0.60", nil), "10.77.0.60", "silence"},
		{"for another server", ask{mac: node, message: request, server: other, options: uefi}, "10.77.0.60", "silence"},
		{"a DISCOVER", ask{mac: node, message: discover, options: uefi}, "10.77.0.60", "silence"},
		{"no boot program", at("10.77.0.60", arm64), "10.77.0.60", "silence"},
	}
	for _, mode := range []Mode{ModeProxy, ModeServer} {
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%d/%s", mode, tt.name), func(t *testing.T) {
				cfg := testConfig()
				cfg.Mode = mode
				d := newHandler(t, cfg).DecideBoot(tt.ask.packet(), netip.MustParseAddr(tt.from), t0)
				if d.String() != tt.want {
					t.Errorf("got  %s\nwant %s", d, tt.want)
				}
			})
		}
	}
}

// A machine for which there is nothing is told of once, not with each of its
// requests.
func TestProxySaysOnceThatThereIsNothing(t *testing.T) {
	h := newHandler(t, proxyConfig())
	a := ask{mac: macA, message: discover, options: arm64}
	d := h.Decide(a.packet(), t0)
	if d.Asked.Stage != "firmware.discover" || !strings.Contains(d.Asked.Detail, "no boot program for uefi-arm64") || d.Warn == "" {
		t.Errorf("got %+v, warning %q", d.Asked, d.Warn)
	}
	if d := h.Decide(a.packet(), t0); d.Asked.Detail != "" || d.Warn != "" {
		t.Errorf("said again: %+v, %q", d.Asked, d.Warn)
	}
}

// The iPXE that we handed out is told from the one in the ROM by a proxy too.
func TestProxyChainloads(t *testing.T) {
	inv := testInventory()
	m := inv.Machines[node]
	m.Chainload = true
	inv.Machines[node] = m
	cfg := proxyConfig()
	cfg.Inventory = func() *boot.Inventory { return inv }
	h := newHandler(t, cfg)
	for i, want := range []string{"undionly.kpxe", "http://10.77.0.1/ipxe/52:54:00:00:00:01"} {
		for range 2 {
			p := h.Decide(ask{mac: node, message: discover, xid: byte(i), options: ipxeROM}.packet(), t0).Reply.Packet
			if p.BootFileName != want {
				t.Errorf("program %d gets %q, want %q", i, p.BootFileName, want)
			}
		}
	}
}

// A proxy gives no address, but hears who asks for which.
func TestProxyKnowsWhoHasWhat(t *testing.T) {
	h := newHandler(t, proxyConfig())
	h.Decide(ask{mac: node, message: request, server: other, requested: "10.77.0.60"}.packet(), t0)
	h.Decide(ask{mac: macA, message: request, ciaddr: "10.77.0.61"}.packet(), t0)
	h.DecideBoot(ask{mac: macB, message: request, server: us, options: uefi}.packet(), ip("10.77.0.62"), t0)
	h.Decide(ask{mac: macA, message: request, requested: "192.0.2.7"}.packet(), t0)
	for a, want := range map[string]boot.MAC{"10.77.0.60": node, "::ffff:10.77.0.61": macA, "10.77.0.62": macB, "192.0.2.7": {}, "10.77.0.63": {}} {
		if mac, ok := h.Who(ip(a), t0); mac != want || ok != (want != boot.MAC{}) {
			t.Errorf("%s is %s's, %v", a, mac, ok)
		}
	}
	h.Decide(ask{mac: macA, message: request, server: other, requested: "10.77.0.60"}.packet(), t0)
	if mac, _ := h.Who(ip("10.77.0.60"), t0); mac != macA {
		t.Errorf("an address that changed hands is still %s's", mac)
	}
}
