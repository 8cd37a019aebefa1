package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/every-channel/ecboot/internal/api"
	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/internal/lan"
)

func newServeCommand(configPath *string) *cobra.Command {
	var flags segmentFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve DHCP, TFTP and HTTP on a segment until it is told to stop",
		Long: `Serve DHCP, TFTP and HTTP to the machines of the configuration's segments, and
print what each of them does. On a network that others use, only machines that
the configuration names are answered, unless it says unknown = "boot".`,
		Example: `  ecboot serve
  ecboot serve --segment lan
  ecboot serve --bridge br0 --mode proxy`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(*configPath)
			if err != nil {
				return err
			}
			segments, err := flags.chooseAll(cmd, cfg)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), *configPath, cfg, segments, cmd.ErrOrStderr())
		},
	}
	flags.register(cmd)
	return cmd
}

func serve(ctx context.Context, configPath string, cfg *config.Config, segments []config.Segment, stderr io.Writer) (err error) {
	log := newLogger(stderr, slog.LevelWarn)
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	private := slices.ContainsFunc(segments, config.Segment.Private)
	if private && len(segments) > 1 {
		return withCode(exitUsage, errors.New("a private segment is served alone, in a namespace of its own: name the one to serve with --segment, or give it a bridge"))
	}
	run, err := enter(private)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, run.Close()) }()
	files, err := prepare(ctx, cfg, log)
	if err != nil {
		return err
	}
	stack, err := openStack(ctx, stackConfig{
		Segments: segments, Server: cfg.Server, Files: files,
		Inventory: func(seg config.Segment) *boot.Inventory { return files.inventory(cfg, seg) },
		LeaseFile: func(segment string) string { return leaseFile(cfg, segment) }, NoteDir: run.path, CertificateDir: certificateDir(cfg),
		Log: log, Say: func(what string) { fmt.Fprintln(stderr, what) },
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stack.Close()) }()
	known := &roster{
		path: configPath, log: log, file: cfg, store: machineStore(cfg), files: files, segments: stack.segments,
		read: func() (*config.Config, error) { return loadConfig(configPath) },
	}
	if err := known.load(); err != nil {
		return err
	}
	events, unwatch := known.bootEvents(stack.timeline)
	defer unwatch()
	control, err := api.Listen(run.file(api.SocketName), stack.backend(known))
	if err != nil {
		return withCode(exitEnvironment, err)
	}
	stack.tasks = append(stack.tasks, control)
	return stack.serve(ctx, func(ctx context.Context) error {
		for _, s := range stack.segments {
			s.announce(stderr)
		}
		var background sync.WaitGroup
		defer background.Wait()
		background.Go(func() { known.watchBoots(ctx, events) })
		background.Go(func() {
			known.onHangup(ctx, hangup, func(what string) { fmt.Fprintln(stderr, what) })
		})
		live := newLive(stderr, time.Now(), stack.timeline, func(machine string) string { return machine }, 0, known.knows)
		defer live.stop()
		<-ctx.Done()
		return nil
	})
}

// announce says what is served and to whom.
func (s *segment) announce(w io.Writer) {
	where := fmt.Sprintf("%s on %s", s.Address, s.lan.Interface())
	switch s.Mode {
	case config.ModeOff:
		fmt.Fprintf(w, "not serving %s (%s): its mode is \"off\"\n", where, s.Name)
		return
	case config.ModeProxy:
		fmt.Fprintf(w, "serving boot files from %s (%s), beside another DHCP server, to %s\n", where, s.Name, s.whom())
	default:
		fmt.Fprintf(w, "serving %s (%s) to %s\n", where, s.Name, s.whom())
	}
	for _, r := range s.relayed {
		fmt.Fprintf(w, "serving %s (%s), through the relay %s, to %s\n", r.Relay.Masked(), r.Name, r.Relay.Addr(), r.whom())
	}
	if s.Private() {
		user := ""
		if uid, isolated := lan.Isolated(); isolated && uid != 0 {
			user = "--user --preserve-credentials "
		}
		fmt.Fprintf(w, "the segment is private to this process: 'nsenter --target %d %s--net' enters it\n", os.Getpid(), user)
	}
}

// whom says who is answered.
func (s *segment) whom() string {
	declared := fmt.Sprintf("%d declared machines", s.inventory.Load().Len())
	if s.inventory.Load().Len() == 1 {
		declared = "1 declared machine"
	}
	switch s.Policy() {
	case config.PolicyIgnore:
		return declared + " only"
	case config.PolicyAddress:
		return declared + ", and addresses to all others"
	}
	return "every machine"
}

// enter gets this process ready to make things that must not outlive it: what
// dead processes left is undone, and a private segment gets its namespace.
func enter(private bool) (*runDir, error) {
	base := userDirs().Run
	if _, isolated := lan.Isolated(); !isolated {
		if err := sweep(base); err != nil {
			return nil, err
		}
		if private {
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
