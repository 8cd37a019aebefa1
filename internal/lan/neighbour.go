package lan

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// arpEntry is struct arpreq of <net/if_arp.h>.
type arpEntry struct {
	addr  unix.RawSockaddrInet4
	mac   unix.RawSockaddr
	flags int32
	_     unix.RawSockaddr // netmask
	dev   [unix.IFNAMSIZ]byte
}

// arpComplete is ATF_COM: the hardware address is known.
const arpComplete = 2

// Neighbour returns the hardware address that the kernel knows for an IPv4
// address on a link: of whoever has just sent something from there, such as a
// request that is being answered. It asks nobody on the wire. For every file
// that a machine fetches somebody wants to know, so it is no netlink request.
func Neighbour(ifname string, addr netip.Addr) (mac [6]byte, ok bool) {
	if !addr.Is4() || len(ifname) >= unix.IFNAMSIZ {
		return mac, false
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return mac, false
	}
	defer unix.Close(fd)
	req := arpEntry{addr: unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: addr.As4()}}
	copy(req.dev[:], ifname)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCGARP, uintptr(unsafe.Pointer(&req))); errno != 0 || req.flags&arpComplete == 0 {
		return mac, false
	}
	for i := range mac {
		mac[i] = byte(req.mac.Data[i])
	}
	return mac, true
}
