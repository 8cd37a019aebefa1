package lan

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// host is what planning needs to know of this machine's network.
type host struct {
	links  map[string]linkState
	exits  []string // links of the IPv4 default routes
	strict []string // chains of the firewall that drop what is forwarded
	// filtered says that the firewall takes bridged frames for forwarded ones.
	filtered bool
	id       string // tells this machine from others, always the same
}

// linkState is one link.
type linkState struct {
	kind      string // the kernel's name, such as bridge; device for most hardware
	mac       net.HardwareAddr
	up        bool
	carrier   bool // up, and a cable is in
	loopback  bool
	wireless  bool
	master    string // whose port it is
	lower     string // what it lies on
	vlan      int
	manager   string // the program that configures it
	ruled     bool   // a routing rule names it
	ipv6      bool
	addresses []address // of both families, without link-local ones
}

type address struct {
	netip.Prefix
	leased bool // it has a lifetime that somebody renews
}

// ipv4 is the link's IPv4 addresses.
func (l linkState) ipv4() (out []netip.Prefix) {
	for _, a := range l.addresses {
		if a.Addr().Is4() {
			out = append(out, a.Prefix)
		}
	}
	return out
}

func (l linkState) has(p netip.Prefix) bool { return slices.Contains(l.ipv4(), p) }

// names lists the links that one could mean.
func (h host) names() string {
	var out []string
	for name, l := range h.links {
		if !l.loopback {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// settled asks the kernel for a list again when something has changed while it
// was told: only a part of that is of any use.
func settled[T any](list func() ([]T, error)) (all []T, err error) {
	for range 100 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// addressesOf are those of a link, or of all.
func addressesOf(link netlink.Link, family int) ([]netlink.Addr, error) {
	return settled(func() ([]netlink.Addr, error) { return netlink.AddrList(link, family) })
}

// readHost looks at this machine.
func readHost() (host, error) {
	h := host{links: map[string]linkState{}, id: machineID()}
	links, err := settled(netlink.LinkList)
	if err != nil {
		return h, err
	}
	name := byIndex(links)
	have, err := addressesOf(nil, netlink.FAMILY_ALL)
	if err != nil {
		return h, err
	}
	for _, l := range links {
		la := l.Attrs()
		state := linkState{
			kind: l.Type(), mac: la.HardwareAddr,
			up:       la.Flags&net.FlagUp != 0,
			carrier:  la.RawFlags&unix.IFF_LOWER_UP != 0,
			loopback: la.Flags&net.FlagLoopback != 0,
			wireless: isWireless(la.Name),
			master:   name[la.MasterIndex],
			manager:  managerOf(la.Index),
		}
		if la.NetNsID < 0 {
			// Otherwise the index is of another namespace.
			state.lower = name[la.ParentIndex]
		}
		if v, ok := l.(*netlink.Vlan); ok {
			state.vlan = v.VlanId
		}
		off, err := readSetting("ipv6/conf/" + la.Name + "/disable_ipv6")
		state.ipv6 = err == nil && off == "0"
		for _, a := range have {
			p, ok := prefixOf(a.IPNet)
			if a.LinkIndex != la.Index || !ok || p.Addr().IsLinkLocalUnicast() && p.Addr().Is6() {
				continue
			}
			state.addresses = append(state.addresses, address{p, a.Flags&unix.IFA_F_PERMANENT == 0})
		}
		h.links[la.Name] = state
	}
	// Without rules of its own a kernel has no such list.
	rules, _ := settled(func() ([]netlink.Rule, error) { return netlink.RuleList(netlink.FAMILY_ALL) })
	for _, r := range rules {
		for _, name := range []string{r.IifName, r.OifName} {
			if l, ok := h.links[name]; ok {
				l.ruled = true
				h.links[name] = l
			}
		}
	}
	if h.exits, err = exits(name); err != nil {
		return h, err
	}
	h.strict = strictChains()
	value, err := readSetting("bridge/bridge-nf-call-iptables")
	h.filtered = err == nil && value == "1"
	return h, nil
}

// byIndex are links' names by their indices.
func byIndex(links []netlink.Link) map[int]string {
	name := map[int]string{}
	for _, l := range links {
		name[l.Attrs().Index] = l.Attrs().Name
	}
	return name
}

// exits are the links of the IPv4 default routes; name has the links by index.
func exits(name map[int]string) (links []string, err error) {
	routes, err := settled(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() {
			continue
		}
		hops := []int{r.LinkIndex}
		for _, hop := range r.MultiPath {
			hops = append(hops, hop.LinkIndex)
		}
		for _, index := range hops {
			// One that says only that there is no way has no link.
			if link := name[index]; link != "" && !slices.Contains(links, link) {
				links = append(links, link)
			}
		}
	}
	return links, nil
}

// isWireless asks sysfs. Where that shows another namespace a name may mislead
// it; the kernel still refuses what cannot be.
func isWireless(name string) bool {
	for _, sign := range []string{"phy80211", "wireless"} {
		if _, err := os.Stat(filepath.Join("/sys/class/net", name, sign)); err == nil {
			return true
		}
	}
	return false
}

// managerOf is the program that configures a link and will not expect that it
// becomes a port.
func managerOf(index int) string {
	for _, m := range []struct{ file, sign, name string }{
		{"/run/NetworkManager/devices/%d", "managed=full", "NetworkManager"},
		{"/run/NetworkManager/devices/%d", "connection-uuid=", "NetworkManager"},
		{"/run/systemd/netif/links/%d", "NETWORK_FILE=/", "systemd-networkd"},
	} {
		b, err := os.ReadFile(fmt.Sprintf(m.file, index))
		if err == nil && strings.Contains(string(b), m.sign) {
			return m.name
		}
	}
	return ""
}

func machineID() string {
	for _, path := range []string{"/etc/machine-id", "/var/lib/dbus/machine-id"} {
		if b, err := os.ReadFile(path); err == nil && len(b) > 1 {
			return string(b)
		}
	}
	name, _ := os.Hostname()
	return name
}

// stableMAC is a locally administered address that no other machine has and that
// is the same at every start.
func stableMAC(parts ...string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return append(net.HardwareAddr{0x02, 0xec}, sum[:4]...)
}

// linkName makes a name for a link out of a segment's or another link's, of at
// most 15 bytes.
func linkName(prefix, of string) string {
	name := prefix + of
	if len(name) <= unix.IFNAMSIZ-1 {
		return name
	}
	return fmt.Sprintf("%s%x", prefix, sha256.Sum256([]byte(of)))[:min(unix.IFNAMSIZ-1, len(prefix)+8)]
}

// checkLinkName says what the kernel refuses as a link's name.
func checkLinkName(name string) error {
	switch {
	case name == "" || len(name) > unix.IFNAMSIZ-1:
		return fmt.Errorf("%q is no name for a link: it has 1 to %d bytes", name, unix.IFNAMSIZ-1)
	case name == "." || name == ".." || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == '/' || r == ':' || r == '%' }):
		return errors.New("a link's name has no spaces and none of / : %")
	}
	return nil
}
