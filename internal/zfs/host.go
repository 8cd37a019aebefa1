package zfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Host brings plans about on this machine. Its calls must not overlap.
type Host struct {
	// Dir is a directory of ecboot's own that lasts as long as mounts do, such
	// as /run/ecboot/zfs, without symbolic links; made if missing. It holds the
	// record of what ecboot has mounted.
	Dir string

	kernel bool // take the kernel's ZFS for there, in tests only
}

// A Problem is what keeps guests from what they need.
type Problem struct {
	Guests []string // sorted; none for what no longer belongs to any
	Text   string
	Fatal  bool // Apply or Release cannot mend it
}

// Require says why a guest cannot be started: it returns nil only if everything
// that the guest needs is mounted right now.
func (p Plan) Require(guest string) error {
	shares := p.Shares(guest)
	if len(shares) == 0 {
		return nil
	}
	all, err := readMounts()
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range shares {
		right, err := all.right(s.Dataset, s.HostPath)
		if err == nil && !right {
			err = fmt.Errorf("%s is not mounted on %s", s.Dataset, s.HostPath)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("guest %s: zfs %s: %w", guest, s.Name, err))
		}
	}
	return errors.Join(errs...)
}

// Apply makes what is missing and leaves alone what is right. Problems of some
// guests keep nothing from the others; the error tells that nothing could be
// done at all.
func (h Host) Apply(ctx context.Context, p Plan) ([]Problem, error) {
	if done, err := p.mounted(); done || err != nil {
		return nil, err
	}
	z, have, err := survey(ctx, p)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(h.Dir, 0o700); err != nil {
		return nil, err
	}
	var problems []Problem
	failed := map[string]bool{} // datasets and paths
	for _, s := range p.Steps {
		if failed[s.Dataset] || slices.ContainsFunc(above(s.Path), func(dir string) bool { return failed[dir] }) {
			failed[s.Path] = true
			continue // the cause is told, with these guests
		}
		var err error
		if s.Path == "" {
			err = z.ensure(ctx, s.Dataset, have)
		} else {
			err = h.mount(ctx, z, s, have[s.Dataset].mountpoint)
		}
		if err != nil {
			failed[cmp.Or(s.Path, s.Dataset)] = true
			problems = append(problems, Problem{Guests: s.Guests, Text: err.Error(), Fatal: true})
		}
	}
	return problems, nil
}

// mounted tells whether all is mounted as it should be. Then nobody need be
// asked what exists: ecboot starts again quickly, and while a pool is slow.
func (p Plan) mounted() (bool, error) {
	all, err := readMounts()
	if err != nil {
		return false, err
	}
	return !slices.ContainsFunc(p.Steps, func(s Step) bool {
		if s.Path == "" {
			return false
		}
		right, err := all.right(s.Dataset, s.Path)
		return err != nil || !right
	}), nil
}

// survey returns what exists of a plan's datasets and those that they lie in.
func survey(ctx context.Context, p Plan) (program, map[string]dataset, error) {
	z, err := findProgram()
	if err != nil {
		return "", nil, err
	}
	var names []string
	for _, s := range p.Steps {
		names = append(names, lineage(s.Dataset)...)
	}
	slices.Sort(names)
	have, err := z.list(ctx, slices.Compact(names))
	return z, have, err
}

// mount mounts a dataset where a step says, unless it is there. The dataset is
// mounted in a place of ecboot's own first: programs mount by name, and part of
// a name may be a guest's to change.
func (h Host) mount(ctx context.Context, z program, s Step, mountpoint string) error {
	all, err := readMounts()
	if err != nil {
		return err
	}
	if right, err := all.right(s.Dataset, s.Path); right || err != nil {
		return err
	}
	dir, err := openDir(s.Path)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := checkEmpty(dir); err != nil {
		return err
	}
	from, hide, err := h.show(ctx, z, s.Dataset, mountpoint)
	if err != nil {
		return err
	}
	defer hide()
	if err := h.remember(recorded{s.Dataset, s.Path}); err != nil {
		return err
	}
	if err := graft(from, dir); err != nil {
		return err
	}
	if all, err = readMounts(); err != nil {
		return err
	}
	right, err := all.right(s.Dataset, s.Path)
	if err == nil && !right {
		err = fmt.Errorf("%s was mounted on %s, which then led elsewhere: somebody has moved one of its directories", s.Dataset, s.Path)
	}
	return err
}

// show mounts a dataset for graft, and returns how to take that away again.
func (h Host) show(ctx context.Context, z program, name, mountpoint string) (from string, hide func(), err error) {
	// No dataset has a % in its name.
	home := filepath.Join(h.Dir, strings.ReplaceAll(name, "/", "%"))
	all, err := readMounts()
	if err != nil {
		return "", nil, err
	}
	kernel := h.kernel || kernelHasZFS()
	if kernel {
		// Another mount may be read-only, by somebody's choice for that path.
		from, err = home, os.MkdirAll(home, 0o700)
	} else if from, _ = all.find(name); from != "" {
		return from, func() {}, nil
	} else if from = home; strings.HasPrefix(mountpoint, "/") && !strings.HasPrefix(mountpoint, h.Dir+"/") {
		from = mountpoint // by its owner's choice, for it or one that it lies in
	}
	if err != nil {
		return "", nil, err
	}
	r := recorded{name, from}
	if err := h.remember(r); err != nil {
		return "", nil, err
	}
	hide = func() {
		// What stays is in the record, for Release.
		if release(r) == nil {
			os.Remove(home)
			_ = h.forget(r)
		}
	}
	right, err := all.right(name, from)
	switch {
	case err != nil || right: // left by one that was killed
	case kernel:
		err = mountKernel(ctx, name, mountpoint, from)
	default:
		err = z.mountFuse(ctx, name, from)
	}
	if err != nil {
		hide()
		return "", nil, err
	}
	return from, hide, nil
}

// Release unmounts what ecboot has mounted and the plan no longer has. What is
// in use stays, is told, and is tried again by the next call. Call it before
// Apply, so that a path can change its dataset.
func (h Host) Release(p Plan) ([]Problem, error) {
	stale, err := h.stale(p)
	if err != nil {
		return nil, err
	}
	var problems []Problem
	for _, r := range stale {
		if err := release(r); err != nil {
			problems = append(problems, Problem{Text: err.Error(), Fatal: true})
		} else if err := h.forget(r); err != nil {
			return problems, err
		}
	}
	return problems, nil
}

// stale returns what is recorded and not in the plan, inner ones first.
func (h Host) stale(p Plan) ([]recorded, error) {
	list, err := h.readRecord()
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(r recorded) bool {
		return slices.ContainsFunc(p.Steps, func(s Step) bool { return s.Dataset == r.Dataset && s.Path == r.Path })
	})
	slices.SortFunc(list, func(a, b recorded) int { return cmp.Compare(b.Path, a.Path) })
	return list, nil
}

// release unmounts what is recorded, if it is still that.
func release(r recorded) error {
	all, err := readMounts()
	if err != nil {
		return err
	}
	if right, err := all.right(r.Dataset, r.Path); err != nil || !right {
		return nil // somebody else's by now
	}
	err = unix.Unmount(r.Path, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s on %s is no longer declared but in use: 'fuser -vm %[2]s' tells by whom", r.Dataset, r.Path)
	}
	if err != nil {
		return explain("unmount "+r.Path, err)
	}
	return nil
}

// Check tells what differs from the plan. It changes nothing.
func (h Host) Check(ctx context.Context, p Plan) ([]Problem, error) {
	problems, err := p.unmet(ctx)
	if err != nil {
		return nil, err
	}
	stale, err := h.stale(p)
	if err != nil {
		return nil, err
	}
	all, err := readMounts()
	if err != nil {
		return nil, err
	}
	for _, r := range stale {
		if right, err := all.right(r.Dataset, r.Path); err == nil && right {
			problems = append(problems, Problem{Text: fmt.Sprintf("%s is mounted on %s, though no guest declares it any more", r.Dataset, r.Path)})
		}
	}
	if text := tooOpen(p); text != "" {
		problems = append(problems, Problem{Text: text, Fatal: true})
	}
	return problems, nil
}

// unmet tells which steps are not as they should be.
func (p Plan) unmet(ctx context.Context) (problems []Problem, err error) {
	if done, err := p.mounted(); done || err != nil {
		return nil, err
	}
	_, have, err := survey(ctx, p)
	if err != nil {
		return nil, err
	}
	all, err := readMounts()
	if err != nil {
		return nil, err
	}
	for _, s := range p.Steps {
		if text, fatal := s.differs(all, have); text != "" {
			problems = append(problems, Problem{Guests: s.Guests, Text: text, Fatal: fatal})
		}
	}
	return problems, nil
}

// differs tells what Apply would do for a step, or what would keep it from it.
func (s Step) differs(all mounts, have map[string]dataset) (text string, fatal bool) {
	if s.Path == "" {
		create, err := missing(s.Dataset, have)
		switch {
		case err != nil:
			return err.Error(), true
		case len(create) > 0:
			return s.Dataset + " does not exist", false
		}
		return "", false
	}
	right, err := all.right(s.Dataset, s.Path)
	if err == nil && !right {
		err = checkEmptyPath(s.Path)
	}
	switch {
	case err != nil:
		return err.Error(), true
	case !right:
		return fmt.Sprintf("%s is not mounted on %s", s.Dataset, s.Path), false
	}
	return "", false
}

// tooOpen complains if others than root may enter /guests. An administrator may
// want so, hence Apply does not change it.
func tooOpen(p Plan) string {
	if !slices.ContainsFunc(p.Steps, func(s Step) bool { return strings.HasPrefix(s.Path, guestsDir+"/") }) {
		return ""
	}
	if fi, err := os.Stat(guestsDir); err == nil && fi.Mode().Perm()&0o077 != 0 {
		return fmt.Sprintf("%s has mode %04o, so users of the host reach set-uid programs that guests have made: 'chmod 0700 %[1]s'", guestsDir, fi.Mode().Perm())
	}
	return ""
}

// checkEmpty refuses to hide files below a mount.
func checkEmpty(dir *os.File) error {
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return explain(dir.Name(), err)
	}
	f := os.NewFile(uintptr(fd), dir.Name())
	defer f.Close()
	names, err := f.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return explain(dir.Name(), err)
	}
	return fmt.Errorf("%s is not empty, a mount would hide %q: move what is in it into the dataset or away, or declare another host mountpoint", dir.Name(), names[0])
}

// checkEmptyPath is checkEmpty for a directory that may be missing.
func checkEmptyPath(path string) error {
	dir, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	return checkEmpty(dir)
}
