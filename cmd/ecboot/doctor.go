package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/every-channel/ecboot/images"
	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/internal/doctor"
	"github.com/every-channel/ecboot/internal/lan"
	"github.com/every-channel/ecboot/internal/timeline"
	"github.com/every-channel/ecboot/vmm"
)

func newDoctorCommand(configPath *string) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check what the verbs need from this machine and say how to mend it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(*configPath)
			if err != nil {
				return err
			}
			env := doctor.System()
			env.StateDir, env.CacheDir = stateDir(cfg), userDirs().Cache
			env.Address, env.HTTPPort = cfg.Segments[0].Address.Addr(), cfg.Server.HTTPPort
			env.Up = upPID(filepath.Join(userDirs().Run, upName))
			env.Segments = segmentChecks(cfg)
			env.Guests, env.OperatorGroup = guestParts(cfg), cfg.Server.OperatorGroup
			env.KVM = func(ctx context.Context) (bool, string) {
				accel, why, err := vmm.ResolveAccel(ctx, vmm.AccelAuto, userDirs().Cache)
				if err != nil {
					return false, err.Error()
				}
				return accel == vmm.AccelKVM, why
			}
			env.Firmware = func() (string, error) { return guestFirmware(cfg, vmm.FindUEFI) }
			env.Images = describeImages

			checks := doctor.Run(cmd.Context(), env)
			if output == "json" {
				err = doctor.WriteJSON(cmd.OutOrStdout(), checks)
			} else {
				err = doctor.WriteText(cmd.OutOrStdout(), checks)
			}
			if err == nil && doctor.Worst(checks) == doctor.Fail {
				err = withCode(exitEnvironment, errors.New("this machine lacks something; the checks above say how to mend it"))
			}
			return err
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

// guestParts says which guests cannot do without what.
func guestParts(cfg *config.Config) map[string][]string {
	needed := map[string][]string{}
	for _, g := range cfg.Guests {
		need := func(part string, is bool) {
			if is {
				needed[part] = append(needed[part], g.Name)
			}
		}
		need(doctor.PartARM64, g.Arch == vmm.ArchARM64)
		need(doctor.PartDisk, slices.ContainsFunc(g.Disks, func(d config.GuestDisk) bool { return !d.ReadOnly && !d.ISO }))
		need(doctor.PartTPM, g.TPM)
		need(doctor.PartVirtiofs, slices.ContainsFunc(g.Shares, func(s config.GuestShare) bool { return s.Driver == vmm.ShareVirtiofs }))
		need(doctor.PartContainer, !g.VM())
		need(doctor.PartZFS, len(g.ZFS) > 0)
	}
	return needed
}

// guestFirmware finds UEFI for "ecboot run" and for each declared guest that has
// it.
func guestFirmware(cfg *config.Config, find func(vmm.Wanted) (vmm.UEFI, error)) (found string, err error) {
	var errs []error
	uefi, err := find(vmm.Wanted{Machine: cfg.Guest.Machine})
	if err != nil {
		errs = append(errs, err)
	}
	for _, g := range cfg.Guests {
		if !hasUEFI(g) {
			continue
		}
		if _, err := find(wantedUEFI(g)); err != nil {
			errs = append(errs, fmt.Errorf("guest %s: %w", g.Name, err))
		}
	}
	return uefi.Code, errors.Join(errs...)
}

// segmentChecks looks at the networks of this host that the configuration names.
func segmentChecks(cfg *config.Config) (out []doctor.Segment) {
	for _, seg := range cfg.Segments {
		if seg.Private() || seg.Relay.IsValid() {
			continue
		}
		out = append(out, doctor.Segment{
			Name: seg.Name,
			Link: cmp.Or(seg.Interface, seg.Parent, seg.Uplink, seg.Bridge),
			Look: func() (obstacles, warnings []string, err error) { return lookAtSegment(cfg.Segments, seg) },
		})
	}
	return out
}

// lookAtSegment says what would keep 'ecboot up' from opening a segment now, among
// those of its configuration, and what would be unexpected. It changes nothing.
func lookAtSegment(all []config.Segment, seg config.Segment) (obstacles, warnings []string, err error) {
	var others []string
	for _, s := range all {
		if s.Name != seg.Name {
			others = append(others, s.Name)
		}
	}
	return lan.Check(lanConfig(seg, filepath.Join(userDirs().Run, upName)), others...)
}

func describeImages() (string, error) {
	set, err := images.Default()
	if err != nil {
		return "", err
	}
	var size int64
	for _, i := range set.List() {
		size += i.Size
	}
	return fmt.Sprintf("%d images, %s", len(set.List()), timeline.FormatBytes(size)), nil
}
