package main

import (
	"context"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/every-channel/ecboot/dhcpd"
	"github.com/every-channel/ecboot/httpboot"
	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/internal/lan"
	"github.com/every-channel/ecboot/internal/netroot"
	"github.com/every-channel/ecboot/internal/timeline"
	"github.com/every-channel/ecboot/tftpd"
)

// segment is one network with its servers.
type segment struct {
	config.Segment
	cfg       stackConfig
	timeline  *timeline.Recorder
	lan       *lan.Segment
	leases    *dhcpd.FileStore             // nil in mode off
	dhcp      atomic.Pointer[dhcpd.Server] // has nothing in mode off
	inventory atomic.Pointer[boot.Inventory]
	relayed   []*segment                     // behind relays that ask these servers; they have only an inventory
	web       atomic.Pointer[boot.Inventory] // for the files of all of them

	servers tasks // bound to the link that has the index
	index   int
	ready   chan struct{}
}

// know gives the segment, and those behind relays, what is known of machines.
func (s *segment) know(inventory func(config.Segment) *boot.Inventory) {
	inv := inventory(s.Segment)
	s.inventory.Store(inv)
	web := *inv
	for _, r := range s.relayed {
		inv := inventory(r.Segment)
		r.inventory.Store(inv)
		if web.Default == "" {
			// Who may boot was decided when it was answered.
			web.Default = inv.Default
		}
	}
	s.web.Store(&web)
}

// mustLookAround reports whether it matters if there are other DHCP servers.
func (s *segment) mustLookAround() bool {
	return !s.Private() && s.Mode != config.ModeOff && (s.Mode == config.ModeProxy || !s.AllowOtherDHCP)
}

// lookAround looks for other DHCP servers on a network that others use: beside
// one a second harms the network, and without one a proxy is of no use.
func (s *segment) lookAround(ctx context.Context) error {
	others, err := dhcpd.FindOthers(ctx, s.lan.Interface())
	switch {
	case err != nil:
		return fmt.Errorf("segment %s: %w", s.Name, err)
	case s.Mode == config.ModeProxy && len(others) == 0:
		s.cfg.Log.Warn("no DHCP server answers, so machines will boot only if one does: mode = \"server\" would give them addresses from here", "segment", s.Name)
	case s.Mode == config.ModeServer && len(others) > 0:
		names := make([]string, len(others))
		for i, o := range others {
			names[i] = o.String()
		}
		return fmt.Errorf("segment %s: another DHCP server gives addresses on %s: %s; boot beside it with mode = \"proxy\" (--mode proxy), or say allow_other_dhcp = true if both are meant to be",
			s.Name, s.lan.Interface(), strings.Join(names, ", "))
	}
	return nil
}

// bind opens the leases and binds the servers to the link as it is now. When it
// fails, none is bound.
func (s *segment) bind() (err error) {
	s.index = s.lan.Index()
	if s.Mode == config.ModeOff {
		return nil
	}
	defer func() {
		if err != nil {
			s.servers.release()
			s.servers = nil
		}
	}()
	for _, bind := range []func() error{s.bindDHCP, s.bindAdvertiser, s.bindFiles} {
		if err := bind(); err != nil {
			return err
		}
	}
	return nil
}

// bindDHCP adds the DHCP server.
func (s *segment) bindDHCP() (err error) {
	if s.leases == nil {
		file := s.cfg.LeaseFile(s.Name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return fmt.Errorf("leases: %w", err)
		}
		if s.leases, err = dhcpd.OpenFileStore(file, s.cfg.Log); err != nil {
			return err
		}
	}
	probe := dhcpd.DefaultProbeTime
	if s.Private() {
		probe = 0 // nobody else is there
	}
	server, err := dhcpd.New(dhcpd.Config{
		Interface: s.lan.Interface(),
		Server:    s.Address,
		HTTPPort:  s.cfg.Server.HTTPPort,
		Network:   s.network(),
		Relayed:   s.subnets(),
		ProbeTime: probe,
		Store:     s.leases,
		Timeline:  s.timeline,
		Logger:    s.cfg.Log,
	})
	if err != nil {
		return err
	}
	s.dhcp.Store(server)
	s.servers = append(s.servers, server)
	return nil
}

// bindAdvertiser adds what answers router solicitations. On a network that
// others own, only a station that has just spoken as iPXE is told anything about
// IPv6.
func (s *segment) bindAdvertiser() error {
	only := s.dhcp.Load().SeenIPXE
	if s.Private() {
		only = nil
	}
	advertiser, err := dhcpd.NewAdvertiser(dhcpd.AdvertiserConfig{Interface: s.lan.Interface(), Only: only, Logger: s.cfg.Log})
	if err != nil {
		return err
	}
	s.servers = append(s.servers, advertiser)
	return nil
}

// bindFiles adds the TFTP and the HTTP server.
func (s *segment) bindFiles() error {
	address, iface, server := s.Address.Addr(), s.lan.Interface(), s.cfg.Server
	root := netroot.New(netroot.Config{
		Programs: s.cfg.Files.nbp, Signed: s.cfg.Files.signed, Server: address,
		URL: func(path string) string { return httpURL(address, server.HTTPPort, path) },
	})
	files := func(client netip.Addr) fs.FS { return root.View(s.web.Load(), s.clientAt(client), client) }
	allow := s.cfg.allow(s.Segment)
	tftp, err := tftpd.New(tftpd.Config{
		Addr: address, Interface: iface, Files: files, Allow: allow, MTU: s.lan.MTU(),
		Who: s.who, Timeline: s.timeline, Logger: s.cfg.Log,
	})
	if err != nil {
		return err
	}
	s.servers = append(s.servers, tftp)

	certificate, err := s.cfg.certificate(address)
	if err != nil {
		return err
	}
	http, err := httpboot.New(httpboot.Config{
		Addr: address, Interface: iface, Port: server.HTTPPort, Inventory: s.web.Load, Client: s.client,
		Certificate: certificate, TLSPort: server.HTTPSPort,
		Files: files, Allow: allow,
		Who: s.who, Timeline: s.timeline, Logger: s.cfg.Log,
	})
	if err != nil {
		return err
	}
	s.servers = append(s.servers, http)
	return nil
}

// String names the segment.
func (s *segment) String() string { return "segment " + s.Name }

// Ready is closed when the servers answer.
func (s *segment) Ready() <-chan struct{} { return s.ready }

// guardPause is how long a network may stay as somebody else has left it.
const guardPause = 2 * time.Second

// Run runs the servers until ctx is done. Sockets are bound to one link: when
// another one takes its place, such as a bridge that was deleted and made again
// or a NIC whose driver was loaded anew, the servers are bound once more.
func (s *segment) Run(ctx context.Context) error {
	ready := sync.OnceFunc(func() { close(s.ready) })
	for {
		err := s.servers.run(ctx, func(ctx context.Context) error {
			ready()
			s.guard(ctx)
			return nil
		})
		s.servers = nil // Run has closed the sockets of what ran
		if err != nil || ctx.Err() != nil {
			return err
		}
		s.bindAgain(ctx)
	}
}

// guard keeps the network as it was opened until ctx is done, or its link is
// another one than the servers'.
func (s *segment) guard(ctx context.Context) {
	said := ""
	for s.lan.Index() == s.index && sleep(ctx, guardPause) {
		err := s.mend()
		if err != nil && err.Error() != said {
			s.cfg.Log.Error("somebody has changed a segment, and it cannot be put right", "segment", s.Name, "error", err)
		}
		said = fmt.Sprint(err)
	}
}

// bindAgain tries until the servers are bound, or ctx is done.
func (s *segment) bindAgain(ctx context.Context) {
	said := ""
	for err := s.bind(); err != nil; err = s.bind() {
		if err.Error() != said {
			s.cfg.Log.Error("a segment is not served for now; that is tried again and again", "segment", s.Name, "error", err)
		}
		said = err.Error()
		if !sleep(ctx, guardPause) {
			return
		}
		s.mend() // bind says what is still wrong
	}
	s.cfg.Log.Warn("the link of a segment was replaced by another one, and is served", "segment", s.Name, "link", s.lan.Interface())
}

// sleep waits, and reports whether ctx goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// mend puts right what others have changed of the network, and says so.
func (s *segment) mend() error {
	mended, err := s.lan.Mend()
	for _, what := range mended {
		s.cfg.Log.Warn("somebody had changed a segment, and it is put right", "segment", s.Name, "what", what)
	}
	return err
}

// network is the segment in the terms of package dhcpd.
func (s *segment) network() dhcpd.Network {
	router := s.Router
	if !router.IsValid() && (s.NAT || s.Relay.IsValid()) {
		router = s.Prefix().Addr()
	}
	return dhcpd.Network{
		Mode:          dhcpMode[s.Mode],
		Pool:          pool(s.Segment),
		LeaseTime:     s.LeaseTime,
		BootLeaseTime: s.BootLeaseTime,
		Router:        router,
		DNS:           s.DNS,
		NTP:           s.NTP,
		Domain:        s.Domain,
		Search:        s.Search,
		Routes:        routes(s.Routes),
		Options:       config.Options(s.Options),
		Inventory:     s.inventory.Load,
		AnswerUnknown: s.Policy() != config.PolicyIgnore,
		Authoritative: s.Private(),
	}
}

// subnets are the networks behind relays.
func (s *segment) subnets() (list []dhcpd.Subnet) {
	for _, r := range s.relayed {
		list = append(list, dhcpd.Subnet{Relay: r.Relay, Network: r.network()})
	}
	return list
}

// dhcpMode has every mode in which there is a DHCP server.
var dhcpMode = map[config.Mode]dhcpd.Mode{config.ModeServer: dhcpd.ModeServer, config.ModeProxy: dhcpd.ModeProxy}

// client is what the machine's firmware said of itself when it last asked.
func (s *segment) client(mac boot.MAC) boot.Client {
	dhcp := s.dhcp.Load()
	if dhcp == nil {
		return boot.Client{MAC: mac}
	}
	return dhcp.Client(mac)
}

// who names the machine that has an address: by the DHCP server, which may not
// have given it out, or else by the kernel, to which the machine has just
// spoken.
func (s *segment) who(a netip.Addr) string {
	if mac := s.dhcp.Load().Who(a); mac != "" {
		return mac
	}
	if mac, ok := lan.Neighbour(s.lan.Interface(), a); ok {
		return boot.MAC(mac).String()
	}
	return ""
}

// clientAt is who has an address: the zero Client if we do not know.
func (s *segment) clientAt(a netip.Addr) boot.Client {
	mac, err := boot.ParseMAC(s.who(a))
	if err != nil {
		return boot.Client{}
	}
	return s.client(mac)
}

// addressOf returns the address that a machine was given last.
func (s *segment) addressOf(mac boot.MAC) (a netip.Addr, ok bool) {
	dhcp := s.dhcp.Load()
	if dhcp == nil {
		return a, false
	}
	var newest time.Time
	for _, l := range dhcp.Leases() {
		if l.MAC == mac && l.State == dhcpd.Bound && l.Expires.After(newest) {
			a, ok, newest = l.Addr, true, l.Expires
		}
	}
	return a, ok
}
