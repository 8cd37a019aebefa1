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
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/every-channel/ecboot/dhcpd"
	"github.com/every-channel/ecboot/httpboot"
	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/internal/lan"
	"github.com/every-channel/ecboot/internal/timeline"
	"github.com/every-channel/ecboot/tftpd"
)

// task is the shape of everything that runs for long.
type task interface {
	Run(context.Context) error
	Ready() <-chan struct{}
	String() string
}

// stack is a segment with its servers.
type stack struct {
	segment  *lan.Segment
	dhcp     *dhcpd.Server
	timeline *timeline.Recorder
	leases   *dhcpd.FileStore
	tasks    []task
}

// stackConfig says what to serve where.
type stackConfig struct {
	Segment   config.Segment
	HTTPPort  uint16
	Inventory *boot.Inventory
	NBP       fs.FS  // boot programs
	LeaseFile string // its directory is made when missing
	NoteDir   string // for what must be undone after a kill
	Log       *slog.Logger
}

// openStack opens the segment and binds every server, so that whatever is in
// the way is an error before anything is served. When it fails it leaves
// nothing.
func openStack(cfg stackConfig) (_ *stack, err error) {
	s := &stack{timeline: timeline.New()}
	defer func() {
		if err != nil {
			err = withCode(exitEnvironment, errors.Join(err, s.Close()))
		}
	}()
	seg := cfg.Segment
	s.segment, err = lan.Open(lan.Config{Bridge: seg.Bridge, Address: seg.Address, NoteDir: cfg.NoteDir})
	if err != nil {
		return nil, err
	}
	address, iface := s.segment.Address(), s.segment.Interface()
	if s.segment.STP() {
		cfg.Log.Warn("spanning tree is on: a new port stays silent for longer than firmware asks; switch it off with 'ip link set " + iface + " type bridge stp_state 0'")
	}
	if err := os.MkdirAll(filepath.Dir(cfg.LeaseFile), 0o755); err != nil {
		return nil, fmt.Errorf("leases: %w", err)
	}
	if s.leases, err = dhcpd.OpenFileStore(cfg.LeaseFile, cfg.Log); err != nil {
		return nil, err
	}
	inventory := func() *boot.Inventory { return cfg.Inventory }
	private := seg.Bridge == ""
	s.dhcp, err = dhcpd.New(dhcpd.Config{
		Interface:     iface,
		Server:        address,
		Pool:          dhcpd.Pool{Range: dhcpd.Range(seg.Pool), Exclude: ranges(seg.Exclude)},
		LeaseTime:     seg.LeaseTime,
		HTTPPort:      cfg.HTTPPort,
		Router:        seg.Router,
		DNS:           seg.DNS,
		NTP:           seg.NTP,
		Domain:        seg.Domain,
		Inventory:     inventory,
		AnswerUnknown: seg.Policy() != config.PolicyIgnore,
		Authoritative: private,
		Store:         s.leases,
		Timeline:      s.timeline,
		Logger:        cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	s.tasks = append(s.tasks, s.dhcp)

	// On a network that others own, only a station that has just spoken as
	// iPXE is told anything about IPv6.
	only := s.dhcp.SeenIPXE
	if private {
		only = nil
	}
	advertiser, err := dhcpd.NewAdvertiser(dhcpd.AdvertiserConfig{Interface: iface, Only: only, Logger: cfg.Log})
	if err != nil {
		return nil, err
	}
	s.tasks = append(s.tasks, advertiser)

	tftp, err := tftpd.New(tftpd.Config{
		Addr: address.Addr(), Interface: iface, Files: func(netip.Addr) fs.FS { return cfg.NBP }, MTU: s.segment.MTU(),
		Who: s.dhcp.Who, Timeline: s.timeline, Logger: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	s.tasks = append(s.tasks, tftp)

	http, err := httpboot.New(httpboot.Config{
		Addr: address.Addr(), Interface: iface, Port: cfg.HTTPPort, Inventory: inventory,
		Files: func(netip.Addr) fs.FS { return cfg.NBP }, Allow: address.Masked().Contains,
		Who: s.dhcp.Who, Timeline: s.timeline, Logger: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	s.tasks = append(s.tasks, http)
	return s, nil
}

func ranges(list []config.Range) []dhcpd.Range {
	out := make([]dhcpd.Range, len(list))
	for i, r := range list {
		out[i] = dhcpd.Range(r)
	}
	return out
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
func (s *stack) addressOf(mac boot.MAC) (a netip.Addr, ok bool) {
	var newest time.Time
	for _, l := range s.dhcp.Leases() {
		if l.MAC == mac && l.State == dhcpd.Bound && l.Expires.After(newest) {
			a, ok, newest = l.Addr, true, l.Expires
		}
	}
	return a, ok
}

// Close takes the segment down once serve has returned or when it was never
// called.
func (s *stack) Close() error {
	// A server that has bound its sockets lets go of them in Run.
	done, cancel := context.WithCancel(context.Background())
	cancel()
	var errs []error
	for _, t := range s.tasks {
		errs = append(errs, t.Run(done))
	}
	if s.leases != nil {
		errs = append(errs, s.leases.Close())
	}
	if s.segment != nil {
		errs = append(errs, s.segment.Close())
	}
	return errors.Join(errs...)
}
