package scope

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	top   = "ecboot" // the cgroup that all guests are in, where there is no systemd
	inner = "guest"  // the cgroup in a scope that is the guest's alone

	subtreeControl = "cgroup.subtree_control"

	pause = 20 * time.Millisecond // between two looks at what the kernel tells nobody
)

// hierarchy is one tree of cgroups.
type hierarchy struct {
	dir         string // where it is mounted
	unified     bool   // v2
	controllers []string
}

func (h hierarchy) group(guest string) string { return filepath.Join(h.dir, top, escape(guest)) }

// hierarchies are what this process sees of them: v2, with the controllers that v1
// has not taken, and those of v1.
func hierarchies() ([]hierarchy, error) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	all := parseHierarchies(string(info))
	for i, h := range all {
		if h.unified {
			b, err := os.ReadFile(filepath.Join(h.dir, "cgroup.controllers"))
			if err != nil {
				return nil, err
			}
			all[i].controllers = strings.Fields(string(b))
		}
	}
	return all, nil
}

// parseHierarchies reads lines as proc_pid_mountinfo(5) describes them:
// 36 35 0:28 / /sys/fs/cgroup/cpu rw,relatime shared:1 - cgroup cgroup rw,cpu
func parseHierarchies(mountinfo string) (all []hierarchy) {
	for line := range strings.Lines(mountinfo) {
		before, after, _ := strings.Cut(strings.TrimSpace(line), " - ")
		mount, system := strings.Fields(before), strings.Fields(after)
		if len(mount) < 5 || len(system) < 3 {
			continue
		}
		h := hierarchy{dir: mount[4], unified: system[0] == "cgroup2"}
		if !h.unified {
			h.controllers = strings.Split(system[2], ",")
		}
		// Of a tree that is mounted twice, once is enough.
		twin := func(other hierarchy) bool {
			return other.unified == h.unified && slices.Equal(other.controllers, h.controllers)
		}
		if strings.HasPrefix(system[0], "cgroup") && !slices.ContainsFunc(all, twin) {
			all = append(all, h)
		}
	}
	return all
}

// step is a file to write or, without a value, a directory to make.
type step struct{ path, value string }

// plan is what puts a process into a guest's cgroups. Only hierarchies that serve a
// purpose get one: v2, and of v1 those with a controller that is needed. It is
// pure.
func (g Guest) plan(all []hierarchy, pid int) (steps []step, err error) {
	var joins, limits []step
	add := func(h hierarchy, controllers []string) {
		steps = append(steps, step{path: filepath.Join(h.dir, top)})
		for _, dir := range []string{h.dir, filepath.Join(h.dir, top)} {
			if h.unified && len(controllers) > 0 {
				steps = append(steps, step{filepath.Join(dir, subtreeControl), "+" + strings.Join(controllers, " +")})
			}
		}
		steps = append(steps, step{path: h.group(g.Name)})
		joins = append(joins, step{filepath.Join(h.group(g.Name), "cgroup.procs"), strconv.Itoa(pid)})
	}
	left := g.Limits.list()
	for _, h := range all {
		var controllers []string
		left = slices.DeleteFunc(left, func(l limit) bool {
			if !l.servedBy(h) {
				return false
			}
			controllers = append(controllers, l.controller)
			files := l.old
			if h.unified {
				files = []step{{l.file, l.value}}
			}
			for _, f := range files {
				limits = append(limits, step{filepath.Join(h.group(g.Name), f.path), f.value})
			}
			return true
		})
		if h.unified || len(controllers) > 0 {
			add(h, controllers)
		}
	}
	if len(left) > 0 {
		return nil, left[0].impossible("")
	}
	steps = slices.Concat(steps, limits, joins)
	if dir := g.unified(all); dir != "" {
		steps = append(steps, step{path: filepath.Join(dir, inner)})
	}
	return steps, nil
}

// unified is the guest's cgroup of v2; empty: there is no v2.
func (g Guest) unified(all []hierarchy) string {
	i := slices.IndexFunc(all, func(h hierarchy) bool { return h.unified })
	if i < 0 {
		return ""
	}
	return all[i].group(g.Name)
}

func (s step) take() error {
	if s.value == "" {
		if err := os.Mkdir(s.path, 0o755); !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	}
	// Without O_CREATE: what is not there is not to be made.
	f, err := os.OpenFile(s.path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(s.value)
		err = errors.Join(err, f.Close())
	}
	if errors.Is(err, unix.ENODEV) { // its cgroup went after it was found
		return &fs.PathError{Op: "write", Path: s.path, Err: unix.ENOENT}
	}
	return err
}

// joinCgroups is Join without systemd.
func joinCgroups(ctx context.Context, g Guest, pid int) (Scope, error) {
	all, err := hierarchies()
	if err != nil {
		return Scope{}, err
	}
	steps, err := g.plan(all, pid)
	if err != nil {
		return Scope{}, err
	}
	if err := awaitEmpty(ctx, groups(all, g.Name)); err != nil {
		return Scope{}, err
	}
	// Another guest's end may remove the cgroup that all are in, just before
	// this one's is made; and a sweep this one, before the process is in it.
	for range 10 {
		if err = takeAll(steps); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err != nil {
		_ = removeGroups(all, g.Name)
		if g.Limits == (Limits{}) && (errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission)) {
			return Scope{}, nil // such as in a container: nobody has asked for it
		}
		return Scope{}, err
	}
	if dir := g.unified(all); dir != "" {
		return Scope{Cgroup: filepath.Join(dir, inner)}, nil
	}
	return Scope{}, nil
}

func takeAll(steps []step) error {
	for _, s := range steps {
		if err := s.take(); err != nil {
			return s.explain(err)
		}
	}
	return nil
}

// explain says what a step has failed on.
func (s step) explain(err error) error {
	switch {
	case errors.Is(err, unix.EBUSY) && filepath.Base(s.path) == subtreeControl:
		return fmt.Errorf("%w: processes are in %s itself, so its controllers cannot be passed on: leave out the limits, or let systemd run", err, filepath.Dir(s.path))
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("control group: %w: run as root", err)
	}
	return fmt.Errorf("control group: %w", err)
}

// foresee says what joinCgroups would fail on, as far as that shows without doing
// anything.
func (g Guest) foresee(all []hierarchy) error {
	steps, err := g.plan(all, 0)
	if err != nil {
		return err
	}
	for _, s := range steps {
		if err := s.foresee(); err != nil {
			return s.explain(err)
		}
	}
	return nil
}

// foresee says that a step will fail on what is mounted to be read only, or on
// processes in a cgroup that is to have others within: only that of all processes
// can have both.
func (s step) foresee() error {
	op := "open"
	if s.value == "" {
		if _, err := os.Stat(s.path); err == nil {
			return nil
		}
		op = "mkdir"
	}
	dir := filepath.Dir(s.path)
	if errors.Is(unix.Access(dir, unix.W_OK), unix.EROFS) {
		return &fs.PathError{Op: op, Path: s.path, Err: unix.EROFS}
	}
	if filepath.Base(s.path) != subtreeControl {
		return nil
	}
	fields := func(file string) []string {
		b, _ := os.ReadFile(filepath.Join(dir, file))
		return strings.Fields(string(b))
	}
	passed := fields(subtreeControl)
	more := slices.DeleteFunc(strings.Fields(s.value), func(c string) bool { return slices.Contains(passed, strings.TrimPrefix(c, "+")) })
	if len(more) > 0 && len(fields("cgroup.type")) > 0 && len(fields("cgroup.procs")) > 0 {
		return &fs.PathError{Op: "write", Path: s.path, Err: unix.EBUSY}
	}
	return nil
}

// groups are the directories of a guest's cgroups that are there. nspawn makes
// some in hierarchies where we do not.
func groups(all []hierarchy, guest string) (dirs []string) {
	for _, h := range all {
		if _, err := os.Stat(h.group(guest)); err == nil {
			dirs = append(dirs, h.group(guest))
		}
	}
	return dirs
}

// removeCgroups is Remove without systemd.
func removeCgroups(ctx context.Context, guest string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	dirs := groups(all, guest)
	for _, dir := range dirs {
		if err := kill(dir); err != nil {
			return err
		}
	}
	for {
		if err := awaitEmpty(ctx, dirs); err != nil {
			return err
		}
		// A killed process whose first thread is gone already is in no list, but
		// its cgroup is busy until the last thread has given back the memory.
		err := removeGroups(all, guest)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

// removeGroups removes a guest's cgroups, which are empty.
func removeGroups(all []hierarchy, guest string) error {
	for _, h := range all {
		if err := removeTree(h.group(guest)); err != nil {
			return err
		}
		_ = unix.Rmdir(filepath.Join(h.dir, top)) // unless others are in it
	}
	return nil
}

// sweepCgroups is Sweep without systemd.
func sweepCgroups() error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		dir := filepath.Join(h.dir, top)
		entries, _ := os.ReadDir(dir) // mostly missing
		for _, e := range entries {
			// Where a guest runs, or starts, what is empty has a purpose, too.
			if group := filepath.Join(dir, e.Name()); e.IsDir() && len(members(group)) == 0 {
				_ = removeTree(group)
			}
		}
		_ = unix.Rmdir(dir)
	}
	return nil
}

// kill ends all processes of a cgroup and those within.
func kill(dir string) error {
	// v2 since Linux 5.14; nothing that forks meanwhile escapes.
	if err := (step{filepath.Join(dir, "cgroup.kill"), "1"}).take(); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, pid := range members(dir) {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process %d in %s: %w", pid, dir, err)
		}
	}
	return nil
}

// members are the processes of a cgroup and those within.
func members(dir string) (pids []int) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // it went meanwhile
		}
		b, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		for _, f := range strings.Fields(string(b)) {
			// 0 is a process of another process namespace.
			if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

// awaitEmpty waits until no processes are in cgroups.
func awaitEmpty(ctx context.Context, dirs []string) error {
	for {
		i := slices.IndexFunc(dirs, func(dir string) bool { return len(members(dir)) > 0 })
		if i < 0 {
			return nil
		}
		// Cgroups of v1 tell nobody when the last one leaves.
		select {
		case <-ctx.Done():
			return fmt.Errorf("processes %s are in %s: end them", strings.Trim(fmt.Sprint(members(dirs[i])), "[]"), dirs[i])
		case <-time.After(pause):
		}
	}
}

// removeTree removes a cgroup with those within, unless processes are in one.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove the control group %s: %w", dir, err)
	}
	return nil
}
