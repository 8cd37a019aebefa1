package dhcpd

import (
	"encoding/binary"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/timeline"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

// FuzzDecide sends anything to a server over and over: nothing panics, and a
// reply is never longer than its client takes.
func FuzzDecide(f *testing.F) {
	for _, path := range packetFiles(f) {
		f.Add(readPacket(f, path))
	}
	p := ask{mac: macA, message: request, options: map[uint8]string{57: "\xff\xff", 61: string(make([]byte, 255)), 82: string(make([]byte, 255)), 97: string(make([]byte, 255))}}.packet()
	f.Add(p.ToBytes())
	p.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionOptionOverload, []byte{3}))
	p.BootFileName, p.ServerHostName = "\x32\x04\x0a\x4d\x00\x63\xff", "\x3d\x03abc\xff"
	f.Add(p.ToBytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		req, err := decode(b)
		if err != nil {
			return
		}
		cfg := relayedConfig()
		cfg.Options = []boot.Option{{Code: 200, Data: make([]byte, 300)}, {Code: 201, Data: make([]byte, 100)}, {Code: 202, Data: make([]byte, 40)}}
		n := testNetworks(t, cfg)
		most := (&query{DHCPv4: req}).maxReply()
		for range 2 {
			for _, d := range []Decision{n.Decide(req, t0), n.DecideBoot(req, ip("10.77.0.60"), t0)} {
				if d.Reply == nil {
					continue
				}
				out := d.Reply.Packet.ToBytes()
				if len(out) > most {
					t.Errorf("the reply has %d bytes, the client takes %d", len(out), most)
				}
				reply, err := decode(out)
				if err != nil {
					t.Fatalf("the reply cannot be decoded: %v", err)
				}
				if reply.MessageType() == dhcpv4.MessageTypeNone || len(reply.Options[54]) != 4 {
					t.Errorf("the reply lacks its type or its server: %v", reply.Options)
				}
			}
		}
	})
}

// A million packets of somebody who wishes us ill: captures that were damaged,
// machines that do not exist, addresses that are declined and released in the
// name of others. Afterwards the server is no larger than after the first
// hundred thousand, and the machines that it knows get their addresses.
func TestMillionHostilePackets(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	inv := testInventory()
	inv.Machines[macB] = boot.Machine{MAC: macB}
	now := t0
	cfg := testConfig()
	cfg.Inventory = func() *boot.Inventory { return inv }
	cfg.Store = NewMemoryStore()
	cfg.Timeline = timeline.New()
	cfg.Now = func() time.Time { return now }
	s := offlineServer(t, cfg)
	var captures [][]byte
	for _, path := range packetFiles(t) {
		captures = append(captures, readPacket(t, path))
	}
	random := rand.New(rand.NewPCG(3, 4))
	attack := func(packets int) (heap uint64) {
		const batch = 100
		for range packets / batch {
			list := make([][]byte, batch)
			for i := range list {
				list[i] = hostile(random, captures[random.IntN(len(captures))])
			}
			s.exchange(list...)
			now = now.Add(10 * time.Millisecond)
		}
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := attack(100_000)
	after := attack(900_000)
	t.Logf("%.1f MB, then %.1f MB; %+v", float64(before)/1e6, float64(after)/1e6, s.Counters())
	if after > before+before/2 {
		t.Errorf("the heap grew from %d to %d bytes", before, after)
	}
	for mac, want := range map[boot.MAC]string{node: "10.77.0.51", macB: ""} {
		replies := s.exchange(ask{mac: mac, message: discover}.packet().ToBytes())
		if len(replies) != 1 || want != "" && replies[0].Reply.To != ip(want) {
			t.Errorf("%s: %v", mac, replies)
		}
	}
	if c := s.Counters(); c.Malformed == 0 || c.Exhausted == 0 || c.Limited == 0 || c.Declined == 0 {
		t.Errorf("the attack did not get everywhere: %+v", c)
	}
}

// hostile makes a hostile packet out of a good one.
func hostile(random *rand.Rand, capture []byte) []byte {
	const (
		xidAt, ciaddrAt, chaddrAt = 4, 12, 28
		typeAt                    = headerLen + 2 // in our captures option 53 comes first
	)
	b := append([]byte(nil), capture...)
	switch random.IntN(4) {
	case 0: // damaged
		for range 1 + random.IntN(8) {
			b[random.IntN(len(b))] = byte(random.Uint32())
		}
	case 1: // cut off
		b = b[:random.IntN(len(b))]
	default: // a machine that does not exist, or one of a few that do not give up
		binary.BigEndian.PutUint32(b[xidAt:], random.Uint32())
		mac := []byte{2, 0, 0, 0, 0, byte(random.IntN(20))}
		if random.IntN(2) == 0 {
			binary.BigEndian.PutUint32(mac[1:], random.Uint32())
		}
		copy(b[chaddrAt:], mac)
		b[typeAt] = []byte{1, 3, 4, 7, 8}[random.IntN(5)]
		address := []byte{10, 77, 0, byte(random.IntN(256))}
		copy(b[ciaddrAt:], address)
		// The same address as option 50, before everything else.
		b = append(b[:headerLen:headerLen], append(append([]byte{50, 4}, address...), b[headerLen:]...)...)
	}
	return b
}
