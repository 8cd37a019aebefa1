package tftpd

import (
	"net/netip"
	"testing"
)

func asked(addr string, port uint16, packet string) *transfer {
	return &transfer{client: netip.AddrPortFrom(netip.MustParseAddr(addr), port), packet: packet}
}

func TestSlots(t *testing.T) {
	s := newSlots()
	must := func(want admission, tr *transfer) *transfer {
		t.Helper()
		got, evicted := s.admit(tr)
		if got != want {
			t.Fatalf("%s: got %d, want %d", tr.client, got, want)
		}
		return evicted
	}
	first := asked("192.0.2.1", 1, "RRQ a")
	must(admitted, first)
	must(repeated, asked("192.0.2.1", 1, "RRQ a"))
	must(admitted, asked("192.0.2.1", 1, "RRQ b")) // the same port, another file
	s.answered(first)
	must(admitted, asked("192.0.2.1", 1, "RRQ a")) // again, from the beginning

	// One address cannot have all.
	for port := uint16(1000); s.held[first.client.Addr()] < maxPerClient; port++ {
		must(admitted, asked("192.0.2.1", port, "RRQ a"))
	}
	if evicted := must(admitted, asked("192.0.2.1", 2, "RRQ a")); evicted == nil || evicted.packet != "RRQ b" {
		t.Errorf("evicted %+v, want the oldest that never answered", evicted)
	}
	for e := s.silent.Front(); e != nil; e = s.silent.Front() {
		s.answered(e.Value.(*slot).t)
	}
	must(busy, asked("192.0.2.1", 3, "RRQ a"))
	must(admitted, asked("192.0.2.2", 3, "RRQ a"))

	// Invented addresses make room for each other and for everybody.
	addr := netip.MustParseAddr("198.51.100.0")
	for range 3 * maxTransfers {
		addr = addr.Next()
		must(admitted, asked(addr.String(), 7, "RRQ a"))
	}
	// One port of the first address has two transfers.
	if s.active() != maxTransfers || len(s.byPort) != maxTransfers-1 || s.silent.Len() != maxTransfers-maxPerClient {
		t.Errorf("%d active, %d ports, %d silent", s.active(), len(s.byPort), s.silent.Len())
	}
	if evicted := must(admitted, asked("192.0.2.3", 1, "RRQ a")); evicted == nil || evicted.client.Addr() == first.client.Addr() {
		t.Errorf("evicted %+v, want one that never answered", evicted)
	}
	if s.window() != manyWindow {
		t.Errorf("window %d while all slots are taken", s.window())
	}

	s.release(first)
	s.release(first)
	if s.active() != maxTransfers-1 {
		t.Errorf("%d active after a release", s.active())
	}
}
