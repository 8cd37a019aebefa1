package lan

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"

	"github.com/vishvananda/netlink"
)

// opened is what a segment is once it is open. It stands in the note, for a
// successor.
type opened struct {
	Config   Config       `json:"config"`
	Link     string       `json:"link"`               // of the servers
	Parent   string       `json:"parent,omitempty"`   // of the guests' macvtaps; empty: they have taps
	NoPorts  string       `json:"no_ports,omitempty"` // why there is no room for guests; empty: there is
	Address  netip.Prefix `json:"address"`
	Warnings []string     `json:"warnings,omitempty"`
}

// same reports whether two configurations ask for the same network.
func (c Config) same(other Config) bool {
	c.NoteDir, other.NoteDir = "", ""
	c.pause, other.pause = nil, nil
	return reflect.DeepEqual(c, other)
}

// takeOver continues what a process that is gone has left open, without touching
// it. It returns nil when there is no such thing, or no longer: what was left
// half way or for another Config is undone, unless somebody holds it.
func takeOver(cfg Config) (*Segment, error) {
	path := noteFile(cfg.NoteDir, cfg.Name)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	// Before the claim, so that the segment is never without one; and before
	// the lock, which it needs when it is let go.
	dog, err := startWatchdog(path)
	if err != nil {
		return nil, err
	}
	s, err := claim(path, cfg, dog)
	if s == nil {
		return nil, errors.Join(err, dog.release())
	}
	mended, err := s.Mend()
	link, gone := netlink.LinkByName(s.opened.Link)
	if gone == nil && err == nil {
		err = s.checkAddress(link)
	}
	if gone != nil || err != nil && len(s.held) == 0 {
		// What it stood on has changed: begin anew with what there is.
		return nil, s.Close()
	}
	s.link = link
	for _, what := range mended {
		s.found = append(s.found, "somebody had changed a segment, and it is put right: "+what)
	}
	if err != nil {
		s.found = append(s.found, "somebody has changed a segment, and it cannot be put right: "+err.Error())
	}
	return s, nil
}

// checkAddress says that the servers' address has gone, which is another one
// from then on if the Config leaves that open.
func (s *Segment) checkAddress(link netlink.Link) error {
	have, err := addresses(link)
	lost := s.opened.Address
	if err != nil || slices.Contains(have, lost) {
		return err
	}
	if !s.opened.Config.Address.IsValid() && len(have) > 0 {
		s.opened.Address = have[0]
		return fmt.Errorf("%s has no longer the address %s, so that the servers take %s", s.opened.Link, lost, have[0])
	}
	return fmt.Errorf("%s has no longer the servers' address %s", s.opened.Link, lost)
}

// claim makes this process the owner of a note and dog its watchdog. The former
// watchdog sees that and ends.
func claim(path string, cfg Config, dog *watchdog) (*Segment, error) {
	unlock, err := lockNotes(path)
	if err != nil {
		return nil, err
	}
	defer unlock()
	n, err := readNote(path)
	if err != nil || n == nil {
		return nil, err
	}
	if n.Owner.alive() {
		return nil, fmt.Errorf("the segment is open already, in process %s", n.Owner)
	}
	held := n.holders()
	if n.Open == nil || !n.Open.Config.same(cfg) {
		if len(held) > 0 {
			return nil, newHeldError(cfg.Name, held)
		}
		return nil, n.undo(path)
	}
	s := newSegment(cfg)
	s.opened, s.made, s.held, s.watchdog = n.Open, n.Made, held, dog
	if s.owner, err = processOf(os.Getpid()); err != nil {
		return nil, err
	}
	s.pause()
	if err := s.save(); err != nil {
		return nil, err
	}
	s.pause()
	return s, nil
}
