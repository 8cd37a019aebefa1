package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
	declared "github.com/every-channel/ecboot/internal/guest"
	"github.com/every-channel/ecboot/internal/nspawn"
	"github.com/every-channel/ecboot/internal/zfs"
	"github.com/every-channel/ecboot/vmm"
)

// guestComplaints is what the packages that run guests know of a configuration
// and config does not.
func guestComplaints(c *config.Config) (list []config.Complaint) {
	for _, g := range c.Guests {
		for i, arg := range g.Extra {
			if err := checkExtra(g, arg); err != nil {
				list = append(list, config.Complaint{Key: fmt.Sprintf("%s[%d]", config.KeyPath("guest", g.Name, "extra"), i), What: err.Error()})
			}
		}
		if err := checkPlan(g); err != nil {
			list = append(list, config.Complaint{Key: config.KeyPath("guest", g.Name), What: err.Error()})
		}
	}
	list = append(list, namedOtherwise(c)...)
	_, err := zfs.NewPlan(zfsEntries(c.Guests))
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

// namedOtherwise finds machines that have the assigned address of a guest, and a
// name of their own. Of those that the file writes, config knows.
func namedOtherwise(c *config.Config) (list []config.Complaint) {
	macs, err := declared.StoreIn(stateDir(c)).Load()
	if err != nil {
		return nil // who needs the addresses says why there are none
	}
	for _, g := range c.Guests {
		for i, name := range declared.CardNames(g) {
			for j, m := range c.Machines {
				if mac, assigned := macs[name]; assigned && m.MAC == mac && g.Contradicts(m) {
					list = append(list, config.Complaint{
						Key:     fmt.Sprintf("%s[%d]", config.KeyPath("guest", g.Name, "nic"), i),
						What:    fmt.Sprintf("its assigned address %v is machine[%d]'s too", mac, j),
						Other:   fmt.Sprintf("machine[%d].mac", j),
						Instead: config.OneMachine,
					})
				}
			}
		}
	}
	return list
}

// checkExtra says why a guest cannot have an extra argument.
func checkExtra(g config.DeclaredGuest, arg string) (err error) {
	switch g.Backend {
	case config.BackendQEMU, config.BackendMicroVM:
		err = vmm.CheckExtra([]string{arg})
	case config.BackendContainer:
		_, err = nspawn.Spec{Name: "guest", Root: "/", Extra: []string{arg}}.Args()
	}
	return err
}

// checkPlan plans a guest as on a machine that has all that it asks for, without
// its extra arguments.
func checkPlan(g config.DeclaredGuest) error {
	if g.Backend == "" {
		return nil // which is mistake enough
	}
	on := groundwork{
		state: "/state", run: "/run", cache: "/cache", accel: vmm.AccelTCG, ipxe: "/ipxe",
		direct: directBoot{kernel: "/kernel"},
		port:   func(string) portKind { return portKind{bridge: "bridge"} },
	}
	if hasUEFI(g) {
		on.uefi = vmm.UEFI{Code: "/code", Vars: "/vars"}
	}
	if g.CPU == "host" {
		on.accel = vmm.AccelKVM
	}
	g.Extra, g.NICs = nil, slices.Clone(g.NICs)
	for i := range g.NICs {
		if g.NICs[i].MAC == (boot.MAC{}) {
			g.NICs[i].MAC = boot.MAC{2, 0, 0, 0, 0, byte(i)} // it will have one
		}
	}
	_, err := planCommand(planGuest(g, on))
	return err
}
