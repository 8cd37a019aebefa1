package httpboot

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/nettest"
)

// caller is a connection that knows where it comes from and whether it was
// hung up on.
type caller struct {
	net.Conn
	from   string
	hungUp bool
}

func (c *caller) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(c.from), 1234))
}

func (c *caller) Close() error {
	c.hungUp = true
	return nil
}

// TestWhoMakesRoom has four connections in all and two from an address.
func TestWhoMakesRoom(t *testing.T) {
	type call struct {
		from    string
		serving bool
	}
	tests := []struct {
		name  string
		calls []call // the last one is the newcomer
		out   int    // who of them is hung up on; -1: nobody
	}{
		{"there is room", []call{{"10.0.0.1", false}, {"10.0.0.1", false}, {"10.0.0.2", false}}, -1},
		{"an address has enough", []call{{"10.0.0.2", false}, {"10.0.0.1", false}, {"10.0.0.1", false}, {"10.0.0.1", false}}, 1},
		{"an address has enough and one is busy", []call{{"10.0.0.1", true}, {"10.0.0.1", false}, {"10.0.0.1", false}}, 1},
		{"an address has enough and all are busy", []call{{"10.0.0.1", true}, {"10.0.0.1", true}, {"10.0.0.1", false}}, 2},
		{"full", []call{{"10.0.0.1", true}, {"10.0.0.2", false}, {"10.0.0.3", false}, {"10.0.0.4", true}, {"10.0.0.5", false}}, 1},
		{"full and all busy", []call{{"10.0.0.1", true}, {"10.0.0.2", true}, {"10.0.0.2", true}, {"10.0.0.3", true}, {"10.0.0.4", false}}, 1},
		{"full, all busy and nobody has more", []call{{"10.0.0.1", true}, {"10.0.0.2", true}, {"10.0.0.3", true}, {"10.0.0.4", true}, {"10.0.0.5", false}}, 4},
		{"full, all busy and the newcomer would have as many", []call{{"10.0.0.1", true}, {"10.0.0.2", true}, {"10.0.0.2", true}, {"10.0.0.3", true}, {"10.0.0.3", false}}, 4},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				told := 0
				a := newAdmission(func(netip.Addr) { told++ })
				a.max, a.maxPerAddr = 4, 2
				var callers []*caller
				for _, call := range tt.calls {
					c := &caller{from: call.from}
					callers = append(callers, c)
					a.admit(c)
					if call.serving {
						r := (&http.Request{}).WithContext(a.connContext(context.Background(), c))
						a.answer(r)
					}
					time.Sleep(time.Second) // of the bubble: the next is younger
				}
				out := -1
				for i, c := range callers {
					if c.hungUp {
						out = i
						told--
					}
				}
				if out != tt.out || told != 0 {
					t.Errorf("out goes %d, want %d; %d calls too many", out, tt.out, told)
				}
				for _, c := range callers {
					if c != callers[len(callers)-1] || out != len(callers)-1 {
						a.connState(c, http.StateClosed)
					}
				}
				if len(a.visits) != 0 || len(a.per) != 0 || a.open != 0 {
					t.Errorf("left over: %d connections, %d addresses, %d open", len(a.visits), len(a.per), a.open)
				}
				a.close()
				late := &caller{from: "10.0.0.1"}
				if a.admit(late) || !late.hungUp {
					t.Error("let in after the end")
				}
			})
		})
	}
}

func TestListenerHandsOutTCPConnections(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	a := newAdmission(func(netip.Addr) {})
	conn, err := net.Dial("tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	got, err := listener{inner, a}.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if _, ok := got.(*net.TCPConn); !ok {
		t.Errorf("a %T is not sent files with sendfile", got)
	}
}

// TestHalfOpenConnections has a host with forty addresses that opens
// connections by the thousand and says little or nothing on them. A machine is
// served at once all the same.
func TestHalfOpenConnections(t *testing.T) {
	nettest.Need(t, "curl")
	const addresses, each = 40, 60
	at, machine := segment(t)
	inv := inventory(t)
	s, _ := startServer(t, Config{Addr: at, Interface: "br0", Inventory: func() *boot.Inventory { return inv }})
	hostile := nettest.NewHost(t, "hostile")
	nettest.Connect(t, "br0", hostile, "eth0")
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	hostile.Do(t, func() {
		for i := range addresses {
			from := netip.AddrFrom4([4]byte{10, 78, 0, byte(100 + i)})
			if err := addAddress("eth0", netip.PrefixFrom(from, 24)); err != nil {
				t.Errorf("%s: %v", from, err)
				return
			}
			dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
			for n := range each {
				conn, err := dialer.Dial("tcp", at.String()+":80")
				if err != nil {
					t.Errorf("connection %d from %s: %v", n, from, err)
					return
				}
				conns = append(conns, conn)
				if n%2 == 0 {
					io.WriteString(conn, "GET /profile/default/vmlinuz HTTP/1.1\r\n")
				}
			}
		}
	})
	to := filepath.Join(t.TempDir(), "vmlinuz")
	machine.Run(t, "curl", "-sSf", "--max-time", "5", "-o", to, "http://10.78.0.1/profile/default/vmlinuz")
	if sumOf(t, to) != sum(pattern(kernelSize)) {
		t.Error("arrived damaged")
	}
	s.admission.mu.Lock()
	defer s.admission.mu.Unlock()
	if n := len(s.admission.visits); n > maxConns {
		t.Errorf("%d connections are open", n)
	}
	if n, want := s.Counters().Crowded, uint64(addresses*(each-maxConnsPerAddr)); n < want {
		t.Errorf("%d connections were closed for want of room, want %d at least", n, want)
	}
}

func addAddress(link string, addr netip.Prefix) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(addr.String())
	if err != nil {
		return err
	}
	return netlink.AddrAdd(l, a)
}
