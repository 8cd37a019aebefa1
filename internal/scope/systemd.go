package scope

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// Slice is the unit that all guests are in.
const Slice = "ecboot.slice"

// Service is the unit of the supervisor.
const Service = "ecboot.service"

// StopSignal is by what systemd tells a scope's processes to end. It goes to all
// of them at once: the keeper then stops its guest in good order, and nobody
// else does anything about it.
const StopSignal = unix.SIGWINCH

// killMargin is how much longer than the keeper systemd waits.
const killMargin = 15 * time.Second

// properties are those of the guest's scope.
func (g Guest) properties(pid int) []dbus.Property {
	list := []dbus.Property{
		dbus.PropDescription("Guest " + g.Name + " of ecboot"),
		dbus.PropSlice(Slice),
		dbus.PropPids(uint32(pid)),
		property("Delegate", true), // nspawn makes cgroups within
		property("CollectMode", "inactive-or-failed"),
		property("KillSignal", int32(StopSignal)),
		// When the host shuts down, the supervisor ends first, and starts no
		// guest again that ends; then the guests, while they still have what
		// they use.
		dbus.PropBefore(Service),
		dbus.PropAfter("local-fs.target", "remote-fs.target", "zfs-mount.service", "network.target"),
	}
	if g.StopTimeout > 0 {
		list = append(list, property("TimeoutStopUSec", uint64((g.StopTimeout+killMargin).Microseconds())))
	}
	l := g.Limits
	if l.CPUPercent > 0 {
		list = append(list, property("CPUQuotaPerSecUSec", uint64(l.CPUPercent)*10_000))
	}
	if l.Memory > 0 {
		list = append(list, property("MemoryMax", uint64(l.Memory)))
	}
	if l.Tasks > 0 {
		list = append(list, property("TasksMax", uint64(l.Tasks)))
	}
	if l.IOWeight > 0 {
		list = append(list, property("IOWeight", uint64(l.IOWeight)))
	}
	return list
}

func property(name string, value any) dbus.Property {
	return dbus.Property{Name: name, Value: godbus.MakeVariant(value)}
}

// joinSystemd is Join by systemd.
func joinSystemd(ctx context.Context, g Guest, pid int) (Scope, error) {
	conn, err := dbus.NewWithContext(ctx)
	if err != nil {
		return Scope{}, fmt.Errorf("speak to systemd: %w", err)
	}
	defer conn.Close()
	unit := UnitName(g.Name)
	if err := awaitGone(ctx, conn, unit); err != nil {
		return Scope{}, err
	}
	result := make(chan string, 1)
	if _, err := conn.StartTransientUnitContext(ctx, unit, "fail", g.properties(pid), result); err != nil {
		return Scope{}, fmt.Errorf("systemd makes no %s: %w", unit, err)
	}
	select {
	case r := <-result:
		if r != "done" {
			return Scope{}, fmt.Errorf("systemd makes no %s: the job is %s: 'journalctl -u %[1]s' tells more", unit, r)
		}
	case <-ctx.Done():
		return Scope{}, fmt.Errorf("systemd has not made %s in time: 'systemctl list-jobs' tells what it waits for", unit)
	}
	s, err := g.inspect(unit, pid)
	if err != nil {
		// The caller ends the process; a scope ends with its last one.
		return Scope{}, err
	}
	return s, nil
}

// inspect sees whether a process is where it should be, and under its limits:
// those that systemd cannot set it overlooks.
func (g Guest) inspect(unit string, pid int) (Scope, error) {
	all, err := hierarchies()
	if err != nil {
		return Scope{}, err
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return Scope{}, err
	}
	s := Scope{Unit: unit}
	left := g.Limits.list()
	for _, h := range all {
		dir, ok := h.of(string(b))
		if !ok || path.Base(dir) != unit {
			continue
		}
		left = slices.DeleteFunc(left, func(l limit) bool {
			file := l.file
			if !h.unified {
				if !l.servedBy(h) {
					return false
				}
				file = l.old[0].path
			}
			_, err := os.Stat(filepath.Join(dir, file))
			return err == nil
		})
		if h.unified {
			s.Cgroup = filepath.Join(dir, inner)
			if err := (step{path: s.Cgroup}).take(); err != nil {
				return Scope{}, fmt.Errorf("control group: %w", err)
			}
		}
	}
	if len(left) > 0 {
		return Scope{}, left[0].unserved(unit)
	}
	return s, nil
}

// of finds where a hierarchy has a process, in what /proc/PID/cgroup lists:
// 0::/ecboot.slice/ecboot-web.scope, or 4:memory:/… of v1.
func (h hierarchy) of(list string) (dir string, ok bool) {
	for line := range strings.Lines(list) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) < 3 {
			continue
		}
		names := strings.Split(f[1], ",")
		if h.unified && f[0] == "0" || !h.unified && slices.Contains(h.controllers, names[0]) {
			return filepath.Join(h.dir, f[2]), true
		}
	}
	return "", false
}

// removeScope is Remove by systemd, which removes a scope that is empty by
// itself.
func removeScope(ctx context.Context, guest string) error {
	conn, err := dbus.NewWithContext(ctx)
	if err != nil {
		return fmt.Errorf("speak to systemd: %w", err)
	}
	defer conn.Close()
	unit := UnitName(guest)
	if state, err := activeState(ctx, conn, unit); err != nil || state == "inactive" {
		return err
	}
	if err := conn.KillUnitWithTarget(ctx, unit, dbus.All, int32(unix.SIGKILL)); err != nil && !isGone(err) {
		return fmt.Errorf("kill what is left in %s: %w", unit, err)
	}
	return awaitGone(ctx, conn, unit)
}

// awaitGone waits until there is no such unit, and tells systemd to forget one
// that has failed.
func awaitGone(ctx context.Context, conn *dbus.Conn, unit string) error {
	for {
		state, err := activeState(ctx, conn, unit)
		switch {
		case err != nil:
			return err
		case state == "inactive":
			return nil
		case state == "failed":
			if err := conn.ResetFailedUnitContext(ctx, unit); err != nil && !isGone(err) {
				return fmt.Errorf("systemd keeps %s, which has failed: %w", unit, err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is there already: 'systemctl status %[1]s' tells what is in it", unit)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func activeState(ctx context.Context, conn *dbus.Conn, unit string) (string, error) {
	p, err := conn.GetUnitPropertyContext(ctx, unit, "ActiveState")
	if isGone(err) {
		return "inactive", nil
	}
	if err != nil {
		return "", fmt.Errorf("ask systemd about %s: %w", unit, err)
	}
	state, _ := p.Value.Value().(string)
	return state, nil
}

// isGone tells whether systemd does not know a unit any more.
func isGone(err error) bool {
	var e godbus.Error
	return errors.As(err, &e) && (e.Name == "org.freedesktop.systemd1.NoSuchUnit" || e.Name == "org.freedesktop.DBus.Error.UnknownObject")
}
