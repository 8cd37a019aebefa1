package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/internal/lan"
)

// dirs are where ecboot keeps things: Cache may be deleted at any time, State
// survives restarts, Run does not outlive its processes.
type dirs struct {
	Cache, State, Run string
}

// rootDirs are those of the machine itself.
func rootDirs() dirs {
	return dirs{Cache: "/var/cache/ecboot", State: "/var/lib/ecboot", Run: "/run/ecboot"}
}

// userDirs follows the file hierarchy for root and the XDG base directories for
// everybody else.
func userDirs() dirs {
	uid, isolated := lan.Isolated()
	if !isolated {
		uid = os.Geteuid()
	}
	if uid == 0 {
		return rootDirs()
	}
	home := os.Getenv("HOME")
	xdg := func(name, fallback string) string {
		if dir := os.Getenv(name); filepath.IsAbs(dir) {
			return filepath.Join(dir, "ecboot")
		}
		return filepath.Join(fallback, "ecboot")
	}
	return dirs{
		Cache: xdg("XDG_CACHE_HOME", filepath.Join(home, ".cache")),
		State: xdg("XDG_STATE_HOME", filepath.Join(home, ".local/state")),
		Run:   xdg("XDG_RUNTIME_DIR", filepath.Join(home, ".cache/run")),
	}
}

// runDir is one process's directory under dirs.Run. Its lock tells everybody
// that the process lives; the kernel drops it with the process, however that
// ends.
type runDir struct {
	path string
	lock *os.File
}

func openRunDir(base string) (_ *runDir, err error) {
	if err := makeRunBase(base); err != nil {
		return nil, err
	}
	// Held while a directory is made and its lock taken, and by sweep.
	baseLock, err := lockFile(filepath.Join(base, ".lock"), unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer baseLock.Close()
	d := &runDir{path: filepath.Join(base, strconv.Itoa(os.Getpid()))}
	// What a process of the same number left, when nobody could sweep it.
	if err := os.RemoveAll(d.path); err != nil {
		return nil, err
	}
	if err := os.Mkdir(d.path, 0o700); err != nil {
		return nil, err
	}
	d.lock, err = lockFile(filepath.Join(d.path, ".lock"), unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(d.path))
	}
	return d, nil
}

// makeRunBase makes the directory of all processes. Others may pass through it
// to what is shared with them, and see nothing on the way.
func makeRunBase(base string) error {
	if err := os.MkdirAll(filepath.Dir(base), 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(base, 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Chmod(base, 0o711) // whatever made it, and the umask
}

// upName is the directory of 'ecboot up' below dirs.Run; there is one of it.
const upName = "up"

// makeUpDir makes the directory of 'ecboot up', for the members of a group as
// well unless gid is -1.
func makeUpDir(base string, gid int) (path string, err error) {
	if err := makeRunBase(base); err != nil {
		return "", err
	}
	path = filepath.Join(base, upName)
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	if gid < 0 {
		return path, errors.Join(os.Chown(path, -1, os.Getegid()), os.Chmod(path, 0o700))
	}
	return path, errors.Join(os.Chown(path, -1, gid), os.Chmod(path, 0o750))
}

// operatorGroup returns the group whose members may drive guests; -1 when this
// machine has none of that name, or when the guests are not root's.
func operatorGroup(cfg *config.Config) (gid int, err error) {
	if os.Geteuid() != 0 {
		return -1, nil
	}
	g, err := user.LookupGroup(cfg.Server.OperatorGroup)
	var unknown user.UnknownGroupError
	if errors.As(err, &unknown) {
		return -1, nil
	}
	if err != nil {
		return -1, err
	}
	return strconv.Atoi(g.Gid)
}

func (d *runDir) file(name string) string { return filepath.Join(d.path, name) }

func (d *runDir) Close() error {
	return errors.Join(os.RemoveAll(d.path), d.lock.Close())
}

// sweep undoes and removes what processes that are gone have left under base.
// It must run in the host's network namespace: the notes speak of its links.
func sweep(base string) error {
	entries, err := os.ReadDir(base)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	baseLock, err := lockFile(filepath.Join(base, ".lock"), unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer baseLock.Close()
	var errs []error
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil || !e.IsDir() {
			continue
		}
		dir := filepath.Join(base, e.Name())
		lock, err := lockFile(filepath.Join(dir, ".lock"), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue
		}
		if err == nil {
			defer lock.Close()
		}
		if err := lan.Sweep(dir); err != nil {
			errs = append(errs, fmt.Errorf("clean up after process %s: %w", e.Name(), err))
			continue
		}
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

func lockFile(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// stateDir is the configuration's, or the user's when it names none.
func stateDir(cfg *config.Config) string {
	return cmp.Or(cfg.Server.StateDir, userDirs().State)
}

// yoursAlone is what an empty list adds for somebody who is not root: verbs that
// read what is in state directories know those of their user.
func yoursAlone(cfg *config.Config) string {
	if userDirs() == rootDirs() || cfg.Server.StateDir != "" {
		return ""
	}
	return "; this looked at what you run yourself, and what root runs is shown to root"
}
