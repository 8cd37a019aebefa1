// Package guest decides on the MAC addresses of declared guests and keeps them:
// an address that a guest once had stays with its name, whatever becomes of the
// others.
package guest

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
)

// AssignMACs gives every name an address, by the algorithm sha256-v1: 02, the
// second and third byte of the name's base, and 24 bits of the name's SHA-256.
// Names are gone through in bytewise order; what is taken already moves on to
// the next free number. It is pure.
//
// Names that persisted has keep theirs. Neither the addresses in reserved nor
// those of any name in persisted are given out. An error names all addresses
// that two would have.
func AssignMACs(base func(name string) boot.MAC, names []string, reserved []boot.MAC, persisted map[string]boot.MAC) (map[string]boot.MAC, error) {
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	macs := make(map[string]boot.MAC, len(names))
	owners := make(map[boot.MAC]string, len(reserved)+len(persisted))
	var wrong []error
	for _, m := range reserved {
		if _, twice := owners[m]; twice {
			wrong = append(wrong, fmt.Errorf("%v is written twice: give each network card an address of its own", m))
		}
		owners[m] = "the configuration"
	}
	for _, name := range slices.Sorted(maps.Keys(persisted)) {
		m := persisted[name]
		wanted := slices.Contains(names, name)
		owner, taken := owners[m]
		switch {
		case !taken:
			owners[m] = name
		case wanted:
			wrong = append(wrong, fmt.Errorf("%v is %s's already, and %s has it, too: write another there, or 'mac' for %s", m, name, owner, name))
		}
		if wanted {
			macs[name] = m
		}
	}
	if len(wrong) > 0 {
		return nil, errors.Join(wrong...)
	}
	for _, name := range names {
		if _, kept := macs[name]; kept {
			continue
		}
		m, err := sha256v1(base(name), name, func(m boot.MAC) bool { _, taken := owners[m]; return taken })
		if err != nil {
			return nil, err
		}
		macs[name], owners[m] = m, name
	}
	return macs, nil
}

// sha256v1 is the first address for a name that is not taken.
func sha256v1(base boot.MAC, name string, taken func(boot.MAC) bool) (boot.MAC, error) {
	sum := sha256.Sum256([]byte(name))
	// The lower 24 of the first 64 bits.
	first := uint32(sum[5])<<16 | uint32(sum[6])<<8 | uint32(sum[7])
	for n := range uint32(1 << 24) {
		at := first + n
		m := boot.MAC{0x02, base[1], base[2], byte(at >> 16), byte(at >> 8), byte(at)}
		if !taken(m) {
			return m, nil
		}
	}
	return boot.MAC{}, fmt.Errorf("no address is left for %s: write another base_mac", name)
}

// Assign gives every network card of the declared guests that has no address
// one, and returns persisted with those that are new. The first card of a guest
// without an address goes by the guest's name, others by NAME/NUMBER, counted
// from 0 as in the configuration's paths. On an error c is as it was.
func Assign(c *config.Config, persisted map[string]boot.MAC) (map[string]boot.MAC, error) {
	firsts, others := wanted(c.Guests)
	reserved := written(c.Guests)
	for _, m := range c.Machines {
		// A [[machine]] may say something of a guest: then it has its address, or
		// the one that the guest is about to be assigned, and its name.
		isGuest := slices.Contains(reserved, m.MAC) || slices.Contains(slices.Collect(maps.Values(persisted)), m.MAC) ||
			slices.ContainsFunc(c.Guests, func(g config.DeclaredGuest) bool { return g.IsNode(m.Name) })
		if m.MAC != (boot.MAC{}) && !isGuest {
			reserved = append(reserved, m.MAC)
		}
	}
	bases := map[string]boot.MAC{}
	for _, g := range c.Guests {
		bases[g.Name] = cmp.Or(g.BaseMAC, c.BaseMAC)
	}
	base := func(card string) boot.MAC {
		guest, _, _ := strings.Cut(card, "/")
		return bases[guest]
	}
	// In two turns, so that a second card never takes what a guest's first
	// would have.
	macs, err := AssignMACs(base, firsts, reserved, persisted)
	if err != nil {
		return nil, err
	}
	known := maps.Clone(persisted)
	if known == nil {
		known = map[string]boot.MAC{}
	}
	maps.Copy(known, macs)
	macs, err = AssignMACs(base, others, reserved, known)
	if err != nil {
		return nil, err
	}
	maps.Copy(known, macs)
	for i := range c.Guests {
		g := &c.Guests[i]
		names := CardNames(*g)
		g.NICs = slices.Clone(g.NICs)
		for j, name := range names {
			if name != "" {
				g.NICs[j].MAC = known[name]
			}
		}
	}
	return known, nil
}

// CardNames is under which name each network card of a guest is assigned an
// address; empty where the configuration has one.
func CardNames(g config.DeclaredGuest) []string {
	names := make([]string, len(g.NICs))
	first := true
	for i, nic := range g.NICs {
		if nic.MAC != (boot.MAC{}) {
			continue
		}
		names[i] = fmt.Sprintf("%s/%d", g.Name, i)
		if first {
			names[i] = g.Name
		}
		first = false
	}
	return names
}

func wanted(guests []config.DeclaredGuest) (firsts, others []string) {
	for _, g := range guests {
		for _, name := range CardNames(g) {
			switch {
			case name == "":
			case name == g.Name:
				firsts = append(firsts, name)
			default:
				others = append(others, name)
			}
		}
	}
	return firsts, others
}

// written is the addresses that the configuration itself gives to guests.
func written(guests []config.DeclaredGuest) (macs []boot.MAC) {
	for _, g := range guests {
		for _, nic := range g.NICs {
			if nic.MAC != (boot.MAC{}) {
				macs = append(macs, nic.MAC)
			}
		}
	}
	return macs
}

// checkAssignable says why a name cannot be one that an address is assigned to:
// a guest's, or NAME/NUMBER.
func checkAssignable(name string) error {
	guest, number, isCard := strings.Cut(name, "/")
	if err := config.CheckName(guest); err != nil {
		return err
	}
	if isCard && (len(number) > 3 || strings.Trim(number, "0123456789") != "" || cmp.Or(number, "0x")[0] == '0' && number != "0") {
		return errors.New("is neither a guest's name nor NAME/NUMBER")
	}
	return nil
}
