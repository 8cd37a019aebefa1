// Package tftpd is a read-only TFTP server (RFC 1350 with the options blksize
// and tsize, RFC 2347–2349) that hands boot programs out of an fs.FS. The
// protocol is pin/tftp's; this package decides what may be read, and tells the
// timeline what became of it.
package tftpd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pin/tftp/v3"
	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/internal/timeline"
)

// DefaultPort is where clients expect a TFTP server.
const DefaultPort = 69

// A block that is not acknowledged is sent again in rounds, for 17 s in all.
// First soon and often: pin/tftp ignores acknowledgements that come twice, so
// that impatience costs one packet and never doubles the traffic. Then with
// growing pauses, for a machine that is busy. Then silence for longer than the
// 5 s after which most clients speak up: atftp answers a repeated block once,
// and if that is lost, only when nothing more comes.
const (
	ackTimeout = 100 * time.Millisecond
	rounds     = 2
	quickTries = 6 // of each round
)

var pauses = [...]time.Duration{200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond, 5500 * time.Millisecond}

// maxTransfers at once; each holds a socket and a file.
const maxTransfers = 1024

// Config is what a Server needs to know. Addr is required; the zero value of
// everything else is useful.
type Config struct {
	Addr      netip.Addr // IPv4 address to serve on, and the source of all answers
	Interface string     // serve on this link only; empty: wherever Addr is reached
	Port      uint16     // 0 means DefaultPort

	// Files returns what the client at an address may fetch; nil, from either,
	// serves nothing. Names are checked before they reach the fs.FS, symbolic
	// links are not: for a directory use os.Root, which keeps them inside.
	Files func(client netip.Addr) fs.FS
	// MTU of the link in bytes; 0 asks the interface that has Addr.
	MTU int

	// Who names the machine that has an address, by its MAC; "" if unknown.
	// The timeline then has the address instead. nil knows nobody.
	Who      func(netip.Addr) string
	Timeline *timeline.Recorder
	Logger   *slog.Logger
}

// Server answers read requests on one address.
type Server struct {
	cfg    Config
	conn   *net.UDPConn
	tftp   *tftp.Server
	ready  chan struct{}
	stop   chan struct{} // closed when Run is to end
	active atomic.Int32
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
	s := &Server{cfg: cfg, ready: make(chan struct{}), stop: make(chan struct{})}
	if err := s.listen(); err != nil {
		return nil, err
	}
	s.tftp = tftp.NewServer(s.read, s.write)
	s.tftp.SetTimeout(ackTimeout)
	s.tftp.SetRetries(rounds * (quickTries + len(pauses)))
	s.tftp.SetBackoff(s.pause)
	s.tftp.SetBlockSize(maxBlock(cfg.MTU))
	s.tftp.SetHook(hook{cfg.Logger})
	return s, nil
}

func (s *Server) listen() error {
	at := netip.AddrPortFrom(s.cfg.Addr, s.cfg.Port)
	lc := net.ListenConfig{Control: s.prepare}
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

// prepare ties a socket to the interface before it is bound.
func (s *Server) prepare(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) {
		// pin/tftp turns this on too, but late: a request that is here by then
		// would have no interface, and so the smallest blocks.
		if err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1); err != nil || s.cfg.Interface == "" {
			return
		}
		err = unix.BindToDevice(int(fd), s.cfg.Interface)
		// Kernels before 5.7 keep this to root. The address still ties the
		// socket to its segment.
		if errors.Is(err, unix.EPERM) {
			err = nil
		}
	}); cerr != nil {
		return cerr
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
// the headers of IP (20), UDP (8) and TFTP (4). pin/tftp's own limit forgets
// TFTP's, and ROMs do not put fragments together. RFC 2348 ends at 65464;
// pin/tftp takes no limit below 513.
func maxBlock(mtu int) int { return min(max(mtu-32, 513), 65464) }

// pause is waited before a block is sent again, the attempt-th time.
func (s *Server) pause(attempt int) time.Duration {
	if i := attempt%(quickTries+len(pauses)) - quickTries; i >= 0 {
		select {
		case <-time.After(pauses[i]):
		case <-s.stop: // pin/tftp would sleep through it
		}
	}
	return 0
}

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
	stopped := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		close(s.stop)
		s.tftp.Shutdown()
		close(stopped)
	})
	defer s.conn.Close()
	close(s.ready)
	err := s.tftp.Serve(s.conn)
	if cancel() {
		return err
	}
	<-stopped
	return nil
}

// hook hears of requests that never became a transfer. What becomes of
// transfers, read knows better.
type hook struct{ log *slog.Logger }

func (hook) OnSuccess(tftp.TransferStats) {}

func (h hook) OnFailure(stats tftp.TransferStats, err error) {
	if stats.RemoteAddr != nil || errors.Is(err, net.ErrClosed) {
		return
	}
	var opErr *net.OpError
	if errors.As(err, &opErr) {
		h.log.Warn("TFTP request not served", "error", err)
		return
	}
	h.log.Debug("TFTP request ignored", "error", err)
}
