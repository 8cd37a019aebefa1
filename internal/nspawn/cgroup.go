package nspawn

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Where control groups are mounted: the first with cgroup v2 only, the others
// where v1 is beside it.
const (
	cgroups        = "/sys/fs/cgroup"
	unifiedCgroups = "/sys/fs/cgroup/unified"
	systemdCgroups = "/sys/fs/cgroup/systemd"
)

func onlyUnified() bool {
	var st unix.Statfs_t
	return unix.Statfs(cgroups, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// openCgroup opens the container's cgroup, if it has one, and sets its limits.
func openCgroup(dir string, limits Limits) (*os.File, error) {
	if dir == "" {
		switch {
		case limits != Limits{}:
			return nil, errors.New("limits need a cgroup (v2) of the container's own")
		case onlyUnified():
			return nil, errors.New("a container needs a cgroup of its own on this host, which has cgroup v2 only")
		}
		return nil, nil
	}
	for _, l := range []struct {
		controller, file, value string
		set                     bool
	}{
		{"memory", "memory.max", strconv.Itoa(limits.MemoryMiB << 20), limits.MemoryMiB > 0},
		{"cpu", "cpu.max", strconv.Itoa(limits.CPUPercent*1000) + " 100000", limits.CPUPercent > 0}, // µs of each 100 ms
		{"pids", "pids.max", strconv.Itoa(limits.Tasks), limits.Tasks > 0},
	} {
		if !l.set {
			continue
		}
		f, err := os.OpenFile(filepath.Join(dir, l.file), os.O_WRONLY, 0)
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("limit: %w: write +%s to %s first", err, l.controller, filepath.Join(filepath.Dir(dir), "cgroup.subtree_control"))
		}
		if err == nil {
			_, err = f.WriteString(l.value)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			return nil, fmt.Errorf("limit: %w", err)
		}
	}
	return os.Open(dir)
}

// Sweep removes the empty cgroups that nspawn has made for a container in
// Options.Cgroup, and left when it was killed. What is in use stays.
func Sweep(cgroup string) {
	if cgroup == "" {
		return // whose they are nobody could tell
	}
	dirs := []string{cgroup}
	if rel, ok := strings.CutPrefix(cgroup, unifiedCgroups+"/"); ok {
		// nspawn makes the same in the other hierarchy.
		dirs = append(dirs, filepath.Join(systemdCgroups, rel))
	}
	for _, dir := range dirs {
		for _, name := range []string{"payload", "supervisor"} {
			removeEmpty(filepath.Join(dir, name))
		}
	}
	for _, twin := range dirs[1:] {
		_ = unix.Rmdir(twin)
	}
}

// removeEmpty removes a cgroup and those within, which systemd makes where it is
// the container's init. None in which a process is goes.
func removeEmpty(dir string) {
	entries, _ := os.ReadDir(dir) // mostly missing
	for _, e := range entries {
		if e.IsDir() {
			removeEmpty(filepath.Join(dir, e.Name()))
		}
	}
	_ = unix.Rmdir(dir)
}
