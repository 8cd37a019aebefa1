package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/internal/lan"
)

func newServeCommand(configPath *string) *cobra.Command {
	var flags segmentFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve DHCP, TFTP and HTTP on a segment until it is told to stop",
		Long: `Serve DHCP, TFTP and HTTP to every machine of a segment, and print what each of
them does. On an existing bridge only machines that the configuration names are
answered, unless it says unknown = "boot".`,
		Example: `  ecboot serve --bridge br0`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(*configPath)
			if err != nil {
				return err
			}
			if err := flags.apply(cmd, cfg); err != nil {
				return err
			}
			return serve(cmd.Context(), cfg, cmd.ErrOrStderr())
		},
	}
	flags.register(cmd)
	return cmd
}

// segmentFlags choose the network of run, boot and serve.
type segmentFlags struct{ bridge, address string }

func (f *segmentFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.bridge, "bridge", "", "existing `BRIDGE` to use instead of a private network")
	cmd.Flags().StringVar(&f.address, "address", "", "the servers' `ADDRESS/LENGTH` (default 10.77.0.1/24; on a bridge the one that it has)")
}

// apply lays the flags over the configuration.
func (f *segmentFlags) apply(cmd *cobra.Command, cfg *config.Config) error {
	if cmd.Flags().Changed("bridge") {
		cfg.Segment.Bridge = f.bridge
	}
	if cmd.Flags().Changed("address") {
		if err := cfg.Segment.SetAddress(f.address); err != nil {
			return withCode(exitUsage, fmt.Errorf("--address: %w", err))
		}
		return nil
	}
	if cfg.Segment.Bridge == "" || cfg.Segment.Address != config.Default().Segment.Address {
		return nil
	}
	// Nobody has chosen an address: the one that the bridge has is right.
	address, err := lan.AddressOf(cfg.Segment.Bridge)
	if err != nil {
		return withCode(exitEnvironment, err)
	}
	if !address.IsValid() || address == cfg.Segment.Address {
		return nil
	}
	return withCode(exitUsage, cfg.Segment.SetAddress(address.String()))
}

func serve(ctx context.Context, cfg *config.Config, stderr io.Writer) (err error) {
	log := newLogger(stderr, slog.LevelWarn)
	run, err := enter(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, run.Close()) }()
	files, err := prepare(ctx, cfg, log)
	if err != nil {
		return err
	}
	stack, err := openStack(stackConfig{
		Segment: cfg.Segment, HTTPPort: cfg.Server.HTTPPort, Inventory: files.inventory, NBP: files.nbp,
		LeaseFile: leaseFile(cfg), NoteDir: run.path, Log: log,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stack.Close()) }()
	return stack.serve(ctx, func(ctx context.Context) error {
		fmt.Fprintf(stderr, "serving %s on %s; Ctrl-C ends it\n", stack.segment.Address(), stack.segment.Interface())
		if cfg.Segment.Bridge == "" {
			fmt.Fprintf(stderr, "the segment is private to this process: 'nsenter --target %d --net' enters it\n", os.Getpid())
		} else if cfg.Segment.Policy() == config.PolicyIgnore {
			fmt.Fprintf(stderr, "only the %d machines of the configuration are answered; unknown = \"boot\" answers all\n", len(cfg.Machines))
		}
		live := newLive(stderr, time.Now(), stack.timeline, func(machine string) string { return machine })
		defer live.stop()
		<-ctx.Done()
		return nil
	})
}

// enter gets this process ready to make things that must not outlive it: what
// dead processes left is undone, and a private segment gets its namespace.
func enter(cfg *config.Config) (*runDir, error) {
	base := userDirs().Run
	if _, isolated := lan.Isolated(); !isolated {
		if err := sweep(base); err != nil {
			return nil, err
		}
		if cfg.Segment.Bridge == "" {
			return nil, withCode(exitEnvironment, lan.Isolate())
		}
	}
	run, err := openRunDir(base)
	if err != nil {
		return nil, withCode(exitEnvironment, fmt.Errorf("directory for this process: %w", err))
	}
	return run, nil
}

// newLogger prints from level on. Warnings are for whoever may have to act on
// them; of a boot the timeline tells the rest.
func newLogger(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
}
