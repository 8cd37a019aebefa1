// Package dhcpd is a DHCPv4 server that boots machines (RFC 2131, RFC 4578),
// and a router advertiser that ends iPXE's wait for IPv6. Handler decides
// without any I/O; Server is the sockets around it, and LeaseStore keeps what
// was promised.
package dhcpd

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/nuisance"
	"github.com/every-channel/ecboot/internal/timeline"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/mdlayher/packet"
	"golang.org/x/net/ipv4"
	"golang.org/x/sync/errgroup"
)

// A batch is what waits in the socket when the server comes back to it.
const (
	maxBatch  = 64
	maxPacket = 4096 // bytes; more than any client sends
)

// pace lets work gather when there is much of it: waking up for every packet and
// syncing for every lease costs more than the packets and the leases do. What
// comes after a pause of this length is not delayed.
type pace struct {
	pause time.Duration
	last  time.Time
}

// wait waits until a pause has passed since it last returned.
func (p *pace) wait() {
	now := time.Now()
	if rest := p.pause - now.Sub(p.last); rest > 0 {
		time.Sleep(rest)
		now = time.Now()
	}
	p.last = now
}

const (
	receivePause = time.Millisecond
	commitPause  = 2 * time.Millisecond
)

// Server answers DHCP requests on one interface. Requests are decided one after
// the other as they arrive. What promises nothing is answered at once; what
// promises a lease waits in the outbox until the lease is durable, and does not
// keep the next requests waiting.
type Server struct {
	cfg      Config
	networks *networks
	udp      *ipv4.PacketConn
	boot     *ipv4.PacketConn // port 4011
	raw      *packet.Conn
	ifindex  int
	ready    chan struct{}

	// deciding is held from a decision until it is in the outbox, so that
	// what is decided on top of a lease always comes after it.
	deciding sync.Mutex
	outbox   *outbox
	watch    *watch  // in ModeServer
	prober   *prober // nil when addresses are not probed

	malformed, storeFailed, sendFailed nuisance.Counter
}

// New opens the sockets of a server.
func New(cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	s := newServer(cfg)
	link, err := net.InterfaceByName(cfg.Interface)
	if err != nil {
		return nil, fmt.Errorf("DHCP on %s: no such network interface", cfg.Interface)
	}
	s.ifindex = link.Index
	if err := s.listen(link); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *Server) listen(link *net.Interface) (err error) {
	if s.udp, err = listenUDP(link.Name, serverPort); err != nil {
		return err
	}
	if s.boot, err = listenUDP(link.Name, bootPort); err != nil {
		return err
	}
	if s.raw, err = listenRaw(link); err != nil {
		return err
	}
	if s.cfg.Mode == ModeServer {
		if s.watch, err = newWatch(link); err != nil {
			return err
		}
	}
	if s.cfg.ProbeTime > 0 && s.cfg.Mode == ModeServer {
		s.prober, err = newProber(link, s.cfg.ProbeTime)
	}
	return err
}

// close closes the sockets that are open.
func (s *Server) close() {
	if s.udp != nil {
		s.udp.Close()
	}
	if s.boot != nil {
		s.boot.Close()
	}
	if s.raw != nil {
		s.raw.Close()
	}
	if s.watch != nil {
		s.watch.conn.Close()
	}
	if s.prober != nil {
		s.prober.conn.Close()
	}
}

func newServer(cfg Config) *Server {
	return &Server{cfg: cfg, networks: newNetworks(cfg, cfg.Store.Leases()), ready: make(chan struct{}), outbox: newOutbox()}
}

// String names the server.
func (s *Server) String() string { return "DHCP on " + s.cfg.Interface }

// Ready is closed when the server answers.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run serves until ctx is done, then closes the sockets. What has been received
// by then is still answered.
func (s *Server) Run(ctx context.Context) error {
	defer s.close()
	var committing sync.WaitGroup
	committing.Go(s.commit)
	defer committing.Wait()
	defer s.outbox.close()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.receive(ctx) })
	group.Go(func() error { return s.receiveBoot(ctx) })
	if s.watch != nil {
		group.Go(func() error { return s.watchOthers(ctx) })
	}
	if s.prober != nil {
		group.Go(func() error { return s.probe(ctx) })
	}
	close(s.ready)
	return group.Wait()
}

// receive decides what arrives on port 67, batch by batch.
func (s *Server) receive(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { s.udp.SetReadDeadline(time.Unix(1, 0)) })()
	msgs := make([]ipv4.Message, maxBatch)
	for i := range msgs {
		msgs[i].Buffers = [][]byte{make([]byte, maxPacket)}
	}
	out := s.newSender()
	gather := pace{pause: receivePause}
	for n := 0; ; {
		if n < maxBatch {
			gather.wait()
		}
		s.outbox.awaitRoom()
		var err error
		n, err = s.udp.ReadBatch(msgs, 0)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive on UDP port %d of %s: %w", serverPort, s.cfg.Interface, err)
		}
		s.deciding.Lock()
		for _, m := range msgs[:n] {
			s.decide(m.Buffers[0][:m.N], out)
		}
		s.deciding.Unlock()
		out.flush()
	}
}

// decide runs the handler on one packet. The caller holds deciding. The reply
// goes to out, or to the outbox if it promises a lease.
func (s *Server) decide(b []byte, out replies) {
	now := s.cfg.Now()
	req := s.decode(b, now)
	if req == nil {
		return
	}
	s.overhear(req)
	s.pass(s.networks.Decide(req, now), req, out)
}

// pass passes a decision on to where it waits, or to out.
func (s *Server) pass(d Decision, req *dhcpv4.DHCPv4, out replies) {
	s.note(d)
	switch {
	case d.Commit != nil:
		s.outbox.put(pending{Decision: d})
	case d.Reply == nil:
	case d.Probe.IsValid() && s.prober.hold(d, req):
	default:
		out.add(d)
	}
}

// decode returns nil for what is no DHCP message.
func (s *Server) decode(b []byte, now time.Time) *dhcpv4.DHCPv4 {
	req, err := decode(b)
	if err == nil {
		return req
	}
	if n, say := s.malformed.Note(now); say {
		s.cfg.Logger.Warn("malformed DHCP packet", "error", err, "bytes", len(b), "so far", n)
	}
	return nil
}

// note tells the timeline and the log of what was asked.
func (s *Server) note(d Decision) {
	s.record(d.Asked)
	if d.Warn != "" {
		s.cfg.Logger.Warn(d.Warn)
	}
}

// replies takes decisions that may be sent.
type replies interface{ add(Decision) }

func (s *Server) record(e timeline.Event) {
	if e.Stage != "" {
		s.cfg.Timeline.Record(e)
	}
}

// Who returns the MAC of the machine to which an address is leased or offered,
// empty when there is none.
func (s *Server) Who(a netip.Addr) string {
	if mac, ok := s.networks.Who(a, s.cfg.Now()); ok {
		return mac.String()
	}
	return ""
}

// Client returns what the firmware or iPXE of a machine of the inventory said of
// itself when it asked last; only its MAC when nothing is remembered.
func (s *Server) Client(mac boot.MAC) boot.Client { return s.networks.Client(mac, s.cfg.Now()) }

// SeenIPXE reports whether a machine asked for an address as iPXE in the last
// five minutes.
func (s *Server) SeenIPXE(mac boot.MAC) bool { return s.networks.SeenIPXE(mac, s.cfg.Now()) }

// Leases returns the last state of each address that was ever leased, sorted
// by address. Offers are not among them.
func (s *Server) Leases() []Lease { return s.networks.leases() }

// Counters is how often something happened, since the start, that should not.
type Counters struct {
	Malformed    uint64 // packets that are no DHCP messages
	StrangeRelay uint64 // requests that came through a relay of no network of ours
	Others       uint64 // packets that speak of other DHCP servers
	Limited      uint64 // requests of clients that ask too often
	Exhausted    uint64 // requests for which no address was free
	NoBootfile   uint64 // machines for which there was no boot file
	Cut          uint64 // replies that had no room for all options
	Conflicts    uint64 // addresses on which somebody was found before they were offered
	Declined     uint64 // addresses on which their client found somebody
	Accusations  uint64 // conflicts and declines of stations that find somebody everywhere
	StoreFailed  uint64 // times that leases could not be stored
	SendFailed   uint64 // replies that the kernel did not take
}

// Counters returns the counters of this moment.
func (s *Server) Counters() Counters {
	c := Counters{
		Malformed:    s.malformed.Total(),
		StrangeRelay: s.networks.strange.Total(),
		StoreFailed:  s.storeFailed.Total(),
		SendFailed:   s.sendFailed.Total(),
	}
	if s.watch != nil {
		c.Others = s.watch.frames.Total()
	}
	for _, h := range s.networks.handlers {
		c.Limited += h.limited.Total()
		c.Exhausted += h.exhausted.Total()
		c.NoBootfile += h.barren.Total()
		c.Cut += h.cut.Total()
		c.Conflicts += h.conflicts.Total()
		c.Declined += h.declined.Total()
		c.Accusations += h.accusations.Total()
	}
	return c
}
