package dhcpd

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
)

// State is what became of an address.
type State string

// The states of a lease. An offer lives in memory only: RFC 2131 §3.1 lets a
// server forget it.
const (
	Offered  State = "offered"  // held back for a client that has not taken it yet
	Bound    State = "bound"    // acknowledged
	Released State = "released" // given back by the client
	Declined State = "declined" // its client found somebody else on it
	Conflict State = "conflict" // somebody, the lease's MAC, answered a probe of it
)

// quarantined reports whether nobody at all gets the address until it expires.
func (s State) quarantined() bool { return s == Declined || s == Conflict }

// Lease is the last thing that happened to one address. Until Expires nobody
// but its owner gets the address, and one in quarantine nobody at all. Afterwards
// its last owner still gets it again as long as nobody else needs it.
type Lease struct {
	Addr    netip.Addr `json:"addr"`
	MAC     boot.MAC   `json:"mac"`
	State   State      `json:"state"`
	Expires time.Time  `json:"expires"` // whole seconds, UTC
}

// Live reports whether the address is kept from others at this time.
func (l Lease) Live(now time.Time) bool { return now.Before(l.Expires) }

// released is the lease after it was given back.
func (l Lease) released(now time.Time) Lease {
	l.State, l.Expires = Released, now.UTC().Truncate(time.Second)
	return l
}

// LeaseStore keeps leases for the next start of the server. One goroutine of
// the server calls it.
type LeaseStore interface {
	// Leases returns the last state of each address, sorted by address.
	Leases() []Lease
	// Append stores changes, the last of an address being the one that
	// counts. When it returns nil they are durable; otherwise none of them
	// is stored.
	Append([]Lease) error
}

// MemoryStore is a LeaseStore that forgets everything when the process ends.
type MemoryStore struct {
	mu     sync.Mutex
	leases map[netip.Addr]Lease
}

// NewMemoryStore returns an empty store.
func NewMemoryStore() *MemoryStore {
	return &MemoryStore{leases: map[netip.Addr]Lease{}}
}

// Leases implements LeaseStore.
func (s *MemoryStore) Leases() []Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sortedLeases(s.leases)
}

// Append implements LeaseStore. It never fails.
func (s *MemoryStore) Append(batch []Lease) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range batch {
		s.leases[l.Addr] = l
	}
	return nil
}

func notLeased(a netip.Addr) error {
	return fmt.Errorf("%s is not leased: 'ecboot lease list' shows what is", a)
}

func sortedLeases(m map[netip.Addr]Lease) []Lease {
	return slices.SortedFunc(maps.Values(m), func(a, b Lease) int {
		return a.Addr.Compare(b.Addr)
	})
}
