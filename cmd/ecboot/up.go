package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/internal/api"
	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
	declared "github.com/every-channel/ecboot/internal/guest"
	"github.com/every-channel/ecboot/internal/lan"
	"github.com/every-channel/ecboot/internal/scope"
	"github.com/every-channel/ecboot/internal/sdnotify"
	"github.com/every-channel/ecboot/internal/supervise"
	"github.com/every-channel/ecboot/internal/zfs"
	"github.com/every-channel/ecboot/vmm"
)

// upOptions is what the command line says of 'ecboot up'.
type upOptions struct {
	config      string
	noGuests    bool
	leaveGuests bool
	dryRun      bool
}

func newUpCommand(configPath *string) *cobra.Command {
	var o upOptions
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run the declared guests and the servers of their segments",
		Long: `Open the configuration's segments, serve DHCP, TFTP and HTTP on them, and run the
guests that it declares, until it is told to stop. Guests that an earlier 'ecboot up'
has left running are taken over. A signal HUP reads the configuration again.

A first Ctrl-C stops all guests gracefully, a second one at once.`,
		Example: `  ecboot up
  ecboot up --dry-run
  ecboot up --leave-guests`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.config = *configPath
			if o.dryRun {
				return upDryRun(cmd.Context(), o.config, cmd.OutOrStdout(), cmd.ErrOrStderr())
			}
			return up(cmd.Context(), o, cmd.ErrOrStderr())
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&o.noGuests, "no-guests", false, "open and serve the segments only, and start no guest")
	fs.BoolVar(&o.leaveGuests, "leave-guests", false, "let guests run on at the end, for the next 'ecboot up' to take over")
	fs.BoolVar(&o.dryRun, "dry-run", false, "check everything, print what would run, and start nothing")
	return cmd
}

// loadGuests reads the configuration as 'ecboot up' uses it: guests have their
// addresses, and private segments, of which there may be several, bridges of the
// host.
func loadGuests(path string, assign func(declared.MACStore, *config.Config) error) (*config.Config, error) {
	cfg, err := loadConfig(path)
	if err != nil {
		return nil, err
	}
	if err := assign(declared.StoreIn(stateDir(cfg)), cfg); err != nil {
		return nil, err
	}
	used := func(s config.Segment) bool {
		return !s.Private() || slices.ContainsFunc(cfg.Guests, func(g config.DeclaredGuest) bool {
			return slices.ContainsFunc(g.NICs, func(n config.GuestNIC) bool { return n.Segment == s.Name })
		})
	}
	// Nobody could ever be on a private segment without guests.
	cfg.Segments = slices.DeleteFunc(cfg.Segments, func(s config.Segment) bool { return !used(s) })
	for i, s := range cfg.Segments {
		if s.Private() {
			cfg.Segments[i] = onHost(s)
		}
	}
	return cfg, nil
}

// onHost is a private segment as a bridge of the host that nobody else is on.
func onHost(s config.Segment) config.Segment {
	s.Unknown = s.Policy()
	s.AllowOtherDHCP = true // there can be none to look for
	s.Bridge = s.HostBridge()
	return s
}

const upLockName = ".lock"

// upPID is the process id of the 'ecboot up' that runs, or ran last; 0 if none
// did.
func upPID(dir string) int {
	text, _ := os.ReadFile(filepath.Join(dir, upLockName))
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return pid
}

// lockPatience is for the lock of an 'ecboot up' that was killed: a process that
// it was about to start has it, too, until that executes its program.
const lockPatience = 5 * time.Second

// upLock makes sure that there is one 'ecboot up' on a host.
func upLock(dir string) (*os.File, error) {
	take := func() (*os.File, error) {
		return lockFile(filepath.Join(dir, upLockName), unix.LOCK_EX|unix.LOCK_NB)
	}
	f, err := take()
	for end := time.Now().Add(lockPatience); errors.Is(err, unix.EWOULDBLOCK); f, err = take() {
		if pid := upPID(dir); pid > 0 && !errors.Is(unix.Kill(pid, 0), unix.ESRCH) || time.Now().After(end) {
			return nil, withCode(exitEnvironment, fmt.Errorf("'ecboot up' runs already, as process %d: 'ecboot guest list' shows its guests, and 'kill -HUP %[1]d' makes it read the configuration again", pid))
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		return nil, withCode(exitEnvironment, err)
	}
	if err = f.Truncate(0); err == nil {
		_, err = fmt.Fprintln(f, os.Getpid())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func up(ctx context.Context, o upOptions, stderr io.Writer) (err error) {
	log := newLogger(stderr, slog.LevelWarn)
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	manager, err := sdnotify.New()
	if err != nil {
		return withCode(exitEnvironment, err)
	}
	// Main has the first of these end ctx; the second ends patience.
	interrupts := make(chan os.Signal, 8)
	signal.Notify(interrupts, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(interrupts)
	cfg, err := loadGuests(o.config, declared.MACStore.Assign)
	if err != nil {
		return err
	}
	where := userDirs()
	operators, err := operatorGroup(cfg)
	if err != nil {
		return err
	}
	runDir, err := makeUpDir(where.Run, operators)
	if err != nil {
		return withCode(exitEnvironment, err)
	}
	lock, err := upLock(runDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := errors.Join(sweep(where.Run), sweepSegments(runDir, cfg.Segments, log)); err != nil {
		return err
	}
	scopes := scope.Here()
	if err := scopes.Sweep(); err != nil {
		log.Warn("what guests have left of control groups stays", "err", err)
	}
	files, err := prepare(ctx, cfg, log)
	if err != nil {
		return err
	}
	stack, err := openStack(ctx, stackConfig{
		Segments: cfg.Segments, Server: cfg.Server, Files: files,
		Inventory: func(seg config.Segment) *boot.Inventory { return files.inventory(cfg, seg) },
		LeaseFile: func(segment string) string { return leaseFile(cfg, segment) }, NoteDir: runDir, CertificateDir: certificateDir(cfg),
		Log: log, Say: func(what string) { fmt.Fprintln(stderr, what) }, KeepHeld: true,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stack.Leave()) }()

	host := &guestHost{dirs: where, stack: stack, scopes: scopes, log: log}
	sup, err := supervise.New(supervise.Config{
		Dir: filepath.Join(where.Run, guestsDir), State: filepath.Join(stateDir(cfg), "guests.json"), Boot: bootID(),
		Timeline: stack.timeline, Log: log, OnAdopt: host.adopted, Clean: host.clean,
	})
	if err != nil {
		return err
	}
	known := &roster{
		path: o.config, log: log, file: cfg, store: machineStore(cfg), files: files, segments: stack.segments,
		read: func() (*config.Config, error) { return loadGuests(o.config, declared.MACStore.Assign) },
		applied: func(cfg *config.Config, files *bootFiles) {
			if !o.noGuests {
				sup.Update(host.declare(cfg, files))
			}
		},
	}
	if err := known.load(); err != nil {
		return err
	}
	known.applied(cfg, files)

	events, unwatch := known.bootEvents(stack.timeline)
	defer unwatch()
	backend := stack.backend(known)
	backend.Reload = func() error {
		err := known.reload(ctx)
		if err == nil {
			fmt.Fprintln(stderr, wasRead)
		}
		return err // whoever asked says it
	}
	if !o.noGuests {
		backend.Guests = &upGuests{sup: sup, host: host}
	}
	// One that was killed has left its socket.
	if err := os.Remove(filepath.Join(runDir, api.SocketName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return withCode(exitEnvironment, err)
	}
	control, err := listenUp(cfg, backend)
	if err != nil {
		return withCode(exitEnvironment, err)
	}
	stack.tasks = append(stack.tasks, control)
	// The servers outlive the guests.
	return stack.serve(context.WithoutCancel(ctx), func(serving context.Context) error {
		for _, s := range stack.segments {
			s.announce(stderr)
		}
		if len(cfg.Guests) == 0 {
			fmt.Fprintln(stderr, noneDeclared)
		}
		live := newLive(stderr, time.Now(), stack.timeline, host.label, labelWidth(cfg.Guests), known.knows)
		defer live.stop()
		var background sync.WaitGroup
		defer background.Wait()
		serving, stop := context.WithCancel(serving)
		defer stop()
		background.Go(func() { known.watchBoots(serving, events) })
		background.Go(func() {
			known.onHangup(serving, hangup, func(what string) { fmt.Fprintln(stderr, what) })
		})
		// Guests may take long to start in their order, and whether they do is
		// no condition of this service.
		if err := manager.Ready(); err != nil {
			return err
		}
		background.Go(func() { _ = manager.Watch(serving, func() bool { sup.List(); return true }) })
		defer context.AfterFunc(ctx, func() { _ = manager.Stopping() })()
		supervising, interrupt := context.WithCancel(serving)
		defer context.AfterFunc(ctx, interrupt)()
		if o.noGuests {
			<-supervising.Done()
			return nil
		}
		if err := sup.Run(supervising); err != nil {
			return err
		}
		if o.leaveGuests || ctx.Err() == nil {
			// Without servers, through no wish of anybody's, guests are as
			// well off alone.
			sup.Leave()
			return nil
		}
		fmt.Fprintln(stderr, "stopping all guests; once more to end them at once")
		stopGuests(sup, interrupts)
		return nil
	})
}

// stopGuests stops all guests gracefully, and at once after a second interrupt.
func stopGuests(sup *supervise.Supervisor, interrupts <-chan os.Signal) {
	patience, lose := context.WithCancel(context.Background())
	var waiting sync.WaitGroup
	defer waiting.Wait()
	defer lose()
	waiting.Go(func() {
		for range 2 {
			select {
			case <-interrupts:
			case <-patience.Done():
				return
			}
		}
		lose()
	})
	sup.StopAll(patience)
}

// sweepSegments undoes segments that are declared no longer, unless guests still
// run on them, and removes links that never came to a guest.
func sweepSegments(runDir string, segments []config.Segment, log *slog.Logger) error {
	var names []string
	for _, s := range segments {
		names = append(names, s.Name)
	}
	err := lan.Sweep(runDir, names...)
	removed, unused := lan.RemoveUnused()
	for _, name := range removed {
		log.Warn("a guest's link that nobody used was left, and is removed", "link", name)
	}
	return errors.Join(err, unused)
}

// bootID is another one after each start of the host.
func bootID() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id))
}

// labelWidth is the length of the longest of the guests' labels.
func labelWidth(guests []config.DeclaredGuest) (width int) {
	for _, g := range guests {
		width = max(width, len(g.Name))
	}
	return width
}

// label names a machine of the timeline: a guest by its name.
func (h *guestHost) label(machine string) string {
	cfg, _ := h.inEffect()
	if cfg == nil {
		return machine
	}
	for _, g := range cfg.Guests {
		if timelineName(g) == machine {
			return g.Name
		}
	}
	return machine
}

// upDryRun prints the command of every guest, and says what is in the way of the
// segments and of the guests.
func upDryRun(ctx context.Context, config string, stdout, stderr io.Writer) error {
	cfg, err := loadGuests(config, assignWithoutKeeping)
	if err != nil {
		return err
	}
	if len(cfg.Guests) == 0 {
		fmt.Fprintln(stderr, noneDeclared)
	}
	commands, err := commandsOfGuests(ctx, cfg)
	if err != nil {
		return err
	}
	h := &guestHost{dirs: userDirs(), scopes: scope.Here(), cfg: cfg}
	errs := []error{checkSegments(cfg.Segments, newLogger(stderr, slog.LevelWarn)), h.checkDatasets(ctx)}
	// What lies on a dataset shows when that is mounted.
	_, datasets, _ := h.datasets()
	known := func(path string) bool {
		return !slices.ContainsFunc(datasets.Steps, func(s zfs.Step) bool {
			return s.Path != "" && (path == s.Path || strings.HasPrefix(path, s.Path+"/"))
		})
	}
	for _, g := range cfg.Guests {
		errs = append(errs, missing(g, stateDir(cfg), known))
		if err := h.scopes.Check(scopeOf(g)); err != nil {
			errs = append(errs, fmt.Errorf("guest %s: %w", g.Name, err))
		}
		argv, err := commands(g)
		if err != nil {
			errs = append(errs, fmt.Errorf("guest %s: %w", g.Name, err))
			continue
		}
		fmt.Fprintf(stdout, "# %s\n%s\n", g.Name, vmm.ShellQuote(argv))
	}
	return withCode(exitEnvironment, errors.Join(errs...))
}

// checkSegments says what openStack would say of the segments, as far as that
// shows before anything is changed.
func checkSegments(list []config.Segment, log *slog.Logger) error {
	var errs []error
	for _, seg := range list {
		if seg.Relay.IsValid() {
			continue // served through another one
		}
		obstacles, warnings, err := lookAtSegment(list, seg)
		if err != nil {
			obstacles = []string{err.Error()}
		}
		if os.Geteuid() != 0 {
			// Root's 'ecboot up' itself may be in the way: only root can tell.
			obstacles, warnings = nil, append(obstacles, warnings...)
		}
		for _, text := range warnings {
			log.Warn(text, "segment", seg.Name)
		}
		if len(obstacles) > 0 {
			errs = append(errs, fmt.Errorf("segment %s: %s", seg.Name, strings.Join(obstacles, "\n")))
		}
	}
	return errors.Join(errs...)
}

// assignWithoutKeeping gives guests the addresses that they would have.
func assignWithoutKeeping(store declared.MACStore, cfg *config.Config) error {
	macs, err := store.Load()
	if err != nil {
		return err
	}
	_, err = declared.Assign(cfg, macs)
	return err
}

// commandOfGuest is the command that would run a guest, program first.
func commandOfGuest(ctx context.Context, cfg *config.Config, name string) ([]string, error) {
	if err := assignWithoutKeeping(declared.StoreIn(stateDir(cfg)), cfg); err != nil {
		return nil, err
	}
	g, ok := cfg.DeclaredGuest(name)
	if !ok {
		return nil, fmt.Errorf("guest %s: %w", name, supervise.ErrNotFound)
	}
	commands, err := commandsOfGuests(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return commands(*g)
}

// commandsOfGuests returns what tells the commands of guests, which have their
// addresses.
func commandsOfGuests(ctx context.Context, cfg *config.Config) (func(config.DeclaredGuest) ([]string, error), error) {
	log := slog.New(slog.DiscardHandler)
	files, err := prepare(ctx, cfg, log)
	if err != nil {
		return nil, err
	}
	h := &guestHost{dirs: userDirs(), log: log, cfg: cfg, files: files}
	return func(g config.DeclaredGuest) ([]string, error) {
		on, err := h.survey(ctx, g)
		if err != nil {
			return nil, err
		}
		return planCommand(planGuest(g, on))
	}, nil
}
