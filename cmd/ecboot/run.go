package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/vmm"
)

func newRunCommand(configPath *string) *cobra.Command {
	var flags guestFlags
	cmd := &cobra.Command{
		Use:   "run [PROFILE] [-- QEMU-ARGUMENT…]",
		Short: "Boot a QEMU guest over the network and show its timeline",
		Long: `Boot a QEMU guest through ecboot's own DHCP, TFTP and HTTP, on a private network
or an existing bridge. On a terminal you are at the guest's console once it is
ready; ` + escapeKeyName + ` leaves it and ends the guest. Without a terminal, or with --until
or -o json, the command ends when the guest is ready.`,
		Example: `  ecboot run
  ecboot run --firmware uefi --rom none
  ecboot run rescue --memory 2G -- -device virtio-balloon-pci`,
		ValidArgsFunction: completeProfiles(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			names := beforeDash(cmd, args)
			if len(names) > 1 {
				return withCode(exitUsage, fmt.Errorf("one profile at a time, not %s: QEMU's arguments go behind --", strings.Join(names, " ")))
			}
			cfg, err := loadConfig(*configPath)
			if err != nil {
				return err
			}
			profile := config.DefaultProfile
			if len(names) == 1 {
				profile = names[0]
			}
			if _, ok := cfg.Profiles[profile]; !ok {
				return withCode(exitUsage, fmt.Errorf("there is no profile %q: the configuration has %s", profile, profileNames(cfg)))
			}
			return flags.launch(cmd, cfg, profile)
		},
	}
	flags.register(cmd)
	return cmd
}

func profileNames(cfg *config.Config) string {
	var names []string
	for name := range cfg.Profiles {
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// beforeDash are the arguments that are ecboot's own.
func beforeDash(cmd *cobra.Command, args []string) []string {
	if at := cmd.ArgsLenAtDash(); at >= 0 {
		return args[:at]
	}
	return args
}

func newBootCommand() *cobra.Command {
	var flags guestFlags
	cmd := &cobra.Command{
		Use:   "boot KERNEL [INITRD…] [-- QEMU-ARGUMENT…]",
		Short: "Boot a kernel and its initrds over the network, without any configuration",
		Long: `Boot a QEMU guest into any kernel through ecboot's own DHCP, TFTP and HTTP. A
system that does not report to ecboot is ready when its console says so: --until
console:REGEX.`,
		Example: `  ecboot boot ./vmlinuz ./initrd.img --append quiet --until 'console:login:'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			files := beforeDash(cmd, args)
			if len(files) == 0 {
				return withCode(exitUsage, errors.New("which kernel? ecboot boot KERNEL [INITRD…]"))
			}
			cfg := config.Default()
			profile := config.Profile{Name: config.DefaultProfile}
			for i, file := range files {
				path, err := filepath.Abs(file)
				if err != nil {
					return err
				}
				check := readable
				if i == 0 {
					check = checkKernel
				}
				if err := check(path); err != nil {
					return err
				}
				if i == 0 {
					profile.Kernel = config.Source(path)
				} else {
					profile.Initrds = append(profile.Initrds, config.Source(path))
				}
			}
			profile.Cmdline = cfg.Profiles[config.DefaultProfile].Cmdline
			cfg.Profiles[profile.Name] = profile
			return flags.launch(cmd, cfg, profile.Name)
		},
	}
	flags.register(cmd)
	return cmd
}

// launch runs guests of one profile as the flags and the configuration say.
func (f *guestFlags) launch(cmd *cobra.Command, cfg *config.Config, profile string) (err error) {
	seg, err := f.segment.choose(cmd, cfg)
	if err != nil {
		return err
	}
	o, err := f.options(cmd, cfg, seg)
	if err != nil {
		return err
	}
	ctx, stderr := cmd.Context(), cmd.ErrOrStderr()
	log := newLogger(stderr, slog.LevelWarn)
	if o.Arch == vmm.ArchARM64 && cfg.Profiles[profile].Kernel == config.EmbeddedKernel {
		return withCode(exitUsage, errors.New("the system inside ecboot is for amd64: --arch arm64 needs a profile with a kernel of its own"))
	}
	if f.dryRun {
		return dryRun(ctx, cmd.OutOrStdout(), o, seg.Address.Addr(), cfg.Server.HTTPPort)
	}
	o.Attach = f.output == "text" && !cmd.Flags().Changed("until") && o.Count == 1 && isTerminal(os.Stdin) && isTerminal(os.Stdout)

	run, err := enter(seg.Private())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, run.Close()) }()
	// Nothing is built or looked for that no guest boots.
	cfg.Profiles = map[string]config.Profile{profile: cfg.Profiles[profile]}
	files, err := prepare(ctx, cfg, log)
	if err != nil {
		return err
	}
	if !seg.Private() {
		seg.Unknown = config.PolicyIgnore
	}
	inventory := guestInventory(cfg, seg, files, o, profile)
	stack, err := openStack(ctx, stackConfig{
		Segments: []config.Segment{seg}, Server: cfg.Server, Files: files,
		Inventory: func(config.Segment) *boot.Inventory { return inventory },
		LeaseFile: func(string) string { return run.file(leaseFileName) }, NoteDir: run.path, CertificateDir: certificateDir(cfg),
		Log: log, Say: func(what string) { fmt.Fprintln(stderr, what) },
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stack.Close()) }()

	b := &booter{options: o, stack: stack, segment: stack.segments[0], files: files, httpPort: cfg.Server.HTTPPort, stdout: cmd.OutOrStdout(), stderr: stderr}
	var doc report
	err = stack.serve(ctx, func(ctx context.Context) (err error) {
		doc, err = b.boot(ctx)
		return err
	})
	if err != nil {
		return err
	}
	if f.output == "json" {
		if err := doc.writeJSON(b.stdout); err != nil {
			return err
		}
	} else if !b.attached {
		doc.writeText(stderr)
	}
	return doc.err()
}

// guestInventory knows the guests and nobody else: whoever runs a guest on a
// bridge does not mean to boot its neighbours.
func guestInventory(cfg *config.Config, seg config.Segment, files *bootFiles, o guestOptions, profile string) *boot.Inventory {
	inv := files.inventory(cfg, seg)
	p := inv.Profiles[profile]
	p.Cmdline = strings.TrimSpace(p.Cmdline + " " + o.Append)
	guests := &boot.Inventory{
		Machines: map[boot.MAC]boot.Machine{}, Profiles: map[string]boot.Profile{profile: p},
		NBPs: inv.NBPs, Files: inv.Files,
	}
	for i, mac := range o.macs() {
		m := inv.Machines[mac] // what the configuration says of it, if it does
		m.MAC, m.Profile = mac, profile
		m.Name = cmp.Or(m.Name, guestName(i))
		m.Chainload = m.Chainload || o.Chainload
		guests.Machines[mac] = m
	}
	return guests
}

func guestName(i int) string {
	if i == 0 {
		return "guest"
	}
	return fmt.Sprintf("guest%d", i+1)
}

// err turns an outcome into an exit code. What is to be said has been said.
func (r report) err() error {
	switch r.Outcome {
	case outcomeFailed:
		return &codedError{exitGuest, errors.New("")}
	case outcomeTimeout:
		return &codedError{exitTimeout, errors.New("")}
	}
	return nil
}
