package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/every-channel/ecboot/dhcpd"
	"github.com/every-channel/ecboot/internal/config"
)

const leaseFileName = "leases"

// leaseFile is where serve keeps the leases of a segment. Each has its own: the
// same machine may have different addresses on two of them.
func leaseFile(cfg *config.Config, segment string) string {
	return filepath.Join(stateDir(cfg), segment, leaseFileName)
}

func newLeaseCommand(configPath *string) *cobra.Command {
	cmd := &cobra.Command{Use: "lease", Short: "Show who has which address"}
	cmd.AddCommand(newLeaseListCommand(configPath))
	return cmd
}

// listedLease is a lease with the segment that it is of.
type listedLease struct {
	Segment string `json:"segment"`
	dhcpd.Lease
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
			if len(list) == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "no leases: machines get them from 'ecboot serve' and 'ecboot run'")
			}
			return printList(cmd, output, "leases", list, func(w *tabwriter.Writer) {
				if len(list) == 0 {
					return
				}
				fmt.Fprintln(w, "SEGMENT\tADDRESS\tMAC\tSTATE\tEXPIRES")
				for _, l := range list {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", l.Segment, l.Addr, l.MAC, leaseState(l.Lease), l.Expires.Local().Format(time.DateTime))
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
	list := []listedLease{}
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
				list = append(list, listedLease{filepath.Base(filepath.Dir(file)), l})
			}
		}
	}
	return list, nil
}

// leaseState is the state as a person means it: a lease whose time is over is
// not bound any more.
func leaseState(l dhcpd.Lease) string {
	if l.State == dhcpd.Bound && !l.Live(time.Now()) {
		return "expired"
	}
	return string(l.State)
}
