package dhcpd

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/nuisance"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Subnet is a network that is not on the server's interface: a relay agent
// there passes requests on.
type Subnet struct {
	Relay netip.Prefix // the relay's address there, with the network's prefix length
	Network
}

// networks are the handlers of all networks that a server serves. A request is
// one network's matter, and networks share nothing.
type networks struct {
	handlers []*Handler       // the interface's own first
	strange  nuisance.Counter // relays that are not of any network
}

// newNetworks divides the leases among the networks. Those of no network, left
// from another configuration, stay with the first.
func newNetworks(cfg Config, leases []Lease) *networks {
	all := append([]Subnet{{cfg.Server, cfg.Network}}, cfg.Relayed...)
	parts := make([][]Lease, len(all))
	for _, l := range leases {
		i := max(0, slices.IndexFunc(all, func(s Subnet) bool { return s.Relay.Contains(l.Addr) }))
		parts[i] = append(parts[i], l)
	}
	n := &networks{}
	for i, s := range all {
		one := cfg
		one.Network = s.Network
		n.handlers = append(n.handlers, makeHandler(one, s.Relay, parts[i]))
	}
	return n
}

// at returns the handler of an address; ok is false when it is in no network.
func (n *networks) at(a netip.Addr) (h *Handler, ok bool) {
	i := slices.IndexFunc(n.handlers, func(h *Handler) bool { return h.prefix.Contains(a) })
	if i < 0 {
		return nil, false
	}
	return n.handlers[i], true
}

// holder returns the handler that holds the lease of an address.
func (n *networks) holder(a netip.Addr) *Handler {
	if h, ok := n.at(a); ok {
		return h
	}
	return n.handlers[0]
}

// find returns the handler of the network that a request is from: by giaddr, or
// by the network that the relay selects instead (RFC 3527, RFC 3011); without a
// relay by ciaddr, because machines of all networks renew by unicast. ok is
// false when the relay is of none of our networks: whoever could choose any
// giaddr could aim our replies at strangers, so they never leave the networks
// that were declared.
func (n *networks) find(req *dhcpv4.DHCPv4) (h *Handler, ok bool) {
	relay := addr(req.GatewayIPAddr)
	if relay.IsUnspecified() {
		if req.MessageType() == dhcpv4.MessageTypeDiscover {
			return n.handlers[0], true
		}
		return n.holder(addr(req.ClientIPAddr)), true
	}
	if h, ok = n.at(relay); !ok || !h.mayRelay(relay) {
		return nil, false
	}
	if link := selectedLink(req); !link.IsUnspecified() {
		return n.at(link)
	}
	return h, true
}

// mayRelay reports whether a relay of the network can have this address: the one
// that the configuration names, or any of a host that is not ourselves.
func (h *Handler) mayRelay(a netip.Addr) bool {
	return assignable(a, h.prefix) || a == h.prefix.Addr() && a != h.cfg.Server.Addr()
}

// selectedLink returns the network for which a relay asks instead of that of
// its giaddr, 0.0.0.0 when it does not: sub-option 5 of option 82 (RFC 3527), or
// option 118 (RFC 3011).
func selectedLink(req *dhcpv4.DHCPv4) netip.Addr {
	const linkSelection = 5
	for b := req.Options.Get(dhcpv4.OptionRelayAgentInformation); len(b) >= 2 && len(b) >= 2+int(b[1]); b = b[2+int(b[1]):] {
		if b[0] == linkSelection {
			return addr(b[2 : 2+int(b[1])])
		}
	}
	return addr(req.Options.Get(dhcpv4.OptionSubnetSelection))
}

// Decide decides what a request on port 67 is answered.
func (n *networks) Decide(req *dhcpv4.DHCPv4, now time.Time) Decision {
	h, ok := n.find(req)
	if ok {
		return h.Decide(req, now)
	}
	d := Decision{}
	if count, say := n.strange.Note(now); say {
		d.Warn = fmt.Sprintf("requests through the relay %s are for no network that is served here, and are not answered (so far %d)", req.GatewayIPAddr, count)
	}
	return d
}

// DecideBoot decides what a request on port 4011 is answered that came from this
// address.
func (n *networks) DecideBoot(req *dhcpv4.DHCPv4, from netip.Addr, now time.Time) Decision {
	h, ok := n.at(from)
	if !ok {
		return Decision{}
	}
	return h.DecideBoot(req, from, now)
}

// undo takes back leases that could not be stored: no ACK left for them.
func (n *networks) undo(group []pending) {
	for _, d := range slices.Backward(group) {
		if d.Commit != nil && d.Commit.State == Bound {
			n.holder(d.Commit.Addr).restore(d.before)
		}
	}
}

func (n *networks) free(a netip.Addr, now time.Time) (Decision, error) {
	return n.holder(a).free(a, now)
}

func (n *networks) Who(a netip.Addr, now time.Time) (mac boot.MAC, ok bool) {
	return n.holder(a.Unmap()).Who(a, now)
}

func (n *networks) Client(mac boot.MAC, now time.Time) boot.Client {
	for _, h := range n.handlers {
		if c, ok := h.Client(mac, now); ok {
			return c
		}
	}
	return boot.Client{MAC: mac}
}

func (n *networks) SeenIPXE(mac boot.MAC, now time.Time) bool {
	return slices.ContainsFunc(n.handlers, func(h *Handler) bool { return h.SeenIPXE(mac, now) })
}

// leases returns everything but offers, sorted by address.
func (n *networks) leases() []Lease {
	var all []Lease
	for _, h := range n.handlers {
		all = append(all, h.leases()...)
	}
	slices.SortFunc(all, func(a, b Lease) int { return a.Addr.Compare(b.Addr) })
	return all
}
