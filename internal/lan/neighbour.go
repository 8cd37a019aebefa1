package lan

import (
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Neighbour returns the hardware address that the kernel knows for an address
// on a link: of whoever has just sent something from there, such as a request
// that is being answered. It asks nobody on the wire.
func Neighbour(ifname string, addr netip.Addr) (mac [6]byte, ok bool) {
	link, err := netlink.LinkByName(ifname)
	if err != nil {
		return mac, false
	}
	msg := &netlink.Ndmsg{Family: unix.AF_INET6, Index: uint32(link.Attrs().Index)}
	if addr.Is4() {
		msg.Family = unix.AF_INET
	}
	// For this one entry: on a network of a thousand machines the table is long.
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, 0)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(netlink.NDA_DST, addr.AsSlice()))
	answers, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	if err != nil || len(answers) != 1 {
		return mac, false
	}
	n, err := netlink.NeighDeserialize(answers[0])
	if err != nil || n.State&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) != 0 || len(n.HardwareAddr) != len(mac) {
		return mac, false
	}
	return [6]byte(n.HardwareAddr), true
}
