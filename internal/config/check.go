package config

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/every-channel/ecboot/internal/boot"
)

// check compares the values with one another. Values that were already
// complained about are left out of it.
func (r *reader) check(c *Config) {
	for i := range c.Segments {
		r.checkSegment(c, &c.Segments[i])
	}
	r.checkNeighbours(c)
	r.checkMachines(c)
	r.checkRules(c)
	r.checkGuests(c)
	r.checkHTTPS(c.Server)
}

func (r *reader) checkHTTPS(s Server) {
	if !r.ok("server.http_port", "server.https_port", "server.tls_certificate", "server.tls_key") {
		return
	}
	switch {
	case (s.TLSCertificate == "") != (s.TLSKey == ""):
		r.problemAt("server.tls_certificate", "and tls_key belong together", "write both, or neither for a certificate that ecboot makes")
	case s.TLSCertificate != "" && s.HTTPSPort == 0:
		r.problemAt("server.tls_certificate", "is for HTTPS, and no https_port is given", "write https_port = 443, too, or leave it out")
	case s.HTTPSPort == s.HTTPPort:
		r.problemAt("server.https_port", fmt.Sprintf("%d is http_port, too", s.HTTPSPort), "give each a port of its own")
	}
}

// checkSegment looks at one segment by itself.
func (r *reader) checkSegment(c *Config, s *Segment) {
	path := join("segment", s.Name)
	key := func(name string) string { return path + "." + name }
	if !r.ok(path) {
		return
	}
	r.checkLink(s, key)
	r.checkOptions(key("options"), s.Options)
	if s.Relay.IsValid() {
		r.checkVia(c, s, key)
	}
	if s.Mode == ModeProxy {
		for _, other := range []string{"pool", "nat", "router", "dns", "ntp", "domain", "search", "routes", "options", "allow_other_dhcp", "lease_time", "boot_lease_time", "exclude"} {
			if _, said := r.at[key(other)]; said && !r.shown(s, other) {
				r.problemAt(key(other), "is what the other DHCP server says in mode \"proxy\"", "leave it out, or write mode = \"server\"")
			}
		}
	}
	address := s.Prefix()
	if !r.ok(key("address"), key("relay")) || !address.IsValid() {
		return
	}
	if _, said := r.at[key("pool")]; !said && s.Mode != ModeProxy {
		s.Pool = []Range{derivePool(address)}
	}
	if r.ok(key("pool")) {
		for i, pool := range s.Pool {
			at := fmt.Sprintf("%s[%d]", key("pool"), i)
			switch {
			case !within(address, pool):
				r.problemAt(at, fmt.Sprintf("%v reaches out of %v", pool, address.Masked()), "keep it between "+usable(address).String())
			case pool.Contains(address.Addr()):
				r.problemAt(at, fmt.Sprintf("%v contains %s %v", pool, ownerOf(s), address.Addr()), "end the pool before it or begin behind it")
			case r.ok(key("exclude")) && covered(pool, s.Exclude):
				r.problemAt(at, "has no address left that exclude does not take away", "make the pool larger or exclude less")
			}
		}
	}
	for i, x := range s.Exclude {
		// Elements keep their numbers only when none was dropped.
		if r.ok(key("exclude")) && !within(address, x) {
			r.problemAt(fmt.Sprintf("%s[%d]", key("exclude"), i), fmt.Sprintf("%v reaches out of %v, so nothing of it is ever given out", x, address.Masked()), "leave it out or correct it")
		}
	}
	if r.ok(key("router")) && s.Router.IsValid() && !within(address, Range{s.Router, s.Router}) {
		r.problemAt(key("router"), fmt.Sprintf("%v is outside of %v, so no machine could reach it", s.Router, address.Masked()), "write the router's address on this segment")
	}
	for i, to := range s.Routes {
		if r.ok(key("routes")) && !within(address, Range{to.Via, to.Via}) {
			r.problemAt(fmt.Sprintf("%s[%d]", key("routes"), i), fmt.Sprintf("%v is outside of %v, so no machine could reach it", to.Via, address.Masked()), "write the address of a router on this segment")
		}
	}
	if s.BootLeaseTime > s.LeaseTime && r.ok(key("boot_lease_time"), key("lease_time")) {
		r.problemAt(key("boot_lease_time"), "is longer than lease_time", "write a shorter one: it is for the few seconds of a boot")
	}
}

// ownerOf names who has the address that a segment's prefix is written with.
func ownerOf(s *Segment) string {
	if s.Relay.IsValid() {
		return "the relay's address"
	}
	return "the servers' own address"
}

// shown reports whether a key says nothing but that it is not used, as Show
// prints it.
func (r *reader) shown(s *Segment, key string) bool {
	switch key {
	case "lease_time":
		return s.LeaseTime == NewSegment("").LeaseTime
	case "nat":
		return !s.NAT
	case "allow_other_dhcp":
		return !s.AllowOtherDHCP
	case "options":
		return len(s.Options) == 0
	}
	lists := map[string]int{"pool": len(s.Pool), "exclude": len(s.Exclude), "dns": len(s.DNS), "ntp": len(s.NTP), "search": len(s.Search), "routes": len(s.Routes)}
	n, list := lists[key]
	return list && n == 0
}

// checkLink looks at how a segment is tied to the network.
func (r *reader) checkLink(s *Segment, key func(string) string) {
	var ways []string
	for _, way := range []struct {
		name string
		set  bool
	}{{"interface", s.Interface != ""}, {"bridge", s.Bridge != ""}, {"parent", s.Parent != ""}, {"relay", s.Relay.IsValid()}} {
		if way.set {
			ways = append(ways, way.name)
		}
	}
	switch {
	case len(ways) > 1:
		r.problemAt(key(ways[1]), "is given beside "+ways[0], "a segment has one way to the network: interface as it is, bridge with or without uplink, parent for macvtaps, or relay")
	case s.Uplink != "" && s.Bridge == "" && r.ok(key("bridge")):
		r.problemAt(key("uplink"), "joins a bridge, and this segment has none", "write bridge, too, or parent in place of uplink")
	case s.Uplink != "" && s.Uplink == s.Bridge:
		r.problemAt(key("uplink"), s.Uplink+" is the bridge itself", "write the network card that is to join it")
	}
	if s.VLAN != 0 && s.Interface == "" && s.Uplink == "" && s.Parent == "" {
		r.problemAt(key("vlan"), "needs a link to tag", "write interface, uplink or parent, too")
	}
	if s.Via != "" && !s.Relay.IsValid() {
		r.problemAt(key("via"), "is for segments behind a relay", "write relay, the relay's address there, or leave it out")
	}
	if s.Relay.IsValid() && s.Address.IsValid() {
		r.problemAt(key("address"), "is given beside relay; the servers have no address on that segment", "leave it out")
	}
	if s.NAT && (s.Relay.IsValid() || s.Interface != "" || s.Private()) {
		r.problemAt(key("nat"), "needs a bridge or a parent of this machine's", "leave it out, or write bridge")
	}
	if s.Private() && s.Mode == ModeProxy {
		r.problemAt(key("mode"), "\"proxy\" makes no sense on a private segment, where no other DHCP server can be", "write interface, bridge or parent, too, or leave mode out")
	}
}

// checkVia finds the segment whose servers a relay asks.
func (r *reader) checkVia(c *Config, s *Segment, key func(string) string) {
	var served []string
	for _, other := range c.Segments {
		if !other.Relay.IsValid() && other.Mode != ModeOff {
			served = append(served, other.Name)
		}
	}
	switch {
	case s.Via == "" && len(served) == 1:
		s.Via = served[0]
	case s.Via == "" || !slices.Contains(served, s.Via):
		what := "is missing"
		if s.Via != "" {
			what = fmt.Sprintf("%q is no segment that is served", s.Via)
		}
		instead := "write one of " + strings.Join(served, ", ") + ", whose servers the relay asks"
		if len(served) == 0 {
			instead = "declare the segment whose servers the relay asks"
		}
		r.problemAt(key("via"), what, instead)
	}
}

// checkOptions reads the values of options, which the names decide on.
func (r *reader) checkOptions(key string, options map[string]string) {
	codes := map[uint8]string{}
	for _, name := range slices.Sorted(maps.Keys(options)) {
		o, err := boot.ParseOption(name, options[name])
		if err != nil {
			r.problemAt(join(key, name), err.Error(), "")
			continue
		}
		if twin, twice := codes[o.Code]; twice {
			r.problemAt(join(key, name), fmt.Sprintf("is the same option as %s", twin), "keep one of the two")
		}
		codes[o.Code] = name
	}
}

// checkNeighbours compares segments with one another.
func (r *reader) checkNeighbours(c *Config) {
	for i, s := range c.Segments {
		path := join("segment", s.Name)
		for _, t := range c.Segments[:i] {
			other := join("segment", t.Name)
			line := r.lineOf(other)
			for _, mine := range s.ties() {
				if slices.ContainsFunc(t.ties(), mine.excludes) {
					r.problemAt(path+"."+mine.key, fmt.Sprintf("%s is %s's too, in line %d", mine.link, other, line), "give each segment one of its own")
				}
			}
			if p, q := s.Prefix(), t.Prefix(); p.IsValid() && q.IsValid() && p.Overlaps(q) && r.ok(path, other, path+".address", other+".address") {
				key := path + ".address"
				if s.Relay.IsValid() {
					key = path + ".relay"
				}
				r.problemAt(key, fmt.Sprintf("%v overlaps with %v of %s, in line %d", p.Masked(), q.Masked(), other, line), "give each segment a network of its own")
			}
		}
	}
}

// tie is a link of the host's by which a segment is tied to the network.
type tie struct {
	key, link string
	vlan      int
}

func (s Segment) ties() []tie {
	all := []tie{{"interface", s.Interface, s.VLAN}, {"bridge", s.Bridge, 0}, {"uplink", s.Uplink, s.VLAN}, {"parent", s.Parent, s.VLAN}}
	return slices.DeleteFunc(all, func(t tie) bool { return t.link == "" })
}

// excludes reports whether two segments cannot both have the link. A parent may
// carry the links of several.
func (t tie) excludes(other tie) bool {
	return t.link == other.link && t.vlan == other.vlan && (t.key != "parent" || other.key != "parent")
}

// derivePool leaves the lower fifth of the prefix to fixed addresses, as in
// 10.77.0.50-10.77.0.250 of a /24, and keeps clear of the server's address.
// Every prefix that serverAddress accepts has room for one.
func derivePool(address netip.Prefix) Range {
	n := hosts(address)
	first, last := n/5-1, n-6
	if n < 256 {
		first, last = max(n/5, 1), n-2
	}
	network, server := networkOf(address), number(address.Addr())-number(networkOf(address))
	if first <= server && server <= last {
		// The larger of the two sides.
		if server-first >= last-server {
			last = server - 1
		} else {
			first = server + 1
		}
	}
	return Range{offset(network, first), offset(network, last)}
}

// usable is the addresses that hosts of a prefix can have.
func usable(p netip.Prefix) Range {
	network := networkOf(p)
	return Range{offset(network, 1), offset(network, hosts(p)-2)}
}

func within(p netip.Prefix, r Range) bool {
	u := usable(p)
	return u.Contains(r.First) && u.Contains(r.Last)
}

// covered reports whether the ranges of by leave nothing of r.
func covered(r Range, by []Range) bool {
	by = slices.SortedFunc(slices.Values(by), func(a, b Range) int { return a.First.Compare(b.First) })
	next := r.First
	for _, x := range by {
		if x.Contains(next) {
			next = x.Last.Next()
		}
	}
	return r.Last.Less(next)
}

func (r *reader) checkMachines(c *Config) {
	path := func(i int, key string) string { return fmt.Sprintf("machine[%d].%s", i, key) }
	first := map[string]int{} // by what must be unique, the machine that has it
	unique := func(i int, key, shown string) {
		id := key + " " + strings.ToLower(shown)
		j, taken := first[id]
		if !taken {
			first[id] = i
			return
		}
		line := r.lineOf(path(j, key))
		r.problemAt(path(i, key), fmt.Sprintf("%s is another machine's too, in line %d", shown, line), "give each machine one of its own")
	}
	for i, m := range c.Machines {
		has := func(key string) bool {
			_, there := r.at[path(i, key)]
			return there && r.ok(path(i, key))
		}
		if has("mac") && m.MAC != (boot.MAC{}) {
			unique(i, "mac", m.MAC.String())
		}
		if has("uuid") && m.UUID != "" {
			unique(i, "uuid", m.UUID)
		}
		if has("name") && m.Name != "" {
			unique(i, "name", m.Name)
		}
		if has("address") && m.Address.IsValid() && r.checkReserved(c, path(i, "address"), m.Address) {
			unique(i, "address", m.Address.String())
		}
		if has("profile") {
			r.checkProfileName(c, path(i, "profile"), m.Profile)
		}
		r.checkOptions(path(i, "options"), m.Options)
	}
}

// checkReserved looks for the segment that an address is of.
func (r *reader) checkReserved(c *Config, key string, a netip.Addr) bool {
	var outside []string
	for _, s := range c.Segments {
		path := join("segment", s.Name)
		prefix := s.Prefix()
		if !prefix.IsValid() || !r.ok(path, path+".address", path+".relay") {
			return true // it may be of a link that only the start will see
		}
		switch {
		case !prefix.Contains(a):
			outside = append(outside, prefix.Masked().String())
			continue
		case !within(prefix, Range{a, a}):
			r.problemAt(key, fmt.Sprintf("%v is no host's address in %v", a, prefix.Masked()), "reserve an address between "+usable(prefix).String())
		case a == prefix.Addr():
			r.problemAt(key, fmt.Sprintf("%v is %s", a, ownerOf(&s)), "reserve another")
		case r.ok(path+".router") && a == s.Router:
			r.problemAt(key, fmt.Sprintf("%v is the router's address", a), "reserve another")
		default:
			return true
		}
		return false
	}
	r.problemAt(key, fmt.Sprintf("%v is outside of %s", a, strings.Join(outside, " and ")), "reserve an address of a segment")
	return false
}

func (r *reader) checkProfileName(c *Config, key, name string) {
	if _, there := c.Profiles[name]; !there && name != "" && name != boot.LocalName {
		r.problemAt(key, fmt.Sprintf("there is no profile %q", name), "choose one of "+profileNames(c)+", or declare [profile."+name+"]")
	}
}

func (r *reader) checkRules(c *Config) {
	for i, rule := range c.Rules {
		if key := fmt.Sprintf("match[%d].profile", i); r.ok(key) {
			r.checkProfileName(c, key, rule.Profile)
		}
	}
}

func profileNames(c *Config) string {
	return strings.Join(append(slices.Sorted(maps.Keys(c.Profiles)), boot.LocalName), ", ")
}
