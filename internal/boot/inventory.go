package boot

import (
	"iter"
	"maps"
	"slices"
	"strings"
)

// Inventory is what is known on one segment. It does not change once it is
// served: whoever learns of something makes a new one.
type Inventory struct {
	Machines map[MAC]Machine
	ByUUID   map[string]Machine // those without a MAC, by Client.UUID
	ByName   map[string]Machine // those with neither, by host name in lower case
	Rules    []Rule             // the first that matches counts
	Profiles map[string]Profile
	Declared string              // profile of known machines for which no other is named; empty: Default
	Default  string              // profile of strangers; empty: they get an address and no boot file
	NBPs     map[Platform]string // boot programs of platforms for which ecboot carries none, or better ones
	Files    map[string]string   // where the boot programs are that ecboot does not carry, by name
}

// Rule says what machines boot that are alike. All conditions that it names
// must hold.
type Rule struct {
	MACPrefix []byte   // the first bytes of the MAC, such as those of a vendor
	Platform  Platform // of the firmware
	Vendor    string   // beginning of the vendor class (option 60)
	UUID      string   // beginning of the UUID
	Tags      []string // that the machine must have, all of them

	Profile string // empty leaves it to the next source
	NBP     string
}

// matches reports whether the rule is for this client.
func (r Rule) matches(c Client, m Machine) bool {
	return strings.HasPrefix(string(c.MAC[:]), string(r.MACPrefix)) &&
		(r.Platform == "" || c.Kind != KindOS && r.Platform == c.Platform()) &&
		strings.HasPrefix(c.Vendor, r.Vendor) &&
		strings.HasPrefix(c.UUID, r.UUID) &&
		!slices.ContainsFunc(r.Tags, func(tag string) bool { return !slices.Contains(m.Tags, tag) })
}

// Lookup finds the machine that a client is and the profile that it boots. An
// unknown machine is a zero Machine with its MAC and, where a rule matches it,
// what the rule says; known is true for the machines of the inventory and for
// those that a rule matches. A profile that does not exist is a zero Profile.
func (inv *Inventory) Lookup(c Client) (m Machine, p Profile, known bool) {
	m, known = inv.find(c)
	m.MAC = c.MAC
	if i := slices.IndexFunc(inv.Rules, func(r Rule) bool { return r.matches(c, m) }); i >= 0 {
		known = true
		m.Profile = first(m.Profile, inv.Rules[i].Profile)
		m.NBP = first(m.NBP, inv.Rules[i].NBP)
	}
	m.NBP = first(m.NBP, inv.NBPs[c.Platform()])
	name := m.Profile
	if known {
		name = first(name, inv.Declared)
	}
	return m, inv.profile(first(name, inv.Default)), known
}

// Len is the number of machines.
func (inv *Inventory) Len() int { return len(inv.Machines) + len(inv.ByUUID) + len(inv.ByName) }

// All goes through all machines, in no order.
func (inv *Inventory) All() iter.Seq[Machine] {
	return func(yield func(Machine) bool) {
		for _, list := range []iter.Seq[Machine]{maps.Values(inv.Machines), maps.Values(inv.ByUUID), maps.Values(inv.ByName)} {
			for m := range list {
				if !yield(m) {
					return
				}
			}
		}
	}
}

func (inv *Inventory) find(c Client) (Machine, bool) {
	if m, ok := inv.Machines[c.MAC]; ok {
		return m, true
	}
	if m, ok := inv.ByUUID[c.UUID]; ok && c.UUID != "" {
		return m, true
	}
	m, ok := inv.ByName[strings.ToLower(c.Host)]
	return m, ok && c.Host != ""
}

func (inv *Inventory) profile(name string) Profile {
	if name == LocalName {
		return Profile{Name: LocalName}
	}
	return inv.Profiles[name]
}

// first is the first of the two that is not empty.
func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
