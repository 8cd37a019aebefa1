package dhcpd

import (
	"container/heap"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
)

// Range is the addresses from First to Last, both included.
type Range struct{ First, Last netip.Addr }

func (r Range) contains(a netip.Addr) bool {
	return r.First.IsValid() && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

// Pool says which addresses are given to machines that have none reserved. The
// zero Pool is empty.
type Pool struct {
	Range
	Exclude []Range
}

// check says what is wrong with the pool of a server, if anything.
func (p Pool) check(server netip.Prefix) error {
	if p.Range == (Range{}) {
		return nil
	}
	if !server.Contains(p.First) || !server.Contains(p.Last) || p.Last.Less(p.First) {
		return fmt.Errorf("the pool %s-%s is no range within %s", p.First, p.Last, server.Masked())
	}
	return nil
}

// size is how many addresses a pool has for its server to give.
func (p Pool) size(server netip.Prefix) int {
	if !p.First.IsValid() {
		return 0
	}
	out := slices.Clone(p.Exclude)
	for _, a := range []netip.Addr{server.Addr(), server.Masked().Addr(), broadcast(server)} {
		if !assignable(a, server) {
			out = append(out, Range{a, a})
		}
	}
	slices.SortFunc(out, func(a, b Range) int { return a.First.Compare(b.First) })
	n := uint64(0)
	next, last := number(p.First), number(p.Last)
	for _, r := range out {
		if first := number(r.First); first > next {
			n += min(first, last+1) - next
		}
		next = max(next, min(number(r.Last), last)+1)
	}
	return int(n + last + 1 - next)
}

func number(a netip.Addr) uint64 {
	b := a.As4()
	return uint64(binary.BigEndian.Uint32(b[:]))
}

// assignable reports whether a host of the segment may have this address: not
// the server's, the network's or the broadcast address.
func assignable(a netip.Addr, server netip.Prefix) bool {
	return server.Contains(a) && a != server.Addr() &&
		(server.Bits() >= 31 || a != server.Masked().Addr() && a != broadcast(server))
}

// broadcast is the address of a prefix with all host bits set.
func broadcast(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// maxEntries bounds what a table knows: some 64 MB. A pool of more addresses is
// used up to here.
const maxEntries = 1 << 18

// table knows what every address of the segment was last used for. A machine
// without history gets the first address that was never used, and only when
// there is none left the one that has been free for longest: so addresses stay
// with their machines for as long as possible, and a fresh segment fills up in
// an order that people can follow.
type table struct {
	server netip.Prefix
	pool   Pool
	size   int // addresses that the pool can give to anybody
	// reserved addresses are no part of the pool.
	reserved map[netip.Addr]bool
	entries  map[netip.Addr]*entry
	owner    map[boot.MAC]netip.Addr // the address that a machine had last
	// Every usable address below next has an entry or is reserved.
	next netip.Addr
	// The pool's entries: those that were live when advance last looked, and
	// the others.
	live, spent expiryQueue
}

type entry struct {
	Lease
	silent bool // nobody answered when it was probed for its client
	queue  *expiryQueue
	index  int
}

func newTable(server netip.Prefix, pool Pool, leases []Lease) *table {
	t := &table{server: server, pool: pool, size: pool.size(server), next: pool.First,
		entries: map[netip.Addr]*entry{}, owner: map[boot.MAC]netip.Addr{}}
	// If a machine had several addresses, the one it had last is its own.
	for _, l := range slices.SortedFunc(slices.Values(leases), func(a, b Lease) int { return a.Expires.Compare(b.Expires) }) {
		t.set(l)
	}
	return t
}

// reserve takes addresses out of the pool, in place of those that were reserved
// before.
func (t *table) reserve(reserved map[netip.Addr]bool) {
	t.reserved, t.next, t.size = nil, t.pool.First, t.pool.size(t.server)
	for a := range reserved {
		if t.pooled(a) {
			t.size--
		}
	}
	t.reserved, t.live, t.spent = reserved, nil, nil
	for _, e := range t.entries {
		e.queue = nil
		if t.pooled(e.Addr) {
			t.live.put(e)
		}
	}
}

// pooled reports whether the pool may give the address to anybody.
func (t *table) pooled(a netip.Addr) bool {
	return t.pool.contains(a) && assignable(a, t.server) && !t.reserved[a] &&
		!slices.ContainsFunc(t.pool.Exclude, func(r Range) bool { return r.contains(a) })
}

// set records what happened to an address.
func (t *table) set(l Lease) {
	e := t.entries[l.Addr]
	if e == nil {
		e = &entry{}
		t.entries[l.Addr] = e
	} else if t.owner[e.MAC] == l.Addr {
		delete(t.owner, e.MAC)
	}
	e.silent = e.silent && e.MAC == l.MAC
	e.Lease = l
	if !l.State.quarantined() {
		t.owner[l.MAC] = l.Addr
	}
	if t.pooled(l.Addr) {
		t.live.put(e)
	}
}

// advance moves what has expired since it last looked.
func (t *table) advance(now time.Time) {
	for len(t.live) > 0 && !t.live[0].Live(now) {
		t.spent.put(t.live[0])
	}
}

// free is how many addresses of the pool nobody has at this time.
func (t *table) free(now time.Time) int {
	t.advance(now)
	return t.size - len(t.live)
}

// last returns the lease that a machine has or had; ok is false when it never
// had one or has lost it to somebody else.
func (t *table) last(mac boot.MAC) (l Lease, ok bool) {
	addr, ok := t.owner[mac]
	if !ok {
		return Lease{}, false
	}
	return t.entries[addr].Lease, true
}

// at returns what an address was last used for.
func (t *table) at(a netip.Addr) (l Lease, ok bool) {
	e := t.entries[a]
	if e == nil {
		return Lease{}, false
	}
	return e.Lease, true
}

// taken reports whether somebody other than mac has the address now.
func (t *table) taken(a netip.Addr, mac boot.MAC, now time.Time) bool {
	e := t.entries[a]
	return e != nil && e.Live(now) && (e.MAC != mac || e.State.quarantined())
}

// tried reports whether an address needs no probe for a machine: it has had the
// address, or nobody answered when it was offered before.
func (t *table) tried(a netip.Addr, mac boot.MAC) bool {
	e := t.entries[a]
	return e != nil && e.MAC == mac && !e.State.quarantined() && (e.State != Offered || e.silent)
}

// room reports whether the table can hold an entry of this address.
func (t *table) room(a netip.Addr) bool { return len(t.entries) < maxEntries || t.entries[a] != nil }

// pick finds a free address for a machine that has none; ok is false when the
// pool is exhausted.
func (t *table) pick(now time.Time) (a netip.Addr, ok bool) {
	for ; t.next.IsValid() && t.next.Compare(t.pool.Last) <= 0 && len(t.entries) < maxEntries; t.next = t.next.Next() {
		if t.entries[t.next] == nil && t.pooled(t.next) {
			return t.next, true
		}
	}
	t.advance(now)
	if len(t.spent) == 0 {
		return netip.Addr{}, false
	}
	return t.spent[0].Addr, true
}

// expiryQueue is a heap.Interface, the earliest expiry first.
type expiryQueue []*entry

// put moves an entry to where it belongs in this queue.
func (q *expiryQueue) put(e *entry) {
	if e.queue == q {
		heap.Fix(q, e.index)
		return
	}
	if e.queue != nil {
		heap.Remove(e.queue, e.index)
	}
	heap.Push(q, e)
}

func (q expiryQueue) Len() int           { return len(q) }
func (q expiryQueue) Less(i, j int) bool { return q[i].Expires.Before(q[j].Expires) }
func (q expiryQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *expiryQueue) Push(x any) {
	e := x.(*entry)
	e.queue, e.index = q, len(*q)
	*q = append(*q, e)
}

func (q *expiryQueue) Pop() any {
	old := *q
	e := old[len(old)-1]
	old[len(old)-1] = nil
	e.queue = nil
	*q = old[:len(old)-1]
	return e
}
