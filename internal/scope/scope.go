// Package scope gives the processes of each guest a place of their own, where
// this host shows and limits them: a scope of systemd's where that runs, else
// control groups made here.
//
// A guest's keeper joins before anything of the guest runs, so all that the
// guest ever starts is in it, and ends with it.
package scope

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// Guest is whose processes belong together.
type Guest struct {
	Name   string
	Limits Limits
	// StopTimeout is how long the keeper may take to stop its guest when the
	// host shuts down, before systemd kills both. 0: systemd's default, 90 s.
	StopTimeout time.Duration
}

// Limits are what a guest may use, its keeper included. 0 is no limit.
type Limits struct {
	CPUPercent int   // of one CPU: 150 is one and a half
	Memory     int64 // bytes; what QEMU itself needs comes on top of a machine's memory
	Tasks      int   // processes and threads
	IOWeight   int   // 1 to 10000; 100 is what others have
}

// Scope is where a guest's processes are.
type Scope struct {
	// Unit is systemd's name of it, such as ecboot-web.scope. Empty: there is
	// no systemd.
	Unit string
	// Cgroup is the directory of a cgroup (v2) within, which is empty and the
	// guest's alone. Empty: this host has no cgroup v2.
	Cgroup string
}

// Host is where scopes are made.
type Host struct {
	systemd bool
}

// Here is this host.
func Here() Host {
	// What sd_booted(3) looks at.
	st, err := os.Lstat("/run/systemd/system")
	return Host{systemd: err == nil && st.IsDir()}
}

// Systemd reports whether scopes are units of systemd's.
func (h Host) Systemd() bool { return h.systemd }

// patience is for the processes of a guest that has ended to be gone.
const patience = 10 * time.Second

// Join moves a process, and with it all that it will start, to the scope of a
// guest. A limit that this host cannot enforce is an error. So is a scope that
// has processes already and keeps them.
func (h Host) Join(ctx context.Context, g Guest, pid int) (Scope, error) {
	if err := g.check(); err != nil {
		return Scope{}, err
	}
	join := joinCgroups
	if h.systemd {
		join = joinSystemd
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return join(ctx, g, pid)
}

// Check says which limits of a guest Join would find that this host cannot enforce.
// It changes nothing.
func (h Host) Check(g Guest) error {
	if err := g.check(); err != nil || g.Limits == (Limits{}) {
		return err
	}
	all, err := hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range g.Limits.list() {
		switch {
		case slices.ContainsFunc(all, l.servedBy):
		case h.systemd:
			errs = append(errs, l.unserved(UnitName(g.Name)))
		default:
			errs = append(errs, l.impossible(""))
		}
	}
	if errs != nil || h.systemd {
		return errors.Join(errs...)
	}
	return g.foresee(all)
}

// Remove ends what is left of a guest that has ended, and its scope. It is no
// error that there is none.
func (h Host) Remove(ctx context.Context, guest string) error {
	if guest == "" { // its control group would be the one that all guests are in
		return errors.New("scope of a guest without a name")
	}
	remove := removeCgroups
	if h.systemd {
		remove = removeScope
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return remove(ctx, guest)
}

// Sweep removes the scopes that are empty because their guest has ended while
// nobody was there to remove them. systemd does so itself.
func (h Host) Sweep() error {
	if h.systemd {
		return nil
	}
	return sweepCgroups()
}

// UnitName is what systemd calls a guest's scope.
func UnitName(guest string) string { return "ecboot-" + escape(guest) + ".scope" }

// escape writes a name as part of a unit's, as systemd.unit(5) describes it. A
// dash stays: it has a meaning in paths and slices only, and people type these
// names.
func escape(name string) string {
	var out strings.Builder
	for i := range len(name) {
		c := name[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if letter || c == '-' || c == '_' || c == ':' || c == '.' && i > 0 {
			out.WriteByte(c)
		} else {
			fmt.Fprintf(&out, `\x%02x`, c)
		}
	}
	return out.String()
}

// maxUnitName is UNIT_NAME_MAX of systemd, without the final zero byte.
const maxUnitName = 255

func (g Guest) check() error {
	l := g.Limits
	switch {
	case g.Name == "" || len(UnitName(g.Name)) > maxUnitName:
		return fmt.Errorf("guest %q: a name has 1 to %d bytes", g.Name, maxUnitName-len(UnitName("")))
	case min(int64(l.CPUPercent), l.Memory, int64(l.Tasks), int64(l.IOWeight)) < 0 || l.IOWeight > 10000:
		return fmt.Errorf("limits %+v: use positive numbers, 0 for none, and an IO weight of at most 10000", l)
	}
	return nil
}

// limit is one of a guest's.
type limit struct {
	key        string // in the configuration
	controller string
	file       string // of cgroup v2
	value      string
	old        []step // for cgroup v1, relative; none: it cannot
}

// list is the limits that are set.
func (l Limits) list() (list []limit) {
	add := func(set bool, one limit) {
		if set {
			list = append(list, one)
		}
	}
	add(l.CPUPercent > 0, limit{"cpu", "cpu", "cpu.max", fmt.Sprintf("%d %d", l.CPUPercent*cpuPeriod/100, cpuPeriod),
		[]step{{"cpu.cfs_period_us", fmt.Sprint(cpuPeriod)}, {"cpu.cfs_quota_us", fmt.Sprint(l.CPUPercent * cpuPeriod / 100)}}})
	add(l.Memory > 0, limit{"memory", "memory", "memory.max", fmt.Sprint(l.Memory),
		[]step{{"memory.limit_in_bytes", fmt.Sprint(l.Memory)}}})
	add(l.Tasks > 0, limit{"tasks", "pids", "pids.max", fmt.Sprint(l.Tasks), []step{{"pids.max", fmt.Sprint(l.Tasks)}}})
	add(l.IOWeight > 0, limit{key: "io_weight", controller: "io", file: "io.weight", value: fmt.Sprint(l.IOWeight)})
	return list
}

const cpuPeriod = 100_000 // µs: the kernel's own, and systemd's

// servedBy reports whether a hierarchy can enforce the limit.
func (l limit) servedBy(h hierarchy) bool {
	return slices.Contains(h.controllers, l.controller) && (h.unified || l.old != nil)
}

// unserved says that a unit's control group does not have the limit.
func (l limit) unserved(unit string) error {
	return l.impossible("the control group of " + unit + " has no " + l.file)
}

// impossible says that a limit cannot be enforced.
func (l limit) impossible(why string) error {
	return fmt.Errorf("limit %s: this host cannot enforce it: %s; leave it out", l.key, cmp.Or(why, "no control group has the controller "+l.controller))
}
