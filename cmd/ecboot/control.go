package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/every-channel/ecboot/internal/api"
	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/internal/lan"
	"github.com/every-channel/ecboot/internal/timeline"
)

// backend is what the stack does for command lines that ask.
func (s *stack) backend(known *roster) api.Backend {
	return api.Backend{
		Status: func() api.Status {
			st := s.status()
			st.Config = configFile(known.path)
			return st
		},
		Reload: known.load,
		Release: func(name string, a netip.Addr) error {
			one := s.segment(name)
			if one == nil || one.dhcp.Load() == nil {
				return fmt.Errorf("segment %q: %w", name, api.ErrNotFound)
			}
			return one.dhcp.Load().Release(a)
		},
		Wake: func(name string, mac boot.MAC) error {
			var errs []error
			for _, one := range s.segments {
				if name == "" || one.Name == name {
					errs = append(errs, lan.Wake(one.lan.Interface(), mac))
				}
			}
			if errs == nil {
				return fmt.Errorf("segment %q: %w", name, api.ErrNotFound)
			}
			return errors.Join(errs...)
		},
	}
}

// listenUp answers command lines for 'ecboot up', those of operators included.
func listenUp(cfg *config.Config, b api.Backend) (*api.Server, error) {
	gid, err := operatorGroup(cfg)
	if err != nil {
		return nil, err
	}
	dir, err := makeUpDir(userDirs().Run, gid)
	if err != nil {
		return nil, err
	}
	s, err := api.Listen(filepath.Join(dir, api.SocketName), b)
	if err != nil {
		return nil, err
	}
	if gid < 0 {
		return s, nil
	}
	return s, s.Share(gid)
}

// configFile is the absolute path of the configuration; empty when there is none.
func configFile(explicit string) string {
	found, err := config.Find(explicit)
	if err != nil || found == "" {
		return explicit
	}
	path, err := filepath.Abs(found)
	if err != nil {
		return found
	}
	return path
}

// segment finds the one called name; nil when there is none.
func (s *stack) segment(name string) *segment {
	for _, one := range s.segments {
		if one.Name == name {
			return one
		}
	}
	return nil
}

func (s *stack) status() api.Status {
	st := api.Status{Schema: api.Schema, PID: os.Getpid(), Segments: []api.Segment{}, Machines: []api.Machine{}}
	for _, one := range s.segments {
		st.Segments = append(st.Segments, api.Segment{Name: one.Name, Mode: string(one.Mode), Interface: one.lan.Interface(), Address: one.Address})
	}
	for _, name := range s.timeline.Machines() {
		mac, err := boot.ParseMAC(name)
		if err != nil {
			continue // somebody whom only an address is known of
		}
		st.Machines = append(st.Machines, s.machine(mac, s.timeline.Events(name)))
	}
	return st
}

// machine tells what is known of a machine that was seen.
func (s *stack) machine(mac boot.MAC, events []timeline.Event) api.Machine {
	m := api.Machine{MAC: mac, Steps: []timeline.Step{}}
	for _, one := range s.segments {
		a, ok := one.addressOf(mac)
		if !ok && (len(s.segments) > 1 || !slices.ContainsFunc(events, fromNetwork)) {
			continue
		}
		m.Segment = one.Name
		if ok {
			m.Address = a.String()
		}
		if c := one.client(mac); c.Kind != boot.KindOS {
			m.Platform, m.UUID = string(c.Platform()), c.UUID
		}
		break
	}
	if len(events) > 0 {
		m.Seen = events[len(events)-1].At
		m.Steps = timeline.Steps(bootBegin(events), events)
	}
	return m
}

// fromNetwork reports whether a server heard an event: others are known of a guest
// by who watches it, whatever network it is on.
func fromNetwork(e timeline.Event) bool {
	switch e.Stage {
	case timeline.Start, timeline.Firmware, timeline.Linux, timeline.Panic, timeline.Exit, timeline.Guest:
		return false
	}
	return true
}

// bootBegin is when the last boot began: at the last request of firmware or, of
// a machine without one, of iPXE, that was not asked within one boot of another.
func bootBegin(events []timeline.Event) time.Time {
	begin := events[0].At
	for i, e := range events {
		first := e.Stage == timeline.Start || e.Stage == timeline.DHCP("firmware", "discover") || e.Stage == timeline.DHCP("ipxe", "discover")
		if first && (i == 0 || !early[events[i-1].Stage]) {
			begin = e.At
		}
	}
	return begin
}

// early are the stages after which a boot may ask for an address again.
var early = map[timeline.Stage]bool{
	timeline.Start: true, timeline.Firmware: true, timeline.TFTP: true, timeline.HTTPBoot: true,
	timeline.DHCP("firmware", "discover"): true, timeline.DHCP("firmware", "offer"): true,
	timeline.DHCP("firmware", "request"): true, timeline.DHCP("firmware", "ack"): true,
	timeline.DHCP("ipxe", "discover"): true, timeline.DHCP("ipxe", "offer"): true,
}
