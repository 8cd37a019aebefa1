package lan

import (
	"encoding/binary"
	"net"
	"net/netip"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	arpTries = 3
	arpWait  = time.Second // for each try
)

// answersARP asks on a link who has an address, and reports whether somebody
// says so. Who asks is seen under the link's own address, so that others learn
// where this machine is now.
func answersARP(link netlink.Link, target netip.Addr) bool {
	la := link.Attrs()
	if len(la.HardwareAddr) != 6 || la.RawFlags&unix.IFF_NOARP != 0 || !target.Is4() {
		return false
	}
	conn, err := listenARP(la)
	if err != nil {
		return false
	}
	defer conn.Close()
	request := arpRequest(la.HardwareAddr, sourceFor(link, target), target)
	buf := make([]byte, 128)
	for range arpTries {
		if _, err := conn.WriteTo(request, everybody); err != nil {
			return false
		}
		conn.SetReadDeadline(time.Now().Add(arpWait))
		for {
			n, _, err := conn.ReadFrom(buf)
			if err != nil {
				break
			}
			if from, ok := arpReplyFrom(buf[:n]); ok && from == target {
				return true
			}
		}
	}
	return false
}

// everybody is the Ethernet broadcast address.
var everybody = &packet.Addr{HardwareAddr: net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}

func listenARP(la *netlink.LinkAttrs) (*packet.Conn, error) {
	return packet.Listen(&net.Interface{Index: la.Index, Name: la.Name, HardwareAddr: la.HardwareAddr}, packet.Datagram, unix.ETH_P_ARP, nil)
}

// announce tells everybody under which hardware address IPv4 addresses are found
// from now on (RFC 5227, section 3). Who misses it asks again after a while.
func announce(link netlink.Link, addresses []message) {
	la := link.Attrs()
	if len(la.HardwareAddr) != 6 || la.RawFlags&unix.IFF_NOARP != 0 {
		return
	}
	conn, err := listenARP(la)
	if err != nil {
		return
	}
	defer conn.Close()
	for _, m := range addresses {
		if ip := m.address().Addr(); ip.Is4() {
			_, _ = conn.WriteTo(arpRequest(la.HardwareAddr, ip, ip), everybody)
		}
	}
}

// sourceFor is the link's address in the target's network, else its first one.
func sourceFor(link netlink.Link, target netip.Addr) netip.Addr {
	have, _ := addresses(link)
	source := netip.IPv4Unspecified()
	for i, p := range have {
		if p.Contains(target) {
			return p.Addr()
		}
		if i == 0 {
			source = p.Addr()
		}
	}
	return source
}

// arpRequest is RFC 826's packet without the Ethernet header.
func arpRequest(mac net.HardwareAddr, source, target netip.Addr) []byte {
	b := binary.BigEndian.AppendUint16(nil, 1) // Ethernet
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)
	b = append(b, 6, 4)
	b = binary.BigEndian.AppendUint16(b, 1) // request
	b = append(append(b, mac...), source.AsSlice()...)
	return append(append(b, make([]byte, 6)...), target.AsSlice()...)
}

// arpReplyFrom is who sends a reply.
func arpReplyFrom(b []byte) (netip.Addr, bool) {
	if len(b) < 28 || binary.BigEndian.Uint16(b[6:]) != 2 {
		return netip.Addr{}, false
	}
	return netip.AddrFrom4([4]byte(b[14:18])), true
}
