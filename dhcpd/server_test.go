package dhcpd

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/nettest"
	"github.com/every-channel/ecboot/internal/timeline"
)

// brokenStore fails while broken is set.
type brokenStore struct {
	MemoryStore
	broken bool
}

func (s *brokenStore) Append(batch []Lease) error {
	if s.broken {
		return errors.New("no space left on device")
	}
	return s.MemoryStore.Append(batch)
}

// offlineServer has no sockets.
func offlineServer(t *testing.T, cfg Config) *Server {
	t.Helper()
	cfg, err := cfg.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	return newServer(cfg)
}

// collected is what would be sent.
type collected []Decision

func (c *collected) add(d Decision) { *c = append(*c, d) }

// exchange decides on packets, stores the leases in one group, and returns the
// decisions whose replies leave.
func (s *Server) exchange(packets ...[]byte) []Decision {
	var out collected
	s.deciding.Lock()
	for _, b := range packets {
		s.decide(b, &out)
	}
	s.deciding.Unlock()
	if group := s.outbox.rest(); len(group) > 0 {
		out = append(out, s.store(group)...)
	}
	return out
}

func TestNoACKWithoutStoredLease(t *testing.T) {
	store := &brokenStore{MemoryStore: *NewMemoryStore(), broken: true}
	var log bytes.Buffer
	now := t0
	cfg := testConfig()
	cfg.Store = store
	cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	cfg.Now = func() time.Time { return now }
	cfg.Timeline = timeline.New()
	s := offlineServer(t, cfg)
	take := ask{mac: macA, message: request, server: us, requested: "10.77.0.50"}.packet().ToBytes()
	ask2 := ask{mac: macB, message: discover}.packet().ToBytes()

	replies := s.exchange(take, ask2, take)
	if len(replies) != 1 || replies[0].Told.Stage != "os.offer" {
		t.Errorf("got %v, want only the offer", replies)
	}
	if leases := s.Leases(); len(leases) != 0 {
		t.Errorf("there are leases that nobody was told of: %v", leases)
	}
	s.exchange(take)
	if n := strings.Count(log.String(), "no space left"); n != 1 {
		t.Errorf("said %d times:\n%s", n, &log)
	}
	now = now.Add(2 * time.Minute)
	s.exchange(take)
	if n := strings.Count(log.String(), "no space left"); n != 2 {
		t.Errorf("said %d times in two minutes", n)
	}

	store.broken = false
	if replies := s.exchange(take); len(replies) != 1 || replies[0].Commit == nil {
		t.Errorf("with room again: %v", replies)
	}
	if leases := store.Leases(); len(leases) != 1 || leases[0].State != Bound {
		t.Errorf("stored: %v", leases)
	}
}

// A renewal that could not be stored leaves the lease as it was.
func TestFailedRenewalKeepsLease(t *testing.T) {
	store := &brokenStore{MemoryStore: *NewMemoryStore()}
	now := t0
	cfg := testConfig()
	cfg.Store = store
	cfg.Now = func() time.Time { return now }
	s := offlineServer(t, cfg)
	renew := ask{mac: macA, message: request, ciaddr: "10.77.0.50"}.packet().ToBytes()
	s.exchange(renew)
	want := s.Leases()
	store.broken, now = true, now.Add(time.Minute)
	s.exchange(renew, renew)
	if got := s.Leases(); len(got) != 1 || got[0] != want[0] {
		t.Errorf("got %v, want %v", got, want)
	}
}

// What was decided while a group failed was built on it, and falls with it.
func TestFailureTakesWhatFollowed(t *testing.T) {
	store := &brokenStore{MemoryStore: *NewMemoryStore(), broken: true}
	cfg := testConfig()
	cfg.Store = store
	s := offlineServer(t, cfg)
	take := ask{mac: macA, message: request, server: us, requested: "10.77.0.50"}.packet().ToBytes()
	renew := ask{mac: macA, message: request, ciaddr: "10.77.0.50"}.packet().ToBytes()
	s.decide(take, new(collected))
	group := s.outbox.rest()
	s.decide(renew, new(collected))
	if replies := s.store(group); len(replies) != 0 || len(s.outbox.rest()) != 0 {
		t.Errorf("left: %v", replies)
	}
	if leases := s.Leases(); len(leases) != 0 {
		t.Errorf("there are leases that nobody was told of: %v", leases)
	}
}

// A person takes an address back while the server runs.
func TestReleaseByHand(t *testing.T) {
	l := startLab(t, func(cfg *Config) { cfg.Store = NewMemoryStore() })
	if err := l.Release(ip("10.77.0.50")); err == nil || !strings.Contains(err.Error(), "10.77.0.50 is not leased") {
		t.Errorf("got %v", err)
	}
	l.exchange(ask{mac: macA, message: request, server: us, requested: "10.77.0.50"}.packet().ToBytes())
	if err := l.Release(ip("10.77.0.50")); err != nil {
		t.Error(err)
	}
	for _, leases := range [][]Lease{l.Leases(), l.cfg.Store.Leases()} {
		if len(leases) != 1 || leases[0].State != Released || leases[0].Live(time.Now()) {
			t.Errorf("got %v", leases)
		}
	}
}

// countingStore counts writes.
type countingStore struct {
	MemoryStore
	writes int
}

func (s *countingStore) Append(batch []Lease) error {
	s.writes++
	return s.MemoryStore.Append(batch)
}

func TestBatchIsOneWrite(t *testing.T) {
	store := &countingStore{MemoryStore: *NewMemoryStore()}
	cfg := testConfig()
	cfg.Store = store
	s := offlineServer(t, cfg)
	var packets [][]byte
	for i := range byte(20) {
		mac := macA
		mac[4] = i
		packets = append(packets, ask{mac: mac, message: request, server: us, requested: fmt.Sprintf("10.77.0.%d", 100+i)}.packet().ToBytes())
	}
	if replies := s.exchange(packets...); len(replies) != 20 || store.writes != 1 {
		t.Errorf("%d replies, %d writes", len(replies), store.writes)
	}
}

func TestMalformedPackets(t *testing.T) {
	var log bytes.Buffer
	cfg := testConfig()
	cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	s := offlineServer(t, cfg)
	good := ask{mac: macA, message: discover}.packet().ToBytes()
	cut := bytes.Clone(good[:243]) // within an option
	replies := s.exchange(nil, []byte("hello"), good[:100], cut, good)
	if len(replies) != 1 || s.Counters().Malformed != 4 || strings.Count(log.String(), "malformed") != 1 {
		t.Errorf("%d replies, %d malformed, log:\n%s", len(replies), s.Counters().Malformed, &log)
	}
}

// A machine keeps its address when the server starts again.
func TestLeaseSurvivesRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases")
	cfg := testConfig()
	store := openStore(t, path)
	cfg.Store = store
	s := offlineServer(t, cfg)
	s.exchange(
		ask{mac: macB, message: request, server: us, requested: "10.77.0.50"}.packet().ToBytes(),
		ask{mac: macA, message: request, server: us, requested: "10.77.0.99"}.packet().ToBytes(),
	)
	store.Close()

	cfg.Store = openStore(t, path)
	s = offlineServer(t, cfg)
	if who := s.Who(ip("10.77.0.99")); who != macA.String() {
		t.Errorf("10.77.0.99 is %q's", who)
	}
	for mac, want := range map[boot.MAC]string{macA: "10.77.0.99", macB: "10.77.0.50"} {
		replies := s.exchange(ask{mac: mac, message: discover}.packet().ToBytes())
		if got := replies[0].Reply.To; got != ip(want) {
			t.Errorf("%s is offered %s, want %s", mac, got, want)
		}
	}
}

// What leaves through the packet socket arrives with whole checksums, also over
// a veth, from the server's address and port, and only at the station it is for.
func TestFramesOnTheWire(t *testing.T) {
	nettest.Need(t, "tcpdump", "udhcpc")
	startLab(t, nil)
	h := newClient(t)
	dump := start(t, h.Command(t.Context(), "tcpdump", "-i", "eth0", "-n", "-l", "-vv", "-e", "--immediate-mode", "udp and src port 67"))
	dump.await(t, "listening on")
	h.Run(t, "udhcpc", "-q", "-n", "-f", "-i", "eth0", "-s", configure(t))
	dump.await(t, "> "+hostMAC)
	dump.await(t, "10.77.0.1.67 > 10.77.0.50.68: [udp sum ok]")
	h.Run(t, "udhcpc", "-q", "-n", "-f", "-i", "eth0", "-s", configure(t), "-B")
	dump.await(t, "> ff:ff:ff:ff:ff:ff")
	dump.await(t, "10.77.0.1.67 > 255.255.255.255.68: [udp sum ok]")
}

func TestNoSuchInterface(t *testing.T) {
	cfg := testConfig()
	cfg.Interface = "nonesuch0"
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "nonesuch0") {
		t.Errorf("got %v", err)
	}
	if _, err := NewAdvertiser(AdvertiserConfig{Interface: "nonesuch0"}); err == nil || !strings.Contains(err.Error(), "nonesuch0") {
		t.Errorf("got %v", err)
	}
}

// discarded sends nowhere, but makes the bytes.
type discarded struct{}

func (discarded) add(d Decision) { d.Reply.Packet.ToBytes() }

// BenchmarkExchange is what one client costs beside sockets and disk.
func BenchmarkExchange(b *testing.B) {
	cfg := testConfig()
	cfg.Server = netip.MustParsePrefix("10.77.0.1/16")
	cfg.Pool = Pool{Range: Range{ip("10.77.1.0"), ip("10.77.250.0")}}
	cfg.Timeline = timeline.New()
	cfg, err := cfg.withDefaults()
	if err != nil {
		b.Fatal(err)
	}
	s := newServer(cfg)
	const clients = 20000
	var packets [2 * clients][]byte
	for i := range clients {
		mac := boot.MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}
		a := netip.AddrFrom4([4]byte{10, 77, byte(1 + i>>8), byte(i)}).String()
		options := map[uint8]string{55: "\x01\x1c\x02\x03\x0f\x06\x0c"}
		packets[2*i] = ask{mac: mac, message: discover, giaddr: "10.77.0.2", options: options}.packet().ToBytes()
		packets[2*i+1] = ask{mac: mac, message: request, server: us, requested: a, giaddr: "10.77.0.2", options: options}.packet().ToBytes()
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s.decide(packets[2*i%len(packets)], discarded{})
		s.decide(packets[(2*i+1)%len(packets)], discarded{})
		if i%32 == 31 {
			for _, d := range s.store(s.outbox.rest()) {
				discarded{}.add(d)
			}
		}
	}
}
