package dhcpd

import (
	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/timeline"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Mode is what a server gives to its clients.
type Mode uint8

const (
	// ModeServer gives addresses and boot files.
	ModeServer Mode = iota
	// ModeProxy gives boot files beside another server, which gives the
	// addresses (proxyDHCP, PXE 2.1 §2.2). It has no lease to give and so
	// nothing to say to an operating system.
	ModeProxy
)

// proxy answers on port 67 beside the server that gives the addresses. A client
// collects the offers of both, takes the address out of one and the boot file
// out of the other. Its REQUEST is for the server of the address; it is for us
// only when it says so.
func (h *Handler) proxy(q *query) Decision {
	switch q.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		if q.client.Kind != boot.KindOS {
			return h.point(q, dhcpv4.MessageTypeOffer, q.event("discover", ""))
		}
	case dhcpv4.MessageTypeRequest:
		if server, _ := q.server(); server == h.cfg.Server.Addr() {
			return h.point(q, dhcpv4.MessageTypeAck, q.event("request", ""))
		}
		a := q.address()
		if assignable(a, h.prefix) {
			// Whether it gets the address is not known, but most do.
			h.heard.put(a, q.mac, q.now)
		}
		return Decision{Asked: q.event("request", a.String()+" of another server")}
	}
	return Decision{}
}

// point makes the OFFER or ACK that names a boot file and gives no address. A
// machine for which there is no boot file is met with silence: it goes on to
// whatever it boots next.
func (h *Handler) point(q *query, mt dhcpv4.MessageType, asked timeline.Event) Decision {
	d := Decision{Asked: asked}
	file := h.next(q)
	if file.Via == boot.ViaNothing {
		h.explain(&d, &d.Asked, q, file)
		return d
	}
	p := h.reply(q, mt)
	h.bootfile(p, q, file)
	d.Reply = &Reply{Packet: p, Way: ToAll, To: everybody}
	switch relay, ciaddr := addr(q.GatewayIPAddr), addr(q.ClientIPAddr); {
	case !relay.IsUnspecified():
		d.Reply.Way, d.Reply.To = ToRelay, relay
	case mt == dhcpv4.MessageTypeAck && assignable(ciaddr, h.prefix):
		p.ClientIPAddr = q.ClientIPAddr
		d.Reply.Way, d.Reply.To = ToClient, ciaddr
	default:
		// The client has no address, and no other is known by which to
		// reach it.
		p.SetBroadcast()
	}
	d.Told = q.event(messageName(mt), "")
	h.explain(&d, &d.Told, q, file)
	return d
}
