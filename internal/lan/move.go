package lan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// belongings are what a link has that must be reachable under another link as
// long as this one is a port.
type belongings struct {
	Index     uint32    `json:"index"` // the link's
	Addresses []message `json:"addresses"`
	Routes    []message `json:"routes"`
	// Gone are addresses that have run out. The kernel takes routes from
	// there with them, and will not have those by way of them either.
	Gone []netip.Prefix `json:"gone,omitempty"`
	// Gateways are those of default routes that answered when this was
	// written down.
	Gateways []netip.Addr `json:"gateways,omitempty"`
	At       time.Time    `json:"at"`
}

// belongingsOf reads what a link has. Left out is what the kernel makes by
// itself: link-local IPv6 addresses and the table of local ones.
func belongingsOf(name string) (*belongings, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	index := uint32(link.Attrs().Index)
	b := &belongings{Index: index, At: time.Now()}
	all, err := dump(unix.RTM_GETADDR, unix.RTM_NEWADDR)
	if err != nil {
		return nil, fmt.Errorf("addresses of %s: %w", name, err)
	}
	for _, m := range all {
		if m.addressIndex() != index || m.isKernelLinkLocal() {
			continue
		}
		b.Addresses = append(b.Addresses, m)
	}
	all, err = dump(unix.RTM_GETROUTE, unix.RTM_NEWROUTE)
	if err != nil {
		return nil, fmt.Errorf("routes of %s: %w", name, err)
	}
	for _, m := range all {
		over, err := m.routeIsOver(index)
		if err != nil {
			return nil, fmt.Errorf("routes of %s: %w", name, err)
		}
		if !over {
			continue
		}
		attrs, _ := m.attrs(routeHead)
		if attribute(attrs, rtaNexthopID) != nil {
			return nil, fmt.Errorf("%s has a route by a nexthop object ('ip nexthop'), as routing daemons make, which cannot be moved: give this machine's routing another NIC", name)
		}
		b.Routes = append(b.Routes, m)
	}
	return b, nil
}

// askGateways notes which gateways of default routes answer on the link, so that
// they can be asked on another.
func (b *belongings) askGateways(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, m := range b.Routes {
		if gateway, ok := m.defaultGateway(); ok && answersARP(link, gateway) {
			b.Gateways = append(b.Gateways, gateway)
		}
	}
	return nil
}

// move takes everything from one link to another, with as little as possible in
// between, and says whether the network still answers.
func (b *belongings) move(from, to string, pause func()) error {
	awaitCarrier(from, to)
	if err := b.relocate(from, to, pause); err != nil {
		return fmt.Errorf("move the addresses of %s to %s: %w", from, to, err)
	}
	if err := copyDNS(from, to); err != nil {
		return err
	}
	link, err := netlink.LinkByName(to)
	if err != nil {
		return fmt.Errorf("%s: %w", to, err)
	}
	for _, gateway := range b.Gateways {
		if !answersARP(link, gateway) {
			return fmt.Errorf("the gateway %s answered on %s and does not on %s: the network may allow one machine per port only, or no bridge; everything is put back", gateway, from, to)
		}
	}
	return nil
}

// carrierWait is for the kernel to notice that a bridge has a port that is up,
// which it does once a second.
const carrierWait = 3 * time.Second

// awaitCarrier waits until a link can send, if the one that it lies on can:
// what is sent earlier is lost, and asked for again a second later.
func awaitCarrier(from, to string) {
	up := func(name string) bool {
		link, err := netlink.LinkByName(name)
		return err == nil && link.Attrs().OperState == netlink.OperUp
	}
	if !up(from) {
		return
	}
	for until := time.Now().Add(carrierWait); !up(to) && time.Now().Before(until); {
		time.Sleep(5 * time.Millisecond)
	}
}

// moveBack takes everything back. A NIC that is gone has nothing to get.
func (b *belongings) moveBack(from, to string) error {
	link, err := netlink.LinkByName(from)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	// Before: what the NIC asks for as soon as it has its addresses must be
	// answered to it, not to the bridge.
	if err := leave(link, to); err != nil {
		return fmt.Errorf("take %s out of %s: %w", from, to, err)
	}
	// As much as can be: this host must be reached.
	aged := b.age(to)
	if err := errors.Join(aged.addAddresses(from, func() {}), aged.finish(to, from, func() {})); err != nil {
		return fmt.Errorf("move the addresses of %s back: %w", from, err)
	}
	return nil
}

// relocate makes that to has the belongings and from does not, whatever of that
// was so already. from may be gone. If to cannot have all addresses, from keeps
// them.
func (b *belongings) relocate(from, to string, pause func()) error {
	if err := b.addAddresses(to, pause); err != nil {
		return err
	}
	return b.finish(from, to, pause)
}

// addAddresses gives a link the addresses.
func (b *belongings) addAddresses(to string, pause func()) error {
	link, err := netlink.LinkByName(to)
	if err != nil {
		return fmt.Errorf("%s: %w", to, err)
	}
	var errs []error
	for _, m := range b.Addresses {
		if err := m.addTo(uint32(link.Attrs().Index), to); err != nil {
			errs = append(errs, fmt.Errorf("address %s on %s: %w", m.address(), to, err))
		}
		pause()
	}
	return errors.Join(errs...)
}

// finish takes addresses and routes away from one link, and gives the routes to
// another that has the addresses.
func (b *belongings) finish(from, to string, pause func()) error {
	old, err := netlink.LinkByName(from)
	if err != nil && !isNotFound(err) {
		return err
	}
	link, err := netlink.LinkByName(to)
	if err != nil {
		return fmt.Errorf("%s: %w", to, err)
	}
	if old != nil {
		oldIndex := uint32(old.Attrs().Index)
		for _, m := range b.Routes {
			for _, m := range []message{m, m.standIn()} {
				if r, err := m.route(b.Index, oldIndex); err == nil {
					_ = r.send(unix.RTM_DELROUTE, 0) // most have gone by themselves
				}
			}
		}
		pause()
		for _, m := range b.Addresses {
			if a, err := m.on(oldIndex, from); err == nil {
				_ = a.send(unix.RTM_DELADDR, 0) // some go with others
			}
		}
		pause()
	}
	announce(link, b.Addresses)
	return b.addRoutes(uint32(link.Attrs().Index), pause)
}

// merge adds what other has and b has not, and takes other's lifetimes.
func (b *belongings) merge(other *belongings) {
	for _, m := range other.Addresses {
		same := func(have message) bool { return have.address() == m.address() }
		b.Addresses = append(slices.DeleteFunc(b.Addresses, same), m)
	}
	for _, m := range other.Routes {
		if !slices.ContainsFunc(b.Routes, func(have message) bool { return bytes.Equal(have, m) }) {
			b.Routes = append(b.Routes, m)
		}
	}
}

// addRoutes adds routes over a link, those first that others need to reach their
// gateways.
func (b *belongings) addRoutes(index uint32, pause func()) error {
	for routes := b.Routes; len(routes) > 0; {
		var left []message
		var errs []error
		for _, m := range routes {
			r, err := m.standIn().route(b.Index, index)
			if err == nil {
				err = r.send(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_APPEND)
				pause()
			}
			if err == nil || errors.Is(err, unix.EEXIST) {
				continue
			}
			left = append(left, m)
			if !m.dependsOn(b.Gone) {
				errs = append(errs, fmt.Errorf("route %s: %w", m.destination(), err))
			}
		}
		if len(left) == len(routes) {
			return errors.Join(errs...)
		}
		routes = left
	}
	return nil
}

func (m message) addressIndex() uint32 {
	if len(m) < addressHead {
		return 0
	}
	return nl.NativeEndian().Uint32(m[4:8])
}

// address is for messages to people, and to compare.
func (m message) address() netip.Prefix {
	attrs, err := m.attrs(addressHead)
	if err != nil {
		return netip.Prefix{}
	}
	value := attribute(attrs, unix.IFA_LOCAL)
	if value == nil {
		value = attribute(attrs, unix.IFA_ADDRESS)
	}
	ip, _ := netip.AddrFromSlice(value)
	return netip.PrefixFrom(ip, int(m[1]))
}

// isKernelLinkLocal reports the IPv6 address that the kernel gives every link.
func (m message) isKernelLinkLocal() bool {
	ip := m.address().Addr()
	if !ip.Is6() || !ip.IsLinkLocalUnicast() {
		return false
	}
	attrs, _ := m.attrs(addressHead)
	if proto := attribute(attrs, ifaProto); len(proto) == 1 {
		return proto[0] == protoLinkLocal
	}
	// Older kernels do not say. One made from the hardware address has
	// ff:fe in its middle (RFC 4291, appendix A).
	b := ip.As16()
	return b[11] == 0xff && b[12] == 0xfe
}

// on is the address for another link.
func (m message) on(index uint32, name string) (message, error) {
	out, err := m.edit(addressHead, func(kind uint16, value []byte) []byte {
		if kind == unix.IFA_LABEL {
			return labelOn(value, name)
		}
		return value
	})
	if err != nil {
		return nil, err
	}
	nl.NativeEndian().PutUint32(out[4:8], index)
	return out, nil
}

// labelOn is an IPv4 address's label, NIC or NIC:ALIAS, for another NIC; none
// where it would be too long.
func labelOn(label []byte, name string) []byte {
	if _, alias, ok := strings.Cut(string(bytes.TrimRight(label, "\x00")), ":"); ok {
		name += ":" + alias
	}
	if len(name) > unix.IFNAMSIZ-1 {
		return nil
	}
	return append([]byte(name), 0)
}

// addTo adds the address to a link, or gives it its lifetimes there. An IPv6 address is usable at once: it is
// this machine's already, and nobody has to be asked.
func (m message) addTo(index uint32, name string) error {
	a, err := m.on(index, name)
	if err != nil {
		return err
	}
	if a[0] != unix.AF_INET6 {
		return a.send(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	}
	quick, err := a.edit(addressHead, func(kind uint16, value []byte) []byte {
		if kind == unix.IFA_FLAGS && len(value) == 4 {
			flags := nl.NativeEndian().Uint32(value) | unix.IFA_F_NODAD
			return nl.Uint32Attr(flags)
		}
		return value
	})
	if err != nil {
		return err
	}
	if err := quick.send(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE); err != nil {
		return err
	}
	// And now as it was.
	return a.send(unix.RTM_NEWADDR, unix.NLM_F_REPLACE)
}

// routeIsOver reports whether a route that somebody chose uses a link.
func (m message) routeIsOver(index uint32) (bool, error) {
	attrs, err := m.attrs(routeHead)
	if err != nil {
		return false, err
	}
	flags := nl.NativeEndian().Uint32(m[8:12])
	if m[4] == unix.RT_TABLE_LOCAL || flags&unix.RTM_F_CLONED != 0 {
		return false, nil
	}
	if oif := attribute(attrs, unix.RTA_OIF); len(oif) == 4 && nl.NativeEndian().Uint32(oif) == index {
		return true, nil
	}
	over := false
	err = hops(attribute(attrs, unix.RTA_MULTIPATH), func(_ *byte, hop []byte) {
		over = over || nl.NativeEndian().Uint32(hop) == index
	})
	return over, err
}

// defaultGateway is the IPv4 gateway of a default route in the main table.
func (m message) defaultGateway() (netip.Addr, bool) {
	if len(m) < routeHead || m[0] != unix.AF_INET || m[1] != 0 || m[4] != unix.RT_TABLE_MAIN {
		return netip.Addr{}, false
	}
	attrs, _ := m.attrs(routeHead)
	return netip.AddrFromSlice(attribute(attrs, unix.RTA_GATEWAY))
}

// standIn is the route itself, but for an IPv6 default route that a router has
// advertised. The kernel stops reading advertisements on a link where somebody
// else has added the very route that it wants to: until the next one comes, and
// until its own lifetime ends, another with a metric of its own does the work.
func (m message) standIn() message {
	if len(m) < routeHead || m[0] != unix.AF_INET6 || m[1] != 0 || m[5] != unix.RTPROT_RA {
		return m
	}
	out, err := m.edit(routeHead, func(kind uint16, value []byte) []byte {
		if kind == unix.RTA_PRIORITY && len(value) == 4 {
			return nl.Uint32Attr(nl.NativeEndian().Uint32(value) + 1)
		}
		return value
	})
	if err != nil {
		return m
	}
	out[5] = unix.RTPROT_STATIC
	return out
}

// dependsOn reports whether a route is from one of the addresses, or by a gateway
// of its network.
func (m message) dependsOn(addresses []netip.Prefix) bool {
	attrs, _ := m.attrs(routeHead)
	source, _ := netip.AddrFromSlice(attribute(attrs, unix.RTA_PREFSRC))
	gateway, _ := netip.AddrFromSlice(attribute(attrs, unix.RTA_GATEWAY))
	return slices.ContainsFunc(addresses, func(a netip.Prefix) bool { return a.Addr() == source || a.Contains(gateway) })
}

// destination is for messages to people.
func (m message) destination() string {
	attrs, err := m.attrs(routeHead)
	if err != nil {
		return "unreadable"
	}
	if ip, ok := netip.AddrFromSlice(attribute(attrs, unix.RTA_DST)); ok {
		return netip.PrefixFrom(ip, int(m[1])).String()
	}
	return "default"
}

// route is the route over another link, without what the kernel reports and does
// not take.
func (m message) route(from, to uint32) (message, error) {
	var expires uint32
	var bad error
	out, err := m.edit(routeHead, func(kind uint16, value []byte) []byte {
		switch kind {
		case unix.RTA_OIF:
			return nl.Uint32Attr(to)
		case unix.RTA_MULTIPATH:
			value = bytes.Clone(value)
			bad = hops(value, func(flags *byte, hop []byte) {
				*flags &= unix.RTNH_F_ONLINK
				if nl.NativeEndian().Uint32(hop) == from {
					nl.NativeEndian().PutUint32(hop, to)
				}
			})
		case unix.RTA_CACHEINFO:
			// struct rta_cacheinfo: the third word is the rest of
			// its life in hundredths of seconds.
			if len(value) >= 12 {
				expires = nl.NativeEndian().Uint32(value[8:12]) / 100
			}
			return nil
		}
		return value
	})
	if err = errors.Join(err, bad); err != nil {
		return nil, err
	}
	flags := nl.NativeEndian().Uint32(out[8:12])
	nl.NativeEndian().PutUint32(out[8:12], flags&unix.RTNH_F_ONLINK)
	if expires > 0 {
		out = append(out, nl.NewRtAttr(unix.RTA_EXPIRES, nl.Uint32Attr(expires)).Serialize()...)
	}
	return out, nil
}

// age returns the belongings as they are by now: addresses that have a lifetime
// have what is left of it, or what was added to it on the link that has them now.
func (b *belongings) age(now string) *belongings {
	aged := &belongings{Index: b.Index, Gateways: b.Gateways, Gone: slices.Clone(b.Gone), At: time.Now()}
	elapsed := uint32(max(0, time.Since(b.At)) / time.Second)
	renewed := map[netip.Prefix][]byte{}
	if link, err := netlink.LinkByName(now); err == nil {
		all, _ := dump(unix.RTM_GETADDR, unix.RTM_NEWADDR)
		for _, m := range all {
			if m.addressIndex() == uint32(link.Attrs().Index) {
				attrs, _ := m.attrs(addressHead)
				renewed[m.address()] = attribute(attrs, unix.IFA_CACHEINFO)
			}
		}
	}
	for _, m := range b.Addresses {
		alive := true
		a, err := m.edit(addressHead, func(kind uint16, value []byte) []byte {
			if kind != unix.IFA_CACHEINFO || len(value) < 8 {
				return value
			}
			if fresh := renewed[m.address()]; len(fresh) == len(value) {
				return fresh
			}
			// struct ifa_cacheinfo: preferred, then valid, in seconds.
			value = bytes.Clone(value)
			for i := 0; i < 8; i += 4 {
				word := value[i : i+4]
				left := nl.NativeEndian().Uint32(word)
				if left == forever {
					continue
				}
				left -= min(left, elapsed)
				nl.NativeEndian().PutUint32(word, left)
				alive = alive && (i == 0 || left > 0)
			}
			return value
		})
		if err == nil && alive {
			aged.Addresses = append(aged.Addresses, a)
		} else if !slices.Contains(aged.Gone, m.address()) {
			aged.Gone = append(aged.Gone, m.address())
		}
	}
	for _, m := range b.Routes {
		alive := true
		r, err := m.edit(routeHead, func(kind uint16, value []byte) []byte {
			if kind != unix.RTA_CACHEINFO || len(value) < 12 {
				return value
			}
			value = bytes.Clone(value)
			if left := nl.NativeEndian().Uint32(value[8:12]); left > 0 {
				alive = left > elapsed*100
				nl.NativeEndian().PutUint32(value[8:12], left-min(left, elapsed*100))
			}
			return value
		})
		if err == nil && alive {
			aged.Routes = append(aged.Routes, r)
		}
	}
	return aged
}

// forever is the lifetime of an address that stays.
const forever = 1<<32 - 1

// resolvectlTimeout is for a program that has one message to send.
const resolvectlTimeout = 5 * time.Second

// copyDNS gives a link the name servers that systemd-resolved has for another.
// Without systemd-resolved name servers belong to no link, and nothing is to be
// done; and nothing is to be undone, since they go with the new link.
func copyDNS(from, to string) error {
	if _, err := exec.LookPath("resolvectl"); err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), resolvectlTimeout)
	defer cancel()
	for _, verb := range []string{"dns", "domain", "default-route"} {
		// Prints “Link 2 (eth0): 192.0.2.1 192.0.2.2”.
		out, err := exec.CommandContext(ctx, "resolvectl", verb, from).Output()
		_, values, ok := strings.Cut(string(out), "): ")
		fields := strings.Fields(values)
		if err != nil || !ok || len(fields) == 0 {
			continue // it does not run, or has nothing
		}
		args := append([]string{verb, to}, fields...)
		if out, err := exec.CommandContext(ctx, "resolvectl", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("resolvectl %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
		}
	}
	return nil
}
