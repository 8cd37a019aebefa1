package lan

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Mend makes again what others have undone since, such as a bridge that somebody
// deleted, and says what that was. Sockets on a link that was made again hear
// nothing: Index tells. Ports are not looked after: see Plugged.
func (s *Segment) Mend() (mended []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rename(s.made)
	var errs []error
	anew := map[string]bool{} // links that have nothing of what they had
	for _, c := range s.made {
		if c.Op == opMacvtap || !c.whole() || !anew[c.affects()] && !anew[c.On] && c.holds() {
			continue
		}
		again := c
		if c.Op == opMove {
			again.Saved = c.Saved.age(c.On)
		}
		if err := again.make(s.pause); errors.Is(err, unix.EEXIST) && c.makesLink() {
			errs = append(errs, fmt.Errorf("%s is another link by now, made by somebody else; to have the segment's own: 'ip link del %[1]s'", c.Link))
			continue
		} else if err != nil {
			errs = append(errs, err)
			continue
		}
		if c.Op == opInherit {
			errs = append(errs, settingsIn(s.made).of(c.On).inherit(c.Link, c.On))
		}
		anew[c.Link] = anew[c.Link] || c.makesLink()
		mended = append(mended, c.String())
	}
	out, err := s.wayOut()
	if err != nil {
		errs = append(errs, err)
	}
	for _, link := range out {
		mended = append(mended, "the default route is on "+link+" now, and clients are let out there")
	}
	switch link, err := netlink.LinkByName(s.opened.Link); {
	case err == nil:
		s.link = link
	case isNotFound(err):
		errs = append(errs, fmt.Errorf("the link %s is gone", s.opened.Link))
	}
	return mended, errors.Join(errs...)
}

func (c change) makesLink() bool {
	return c.Op == opBridge || c.Op == opVLAN || c.Op == opMacvlan
}

// affects is the link that has the change.
func (c change) affects() string {
	if c.Op != opSetting {
		return c.Link
	}
	if parts := strings.Split(c.Key, "/"); len(parts) > 2 { // ipv4/conf/LINK/…
		return parts[2]
	}
	return ""
}

// holds reports whether the change is still there. Settings are somebody else's
// business once they are made; what cannot be known is taken to hold.
func (c change) holds() bool {
	switch c.Op {
	case opSetting, opInherit:
		return true
	case opNAT:
		return c.NAT.installed()
	}
	link, err := netlink.LinkByName(c.Link)
	if err != nil {
		return !isNotFound(err)
	}
	switch c.Op {
	case opBridge, opVLAN, opMacvlan, opMacvtap:
		return c.made(link)
	case opUp:
		return link.Attrs().Flags&net.FlagUp != 0
	case opEnslave:
		bridge, err := netlink.LinkByName(c.On)
		return err == nil && link.Attrs().MasterIndex == bridge.Attrs().Index
	case opAddress:
		have, err := addresses(link)
		return err != nil || slices.Contains(have, c.Addr)
	case opMove:
		return c.Saved.areOn(c.On)
	}
	return true
}

// areOn reports whether a link has all addresses that have not run out.
func (b *belongings) areOn(name string) bool {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return !isNotFound(err)
	}
	have, err := addressesOf(link, netlink.FAMILY_ALL)
	if err != nil {
		return true
	}
	for _, m := range b.age(name).Addresses {
		if !slices.ContainsFunc(have, func(a netlink.Addr) bool {
			p, ok := prefixOf(a.IPNet)
			return ok && p == m.address()
		}) {
			return false
		}
	}
	return true
}

// installed reports whether the table is there.
func (n *nat) installed() bool {
	conn, err := nftables.New()
	if err != nil {
		return true
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyIPv4)
	return err != nil || slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == n.Table })
}

// String says what the change does.
func (c change) String() string {
	switch c.Op {
	case opBridge:
		return "bridge " + c.Link + " made"
	case opVLAN, opMacvlan, opMacvtap:
		return fmt.Sprintf("%s %s made on %s", c.Op, c.Link, c.On)
	case opInherit:
		return fmt.Sprintf("settings of %s given to %s", c.On, c.Link)
	case opUp:
		return c.Link + " brought up"
	case opEnslave:
		return fmt.Sprintf("%s put into %s", c.Link, c.On)
	case opMove:
		return fmt.Sprintf("addresses and routes of %s moved to %s", c.Link, c.On)
	case opAddress:
		return fmt.Sprintf("%s added to %s", c.Addr, c.Link)
	case opSetting:
		return fmt.Sprintf("%s set to %s", c.Key, c.Value)
	case opNAT:
		return "nftables table " + c.NAT.Table + " made"
	}
	return string(c.Op) + " " + c.Link
}
