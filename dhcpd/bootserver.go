package dhcpd

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/net/ipv4"
)

// bootPort is where a PXE client that has its address asks for its boot file
// (PXE 2.1 §2.2.4).
const bootPort = 4011

// DecideBoot decides what a request on port 4011 is answered that came from
// this address: a client's REQUEST for its boot file. UEFI firmware sends it to
// a server whose offer said PXEClient without option 43. The answer has to come
// from port 4011 too, and goes to where the request came from.
func (h *Handler) DecideBoot(req *dhcpv4.DHCPv4, from netip.Addr, now time.Time) Decision {
	h.mu.Lock()
	defer h.mu.Unlock()
	// Only to addresses of ours: a source is easily forged.
	if req.MessageType() != dhcpv4.MessageTypeRequest || !assignable(from, h.prefix) {
		return Decision{}
	}
	q := h.read(req, now)
	if q == nil || !h.limit.allow(q.mac, q.MessageType(), now) || q.client.Kind == boot.KindOS || !q.forUs(h.cfg.Server.Addr()) {
		return Decision{}
	}
	if h.cfg.Mode == ModeProxy {
		h.heard.put(from, q.mac, now)
	}
	d := h.point(q, dhcpv4.MessageTypeAck, q.event("request", from.String()+" on port 4011"))
	if d.Reply != nil {
		d.Reply.Packet.ClientIPAddr = q.ClientIPAddr
		d.Reply.Way, d.Reply.To = ToClient, from
		h.fit(&d, q)
	}
	return d
}

// receiveBoot answers on port 4011. No lease comes of it, so nothing waits for
// the disk.
func (s *Server) receiveBoot(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { s.boot.SetReadDeadline(time.Unix(1, 0)) })()
	out := s.newSender()
	cm := &ipv4.ControlMessage{Src: s.cfg.Server.Addr().AsSlice(), IfIndex: s.ifindex}
	buf := make([]byte, maxPacket)
	for {
		n, _, peer, err := s.boot.ReadFrom(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive on UDP port %d of %s: %w", bootPort, s.cfg.Interface, err)
		}
		now := s.cfg.Now()
		req := s.decode(buf[:n], now)
		if req == nil {
			continue
		}
		d := s.networks.DecideBoot(req, peer.(*net.UDPAddr).AddrPort().Addr().Unmap(), now)
		s.note(d)
		if d.Reply != nil {
			_, err := s.boot.WriteTo(d.Reply.Packet.ToBytes(), cm, peer)
			out.sent(d, err)
		}
	}
}
