// Package zfs gives guests directories on ZFS datasets of the host: it makes
// datasets that are missing, mounts each where it is declared, and says whether
// all that a guest needs is there.
//
// It never destroys, rolls back, renames or forcibly unmounts anything, changes
// no property that somebody has set, and mounts over nothing.
package zfs

import (
	"cmp"
	"fmt"
	"path"
	"slices"
)

// Plan is what all guests' entries together mean for the host.
type Plan struct {
	Steps  []Step // in this order
	shares map[string][]Share
}

// Step is one thing to bring about: with a Path, that the dataset is mounted
// there; without, that it exists.
type Step struct {
	Dataset string   // POOL/DATASET
	Path    string   // on the host
	Guests  []string // that need it, sorted
}

func (s Step) String() string {
	if s.Path == "" {
		return "ensure " + s.Dataset
	}
	return fmt.Sprintf("mount %s on %s", s.Dataset, s.Path)
}

// Share is one directory that a guest gets.
type Share struct {
	Name      string // of the entry
	Dataset   string // POOL/DATASET
	HostPath  string // where it is mounted on the host
	GuestPath string // where the guest wants to see it
}

// Shares returns what a guest requires. A directory comes before those in it.
func (p Plan) Shares(guest string) []Share { return p.shares[guest] }

// NewPlan orders what the entries ask for. It is pure. The error is of type
// Mistakes and has all of them.
//
// First each dataset is ensured, then each host mountpoint gets its one mount:
// guests by name, then entries by name, both bytewise, except that what lies
// within another mount waits for that.
func NewPlan(entries []Entry) (Plan, error) {
	var wrong Mistakes
	sorted := make([]Entry, len(entries))
	for i, e := range entries {
		sorted[i] = e.withDefaults()
	}
	slices.SortStableFunc(sorted, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(a.Guest, b.Guest), cmp.Compare(a.Name, b.Name))
	})
	onHost := map[string]Entry{}
	inGuest := map[[2]string]Entry{}
	for _, e := range sorted {
		bad := e.check()
		if len(bad) == 0 {
			bad = e.conflicts(onHost, inGuest)
		}
		wrong = append(wrong, bad...)
	}
	if len(wrong) > 0 {
		return Plan{}, wrong
	}
	return order(sorted, onHost), nil
}

// conflicts compares an entry with those before it, and adds it to them.
func (e Entry) conflicts(onHost map[string]Entry, inGuest map[[2]string]Entry) (wrong Mistakes) {
	other, taken := onHost[e.HostMountpoint]
	if !taken {
		onHost[e.HostMountpoint] = e
	} else if other.dataset() != e.dataset() {
		wrong = append(wrong, e.mistake(keyHostMount,
			fmt.Sprintf("%s has %s already, of guest %s: zfs %s", e.HostMountpoint, other.dataset(), other.Guest, other.Name),
			fmt.Sprintf("write another path for %s, or the same dataset for both", e.dataset())))
	}
	there := [2]string{e.Guest, e.GuestMountpoint}
	if other, taken = inGuest[there]; !taken {
		inGuest[there] = e
	} else if other.dataset() != e.dataset() || other.HostMountpoint != e.HostMountpoint {
		wrong = append(wrong, e.mistake(keyGuestMount,
			fmt.Sprintf("the guest has %s already, of zfs %s", e.GuestMountpoint, other.Name), "write another path"))
	}
	return wrong
}

// order makes the plan of sorted entries without mistakes.
func order(sorted []Entry, onHost map[string]Entry) Plan {
	p := Plan{shares: map[string][]Share{}}
	var ensure, mount []Step
	ensured, mounted := map[string]int{}, map[string]int{}
	need := func(steps *[]Step, at map[string]int, key string, s Step, guest string) {
		i, ok := at[key]
		if !ok {
			i = len(*steps)
			at[key] = i
			*steps = append(*steps, s)
		}
		if guests := &(*steps)[i].Guests; !slices.Contains(*guests, guest) {
			*guests = append(*guests, guest)
			slices.Sort(*guests)
		}
	}
	for _, e := range sorted {
		need(&ensure, ensured, e.dataset(), Step{Dataset: e.dataset()}, e.Guest)
		// Without the mount around it this one cannot be made: the guest
		// needs both.
		for _, at := range append(above(e.HostMountpoint), e.HostMountpoint) {
			if outer, declared := onHost[at]; declared {
				need(&mount, mounted, at, Step{Dataset: outer.dataset(), Path: at}, e.Guest)
				need(&ensure, ensured, outer.dataset(), Step{Dataset: outer.dataset()}, e.Guest)
			}
		}
		p.share(e)
	}
	p.Steps = slices.Concat(ensure, mount)
	return p
}

func (p Plan) share(e Entry) {
	have := p.shares[e.Guest]
	if slices.ContainsFunc(have, func(s Share) bool { return s.GuestPath == e.GuestMountpoint }) {
		return
	}
	have = append(have, Share{Name: e.Name, Dataset: e.dataset(), HostPath: e.HostMountpoint, GuestPath: e.GuestMountpoint})
	slices.SortStableFunc(have, func(a, b Share) int { return cmp.Compare(a.GuestPath, b.GuestPath) })
	p.shares[e.Guest] = have
}

// above returns the directories around a clean absolute path, outermost first,
// without the root.
func above(p string) (dirs []string) {
	for p = path.Dir(p); len(p) > 1; p = path.Dir(p) {
		dirs = append(dirs, p)
	}
	slices.Reverse(dirs)
	return dirs
}
