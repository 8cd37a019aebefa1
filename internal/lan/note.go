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

// note is what a segment has changed, so far, since the machine was started, and
// whose it is. Only its owner writes it; whoever wants to become the owner, or to
// undo it, holds the lock of the directory.
type note struct {
	Boot string   `json:"boot"`
	Made []change `json:"made"`
	// Open is nil until the segment is open, and again when it is being
	// closed: then it is not to be continued but to be undone.
	Open     *opened   `json:"open,omitempty"`
	Owner    process   `json:"owner,omitzero"`
	Watchdog process   `json:"watchdog,omitzero"` // another one leaves it alone
	Held     []process `json:"held,omitempty"`    // as long as one of them lives it stays
}

// holders are the living processes for which an open segment must stay.
func (n *note) holders() []process {
	if n.Open == nil {
		return nil
	}
	return living(n.Held)
}

// bootID is another one after each start of the machine.
func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

// readNote returns nil when there is none. What an earlier start of the machine
// left is none: the network of which it speaks is gone, and so is the file then.
func readNote(path string) (*note, error) {
	n, err := parseNote(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if n.Boot != bootID() {
		return nil, undoAll(path, nil)
	}
	return n, nil
}

func parseNote(path string) (*note, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	n := &note{}
	if err := json.Unmarshal(b, n); err != nil {
		return nil, fmt.Errorf("%s: %w; see what it says of your links, and delete it", path, err)
	}
	return n, nil
}

func (n *note) write(path string) error {
	b, err := json.Marshal(n)
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

// lockNotes takes the lock of the directory of a note.
func lockNotes(path string) (unlock func(), err error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		dir.Close()
		return nil, fmt.Errorf("lock %s: %w", dir.Name(), err)
	}
	return func() { dir.Close() }, nil
}

// Sweep undoes what processes that are gone have noted in dir. What living
// guests hold stays, and so do the segments that are named, which are going to
// be opened again. A directory without a note is fine.
func Sweep(dir string, except ...string) error {
	notes, err := notesIn(dir, except...)
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range notes {
		errs = append(errs, sweepNote(path))
	}
	return errors.Join(errs...)
}

// notesIn finds the notes in a directory, but for those of the segments that are
// named.
func notesIn(dir string, except ...string) ([]string, error) {
	notes, err := filepath.Glob(filepath.Join(dir, noteGlob))
	return slices.DeleteFunc(notes, func(path string) bool {
		return slices.ContainsFunc(except, func(segment string) bool { return path == noteFile(dir, segment) })
	}), err
}

// sweepNote undoes one note. The watchdog may do so at the same time: the second
// finds nothing left to do.
func sweepNote(path string) error {
	unlock, err := lockNotes(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	n, err := readNote(path)
	if err != nil || n == nil || n.Owner.alive() || len(n.holders()) > 0 {
		return err
	}
	return n.undo(path)
}

// undo undoes what is noted. From here on half of it may be missing, so nobody
// must continue it; if that cannot be noted it is undone all the same.
func (n *note) undo(path string) error {
	if n.Open != nil {
		n.Open = nil
		_ = n.write(path)
	}
	return undoAll(path, n.Made)
}

// undoAll undoes changes, last first, as many as can be, but for the settings
// that another segment needs, too. The note stays until all are undone.
func undoAll(note string, made []change) error {
	rename(made)
	others := othersSettings(note)
	var errs []error
	for _, c := range slices.Backward(made) {
		if _, needed := others[c.Key]; needed && c.Op == opSetting {
			continue
		}
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
