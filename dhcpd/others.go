package dhcpd

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/nuisance"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Other is a DHCP server that is not ours.
type Other struct {
	Addr    netip.Addr // its identifier, option 54
	MAC     boot.MAC   // of the station that sent for it, which may be a relay; zero when only a client named it
	Offered netip.Addr // an address that it gave to somebody; invalid when it gave none
}

// String names the server as messages do.
func (o Other) String() string {
	if o.MAC == (boot.MAC{}) {
		return o.Addr.String()
	}
	return o.Addr.String() + " (" + o.MAC.String() + ")"
}

// How long FindOthers listens. Servers ping an address before they offer it,
// dnsmasq for three seconds.
const (
	findTime    = 4 * time.Second
	findPause   = time.Second            // between DISCOVERs: one may be lost, or come before a port forwards
	findSettled = 500 * time.Millisecond // after the first answer, for others that are as fast
)

// FindOthers looks for DHCP servers that give out addresses on an interface's
// network: it asks as a machine that nobody knows, and takes nothing of what it
// is offered. Without any it takes four seconds; proxies, which give no
// addresses, are not found, nor are servers that answer only whom they know.
func FindOthers(ctx context.Context, ifname string) ([]Other, error) {
	link, err := net.InterfaceByName(ifname)
	if err != nil {
		return nil, fmt.Errorf("look for DHCP servers on %s: no such network interface", ifname)
	}
	if len(link.HardwareAddr) != len(boot.MAC{}) {
		return nil, fmt.Errorf("look for DHCP servers on %s: it is no Ethernet interface", ifname)
	}
	conn, err := listenOthers(link)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	now := time.Now()
	ask := newProbe(link.HardwareAddr)
	var found []Other
	buf := make([]byte, maxPacket)
	for end, next := now.Add(findTime), now; now.Before(end); now = time.Now() {
		if !now.Before(next) {
			if _, err := conn.WriteTo(ask.frame, &packet.Addr{HardwareAddr: broadcastMAC}); err != nil {
				return found, fmt.Errorf("look for DHCP servers on %s: %w", ifname, err)
			}
			next = now.Add(findPause)
		}
		conn.SetReadDeadline(next)
		stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
		n, _, err := conn.ReadFrom(buf)
		stop()
		switch {
		case ctx.Err() != nil:
			return found, ctx.Err()
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue
		case err != nil:
			return found, fmt.Errorf("look for DHCP servers on %s: %w", ifname, err)
		}
		o, reply, ok := parseOther(buf[:n])
		if ok && reply.TransactionID == ask.xid && reply.MessageType() == dhcpv4.MessageTypeOffer && !slices.ContainsFunc(found, o.same) {
			found = append(found, o)
			end = time.Now().Add(findSettled)
			next = end
		}
	}
	return found, nil
}

// same reports whether it is the same server, whatever it offered.
func (o Other) same(p Other) bool { return o.Addr == p.Addr && o.MAC == p.MAC }

// probe is a DISCOVER of a machine that does not exist.
type probe struct {
	xid   dhcpv4.TransactionID
	frame []byte
}

// newProbe makes up the machine. The frame itself is from the interface's own
// address: bridges learn nothing from it, and switches that allow one address
// per port see no second one. The broadcast flag brings the answers to all.
func newProbe(own net.HardwareAddr) probe {
	var p probe
	mac := boot.MAC{0x02} // locally administered
	rand.Read(p.xid[:])
	rand.Read(mac[1:])
	m := &dhcpv4.DHCPv4{
		OpCode: dhcpv4.OpcodeBootRequest, HWType: iana.HWTypeEthernet, TransactionID: p.xid,
		ClientHWAddr: mac.HardwareAddr(), Options: dhcpv4.Options{},
	}
	m.SetBroadcast()
	m.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeDiscover))
	set(m, dhcpv4.OptionParameterRequestList, []byte{1, 3})
	p.frame = slices.Concat(broadcastMAC, own, []byte{0x08, 0x00}, datagram(netip.AddrPortFrom(netip.IPv4Unspecified(), clientPort), netip.AddrPortFrom(everybody, serverPort), m.ToBytes()))
	return p
}

// listenOthers opens a socket for what DHCP servers elsewhere send to clients.
func listenOthers(link *net.Interface) (*packet.Conn, error) {
	filter, err := bpf.Assemble(fromServers)
	if err != nil {
		return nil, err
	}
	conn, err := packet.Listen(link, packet.Raw, unix.ETH_P_IP, &packet.Config{Filter: filter})
	if err != nil {
		return nil, fmt.Errorf("packet socket on %s: %w: DHCP needs root or CAP_NET_RAW", link.Name, err)
	}
	return conn, nil
}

// fromServers lets through frames that have come in from UDP port 67 to port 68:
// none at all on a network where we are the only server, so watching it costs
// nothing.
var fromServers = []bpf.Instruction{
	bpf.LoadExtension{Num: bpf.ExtType},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.PACKET_OUTGOING, SkipTrue: 8}, // our own
	bpf.LoadAbsolute{Off: ethernetHeaderLen + 9, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protocolUDP, SkipTrue: 6},
	bpf.LoadAbsolute{Off: ethernetHeaderLen + 6, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x1fff, SkipTrue: 4}, // not the first fragment
	bpf.LoadMemShift{Off: ethernetHeaderLen},
	bpf.LoadIndirect{Off: ethernetHeaderLen, Size: 4}, // both ports
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: serverPort<<16 | clientPort, SkipTrue: 1},
	bpf.RetConstant{Val: maxPacket},
	bpf.RetConstant{Val: 0},
}

const ethernetHeaderLen = 14

// parseOther reads the reply of a DHCP server out of a frame that fromServers
// let through. ok is false when it is none, or gives nobody an address, as that
// of a proxy.
func parseOther(frame []byte) (o Other, reply *dhcpv4.DHCPv4, ok bool) {
	if len(frame) < ethernetHeaderLen+ipv4HeaderLen {
		return o, nil, false
	}
	ip := frame[ethernetHeaderLen:]
	headers := int(ip[0]&0xf)*4 + udpHeaderLen
	total := int(binary.BigEndian.Uint16(ip[2:]))
	if headers < ipv4HeaderLen+udpHeaderLen || total < headers || len(ip) < total {
		return o, nil, false
	}
	reply, err := decode(ip[headers:total])
	if err != nil || reply.OpCode != dhcpv4.OpcodeBootReply {
		return o, nil, false
	}
	o.Addr = addr(reply.Options.Get(dhcpv4.OptionServerIdentifier))
	if o.Addr.IsUnspecified() {
		o.Addr = addr(ip[12:16])
	}
	copy(o.MAC[:], frame[6:12])
	switch reply.MessageType() {
	case dhcpv4.MessageTypeOffer, dhcpv4.MessageTypeAck:
		o.Offered = addr(reply.YourIPAddr)
		return o, reply, !o.Offered.IsUnspecified()
	case dhcpv4.MessageTypeNak:
		return o, reply, true
	}
	return o, nil, false
}

// maxOthers bounds the servers that are told apart: anybody can make some up.
const maxOthers = 64

// watch keeps the DHCP servers that appear while ours serves.
type watch struct {
	conn   *packet.Conn
	frames nuisance.Counter // and requests that speak of another server
	lines  nuisance.Counter // in the log

	mu    sync.Mutex
	known map[Other]bool // without Offered; whether the log has it
}

func newWatch(link *net.Interface) (*watch, error) {
	conn, err := listenOthers(link)
	if err != nil {
		return nil, err
	}
	return &watch{conn: conn, known: map[Other]bool{}}, nil
}

// note remembers a server. first means that it was not known, say that the log
// should have it now.
func (w *watch) note(o Other, now time.Time) (first, say bool) {
	w.frames.Note(now)
	w.mu.Lock()
	defer w.mu.Unlock()
	o.Offered = netip.Addr{}
	logged, known := w.known[o]
	if !known && len(w.known) >= maxOthers {
		return false, false
	}
	if !logged {
		_, say = w.lines.Note(now)
	}
	w.known[o] = logged || say
	return !known, say
}

// watchOthers reports servers whose replies to clients come by, until ctx is
// done.
func (s *Server) watchOthers(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { s.watch.conn.SetReadDeadline(time.Unix(1, 0)) })()
	buf := make([]byte, maxPacket)
	for {
		n, _, err := s.watch.conn.ReadFrom(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENETDOWN): // until the link is up again
			continue
		case err != nil:
			return fmt.Errorf("watch for DHCP servers on %s: %w", s.cfg.Interface, err)
		}
		if o, _, ok := parseOther(buf[:n]); ok {
			s.report(o)
		}
	}
}

// overhear reports the server that a client has chosen instead of ours: what
// servers send to one client, a switch does not let us see.
func (s *Server) overhear(req *dhcpv4.DHCPv4) {
	if s.watch == nil || req.MessageType() != dhcpv4.MessageTypeRequest || !addr(req.GatewayIPAddr).IsUnspecified() {
		return
	}
	if server := addr(req.Options.Get(dhcpv4.OptionServerIdentifier)); !server.IsUnspecified() {
		s.report(Other{Addr: server, Offered: addr(req.Options.Get(dhcpv4.OptionRequestedIPAddress))})
	}
}

func (s *Server) report(o Other) {
	if o.Addr == s.cfg.Server.Addr() {
		return // chosen by a client, or sent on by a relay on this very network
	}
	first, say := s.watch.note(o, s.cfg.Now())
	if say {
		s.cfg.Logger.Warn("another DHCP server gives out addresses here", "server", o, "on", s.cfg.Interface)
	}
	if first && s.cfg.OnOther != nil {
		s.cfg.OnOther(o)
	}
}
