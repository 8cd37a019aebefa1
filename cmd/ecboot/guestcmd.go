package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/every-channel/ecboot/internal/api"
	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/vmm"
)

// commandOf is the exact command that would run a guest, program first.
type commandOf func(ctx context.Context, cfg *config.Config, name string) ([]string, error)

func newGuestCommand(configPath *string, command commandOf) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "guest",
		Short: "Show, start and stop the declared guests, and sit down at their consoles",
		Long: `Show, start and stop the guests that the configuration declares, and sit down at
their consoles. 'ecboot up' does what is asked here; members of the group that the
configuration calls operator_group may ask without being root.`,
	}
	cmd.AddCommand(
		newGuestListCommand(),
		newGuestShowCommand(),
		newGuestStartCommand(),
		newGuestStopCommand(),
		newGuestRestartCommand(),
		newGuestResetCommand(),
		newGuestConsoleCommand(),
		newGuestLogCommand(),
		newGuestScreenshotCommand(),
		newGuestExecArgsCommand(configPath, command),
		newGuestEditCommand(configPath),
		newGuestImportCommand(configPath),
	)
	return cmd
}

// supervisor is the 'ecboot up' that runs, and its guests when it was asked.
type supervisor struct {
	*api.Client
	guests []api.Guest
}

var errNoSupervisor = errors.New("no 'ecboot up' runs here: start it with 'systemctl start ecboot', or with 'ecboot up' in the foreground")

// openSupervisor finds the 'ecboot up' of this user or else of this machine.
func openSupervisor(ctx context.Context) (*supervisor, error) {
	path := upSocket()
	s := &supervisor{Client: api.Connect(path)}
	var err error
	s.guests, err = s.Guests(ctx)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, withCode(exitEnvironment, errNoSupervisor)
	case errors.Is(err, fs.ErrPermission):
		return nil, withCode(exitEnvironment, notOperator(path))
	}
	return s, err
}

// upSocket is where 'ecboot up' listens. Who runs none asks the machine's.
func upSocket() string {
	own := upSocketIn(userDirs())
	if _, err := os.Lstat(own); err == nil {
		return own
	}
	return upSocketIn(rootDirs())
}

func upSocketIn(d dirs) string { return filepath.Join(d.Run, upName, api.SocketName) }

// notOperator says who may use the socket at path, and how to become one.
func notOperator(path string) error {
	const root = "the guests of this machine are root's: "
	var st syscall.Stat_t
	if err := syscall.Stat(filepath.Dir(path), &st); err != nil || st.Gid == 0 {
		return errors.New(root + "run this as root; where there is the group that operator_group names (default: ecboot) when 'ecboot up' starts, its members may, too")
	}
	group := strconv.Itoa(int(st.Gid))
	if g, err := user.LookupGroupId(group); err == nil {
		group = g.Name
	}
	me, err := user.Current()
	if err != nil {
		return fmt.Errorf("%srun this as root, or join the group %s", root, group)
	}
	if ids, err := me.GroupIds(); err == nil && slices.Contains(ids, strconv.Itoa(int(st.Gid))) {
		return fmt.Errorf("%syou have joined the group %s since you logged in: log in again, or run 'newgrp %[2]s'", root, group)
	}
	return fmt.Errorf("%srun this as root, or join the group %s: 'sudo usermod -aG %[2]s %s', and log in again", root, group, me.Username)
}

// guestConfig is the configuration file that is meant: the one that was named,
// else that of the 'ecboot up' that runs, else the one that it would read. state
// is the state directory of whoever reads it, unless the file names another.
func guestConfig(ctx context.Context, explicit string) (path, state string, err error) {
	if explicit == "" {
		socket := upSocket()
		if s, err := openSupervisor(ctx); err == nil {
			if st, err := s.Status(ctx); err == nil && st.Config != "" {
				if socket == upSocketIn(rootDirs()) {
					return st.Config, rootDirs().State, nil
				}
				return st.Config, userDirs().State, nil
			}
		}
	}
	path, err = config.Find(explicit)
	return path, userDirs().State, withCode(exitUsage, err)
}

// loadGuestConfig reads that file, for what is in the state directory as well.
func loadGuestConfig(ctx context.Context, explicit string) (*config.Config, error) {
	path, state, err := guestConfig(ctx, explicit)
	if err != nil {
		return nil, err
	}
	cfg, err := loadConfig(path)
	if err != nil {
		return nil, err
	}
	cfg.Server.StateDir = cmp.Or(cfg.Server.StateDir, state)
	return cfg, nil
}

// find returns the guests of these names, in this order and each once.
func (s *supervisor) find(names []string) ([]api.Guest, error) {
	var found []api.Guest
	var unknown []string
	seen := map[string]bool{}
	for _, name := range names {
		if seen[name] {
			continue
		}
		seen[name] = true
		i := slices.IndexFunc(s.guests, func(g api.Guest) bool { return g.Name == name })
		if i < 0 {
			unknown = append(unknown, name)
			continue
		}
		found = append(found, s.guests[i])
	}
	if unknown != nil {
		all := make([]string, len(s.guests))
		for i, g := range s.guests {
			all[i] = g.Name
		}
		return nil, noSuchGuest(unknown, all)
	}
	return found, nil
}

// openGuest finds the 'ecboot up' that runs, and a guest of it.
func openGuest(ctx context.Context, name string) (*supervisor, api.Guest, error) {
	s, err := openSupervisor(ctx)
	if err != nil {
		return nil, api.Guest{}, err
	}
	found, err := s.find([]string{name})
	if err != nil {
		return nil, api.Guest{}, err
	}
	return s, found[0], nil
}

// fewNames are listed all; of more, those that the user may have meant.
const fewNames = 12

// noSuchGuest says which guests there are instead.
func noSuchGuest(names, all []string) error {
	if len(all) == 0 {
		return withCode(exitUsage, fmt.Errorf("there is no guest %s: the configuration declares none, with a table such as [guest.%s]", strings.Join(names, ", "), names[0]))
	}
	offer := "there are " + strings.Join(all, ", ")
	if len(all) == 1 {
		offer = "there is " + all[0]
	}
	if len(all) > fewNames {
		offer = fmt.Sprintf("'ecboot guest list' lists the %d that there are", len(all))
		if near := nearNames(names, all); len(near) > 0 {
			offer = fmt.Sprintf("did you mean %s? %s", strings.Join(near, ", "), offer)
		}
	}
	return withCode(exitUsage, fmt.Errorf("there is no guest %s: %s", strings.Join(names, ", "), offer))
}

// nearNames returns the few of all that are most like one of the names.
func nearNames(names, all []string) []string {
	far := map[string]int{}
	for _, candidate := range all {
		for _, name := range names {
			d := config.EditDistance(name, candidate)
			if d > 1+len(name)/4 && (name == "" || !strings.Contains(candidate, name)) {
				continue
			}
			if best, ok := far[candidate]; !ok || d < best {
				far[candidate] = d
			}
		}
	}
	near := slices.SortedFunc(maps.Keys(far), func(a, b string) int {
		return cmp.Or(cmp.Compare(far[a], far[b]), strings.Compare(a, b))
	})
	return near[:min(len(near), 5)]
}

// noneDeclared is what those are told who expect some.
const noneDeclared = "no guests: tables such as [guest.db] declare them, 'ecboot config show --reference' has their keys"

func newGuestListCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the declared guests and how they fare",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := openSupervisor(cmd.Context())
			if err != nil {
				return err
			}
			if len(s.guests) == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), noneDeclared)
			}
			return printList(cmd, output, "guests", s.guests, func(w *tabwriter.Writer) {
				if len(s.guests) == 0 {
					return
				}
				fmt.Fprintln(w, "NAME\tBACKEND\tSTATE\tSINCE\tRESTARTS\tADDRESS\tNOTE")
				for _, g := range s.guests {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", g.Name, g.Backend, g.State, ago(g.Since), g.Restarts, guestAddresses(g), dash(guestNote(g)))
				}
			})
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

// guestNote is the one thing that whoever looks at a list must know of a guest.
func guestNote(g api.Guest) string {
	switch {
	case g.State == api.Failed && !g.NextStart.IsZero():
		return fmt.Sprintf("%s; tried again %s", g.LastExit, fromNow(g.NextStart))
	case g.State == api.Failed:
		return g.LastExit
	case g.State == api.Waiting:
		return fmt.Sprintf("%s; started again %s", g.LastExit, fromNow(g.NextStart))
	case len(g.Drift) == 1:
		return g.Drift[0]
	case len(g.Drift) > 1:
		return fmt.Sprintf("%s, and %d more: 'ecboot guest show %s'", g.Drift[0], len(g.Drift)-1, g.Name)
	case g.State == api.Stopped && g.Down == api.ByHand && g.Autostart:
		return "stopped by hand: 'ecboot guest start " + g.Name + "' starts it"
	case g.LastExit != "":
		return "last exit: " + g.LastExit
	}
	return ""
}

// guestAddresses are in parentheses while nobody is there.
func guestAddresses(g api.Guest) string {
	list := strings.Join(g.Addresses, ",")
	if list != "" && !hasConsole(g) {
		return "(" + list + ")"
	}
	return dash(list)
}

// ago is a time that has passed, short enough for a table.
func ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := max(0, time.Since(t))
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func newGuestShowCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:               "show GUEST",
		Short:             "Show all that is known of a guest",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeGuests(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, g, err := openGuest(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return printList(cmd, output, "guest", g, func(w *tabwriter.Writer) { writeGuest(w, g) })
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

func writeGuest(w *tabwriter.Writer, g api.Guest) {
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s\t%s\n", name, value)
		}
	}
	number := func(n int) string {
		if n == 0 {
			return ""
		}
		return strconv.Itoa(n)
	}
	state := g.State
	if !g.Since.IsZero() {
		state += fmt.Sprintf(" since %s (%s)", g.Since.Local().Format(time.DateTime), ago(g.Since))
	}
	autostart := "no"
	if g.Autostart {
		autostart = "yes"
	}
	row("name", g.Name)
	row("node", g.Node)
	row("backend", g.Backend)
	row("state", state)
	if !g.NextStart.IsZero() {
		row("next start", fmt.Sprintf("%s (%s)", g.NextStart.Local().Format(time.DateTime), fromNow(g.NextStart)))
	}
	row("last exit", g.LastExit)
	row("restarts", number(g.Restarts))
	row("autostart", autostart)
	if g.State == api.Stopped {
		row("down", g.Down)
	}
	row("profile", g.Profile)
	row("unit", g.Unit)
	row("process", number(g.PID))
	row("keeper", number(g.Keeper))
	for i, n := range g.NICs {
		mac := ""
		if n.MAC != nil {
			mac = n.MAC.String()
		}
		row(fmt.Sprintf("nic %d", i), strings.Join(slices.DeleteFunc([]string{n.Network, mac, n.Address, n.Link}, func(s string) bool { return s == "" }), "  "))
	}
	if len(g.NICs) == 0 {
		for i, mac := range g.MACs {
			row(fmt.Sprintf("mac %d", i), mac.String())
		}
		row("address", strings.Join(g.Addresses, ", "))
	}
	for i, d := range g.Disks {
		row(fmt.Sprintf("disk %d", i), describeDisk(d))
	}
	if g.TPM {
		row("tpm", "yes")
	}
	row("vnc", g.VNC)
	for _, d := range g.Drift {
		row("drift", d)
	}
	if len(g.Command) > 0 {
		w.Flush()
		fmt.Fprintf(w, "\n%s\n", vmm.ShellQuote(g.Command))
	}
}

func describeDisk(d api.Disk) string {
	words := []string{d.Path}
	if d.Format != "" {
		words = append(words, d.Format)
	}
	if d.Size != 0 {
		words = append(words, config.Size(d.Size).String())
	}
	if d.Base != "" {
		words = append(words, "over "+d.Base)
	}
	if d.ReadOnly {
		words = append(words, "read-only")
	}
	if d.Lost {
		words = append(words, "forgets at stop")
	}
	return strings.Join(words, "  ")
}

func newGuestExecArgsCommand(configPath *string, command commandOf) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "exec-args GUEST",
		Short: "Print the exact command that runs a guest, as the configuration has it",
		Long: `Print the exact command that runs a guest, as the configuration has it, quoted for a
shell. Nothing is made or started, and no 'ecboot up' need run. Descriptors that the
command names are opened by ecboot.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeDeclared(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := loadGuestConfig(cmd.Context(), *configPath)
			if err != nil {
				return err
			}
			if _, ok := cfg.DeclaredGuest(args[0]); !ok {
				return noSuchGuest(args, guestNames(cfg))
			}
			argv, err := command(cmd.Context(), cfg, args[0])
			if err != nil {
				return err
			}
			return printList(cmd, output, "command", argv, func(w *tabwriter.Writer) { fmt.Fprintln(w, vmm.ShellQuote(argv)) })
		},
	}
	outputFlag(cmd, &output)
	return cmd
}
