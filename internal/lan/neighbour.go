package lan

import (
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Neighbour returns the hardware address that the kernel knows for an address
// on a link: of whoever has just sent something from there, such as a request
// that is being answered. It asks nobody on the wire.
func Neighbour(ifname string, addr netip.Addr) (mac [6]byte, ok bool) {
	link, err := netlink.LinkByName(ifname)
	if err != nil {
		return mac, false
	}
	family := netlink.FAMILY_V6
	if addr.Is4() {
		family = netlink.FAMILY_V4
	}
	list, err := netlink.NeighList(link.Attrs().Index, family)
	if err != nil {
		return mac, false
	}
	for _, n := range list {
		ip, _ := netip.AddrFromSlice(n.IP)
		if ip.Unmap() == addr.WithZone("") && n.State&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) == 0 && len(n.HardwareAddr) == len(mac) {
			return [6]byte(n.HardwareAddr), true
		}
	}
	return mac, false
}
