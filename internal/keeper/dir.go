package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The files in a guest's directory.
const (
	lockName   = "lock"
	planName   = "plan.json"
	exitName   = "exit.json"
	socketName = "keeper.sock"
	logName    = "keeper.log"
)

const maxFile = 64 << 20 // bytes; a plan may hold an initrd

// claim makes the directory this process's: empty, and locked. It is ErrRunning
// if a keeper lives there.
func claim(dir string) (lock *os.File, err error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return nil, err
	}
	// Who looks whether a keeper lives holds the lock for a moment.
	for range 50 {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, err
		}
		lock, err = os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if errors.Is(err, os.ErrNotExist) {
			continue // it was removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && isFile(lock, filepath.Join(dir, lockName)) {
			return lock, clear(lock, dir)
		}
		lock.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, ErrRunning
}

func isFile(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

// clear removes what the last keeper left.
func clear(lock *os.File, dir string) error {
	err := lock.Truncate(0)
	entries, readErr := os.ReadDir(dir)
	err = errors.Join(err, readErr, os.Chmod(dir, 0o700))
	for _, e := range entries {
		if e.Name() != lockName {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	if err != nil {
		lock.Close()
	}
	return err
}

// inhabited tells whether a keeper lives in the directory, or is about to.
func inhabited(dir string) (bool, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// forget removes a directory in which no keeper lives.
func forget(dir string) error {
	alive, err := inhabited(dir)
	if err != nil {
		return err
	}
	if alive {
		return fmt.Errorf("%s: %w: stop it first", dir, ErrRunning)
	}
	return os.RemoveAll(dir)
}

// noteProcesses writes who lives in a directory into its lock. guest is 0 until
// there is one.
func noteProcesses(lock *os.File, keeper, guest int) error {
	_, err := lock.WriteAt(fmt.Appendf(nil, "%10d %10d\n", keeper, guest), 0)
	return err
}

func notedProcesses(dir string) (keeper, guest int, err error) {
	b, err := readFile(filepath.Join(dir, lockName))
	if err != nil {
		return 0, 0, err
	}
	if _, err := fmt.Sscanf(string(b), "%d %d\n", &keeper, &guest); err != nil || keeper <= 0 || guest < 0 {
		return 0, 0, fmt.Errorf("%s does not say who holds it", filepath.Join(dir, lockName))
	}
	return keeper, guest, nil
}

// readFile reads a regular file: what lies in a directory may be anything.
func readFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a file", path)
	case st.Size() > maxFile:
		return nil, fmt.Errorf("%s is too large: %d bytes", path, st.Size())
	}
	return io.ReadAll(io.LimitReader(f, maxFile))
}

func readJSON(path string, into any) error {
	b, err := readFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// readExit tells how the guest of a keeper that is gone ended.
func readExit(dir string) Exit {
	var e Exit
	err := readJSON(filepath.Join(dir, exitName), &e)
	if err == nil && e.Reason != "" {
		return e
	}
	e = Exit{Reason: "killed", Detail: "its keeper was killed", Failed: true}
	st, err := os.Stat(filepath.Join(dir, planName))
	if err != nil {
		e.Reason, e.Detail, e.At = "failed", "it did not start", time.Now()
		return e
	}
	e.At = st.ModTime()
	if line := crashLine(dir); line != "" {
		e.Detail = "its keeper crashed: " + line
	}
	return e
}

// crashLine is the first line of what Go prints when a program crashes.
func crashLine(dir string) string {
	b, err := readFile(filepath.Join(dir, logName))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") {
			return strings.TrimSpace(line)
		}
	}
	return ""
}
