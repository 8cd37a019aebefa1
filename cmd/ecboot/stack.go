package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/every-channel/ecboot/dhcpd"
	"github.com/every-channel/ecboot/httpboot"
	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/internal/lan"
	"github.com/every-channel/ecboot/internal/netroot"
	"github.com/every-channel/ecboot/internal/timeline"
	"github.com/every-channel/ecboot/tftpd"
)

// task is the shape of everything that runs for long.
type task interface {
	Run(context.Context) error
	Ready() <-chan struct{}
	String() string
}

// stack is the segments that one process serves.
type stack struct {
	segments []*segment
	timeline *timeline.Recorder
	tasks    []task
}

// segment is one network with its servers.
type segment struct {
	config.Segment
	lan       *lan.Segment
	leases    *dhcpd.FileStore
	dhcp      *dhcpd.Server // nil in mode off
	inventory atomic.Pointer[boot.Inventory]
	relayed   []*segment                     // behind relays that ask these servers; they have only an inventory
	web       atomic.Pointer[boot.Inventory] // for the files of all of them
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

// stackConfig says what to serve where.
type stackConfig struct {
	Segments  []config.Segment
	Server    config.Server
	Inventory func(config.Segment) *boot.Inventory
	Files     *bootFiles
	LeaseFile func(segment string) string // its directory is made when missing
	NoteDir   string                      // for what must be undone after a kill
	// CertificateDir is for the CA and the certificates of HTTPS, if there is
	// to be HTTPS and no certificate is given.
	CertificateDir string
	KeepHeld       bool // leave segments as they are that guests hold, should this fail
	Log            *slog.Logger
	Say            func(string) // tells what takes its time
}

// openStack opens the segments and binds every server, so that whatever is in
// the way is an error before anything is served. When it fails it leaves
// nothing.
func openStack(ctx context.Context, cfg stackConfig) (_ *stack, err error) {
	s := &stack{timeline: timeline.New()}
	defer func() {
		if err != nil {
			end := s.Close
			if cfg.KeepHeld {
				end = s.Leave
			}
			err = withCode(exitEnvironment, errors.Join(err, end()))
		}
	}()
	for _, seg := range cfg.Segments {
		if seg.Relay.IsValid() {
			continue // served through another one
		}
		if err := s.join(cfg, seg); err != nil {
			return nil, fmt.Errorf("segment %s: %w", seg.Name, err)
		}
	}
	var look errgroup.Group
	for _, one := range s.segments {
		if !one.mustLookAround() {
			continue
		}
		cfg.Say("looking for other DHCP servers on " + one.lan.Interface())
		look.Go(func() error { return one.lookAround(ctx, cfg.Log) })
	}
	if err := look.Wait(); err != nil {
		return nil, err
	}
	for _, one := range s.segments {
		if one.Mode == config.ModeOff {
			continue
		}
		if err := s.open(cfg, one); err != nil {
			return nil, fmt.Errorf("segment %s: %w", one.Name, err)
		}
	}
	return s, nil
}

// mustLookAround reports whether it matters if there are other DHCP servers.
func (s *segment) mustLookAround() bool {
	return !s.Private() && s.Mode != config.ModeOff && (s.Mode == config.ModeProxy || !s.AllowOtherDHCP)
}

// lookAround looks for other DHCP servers on a network that others use: beside
// one a second harms the network, and without one a proxy is of no use.
func (s *segment) lookAround(ctx context.Context, log *slog.Logger) error {
	others, err := dhcpd.FindOthers(ctx, s.lan.Interface())
	switch {
	case err != nil:
		return fmt.Errorf("segment %s: %w", s.Name, err)
	case s.Mode == config.ModeProxy && len(others) == 0:
		log.Warn("no DHCP server answers, so machines will boot only if one does: mode = \"server\" would give them addresses from here", "segment", s.Name)
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

// allow returns who may ask a segment's servers: its own addresses, and those
// behind its relays.
func (cfg stackConfig) allow(seg config.Segment) func(netip.Addr) bool {
	prefixes := []netip.Prefix{seg.Address.Masked()}
	for _, other := range cfg.Segments {
		if other.Relay.IsValid() && other.Via == seg.Name {
			prefixes = append(prefixes, other.Relay.Masked())
		}
	}
	return func(a netip.Addr) bool {
		return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
	}
}

// join adds a segment without its servers.
func (s *stack) join(cfg stackConfig, seg config.Segment) (err error) {
	one := &segment{Segment: seg}
	for _, other := range cfg.Segments {
		if other.Relay.IsValid() && other.Via == seg.Name {
			one.relayed = append(one.relayed, &segment{Segment: other})
		}
	}
	s.segments = append(s.segments, one)
	if one.lan, err = lan.Open(lanConfig(seg, cfg.NoteDir)); err != nil {
		return err
	}
	if address := one.lan.Address(); one.Address != address {
		if err := one.SetAddress(address.String()); err != nil {
			return err
		}
	}
	for _, text := range one.lan.Warnings() {
		cfg.Log.Warn(text, "segment", seg.Name)
	}
	if one.lan.STP() {
		cfg.Log.Warn("spanning tree is on: a new port stays silent for longer than firmware asks; switch it off with 'ip link set " + one.lan.Interface() + " type bridge stp_state 0'")
	}
	one.know(cfg.Inventory)
	return nil
}

// open binds the servers of a segment.
func (s *stack) open(cfg stackConfig, one *segment) error {
	address, iface := one.Address, one.lan.Interface()
	if err := s.serveDHCP(cfg, one); err != nil {
		return err
	}

	root := netroot.New(netroot.Config{
		Programs: cfg.Files.nbp, Signed: cfg.Files.signed, Server: address.Addr(),
		URL: func(path string) string { return httpURL(address.Addr(), cfg.Server.HTTPPort, path) },
	})
	files := func(client netip.Addr) fs.FS { return root.View(one.web.Load(), one.clientAt(client), client) }
	allow := cfg.allow(one.Segment)
	tftp, err := tftpd.New(tftpd.Config{
		Addr: address.Addr(), Interface: iface, Files: files, Allow: allow, MTU: one.lan.MTU(),
		Who: one.who, Timeline: s.timeline, Logger: cfg.Log,
	})
	if err != nil {
		return err
	}
	s.tasks = append(s.tasks, tftp)

	certificate, err := cfg.certificate(address.Addr())
	if err != nil {
		return err
	}
	http, err := httpboot.New(httpboot.Config{
		Addr: address.Addr(), Interface: iface, Port: cfg.Server.HTTPPort, Inventory: one.web.Load, Client: one.client,
		Certificate: certificate, TLSPort: cfg.Server.HTTPSPort,
		Files: files, Allow: allow,
		Who: one.who, Timeline: s.timeline, Logger: cfg.Log,
	})
	if err != nil {
		return err
	}
	s.tasks = append(s.tasks, http)
	return nil
}

// lanConfig is a segment's network in the terms of package lan.
func lanConfig(seg config.Segment, noteDir string) lan.Config {
	return lan.Config{
		Name: seg.Name, Interface: seg.Interface, Bridge: seg.Bridge, Uplink: seg.Uplink, Parent: seg.Parent, VLAN: seg.VLAN,
		Address: seg.Address, NAT: seg.NAT, NoteDir: noteDir,
	}
}

// serveDHCP adds the DHCP server of a segment and what goes with it.
func (s *stack) serveDHCP(cfg stackConfig, one *segment) (err error) {
	file := cfg.LeaseFile(one.Name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("leases: %w", err)
	}
	if one.leases, err = dhcpd.OpenFileStore(file, cfg.Log); err != nil {
		return err
	}
	probe := dhcpd.DefaultProbeTime
	if one.Private() {
		probe = 0 // nobody else is there
	}
	one.dhcp, err = dhcpd.New(dhcpd.Config{
		Interface: one.lan.Interface(),
		Server:    one.Address,
		HTTPPort:  cfg.Server.HTTPPort,
		Network:   one.network(),
		Relayed:   one.subnets(),
		ProbeTime: probe,
		Store:     one.leases,
		Timeline:  s.timeline,
		Logger:    cfg.Log,
	})
	if err != nil {
		return err
	}
	s.tasks = append(s.tasks, one.dhcp)

	// On a network that others own, only a station that has just spoken as
	// iPXE is told anything about IPv6.
	only := one.dhcp.SeenIPXE
	if one.Private() {
		only = nil
	}
	advertiser, err := dhcpd.NewAdvertiser(dhcpd.AdvertiserConfig{Interface: one.lan.Interface(), Only: only, Logger: cfg.Log})
	if err != nil {
		return err
	}
	s.tasks = append(s.tasks, advertiser)
	return nil
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
	if s.dhcp == nil {
		return boot.Client{MAC: mac}
	}
	return s.dhcp.Client(mac)
}

// who names the machine that has an address: by the DHCP server, which may not
// have given it out, or else by the kernel, to which the machine has just
// spoken.
func (s *segment) who(a netip.Addr) string {
	if mac := s.dhcp.Who(a); mac != "" {
		return mac
	}
	if mac, ok := lan.Neighbour(s.lan.Interface(), a); ok {
		return boot.MAC(mac).String()
	}
	return ""
}

func routes(list []config.Route) []dhcpd.Route {
	out := make([]dhcpd.Route, len(list))
	for i, r := range list {
		out[i] = dhcpd.Route(r)
	}
	return out
}

// clientAt is who has an address: the zero Client if we do not know.
func (s *segment) clientAt(a netip.Addr) boot.Client {
	mac, err := boot.ParseMAC(s.who(a))
	if err != nil {
		return boot.Client{}
	}
	return s.client(mac)
}

// httpURL is the URL of an absolute path on the HTTP server of a segment.
func httpURL(server netip.Addr, port uint16, path string) string {
	host := server.String()
	if port != httpboot.DefaultPort {
		host = netip.AddrPortFrom(server, port).String()
	}
	return "http://" + host + path
}

// pool is a segment's ranges as one, with the gaps between them taken out.
func pool(s config.Segment) dhcpd.Pool {
	if len(s.Pool) == 0 {
		return dhcpd.Pool{}
	}
	list := slices.SortedFunc(slices.Values(s.Pool), func(a, b config.Range) int { return a.First.Compare(b.First) })
	p := dhcpd.Pool{Range: dhcpd.Range(list[0])}
	for _, x := range s.Exclude {
		p.Exclude = append(p.Exclude, dhcpd.Range(x))
	}
	for _, r := range list[1:] {
		if p.Last.Next().Less(r.First) {
			p.Exclude = append(p.Exclude, dhcpd.Range{First: p.Last.Next(), Last: r.First.Prev()})
		}
		if p.Last.Less(r.Last) {
			p.Last = r.Last
		}
	}
	return p
}

// serve runs all servers and calls body once they are ready. It ends with body,
// with the first error, or with ctx.
func (s *stack) serve(ctx context.Context, body func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	for _, t := range s.tasks {
		group.Go(func() error {
			if err := t.Run(ctx); err != nil {
				return fmt.Errorf("%s: %w", t, err)
			}
			return nil
		})
	}
	group.Go(func() error {
		defer cancel()
		for _, t := range s.tasks {
			select {
			case <-t.Ready():
			case <-ctx.Done():
				return nil
			}
		}
		return body(ctx)
	})
	// Run has closed the sockets of what ran.
	defer func() { s.tasks = nil }()
	return group.Wait()
}

// addressOf returns the address that a machine was given last.
func (s *segment) addressOf(mac boot.MAC) (a netip.Addr, ok bool) {
	if s.dhcp == nil {
		return a, false
	}
	var newest time.Time
	for _, l := range s.dhcp.Leases() {
		if l.MAC == mac && l.State == dhcpd.Bound && l.Expires.After(newest) {
			a, ok, newest = l.Addr, true, l.Expires
		}
	}
	return a, ok
}

// Close takes the segments down, the last first, once serve has returned or when
// it was never called.
func (s *stack) Close() error { return s.end((*lan.Segment).Close) }

// Leave is Close, but for segments that guests hold: those stay.
func (s *stack) Leave() error { return s.end((*lan.Segment).Leave) }

func (s *stack) end(end func(*lan.Segment) error) error {
	// A server that has bound its sockets lets go of them in Run.
	done, cancel := context.WithCancel(context.Background())
	cancel()
	var errs []error
	for _, t := range s.tasks {
		errs = append(errs, t.Run(done))
	}
	for _, one := range slices.Backward(s.segments) {
		if one.leases != nil {
			errs = append(errs, one.leases.Close())
		}
		if one.lan != nil {
			errs = append(errs, end(one.lan))
		}
	}
	return errors.Join(errs...)
}
