package dhcpd

import (
	"hash/maphash"
	"net/netip"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

// How often one client may ask. A machine that boots sends some ten requests
// within seconds; only what loops sends more than this.
const (
	clientBurst = 128
	clientRate  = 64 // per second
)

// clientLimit keeps token buckets per MAC in tables that never grow: one for
// what asks for an address, one for what gives it back. A neighbour who gives
// back in the name of a machine must not use up what the machine asks with. Two
// MACs that share a place take it from each other, which makes the limit looser
// and never stricter; the places differ from start to start, so nobody can
// choose to share one.
type clientLimit struct {
	seed          maphash.Seed
	asks, returns [4096]bucket
}

func newClientLimit() clientLimit { return clientLimit{seed: maphash.MakeSeed()} }

type bucket struct {
	mac    boot.MAC
	tokens float32
	filled time.Time
}

// allow takes a token of a client, and reports whether there was one.
func (l *clientLimit) allow(mac boot.MAC, mt dhcpv4.MessageType, now time.Time) bool {
	table := &l.asks
	if mt == dhcpv4.MessageTypeRelease || mt == dhcpv4.MessageTypeDecline {
		table = &l.returns
	}
	b := &table[maphash.Comparable(l.seed, mac)%uint64(len(table))]
	if b.mac != mac {
		*b = bucket{mac: mac, tokens: clientBurst, filled: now}
	}
	if passed := now.Sub(b.filled); passed > 0 {
		b.tokens = min(clientBurst, b.tokens+float32(passed.Seconds())*clientRate)
		b.filled = now
	}
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// quarantineTime is how long an address stays unused on which somebody else was
// found.
const quarantineTime = 10 * time.Minute

// maxAccused is how many addresses one station can have put into quarantine at a
// time, by declining them or by answering for them. One that answers for more
// is a proxy for ARP, one that declines more is broken or hostile.
const maxAccused = 4

// quarantine bounds the addresses out of use, so that nobody empties the pool by
// calling all of it taken.
type quarantine struct {
	max  int // addresses at a time
	held []accusation
}

type accusation struct {
	addr    netip.Addr
	station boot.MAC // that declined it or answered for it
	until   time.Time
}

func newQuarantine(addresses int) quarantine {
	return quarantine{max: min(max(maxAccused, addresses/8), 1024)}
}

// admit reports whether an address may be put into quarantine because of a
// station, and counts it if so.
func (q *quarantine) admit(a netip.Addr, station boot.MAC, now time.Time) bool {
	for len(q.held) > 0 && !now.Before(q.held[0].until) {
		q.held = q.held[1:]
	}
	accused := 0
	for _, h := range q.held {
		if h.station == station {
			accused++
		}
	}
	if accused >= maxAccused || len(q.held) >= q.max {
		return false
	}
	q.held = append(q.held, accusation{a, station, now.Add(quarantineTime)})
	return true
}
