package lan

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// privateMAC is locally administered. A bridge whose address is given keeps it
// when ports come and go; otherwise it would take over a port's.
var privateMAC = net.HardwareAddr{0x02, 0xec, 0xb0, 0x07, 0x00, 0x01}

// planned is what opening a segment means on a machine.
type planned struct {
	changes   []change // in this order
	link      string   // of the servers
	parent    string   // of the guests' macvtaps; empty: taps
	noPorts   string   // why there is no room for guests
	address   netip.Prefix
	obstacles []string
	warnings  []string
}

func (p *planned) err() error {
	var errs []error
	for _, text := range p.obstacles {
		errs = append(errs, errors.New(text))
	}
	return errors.Join(errs...)
}

func (p *planned) change(c change) { p.changes = append(p.changes, c) }
func (p *planned) cannot(format string, args ...any) {
	p.obstacles = append(p.obstacles, fmt.Sprintf(format, args...))
}
func (p *planned) warn(format string, args ...any) {
	p.warnings = append(p.warnings, fmt.Sprintf(format, args...))
}

// plan decides what to change for a segment, and says what is in the way. It is
// pure. The changes mean something only if nothing is.
func plan(cfg Config, h host) planned {
	p := planned{address: cfg.Address}
	switch {
	case cfg.Parent != "" && (cfg.Uplink != "" || cfg.Bridge != ""):
		p.cannot("parent %s and a bridge or an uplink: a NIC is either a port of a bridge (uplink) or carries macvtaps (parent), never both; choose one", cfg.Parent)
	case cfg.VLAN < 0 || cfg.VLAN > 4094:
		p.cannot("vlan %d: 802.1Q has 1 to 4094", cfg.VLAN)
	case cfg.Interface != "" && (cfg.Parent != "" || cfg.Uplink != "" || cfg.Bridge != ""):
		p.cannot("interface %s is served as it is, without bridge, uplink or parent; choose one", cfg.Interface)
	case cfg.VLAN != 0 && cfg.Parent == "" && cfg.Uplink == "" && cfg.Interface == "":
		p.cannot("vlan %d of which NIC? name it as interface, uplink or parent", cfg.VLAN)
	case cfg.Interface != "":
		p.planInterface(cfg, h)
	case cfg.Parent != "":
		p.planParent(cfg, h)
	case cfg.Bridge != "" || cfg.Uplink != "":
		p.planBridge(cfg, h)
	default:
		p.planPrivate(cfg, h)
	}
	return p
}

func (p *planned) planPrivate(cfg Config, h host) {
	p.link = PrivateBridge
	if !p.address.IsValid() {
		p.cannot("a private segment needs an address, such as 10.77.0.1/24")
	}
	if cfg.NAT {
		p.cannot("nat: a private segment has nothing outside; name a bridge, which is made if it is missing")
	}
	if _, ok := h.links[PrivateBridge]; ok {
		p.cannot("bridge %s exists already: name it with --bridge to use it, or remove it with 'ip link del %[1]s'", PrivateBridge)
	}
	p.change(change{Op: opBridge, Link: PrivateBridge, MAC: privateMAC.String()})
	// Nobody else is on the segment yet: no need to wait for duplicate
	// address detection before router solicitations can be answered.
	p.change(change{Op: opSetting, Key: "ipv6/conf/" + PrivateBridge + "/accept_dad", Value: "0"})
	p.change(change{Op: opAddress, Link: PrivateBridge, Addr: p.address})
	if !h.links["lo"].up {
		p.change(change{Op: opUp, Link: "lo"})
	}
	p.change(change{Op: opUp, Link: PrivateBridge})
}

func (p *planned) planBridge(cfg Config, h host) {
	p.link = cfg.Bridge
	uplink := cfg.Uplink
	if p.link == "" {
		p.link = linkName("ecbr-", cmp.Or(cfg.Name, uplink))
	}
	if err := checkLinkName(p.link); err != nil {
		p.cannot("bridge: %v", err)
		return
	}
	bridge, joined := h.links[p.link]
	switch {
	case joined && bridge.kind != "bridge":
		p.cannot("%s is no bridge but a %s link: name a bridge, one that is missing is made, and %[1]s as its uplink", p.link, bridge.kind)
		return
	case joined && !bridge.up:
		p.cannot("bridge %s is down: 'ip link set %[1]s up'", p.link)
		return
	}
	var port linkState
	if uplink != "" {
		if uplink, port = p.planVLAN(cfg, h, uplink); uplink == "" {
			return
		}
		p.checkUplink(uplink, port, h)
	}
	moves := uplink != "" && port.master == "" && len(port.addresses) > 0
	have := bridge.ipv4()
	if moves {
		have = append(have, port.ipv4()...)
	}
	adds := p.chooseAddress(p.link, have)

	if !joined {
		mac := stableMAC(h.id, p.link)
		if uplink != "" {
			// The network keeps seeing the machine under the
			// address that it knows, and lets it through.
			mac = port.mac
		}
		p.change(change{Op: opBridge, Link: p.link, MAC: mac.String()})
		if moves {
			p.change(change{Op: opInherit, Link: p.link, On: uplink})
		}
		p.change(change{Op: opUp, Link: p.link})
	}
	if uplink != "" && port.master == "" {
		if !port.up {
			p.change(change{Op: opUp, Link: uplink})
		}
		p.change(change{Op: opEnslave, Link: uplink, On: p.link})
		if moves {
			p.planMove(uplink, p.link, port)
		}
		if port.ipv6 {
			// A port has no addresses; this takes the link-local one.
			p.change(change{Op: opSetting, Key: "ipv6/conf/" + uplink + "/disable_ipv6", Value: "1"})
		}
	}
	if adds {
		p.change(change{Op: opAddress, Link: p.link, Addr: p.address})
	}
	if h.filtered && len(h.strict) > 0 {
		p.warn("frames between the ports of %s pass the firewall (br_netfilter), and its %s drops what it does not know, DHCP of guests included: 'sysctl net.bridge.bridge-nf-call-iptables=0', or allow them", p.link, strings.Join(h.strict, ", "))
	}
	if cfg.NAT {
		p.planNAT(cfg, h, uplink)
	}
}

// checkUplink says why a link cannot be, or should not be, a port of the bridge.
func (p *planned) checkUplink(name string, l linkState, h host) {
	switch {
	case l.loopback, len(l.mac) != 6:
		p.cannot("uplink %s is a %s link without Ethernet: a bridge needs a NIC", name, kindOf(l))
	case l.wireless:
		p.cannot("uplink %s is wireless: an access point takes frames of one address only, so nobody behind a bridge would be heard; use a wired NIC, or a bridge without uplink and nat = true", name)
	case l.kind == "bridge":
		p.cannot("uplink %s is a bridge itself: name it as the bridge, without uplink", name)
	case l.kind == "macvlan" || l.kind == "macvtap" || l.kind == "ipvlan":
		p.cannot("uplink %s is a %s of %s, which hears one address only: use a NIC", name, l.kind, cmp.Or(l.lower, "another link"))
	case l.master == p.link:
		// An administrator's bridge that is as it should be.
	case l.master != "" && h.links[l.master].kind == "bridge":
		p.cannot("uplink %s is a port of bridge %s already: name that bridge, without uplink", name, l.master)
	case l.master != "":
		p.cannot("uplink %s belongs to %s: name %[2]s as the uplink", name, l.master)
	}
	if uppers := h.uppers(name, "macvlan", "macvtap", "ipvlan"); len(uppers) > 0 && l.master == "" {
		p.cannot("uplink %s carries %s, and a NIC is either a port of a bridge or carries macvlans: use parent = %q instead, or remove %[2]s", name, strings.Join(uppers, ", "), name)
	}
	if l.master == p.link {
		return
	}
	if l.manager != "" {
		p.warn("%s is configured by %s, which may take it back while it is in the bridge: better let %[2]s make the bridge", name, l.manager)
	}
	p.warnCarrier(name, l)
}

// planMove moves what a NIC has to the link that replaces it.
func (p *planned) planMove(from, to string, l linkState) {
	if l.manager == "" && slices.ContainsFunc(l.addresses, func(a address) bool { return a.leased && a.Addr().Is4() }) {
		p.warn("%s has its address by DHCP: it moves to %s for as long as its lease lasts; whoever renews it does so on %[1]s, so better run that client on a bridge of your own", from, to)
	}
	if l.ruled {
		p.warn("a routing rule ('ip rule') names %s, and will not match what comes and goes by %s: add the same rule for %[2]s", from, to)
	}
	p.change(change{Op: opMove, Link: from, On: to})
}

func (p *planned) warnCarrier(name string, l linkState) {
	if l.up && !l.carrier {
		p.warn("%s has no carrier: nothing will be heard until a cable is in", name)
	}
}

func (p *planned) planParent(cfg Config, h host) {
	name, parent := p.planVLAN(cfg, h, cfg.Parent)
	if name == "" {
		return
	}
	for _, err := range macvtapObstacles(name, parent, h) {
		p.cannot("%v", err)
	}
	p.parent = name
	p.link = linkName("ecmv-", cmp.Or(cfg.Name, name))
	if l, ok := h.links[p.link]; ok {
		p.cannot("%s, a %s link, is there already: another ecboot serves this segment, or 'ip link del %[1]s'", p.link, l.kind)
	}
	moves := p.address.IsValid() && parent.has(p.address)
	switch {
	case !p.address.IsValid():
		p.cannot("parent %s: guests never see the host on it, so the servers get a link of their own, which needs an address: set one that is free, or one of %[1]s's (%s) to move all of them there", name, list(parent.ipv4()))
	case !moves && slices.ContainsFunc(parent.ipv4(), func(a netip.Prefix) bool { return a.Addr() == p.address.Addr() }):
		p.cannot("%s has the address %s with another prefix length: %s", name, p.address.Addr(), list(parent.ipv4()))
	case !moves && len(parent.ipv4()) > 0:
		p.warn("guests on %s do not see this host at %s, only the servers at %s: what lies on a NIC by macvlan never sees the NIC itself", name, list(parent.ipv4()), p.address)
	}
	if parent.manager != "" && moves {
		p.warn("%s is configured by %s, which may put its addresses back while they are on %s", name, parent.manager, p.link)
	}
	p.warnCarrier(name, parent)

	if !parent.up {
		p.change(change{Op: opUp, Link: name})
	}
	p.change(change{Op: opMacvlan, Link: p.link, On: name, MAC: stableMAC(h.id, parent.mac.String(), p.link).String()})
	if moves {
		p.change(change{Op: opInherit, Link: p.link, On: name})
	}
	// The parent and the macvlan hear the same questions: each must speak for
	// its own addresses only, or half of the network learns the wrong one.
	for _, link := range []string{name, p.link} {
		p.change(change{Op: opSetting, Key: "ipv4/conf/" + link + "/arp_ignore", Value: "1"})
		p.change(change{Op: opSetting, Key: "ipv4/conf/" + link + "/arp_announce", Value: "2"})
	}
	// Routes to the clients may lead over the parent all the same.
	p.change(change{Op: opSetting, Key: "ipv4/conf/" + p.link + "/rp_filter", Value: "2"})
	p.change(change{Op: opUp, Link: p.link})
	if moves {
		p.planMove(name, p.link, parent)
	} else {
		p.change(change{Op: opAddress, Link: p.link, Addr: p.address})
	}
	if cfg.NAT {
		p.planNAT(cfg, h, name)
	}
}

// macvtapObstacles is why a link cannot carry macvtaps.
func macvtapObstacles(name string, l linkState, h host) (out []error) {
	switch {
	case l.loopback, len(l.mac) != 6:
		out = append(out, fmt.Errorf("parent %s is a %s link without Ethernet: macvtaps need a NIC", name, kindOf(l)))
	case l.wireless:
		out = append(out, fmt.Errorf("parent %s is wireless: an access point takes frames of one address only, so no guest would be heard; use a wired NIC, or a bridge with nat = true", name))
	case l.master != "" && h.links[l.master].kind == "bridge":
		out = append(out, fmt.Errorf("parent %s is a port of bridge %s, and a port cannot carry macvtaps: use bridge = %q", name, l.master, l.master))
	case l.master != "":
		out = append(out, fmt.Errorf("parent %s belongs to %s: name %[2]s as the parent", name, l.master))
	}
	return out
}

// planVLAN finds a NIC, or makes the link for one of its 802.1Q networks. The
// name is empty when there is none.
func (p *planned) planVLAN(cfg Config, h host, nic string) (string, linkState) {
	l, ok := h.links[nic]
	if !ok {
		p.cannot("there is no NIC %s: this machine has %s", nic, cmp.Or(h.names(), "none"))
		return "", l
	}
	if cfg.VLAN == 0 {
		return nic, l
	}
	if l.master != "" && h.links[l.master].kind == "bridge" {
		p.cannot("vlan %d of %s: %[2]s is a port of bridge %s, which takes its frames; take it out, or use the bridge without vlan", cfg.VLAN, nic, l.master)
	}
	for name, v := range h.links {
		if v.kind == "vlan" && v.lower == nic && v.vlan == cfg.VLAN {
			return name, v
		}
	}
	name := linkName(fmt.Sprintf("ec%d-", cfg.VLAN), nic)
	if v, ok := h.links[name]; ok {
		p.cannot("%s is there already, and is a %s link: remove or rename it", name, v.kind)
	}
	if !l.up {
		p.change(change{Op: opUp, Link: nic})
	}
	p.change(change{Op: opVLAN, Link: name, On: nic, VLAN: cfg.VLAN})
	return name, linkState{kind: "vlan", mac: l.mac, carrier: true, lower: nic, vlan: cfg.VLAN, ipv6: l.ipv6}
}

// chooseAddress takes the servers' address from those that the link will have
// anyway, or says that the one asked for must be added.
func (p *planned) chooseAddress(link string, have []netip.Prefix) (add bool) {
	if !p.address.IsValid() {
		if len(have) == 0 {
			p.cannot("bridge %s has no IPv4 address: give it one, or name the servers' in the segment's address or with --address", link)
			return false
		}
		p.address = have[0]
		return false
	}
	for _, a := range have {
		if a == p.address {
			return false
		}
		if a.Addr() == p.address.Addr() {
			p.cannot("bridge %s has %s already, with another prefix length than %s", link, a, p.address)
		}
	}
	return true
}

// planNAT lets the clients out by the host's default route, which must not lead
// back to them: over the segment's link or the NIC below it.
func (p *planned) planNAT(cfg Config, h host, nic string) {
	out := slices.DeleteFunc(slices.Clone(h.exits), func(link string) bool { return link == p.link || link == nic })
	if len(out) == 0 {
		p.cannot("nat: this host has no default route other than through %s itself: clients there have the network's own router", cmp.Or(nic, p.link))
		return
	}
	for _, chain := range h.strict {
		p.warn("nat: the firewall's %s drops what it does not know: allow what comes from %s and the answers to it", chain, p.link)
	}
	p.change(change{Op: opNAT, Link: p.link, NAT: newNAT(cmp.Or(cfg.Name, p.link), p.link, p.address.Masked(), out)})
	for _, link := range append([]string{p.link}, out...) {
		p.change(change{Op: opSetting, Key: forwarding(link), Value: "1"})
	}
}

// uppers are the links of these kinds that lie on a link.
func (h host) uppers(name string, kinds ...string) (out []string) {
	for n, l := range h.links {
		if l.lower == name && slices.Contains(kinds, l.kind) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

func kindOf(l linkState) string {
	if l.loopback {
		return "loopback"
	}
	return l.kind
}

func list[T fmt.Stringer](values []T) string {
	var out []string
	for _, v := range values {
		out = append(out, v.String())
	}
	return cmp.Or(strings.Join(out, ", "), "it has none")
}
