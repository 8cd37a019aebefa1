package lan

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tunPath is the device that taps come from.
const tunPath = "/dev/net/tun"

// Tap is a guest's port on a segment. A tap exists as long as a process holds
// File or a copy of it, a macvtap until it is unplugged or the segment is undone.
type Tap struct {
	Name string
	File *os.File
}

// PortConfig says which port a guest gets.
type PortConfig struct {
	Name string // of the link on this host; empty: a free one
	// MAC is the guest's. On a Parent the guest must not use any other
	// address: nothing would reach it.
	MAC [6]byte
}

// Tap makes a port for the guest that has this address. The file is for QEMU's
// netdev "tap,fd="; close it here once QEMU has it.
func (s *Segment) Tap(mac [6]byte) (*Tap, error) { return s.Port(PortConfig{MAC: mac}) }

// Port makes a port: a tap on the bridge, or a macvtap on the Parent.
func (s *Segment) Port(cfg PortConfig) (*Tap, error) {
	if err := s.errNoPorts(); err != nil {
		return nil, err
	}
	if cfg.Name != "" {
		if err := checkLinkName(cfg.Name); err != nil {
			return nil, fmt.Errorf("port: %w", err)
		}
	}
	if s.opened.Parent != "" {
		return s.macvtap(cfg)
	}
	tap, err := openTap(cfg.Name)
	if err != nil {
		return nil, err
	}
	if err := s.plug(tap.Name); err != nil {
		tap.File.Close()
		return nil, err
	}
	return tap, nil
}

// openTap makes a tap.
func openTap(name string) (*Tap, error) {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, tunError(err)
	}
	// The kernel numbers the name. A guest's own offloads need the virtio
	// header; QEMU asks the tap whether it is there. One that somebody has
	// made before is not taken.
	req, err := unix.NewIfreq(cmp.Or(name, "ectap%d"))
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	switch {
	case err == nil:
		return &Tap{Name: req.Name(), File: os.NewFile(uintptr(fd), tunPath)}, nil
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EEXIST):
		err = fmt.Errorf("make the tap %s: %w: a link of this name is there already: a guest has it, or 'ip link del %[1]s'", name, err)
	default:
		err = needAdmin("make a tap", err)
	}
	unix.Close(fd)
	return nil, err
}

// plug makes a tap a port of the bridge.
func (s *Segment) plug(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("tap %s: %w", name, err)
	}
	// It may be another one by now.
	bridge, err := netlink.LinkByName(s.opened.Link)
	if err != nil {
		return fmt.Errorf("%s: %w", s.opened.Link, err)
	}
	if err := noIPv6(name); err != nil {
		return err
	}
	if mtu := bridge.Attrs().MTU; mtu != link.Attrs().MTU {
		// A port with a smaller MTU would lower the whole bridge's.
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return fmt.Errorf("MTU %d on %s: %w", mtu, name, err)
		}
	}
	if err := netlink.LinkSetMaster(link, bridge); err != nil {
		return needAdmin(fmt.Sprintf("put %s into %s", name, s.opened.Link), err)
	}
	return setUp(name)
}

// Plugged reports whether a port is what it should be: a tap that is up and in
// the bridge, or a macvtap that is up and on the parent.
func (s *Segment) Plugged(name string) bool {
	port, err := netlink.LinkByName(name)
	if err != nil || port.Attrs().Flags&net.FlagUp == 0 {
		return false
	}
	if s.opened.Parent != "" {
		parent, err := netlink.LinkByName(s.opened.Parent)
		return err == nil && port.Type() == "macvtap" && port.Attrs().ParentIndex == parent.Attrs().Index
	}
	bridge, err := netlink.LinkByName(s.opened.Link)
	return err == nil && port.Attrs().MasterIndex == bridge.Attrs().Index
}

// Replug makes a port what it should be, after somebody took it out of the
// bridge or down, or made the bridge anew. A port that is gone does not come
// back: its guest holds the file of the old one.
func (s *Segment) Replug(name string) error {
	port, err := findPort(name)
	if err != nil {
		return err
	}
	switch tap := s.opened.Parent == ""; {
	case tap && port.Type() == "tuntap":
		return s.plug(name)
	case !tap && port.Type() == "macvtap":
		return startMacvtap(port)
	}
	return notThePort(port)
}

func findPort(name string) (netlink.Link, error) {
	port, err := netlink.LinkByName(name)
	if isNotFound(err) {
		return nil, fmt.Errorf("the port %s is gone, and comes back only when its guest is started again", name)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return port, nil
}

func notThePort(link netlink.Link) error {
	return fmt.Errorf("the port %s is gone: the link of this name is a %s", link.Attrs().Name, link.Type())
}

// noIPv6 keeps the host silent on a guest's port, where it has nothing to say.
func noIPv6(name string) error { return writeSetting("ipv6/conf/"+name+"/disable_ipv6", "1") }

func tunError(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%s: %w: load it with 'modprobe tun'", tunPath, err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("%s: %w: run as root, or 'chmod 666 %[1]s'", tunPath, err)
	}
	return fmt.Errorf("%s: %w", tunPath, err)
}

// Unplug removes the port of a guest that has ended, so that one with the same
// name or address can be started. Close does so for all ports.
func (s *Segment) Unplug(name string) error {
	if s.opened.Parent != "" {
		return s.undo(change{Op: opMacvtap, Link: name})
	}
	link, err := netlink.LinkByName(name)
	if isNotFound(err) {
		return nil // as taps do
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if link.Type() != "tuntap" {
		return fmt.Errorf("%s is no tap but a %s link, and stays", name, link.Type())
	}
	return removeLink(link)
}

// removeLink takes it well when somebody else was faster.
func removeLink(link netlink.Link) error {
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return needAdmin("remove "+link.Attrs().Name, err)
	}
	return nil
}

// Parent is the link that carries the guests' macvtaps, and can carry macvlans
// beside them; empty: the guests' ports are on the bridge Interface.
func (s *Segment) Parent() string { return s.opened.Parent }
