package lan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
)

const (
	wakePort      = 9 // discard, by custom
	wakeEtherType = 0x0842
)

// Wake asks the machine with this hardware address to switch itself on
// (Wake-on-LAN). NICs differ in what they listen to, so the magic packet goes
// out on the link twice: as an Ethernet frame and as a UDP broadcast.
func Wake(ifname string, mac [6]byte) error {
	link, err := net.InterfaceByName(ifname)
	if err != nil {
		return fmt.Errorf("wake through %s: there is no such link here while no server makes it", ifname)
	}
	magic := magicPacket(mac)
	if err := errors.Join(wakeFrame(link, magic), wakeUDP(ifname, magic)); err != nil {
		return needAdmin("wake "+net.HardwareAddr(mac[:]).String()+" through "+ifname, err)
	}
	return nil
}

// magicPacket is six bytes of ones and sixteen times the address (AMD, Magic
// Packet Technology, 1995).
func magicPacket(mac [6]byte) []byte {
	return append(bytes.Repeat([]byte{0xff}, 6), bytes.Repeat(mac[:], 16)...)
}

func wakeFrame(link *net.Interface, magic []byte) error {
	conn, err := packet.Listen(link, packet.Raw, 0, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	frame := append(append(bytes.Clone(everybody.HardwareAddr), link.HardwareAddr...), wakeEtherType>>8, wakeEtherType&0xff)
	_, err = conn.WriteTo(append(frame, magic...), everybody)
	return err
}

func wakeUDP(ifname string, magic []byte) error {
	// Bound to the link: a broadcast leaves by the default route otherwise.
	listen := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if e := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), ifname) }); e != nil {
			return e
		}
		return err
	}}
	conn, err := listen.ListenPacket(context.Background(), "udp4", ":0")
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.WriteTo(magic, &net.UDPAddr{IP: net.IPv4bcast, Port: wakePort})
	return err
}
