package zfs

import (
	"cmp"
	"fmt"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"
)

// guestsDir is where datasets of guests are mounted unless another place is
// named. Only root may enter: a guest's files may be set-uid and of any owner.
const guestsDir = "/guests"

// Entry is one directory of one guest that lies on a dataset.
type Entry struct {
	Guest   string
	Name    string // of the entry, one of the guest's
	Pool    string
	Dataset string // below the pool, such as safe/guests/web

	// HostMountpoint is where the host mounts the dataset. Empty:
	// /guests/GUEST and the GuestMountpoint.
	HostMountpoint string
	// GuestMountpoint is where the guest sees it. Empty: the Name.
	GuestMountpoint string
}

// dataset is the full name, as the program zfs writes it.
func (e Entry) dataset() string { return e.Pool + "/" + e.Dataset }

// withDefaults fills in what is empty.
func (e Entry) withDefaults() Entry {
	e.GuestMountpoint = cmp.Or(e.GuestMountpoint, e.Name)
	e.HostMountpoint = cmp.Or(e.HostMountpoint, guestsDir+"/"+e.Guest+e.GuestMountpoint)
	return e
}

// A Mistake is what is wrong with an entry, wherever it runs.
type Mistake struct {
	Guest, Name string
	Key         string // pool, dataset, host_mountpoint or guest_mountpoint
	What        string
	Instead     string // what to write, an imperative
}

func (m Mistake) String() string {
	return fmt.Sprintf("guest %s: zfs %s: %s: %s; %s", m.Guest, m.Name, m.Key, m.What, m.Instead)
}

// Mistakes is every mistake of the entries, by guest and name of the entry.
type Mistakes []Mistake

// Error prints all mistakes, one per line.
func (ms Mistakes) Error() string {
	lines := make([]string, len(ms))
	for i, m := range ms {
		lines[i] = m.String()
	}
	return strings.Join(lines, "\n")
}

// The keys of a Mistake.
const (
	keyPool       = "pool"
	keyDataset    = "dataset"
	keyHostMount  = "host_mountpoint"
	keyGuestMount = "guest_mountpoint"
)

func (e Entry) mistake(key, what, instead string) Mistake {
	return Mistake{Guest: e.Guest, Name: e.Name, Key: key, What: what, Instead: instead}
}

// check returns what is wrong with an entry by itself, defaults filled in.
func (e Entry) check() (wrong Mistakes) {
	add := func(key, what, instead string) {
		if what != "" {
			wrong = append(wrong, e.mistake(key, what, instead))
		}
	}
	what, instead := checkPool(e.Pool)
	add(keyPool, what, instead)
	what, instead = checkDataset(e.Pool, e.Dataset)
	add(keyDataset, what, instead)
	what, instead = checkMountpoint(e.GuestMountpoint)
	add(keyGuestMount, what, instead)
	if what != "" && e.HostMountpoint == guestsDir+"/"+e.Guest+e.GuestMountpoint {
		return wrong // the default of what is wrong already
	}
	what, instead = checkMountpoint(e.HostMountpoint)
	add(keyHostMount, what, instead)
	return wrong
}

// Limits of ZFS, the name's with its final zero byte (ZFS_MAX_DATASET_NAME_LEN,
// zfs_max_dataset_nesting in OpenZFS).
const (
	maxDatasetName    = 256
	maxDatasetNesting = 50
)

// checkPool applies the rules of zpool_name_valid to a pool that exists, so
// names reserved for making pools are none of its business.
func checkPool(pool string) (what, instead string) {
	first, rest, nested := strings.Cut(pool, "/")
	switch {
	case pool == "":
		return "is missing", `write the name of a pool, such as "tank"; 'zpool list' shows them`
	case nested:
		return fmt.Sprintf("%q is a dataset", pool), fmt.Sprintf("write pool = %q and begin the dataset with %q", first, rest)
	case !isLetter(pool[0]):
		return fmt.Sprintf("%q does not begin with a letter", pool), "write the pool's name as 'zpool list' shows it"
	}
	return checkComponent(pool)
}

// checkDataset applies the rules of zfs_name_valid to a file system's name
// without its pool.
func checkDataset(pool, name string) (what, instead string) {
	if name == "" {
		return "is missing", `write a dataset below the pool, such as "safe/guests/web"`
	}
	if clean := strings.Trim(path.Clean("/"+name), "/"); clean != name {
		if clean == "" {
			clean = "safe/guests/web"
		}
		return fmt.Sprintf(`%q has an empty part, or one that is "." or ".."`, name), fmt.Sprintf("write %q", clean)
	}
	parts := strings.Split(name, "/")
	for _, part := range parts {
		if what, instead = checkComponent(part); what != "" {
			return what, instead
		}
	}
	switch {
	case len(pool)+1+len(name) >= maxDatasetName:
		return fmt.Sprintf("is %d bytes long with its pool", len(pool)+1+len(name)), fmt.Sprintf("write at most %d", maxDatasetName-1)
	case len(parts) >= maxDatasetNesting:
		return fmt.Sprintf("is %d levels deep", len(parts)), fmt.Sprintf("write at most %d", maxDatasetNesting-1)
	}
	return "", ""
}

// checkComponent looks at one part of a name. ZFS allows spaces; at an end they
// are a slip that nobody would see.
func checkComponent(part string) (what, instead string) {
	i := strings.IndexFunc(part, func(r rune) bool {
		return !isLetter(byte(min(r, unicode.MaxASCII))) && !strings.ContainsRune("0123456789-_.: ", r)
	})
	switch {
	case i >= 0 && (part[i] == '@' || part[i] == '#'):
		return fmt.Sprintf("%q is a snapshot or bookmark, which cannot be written to", part), fmt.Sprintf("write the dataset's name, such as %q, or that of a clone", cmp.Or(part[:i], "web"))
	case i >= 0:
		r, _ := utf8.DecodeRuneInString(part[i:])
		return fmt.Sprintf("%q has %q in it", part, r), "use letters, digits and any of - _ . :"
	case strings.TrimSpace(part) != part:
		return fmt.Sprintf("%q has a space at an end", part), fmt.Sprintf("write %q", strings.TrimSpace(part))
	}
	return "", ""
}

func isLetter(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }

// checkMountpoint wants the one way to write a path that the kernel uses too.
func checkMountpoint(p string) (what, instead string) {
	switch {
	case p == "":
		return "is missing", `write an absolute path, such as "/persist"`
	case !utf8.ValidString(p) || strings.ContainsFunc(p, unicode.IsControl):
		return fmt.Sprintf("%q has control characters in it", p), "write a path that can be printed"
	case path.Clean("/"+p) == "/":
		return fmt.Sprintf("%q is no directory of its own", p), `write one below it, such as "/persist"`
	case path.Clean("/"+p) != p:
		// Also what is not absolute: it lacks the slash.
		return fmt.Sprintf("%q is not an absolute, clean path", p), fmt.Sprintf("write %q", path.Clean("/"+p))
	}
	return "", ""
}
