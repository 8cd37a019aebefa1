// Package httpboot is the HTTP side of a network boot: iPXE scripts, kernels and
// initrds, boot programs for UEFI HTTP Boot, and the call by which a booted
// machine says that it is up.
package httpboot

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/nuisance"
	"github.com/every-channel/ecboot/internal/timeline"
)

// Where firmware and iPXE expect an HTTP server and an HTTPS server.
const (
	DefaultPort    = 80
	DefaultTLSPort = 443
)

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

	// Certificate has everything served over HTTPS too; nil: over HTTP only.
	// A script that was fetched so loads its files so.
	Certificate *tls.Certificate
	TLSPort     uint16 // 0 means DefaultTLSPort

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
	listeners []net.Listener
	admission *admission
	http      *http.Server
	digests   *digests
	ready     chan struct{}

	// What anybody can make us say.
	foreign, crowded, failed, unknown, unbootable, reported nuisance.Counter
}

// New binds the socket of a server.
func New(cfg Config) (*Server, error) {
	if !cfg.Addr.IsValid() || cfg.Addr.IsUnspecified() {
		return nil, fmt.Errorf("HTTP on %s: give the address to serve on, such as 10.77.0.1", cfg.Addr)
	}
	s := newServer(cfg)
	if err := s.listenAll(); err != nil {
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
	if cfg.TLSPort == 0 {
		cfg.TLSPort = DefaultTLSPort
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

func (s *Server) listenAll() error {
	plain, err := s.listen("HTTP", s.cfg.Port)
	if err != nil {
		return err
	}
	s.listeners = []net.Listener{plain}
	if s.cfg.Certificate == nil {
		return nil
	}
	secure, err := s.listen("HTTPS", s.cfg.TLSPort)
	if err != nil {
		plain.Close()
		return err
	}
	s.listeners = append(s.listeners, tls.NewListener(secure, tlsConfig(*s.cfg.Certificate)))
	return nil
}

func (s *Server) listen(protocol string, port uint16) (net.Listener, error) {
	at := netip.AddrPortFrom(s.cfg.Addr, port)
	lc := net.ListenConfig{Control: s.bindToDevice}
	// Go would prefer multipath TCP, which old kernels do not tie to a device.
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", at.String())
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("%s cannot have TCP port %d of %s: another program holds it; 'ss -tlpn sport = :%[2]d' names it", protocol, port, s.cfg.Addr)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return nil, fmt.Errorf("%s on %s: this machine does not have that address", protocol, at)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("%s on %s: %w: ports below 1024 need root or CAP_NET_BIND_SERVICE", protocol, at, err)
	case errors.Is(err, unix.ENODEV):
		return nil, fmt.Errorf("%s on %s: no such network interface", protocol, s.cfg.Interface)
	case err != nil:
		return nil, fmt.Errorf("%s on %s: %w", protocol, at, err)
	}
	return listener{l, s.admission}, nil
}

// tlsConfig speaks TLS 1.2 as iPXE does too: those of 2022 and earlier have no
// key exchange but that of RSA (https://ipxe.org/crypto). Go prefers the others
// whatever the order.
func tlsConfig(cert tls.Certificate) *tls.Config {
	suites := []uint16{
		tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_AES_256_CBC_SHA,
	}
	for _, suite := range tls.CipherSuites() {
		suites = append(suites, suite.ID)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{cert},
		MinVersion:   tls.VersionTLS12,
		CipherSuites: suites,
		NextProtos:   []string{"http/1.1"},
	}
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
	var group sync.WaitGroup
	defer group.Wait()
	digestCtx, stopDigesting := context.WithCancel(ctx)
	defer stopDigesting()
	group.Go(func() { s.digestFiles(digestCtx) })
	served := make(chan error, len(s.listeners))
	for _, l := range s.listeners {
		defer l.Close()
		group.Go(func() { served <- s.http.Serve(l) })
	}
	close(s.ready)
	err := <-served
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

// Counters is how often something happened, since the start, that should not.
type Counters struct {
	Foreign    uint64 // requests from addresses that are not served
	Crowded    uint64 // connections closed because there were too many
	Failed     uint64 // files that are missing or did not arrive whole
	Unknown    uint64 // scripts asked for by machines without a profile
	Unbootable uint64 // scripts of profiles with something wrong in them
	Reported   uint64 // failures that iPXE told of
}

// Counters returns the counters of this moment.
func (s *Server) Counters() Counters {
	return Counters{
		Foreign: s.foreign.Total(), Crowded: s.crowded.Total(), Failed: s.failed.Total(),
		Unknown: s.unknown.Total(), Unbootable: s.unbootable.Total(), Reported: s.reported.Total(),
	}
}

// url returns the HTTP URL of an absolute path on this server.
func (s *Server) url(path string) string {
	if s.cfg.Port != DefaultPort {
		return fmt.Sprintf("http://%s:%d%s", s.host(), s.cfg.Port, path)
	}
	return "http://" + s.host() + path
}

// secureURL returns the HTTPS URL.
func (s *Server) secureURL(path string) string {
	if s.cfg.TLSPort != DefaultTLSPort {
		return fmt.Sprintf("https://%s:%d%s", s.host(), s.cfg.TLSPort, path)
	}
	return "https://" + s.host() + path
}

// host is the server in URLs, an address: a machine that boots may have no DNS.
func (s *Server) host() string {
	if s.cfg.Addr.Is6() {
		return "[" + s.cfg.Addr.String() + "]"
	}
	return s.cfg.Addr.String()
}
