// Package tftpd is a read-only TFTP server (RFC 1350; the options blksize, tsize
// and timeout, RFC 2347–2349; windowsize, RFC 7440) that hands boot programs out
// of an fs.FS. It reads and judges every request itself. Those without options
// are pin/tftp's to serve, the others a loop's, and the timeline is told what
// became of them.
package tftpd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/internal/timeline"
)

// DefaultPort is where clients expect a TFTP server.
const DefaultPort = 69

// Config is what a Server needs to know. Addr is required; the zero value of
// everything else is useful.
type Config struct {
	Addr      netip.Addr // IPv4 address to serve on, and the source of all answers
	Interface string     // serve on this link only; empty: wherever Addr is reached
	Port      uint16     // 0 means DefaultPort

	// Files returns what the client at an address may fetch; nil, from either,
	// serves nothing. Names are checked before they reach the fs.FS, symbolic
	// links are not: for a directory use os.Root, which keeps them inside.
	// An error with a method Optional that returns true is no failure: boot
	// programs ask for many files in case they are there.
	Files func(client netip.Addr) fs.FS
	// Allow says which addresses are answered; nil answers all.
	Allow func(netip.Addr) bool
	// MTU of the link in bytes; 0 asks the interface that has Addr.
	MTU int

	// Who names the machine that has an address, by its MAC; "" if unknown.
	// The timeline then has the address instead. nil knows nobody.
	Who      func(netip.Addr) string
	Timeline *timeline.Recorder
	Logger   *slog.Logger
}

// maxRequest is the longest request that is read whole, in bytes; RFC 2347
// ends at 512.
const maxRequest = 1024

// requestBuffer is the room for requests that wait, in bytes as the kernel
// counts them, about a thousand each.
const requestBuffer = 4 << 20

// maxLoops is how many cores are used at the most.
const maxLoops = 4

// Server answers read requests on one address.
type Server struct {
	cfg      Config
	conn     *net.UDPConn
	lockstep *lockstep // nil: this process may not send raw packets
	loops    []*loop
	ready    chan struct{}
	ctx      context.Context // of all transfers
	end      context.CancelCauseFunc

	slots     slots
	transfers sync.WaitGroup
	count     counters
}

// New binds the socket of a server.
func New(cfg Config) (*Server, error) {
	if !cfg.Addr.Is4() || cfg.Addr.IsUnspecified() {
		return nil, fmt.Errorf("TFTP on %s: give the IPv4 address to serve on, such as 10.77.0.1", cfg.Addr)
	}
	if cfg.Files == nil {
		cfg.Files = func(netip.Addr) fs.FS { return nil }
	}
	if cfg.Port == 0 {
		cfg.Port = DefaultPort
	}
	if cfg.Who == nil {
		cfg.Who = func(netip.Addr) string { return "" }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.MTU == 0 {
		mtu, err := linkMTU(cfg.Interface, cfg.Addr)
		if err != nil {
			return nil, err
		}
		cfg.MTU = mtu
	}
	s := &Server{cfg: cfg, ready: make(chan struct{}), slots: newSlots()}
	s.ctx, s.end = context.WithCancelCause(context.Background())
	if err := s.listen(); err != nil {
		return nil, err
	}
	var err error
	if s.lockstep, err = newLockstep(cfg, s.ctx.Done()); err != nil {
		cfg.Logger.Debug("TFTP serves everything by itself, without pin/tftp", "error", err)
	}
	return s, nil
}

func (s *Server) listen() error {
	at := netip.AddrPortFrom(s.cfg.Addr, s.cfg.Port)
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) {
			// A room full of machines is switched on at once. Without the right
			// to more there is what everybody gets.
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, requestBuffer)
			err = bindLink(int(fd), s.cfg.Interface)
		}); cerr != nil {
			return cerr
		}
		return err
	}}
	conn, err := lc.ListenPacket(context.Background(), "udp4", at.String())
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("TFTP cannot have UDP port %d of %s: another program holds it; 'ss -ulpn sport = :%[1]d' names it", s.cfg.Port, s.cfg.Addr)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("TFTP on %s: this machine does not have that address", at)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("TFTP on %s: %w: ports below 1024 need root or CAP_NET_BIND_SERVICE", at, err)
	case err != nil:
		return fmt.Errorf("TFTP on %s: %w", at, err)
	}
	s.conn = conn.(*net.UDPConn)
	return nil
}

// bindLink ties a socket to a link; the empty name to none.
func bindLink(fd int, link string) error {
	if link == "" {
		return nil
	}
	err := unix.BindToDevice(fd, link)
	// Kernels before 5.7 keep this to root. The address still ties the socket
	// to its segment.
	if errors.Is(err, unix.EPERM) {
		err = nil
	}
	return err
}

// linkMTU finds the MTU of the named link, or of the one that has addr.
func linkMTU(name string, addr netip.Addr) (int, error) {
	if name != "" {
		link, err := net.InterfaceByName(name)
		if err != nil {
			return 0, fmt.Errorf("TFTP on %s: no such network interface", name)
		}
		return link.MTU, nil
	}
	links, err := net.Interfaces()
	if err != nil {
		return 0, err
	}
	for _, link := range links {
		addrs, err := link.Addrs()
		if err != nil {
			return 0, err
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr() == addr {
				return link.MTU, nil
			}
		}
	}
	return 0, fmt.Errorf("TFTP on %s: no network interface has that address", addr)
}

// maxBlock is the largest block, in bytes, that leaves in one packet: without
// the headers of IP (20), UDP (8) and TFTP (4), for ROMs do not put fragments
// together. RFC 2348 ends at 65464; pin/tftp takes no limit below 513.
func maxBlock(mtu int) int { return min(max(mtu-32, 513), 65464) }

// String names the server.
func (s *Server) String() string {
	return "TFTP on " + s.conn.LocalAddr().String()
}

// Ready is closed when the server answers.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run serves until ctx is done, then tells the clients of unfinished transfers
// that they end, and closes the sockets. A client that does not answer holds
// it up for two seconds at most.
func (s *Server) Run(ctx context.Context) error {
	defer s.conn.Close()
	unblock := context.AfterFunc(ctx, func() { s.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer unblock()
	for range min(runtime.GOMAXPROCS(0), maxLoops) {
		l, err := newLoop()
		if err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
		defer l.close()
		go l.run()
		s.loops = append(s.loops, l)
	}
	if s.lockstep != nil {
		go s.lockstep.run()
		defer s.lockstep.close()
	}
	close(s.ready)
	err := s.receive()
	s.end(errStopping)
	s.transfers.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("%s: %w", s, err)
}

// receive begins a transfer for every request that deserves one.
func (s *Server) receive() error {
	buf := make([]byte, maxRequest)
	for {
		n, from, err := s.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return err
		}
		s.handle(buf[:n], from)
	}
}

func (s *Server) handle(packet []byte, from netip.AddrPort) {
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	s.count.requests.Add(1)
	if s.cfg.Allow != nil && !s.cfg.Allow(from.Addr()) {
		s.count.foreign.Warn(s.cfg.Logger, "TFTP request from an address that is not served", "client", from.Addr())
		return
	}
	r, err := parseRequest(packet)
	if errors.Is(err, errRequest) {
		s.count.malformed.Add(1)
		s.cfg.Logger.Debug("TFTP packet ignored", "client", from.Addr(), "error", err)
		return
	}
	t := &transfer{s: s, client: from, packet: string(packet), request: r, machine: s.machine(from.Addr())}
	code := uint16(codeAccess)
	switch {
	case err != nil:
		code = codeIllegal
	case r.write:
		err = errReadOnly
	default:
		t.name, err = cleanName(r.name)
	}
	if err != nil {
		s.count.refused.Warn(s.cfg.Logger, "TFTP request refused", "client", from.Addr(), "machine", t.machine, "name", r.name, "error", err)
		t.record(timeline.Fail, fmt.Sprintf("%q: %s", r.name, err))
		s.refuse(from, code, err.Error())
		return
	}
	a, evicted := s.slots.admit(t)
	if evicted != nil {
		s.count.evicted.Add(1)
		evicted.end(errEvicted)
	}
	switch a {
	case repeated:
		return
	case busy:
		// Silence makes a machine ask again; an error would end its boot.
		s.count.busy.Warn(s.cfg.Logger, "TFTP request ignored: too many transfers", "client", from.Addr(), "limit", maxTransfers, "per client", maxPerClient)
		return
	}
	t.ctx, t.end = context.WithCancelCause(s.ctx)
	s.transfers.Go(func() {
		defer t.end(nil)
		defer s.slots.release(t)
		s.serve(t)
	})
}

// refuse answers a request that becomes no transfer.
func (s *Server) refuse(to netip.AddrPort, code uint16, why string) {
	s.conn.WriteToUDPAddrPort(errorPacket(code, why), to)
}

// machine names who asks for the timeline.
func (s *Server) machine(from netip.Addr) string {
	if mac := s.cfg.Who(from); mac != "" {
		return mac
	}
	return from.String()
}
