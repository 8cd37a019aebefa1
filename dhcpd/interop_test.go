package dhcpd

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/nettest"
	"github.com/every-channel/ecboot/internal/timeline"
	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/net/ipv4"
)

// behindRelay makes the network 10.9.0.0/24 with a router to br0, on which a
// relay agent is to run, and a client there. br0 knows the way back.
func behindRelay(t *testing.T) (relay, client *nettest.Host) {
	t.Helper()
	nettest.Bridge(t, "br1", "")
	relay = nettest.NewHost(t, "relay")
	nettest.Connect(t, "br0", relay, "up0")
	nettest.Connect(t, "br1", relay, "down0")
	relay.Run(t, "ip", "addr", "add", "10.77.0.9/24", "dev", "up0")
	relay.Run(t, "ip", "addr", "add", "10.9.0.1/24", "dev", "down0")
	relay.Run(t, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
	client = nettest.NewHost(t, "client")
	nettest.Connect(t, "br1", client, "eth0")
	client.Run(t, "ip", "link", "set", "eth0", "down")
	client.Run(t, "ip", "link", "set", "eth0", "address", hostMAC, "up")
	return relay, client
}

// A machine behind somebody else's relay gets an address of its network, renews
// it past the relay, and gives it back.
func TestRelayAgents(t *testing.T) {
	relays := map[string][]string{
		"dhcrelay": {"-4", "-d", "--no-pid", "-a", "-id", "down0", "-iu", "up0", us},
		"dnsmasq": {"--conf-file=/dev/null", "--no-daemon", "--port=0", "--pid-file=", "--user=root", "--log-dhcp",
			"--interface=down0", "--dhcp-relay=10.9.0.1," + us},
	}
	for program, args := range relays {
		t.Run(program, func(t *testing.T) {
			nettest.Need(t, program, "udhcpc")
			l := startLab(t, func(cfg *Config) { cfg.Relayed = relayedConfig().Relayed })
			relay, h := behindRelay(t)
			if out, err := ip4("route", "add", "10.9.0.0/24", "via", "10.77.0.9"); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			start(t, relay.Command(t.Context(), program, args...))
			client := start(t, h.Command(t.Context(), "udhcpc", "-f", "-i", "eth0", "-s", configure(t)))
			if e := l.await(t, "os.ack"); e.Detail != "10.9.0.10" {
				t.Errorf("got %+v", e)
			}
			l.check(t, "10.9.0.10", Bound)
			client.await(t, "configured by bound")
			h.Run(t, "ip", "route", "replace", "default", "via", "10.9.0.1")
			l.awaitSignal(t, "os.request", signal(t, client.Process.Pid, syscall.SIGUSR1))
			l.await(t, "os.ack")
			client.await(t, "configured by renew")
			l.awaitSignal(t, "os.release", signal(t, client.Process.Pid, syscall.SIGUSR2))
			l.check(t, "10.9.0.10", Released)
		})
	}
}

// perfdhcp plays a relay with many clients behind it. It counts what was not
// answered.
func TestPerfdhcp(t *testing.T) {
	for name, tt := range map[string]struct {
		addr string
		args []string
	}{
		"on our network": {"10.77.0.9/24", nil},
		"behind a relay": {"10.9.0.9/24", []string{"-o", "82,0104706f7274"}},
	} {
		t.Run(name, func(t *testing.T) {
			nettest.Need(t, "perfdhcp")
			l := startLab(t, func(cfg *Config) {
				cfg.Relayed = relayedConfig().Relayed
				cfg.Relayed[0].Pool = Pool{Range: Range{ip("10.9.0.10"), ip("10.9.0.200")}}
			})
			h := nettest.NewHost(t, "perfdhcp")
			nettest.Connect(t, "br0", h, "eth0")
			h.Run(t, "ip", "addr", "add", tt.addr, "dev", "eth0")
			h.Run(t, "ip", "route", "replace", us, "dev", "eth0")
			if out, err := ip4("route", "replace", "10.9.0.0/24", "dev", "br0"); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			out := h.Run(t, "perfdhcp", append([]string{"-4", "-R", "100", "-n", "100", "-r", "50", "-d", "10", "-W", "1000000"}, append(tt.args, us)...)...)
			if drops := regexp.MustCompile(`drops: [1-9]|drops ratio: [1-9]`).FindString(out); drops != "" || !strings.Contains(out, "received packets: 100") {
				t.Errorf("perfdhcp says\n%s", out)
			}
			bound := 0
			for _, lease := range l.Leases() {
				if netip.MustParsePrefix(tt.addr).Contains(lease.Addr) && lease.State == Bound {
					bound++
				}
			}
			if bound != 100 {
				t.Errorf("%d leases", bound)
			}
		})
	}
}

// dancer is a boot client on the wire: it broadcasts from port 68 of an
// interface and listens there.
type dancer struct {
	conn *ipv4.PacketConn
	mac  net.HardwareAddr
}

// newDancer puts a client on br0 that configures the addresses it is given.
func newDancer(t *testing.T) (*dancer, *nettest.Host) {
	t.Helper()
	h := newClient(t)
	d := &dancer{}
	var err error
	h.Do(t, func() {
		d.conn, err = listenUDP("eth0", clientPort)
		if err == nil {
			var link *net.Interface
			if link, err = net.InterfaceByName("eth0"); err == nil {
				d.mac = link.HardwareAddr
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.conn.Close() })
	return d, h
}

// ask sends a request again and again until want is content with what comes
// back, and returns the last reply and where it came from.
func (d *dancer) ask(t *testing.T, a ask, to string, want func(*dhcpv4.DHCPv4) bool) (*dhcpv4.DHCPv4, string) {
	t.Helper()
	addr := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))
	buf := make([]byte, maxPacket)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if _, err := d.conn.WriteTo(a.packet().ToBytes(), nil, addr); err != nil {
			t.Fatal(err)
		}
		d.conn.SetReadDeadline(time.Now().Add(time.Second))
		for {
			n, _, from, err := d.conn.ReadFrom(buf)
			if err != nil {
				break
			}
			if p, err := dhcpv4.FromBytes(buf[:n]); err == nil && p.TransactionID[3] == a.xid && want(p) {
				return p, from.String()
			}
		}
	}
	t.Fatalf("no answer from %s to the %s of %v", to, a.message, a.options)
	return nil, ""
}

func message(mt dhcpv4.MessageType, proxy bool) func(*dhcpv4.DHCPv4) bool {
	return func(p *dhcpv4.DHCPv4) bool { return p.MessageType() == mt && p.YourIPAddr.IsUnspecified() == proxy }
}

// Every kind of boot client takes its address from somebody else's server and
// its boot file from us.
func TestProxyDance(t *testing.T) {
	clients := map[string]struct {
		options map[uint8]string
		file    string
	}{
		"BIOS":      {bios, "undionly.kpxe"},
		"UEFI":      {uefi, "snponly.efi"},
		"HTTP Boot": {httpBoot, "http://10.77.0.1/nbp/snponly.efi"},
		"iPXE":      {ipxeROM, "http://10.77.0.1/ipxe/" + hostMAC},
	}
	for _, program := range nettest.DHCPServers {
		t.Run(program, func(t *testing.T) {
			nettest.Need(t, program)
			l := startLab(t, func(cfg *Config) { cfg.Mode = ModeProxy })
			theirs := foreign(t, program)
			d, h := newDancer(t)
			xid := byte(0)
			for name, c := range clients {
				xid++
				a := ask{mac: [6]byte(d.mac), message: discover, xid: xid, broadcast: true, options: c.options}
				var ours, address *dhcpv4.DHCPv4
				d.ask(t, a, "255.255.255.255:67", func(p *dhcpv4.DHCPv4) bool {
					switch server := p.ServerIdentifier().String(); {
					case p.MessageType() != dhcpv4.MessageTypeOffer:
					case server == us:
						ours = p
					case server == theirs.Addr.String():
						address = p
					default:
						t.Errorf("%s: an offer of %s", name, server)
					}
					return ours != nil && address != nil
				})
				if ours.BootFileName != c.file || !ours.YourIPAddr.IsUnspecified() {
					t.Errorf("%s: offered %q at %s", name, ours.BootFileName, ours.YourIPAddr)
				}

				a.message, a.server, a.requested = request, theirs.Addr.String(), address.YourIPAddr.String()
				ack, from := d.ask(t, a, "255.255.255.255:67", message(dhcpv4.MessageTypeAck, false))
				if from != theirs.Addr.String()+":67" {
					t.Errorf("%s: acknowledged by %s", name, from)
				}
				h.Run(t, "ip", "addr", "replace", ack.YourIPAddr.String()+"/24", "dev", "eth0")

				a.server, a.requested, a.ciaddr = us, "", ack.YourIPAddr.String()
				boot, from := d.ask(t, a, us+":4011", message(dhcpv4.MessageTypeAck, true))
				if from != us+":4011" || boot.BootFileName != c.file {
					t.Errorf("%s: %q from %s", name, boot.BootFileName, from)
				}
				if who := l.Who(ip(a.ciaddr)); who != hostMAC {
					t.Errorf("%s: %s is %q's", name, a.ciaddr, who)
				}
				h.Run(t, "ip", "addr", "flush", "dev", "eth0")
			}
			if leases := l.Leases(); len(leases) != 0 {
				t.Errorf("a proxy has leases: %v", leases)
			}
		})
	}
}

// A full server answers on port 4011 too: a client that comes there would
// otherwise wait for nothing.
func TestFullServerAnswersOn4011(t *testing.T) {
	l := startLab(t, nil)
	d, h := newDancer(t)
	h.Run(t, "ip", "addr", "add", "10.77.0.60/24", "dev", "eth0")
	a := ask{mac: [6]byte(d.mac), message: request, ciaddr: "10.77.0.60", options: uefi}
	if p, from := d.ask(t, a, us+":4011", message(dhcpv4.MessageTypeAck, true)); from != us+":4011" || p.BootFileName != "snponly.efi" {
		t.Errorf("%q from %s", p.BootFileName, from)
	}
	if e := l.await(t, timeline.DHCP("firmware", "request")); e.Detail != "10.77.0.60 on port 4011" {
		t.Errorf("got %+v", e)
	}
}

// What a proxy answers to the requests of real clients, to the byte; see
// TestGoldenPackets.
func TestGoldenProxyReplies(t *testing.T) {
	answer := func(t *testing.T, path string, decide func(*Handler, *dhcpv4.DHCPv4) Decision) {
		req, err := dhcpv4.FromBytes(readPacket(t, path))
		if err != nil {
			t.Fatal(err)
		}
		d := decide(newHandler(t, proxyConfig()), req)
		got := fmt.Sprintf("%s\n%s: %s\n", d, d.Asked.Stage, d.Asked.Detail)
		if d.Reply != nil {
			got += fmt.Sprintf("%s: %s\n%s", d.Told.Stage, d.Told.Detail, hex.Dump(d.Reply.Packet.ToBytes()))
		}
		golden := filepath.Join("testdata", "proxy", filepath.Base(filepath.Dir(path))+"-"+strings.TrimSuffix(filepath.Base(path), ".hex")+".reply")
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
	}
	for _, path := range packetFiles(t) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			answer(t, path, func(h *Handler, p *dhcpv4.DHCPv4) Decision { return h.Decide(p, t0) })
		})
	}
	t.Run("port 4011", func(t *testing.T) {
		answer(t, "testdata/4011/ovmf-pxe-request.hex", func(h *Handler, p *dhcpv4.DHCPv4) Decision {
			return h.DecideBoot(p, addr(p.ClientIPAddr), t0)
		})
	})
}

// ip4 runs ip in the test's own namespace.
func ip4(args ...string) ([]byte, error) { return exec.Command("ip", args...).CombinedOutput() }
