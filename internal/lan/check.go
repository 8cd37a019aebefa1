package lan

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
)

// Check says what would keep a segment from being opened now, and what would be
// unexpected. It changes nothing.
//
// It speaks for a process that succeeds the owner of what is noted in the
// Config's NoteDir, even if that lives: such a one goes on with what the same
// Config has opened, and undoes everything else, but for what guests hold and the
// segments named others, which it is going to open as well.
func Check(cfg Config, others ...string) (obstacles, warnings []string, err error) {
	h, err := readHost()
	if err != nil {
		return nil, nil, fmt.Errorf("look at the network: %w", err)
	}
	notes, err := notesIn(cfg.NoteDir, others...)
	if err != nil {
		return nil, nil, err
	}
	for _, path := range notes {
		n, err := parseNote(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // it was undone just now
		}
		if err != nil {
			return nil, nil, err
		}
		if n.Boot != bootID() {
			continue
		}
		own, held := path == noteFile(cfg.NoteDir, cfg.Name), n.holders()
		switch {
		case own && n.Open != nil && n.Open.Config.same(cfg):
			if _, there := h.links[n.Open.Link]; there {
				return nil, n.Open.Warnings, nil
			}
		case own && len(held) > 0:
			return []string{newHeldError(cfg.Name, held).Error()}, nil, nil
		case len(held) > 0:
			continue
		}
		rename(n.Made)
		h = h.without(n.Made)
	}
	p := plan(cfg, h)
	return p.obstacles, p.warnings, nil
}

// without is the host as it will be when changes are undone, in all that matters
// to a plan. It is pure.
func (h host) without(made []change) host {
	h.links, h.exits = maps.Clone(h.links), slices.Clone(h.exits)
	for _, c := range slices.Backward(made) {
		l, ok := h.links[c.Link]
		if !ok || !c.whole() {
			continue
		}
		switch c.Op {
		case opBridge, opVLAN, opMacvlan, opMacvtap:
			if c.madeOf(l.kind, l.mac) {
				delete(h.links, c.Link)
			}
			continue
		case opUp:
			l.up, l.carrier = false, false
		case opEnslave:
			if l.master == c.On {
				l.master = ""
			}
		case opAddress:
			l.addresses = slices.DeleteFunc(slices.Clone(l.addresses), func(a address) bool { return a.Prefix == c.Addr })
		case opMove:
			h.moveBack(c, &l)
		}
		h.links[c.Link] = l
	}
	return h
}

// moveBack gives l what was moved away from it.
func (h host) moveBack(c change, l *linkState) {
	var moved []netip.Prefix
	for _, m := range c.Saved.Addresses {
		moved = append(moved, m.address())
	}
	if on, ok := h.links[c.On]; ok {
		var stay []address
		for _, a := range on.addresses {
			if slices.Contains(moved, a.Prefix) {
				l.addresses = append(slices.Clip(l.addresses), a)
			} else {
				stay = append(stay, a)
			}
		}
		on.addresses = stay
		h.links[c.On] = on
	}
	for _, m := range c.Saved.Routes {
		if _, ok := m.defaultGateway(); !ok {
			continue
		}
		for i, link := range h.exits {
			if link == c.On {
				h.exits[i] = c.Link
			}
		}
	}
}
