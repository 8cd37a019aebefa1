package dhcpd

import (
	"encoding/binary"
	"net/netip"
)

// The ports of RFC 2131 §4.1.
const (
	serverPort = 67
	clientPort = 68
)

const (
	ipv4HeaderLen = 20
	udpHeaderLen  = 8
	protocolUDP   = 17
)

// datagram makes the IPv4 packet of a UDP datagram for or from a client that has
// no address yet. Both checksums are computed here: clients read raw frames, and
// what the kernel sends over a veth or tap carries a checksum that a network
// card was meant to finish.
func datagram(src, dst netip.AddrPort, payload []byte) []byte {
	b := make([]byte, ipv4HeaderLen+udpHeaderLen, ipv4HeaderLen+udpHeaderLen+len(payload))
	b = append(b, payload...)
	udpLen := uint16(len(b) - ipv4HeaderLen)
	s, d := src.Addr().As4(), dst.Addr().As4()

	ip := b[:ipv4HeaderLen]
	ip[0] = 4<<4 | ipv4HeaderLen/4
	binary.BigEndian.PutUint16(ip[2:], uint16(len(b)))
	ip[8] = 64 // hops; there are none
	ip[9] = protocolUDP
	copy(ip[12:], s[:])
	copy(ip[16:], d[:])
	binary.BigEndian.PutUint16(ip[10:], checksum(0, ip))

	udp := b[ipv4HeaderLen:]
	binary.BigEndian.PutUint16(udp[0:], src.Port())
	binary.BigEndian.PutUint16(udp[2:], dst.Port())
	binary.BigEndian.PutUint16(udp[4:], udpLen)
	// The pseudo header of RFC 768.
	sum := uint32(protocolUDP) + uint32(udpLen)
	for _, a := range [][4]byte{s, d} {
		sum += uint32(binary.BigEndian.Uint16(a[:2])) + uint32(binary.BigEndian.Uint16(a[2:]))
	}
	c := checksum(sum, udp)
	if c == 0 {
		c = 0xffff // 0 would mean that there is no checksum
	}
	binary.BigEndian.PutUint16(udp[6:], c)
	return b
}

// checksum is the Internet checksum (RFC 1071) of b, added to sum.
func checksum(sum uint32, b []byte) uint16 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
