package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/every-channel/ecboot/dhcpd"
	"github.com/every-channel/ecboot/internal/api"
	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
	declared "github.com/every-channel/ecboot/internal/guest"
)

const leaseFileName = "leases"

// leaseFile is where serve keeps the leases of a segment. Each has its own: the
// same machine may have different addresses on two of them.
func leaseFile(cfg *config.Config, segment string) string {
	return filepath.Join(stateDir(cfg), segment, leaseFileName)
}

func newLeaseCommand(configPath *string) *cobra.Command {
	cmd := &cobra.Command{Use: "lease", Short: "Show who has which address, and take addresses back"}
	cmd.AddCommand(newLeaseListCommand(configPath), newLeaseShowCommand(configPath), newLeaseReleaseCommand(configPath))
	return cmd
}

// listedLease is a lease with the segment that it is of.
type listedLease struct {
	Segment string `json:"segment"`
	Name    string `json:"name,omitempty"` // of the machine, where the configuration has one
	dhcpd.Lease

	server string // the segment whose servers keep it: of a relayed one, another
}

func (l listedLease) name() string {
	if l.Name == "" {
		return "-"
	}
	return l.Name
}

func newLeaseListCommand(configPath *string) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the leases of every segment, those of running guests included",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(*configPath)
			if err != nil {
				return err
			}
			list, err := allLeases(cfg)
			if err != nil {
				return err
			}
			if list == nil {
				list = []listedLease{}
			}
			if len(list) == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "no leases: machines get them from 'ecboot serve' and 'ecboot run'"+yoursAlone(cfg))
			}
			return printList(cmd, output, "leases", list, func(w *tabwriter.Writer) {
				if len(list) == 0 {
					return
				}
				fmt.Fprintln(w, "SEGMENT\tADDRESS\tMAC\tNAME\tSTATE\tEXPIRES")
				for _, l := range list {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", l.Segment, l.Addr, l.MAC, l.name(), leaseState(l.Lease), l.Expires.Local().Format(time.DateTime))
				}
			})
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

// allLeases reads the lease files of the state directory, and those of running
// processes, whose segments are named by their process ids.
func allLeases(cfg *config.Config) ([]listedLease, error) {
	st, err := machineStore(cfg).Load()
	if err != nil {
		return nil, err
	}
	if err := assignWithoutKeeping(declared.StoreIn(stateDir(cfg)), cfg); err != nil {
		return nil, err
	}
	known, _ := st.Apply(cfg)
	names := map[boot.MAC]string{}
	for _, g := range known.Guests {
		for _, n := range g.NICs {
			names[n.MAC] = g.Node
		}
	}
	for _, m := range known.Machines {
		names[m.MAC] = m.Name
	}
	var list []listedLease
	for _, pattern := range []string{leaseFile(cfg, "*"), filepath.Join(userDirs().Run, "*", leaseFileName)} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		slices.Sort(files)
		for _, file := range files {
			leases, err := dhcpd.ReadLeases(file)
			if errors.Is(err, fs.ErrNotExist) {
				continue // its process has just ended
			}
			if err != nil {
				return nil, err
			}
			for _, l := range leases {
				server := filepath.Base(filepath.Dir(file))
				list = append(list, listedLease{segmentOf(cfg, server, l.Addr), names[l.MAC], l, server})
			}
		}
	}
	return list, nil
}

// segmentOf names the segment that an address is of, which may lie behind a relay
// that asks the servers of another.
func segmentOf(cfg *config.Config, server string, a netip.Addr) string {
	for _, s := range cfg.Segments {
		if s.Relay.Contains(a) && s.Via == server {
			return s.Name
		}
	}
	return server
}

// findLeases returns those of an address, a MAC address or a host name.
func findLeases(cfg *config.Config, what string) ([]listedLease, error) {
	list, err := allLeases(cfg)
	if err != nil {
		return nil, err
	}
	a, _ := netip.ParseAddr(what)
	mac, errMAC := boot.ParseMAC(what)
	list = slices.DeleteFunc(list, func(l listedLease) bool {
		return l.Addr != a && (errMAC != nil || l.MAC != mac) && (what == "" || !strings.EqualFold(l.Name, what))
	})
	if len(list) == 0 {
		return nil, fmt.Errorf("no lease of %s; 'ecboot lease list' lists all, by address, MAC and name%s", what, yoursAlone(cfg))
	}
	return list, nil
}

func newLeaseShowCommand(configPath *string) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:               "show ADDRESS|MAC|NAME",
		Short:             "Show the leases of an address or a machine",
		ValidArgsFunction: completeMachines(nil),
		Args:              cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := loadConfig(*configPath)
			if err != nil {
				return err
			}
			list, err := findLeases(cfg, args[0])
			if err != nil {
				return err
			}
			return printList(cmd, output, "leases", list, func(w *tabwriter.Writer) {
				for i, l := range list {
					if i > 0 {
						fmt.Fprintln(w)
					}
					fmt.Fprintf(w, "segment\t%s\naddress\t%s\nmac\t%s\nname\t%s\nstate\t%s\n", l.Segment, l.Addr, l.MAC, l.name(), leaseState(l.Lease))
					fmt.Fprintf(w, "expires\t%s (%s)\n", l.Expires.Local().Format(time.DateTime), fromNow(l.Expires))
				}
			})
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

func fromNow(t time.Time) string {
	d := time.Until(t).Round(time.Second)
	if d < 0 {
		return (-d).String() + " ago"
	}
	return "in " + d.String()
}

func newLeaseReleaseCommand(configPath *string) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "release ADDRESS|MAC|NAME",
		Short: "Take addresses back, as if their machines had given them up",
		Long: `Take addresses back, as if their machines had given them up. A machine that still
runs goes on using its address until it renews, so this is for machines that are
gone.`,
		ValidArgsFunction: completeMachines(nil),
		Args:              cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := loadConfig(*configPath)
			if err != nil {
				return err
			}
			list, err := findLeases(cfg, args[0])
			if err != nil {
				return err
			}
			servers, err := api.All(cmd.Context(), userDirs().Run)
			if err != nil {
				return err
			}
			var errs []error
			released := []listedLease{}
			for _, l := range list {
				if l.State != dhcpd.Bound {
					continue
				}
				if err := release(cmd.Context(), cfg, servers, l); err != nil {
					errs = append(errs, err)
					continue
				}
				released = append(released, l)
			}
			return errors.Join(append(errs, printList(cmd, output, "released", released, func(w *tabwriter.Writer) {
				for _, l := range released {
					fmt.Fprintf(w, "released %s of %s on %s\n", l.Addr, l.MAC, l.Segment)
				}
			}))...)
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

// release asks the server that has the lease file open, or changes the file when
// there is none.
func release(ctx context.Context, cfg *config.Config, servers map[*api.Client]api.Status, l listedLease) error {
	for c, st := range servers {
		for _, s := range st.Segments {
			if s.Name == l.server {
				return c.Release(ctx, l.server, l.Addr)
			}
		}
	}
	store, err := dhcpd.OpenFileStore(leaseFile(cfg, l.server), nil)
	if err != nil {
		return err
	}
	l.State, l.Expires = dhcpd.Released, time.Now().UTC().Truncate(time.Second)
	return errors.Join(store.Append([]dhcpd.Lease{l.Lease}), store.Close())
}

// leaseState is the state as a person means it: a lease whose time is over is
// not bound any more.
func leaseState(l dhcpd.Lease) string {
	if l.State == dhcpd.Bound && !l.Live(time.Now()) {
		return "expired"
	}
	return string(l.State)
}
