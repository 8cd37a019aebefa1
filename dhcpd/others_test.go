package dhcpd

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/nettest"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/vishvananda/netlink"
)

const foreignMAC = "02:00:00:00:00:02"

// foreign runs another DHCP server on br0, and returns what it is known by.
func foreign(t *testing.T, program string) Other {
	t.Helper()
	h := nettest.NewHost(t, program)
	nettest.Connect(t, "br0", h, "eth0")
	h.Run(t, "ip", "link", "set", "eth0", "down")
	h.Run(t, "ip", "link", "set", "eth0", "address", foreignMAC, "up")
	h.ServeDHCP(t, program, "eth0", netip.MustParsePrefix("10.77.0.0/24"))
	mac, _ := boot.ParseMAC(foreignMAC)
	return Other{Addr: ip("10.77.0.2"), MAC: mac, Offered: ip("10.77.0.100")}
}

var ignoreOffered = cmpopts.IgnoreFields(Other{}, "Offered")

func TestFindOthers(t *testing.T) {
	for _, program := range nettest.DHCPServers {
		t.Run(program, func(t *testing.T) {
			nettest.NeedRoot(t)
			nettest.Bridge(t, "br0", "10.77.0.1/24")
			want := foreign(t, program)
			found, err := FindOthers(t.Context(), "br0")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]Other{want}, found, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), ignoreOffered); diff != "" {
				t.Error(diff)
			}
			if len(found) == 1 && !netip.MustParsePrefix("10.77.0.0/24").Contains(found[0].Offered) {
				t.Errorf("it offered %s", found[0].Offered)
			}
		})
	}
}

// Neither we ourselves nor a proxy elsewhere is another server.
func TestFindOthersFindsNoProxy(t *testing.T) {
	l := startLab(t, nil)
	proxy := nettest.NewHost(t, "proxy")
	nettest.Connect(t, "br0", proxy, "eth0")
	proxy.Run(t, "ip", "addr", "add", "10.77.0.9/24", "dev", "eth0")
	cfg := proxyConfig()
	cfg.Interface, cfg.Server, cfg.Now = "eth0", netip.MustParsePrefix("10.77.0.9/24"), nil
	var s *Server
	var err error
	proxy.Do(t, func() { s, err = New(cfg) })
	if err != nil {
		t.Fatal(err)
	}
	run(t, s)
	if found, err := FindOthers(t.Context(), "br0"); err != nil || len(found) != 0 {
		t.Errorf("found %v, %v", found, err)
	}
	if n := l.Counters().Others; n != 0 {
		t.Errorf("%d packets of other servers", n)
	}
}

func TestFindOthersIsCancelled(t *testing.T) {
	nettest.NeedRoot(t)
	nettest.Bridge(t, "br0", "")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := FindOthers(ctx, "br0"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	for ifname, want := range map[string]string{"nonesuch0": "no such network interface", "lo": "no Ethernet"} {
		if _, err := FindOthers(t.Context(), ifname); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", ifname, err)
		}
	}
}

// A link that is taken down and up again is no reason to end.
func TestServerOutlivesALinkThatIsDown(t *testing.T) {
	nettest.Need(t, "udhcpc", "dnsmasq")
	others := make(chan Other, 16)
	startLab(t, func(cfg *Config) {
		cfg.ProbeTime = DefaultProbeTime
		cfg.OnOther = func(o Other) { others <- o }
	})
	br0, err := netlink.LinkByName("br0")
	if err := errors.Join(err, netlink.LinkSetDown(br0), netlink.LinkSetUp(br0)); err != nil {
		t.Fatal(err)
	}
	newClient(t).Run(t, "udhcpc", "-q", "-n", "-f", "-i", "eth0", "-s", configure(t))
	want := foreign(t, "dnsmasq")
	if _, err := FindOthers(t.Context(), "br0"); err != nil {
		t.Fatal(err)
	}
	if o := <-others; o.MAC != want.MAC {
		t.Errorf("%s was reported", o)
	}
}

// A server that appears later is reported when it answers a client, with its
// MAC, and when a client names it.
func TestOthersAreReported(t *testing.T) {
	nettest.Need(t, "udhcpc", "dnsmasq")
	others := make(chan Other, 16)
	startLab(t, func(cfg *Config) {
		cfg.AnswerUnknown = false // or the client would take our offer
		cfg.OnOther = func(o Other) { others <- o }
	})
	want := foreign(t, "dnsmasq")
	h := newClient(t)
	h.Run(t, "udhcpc", "-q", "-n", "-f", "-i", "eth0", "-s", configure(t), "-B")
	for _, w := range []Other{want, {Addr: want.Addr}} {
		if diff := cmp.Diff(w, <-others, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), ignoreOffered); diff != "" {
			t.Error(diff)
		}
	}
}

func TestWatchIsBounded(t *testing.T) {
	var log bytes.Buffer
	now := t0
	cfg := testConfig()
	cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	cfg.Now = func() time.Time { return now }
	var told int
	cfg.OnOther = func(Other) { told++ }
	s := offlineServer(t, cfg)
	s.watch = &watch{known: map[Other]bool{}}
	request := func(server string) {
		s.exchange(ask{mac: macA, message: request, server: server, requested: "10.77.0.60"}.packet().ToBytes())
	}
	lines := func() int { return strings.Count(log.String(), "another DHCP server") }

	request(us)
	s.report(Other{Addr: ip(us), MAC: macB})
	request(other)
	request(other)
	if told != 1 || lines() != 1 || s.Counters().Others != 2 {
		t.Errorf("told %d times, %d lines, %d packets:\n%s", told, lines(), s.Counters().Others, &log)
	}
	// A second one within a minute is told of, and logged when it is seen
	// again later.
	request("10.77.0.3")
	if told != 2 || lines() != 1 {
		t.Errorf("told %d times, %d lines", told, lines())
	}
	now = now.Add(2 * time.Minute)
	request("10.77.0.3")
	if told != 2 || lines() != 2 {
		t.Errorf("told %d times, %d lines", told, lines())
	}
	for i := range 1000 {
		now = now.Add(time.Second)
		request(netip.AddrFrom4([4]byte{192, 0, byte(i / 256), byte(i)}).String())
	}
	if told > maxOthers || len(s.watch.known) > maxOthers {
		t.Errorf("told %d times, %d are known", told, len(s.watch.known))
	}
}

// reply makes the frame of a server's reply.
func replyFrame(change func(*dhcpv4.DHCPv4)) []byte {
	p := &dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootReply, HWType: 1, ClientHWAddr: macA.HardwareAddr(), Options: dhcpv4.Options{}}
	p.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeOffer))
	p.UpdateOption(dhcpv4.OptServerIdentifier(ip("10.77.0.2").AsSlice()))
	p.YourIPAddr = ip("10.77.0.100").AsSlice()
	change(p)
	frame := append(append([]byte{}, broadcastMAC...), 0x02, 0, 0, 0, 0, 0x02, 0x08, 0x00)
	return append(frame, datagram(netip.MustParseAddrPort("10.77.0.3:67"), netip.MustParseAddrPort("255.255.255.255:68"), p.ToBytes())...)
}

func TestParseOther(t *testing.T) {
	mac, _ := boot.ParseMAC(foreignMAC)
	tests := []struct {
		name   string
		change func(*dhcpv4.DHCPv4)
		want   string
	}{
		{"offer", func(p *dhcpv4.DHCPv4) {}, "10.77.0.2 (" + foreignMAC + ") 10.77.0.100"},
		{"ack", func(p *dhcpv4.DHCPv4) { p.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeAck)) }, "10.77.0.2 (" + foreignMAC + ") 10.77.0.100"},
		{"nak", func(p *dhcpv4.DHCPv4) { p.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeNak)) }, "10.77.0.2 (" + foreignMAC + ") invalid IP"},
		{"without an identifier", func(p *dhcpv4.DHCPv4) { delete(p.Options, 54) }, "10.77.0.3 (" + foreignMAC + ") 10.77.0.100"},
		{"a proxy's offer", func(p *dhcpv4.DHCPv4) { p.YourIPAddr = nil }, ""},
		{"a request", func(p *dhcpv4.DHCPv4) { p.OpCode = dhcpv4.OpcodeBootRequest }, ""},
		{"BOOTP", func(p *dhcpv4.DHCPv4) { delete(p.Options, 53) }, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			if o, _, ok := parseOther(replyFrame(tt.change)); ok {
				got = o.String() + " " + o.Offered.String()
				if o.MAC != mac {
					t.Errorf("MAC %s", o.MAC)
				}
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func FuzzParseOther(f *testing.F) {
	f.Add(replyFrame(func(*dhcpv4.DHCPv4) {}))
	f.Add(replyFrame(func(p *dhcpv4.DHCPv4) { p.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeNak)) }))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if o, reply, ok := parseOther(frame); ok && (!o.Addr.IsValid() || reply == nil) {
			t.Errorf("%v, %v", o, reply)
		}
	})
}
