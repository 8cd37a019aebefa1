package tftpd

import (
	"container/list"
	"net/netip"
	"sync"
)

// Transfers at once, each with a socket and a file; and of one address, which
// may be a relay's or a test's with many clients behind it.
const (
	maxTransfers = 1024
	maxPerClient = 128
)

// Windows offered while few transfers run, and when they are many: a window
// takes three times its size in memory.
const (
	fewTransfers = 64
	manyWindow   = 16
)

// slots bounds the transfers. When all are taken, a new client gets the slot of
// the one that has been silent longest since its request, as invented
// addresses are for ever.
type slots struct {
	mu     sync.Mutex
	byPort map[netip.AddrPort]*slot // the newest of each
	held   map[netip.Addr]int
	total  int
	silent list.List // of *slot, oldest first: nothing came after their request
}

func newSlots() slots {
	return slots{byPort: map[netip.AddrPort]*slot{}, held: map[netip.Addr]int{}}
}

// slot is a transfer's place.
type slot struct {
	t       *transfer
	silence *list.Element // in silent, nil once the client has answered
	gone    bool
}

// admission is what becomes of a request.
type admission uint8

const (
	admitted admission = iota
	repeated           // its transfer has just begun, and repeats itself
	busy
)

// admit gives a transfer a slot, and returns whose slot it took, or nil.
func (s *slots) admit(t *transfer) (a admission, evicted *transfer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.byPort[t.client]; old != nil && old.silence != nil && old.t.packet == t.packet {
		return repeated, nil
	}
	switch addr := t.client.Addr(); {
	case s.held[addr] >= maxPerClient:
		evicted = s.evict(func(t *transfer) bool { return t.client.Addr() == addr })
	case s.total >= maxTransfers:
		evicted = s.evict(func(*transfer) bool { return true })
	}
	if s.held[t.client.Addr()] >= maxPerClient || s.total >= maxTransfers {
		return busy, evicted
	}
	t.slot = &slot{t: t}
	t.slot.silence = s.silent.PushBack(t.slot)
	s.byPort[t.client] = t.slot
	s.held[t.client.Addr()]++
	s.total++
	return admitted, evicted
}

func (s *slots) evict(eligible func(*transfer) bool) *transfer {
	for e := s.silent.Front(); e != nil; e = e.Next() {
		if slot := e.Value.(*slot); eligible(slot.t) {
			s.remove(slot)
			return slot.t
		}
	}
	return nil
}

// answered keeps a transfer from being evicted.
func (s *slots) answered(t *transfer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hear(t.slot)
}

func (s *slots) hear(slot *slot) {
	if slot.silence != nil {
		s.silent.Remove(slot.silence)
		slot.silence = nil
	}
}

// release gives a slot back.
func (s *slots) release(t *transfer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(t.slot)
}

func (s *slots) remove(slot *slot) {
	if slot.gone {
		return
	}
	slot.gone = true
	s.hear(slot)
	s.total--
	if addr := slot.t.client.Addr(); s.held[addr] > 1 {
		s.held[addr]--
	} else {
		delete(s.held, addr)
	}
	if s.byPort[slot.t.client] == slot {
		delete(s.byPort, slot.t.client)
	}
}

// window is the largest window that a new transfer may have, in blocks.
func (s *slots) window() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.total > fewTransfers {
		return manyWindow
	}
	return maxPackets
}

func (s *slots) active() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}
