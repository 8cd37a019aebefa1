package main

import (
	"errors"
	"fmt"

	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/internal/nspawn"
	"github.com/every-channel/ecboot/internal/zfs"
	"github.com/every-channel/ecboot/vmm"
)

// guestComplaints is what the packages that run guests know of a configuration
// and config does not.
func guestComplaints(c *config.Config) (list []config.Complaint) {
	var datasets []zfs.Entry
	for _, g := range c.Guests {
		for i, arg := range g.Extra {
			if what := contradicts(g, arg); what != "" {
				list = append(list, config.Complaint{Key: fmt.Sprintf("%s[%d]", config.KeyPath("guest", g.Name, "extra"), i), What: what})
			}
		}
		for _, z := range g.ZFS {
			datasets = append(datasets, zfs.Entry{Guest: g.Name, Name: z.Guest, Pool: z.Pool, Dataset: z.Dataset, HostMountpoint: z.HostMountpoint})
		}
	}
	_, err := zfs.NewPlan(datasets)
	var mistakes zfs.Mistakes
	if errors.As(err, &mistakes) {
		for _, m := range mistakes {
			key := config.KeyPath("guest", m.Guest, "zfs", m.Name)
			if m.Key != "guest_mountpoint" { // which is the name itself
				key = config.KeyPath("guest", m.Guest, "zfs", m.Name, m.Key)
			}
			list = append(list, config.Complaint{Key: key, What: m.What, Instead: m.Instead})
		}
	}
	return list
}

// contradicts says why a guest cannot have an extra argument.
func contradicts(g config.DeclaredGuest, arg string) string {
	var err error
	switch g.Backend {
	case config.BackendQEMU, config.BackendMicroVM:
		err = vmm.CheckExtra([]string{arg})
	case config.BackendContainer:
		_, err = nspawn.Spec{Name: "guest", Root: "/", Extra: []string{arg}}.Args()
	}
	if err != nil {
		return err.Error()
	}
	return ""
}
