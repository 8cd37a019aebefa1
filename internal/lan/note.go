package lan

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A note lies in the directory of its process, as lan.json or lan-SEGMENT.json.
const (
	notePrefix = "lan-"
	noteSuffix = ".json"
	noteGlob   = "lan*.json"
)

// note is what a segment has changed, so far, since the machine was started.
type note struct {
	Boot string   `json:"boot"`
	Made []change `json:"made"`
}

// bootID is another one after each start of the machine.
func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

func writeNote(path string, made []change) error {
	b, err := json.Marshal(note{bootID(), made})
	if err != nil {
		return err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("note what will be changed: %w", err)
	}
	return os.Rename(tmp, path)
}

// Sweep undoes what a process that is gone has noted in dir. The caller knows
// that it is gone. A directory without a note is fine.
func Sweep(dir string) error {
	notes, err := filepath.Glob(filepath.Join(dir, noteGlob))
	if err != nil {
		return err
	}
	var errs []error
	for _, note := range notes {
		errs = append(errs, sweepNote(note))
	}
	return errors.Join(errs...)
}

// sweepNote undoes one note. The watchdog and the next start may do so at the
// same time: the second finds nothing left to do.
func sweepNote(path string) error {
	dir, err := os.Open(filepath.Dir(path))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", dir.Name(), err)
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var n note
	if err := json.Unmarshal(b, &n); err != nil {
		return fmt.Errorf("%s: %w; see what it says of your links, and delete it", path, err)
	}
	if n.Boot != bootID() {
		// The network of which it speaks is gone.
		return undoAll(path, nil)
	}
	return undoAll(path, n.Made)
}

// undoAll undoes changes, last first, as many as can be. The note stays until
// all are undone.
func undoAll(note string, made []change) error {
	var errs []error
	for _, c := range slices.Backward(made) {
		errs = append(errs, c.undo())
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if note == "" {
		return nil
	}
	if err := os.Remove(note); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
