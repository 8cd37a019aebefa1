// Package durable writes files that processes share and that hold whatever ends
// them: after a crash, of the machine, too, there is the old file or the new one.
package durable

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// WriteJSON writes a document to path, in the place of what is there. Writers of
// one path take turns: it is made beside, under a name that the next one takes if
// this one is killed.
func WriteJSON(path string, from any, mode fs.FileMode) error {
	data, err := json.MarshalIndent(from, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	// What was left of another one had its own mode.
	if err = errors.Join(err, f.Chmod(mode)); err != nil {
		f.Close()
	} else {
		err = Replace(f, path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// Replace puts a file that lies beside path in its place, and closes it.
func Replace(f *os.File, path string) error {
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Lock waits until nobody else writes path, and makes its directory.
func Lock(path string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}
