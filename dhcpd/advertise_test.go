package dhcpd

import (
	"bytes"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/nettest"
	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/ndp"
)

func TestNoRouterOffersNothing(t *testing.T) {
	b, err := ndp.MarshalMessage(noRouter())
	if err != nil {
		t.Fatal(err)
	}
	want := []byte{
		134, 0, 0, 0,
		0,    // hop limit: unspecified
		0,    // neither M nor O
		0, 0, // router lifetime
		0, 0, 0, 0, 0, 0, 0, 0,
	}
	if diff := cmp.Diff(want, b); diff != "" {
		t.Error(diff)
	}
}

func TestStation(t *testing.T) {
	mac := boot.MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	withOption := &ndp.RouterSolicitation{Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: mac.HardwareAddr()}}}
	tests := []struct {
		name string
		rs   *ndp.RouterSolicitation
		from string
		want boot.MAC
		ok   bool
	}{
		{"option", withOption, "fe80::1", mac, true},
		{"address made of the MAC", &ndp.RouterSolicitation{}, "fe80::5054:ff:fe12:3456", mac, true},
		{"random address", &ndp.RouterSolicitation{}, "fe80::1234", boot.MAC{}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, ok := station(tt.rs, netip.MustParseAddr(tt.from)); got != tt.want || ok != tt.ok {
				t.Errorf("got %s %v, want %s %v", got, ok, tt.want, tt.ok)
			}
		})
	}
}

// The bridge has no port when the Advertiser starts, and so no link-local
// address. The kernel of the host that is connected later solicits routers.
func TestAdvertiserAnswersWhenAddressComesUp(t *testing.T) {
	nettest.Need(t, "tcpdump")
	t.Run("a bridge", testAdvertiser)
	t.Run("another one of the same name", testAdvertiser)
}

func testAdvertiser(t *testing.T) {
	nettest.Bridge(t, "br0", "10.77.0.1/24")
	asked := make(chan boot.MAC, 64)
	a, err := NewAdvertiser(AdvertiserConfig{Interface: "br0", Only: func(mac boot.MAC) bool {
		asked <- mac
		return mac.String() == hostMAC
	}})
	if err != nil {
		t.Fatal(err)
	}
	run(t, a)

	stranger := nettest.NewHost(t, "stranger")
	nettest.Connect(t, "br0", stranger, "eth0")
	h := nettest.NewHost(t, "client")
	nettest.Connect(t, "br0", h, "eth0")
	h.Run(t, "ip", "link", "set", "eth0", "down")
	dump := start(t, h.Command(t.Context(), "tcpdump", "-i", "any", "-n", "-l", "-v", "icmp6 and ip6[40] == 134"))
	dump.await(t, "listening on")
	h.Run(t, "ip", "link", "set", "eth0", "address", hostMAC, "up")
	dump.await(t, "> fe80::ff:fe00:42: [icmp6 sum ok] ICMP6, router advertisement")
	dump.await(t, "router lifetime 0s")
	for mac := range asked {
		if mac.String() == hostMAC {
			break
		}
	}
	if out := h.Run(t, "ip", "-6", "route", "show", "default"); out != "" {
		t.Errorf("the host took us for its router: %s", out)
	}
}

func TestAdvertiserWithoutIPv6SaysSoOnce(t *testing.T) {
	nettest.Bridge(t, "br0", "10.77.0.1/24")
	sysctl := "/proc/sys/net/ipv6/conf/br0/disable_ipv6"
	if err := os.WriteFile(sysctl, []byte("1"), 0o644); err != nil {
		t.Skip(err)
	}
	said := &notice{first: make(chan struct{})}
	a, err := NewAdvertiser(AdvertiserConfig{Interface: "br0", Logger: slog.New(slog.NewTextHandler(said, nil))})
	if err != nil {
		t.Fatal(err)
	}
	run(t, a)
	<-said.first
	if n := strings.Count(said.String(), "IPv6 is disabled"); n != 1 {
		t.Errorf("said %d times", n)
	}
}

// A bridge that somebody deletes has not had its IPv6 disabled.
func TestIPv6OfALinkThatIsGone(t *testing.T) {
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		t.Skip(err)
	}
	if ipv6Disabled("nosuchlink") {
		t.Error("it is called disabled")
	}
}

// notice is a log of which the first line can be awaited.
type notice struct {
	mu    sync.Mutex
	b     bytes.Buffer
	once  sync.Once
	first chan struct{}
}

func (n *notice) Write(b []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.once.Do(func() { close(n.first) })
	return n.b.Write(b)
}

func (n *notice) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.b.String()
}
