package main

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/spf13/cobra"

	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/internal/lan"
)

// segmentFlags choose the network of run, boot and serve.
type segmentFlags struct{ segment, bridge, address, mode string }

func (f *segmentFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.segment, "segment", "", "`NAME` of a segment of the configuration")
	completeSegmentFlag(cmd)
	fs.StringVar(&f.bridge, "bridge", "", "existing `BRIDGE` to use, whether the configuration declares it or not")
	fs.StringVar(&f.address, "address", "", "the servers' `ADDRESS/LENGTH` (default: the configuration's, or the one that the link has)")
	fs.StringVar(&f.mode, "mode", "", "`server|proxy`: give addresses, or only boot files beside another DHCP server")
}

// choose finds the segment that the flags and the configuration mean.
func (f *segmentFlags) choose(cmd *cobra.Command, cfg *config.Config) (config.Segment, error) {
	list, err := f.chooseAll(cmd, cfg)
	switch {
	case err != nil:
		return config.Segment{}, err
	case len(list) > 1:
		return config.Segment{}, withCode(exitUsage, fmt.Errorf("which segment? Name one with --segment: the configuration has %s", segmentNames(cfg)))
	}
	return list[0], nil
}

// chooseAll finds all segments that are meant; without a flag that is every one
// of the configuration.
func (f *segmentFlags) chooseAll(cmd *cobra.Command, cfg *config.Config) ([]config.Segment, error) {
	changed := cmd.Flags().Changed
	list := cfg.Segments
	switch {
	case f.segment != "" && f.bridge != "":
		return nil, withCode(exitUsage, errors.New("--segment and --bridge: give one of the two"))
	case changed("segment"):
		s, ok := cfg.Segment(f.segment)
		if !ok {
			return nil, withCode(exitUsage, fmt.Errorf("there is no segment %q: the configuration has %s", f.segment, segmentNames(cfg)))
		}
		list = withRelayed(cfg, *s)
	case changed("bridge"):
		s, err := bridged(cfg, f.bridge)
		if err != nil {
			return nil, withCode(exitEnvironment, err)
		}
		list = withRelayed(cfg, s)
	}
	list = append([]config.Segment(nil), list...)
	for i := range list {
		s := &list[i]
		if s.Relay.IsValid() {
			continue
		}
		if changed("mode") {
			if f.mode != string(config.ModeServer) && f.mode != string(config.ModeProxy) {
				return nil, withCode(exitUsage, fmt.Errorf("--mode %s: want server or proxy", f.mode))
			}
			if s.Mode = config.Mode(f.mode); s.Mode == config.ModeProxy && s.Private() {
				return nil, withCode(exitUsage, errors.New("--mode proxy: on a private segment there is no other DHCP server; name a bridge with --bridge"))
			}
		}
		if changed("address") {
			if err := s.SetAddress(f.address); err != nil {
				return nil, withCode(exitUsage, fmt.Errorf("--address: %w", err))
			}
		}
	}
	if changed("address") && len(list) > 1 {
		return nil, withCode(exitUsage, errors.New("--address is of one segment: name it with --segment"))
	}
	return list, nil
}

// withRelayed returns a segment and those whose relays ask its servers.
func withRelayed(cfg *config.Config, s config.Segment) []config.Segment {
	list := []config.Segment{s}
	for _, other := range cfg.Segments {
		if other.Relay.IsValid() && other.Via == s.Name {
			list = append(list, other)
		}
	}
	return list
}

// bridged returns the segment that the configuration declares on a bridge, or a
// new one, which has the address of a private segment if the bridge has none. A
// bridge that was named on the command line must be there: a slip of the finger
// makes none.
func bridged(cfg *config.Config, bridge string) (config.Segment, error) {
	for _, s := range cfg.Segments {
		if s.Bridge == bridge {
			return s, nil
		}
	}
	if _, err := net.InterfaceByName(bridge); err != nil {
		return config.Segment{}, fmt.Errorf("there is no bridge %s: make it with 'ip link add %[1]s type bridge', or leave --bridge out for a private segment", bridge)
	}
	address, err := lan.AddressOf(bridge)
	if err != nil {
		return config.Segment{}, err
	}
	s := config.NewSegment(bridge)
	s.Bridge = bridge
	if !address.IsValid() || address.Addr().IsLoopback() {
		address = config.Default().Segments[0].Address
	}
	return s, s.SetAddress(address.String())
}

func segmentNames(cfg *config.Config) string {
	names := make([]string, len(cfg.Segments))
	for i, s := range cfg.Segments {
		names[i] = s.Name
	}
	return strings.Join(names, ", ")
}
