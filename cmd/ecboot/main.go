// Command ecboot boots machines over the network: it serves DHCP, TFTP and HTTP
// on a bridge, builds the system that they boot, and runs QEMU guests that boot
// through it.
package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/internal/keeper"
	"github.com/every-channel/ecboot/internal/lan"
)

// Exit codes. They are part of the interface: scripts branch on them.
const (
	exitFailed      = 1 // ecboot itself could not do it
	exitUsage       = 2 // the command line or the configuration is wrong
	exitGuest       = 3 // the guest failed
	exitTimeout     = 4 // the guest did not get there in time
	exitEnvironment = 5 // this machine lacks something; ecboot doctor says what
)

// codedError is an error that decides the exit code.
type codedError struct {
	code int
	err  error
}

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }

// withCode gives err an exit code unless it has one; nil stays nil.
func withCode(code int, err error) error {
	var coded *codedError
	if err == nil || errors.As(err, &coded) {
		return err
	}
	return &codedError{code, err}
}

func main() { os.Exit(mainCode()) }

func mainCode() int {
	passNothingOn()
	lan.RunWatchdog()
	keeper.RunKeeper()
	// The first Ctrl-C ends in good order, the second at once: after the
	// first, the signal has its default effect again.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)

	root, started := newRoot()
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if !*started {
		err = withCode(exitUsage, err)
	}
	if msg := err.Error(); msg != "" {
		fmt.Fprintln(os.Stderr, "ecboot:", msg)
	}
	var coded *codedError
	if errors.As(err, &coded) {
		return coded.code
	}
	return exitFailed
}

// passNothingOn keeps what this process was started with, such as the lock of
// flock(1), from guests and watchdogs: they outlive it.
func passNothingOn() {
	if unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	// Linux before 5.11 cannot.
	open, _ := os.ReadDir("/proc/self/fd")
	for _, f := range open {
		if fd, err := strconv.Atoi(f.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

// newRoot builds the command tree; started becomes true once the command line
// has been understood and a verb begins.
func newRoot() (root *cobra.Command, started *bool) {
	started = new(bool)
	root = &cobra.Command{
		Use:   "ecboot",
		Short: "Boot machines over the network: DHCP, TFTP, HTTP, u-root images and QEMU guests",
		Long: `ecboot boots machines over the network. It serves DHCP, TFTP and HTTP on a real
bridge, builds u-root systems, and runs QEMU guests that boot through it.

Start with 'ecboot run': it boots one guest on a private network.

Exit codes: 0 done, 1 failed, 2 wrong command line or configuration, 3 the guest
failed, 4 the guest timed out, 5 this machine lacks something ('ecboot doctor').`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if f := cmd.Flag("config"); f.Changed && f.Value.String() == "" {
				return errors.New("--config is given and empty: name a file, or leave it out")
			}
			*started = true
			// A terminal that goes away ends a verb; a daemon reads its
			// configuration again.
			if cmd.Name() != "serve" && cmd.Name() != "up" {
				ctx, _ := signal.NotifyContext(cmd.Context(), syscall.SIGHUP)
				cmd.SetContext(ctx)
			}
			return nil
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		var number *strconv.NumError
		if errors.As(err, &number) {
			err = errors.New(strings.Replace(err.Error(), number.Error(), "want a whole number", 1))
		}
		return withCode(exitUsage, fmt.Errorf("%w: see '%s --help'", err, cmd.CommandPath()))
	})
	var configPath string
	root.PersistentFlags().StringVar(&configPath, "config", "", "configuration `FILE` (default: ./ecboot.toml, then /etc/ecboot/ecboot.toml, then built in)")
	root.AddCommand(
		newRunCommand(&configPath),
		newBootCommand(),
		newServeCommand(&configPath),
		newUpCommand(&configPath),
		newInitramfsCommand(),
		newImageCommand(),
		newLeaseCommand(&configPath),
		newMachineCommand(&configPath),
		newGuestCommand(&configPath, commandOfGuest),
		newConfigCommand(&configPath),
		newDoctorCommand(&configPath),
		newInstallCommand(),
		newVersionCommand(),
		newDocsCommand(),
	)
	root.InitDefaultCompletionCmd()
	explainArgs(root)
	completeChoices(root)
	return root, started
}

// explainArgs has wrong arguments of a command, and of those below it, told in
// other words than cobra's, which also takes a verb that there is none of for a
// wish to be helped.
func explainArgs(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		explainArgs(sub)
	}
	if cmd.HasSubCommands() {
		cmd.Args, cmd.DisableFlagsInUseLine, cmd.SuggestionsMinimumDistance = noSuchVerb, true, 2
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		return
	}
	check := cmd.Args
	_, takes, ok := strings.Cut(cmd.Use, " ")
	if !ok {
		takes = "no arguments"
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		// A variable that is not set, most likely. None of ecboot's means anything.
		if i := slices.Index(beforeDash(cmd, args), ""); i >= 0 {
			return fmt.Errorf("argument %d of '%s' is empty: it takes %s", i+1, cmd.CommandPath(), takes)
		}
		if check == nil || check(cmd, args) == nil {
			return nil
		}
		given := ""
		if len(args) > 0 {
			given = fmt.Sprintf(", not %q", args)
		}
		return fmt.Errorf("'%s' takes %s%s: see '%[1]s --help'", cmd.CommandPath(), takes, given)
	}
}

func noSuchVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	meant := ""
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 && args[0] != "" {
		meant = fmt.Sprintf("did you mean %s? ", strings.Join(near, ", "))
	}
	return fmt.Errorf("unknown command %q: %s'%s --help' lists what there is", args[0], meant, cmd.CommandPath())
}
