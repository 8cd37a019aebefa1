package dhcpd

import (
	"container/heap"
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

// table knows what every address of the segment was last used for. A machine
// without history gets the first address that was never used, and only when
// there is none left the one that has been free for longest: so addresses stay
// with their machines for as long as possible, and a fresh segment fills up in
// an order that people can follow.
type table struct {
	server  netip.Prefix
	pool    Pool
	entries map[netip.Addr]*entry
	owner   map[boot.MAC]netip.Addr // the address that a machine had last
	// Every usable address below next has an entry or is reserved.
	next  netip.Addr
	queue expiryQueue // the pool's entries
}

type entry struct {
	Lease
	index int // in the queue; -1 when it is not there
}

func newTable(server netip.Prefix, pool Pool, leases []Lease) *table {
	t := &table{server: server, pool: pool, next: pool.First,
		entries: map[netip.Addr]*entry{}, owner: map[boot.MAC]netip.Addr{}}
	// If a machine had several addresses, the one it had last is its own.
	for _, l := range slices.SortedFunc(slices.Values(leases), func(a, b Lease) int { return a.Expires.Compare(b.Expires) }) {
		t.set(l)
	}
	return t
}

// pooled reports whether the pool may give the address to anybody.
func (t *table) pooled(a netip.Addr) bool {
	return t.pool.contains(a) && assignable(a, t.server) &&
		!slices.ContainsFunc(t.pool.Exclude, func(r Range) bool { return r.contains(a) })
}

// set records what happened to an address.
func (t *table) set(l Lease) {
	e := t.entries[l.Addr]
	if e == nil {
		e = &entry{index: -1}
		t.entries[l.Addr] = e
	} else if t.owner[e.MAC] == l.Addr {
		delete(t.owner, e.MAC)
	}
	e.Lease = l
	if l.State != Declined {
		t.owner[l.MAC] = l.Addr
	}
	if !t.pooled(l.Addr) {
		return
	}
	if e.index < 0 {
		heap.Push(&t.queue, e)
	} else {
		heap.Fix(&t.queue, e.index)
	}
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
	return e != nil && e.Live(now) && (e.MAC != mac || e.State == Declined)
}

// pick finds a free address for a machine that has none; ok is false when the
// pool is exhausted. Addresses for which reserved is true are left alone.
func (t *table) pick(now time.Time, reserved func(netip.Addr) bool) (a netip.Addr, ok bool) {
	for ; t.next.IsValid() && t.next.Compare(t.pool.Last) <= 0; t.next = t.next.Next() {
		if t.entries[t.next] == nil && t.pooled(t.next) && !reserved(t.next) {
			return t.next, true
		}
	}
	var skipped []*entry
	for !ok && len(t.queue) > 0 && !t.queue[0].Live(now) {
		if e := t.queue[0]; reserved(e.Addr) {
			skipped = append(skipped, heap.Pop(&t.queue).(*entry))
		} else {
			a, ok = e.Addr, true
		}
	}
	for _, e := range skipped {
		heap.Push(&t.queue, e)
	}
	return a, ok
}

// rewind makes pick look at every address again; needed when an address is no
// longer reserved.
func (t *table) rewind() { t.next = t.pool.First }

// expiryQueue is a heap.Interface, the earliest expiry first.
type expiryQueue []*entry

func (q expiryQueue) Len() int           { return len(q) }
func (q expiryQueue) Less(i, j int) bool { return q[i].Expires.Before(q[j].Expires) }
func (q expiryQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *expiryQueue) Push(x any) {
	e := x.(*entry)
	e.index = len(*q)
	*q = append(*q, e)
}

func (q *expiryQueue) Pop() any {
	old := *q
	e := old[len(old)-1]
	old[len(old)-1] = nil
	e.index = -1
	*q = old[:len(old)-1]
	return e
}
