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
	"github.com/every-channel/ecboot/internal/nuisance"
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
	// Files returns what a client may fetch besides its script and the files
	// of profiles: boot programs, below /nbp/ and, for those that load more by
	// names of their own as shim and GRUB do, at every path that means nothing
	// else. nil, as a function or returned, is no files. Names are checked
	// before they reach it, symbolic links are not: for a directory use
	// os.Root, which keeps them inside.
	Files func(client netip.Addr) fs.FS
	// Allow says who is served: give it the segment's addresses. The others
	// are answered 403. nil allows everybody.
	Allow func(client netip.Addr) bool

	// Who names the machine that has an address, by its MAC; "" if unknown.
	// The timeline then has the address instead. nil knows nobody.
	Who      func(netip.Addr) string
	Timeline *timeline.Recorder
	Logger   *slog.Logger
}

// Server answers on one address.
type Server struct {
	cfg       Config
	listener  net.Listener
	admission *admission
	http      *http.Server
	digests   *digests
	ready     chan struct{}

	// What anybody can make us say.
	denied, crowded, failed, unbootable, unknown, reported nuisance.Counter
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
		ConnState:         s.admission.connState,
		ConnContext:       s.admission.connContext,
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
	if cfg.Files == nil {
		cfg.Files = func(netip.Addr) fs.FS { return nil }
	}
	if cfg.Allow == nil {
		cfg.Allow = func(netip.Addr) bool { return true }
	}
	if cfg.Who == nil {
		cfg.Who = func(netip.Addr) string { return "" }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, digests: newDigests(), ready: make(chan struct{})}
	s.admission = newAdmission(func(from netip.Addr) {
		s.crowded.Warn(cfg.Logger, "HTTP connection closed: there are too many", "address", from, "in all", maxConns, "from one address", maxConnsPerAddr)
	})
	return s
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
	s.listener = listener{l, s.admission}
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
		s.admission.close()
	})
	defer s.listener.Close()
	var digesting sync.WaitGroup
	defer digesting.Wait()
	digestCtx, stopDigesting := context.WithCancel(ctx)
	defer stopDigesting()
	digesting.Go(func() { s.digestFiles(digestCtx) })
	close(s.ready)
	err := s.http.Serve(s.listener)
	if cancel() {
		return err
	}
	<-stopped
	return nil
}

// digestFiles digests until ctx is done, first the files of all profiles.
func (s *Server) digestFiles(ctx context.Context) {
	for _, p := range s.inventory().Profiles {
		for _, f := range filesOf(p) {
			s.digests.prepare(f.Path)
		}
	}
	s.digests.run(ctx)
}

// Refusals is how often somebody was turned away since the start.
type Refusals struct {
	Denied  uint64 // requests from addresses that are not allowed
	Crowded uint64 // connections closed because there were too many
}

// Refusals counts whom the server has turned away.
func (s *Server) Refusals() Refusals {
	return Refusals{Denied: s.denied.Total(), Crowded: s.crowded.Total()}
}

// url returns the URL of an absolute path on this server.
func (s *Server) url(path string) string {
	host := s.host()
	if s.cfg.Port != DefaultPort {
		host += ":" + strconv.Itoa(int(s.cfg.Port))
	}
	return "http://" + host + path
}

// host is the server in URLs, an address: a machine that boots may have no DNS.
func (s *Server) host() string {
	if s.cfg.Addr.Is6() {
		return "[" + s.cfg.Addr.String() + "]"
	}
	return s.cfg.Addr.String()
}
