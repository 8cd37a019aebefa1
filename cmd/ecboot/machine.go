package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/every-channel/ecboot/internal/api"
	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/internal/fleet"
	declared "github.com/every-channel/ecboot/internal/guest"
	"github.com/every-channel/ecboot/internal/lan"
	"github.com/every-channel/ecboot/internal/timeline"
)

func newMachineCommand(configPath *string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "machine",
		Short: "Say what machines boot, see how they fare, and wake them",
		Long: `Say what machines boot, see how they fare, and wake them. A MACHINE is named by
its MAC address, its UUID or its host name. What is said here is kept beside the
configuration file, holds at once for servers that run, and wins over the file.`,
	}
	cmd.AddCommand(
		newMachineListCommand(configPath),
		newMachineShowCommand(configPath),
		newMachineSetCommand(configPath),
		newMachineNextCommand(configPath),
		newMachineForgetCommand(configPath),
		newMachineWakeCommand(configPath),
	)
	return cmd
}

// listedMachine is what is said of a machine and what was seen of it.
type listedMachine struct {
	ID       string            `json:"machine"` // MAC, UUID or name
	MAC      *boot.MAC         `json:"mac,omitempty"`
	UUID     string            `json:"uuid,omitempty"`
	Name     string            `json:"name,omitempty"`
	Declared bool              `json:"declared"` // by the file or by 'machine set'
	Profile  string            `json:"profile,omitempty"`
	Next     config.Next       `json:"next,omitempty"`
	Once     string            `json:"once,omitempty"` // profile of the next boot alone
	Reserved string            `json:"reserved,omitempty"`
	Tags     []string          `json:"tags,omitempty"`
	Set      map[string]string `json:"set,omitempty"` // what 'machine set' said
	Segment  string            `json:"segment,omitempty"`
	Address  string            `json:"address,omitempty"` // the one that it has
	Platform string            `json:"platform,omitempty"`
	Steps    []timeline.Step   `json:"steps,omitempty"` // of its last boot
	Seen     *time.Time        `json:"seen,omitempty"`

	container bool // boots nothing
}

// fleetView is everything that is known of machines at the moment.
type fleetView struct {
	cfg     *config.Config // the file and what was set
	file    *config.Config
	state   fleet.State
	store   fleet.Store
	servers map[*api.Client]api.Status
}

func openFleet(ctx context.Context, configPath string, stderr io.Writer) (*fleetView, error) {
	file, err := loadConfig(configPath)
	if err != nil {
		return nil, err
	}
	if err := assignWithoutKeeping(declared.StoreIn(stateDir(file)), file); err != nil {
		return nil, err
	}
	v := &fleetView{file: file, store: machineStore(file)}
	if v.state, err = v.store.Load(); err != nil {
		return nil, err
	}
	var lost []string
	v.cfg, lost = v.state.Apply(file)
	for _, sentence := range lost {
		fmt.Fprintln(stderr, "ecboot:", sentence)
	}
	v.servers, err = api.All(ctx, userDirs().Run)
	return v, err
}

// identity is that of the machine which somebody means: one of the file is kept by
// what it has there, and a guest, which its own name means as well, by its MAC.
func (v *fleetView) identity(machine string) (config.MachineID, error) {
	id, err := config.ParseMachineID(machine)
	if err != nil {
		return id, withCode(exitUsage, err)
	}
	for _, cfg := range []*config.Config{v.file, v.cfg} {
		if m, ok := cfg.Machine(id); ok {
			return m.ID(), nil
		}
	}
	for _, g := range v.cfg.Guests {
		for _, n := range g.NICs {
			if n.Segment != "" && id.Name != "" && (strings.EqualFold(id.Name, g.Name) || strings.EqualFold(id.Name, g.Node)) {
				return config.MachineID{MAC: n.MAC}, nil
			}
		}
	}
	return id, nil
}

// list returns the declared machines, by name, guests among them, and then the
// strangers that servers have seen.
func (v *fleetView) list() []listedMachine {
	seen := map[boot.MAC]api.Machine{}
	for _, st := range v.servers {
		for _, m := range st.Machines {
			if old, ok := seen[m.MAC]; !ok || old.Seen.Before(m.Seen) {
				seen[m.MAC] = m
			}
		}
	}
	list := []listedMachine{}
	for _, m := range v.cfg.Machines {
		e := v.state.Entry(m.ID())
		l := listedMachine{
			ID: m.ID().String(), UUID: m.UUID, Name: m.Name, Declared: true, Profile: m.Profile, Next: m.Next,
			Once: e.Once, Tags: m.Tags, Set: e.Set,
		}
		if m.Address.IsValid() {
			l.Reserved = m.Address.String()
		}
		for mac, s := range seen {
			if m.MAC == mac || m.MAC == (boot.MAC{}) && m.UUID != "" && m.UUID == s.UUID {
				l.see(s)
				delete(seen, mac)
				break
			}
		}
		if m.MAC != (boot.MAC{}) {
			l.MAC = &m.MAC
		}
		if g, ok := v.cfg.GuestWith(m.MAC); ok {
			l.isGuest(*g)
		}
		list = append(list, l)
	}
	for _, g := range v.cfg.Guests {
		for _, n := range g.NICs {
			s, asked := seen[n.MAC]
			if _, there := v.cfg.Machine(config.MachineID{MAC: n.MAC}); there || !asked && n.Segment == "" {
				continue
			}
			l := listedMachine{ID: n.MAC.String(), MAC: &n.MAC, Name: g.Node, Declared: true}
			if l.isGuest(g); n.Address.IsValid() {
				l.Reserved = n.Address.String()
			}
			if asked {
				l.see(s)
				delete(seen, n.MAC)
			}
			list = append(list, l)
		}
	}
	slices.SortStableFunc(list, func(a, b listedMachine) int {
		if (a.Name == "") != (b.Name == "") {
			return strings.Compare(b.Name, a.Name) // those with a name first
		}
		return strings.Compare(a.Name+" "+a.ID, b.Name+" "+b.ID)
	})
	for _, mac := range slices.SortedFunc(maps.Keys(seen), func(a, b boot.MAC) int { return strings.Compare(a.String(), b.String()) }) {
		l := listedMachine{ID: mac.String()}
		l.see(seen[mac])
		list = append(list, l)
	}
	return list
}

func (l *listedMachine) isGuest(g config.DeclaredGuest) {
	if l.container = !g.VM(); g.VM() {
		l.Profile = cmp.Or(l.Profile, guestProfile(g))
	}
}

func (l *listedMachine) see(m api.Machine) {
	l.MAC, l.Segment, l.Address, l.Platform, l.Steps, l.Seen = &m.MAC, m.Segment, m.Address, m.Platform, m.Steps, &m.Seen
	if l.UUID == "" {
		l.UUID = m.UUID
	}
}

// boots says in a word or two what the machine boots.
func (l listedMachine) boots() string {
	switch {
	case l.Once != "":
		return l.Once + " (next time)"
	case !l.Declared, l.container:
		return "-"
	case l.Next == config.NextLocal:
		return "local"
	case l.Next == config.NextOnce:
		return orDefault(l.Profile) + " (once)"
	}
	return orDefault(l.Profile)
}

func orDefault(profile string) string {
	if profile == "" {
		return "default"
	}
	return profile
}

// last says how far the machine's last boot came.
func (l listedMachine) last() string {
	if len(l.Steps) == 0 {
		return "-"
	}
	s := l.Steps[len(l.Steps)-1]
	text := string(s.Stage)
	if s.Failed {
		text += " FAILED: " + s.Detail
	}
	return fmt.Sprintf("%s, %s ago", text, time.Since(*l.Seen).Round(time.Second))
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func newMachineListCommand(configPath *string) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the machines that are declared and those that servers have seen",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, err := openFleet(cmd.Context(), *configPath, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			list := v.list()
			if len(list) == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "no machines: 'ecboot machine set MAC profile=PROFILE' declares one, and 'ecboot serve' shows those that ask"+yoursAlone(v.file))
			}
			return printList(cmd, output, "machines", list, func(w *tabwriter.Writer) {
				if len(list) == 0 {
					return
				}
				fmt.Fprintln(w, "NAME\tMACHINE\tSEGMENT\tADDRESS\tPLATFORM\tBOOTS\tLAST")
				for _, l := range list {
					address := l.Address
					if address == "" && l.Reserved != "" {
						address = "(" + l.Reserved + ")"
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", dash(l.Name), l.ID, dash(l.Segment), dash(address), dash(l.Platform), l.boots(), l.last())
				}
			})
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

func newMachineShowCommand(configPath *string) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:               "show MACHINE",
		Short:             "Show one machine and its last boot",
		ValidArgsFunction: completeMachines(nil),
		Args:              cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := openFleet(cmd.Context(), *configPath, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			id, err := v.identity(args[0])
			if err != nil {
				return err
			}
			for _, l := range v.list() {
				if id.MAC != (boot.MAC{}) && l.MAC != nil && *l.MAC == id.MAC || id.UUID != "" && l.UUID == id.UUID || id.Name != "" && strings.EqualFold(l.Name, id.Name) {
					return printList(cmd, output, "machine", l, func(w *tabwriter.Writer) { l.writeText(w) })
				}
			}
			return fmt.Errorf("no machine %s is declared or was seen; 'ecboot machine list' lists those that are%s", args[0], yoursAlone(v.file))
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

func (l listedMachine) writeText(w *tabwriter.Writer) {
	mac := ""
	if l.MAC != nil {
		mac = l.MAC.String()
	}
	for _, row := range [][2]string{
		{"name", l.Name}, {"mac", mac}, {"uuid", l.UUID}, {"platform", l.Platform}, {"segment", l.Segment}, {"address", l.Address},
		{"reserved", l.Reserved}, {"boots", l.boots()}, {"tags", strings.Join(l.Tags, ", ")},
	} {
		if row[1] != "" {
			fmt.Fprintf(w, "%s\t%s\n", row[0], row[1])
		}
	}
	for _, key := range slices.Sorted(maps.Keys(l.Set)) {
		fmt.Fprintf(w, "set\t%s=%s\n", key, l.Set[key])
	}
	if len(l.Steps) == 0 {
		return
	}
	fmt.Fprintf(w, "last boot\t%s\n\n", l.last())
	w.Flush()
	last := l.Steps[len(l.Steps)-1]
	timeline.Waterfall(w, l.Steps, time.Duration(last.AtMS+last.DurationMS)*time.Millisecond)
}

func newMachineSetCommand(configPath *string) *cobra.Command {
	return &cobra.Command{
		Use:   "set MACHINE KEY=VALUE…",
		Short: "Change what is declared of a machine, or declare a new one",
		Long: `Change what is declared of a machine, or declare a new one. The keys are those of
[[machine]]: ` + strings.Join(config.MachineKeys, ", ") + `.
KEY= without a value takes back what was set here.`,
		Example: `  ecboot machine set node1 profile=rescue
  ecboot machine set 52:54:00:12:34:56 name=node9 address=10.77.0.19 tags=rack7,gpu
  ecboot machine set node1 next=once option.ntp-servers=10.77.0.253`,
		ValidArgsFunction: completeMachines(completeMachineKeys),
		Args:              cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return changeMachine(cmd, *configPath, args[0], func(v *fleetView, e *fleet.Entry) error {
				var errs []error
				for _, arg := range args[1:] {
					key, value, ok := strings.Cut(arg, "=")
					var scratch config.Machine
					switch err := scratch.Set(key, value); {
					case !ok:
						errs = append(errs, fmt.Errorf("%q is not KEY=VALUE", arg))
					case err != nil:
						errs = append(errs, err)
					case value == "":
						delete(e.Set, key)
					case key == "profile" && v.canBoot(e.ID, value) != nil:
						errs = append(errs, v.canBoot(e.ID, value))
					default:
						e.Set[key] = value
					}
					if key == "next" {
						e.Booted = false // whoever says “once” means once more
					}
				}
				return errors.Join(errs...)
			})
		},
	}
}

// canBoot says why a machine cannot be told to boot a profile.
func (v *fleetView) canBoot(machine, profile string) error {
	id, _ := config.ParseMachineID(machine)
	if g, ok := v.cfg.GuestWith(id.MAC); ok && (!g.VM() || g.Boot == config.BootDirect) {
		return fmt.Errorf("guest %s boots nothing from the network: 'ecboot guest edit %[1]s' changes what it runs", g.Name)
	}
	if _, ok := v.cfg.Profiles[profile]; !ok && profile != boot.LocalName {
		return fmt.Errorf("there is no profile %q: the configuration has %s and %s", profile, profileNames(v.cfg), boot.LocalName)
	}
	return nil
}

func newMachineNextCommand(configPath *string) *cobra.Command {
	var clear bool
	cmd := &cobra.Command{
		Use:   "next MACHINE [PROFILE]",
		Short: "Boot another profile the next time, and the usual one after that",
		Long: `Boot another profile the next time, and what the machine usually boots after
that. Without a PROFILE a machine that boots once and then its own disk has
another boot. The profile "local" is the machine's own disk.`,
		Example: `  ecboot machine next node1 rescue
  ecboot machine next node1 --clear`,
		ValidArgsFunction: completeMachines(completeProfiles(1)),
		Args:              cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return changeMachine(cmd, *configPath, args[0], func(v *fleetView, e *fleet.Entry) error {
				switch {
				case clear && len(args) == 2:
					return errors.New("--clear takes back what was said, so it goes without a profile")
				case clear:
					e.Once = ""
				case len(args) == 1:
					id, _ := config.ParseMachineID(e.ID)
					if m, ok := v.cfg.Machine(id); !ok || !e.Booted || e.Set["next"] != string(config.NextOnce) && m.Next == config.NextAlways {
						return errors.New("which profile? Only a machine with next = \"once\" that has had its boot can go without one")
					}
					e.Booted = false
				default:
					if err := v.canBoot(e.ID, args[1]); err != nil {
						return err
					}
					e.Once = args[1]
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&clear, "clear", false, "boot the usual profile after all")
	return cmd
}

func newMachineForgetCommand(configPath *string) *cobra.Command {
	return &cobra.Command{
		Use:               "forget MACHINE",
		Short:             "Take back all that was said of a machine beside the configuration file",
		ValidArgsFunction: completeMachines(nil),
		Args:              cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return changeMachine(cmd, *configPath, args[0], func(v *fleetView, e *fleet.Entry) error {
				if len(e.Set) == 0 && e.Once == "" && !e.Booted {
					return fmt.Errorf("nothing was said of %s beside the configuration file", args[0])
				}
				*e = fleet.Entry{ID: e.ID}
				return nil
			})
		},
	}
}

// changeMachine changes what is said of one machine, checks that it fits the
// configuration, stores it, and tells the servers that run.
func changeMachine(cmd *cobra.Command, configPath, machine string, change func(*fleetView, *fleet.Entry) error) error {
	ctx := cmd.Context()
	v, err := openFleet(ctx, configPath, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	id, err := v.identity(machine)
	if err != nil {
		return err
	}
	err = v.store.Update(func(st *fleet.State) error {
		e := st.Entry(id)
		e.Set = maps.Clone(e.Set)
		if e.Set == nil {
			e.Set = map[string]string{}
		}
		if err := change(v, &e); err != nil {
			return withCode(exitUsage, err)
		}
		before := *st
		st.Machines = slices.Clone(st.Machines)
		st.Put(e)
		_, lostBefore := before.Apply(v.file)
		if _, lost := st.Apply(v.file); len(lost) > len(lostBefore) {
			return withCode(exitUsage, errors.New(lost[len(lost)-1]))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if _, declared := v.cfg.Machine(id); !declared && id.Name != "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "no machine %s was declared: this is for one that calls itself so; 'ecboot machine forget %[1]s' takes it back\n", id.Name)
	}
	if len(v.servers) == 0 && yoursAlone(v.file) != "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "kept in %s for servers that you run yourself, of which none runs: root says it to those of root\n", v.store.Path)
	}
	var errs []error
	for c, st := range v.servers {
		if err := c.Reload(ctx); err != nil {
			errs = append(errs, fmt.Errorf("it is stored, but the server %d does not use it: %w", st.PID, err))
		}
	}
	return errors.Join(errs...)
}

func newMachineWakeCommand(configPath *string) *cobra.Command {
	var segment string
	cmd := &cobra.Command{
		Use:   "wake MACHINE",
		Short: "Switch a machine on (Wake-on-LAN)",
		Long: `Switch a machine on by Wake-on-LAN: on the segment where it was seen last, or on
every one. Its firmware must be set to listen while it is off.`,
		ValidArgsFunction: completeMachines(nil),
		Args:              cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			v, err := openFleet(ctx, *configPath, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			id, err := v.identity(args[0])
			if err != nil {
				return err
			}
			mac := id.MAC
			for _, l := range v.list() {
				if l.MAC != nil && (*l.MAC == mac || id.UUID != "" && l.UUID == id.UUID || id.Name != "" && strings.EqualFold(l.Name, id.Name)) {
					mac = *l.MAC
				}
			}
			if mac == (boot.MAC{}) {
				return withCode(exitUsage, fmt.Errorf("the MAC address of %s is not known: give it in place of the name", args[0]))
			}
			return v.wake(ctx, segment, mac)
		},
	}
	cmd.Flags().StringVar(&segment, "segment", "", "`NAME` of the segment to wake it on (default: all)")
	completeSegmentFlag(cmd)
	return cmd
}

// wake asks the servers that run, or sends the packet itself when there are none:
// private segments are in namespaces of their servers.
func (v *fleetView) wake(ctx context.Context, segment string, mac boot.MAC) error {
	var errs []error
	sent := false
	for c, st := range v.servers {
		for _, s := range st.Segments {
			if segment == "" || segment == s.Name {
				errs = append(errs, c.Wake(ctx, s.Name, mac))
				sent = true
			}
		}
	}
	if !sent {
		for _, s := range v.cfg.Segments {
			link := s.Bridge + s.Interface + s.Parent // at most one is set
			if link != "" && (segment == "" || segment == s.Name) {
				errs = append(errs, withCode(exitEnvironment, lan.Wake(link, mac)))
				sent = true
			}
		}
	}
	if !sent {
		return withCode(exitUsage, errors.New("on which network? No server runs, and the configuration has no segment on this machine's own network"))
	}
	return errors.Join(errs...)
}
