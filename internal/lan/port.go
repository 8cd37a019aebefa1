package lan

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tunPath is the device that taps come from.
const tunPath = "/dev/net/tun"

// Tap is a guest's port on the segment. A tap exists as long as a process holds
// File or a copy of it, a macvtap until the segment is closed.
type Tap struct {
	Name string
	File *os.File
}

// Tap makes a port for the guest that has this address. The file is for QEMU's
// netdev "tap,fd="; close it here once QEMU has it. On a Parent the guest must
// not use any other address: nothing would reach it.
func (s *Segment) Tap(mac [6]byte) (*Tap, error) {
	if err := s.errNoPorts(); err != nil {
		return nil, err
	}
	if s.parent != "" {
		return s.macvtap(net.HardwareAddr(mac[:]))
	}
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, tunError(err)
	}
	// The kernel numbers the name. A guest's own offloads need the virtio
	// header; QEMU asks the tap whether it is there.
	req, err := unix.NewIfreq("ectap%d")
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		return nil, needAdmin("make a tap", err)
	}
	tap := &Tap{Name: req.Name(), File: os.NewFile(uintptr(fd), tunPath)}
	if err := s.plug(tap.Name); err != nil {
		tap.File.Close()
		return nil, err
	}
	return tap, nil
}

func (s *Segment) plug(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("tap %s: %w", name, err)
	}
	if err := noIPv6(name); err != nil {
		return err
	}
	if mtu := s.MTU(); mtu != link.Attrs().MTU {
		// A port with a smaller MTU would lower the whole bridge's.
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return fmt.Errorf("MTU %d on %s: %w", mtu, name, err)
		}
	}
	if err := netlink.LinkSetMaster(link, s.link); err != nil {
		return needAdmin(fmt.Sprintf("put %s into %s", name, s.Interface()), err)
	}
	return setUp(name)
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

// macvtap makes a guest's link on the parent.
func (s *Segment) macvtap(mac net.HardwareAddr) (*Tap, error) {
	name := macvtapName(mac)
	if _, err := netlink.LinkByName(name); err == nil {
		return nil, fmt.Errorf("the address %s has a guest already: its link %s is there; give this guest another, or 'ip link del %[2]s' if nobody uses it", mac, name)
	}
	c := change{Op: opMacvtap, Link: name, On: s.parent, MAC: mac.String(), Index: freeIndex()}
	err := s.change(c)
	if err != nil {
		return nil, errors.Join(err, s.undo(c))
	}
	tap, err := startMacvtap(name)
	if errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EBUSY) {
		err = fmt.Errorf("the address %s is taken on %s, by this host or a guest of somebody else: %w; give this guest another", mac, s.parent, err)
	}
	if err != nil {
		return nil, errors.Join(err, s.undo(c))
	}
	return tap, nil
}

// macvtapName is always 15 bytes long, as long as a name can be.
func macvtapName(mac net.HardwareAddr) string { return fmt.Sprintf("ect%x", []byte(mac)) }

// Unplug removes the port of a guest that has ended, so that one with the same
// address can be started. Close does so for all ports.
func (s *Segment) Unplug(mac [6]byte) error {
	return s.undo(change{Op: opMacvtap, Link: macvtapName(mac[:])})
}

func startMacvtap(name string) (*Tap, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := noIPv6(name); err != nil {
		return nil, err
	}
	if err := netlink.LinkSetAllmulticastOn(link); err != nil {
		return nil, fmt.Errorf("all multicast on %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return nil, needAdmin("bring "+name+" up", err)
	}
	return openMacvtap(link)
}

// macvtapWait is for whoever makes device files: the kernel does so at once,
// udev sets their rights after a while.
const macvtapWait = 5 * time.Second

// openMacvtap opens the file of a macvtap, whose name is made of the link's
// index.
func openMacvtap(link netlink.Link) (*Tap, error) {
	la := link.Attrs()
	path := "/dev/tap" + strconv.Itoa(la.Index)
	fd, err := -1, error(nil)
	for until := time.Now().Add(macvtapWait); ; time.Sleep(5 * time.Millisecond) {
		fd, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err == nil || !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EACCES) || time.Now().After(until) {
			break
		}
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, fmt.Errorf("%s: %w: the device of %s is not there; /dev must be a devtmpfs, as it is outside containers", path, err, la.Name)
	case err != nil:
		return nil, needAdmin("open "+path, err)
	}
	// Links of other namespaces have the same indices and the same names
	// for their devices.
	req, err := unix.NewIfreq("")
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.TUNGETIFF, req)
	}
	if err == nil && req.Name() != la.Name {
		err = fmt.Errorf("it belongs to %s, of another network namespace", req.Name())
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("%s of %s: %w", path, la.Name, err)
	}
	return &Tap{Name: la.Name, File: os.NewFile(uintptr(fd), path)}, nil
}

// freeIndex is an index for a macvtap under which no device file exists: links
// of all namespaces share /dev.
func freeIndex() int {
	used := map[string]bool{}
	entries, _ := os.ReadDir("/dev")
	for _, e := range entries {
		used[e.Name()] = true
	}
	links, _ := netlink.LinkList()
	highest := 0
	for _, l := range links {
		highest = max(highest, l.Attrs().Index)
	}
	for i := highest + 1; ; i++ {
		if !used["tap"+strconv.Itoa(i)] {
			return i
		}
	}
}
