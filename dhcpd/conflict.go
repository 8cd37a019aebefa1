package dhcpd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
)

// RFC 2131 §3.1 wants a server to probe an address before it offers it. An ARP
// probe (RFC 5227 §2.1.1) is answered even by hosts that answer no ping.

// DefaultProbeTime is long for a local network and short beside the seconds that
// firmware waits for an offer.
const DefaultProbeTime = 250 * time.Millisecond

const (
	probes = 2 // per address; one may get lost
	// maxProbing bounds the offers that wait for a probe. A flood of
	// strangers beyond it gets offers without: a client probes by itself too
	// (RFC 2131 §4.4.1) and declines.
	maxProbing = 512
)

// prober holds back the offers of addresses that are new to their client until
// nobody has answered for them.
type prober struct {
	conn    *packet.Conn // ARP
	ifindex int
	pause   time.Duration // between probes, and after the last

	mu     sync.Mutex
	own    boot.MAC
	asked  time.Time // when the kernel was asked for own
	flying map[netip.Addr]*flight
	queue  []*flight // by next
}

// flight is an address that is probed.
type flight struct {
	addr  netip.Addr
	offer Decision // the last one of its client
	req   *dhcpv4.DHCPv4
	left  int // probes to send
	next  time.Time
}

func newProber(link *net.Interface, wait time.Duration) (*prober, error) {
	if _, ok := boot.MACFrom(link.HardwareAddr); !ok {
		return nil, fmt.Errorf("probe addresses on %s: it is no Ethernet link", link.Name)
	}
	conn, err := packet.Listen(link, packet.Datagram, unix.ETH_P_ARP, nil)
	if err != nil {
		return nil, fmt.Errorf("ARP socket on %s: %w: DHCP needs root or CAP_NET_RAW", link.Name, err)
	}
	return &prober{conn: conn, ifindex: link.Index, pause: wait / probes, flying: map[netip.Addr]*flight{}}, nil
}

// hold keeps an offer back while its address is probed; false means that it
// must not wait. A client that asks again gets the answer to its last request.
func (p *prober) hold(offer Decision, req *dhcpv4.DHCPv4) bool {
	if p == nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.flying[offer.Probe]; f != nil {
		f.offer, f.req = offer, req
		return true
	}
	if len(p.flying) >= maxProbing {
		return false
	}
	f := &flight{addr: offer.Probe, offer: offer, req: req, left: probes}
	p.flying[f.addr] = f
	p.send(f)
	if len(p.queue) == 1 {
		p.conn.SetReadDeadline(f.next)
	}
	return true
}

// send sends a probe of the flight and queues what follows.
func (p *prober) send(f *flight) {
	// A bridge changes its MAC with its ports, and answers to the old one do
	// not arrive.
	if now := time.Now(); now.Sub(p.asked) > time.Second {
		if link, err := net.InterfaceByIndex(p.ifindex); err == nil && len(link.HardwareAddr) == len(p.own) {
			p.own, p.asked = boot.MAC(link.HardwareAddr), now
		}
	}
	// A probe that cannot be sent is one that nobody answers.
	_, _ = p.conn.WriteTo(arpProbe(p.own, f.addr), &packet.Addr{HardwareAddr: broadcastMAC})
	f.left--
	f.next = time.Now().Add(p.pause)
	p.queue = append(p.queue, f)
}

// land sends the probes that are due and returns the flights that nobody
// answered.
func (p *prober) land(now time.Time) (silent []*flight) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.queue) > 0 && !now.Before(p.queue[0].next) {
		f := p.queue[0]
		p.queue = p.queue[1:]
		switch {
		case p.flying[f.addr] != f: // it was answered
		case f.left > 0:
			p.send(f)
		default:
			delete(p.flying, f.addr)
			silent = append(silent, f)
		}
	}
	if len(p.queue) == 0 {
		p.queue = nil
		p.conn.SetReadDeadline(time.Time{})
	} else {
		p.conn.SetReadDeadline(p.queue[0].next)
	}
	return silent
}

// claimed takes the flight of an address that a station has; nil when it is not
// probed, or the station is the client itself.
func (p *prober) claimed(a netip.Addr, station boot.MAC) *flight {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.flying[a]
	if f == nil || station == p.own || station.String() == f.offer.Told.Machine {
		return nil
	}
	delete(p.flying, a)
	return f
}

// probe listens for those who answer probes, and lets offers go that nobody
// answered.
func (s *Server) probe(ctx context.Context) error {
	p := s.prober
	defer context.AfterFunc(ctx, func() { p.conn.Close() })()
	out := s.newSender()
	b := make([]byte, 128)
	for {
		n, _, err := p.conn.ReadFrom(b)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			if a, station, ok := arpClaim(b[:n]); ok {
				if f := p.claimed(a, station); f != nil {
					s.conflict(f, station, out)
				}
			}
		case errors.Is(err, unix.ENETDOWN): // until the link is up again
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("receive ARP on %s: %w", s.cfg.Interface, err)
		}
		for _, f := range p.land(time.Now()) {
			s.networks.holder(f.addr).silent(f.addr)
			out.add(f.offer)
		}
		out.flush()
	}
}

// conflict gives the client of a flight another address.
func (s *Server) conflict(f *flight, station boot.MAC, out replies) {
	now := s.cfg.Now()
	s.deciding.Lock()
	defer s.deciding.Unlock()
	d := s.networks.holder(f.addr).conflict(f.offer, station, now)
	s.note(d)
	if d.Commit == nil {
		out.add(f.offer)
		return
	}
	s.outbox.put(pending{Decision: d})
	again := s.networks.Decide(f.req, now)
	again.Asked.Stage = "" // it is told already
	s.pass(again, f.req, out)
}

// An ARP packet for IPv4 on Ethernet (RFC 826), without the Ethernet header.
const (
	arpLen     = 28
	arpRequest = 1
)

var arpHeader = [6]byte{0, 1, 8, 0, 6, 4} // Ethernet, IPv4, the lengths of both addresses

// arpProbe asks who has an address without claiming any (RFC 5227 §2.1.1).
func arpProbe(own boot.MAC, a netip.Addr) []byte {
	b := append(make([]byte, 0, arpLen), arpHeader[:]...)
	b = binary.BigEndian.AppendUint16(b, arpRequest)
	b = append(b, own[:]...)
	b = append(b, make([]byte, 4+6)...)
	return append(b, a.AsSlice()...)
}

// arpClaim reads who uses which address: the sender of any ARP packet, or of a
// probe the one who is about to (RFC 5227 §2.1.1).
func arpClaim(b []byte) (a netip.Addr, station boot.MAC, ok bool) {
	if len(b) < arpLen || [6]byte(b) != arpHeader {
		return a, station, false
	}
	station = boot.MAC(b[8:14])
	if a = addr(b[14:18]); a.IsUnspecified() {
		a = addr(b[24:28])
	}
	return a, station, true
}
