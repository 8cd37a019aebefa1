package dhcpd

import (
	"container/list"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

// maxRemembered bounds what is remembered of machines, so that a station which
// makes up MACs cannot make the server grow.
const maxRemembered = 4096

// recent remembers a value per machine, or per address, for a limited time after
// it was put.
type recent[K comparable, V any] struct {
	life time.Duration
	m    map[K]*list.Element // of order
	// What was put last comes last.
	order *list.List // of *remembered[K, V]
}

type remembered[K comparable, V any] struct {
	key   K
	value V
	until time.Time
}

func newRecent[K comparable, V any](life time.Duration) recent[K, V] {
	return recent[K, V]{life: life, m: map[K]*list.Element{}, order: list.New()}
}

func (r *recent[K, V]) get(key K, now time.Time) (v V, ok bool) {
	e := r.m[key]
	if e == nil {
		return v, false
	}
	known := e.Value.(*remembered[K, V])
	if !now.Before(known.until) {
		return v, false
	}
	return known.value, true
}

func (r *recent[K, V]) put(key K, v V, now time.Time) {
	e := r.m[key]
	switch {
	case e != nil:
		r.order.MoveToBack(e)
	case len(r.m) < maxRemembered:
		e = r.order.PushBack(&remembered[K, V]{})
	default:
		e = r.order.Front()
		delete(r.m, e.Value.(*remembered[K, V]).key)
		r.order.MoveToBack(e)
	}
	r.m[key] = e
	*e.Value.(*remembered[K, V]) = remembered[K, V]{key, v, now.Add(r.life)}
}

// dayLife is for what is worth knowing of a machine after its boot.
const dayLife = 24 * time.Hour

// bootLife is how long after a boot program was handed out the next iPXE of
// that machine is taken for this program. A slow NIC on a slow network loads an
// NBP in well under a minute.
const bootLife = 5 * time.Minute

// chain is one machine's way through its boot programs. The exchanges of a
// machine are told apart by their transaction ids: DISCOVER and REQUEST of one
// program share theirs, the program that it loads draws a new one.
type chain struct {
	given    dhcpv4.TransactionID // in which a boot program was handed out
	asked    dhcpv4.TransactionID // in which that program asked, once it has
	hasAsked bool
}

// chains remembers to whom a boot program was handed out, so that the iPXE that
// was loaded is told from the iPXE in the ROM that loaded it (boot.Client.Loaded).
type chains struct{ recent[boot.MAC, chain] }

// loaded reports whether the iPXE that asks with xid is the one that we handed
// out. The same xid gives the same answer every time. A third xid is a machine
// that boots anew.
func (c *chains) loaded(mac boot.MAC, xid dhcpv4.TransactionID, now time.Time) bool {
	last, ok := c.get(mac, now)
	switch {
	case !ok || xid == last.given:
		return false
	case last.hasAsked:
		return xid == last.asked
	}
	last.asked, last.hasAsked = xid, true
	c.put(mac, last, now)
	return true
}

// handedOut remembers that a boot program was given in this exchange.
func (c *chains) handedOut(mac boot.MAC, xid dhcpv4.TransactionID, now time.Time) {
	if last, ok := c.get(mac, now); ok && last.given == xid {
		return
	}
	c.put(mac, chain{given: xid}, now)
}
