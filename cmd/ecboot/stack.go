package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/every-channel/ecboot/dhcpd"
	"github.com/every-channel/ecboot/httpboot"
	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/internal/lan"
	"github.com/every-channel/ecboot/internal/timeline"
)

// task is the shape of everything that runs for long.
type task interface {
	Run(context.Context) error
	Ready() <-chan struct{}
	String() string
}

// tasks run side by side.
type tasks []task

// run runs them all, and body once they are ready. It ends with body, with the
// first error, or with ctx.
func (list tasks) run(ctx context.Context, body func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	for _, t := range list {
		group.Go(func() error {
			if err := t.Run(ctx); err != nil {
				return fmt.Errorf("%s: %w", t, err)
			}
			return nil
		})
	}
	group.Go(func() error {
		defer cancel()
		for _, t := range list {
			select {
			case <-t.Ready():
			case <-ctx.Done():
				return nil
			}
		}
		return body(ctx)
	})
	return group.Wait()
}

// release ends tasks that have not run: what has bound its sockets lets go of
// them in Run.
func (list tasks) release() error {
	done, cancel := context.WithCancel(context.Background())
	cancel()
	var errs []error
	for _, t := range list {
		errs = append(errs, t.Run(done))
	}
	return errors.Join(errs...)
}

// stack is the segments that one process serves.
type stack struct {
	segments []*segment
	timeline *timeline.Recorder
	tasks    tasks
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
	for _, seg := range natLast(cfg.Segments) {
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
		look.Go(func() error { return one.lookAround(ctx) })
	}
	if err := look.Wait(); err != nil {
		return nil, err
	}
	for _, one := range s.segments {
		if err := one.bind(); err != nil {
			return nil, fmt.Errorf("segment %s: %w", one.Name, err)
		}
		s.tasks = append(s.tasks, one)
	}
	return s, nil
}

// natLast is the order in which segments are opened: the way out of one with NAT
// may move to the bridge of another.
func natLast(segments []config.Segment) []config.Segment {
	order := slices.Clone(segments)
	slices.SortStableFunc(order, func(a, b config.Segment) int {
		switch {
		case a.NAT == b.NAT:
			return 0
		case b.NAT:
			return -1
		}
		return 1
	})
	return order
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
	one := &segment{Segment: seg, cfg: cfg, timeline: s.timeline, ready: make(chan struct{})}
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

// lanConfig is a segment's network in the terms of package lan.
func lanConfig(seg config.Segment, noteDir string) lan.Config {
	return lan.Config{
		Name: seg.Name, Interface: seg.Interface, Bridge: seg.Bridge, Uplink: seg.Uplink, Parent: seg.Parent, VLAN: seg.VLAN,
		Address: seg.Address, NAT: seg.NAT, NoteDir: noteDir,
	}
}

func routes(list []config.Route) []dhcpd.Route {
	out := make([]dhcpd.Route, len(list))
	for i, r := range list {
		out[i] = dhcpd.Route(r)
	}
	return out
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
	// Run has closed the sockets of what ran.
	defer func() { s.tasks = nil }()
	return s.tasks.run(ctx, body)
}

// Close takes the segments down, the last first, once serve has returned or when
// it was never called.
func (s *stack) Close() error { return s.end((*lan.Segment).Close) }

// Leave is Close, but for segments that guests hold: those stay.
func (s *stack) Leave() error { return s.end((*lan.Segment).Leave) }

func (s *stack) end(end func(*lan.Segment) error) error {
	errs := []error{s.tasks.release()}
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
