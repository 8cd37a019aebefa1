package config

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// check compares the values with one another. Values that were already
// complained about are left out of it.
func (r *reader) check(c *Config) {
	r.checkSegment(&c.Segment)
	r.checkMachines(c)
}

func (r *reader) checkSegment(s *Segment) {
	if !r.ok("segment", "segment.address") {
		return
	}
	if _, said := r.at["segment.pool"]; !said {
		s.Pool = derivePool(s.Address)
	}
	if r.ok("segment.pool") {
		switch {
		case !within(s.Address, s.Pool):
			r.problemAt("segment.pool", fmt.Sprintf("%v reaches out of %v", s.Pool, s.Address.Masked()), "keep it between "+usable(s.Address).String())
		case s.Pool.Contains(s.Address.Addr()):
			r.problemAt("segment.pool", fmt.Sprintf("%v contains the servers' own address %v", s.Pool, s.Address.Addr()), "end the pool before it or begin behind it")
		case r.ok("segment.exclude") && covered(s.Pool, s.Exclude):
			r.problemAt("segment.pool", "has no address left that segment.exclude does not take away", "make the pool larger or exclude less")
		}
	}
	for i, x := range s.Exclude {
		// Elements keep their numbers only when none was dropped.
		if r.ok("segment.exclude") && !within(s.Address, x) {
			r.problemAt(fmt.Sprintf("segment.exclude[%d]", i), fmt.Sprintf("%v reaches out of %v, so nothing of it is ever given out", x, s.Address.Masked()), "leave it out or correct it")
		}
	}
	if r.ok("segment.router") && s.Router.IsValid() && !within(s.Address, Range{s.Router, s.Router}) {
		r.problemAt("segment.router", fmt.Sprintf("%v is outside of %v, so no machine could reach it", s.Router, s.Address.Masked()), "write the router's address on this segment")
	}
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
		line, _ := r.position(r.at[path(j, key)])
		r.problemAt(path(i, key), fmt.Sprintf("%s is another machine's too, in line %d", shown, line), "give each machine one of its own")
	}
	for i, m := range c.Machines {
		has := func(key string) bool {
			_, there := r.at[path(i, key)]
			return there && r.ok(path(i, key))
		}
		if has("mac") {
			unique(i, "mac", m.MAC.String())
		}
		if has("name") && m.Name != "" {
			unique(i, "name", m.Name)
		}
		if has("address") && m.Address.IsValid() && r.ok("segment", "segment.address") {
			switch prefix := c.Segment.Address; {
			case !within(prefix, Range{m.Address, m.Address}):
				r.problemAt(path(i, "address"), fmt.Sprintf("%v is outside of %v", m.Address, prefix.Masked()), "reserve an address between "+usable(prefix).String())
			case m.Address == prefix.Addr():
				r.problemAt(path(i, "address"), fmt.Sprintf("%v is the servers' own address", m.Address), "reserve another")
			case r.ok("segment.router") && m.Address == c.Segment.Router:
				r.problemAt(path(i, "address"), fmt.Sprintf("%v is the router's address", m.Address), "reserve another")
			default:
				unique(i, "address", m.Address.String())
			}
		}
		if has("profile") && m.Profile != "" {
			if _, there := c.Profiles[m.Profile]; !there {
				r.problemAt(path(i, "profile"), fmt.Sprintf("there is no profile %q", m.Profile), "choose one of "+profileNames(c)+", or declare [profile."+m.Profile+"]")
			}
		}
	}
}

func profileNames(c *Config) string {
	return strings.Join(slices.Sorted(maps.Keys(c.Profiles)), ", ")
}
