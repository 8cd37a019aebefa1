package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/every-channel/ecboot/images"
	"github.com/every-channel/ecboot/internal/doctor"
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
			env.KVM = func(ctx context.Context) (bool, string) {
				accel, why, err := vmm.ResolveAccel(ctx, vmm.AccelAuto, userDirs().Cache)
				if err != nil {
					return false, err.Error()
				}
				return accel == vmm.AccelKVM, why
			}
			env.Firmware = func() (string, error) {
				uefi, err := vmm.FindUEFI(vmm.Wanted{Machine: cfg.Guest.Machine})
				return uefi.Code, err
			}
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
