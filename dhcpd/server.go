// Package dhcpd is a DHCPv4 server that boots machines (RFC 2131, RFC 4578),
// and a router advertiser that ends iPXE's wait for IPv6. Handler decides
// without any I/O; Server is the sockets around it, and LeaseStore keeps what
// was promised.
package dhcpd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/timeline"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// A batch is what waits in the socket when the server comes back to it. Its
// leases share one write to disk.
const (
	maxBatch  = 64
	maxPacket = 4096 // bytes; more than any client sends
)

// Server answers DHCP requests on one interface.
type Server struct {
	cfg     Config
	handler *Handler
	udp     *ipv4.PacketConn
	raw     *packet.Conn
	ifindex int
	ready   chan struct{}

	malformed atomic.Uint64
	// Of the receive loop.
	sayMalformed, sayStore, saySend limiter
}

// New opens the sockets of a server.
func New(cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	h, err := NewHandler(cfg, cfg.Store.Leases())
	if err != nil {
		return nil, err
	}
	s := newServer(cfg, h)
	link, err := net.InterfaceByName(cfg.Interface)
	if err != nil {
		return nil, fmt.Errorf("DHCP on %s: no such network interface", cfg.Interface)
	}
	s.ifindex = link.Index
	if s.udp, err = listenUDP(link.Name); err != nil {
		return nil, err
	}
	if s.raw, err = listenRaw(link); err != nil {
		s.udp.Close()
		return nil, err
	}
	return s, nil
}

func newServer(cfg Config, h *Handler) *Server {
	return &Server{cfg: cfg, handler: h, ready: make(chan struct{}),
		sayMalformed: limiter{pause: logPause}, sayStore: limiter{pause: logPause}, saySend: limiter{pause: logPause}}
}

// listenUDP opens port 67 on one interface. It is not bound to the server's
// address: such a socket gets no broadcast, and so no DISCOVER.
func listenUDP(ifname string) (*ipv4.PacketConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), ifname) }); cerr != nil {
			return cerr
		}
		return err
	}}
	conn, err := lc.ListenPacket(context.Background(), "udp4", fmt.Sprintf(":%d", serverPort))
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("UDP port %d on %s is taken: another DHCP server runs here; 'ss -lunp sport = :%[1]d' shows it", serverPort, ifname)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return nil, fmt.Errorf("UDP port %d on %s: %w: run as root", serverPort, ifname, err)
	case err != nil:
		return nil, fmt.Errorf("UDP port %d on %s: %w", serverPort, ifname, err)
	}
	// A rack that comes back from a power cut asks all at once.
	conn.(*net.UDPConn).SetReadBuffer(1 << 20)
	return ipv4.NewPacketConn(conn), nil
}

// listenRaw opens the socket for frames to clients without an address. The
// kernel writes the Ethernet header, so a bridge that changes its MAC with its
// ports is no trouble. The filter keeps received packets away.
func listenRaw(link *net.Interface) (*packet.Conn, error) {
	nothing, err := bpf.Assemble([]bpf.Instruction{bpf.RetConstant{Val: 0}})
	if err != nil {
		return nil, err
	}
	raw, err := packet.Listen(link, packet.Datagram, unix.ETH_P_IP, &packet.Config{Filter: nothing})
	if err != nil {
		return nil, fmt.Errorf("packet socket on %s: %w: DHCP needs root or CAP_NET_RAW", link.Name, err)
	}
	return raw, nil
}

// String names the server.
func (s *Server) String() string { return "DHCP on " + s.cfg.Interface }

// Ready is closed when the server answers.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run serves until ctx is done, then closes the sockets. What has been received
// by then is still answered.
func (s *Server) Run(ctx context.Context) error {
	defer s.udp.Close()
	defer s.raw.Close()
	defer context.AfterFunc(ctx, func() { s.udp.SetReadDeadline(time.Unix(1, 0)) })()
	close(s.ready)
	msgs := make([]ipv4.Message, maxBatch)
	for i := range msgs {
		msgs[i].Buffers = [][]byte{make([]byte, maxPacket)}
	}
	packets := make([][]byte, 0, maxBatch)
	for {
		n, err := s.udp.ReadBatch(msgs, 0)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive on UDP port %d of %s: %w", serverPort, s.cfg.Interface, err)
		}
		packets = packets[:0]
		for _, m := range msgs[:n] {
			packets = append(packets, m.Buffers[0][:m.N])
		}
		for _, d := range s.decide(packets) {
			s.send(d)
		}
	}
}

// decide runs the handler on a batch of packets and makes the leases durable
// with one write. It returns the decisions whose reply may be sent now.
func (s *Server) decide(packets [][]byte) []Decision {
	decisions := make([]Decision, 0, len(packets))
	var commits []Lease
	for _, b := range packets {
		now := s.cfg.Now()
		req, err := dhcpv4.FromBytes(b)
		if err != nil {
			n := s.malformed.Add(1)
			if s.sayMalformed.allow(now) {
				s.cfg.Logger.Warn("malformed DHCP packet", "error", err, "bytes", len(b), "so far", n)
			}
			continue
		}
		d := s.handler.Decide(req, now)
		s.record(d.Asked)
		if d.Warn != "" {
			s.cfg.Logger.Warn(d.Warn)
		}
		if d.Commit != nil {
			commits = append(commits, *d.Commit)
		}
		if d.Commit != nil || d.Reply != nil {
			decisions = append(decisions, d)
		}
	}
	stored := true
	if len(commits) > 0 {
		if err := s.cfg.Store.Append(commits); err != nil {
			stored = false
			s.handler.undo(decisions)
			if s.sayStore.allow(s.cfg.Now()) {
				s.cfg.Logger.Error("leases cannot be stored, so none are given", "error", err)
			}
		}
	}
	replies := decisions[:0]
	for _, d := range decisions {
		if d.Reply != nil && (stored || d.Commit == nil) {
			replies = append(replies, d)
		}
	}
	return replies
}

func (s *Server) send(d Decision) {
	b := d.Reply.Packet.ToBytes()
	var err error
	switch d.Reply.Way {
	case ToRelay:
		err = s.sendUDP(b, d.Reply.To, serverPort)
	case ToClient:
		err = s.sendUDP(b, d.Reply.To, clientPort)
	case ToHardware:
		err = s.sendRaw(b, d.Reply.To, d.Reply.Packet.ClientHWAddr)
	case ToAll:
		err = s.sendRaw(b, d.Reply.To, net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	}
	if err != nil {
		if s.saySend.allow(s.cfg.Now()) {
			s.cfg.Logger.Warn("a DHCP reply could not be sent", "to", d.Told.Machine, "error", err)
		}
		return
	}
	d.Told.At = s.cfg.Now()
	s.record(d.Told)
}

// sendUDP names its source: an interface that others own may have several
// addresses, and clients compare the source with option 54.
func (s *Server) sendUDP(b []byte, to netip.Addr, port int) error {
	cm := &ipv4.ControlMessage{Src: s.cfg.Server.Addr().AsSlice(), IfIndex: s.ifindex}
	_, err := s.udp.WriteTo(b, cm, &net.UDPAddr{IP: to.AsSlice(), Port: port})
	return err
}

func (s *Server) sendRaw(b []byte, to netip.Addr, hw net.HardwareAddr) error {
	_, err := s.raw.WriteTo(datagram(s.cfg.Server.Addr(), to, b), &packet.Addr{HardwareAddr: hw})
	return err
}

func (s *Server) record(e timeline.Event) {
	if e.Stage != "" {
		s.cfg.Timeline.Record(e)
	}
}

// Who returns the MAC of the machine to which an address is leased or offered,
// empty when there is none.
func (s *Server) Who(a netip.Addr) string {
	if mac, ok := s.handler.Who(a, s.cfg.Now()); ok {
		return mac.String()
	}
	return ""
}

// SeenIPXE reports whether a machine asked for an address as iPXE in the last
// five minutes.
func (s *Server) SeenIPXE(mac boot.MAC) bool { return s.handler.SeenIPXE(mac, s.cfg.Now()) }

// Leases returns the last state of each address that was ever leased, sorted
// by address. Offers are not among them.
func (s *Server) Leases() []Lease { return s.handler.leases() }

// Malformed returns how many packets were no DHCP messages.
func (s *Server) Malformed() uint64 { return s.malformed.Load() }
