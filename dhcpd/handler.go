package dhcpd

import (
	"cmp"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/nuisance"
	"github.com/every-channel/ecboot/internal/timeline"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// offerTime is how long an address is held back for a client that compares
// offers. It may come later: its offer stands until somebody else needs the
// address.
const offerTime = 30 * time.Second

// Handler decides what the requests of one network are answered. It does no I/O
// and reads no clock; what it remembers are addresses and the boot programs it
// handed out. All methods may be called at the same time.
type Handler struct {
	cfg    Config
	prefix netip.Prefix // the network, with the address in it that is the server's or the relay's
	search []byte       // option 119
	routes []byte       // option 121

	mu      sync.Mutex
	table   *table
	chains  chains
	ipxe    recent[boot.MAC, struct{}]    // machines just seen as iPXE
	refused recent[boot.MAC, string]      // the last Bootfile.Why that was logged
	clients recent[boot.MAC, boot.Client] // what the firmware of known machines said
	heard   recent[netip.Addr, boot.MAC]  // addresses of other servers' clients
	inv     *boot.Inventory
	uuids   map[netip.Addr]string // of inv's machines, by reserved address
	kept    int                   // addresses of the pool that are kept for the machines of inv
	limit   clientLimit
	held    quarantine

	exhausted, barren, limited, cut, conflicts, declined, accusations nuisance.Counter
}

// makeHandler returns a Handler for cfg.Network that goes on with these leases.
// The configuration has its defaults.
func makeHandler(cfg Config, prefix netip.Prefix, leases []Lease) *Handler {
	table := newTable(prefix, cfg.Pool, leases)
	search, _ := boot.DomainList(cfg.Search) // checked with the configuration
	return &Handler{
		cfg:     cfg,
		prefix:  prefix,
		search:  search,
		routes:  encodeRoutes(cfg.Routes, cfg.Router),
		table:   table,
		limit:   newClientLimit(),
		held:    newQuarantine(table.size),
		chains:  chains{newRecent[boot.MAC, chain](bootLife)},
		ipxe:    newRecent[boot.MAC, struct{}](bootLife),
		refused: newRecent[boot.MAC, string](dayLife),
		clients: newRecent[boot.MAC, boot.Client](dayLife),
		heard:   newRecent[netip.Addr, boot.MAC](dayLife),
	}
}

// Decision is what follows from a request. The zero Decision is silence.
type Decision struct {
	// Reply is the answer; nil means to say nothing.
	Reply *Reply
	// Commit is a change of a lease. It must be durable before Reply leaves:
	// a client believes an ACK for as long as it says, whatever becomes of
	// the server.
	Commit *Lease
	// Probe is an address that Reply offers and that is new to its client:
	// Reply leaves only when nobody has answered for it. It is invalid
	// for most.
	Probe netip.Addr
	// Asked and Told are what the timeline says of the request and of the
	// reply once it is sent; an empty Stage means nothing.
	Asked, Told timeline.Event
	// Warn is a line for the log, empty for most.
	Warn string

	before Lease // of Commit's address, for networks.undo
}

// query is a request together with what is known about who sent it.
type query struct {
	*dhcpv4.DHCPv4
	now     time.Time
	mac     boot.MAC
	client  boot.Client
	known   bool // the machine is in the inventory
	machine boot.Machine
	profile boot.Profile
	fixed   netip.Addr    // the machine's reserved address; invalid when it has none
	lease   time.Duration // for which an address is offered or acknowledged
}

// options adapts decoded options to boot.Options.
type options dhcpv4.Options

func (o options) Get(code uint8) []byte { return o[code] }

// Decide decides what a request on port 67 is answered. Its giaddr is 0 or a
// relay that is trusted (networks.find). Requests that are none,
// or not for us, are met with silence: plain BOOTP (no option 53), other link
// types than Ethernet, replies, and machines that Config.AnswerUnknown leaves
// out.
func (h *Handler) Decide(req *dhcpv4.DHCPv4, now time.Time) Decision {
	h.mu.Lock()
	defer h.mu.Unlock()
	q := h.read(req, now)
	if q == nil {
		return Decision{}
	}
	if !h.limit.allow(q.mac, q.MessageType(), now) {
		d := Decision{}
		if n, say := h.limited.Note(now); say {
			d.Warn = fmt.Sprintf("%s asks more than %d times a second: the rest is not answered (so far %d requests of all clients)", q.mac, clientRate, n)
		}
		return d
	}
	d := h.answer(q)
	h.fit(&d, q)
	return d
}

func (h *Handler) answer(q *query) Decision {
	if h.cfg.Mode == ModeProxy {
		return h.proxy(q)
	}
	q.fixed = h.fixed(q.machine)
	switch q.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		return h.discover(q)
	case dhcpv4.MessageTypeRequest:
		return h.request(q)
	case dhcpv4.MessageTypeDecline:
		return h.decline(q)
	case dhcpv4.MessageTypeRelease:
		return h.release(q)
	case dhcpv4.MessageTypeInform:
		return h.inform(q)
	}
	return Decision{}
}

// read finds out who sent a request; nil when it is not to be answered.
func (h *Handler) read(req *dhcpv4.DHCPv4, now time.Time) *query {
	mac, ok := boot.MACFrom(req.ClientHWAddr)
	if !ok || mac == (boot.MAC{}) || mac[0]&1 != 0 || req.OpCode != dhcpv4.OpcodeBootRequest || req.HWType != iana.HWTypeEthernet {
		return nil
	}
	q := &query{DHCPv4: req, now: now, mac: mac, client: boot.Classify(mac, options(req.Options))}
	inv := h.inventory()
	seen, _ := h.clients.get(mac, now)
	holds := h.holds(q)
	// An operating system does not say its UUID. Its firmware has, and its
	// reserved address tells of it too.
	q.client.UUID = cmp.Or(q.client.UUID, seen.UUID)
	if holds {
		q.client.UUID = cmp.Or(q.client.UUID, h.uuids[q.address()])
	}
	q.machine, q.profile, q.known = inv.Lookup(q.client)
	switch {
	case q.known && q.client.Kind != boot.KindOS:
		h.clients.put(mac, q.client, now)
	case q.known && seen.UUID != "":
		h.clients.put(mac, seen, now)
	case !q.known && !h.cfg.AnswerUnknown && !holds:
		return nil
	}
	return q
}

// holds reports whether a request is about a lease that its client holds. Such a
// client is answered even if it is not known now, perhaps because only its
// firmware said its UUID: an ACK is a promise.
func (h *Handler) holds(q *query) bool {
	l, ok := h.table.last(q.mac)
	return ok && q.MessageType() != dhcpv4.MessageTypeDiscover && l.State == Bound && l.Live(q.now) && l.Addr == q.address()
}

// inventory returns the current inventory after making up for a change of it.
func (h *Handler) inventory() *boot.Inventory {
	inv := h.cfg.Inventory()
	if inv == h.inv {
		return inv
	}
	h.inv = inv
	reserved := map[netip.Addr]bool{}
	h.uuids = map[netip.Addr]string{}
	machines := 0
	for m := range inv.All() {
		if a := h.fixed(m); a.IsValid() {
			reserved[a] = true
			h.uuids[a] = m.UUID
		} else {
			machines++
		}
	}
	h.table.reserve(reserved)
	// A neighbour may decline some in a machine's name before it is no longer
	// believed.
	h.kept = min(machines*(1+maxAccused), h.table.size/4)
	return inv
}

// fixed returns a machine's reserved address, which is invalid when it has
// none, or one that is no host address of this segment.
func (h *Handler) fixed(m boot.Machine) netip.Addr {
	if m.Addr == "" {
		return netip.Addr{} // most machines; an error costs more
	}
	a, err := netip.ParseAddr(m.Addr)
	if err != nil || !assignable(a, h.prefix) {
		return netip.Addr{}
	}
	return a
}

// elsewhere reports whether an address is reserved for another machine.
func (h *Handler) elsewhere(q *query, a netip.Addr) bool { return h.table.reserved[a] && a != q.fixed }

// discover answers DHCPDISCOVER (RFC 2131 §4.3.1).
func (h *Handler) discover(q *query) Decision {
	d := Decision{Asked: q.event("discover", "")}
	a, ok := h.choose(q)
	if !ok {
		if _, say := h.exhausted.Note(q.now); say {
			d.Warn = fmt.Sprintf("no free address for %s: enlarge the pool or shorten the lease time", q.mac)
		}
		return d
	}
	q.lease = h.leaseTime(q, a)
	if h.cfg.ProbeTime > 0 && h.prefix == h.cfg.Server && !h.table.tried(a, q.mac) {
		d.Probe = a
	}
	if l, had := h.table.at(a); !had || l.MAC != q.mac || l.State != Bound || !l.Live(q.now) {
		h.table.set(Lease{Addr: a, MAC: q.mac, State: Offered, Expires: ceilSecond(q.now.Add(offerTime))})
	}
	h.grant(&d, q, dhcpv4.MessageTypeOffer, a)
	return d
}

// choose finds the address for a client in the order of RFC 2131 §4.3.1: the
// reserved one, the one it has or had, the one it asks for, any.
func (h *Handler) choose(q *query) (netip.Addr, bool) {
	if q.fixed.IsValid() && !h.table.taken(q.fixed, q.mac, q.now) {
		return q.fixed, true
	}
	last, ok := h.table.last(q.mac)
	ok = ok && h.table.pooled(last.Addr)
	if ok && last.Live(q.now) {
		return last.Addr, true
	}
	if !h.spare(q) {
		return netip.Addr{}, false
	}
	if ok {
		return last.Addr, true
	}
	if a := q.requested(); h.table.pooled(a) && h.table.room(a) && !h.table.taken(a, q.mac, q.now) {
		return a, true
	}
	return h.table.pick(q.now)
}

// spare reports whether the pool has an address for a client that has none. The
// last ones are kept for the machines of the inventory, so that strangers,
// whether real or made up, cannot keep these from booting.
func (h *Handler) spare(q *query) bool { return q.known || h.table.free(q.now) > h.kept }

// leaseTime is how long a client is given an address. A boot program has no use
// for it after some minutes, and the system that it boots asks again.
func (h *Handler) leaseTime(q *query, a netip.Addr) time.Duration {
	switch {
	case q.client.Kind == boot.KindOS || a == q.fixed:
		return h.cfg.LeaseTime
	case h.cfg.BootLeaseTime > 0:
		return h.cfg.BootLeaseTime
	case 4*h.table.free(q.now) < h.table.size:
		return min(h.cfg.LeaseTime, scarceLeaseTime)
	}
	return h.cfg.LeaseTime
}

// verdict is what we think of an address that a client wants to use.
type verdict uint8

const (
	unknown verdict = iota // it is free and nothing links the client to it
	right                  // it is the client's
	wrong                  // the client must not use it
)

// judge compares the address that a client wants with what we know. why
// explains a wrong one.
func (h *Handler) judge(q *query, a netip.Addr) (v verdict, why string) {
	switch {
	case !h.prefix.Contains(a):
		return wrong, "not on this segment"
	case h.elsewhere(q, a):
		return wrong, "reserved for another machine"
	case h.table.taken(a, q.mac, q.now):
		return wrong, "in use by another machine"
	case a == q.fixed:
		return right, ""
	case q.fixed.IsValid() && !h.table.taken(q.fixed, q.mac, q.now):
		return wrong, "another address is reserved for this machine"
	case !h.table.pooled(a):
		return wrong, "not an address of the pool"
	}
	last, ok := h.table.last(q.mac)
	switch {
	case ok && last.Addr == a && (last.Live(q.now) || h.spare(q)):
		return right, ""
	case ok && last.Addr != a && last.Live(q.now) && h.table.pooled(last.Addr):
		return wrong, "this machine has another address"
	case !h.spare(q) || !h.table.room(a):
		return wrong, "not free"
	}
	return unknown, ""
}

// request answers DHCPREQUEST. RFC 2131 §4.3.2 tells its four kinds apart by
// options 54 and 50 and by ciaddr:
//
//	SELECTING    54 set, 50 set, ciaddr 0
//	INIT-REBOOT  no 54,  50 set, ciaddr 0
//	RENEWING     no 54,  no 50,  ciaddr set, unicast
//	REBINDING    no 54,  no 50,  ciaddr set, broadcast
//
// The last two are answered alike.
func (h *Handler) request(q *query) Decision {
	a := q.address()
	d := Decision{Asked: q.event("request", a.String())}
	if a.IsUnspecified() {
		return d
	}
	server, selecting := q.server()
	if selecting && server != h.cfg.Server.Addr() {
		d.Asked.Detail = "for the server " + server.String()
		if l, ok := h.table.last(q.mac); ok && l.State == Offered {
			l.Expires = q.now
			h.table.set(l)
		}
		return d
	}
	switch v, why := h.judge(q, a); {
	case v == wrong:
		// RFC 2131 §4.3.2: INIT-REBOOT and REBINDING clients of which
		// there is no record belong to another server, which we MUST NOT
		// contradict unless there is none. An offer is no record: the
		// client may have taken another server's.
		last, ok := h.table.last(q.mac)
		known := ok && last.State == Bound && last.Live(q.now)
		if !selecting && !known && !h.cfg.Authoritative {
			return d
		}
		h.refuse(&d, q, a, why)
	case v == unknown && !selecting && !h.cfg.Authoritative:
		return d
	default:
		h.bind(&d, q, a)
	}
	return d
}

// bind leases the address and acknowledges it.
func (h *Handler) bind(d *Decision, q *query, a netip.Addr) {
	before, ok := h.table.at(a)
	if !ok || before.MAC != q.mac {
		before = Lease{Addr: a, MAC: q.mac, State: Offered, Expires: ceilSecond(q.now.Add(offerTime))}
	}
	q.lease = h.leaseTime(q, a)
	l := Lease{Addr: a, MAC: q.mac, State: Bound, Expires: ceilSecond(q.now.Add(q.lease))}
	h.table.set(l)
	d.Commit, d.before = &l, before
	h.grant(d, q, dhcpv4.MessageTypeAck, a)
}

// restore puts a lease back as it was.
func (h *Handler) restore(l Lease) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.table.set(l)
}

// decline takes an address out of use on which the client found somebody else
// (RFC 2131 §4.3.3). Only who has the address can do that, and not without end:
// then the address counts as given back.
func (h *Handler) decline(q *query) Decision {
	a := q.requested()
	d := Decision{Asked: q.event("decline", a.String())}
	l, ok := h.table.last(q.mac)
	if !ok || l.Addr != a || l.State != Bound || !q.forUs(h.cfg.Server.Addr()) {
		// Of no consequence, and so nothing that the timeline should tell
		// of a machine in whose name it may have been made up.
		return Decision{}
	}
	if h.held.admit(a, q.mac, q.now) {
		l.State, l.Expires = Declined, ceilSecond(q.now.Add(quarantineTime))
		if n, say := h.declined.Note(q.now); say {
			d.Warn = fmt.Sprintf("%s declined %s: somebody else uses this address; it is not given out for %s (so far %d)", q.mac, a, quarantineTime, n)
		}
	} else {
		l = l.released(q.now)
		d.Warn = h.accused(q.mac, "declines", q.now)
	}
	h.table.set(l)
	d.Commit = &l
	return d
}

// conflict puts an address into quarantine for which a station answered while
// it was being offered. The zero Decision means that the offer stands: its
// client has taken it already, or the station answers for everything.
func (h *Handler) conflict(offer Decision, station boot.MAC, now time.Time) (d Decision) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l, ok := h.table.at(offer.Probe)
	if !ok || l.State != Offered || l.MAC.String() != offer.Told.Machine {
		return d
	}
	if !h.held.admit(l.Addr, station, now) {
		d.Warn = h.accused(station, "answers for", now)
		return d
	}
	if n, say := h.conflicts.Note(now); say {
		d.Warn = fmt.Sprintf("%s is used by %s, which did not get it here: it is not given out for %s; exclude it from the pool if that is to stay (so far %d)", l.Addr, station, quarantineTime, n)
	}
	l.MAC, l.State, l.Expires = station, Conflict, ceilSecond(now.Add(quarantineTime))
	h.table.set(l)
	d.Commit = &l
	return d
}

// accused counts what quarantine does not admit, and returns the line for the
// log if it is time for one.
func (h *Handler) accused(station boot.MAC, does string, now time.Time) string {
	n, say := h.accusations.Note(now)
	if !say {
		return ""
	}
	return fmt.Sprintf("%s %s too many addresses, or too many are out of use: it is not believed any more (so far %d times)", station, does, n)
}

// silent notes that nobody answered for an address that is being offered.
func (h *Handler) silent(a netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e := h.table.entries[a]; e != nil {
		e.silent = true
	}
}

// release frees an address (RFC 2131 §4.3.4). The client gets it again later
// as long as nobody else needs it.
func (h *Handler) release(q *query) Decision {
	a := addr(q.ClientIPAddr)
	l, ok := h.table.last(q.mac)
	if !ok || l.Addr != a || l.State != Bound || !q.forUs(h.cfg.Server.Addr()) {
		return Decision{}
	}
	l = l.released(q.now)
	h.table.set(l)
	return Decision{Asked: q.event("release", a.String()), Commit: &l}
}

// free ends the lease of an address for its client.
func (h *Handler) free(a netip.Addr, now time.Time) (Decision, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l, ok := h.table.at(a)
	if !ok || l.State == Offered {
		return Decision{}, notLeased(a)
	}
	l = l.released(now)
	h.table.set(l)
	return Decision{Commit: &l}, nil
}

// inform answers a client that has an address by other means (RFC 2131
// §4.3.5). It must be of this segment: the answer goes there.
func (h *Handler) inform(q *query) Decision {
	a := addr(q.ClientIPAddr)
	d := Decision{Asked: q.event("inform", a.String())}
	if assignable(a, h.prefix) {
		h.grant(&d, q, dhcpv4.MessageTypeAck, netip.Addr{})
	}
	return d
}

// next decides what the client boots next, and remembers what it is given.
func (h *Handler) next(q *query) boot.Bootfile {
	if q.client.Kind == boot.KindIPXE {
		h.ipxe.put(q.mac, struct{}{}, q.now)
		q.client.Loaded = h.chains.loaded(q.mac, q.TransactionID, q.now)
	}
	file := boot.NextStage(q.client, q.machine, q.profile)
	if n := len(h.location(file)); file.Via == boot.ViaTFTP && n > maxFile || n > maxOption {
		return boot.Bootfile{Why: fmt.Sprintf("its boot file name has %d bytes, more than a DHCP reply can hold", n)}
	}
	if file.Via == boot.ViaTFTP || file.Via == boot.ViaHTTP && q.client.Kind != boot.KindIPXE {
		h.chains.handedOut(q.mac, q.TransactionID, q.now)
	}
	return file
}

// Who returns the MAC of the machine to which an address is offered or leased
// at this time, or which asked another server for it; ok is false when there is
// none.
func (h *Handler) Who(a netip.Addr, now time.Time) (mac boot.MAC, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	a = a.Unmap()
	if h.cfg.Mode == ModeProxy {
		return h.heard.get(a, now)
	}
	l, ok := h.table.at(a)
	if !ok || l.State.quarantined() || !l.Live(now) {
		return boot.MAC{}, false
	}
	return l.MAC, true
}

// Client returns what the firmware or iPXE of a machine of the inventory said of
// itself when it asked last, in the last day; ok is false when it did not.
func (h *Handler) Client(mac boot.MAC, now time.Time) (c boot.Client, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.clients.get(mac, now)
}

// SeenIPXE reports whether a machine asked as iPXE in the last few minutes.
func (h *Handler) SeenIPXE(mac boot.MAC, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.ipxe.get(mac, now)
	return ok
}

// leases returns everything but offers, sorted by address.
func (h *Handler) leases() []Lease {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := map[netip.Addr]Lease{}
	for a, e := range h.table.entries {
		if e.State != Offered {
			m[a] = e.Lease
		}
	}
	return sortedLeases(m)
}

// event is what the timeline says of this message.
func (q *query) event(message, detail string) timeline.Event {
	return timeline.Event{At: q.now, Machine: q.mac.String(), Stage: timeline.DHCP(q.client.Kind.String(), message), Detail: detail}
}

// requested returns option 50, 0.0.0.0 when it is absent.
func (q *query) requested() netip.Addr { return addr(q.Options.Get(dhcpv4.OptionRequestedIPAddress)) }

// address returns the address that a REQUEST is about: option 50 or ciaddr.
func (q *query) address() netip.Addr {
	if a := q.requested(); !a.IsUnspecified() {
		return a
	}
	return addr(q.ClientIPAddr)
}

// server returns option 54; ok is false when it is absent.
func (q *query) server() (a netip.Addr, ok bool) {
	b := q.Options.Get(dhcpv4.OptionServerIdentifier)
	return addr(b), len(b) == 4
}

// forUs reports whether a message that should name its server names us or
// nobody.
func (q *query) forUs(us netip.Addr) bool {
	server, named := q.server()
	return !named || server == us
}

// addr makes an address of four bytes, 0.0.0.0 of anything else.
func addr(b []byte) netip.Addr {
	if len(b) != 4 {
		return netip.IPv4Unspecified()
	}
	return netip.AddrFrom4([4]byte(b))
}

// ceilSecond rounds up to what a lease file holds, so that a lease does not end
// there before it ends for the client.
func ceilSecond(t time.Time) time.Time {
	return t.UTC().Add(time.Second - 1).Truncate(time.Second)
}
