package zfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// program is the path of the program zfs, of OpenZFS or of zfs-fuse.
type program string

func findProgram() (program, error) {
	// The PATH of a service or of a user may lack the administrator's part.
	for _, name := range []string{"zfs", "/usr/sbin/zfs", "/sbin/zfs"} {
		if path, err := exec.LookPath(name); err == nil {
			return program(path), nil
		}
	}
	return "", errors.New("the program zfs is missing: install what Debian calls zfsutils-linux, or zfs-fuse where the kernel has no ZFS")
}

// kernelHasZFS tells whether mount(8) can mount datasets. The program zfs loads
// the module, so ask after it has run.
func kernelHasZFS() bool {
	b, err := os.ReadFile("/proc/filesystems")
	return err == nil && strings.Contains(string(b), "\tzfs\n")
}

// run returns what a program printed, its words on standard error as the error.
func run(ctx context.Context, path string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	// mount(8) takes a source that exists below its working directory for a
	// path. Here are numbers only, and no dataset's name begins with one.
	cmd.Dir = "/proc/self/fdinfo"
	cmd.WaitDelay = time.Second
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err == nil {
		return string(out), nil
	}
	if words := strings.Join(strings.FieldsFunc(stderr.String(), func(r rune) bool { return r == '\n' }), "; "); words != "" && ctx.Err() == nil {
		err = errors.New(words)
	}
	return string(out), fmt.Errorf("%s %s: %w", path, strings.Join(args, " "), err)
}

func (z program) run(ctx context.Context, args ...string) (string, error) {
	return run(ctx, string(z), args...)
}

// dataset is what zfs knows of one.
type dataset struct {
	kind       string // filesystem or volume
	mountpoint string // the property: a path, none or legacy
}

// list returns those of the datasets that exist.
func (z program) list(ctx context.Context, names []string) (map[string]dataset, error) {
	args := append([]string{"list", "-H", "-t", "filesystem,volume", "-o", "name,type,mountpoint"}, names...)
	out, err := z.run(ctx, args...)
	if err != nil && !onlyMissing(err) {
		return nil, err
	}
	have := map[string]dataset{}
	for line := range strings.Lines(out) {
		if f := strings.SplitN(strings.TrimSuffix(line, "\n"), "\t", 3); len(f) == 3 {
			have[f[0]] = dataset{kind: f[1], mountpoint: f[2]}
		}
	}
	return have, nil
}

// onlyMissing tells whether some datasets that were asked for do not exist, and
// nothing else is wrong: then the others were listed.
func onlyMissing(err error) bool {
	for _, words := range strings.Split(err.Error(), "; ") {
		if !strings.HasSuffix(words, "does not exist") && !strings.Contains(words, "no such pool") {
			return false
		}
	}
	return true
}

// lineage returns a dataset after all that it lies in, the pool first.
func lineage(name string) (all []string) {
	for i, c := range name {
		if c == '/' {
			all = append(all, name[:i])
		}
	}
	return append(all, name)
}

// missing returns what must be made, outermost first, so that a dataset exists.
func missing(name string, have map[string]dataset) (create []string, err error) {
	for i, level := range lineage(name) {
		d, exists := have[level]
		switch {
		case !exists && i == 0:
			return nil, fmt.Errorf("%s: there is no pool %s: 'zpool import %[2]s', or declare one that 'zpool list' shows", name, level)
		case !exists:
			create = append(create, level)
		case d.kind != "filesystem":
			return nil, fmt.Errorf("%s: %s is a %s, not a file system: declare another dataset", name, level, d.kind)
		}
	}
	return create, nil
}

// ensure makes a dataset and those that it lies in, if they are missing, and
// mounts none. That would happen to the outer ones by 'zfs create -p', and to
// all at the next boot without canmount=noauto, which is not inherited.
func (z program) ensure(ctx context.Context, name string, have map[string]dataset) error {
	create, err := missing(name, have)
	if err != nil {
		return err
	}
	for _, level := range create {
		if _, err := z.run(ctx, "create", "-o", "canmount=noauto", level); err != nil {
			return err
		}
		made, err := z.list(ctx, []string{level})
		if err != nil {
			return err
		}
		have[level] = made[level]
	}
	return nil
}

// mountArgs are mount's. A legacy mountpoint says that only mount(8) mounts the
// dataset; others need the word that it is on behalf of zfs.
func mountArgs(name, mountpoint, path string) []string {
	if mountpoint == "legacy" {
		return []string{"-t", "zfs", name, path}
	}
	return []string{"-t", "zfs", "-o", "zfsutil", name, path}
}

// mountKernel mounts a dataset through the kernel's ZFS.
func mountKernel(ctx context.Context, name, mountpoint, path string) error {
	_, err := run(ctx, "mount", mountArgs(name, mountpoint, path)...)
	if err != nil && strings.Contains(err.Error(), "key") {
		return fmt.Errorf("%w: 'zfs load-key %s'", err, name)
	}
	return err
}

// mountFuse mounts a dataset through zfs-fuse, which does so only where the
// property mountpoint says: it becomes path, unless its owner has set it so that
// there is none.
func (z program) mountFuse(ctx context.Context, name, path string) error {
	out, err := z.run(ctx, "get", "-H", "-o", "value,source", "mountpoint", name)
	if err != nil {
		return err
	}
	value, source, _ := strings.Cut(strings.TrimSpace(out), "\t")
	if value != path {
		if !strings.HasPrefix(value, "/") && (source == "local" || source == "received") {
			return fmt.Errorf("%s: its mountpoint is set to %s, and zfs-fuse needs a path: 'zfs inherit mountpoint %[1]s' leaves it to ecboot", name, value)
		}
		if err := z.setMountpoint(ctx, name, path); err != nil {
			return err
		}
		if all, err := readMounts(); err != nil {
			return err
		} else if _, mounted := all.find(name); mounted {
			return nil // where canmount is on, setting the path has done it
		}
	}
	// The daemon needs a moment to let go of a dataset that has just been
	// unmounted, and tells nobody when it has.
	for try := 0; ; try++ {
		_, err = z.run(ctx, "mount", name)
		if err == nil || try == 30 || !strings.Contains(err.Error(), "is busy") {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// setMountpoint sets the property, which datasets below inherit: those that are
// mounted by themselves would follow.
func (z program) setMountpoint(ctx context.Context, name, path string) error {
	out, err := z.run(ctx, "list", "-H", "-r", "-t", "filesystem", "-o", "canmount,name", name)
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		canmount, below, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if below != name && canmount == "on" {
			return fmt.Errorf("%s has no mountpoint, and giving it one would mount %s, too: 'zfs set canmount=noauto %[2]s' first", name, below)
		}
	}
	_, err = z.run(ctx, "set", "mountpoint="+path, name)
	return err
}
