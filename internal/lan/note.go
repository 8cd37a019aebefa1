package lan

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const noteName = "lan.json"

// The ways to undo.
const (
	opDelLink = "delete-link"
	opDelAddr = "delete-address"
)

// step undoes one change to the network.
type step struct {
	Op   string `json:"op"`
	Link string `json:"link"`
	Addr string `json:"addr,omitempty"` // with prefix length
}

// will notes how the change that follows is undone, before it is made: a
// process that is killed in between leaves a note of something that is not
// there, which is harmless.
func (s *Segment) will(st step) error {
	s.undo = append(s.undo, st)
	return writeNote(s.note, s.undo)
}

func writeNote(path string, steps []step) error {
	b, err := json.Marshal(steps)
	if err != nil {
		return err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("note what will be made: %w", err)
	}
	return os.Rename(tmp, path)
}

// Sweep undoes what a process that is gone has noted in dir. The caller knows
// that it is gone. A directory without a note is fine.
func Sweep(dir string) error {
	path := filepath.Join(dir, noteName)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var steps []step
	if err := json.Unmarshal(b, &steps); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return undoAll(path, steps)
}

func undoAll(note string, steps []step) error {
	var errs []error
	for i := len(steps) - 1; i >= 0; i-- {
		if err := steps[i].do(); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if err := os.Remove(note); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (st step) do() error {
	link, err := netlink.LinkByName(st.Link)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", st.Link, err)
	}
	switch st.Op {
	case opDelLink:
		err = netlink.LinkDel(link)
	case opDelAddr:
		var addr *netlink.Addr
		if addr, err = netlink.ParseAddr(st.Addr); err == nil {
			err = netlink.AddrDel(link, addr)
		}
		if errors.Is(err, unix.EADDRNOTAVAIL) {
			err = nil
		}
	}
	if err != nil {
		return fmt.Errorf("%s %s %s: %w", st.Op, st.Link, st.Addr, err)
	}
	return nil
}

func isNotFound(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound)
}
