package config

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/every-channel/ecboot/internal/boot"
)

// nics looks at network cards one by one.
func (k guestCheck) nics() {
	places := map[int]int{}
	for i, nic := range k.g.NICs {
		at := fmt.Sprintf("nic[%d]", i)
		if !k.ok(k.key(at)) {
			continue
		}
		k.nicWay(at, nic)
		if k.g.Backend != BackendQEMU {
			for _, key := range []string{"model", "rom", "boot"} {
				if k.said(at + "." + key) {
					k.wrong(at+"."+key, "is for virtual machines with firmware", "leave it out")
				}
			}
		}
		if k.g.Backend == BackendQEMU && k.g.Boot == BootDirect && k.said(at+".boot") {
			k.wrong(at+".boot", "is a place in the firmware's order, and boot is \"direct\"", "leave out one of the two")
		}
		if first, taken := places[nic.Boot]; taken && nic.Boot != 0 {
			k.wrong(at+".boot", fmt.Sprintf("%d is the place of nic[%d], too", nic.Boot, first), "give each a place of its own")
		}
		places[nic.Boot] = i
		if nic.User && nic.Name != "" {
			k.wrong(at+".name", "is given beside user, which has no link", "leave it out")
		}
		if nic.Address.IsValid() && nic.Segment == "" {
			k.wrong(at+".address", "is kept on segments alone", "write segment, too, or leave it out")
		}
	}
}

// nicWay looks at how a card is tied to the network.
func (k guestCheck) nicWay(at string, nic GuestNIC) {
	var ways []string
	for _, way := range []struct {
		name string
		set  bool
	}{{"segment", nic.Segment != ""}, {"macvtap", nic.Macvtap != ""}, {"macvlan", nic.Macvlan != ""}, {"user", nic.User}} {
		if way.set || !k.ok(k.key(at+"."+way.name)) {
			ways = append(ways, way.name)
		}
	}
	instead := "write segment, macvtap or user"
	if !k.g.VM() {
		instead = "write segment or macvlan"
	}
	switch {
	case len(ways) == 0:
		k.wrong(at, "is on no network", instead)
		return
	case len(ways) > 1:
		k.wrong(at+"."+ways[1], "is given beside "+ways[0], "keep one of the two: a network card is on one network")
		return
	case nic.Macvlan != "" && k.g.VM():
		k.wrong(at+".macvlan", "is for containers", "write macvtap in its place")
	case nic.Macvtap != "" && !k.g.VM():
		k.wrong(at+".macvtap", "is for virtual machines", "write macvlan in its place")
	case nic.User && !k.g.VM():
		k.wrong(at+".user", "is QEMU's", "write segment or macvlan")
	}
	if nic.Segment != "" {
		k.nicSegment(at+".segment", nic.Segment)
	}
	for _, key := range []string{"macvtap", "macvlan"} {
		parent := nic.parent()
		for _, s := range k.c.Segments {
			if parent != "" && s.Uplink == parent && s.VLAN == 0 && k.said(at+"."+key) {
				k.wrong(at+"."+key, fmt.Sprintf("%s is a port of the bridge of segment.%s, and such a link carries nothing else", parent, s.Name), fmt.Sprintf("write segment = %q in its place", s.Name))
			}
		}
	}
}

// nicSegment wants a segment that has a place for guests.
func (k guestCheck) nicSegment(key, name string) {
	s, ok := k.c.Segment(name)
	if !ok {
		var names []string
		for _, s := range k.c.Segments {
			names = append(names, s.Name)
		}
		k.wrong(key, fmt.Sprintf("there is no segment %q", name), "choose one of "+strings.Join(names, ", ")+", or declare [segment."+name+"]")
		return
	}
	if !k.ok(join("segment", name)) {
		return
	}
	switch bridge := s.HostBridge(); {
	case s.Interface != "":
		k.wrong(key, fmt.Sprintf("%s is %s as it is, which has no place for guests", name, s.Interface), fmt.Sprintf("write bridge and uplink in [segment.%s] instead of interface, or parent", name))
	case s.Relay.IsValid():
		k.wrong(key, name+" is behind a relay, and not on this machine", "write a segment with a bridge or a parent")
	case s.Private() && len(bridge) > maxLinkName:
		k.wrong(key, fmt.Sprintf("%s is private, and %s would be too long for its bridge", name, bridge), "give the segment a shorter name, or write bridge in it")
	}
}

// parent is the link of the host that carries the card, if one does.
func (n GuestNIC) parent() string {
	if n.Macvtap != "" {
		return n.Macvtap
	}
	return n.Macvlan
}

// every reports whether cond holds for all network cards; those with mistakes
// are not held against the guest.
func (k guestCheck) every(cond func(GuestNIC) bool) bool {
	for i, nic := range k.g.NICs {
		if !k.nicOK(i) || !cond(nic) {
			return false
		}
	}
	return true
}

func (k guestCheck) nicOK(i int) bool {
	path := fmt.Sprintf("%s.nic[%d]", k.path, i)
	for bad := range k.bad {
		if bad == path || strings.HasPrefix(bad, path+".") {
			return false
		}
	}
	return true
}

// served reports whether the card is on a network where ecboot answers. A
// macvtap sees the servers where they have a macvlan beside it, on a parent.
func (k guestCheck) served(nic GuestNIC) bool {
	for _, s := range k.c.Segments {
		if s.Mode != ModeOff && (nic.Segment == s.Name || nic.Macvtap != "" && nic.Macvtap == s.Parent) {
			return true
		}
	}
	return false
}

// OneMachine says what to do about a [[machine]] with a guest's address and a
// name of its own.
const OneMachine = "give each one of its own; a [[machine]] that is this guest has its node_name as name"

// checkMACs wants each address once, among guests and machines. A [[machine]]
// may say more of a guest, under its host name or none.
func (r *reader) checkMACs(c *Config) {
	machines := map[boot.MAC]int{}
	for i, m := range c.Machines {
		machines[m.MAC] = i
	}
	cards := map[boot.MAC]string{} // keys
	for _, g := range c.Guests {
		for i, nic := range g.NICs {
			card := fmt.Sprintf("%s.nic[%d]", join("guest", g.Name), i)
			if nic.MAC == (boot.MAC{}) || !r.ok(card+".mac") {
				continue
			}
			if other, taken := cards[nic.MAC]; taken {
				r.problemAt(card+".mac", fmt.Sprintf("%v is %s's too, in line %d", nic.MAC, other, r.lineOf(other+".mac")), "give each network card one of its own, or leave it out to have one assigned")
				continue
			}
			cards[nic.MAC] = card
			if j, taken := machines[nic.MAC]; taken && g.Contradicts(c.Machines[j]) {
				machine := fmt.Sprintf("machine[%d]", j)
				r.problemAt(card+".mac", fmt.Sprintf("%v is %s's too, in line %d", nic.MAC, machine, r.lineOf(machine+".mac")), OneMachine)
			}
		}
	}
}

// checkGuestAddresses wants reserved addresses to be of their segments, and of
// one owner.
func (r *reader) checkGuestAddresses(c *Config) {
	owners := map[netip.Addr]string{} // keys
	for i, m := range c.Machines {
		if m.Address.IsValid() {
			owners[m.Address] = fmt.Sprintf("machine[%d]", i)
		}
	}
	for _, g := range c.Guests {
		for i, nic := range g.NICs {
			card := fmt.Sprintf("%s.nic[%d]", join("guest", g.Name), i)
			key := card + ".address"
			s, ok := c.Segment(nic.Segment)
			if !nic.Address.IsValid() || !ok || !r.ok(key, join("segment", s.Name)) {
				continue
			}
			if !r.checkReserved(&Config{Segments: []Segment{*s}}, key, nic.Address) {
				continue
			}
			if other, taken := owners[nic.Address]; taken {
				r.problemAt(key, fmt.Sprintf("%v is %s's too, in line %d", nic.Address, other, r.lineOf(other+".address")), "give each one of its own")
				continue
			}
			owners[nic.Address] = card
		}
	}
}

// checkLinkNames wants links whose names are none that the host has.
func (r *reader) checkLinkNames(c *Config) {
	host := hostLinks(c)
	for i := range c.Guests {
		g := &c.Guests[i]
		if g.Backend != "" {
			guestCheck{r, c, g, join("guest", g.Name)}.linkNames(host)
		}
	}
}

// hostLinks is the links of the host that the file names, and the key of the
// table where it does.
func hostLinks(c *Config) map[string]string {
	host := map[string]string{}
	note := func(name, where string) {
		if _, there := host[name]; !there && name != "" {
			host[name] = where
		}
	}
	for _, s := range c.Segments {
		path := join("segment", s.Name)
		for _, name := range []string{s.Interface, s.Bridge, s.Uplink, s.Parent} {
			note(name, path)
		}
		if s.Private() {
			note(s.HostBridge(), path)
		}
	}
	for _, g := range c.Guests {
		for i, nic := range g.NICs {
			note(nic.parent(), fmt.Sprintf("%s.nic[%d]", join("guest", g.Name), i))
		}
	}
	return host
}

// linkNames looks at the names of a guest's links and adds to host those that a
// virtual machine has there. A container's pass through it, too, on the way in.
func (k guestCheck) linkNames(host map[string]string) {
	own := map[string]int{}
	for i, nic := range k.g.NICs {
		name := nic.Name
		if !k.g.VM() {
			name = k.linkInside(nic)
		}
		if name == "" || nic.User || !k.nicOK(i) {
			continue
		}
		at := fmt.Sprintf("nic[%d]", i)
		shown := name
		if nic.Name == "" {
			shown = "is missing, and " + name
		}
		other, onHost := host[name]
		twin, twice := own[name]
		switch {
		case len(name) > maxLinkName:
			k.wrong(at+".name", fmt.Sprintf("%s would be longer than the %d bytes that an interface name can have", shown, maxLinkName), "write what it is called in the container")
		case name == "lo":
			k.wrong(at+".name", "lo is there already on every machine", "write another name")
		case twice:
			k.wrong(at+".name", fmt.Sprintf("%s is the name of nic[%d], too", shown, twin), "give each a name of its own")
		case onHost:
			k.wrong(at+".name", fmt.Sprintf("%s is a link of the host's, named by %s in line %d", shown, other, k.lineOf(other)), "write another name")
		}
		own[name] = i
		if k.g.VM() && !onHost {
			host[name] = k.key(at)
		}
	}
}

// linkInside is what the card of a container is called in it. The defaults are
// systemd-nspawn's.
func (k guestCheck) linkInside(nic GuestNIC) string {
	parent := nic.Macvlan
	if s, ok := k.c.Segment(nic.Segment); ok {
		parent = s.Parent
	}
	switch {
	case nic.Name != "":
		return nic.Name
	case parent != "":
		return "mv-" + parent
	}
	return "host0"
}
