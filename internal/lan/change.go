package lan

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// op is a kind of change.
type op string

// The kinds. Their names stand in notes, so that a newer ecboot can undo what
// an older one left.
const (
	opBridge  op = "bridge"  // make the bridge Link with address MAC
	opVLAN    op = "vlan"    // make Link for the 802.1Q network VLAN of On
	opMacvlan op = "macvlan" // make Link with address MAC on top of On
	opMacvtap op = "macvtap" // the same for a guest
	opInherit op = "inherit" // give Link the IP settings of On
	opUp      op = "up"      // bring Link up
	opEnslave op = "enslave" // make Link a port of On
	opMove    op = "move"    // move addresses and routes from Link to On
	opAddress op = "address" // add Addr to Link
	opSetting op = "setting" // set Key below /proc/sys/net to Value
	opNAT     op = "nat"     // let Addr's network out, from Link
)

// change is one change to the network. With what remember adds it says how it
// is undone; undoing one that was never made does nothing.
type change struct {
	Op    op           `json:"op"`
	Link  string       `json:"link,omitempty"`
	On    string       `json:"on,omitempty"`  // the other link
	MAC   string       `json:"mac,omitempty"` // of a link that is made, or is a NIC
	VLAN  int          `json:"vlan,omitempty"`
	Index int          `json:"index,omitempty"` // the same; 0: any, or not known
	Addr  netip.Prefix `json:"addr,omitzero"`
	Key   string       `json:"key,omitempty"`
	Value string       `json:"value,omitempty"`
	Old   string       `json:"old,omitempty"`   // of a setting
	Saved *belongings  `json:"saved,omitempty"` // of a move
	Own   settings     `json:"own,omitempty"`   // that Link inherits as they were before other segments
	NAT   *nat         `json:"nat,omitempty"`
}

// remember adds what undoing will need. It changes nothing. others are the
// settings that other segments have changed.
func (c *change) remember(others settings) (err error) {
	switch c.Op {
	case opEnslave:
		c.identify()
	case opMove:
		c.identify()
		if c.Saved, err = belongingsOf(c.Link); err == nil {
			err = c.Saved.askGateways(c.Link)
		}
	case opSetting:
		c.Old, err = others.original(c.Key)
	case opInherit:
		c.Own = others.of(c.On)
	case opNAT:
		c.NAT.remember(others, c.NAT.Outside)
	}
	return err
}

// identify notes which link it is that has the name now, if one does.
func (c *change) identify() {
	if link, err := netlink.LinkByName(c.Link); err == nil {
		c.Index, c.MAC = link.Attrs().Index, link.Attrs().HardwareAddr.String()
	}
}

// rename puts the names into changes that NICs have by now, which somebody may
// have given others since.
func rename(made []change) {
	for _, nic := range made {
		if nic.Op != opEnslave && nic.Op != opMove || nic.Index == 0 {
			continue
		}
		if _, err := netlink.LinkByName(nic.Link); !isNotFound(err) {
			continue
		}
		link, err := netlink.LinkByIndex(nic.Index)
		if err != nil || link.Attrs().HardwareAddr.String() != nic.MAC {
			continue // it is gone
		}
		for i := range made {
			made[i].rename(nic.Link, link.Attrs().Name)
		}
	}
}

func (c *change) rename(old, name string) {
	if c.Link == old {
		c.Link = name
	}
	if c.On == old {
		c.On = name
	}
	c.Key = strings.Replace(c.Key, "/"+old+"/", "/"+name+"/", 1)
}

// whole reports whether a change from a note has all that belongs to it.
func (c change) whole() bool {
	return (c.Op != opMove || c.Saved != nil) && (c.Op != opNAT || c.NAT != nil)
}

// make makes the change. pause is for tests to stop within.
func (c change) make(pause func()) error {
	switch c.Op {
	case opBridge:
		return c.makeBridge()
	case opVLAN, opMacvlan, opMacvtap:
		return c.makeUpper()
	case opInherit:
		return errors.Join(inheritSettings(c.Link, c.On), c.Own.inherit(c.Link, c.On))
	case opUp:
		return setUp(c.Link)
	case opEnslave:
		return c.enslave()
	case opMove:
		return c.Saved.move(c.Link, c.On, pause)
	case opAddress:
		return c.addAddress()
	case opSetting:
		return writeSetting(c.Key, c.Value)
	case opNAT:
		return c.NAT.install()
	}
	return fmt.Errorf("%s: an unknown kind of change", c.Op)
}

// undo undoes the change, or as much of it as was made.
func (c change) undo() error {
	if !c.whole() {
		return nil
	}
	switch c.Op {
	case opMove:
		return c.Saved.moveBack(c.Link, c.On)
	case opSetting:
		return restoreSetting(c.Key, c.Value, c.Old)
	case opNAT:
		return c.NAT.remove()
	}
	link, err := netlink.LinkByName(c.Link)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", c.Link, err)
	}
	switch c.Op {
	case opBridge, opVLAN, opMacvlan, opMacvtap:
		if !c.made(link) {
			return nil
		}
		err = netlink.LinkDel(link)
	case opUp:
		err = netlink.LinkSetDown(link)
	case opEnslave:
		err = leave(link, c.On)
	case opAddress:
		err = c.removeAddress(link)
	}
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("undo %s of %s: %w", c.Op, c.Link, err)
	}
	return nil
}

// made reports whether a link of the name is the one that was made, and not one
// of somebody else's.
func (c change) made(link netlink.Link) bool {
	return c.madeOf(link.Type(), link.Attrs().HardwareAddr)
}

func (c change) madeOf(kind string, mac net.HardwareAddr) bool {
	return kind == string(c.Op) && (c.MAC == "" || mac.String() == c.MAC)
}

func (c change) makeBridge() error {
	la := netlink.NewLinkAttrs()
	la.Name = c.Link
	la.HardwareAddr, _ = net.ParseMAC(c.MAC)
	// Snooping without a querier would lose the multicast that guests wait
	// for.
	snooping := false
	bridge := &netlink.Bridge{LinkAttrs: la, MulticastSnooping: &snooping}
	if err := netlink.LinkAdd(bridge); err != nil {
		return needAdmin("make bridge "+c.Link, err)
	}
	if err := noSpanningTree(bridge); err != nil {
		return fmt.Errorf("spanning tree of %s: %w", c.Link, err)
	}
	return nil
}

// makeUpper makes a link that lies on another.
func (c change) makeUpper() error {
	parent, err := netlink.LinkByName(c.On)
	if err != nil {
		return fmt.Errorf("%s: %w", c.On, err)
	}
	err = netlink.LinkAdd(c.upper(parent.Attrs().Index))
	for try := 0; try < indexTries && c.Index != 0 && errors.Is(err, unix.EEXIST); try++ {
		if _, taken := netlink.LinkByName(c.Link); taken == nil {
			break
		}
		c.Index = freeIndex() // somebody else's link was faster to take it
		err = netlink.LinkAdd(c.upper(parent.Attrs().Index))
	}
	what := fmt.Sprintf("make %s on %s", c.Link, c.On)
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s: %w: something else has %s, such as a bridge; name that bridge instead of the parent", what, err, c.On)
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%s: %w: this kernel has no %s links: 'modprobe %s'", what, err, c.Op, kernelModule(c.Op))
	case err != nil:
		return needAdmin(what, err)
	}
	return nil
}

// indexTries is how often a link looks for an index that is free while others do.
const indexTries = 16

func kernelModule(o op) string {
	if o == opVLAN {
		return "8021q"
	}
	return string(o)
}

// upper is the link that makeUpper asks the kernel for.
func (c change) upper(parent int) netlink.Link {
	la := netlink.NewLinkAttrs()
	la.Name, la.ParentIndex, la.Index = c.Link, parent, c.Index
	la.HardwareAddr, _ = net.ParseMAC(c.MAC)
	macvlan := netlink.Macvlan{LinkAttrs: la, Mode: netlink.MACVLAN_MODE_BRIDGE}
	switch c.Op {
	case opVLAN:
		return &netlink.Vlan{LinkAttrs: la, VlanId: c.VLAN, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
	case opMacvtap:
		return &netlink.Macvtap{Macvlan: macvlan}
	}
	return &macvlan
}

func (c change) enslave() error {
	link, err := netlink.LinkByName(c.Link)
	if err != nil {
		return fmt.Errorf("%s: %w", c.Link, err)
	}
	bridge, err := netlink.LinkByName(c.On)
	if err != nil {
		return fmt.Errorf("%s: %w", c.On, err)
	}
	err = netlink.LinkSetMaster(link, bridge)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("put %s into %s: %w: it carries a macvlan or macvtap, perhaps of a container: use it as the parent instead, or remove those", c.Link, c.On, err)
	}
	if err != nil {
		return needAdmin(fmt.Sprintf("put %s into %s", c.Link, c.On), err)
	}
	return nil
}

// leave takes a port out of a bridge if it is in it.
func leave(port netlink.Link, bridge string) error {
	master, err := netlink.LinkByName(bridge)
	if err != nil || port.Attrs().MasterIndex != master.Attrs().Index {
		return nil
	}
	return netlink.LinkSetNoMaster(port)
}

func (c change) addAddress() error {
	link, err := netlink.LinkByName(c.Link)
	if err != nil {
		return fmt.Errorf("%s: %w", c.Link, err)
	}
	addr, err := netlink.ParseAddr(c.Addr.String())
	if err != nil {
		return fmt.Errorf("address %s: %w", c.Addr, err)
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return needAdmin(fmt.Sprintf("add %s to %s", c.Addr, c.Link), err)
	}
	return nil
}

// removeAddress leaves alone others of the same network that somebody has added
// since, which the kernel takes along unless it is told to keep them.
func (c change) removeAddress(link netlink.Link) error {
	addr, err := netlink.ParseAddr(c.Addr.String())
	if err != nil {
		return err
	}
	key := "ipv4/conf/" + c.Link + "/promote_secondaries"
	if old, err := readSetting(key); err == nil && old == "0" {
		if err := writeSetting(key, "1"); err != nil {
			return err
		}
		defer writeSetting(key, old)
	}
	return netlink.AddrDel(link, addr)
}

// noSpanningTree makes ports of the bridge forward at once.
func noSpanningTree(bridge netlink.Link) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(bridge.Attrs().Index)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_BR_STP_STATE, nl.Uint32Attr(0))
	data.AddRtAttr(nl.IFLA_BR_FORWARD_DELAY, nl.Uint32Attr(0))
	req.AddData(msg)
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// spanningTree asks the kernel, not sysfs, which shows the namespace of whoever
// mounted it.
func spanningTree(bridge netlink.Link) (on bool, err error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(bridge.Attrs().Index)
	req.AddData(msg)
	replies, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil || len(replies) == 0 {
		return false, err
	}
	value := replies[0][unix.SizeofIfInfomsg:]
	for _, kind := range []uint16{unix.IFLA_LINKINFO, nl.IFLA_INFO_DATA, nl.IFLA_BR_STP_STATE} {
		attrs, err := parseAttrs(value)
		if err != nil {
			return false, err
		}
		value = attribute(attrs, kind)
	}
	return len(value) == 4 && nl.NativeEndian().Uint32(value) != 0, nil
}
