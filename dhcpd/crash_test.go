package dhcpd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/nettest"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

const crashVar = "ECBOOT_TEST_CRASH" // the lease file of the server to be killed

func crashConfig(store LeaseStore) Config {
	return Config{
		Interface: "br0",
		Server:    netip.MustParsePrefix("10.77.0.1/16"),
		Network:   Network{Pool: Pool{Range: Range{ip("10.77.1.0"), ip("10.77.250.0")}}, AnswerUnknown: true, Authoritative: true},
		Store:     store,
	}
}

// relay speaks for many machines, as a relay agent on a host of its own does.
type relay struct {
	conn net.PacketConn
	addr netip.Addr
}

func newRelay(t *testing.T) *relay {
	t.Helper()
	h := nettest.NewHost(t, "relay")
	nettest.Connect(t, "br0", h, "eth0")
	h.Run(t, "ip", "addr", "add", "10.77.0.2/16", "dev", "eth0")
	r := &relay{addr: ip("10.77.0.2")}
	var err error
	h.Do(t, func() { r.conn, err = net.ListenPacket("udp4", "10.77.0.2:67") })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.conn.Close() })
	r.conn.(*net.UDPConn).SetReadBuffer(4 << 20)
	return r
}

func (r *relay) send(t *testing.T, a ask) {
	t.Helper()
	a.giaddr = r.addr.String()
	// Nobody listens while the server is dead.
	r.conn.WriteTo(a.packet().ToBytes(), &net.UDPAddr{IP: net.IPv4(10, 77, 0, 1), Port: 67})
}

// receive returns the next reply, nil when there is none for so long.
func (r *relay) receive(t *testing.T, patience time.Duration) *dhcpv4.DHCPv4 {
	t.Helper()
	r.conn.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 2048)
	n, _, err := r.conn.ReadFrom(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	p, err := dhcpv4.FromBytes(b[:n])
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// crashLab is a server that is killed over and over, and what its clients know.
type crashLab struct {
	*relay
	path   string
	random *rand.Rand
	held   map[netip.Addr]boot.MAC // by clients that have an ACK and gave nothing back
	next   int                     // the next new client
}

// startCrashing starts the server as a process of its own and waits until it
// answers.
func startCrashing(t *testing.T, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestNoAddressIsGivenTwiceAfterACrash$")
	cmd.Env = append(os.Environ(), crashVar+"="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the server said %q, %v", line, err)
	}
	return cmd
}

func serveUntilKilled(t *testing.T, path string) {
	store := openStore(t, path)
	store.slack, store.limit = 400, 400 // so that some are killed while they compact
	s, err := New(crashConfig(store))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-s.Ready()
		fmt.Println("ready")
	}()
	t.Fatal(s.Run(context.Background()))
}

// Thousands of clients, a server that dies at random moments: nobody is offered
// or given an address for which somebody else holds an ACK, and who holds one
// keeps it.
func TestNoAddressIsGivenTwiceAfterACrash(t *testing.T) {
	if path := os.Getenv(crashVar); path != "" {
		serveUntilKilled(t, path)
	}
	nettest.NeedRoot(t)
	nettest.Bridge(t, "br0", "10.77.0.1/16")
	l := &crashLab{relay: newRelay(t), path: filepath.Join(t.TempDir(), "leases"), random: rand.New(rand.NewPCG(1, 2)), held: map[netip.Addr]boot.MAC{}}
	for range 12 {
		server := startCrashing(t, l.path)
		l.live(t, server, 100+l.random.IntN(400))
		server.Wait()
		for l.take(t, l.receive(t, 20*time.Millisecond)) { // ACKs that left before the kill
		}
	}
	if len(l.held) < 2000 {
		t.Fatalf("only %d clients have an address", len(l.held))
	}
	stored, err := ReadLeases(l.path)
	if err != nil {
		t.Fatal(err)
	}
	owner := map[netip.Addr]boot.MAC{}
	for _, lease := range stored {
		if lease.State == Bound {
			owner[lease.Addr] = lease.MAC
		}
	}
	for a, mac := range l.held {
		if owner[a] != mac {
			t.Errorf("%s has an ACK for %s, which is stored for %s", mac, a, owner[a])
		}
	}
	t.Logf("%d clients, %d hold an address", l.next, len(l.held))
}

// live lets clients come, renew and go until the server has sent so many ACKs,
// then kills it in the midst of whatever it does.
func (l *crashLab) live(t *testing.T, server *exec.Cmd, acks int) {
	for acks > 0 {
		open := 0
		for range 48 {
			l.send(t, ask{mac: l.mac(l.next), message: discover})
			l.next++
			open++
		}
		holders := slices.SortedFunc(maps.Keys(l.held), netip.Addr.Compare)
		l.random.Shuffle(len(holders), func(i, j int) { holders[i], holders[j] = holders[j], holders[i] })
		for i, a := range holders[:min(16, len(holders))] {
			if i%4 == 0 {
				l.send(t, ask{mac: l.held[a], message: release, server: us, ciaddr: a.String()})
				delete(l.held, a)
			} else {
				l.send(t, ask{mac: l.held[a], message: request, ciaddr: a.String()})
				open++
			}
		}
		for open > 0 && acks > 0 {
			p := l.receive(t, patience)
			if p == nil {
				t.Fatal("the server is silent")
			}
			l.take(t, p)
			if p.MessageType() == dhcpv4.MessageTypeAck {
				open--
				acks--
			}
		}
	}
	server.Process.Kill()
}

// take does what a client does with a reply, and checks that it is not about
// another's address. It returns false when there is none.
func (l *crashLab) take(t *testing.T, p *dhcpv4.DHCPv4) bool {
	t.Helper()
	if p == nil {
		return false
	}
	mac, _ := boot.MACFrom(p.ClientHWAddr)
	a := addr(p.YourIPAddr)
	if holder, ok := l.held[a]; ok && holder != mac {
		t.Fatalf("%s of %s to %s: %s holds an ACK for it", p.MessageType(), a, mac, holder)
	}
	switch p.MessageType() {
	case dhcpv4.MessageTypeOffer:
		l.send(t, ask{mac: mac, message: request, server: us, requested: a.String()})
	case dhcpv4.MessageTypeAck:
		l.held[a] = mac
	default:
		t.Fatalf("%s to %s", p.MessageType(), mac)
	}
	return true
}

func (l *crashLab) mac(i int) boot.MAC {
	return boot.MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}
}

// slowStore does not return from Append until it is allowed to.
type slowStore struct {
	MemoryStore
	asked chan struct{} // one per Append
	allow chan struct{}
}

func (s *slowStore) Append(batch []Lease) error {
	s.asked <- struct{}{}
	<-s.allow
	return s.MemoryStore.Append(batch)
}

// While a lease is being written, its ACK waits and nobody else does; what comes
// meanwhile shares the next write.
func TestOnlyTheACKWaitsForTheDisk(t *testing.T) {
	nettest.NeedRoot(t)
	nettest.Bridge(t, "br0", "10.77.0.1/16")
	store := &slowStore{MemoryStore: *NewMemoryStore(), asked: make(chan struct{}, 10), allow: make(chan struct{})}
	s, err := New(crashConfig(store))
	if err != nil {
		t.Fatal(err)
	}
	run(t, s)
	t.Cleanup(func() { close(store.allow) })
	r := newRelay(t)
	r.send(t, ask{mac: boot.MAC{2, 1}, message: request, server: us, requested: "10.77.2.1"})
	<-store.asked
	for i := range byte(3) {
		r.send(t, ask{mac: boot.MAC{2, 2, i}, message: request, server: us, requested: fmt.Sprintf("10.77.3.%d", i)})
	}
	r.send(t, ask{mac: macB, message: discover})
	if p := r.receive(t, patience); p == nil || p.MessageType() != dhcpv4.MessageTypeOffer {
		t.Fatalf("got %v, want the offer alone", p)
	}
	store.allow <- struct{}{}
	if p := r.receive(t, patience); p == nil || p.MessageType() != dhcpv4.MessageTypeAck || p.YourIPAddr.String() != "10.77.2.1" {
		t.Fatalf("got %v", p)
	}
	<-store.asked
	store.allow <- struct{}{}
	for range 3 {
		if p := r.receive(t, patience); p == nil || p.MessageType() != dhcpv4.MessageTypeAck {
			t.Fatalf("got %v", p)
		}
	}
	if len(store.asked) != 0 {
		t.Error("three leases needed more than one write")
	}
}
