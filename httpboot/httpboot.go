// Package httpboot is the HTTP side of a network boot: iPXE scripts, kernels and
// initrds, boot programs for UEFI HTTP Boot, and the call by which a booted
// machine says that it is up.
package httpboot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/timeline"
)

// DefaultPort is where firmware and iPXE expect an HTTP server.
const DefaultPort = 80

// Limits for clients that are slow, broken or hostile.
const (
	headerTimeout   = 10 * time.Second
	requestTimeout  = 30 * time.Second // for a request with its body
	progressTimeout = 30 * time.Second // for each chunk of an answer
	idleTimeout     = 60 * time.Second
	shutdownTimeout = 2 * time.Second // for transfers under way
	maxHeader       = 16 << 10        // bytes
	maxConns        = 1024
)

// Config is what a Server needs to know. Addr is required; the zero value of
// everything else is useful.
type Config struct {
	Addr      netip.Addr // address to serve on; the scripts' URLs have it too
	Interface string     // serve on this link only; empty: wherever Addr is reached
	Port      uint16     // 0 means DefaultPort

	// Inventory returns what is known of machines; it is called for every
	// request. nil means that nothing is known.
	Inventory func() *boot.Inventory
	// Client returns what DHCP last saw of a machine's firmware, by which the
	// inventory may know it; nil: only its MAC.
	Client func(boot.MAC) boot.Client
	// NBP holds the boot programs for UEFI HTTP Boot; nil: none. Names are
	// checked before they reach it, symbolic links are not: for a directory
	// use os.Root, which keeps them inside.
	NBP fs.FS

	// Who names the machine that has an address, by its MAC; "" if unknown.
	// The timeline then has the address instead. nil knows nobody.
	Who      func(netip.Addr) string
	Timeline *timeline.Recorder
	Logger   *slog.Logger
}

// Server answers on one address.
type Server struct {
	cfg      Config
	listener *listener
	http     *http.Server
	ready    chan struct{}
}

// New binds the socket of a server.
func New(cfg Config) (*Server, error) {
	if !cfg.Addr.IsValid() || cfg.Addr.IsUnspecified() {
		return nil, fmt.Errorf("HTTP on %s: give the address to serve on, such as 10.77.0.1", cfg.Addr)
	}
	s := newServer(cfg)
	if err := s.listen(); err != nil {
		return nil, err
	}
	s.http = &http.Server{
		Handler:           s,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      progressTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ConnState:         s.listener.connState,
		ErrorLog:          slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// newServer returns a server without a socket.
func newServer(cfg Config) *Server {
	if cfg.Port == 0 {
		cfg.Port = DefaultPort
	}
	if cfg.Inventory == nil {
		empty := &boot.Inventory{}
		cfg.Inventory = func() *boot.Inventory { return empty }
	}
	if cfg.Client == nil {
		cfg.Client = func(mac boot.MAC) boot.Client { return boot.Client{MAC: mac} }
	}
	if cfg.Who == nil {
		cfg.Who = func(netip.Addr) string { return "" }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, ready: make(chan struct{})}
}

func (s *Server) listen() error {
	at := netip.AddrPortFrom(s.cfg.Addr, s.cfg.Port)
	lc := net.ListenConfig{Control: s.bindToDevice}
	// Go would prefer multipath TCP, which old kernels do not tie to a device.
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", at.String())
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("HTTP cannot have TCP port %d of %s: another program holds it; 'ss -tlpn sport = :%[1]d' names it", s.cfg.Port, s.cfg.Addr)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("HTTP on %s: this machine does not have that address", at)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("HTTP on %s: %w: ports below 1024 need root or CAP_NET_BIND_SERVICE", at, err)
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("HTTP on %s: no such network interface", s.cfg.Interface)
	case err != nil:
		return fmt.Errorf("HTTP on %s: %w", at, err)
	}
	s.listener = &listener{Listener: l, slots: make(chan struct{}, maxConns), closed: make(chan struct{})}
	return nil
}

func (s *Server) bindToDevice(_, _ string, c syscall.RawConn) error {
	if s.cfg.Interface == "" {
		return nil
	}
	var err error
	if cerr := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), s.cfg.Interface) }); cerr != nil {
		return cerr
	}
	// Kernels before 5.7 keep this to root. The address still ties the socket
	// to its segment.
	if errors.Is(err, unix.EPERM) {
		return nil
	}
	return err
}

// listener accepts no more than cap(slots) connections at a time. It hands out
// plain TCP connections: net/http sends files with sendfile on those only.
type listener struct {
	net.Listener
	slots     chan struct{}
	closed    chan struct{}
	closeOnce sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
	}
	return conn, err
}

func (l *listener) Close() error {
	l.closeOnce.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// connState gives back the slot of a connection that has ended.
func (l *listener) connState(_ net.Conn, state http.ConnState) {
	if state == http.StateClosed {
		<-l.slots
	}
}

// drain waits until every connection has ended, and its handler with it.
func (l *listener) drain() {
	for range cap(l.slots) {
		l.slots <- struct{}{}
	}
}

// String names the server.
func (s *Server) String() string {
	return "HTTP on " + netip.AddrPortFrom(s.cfg.Addr, s.cfg.Port).String()
}

// Ready is closed when the server answers.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run serves until ctx is done. Transfers that are under way then have two
// seconds to end.
func (s *Server) Run(ctx context.Context) error {
	stopped := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(stopped)
		grace, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
		defer cancel()
		if s.http.Shutdown(grace) != nil {
			s.http.Close()
		}
		s.listener.drain()
	})
	defer s.listener.Close()
	close(s.ready)
	err := s.http.Serve(s.listener)
	if cancel() {
		return err
	}
	<-stopped
	return nil
}

// url returns the URL of an absolute path on this server. The host is an
// address: a machine that boots may have no DNS.
func (s *Server) url(path string) string {
	host := s.cfg.Addr.String()
	if s.cfg.Addr.Is6() {
		host = "[" + host + "]"
	}
	if s.cfg.Port != DefaultPort {
		host += ":" + strconv.Itoa(int(s.cfg.Port))
	}
	return "http://" + host + path
}
