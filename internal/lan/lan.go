// Package lan makes the network segment that guests and servers share: a bridge,
// private by default, and the taps that join guests to it. Whatever it makes on
// a network that was there before it is noted on disk first, so that the next
// start can undo what a killed process left.
package lan

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// PrivateBridge is the bridge of a private segment.
const PrivateBridge = "ecbr0"

// privateMAC is locally administered. A bridge whose address is given keeps it
// when ports come and go; otherwise it would take over a port's.
var privateMAC = net.HardwareAddr{0x02, 0xec, 0xb0, 0x07, 0x00, 0x01}

// Config says which segment to open.
type Config struct {
	// Bridge is an existing bridge to join; empty makes PrivateBridge, which
	// belongs in a namespace of its own (Isolate).
	Bridge string
	// Address is the servers' address and the segment's prefix. With an
	// existing bridge the zero value takes the address that the bridge has,
	// and another address is added while the segment is open.
	Address netip.Prefix
	// NoteDir is an existing directory for the note of what must be undone.
	NoteDir string
}

// Segment is an open network segment.
type Segment struct {
	bridge  netlink.Link
	address netip.Prefix
	undo    []step
	note    string
}

// Open makes or joins the segment. When it fails, nothing that it made is left.
func Open(cfg Config) (*Segment, error) {
	s := &Segment{note: filepath.Join(cfg.NoteDir, noteName), address: cfg.Address}
	var err error
	if cfg.Bridge == "" {
		err = s.make()
	} else {
		err = s.join(cfg.Bridge)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Interface is the name of the bridge.
func (s *Segment) Interface() string { return s.bridge.Attrs().Name }

// Address is the servers' address on the segment, with its prefix length.
func (s *Segment) Address() netip.Prefix { return s.address }

// MTU is the largest IP packet of the segment in bytes.
func (s *Segment) MTU() int { return s.bridge.Attrs().MTU }

// Close undoes what Open did, last first.
func (s *Segment) Close() error { return undoAll(s.note, s.undo) }

func (s *Segment) make() error {
	if !s.address.IsValid() {
		return errors.New("a private segment needs an address, such as 10.77.0.1/24")
	}
	if _, err := netlink.LinkByName(PrivateBridge); err == nil {
		return fmt.Errorf("bridge %s exists already: name it with --bridge to use it, or remove it with 'ip link del %[1]s'", PrivateBridge)
	}
	// Not noted on disk: after this process the namespace is gone too, and a
	// bridge of this name elsewhere would be somebody else's.
	s.undo = append(s.undo, step{Op: opDelLink, Link: PrivateBridge})
	la := netlink.NewLinkAttrs()
	la.Name = PrivateBridge
	la.HardwareAddr = privateMAC
	// Snooping without a querier would lose the multicast that guests wait
	// for; STP (off in a new bridge) would hold their first seconds back.
	snooping := false
	bridge := &netlink.Bridge{LinkAttrs: la, MulticastSnooping: &snooping}
	if err := netlink.LinkAdd(bridge); err != nil {
		return needAdmin("make bridge "+PrivateBridge, err)
	}
	s.bridge = bridge
	if err := writeAttr("/sys/class/net/"+PrivateBridge+"/bridge/forward_delay", "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
		// sysfs shows the namespace of whoever mounted it, so the file
		// may not be there; with STP off the delay has no effect.
		return fmt.Errorf("forward delay of %s: %w", PrivateBridge, err)
	}
	// Nobody else is on the segment yet: no need to wait for duplicate
	// address detection before router solicitations can be answered.
	if err := writeAttr("/proc/sys/net/ipv6/conf/"+PrivateBridge+"/accept_dad", "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("duplicate address detection of %s: %w", PrivateBridge, err)
	}
	if err := s.addAddress(); err != nil {
		return err
	}
	for _, name := range []string{"lo", PrivateBridge} {
		if err := setUp(name); err != nil {
			return err
		}
	}
	s.bridge, _ = netlink.LinkByName(PrivateBridge)
	return nil
}

func (s *Segment) join(name string) error {
	link, err := findBridge(name)
	if err != nil {
		return err
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		return fmt.Errorf("bridge %s is down: 'ip link set %[1]s up'", name)
	}
	s.bridge = link
	have, err := addresses(link)
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", name, err)
	}
	if !s.address.IsValid() {
		if len(have) == 0 {
			return fmt.Errorf("bridge %s has no IPv4 address: give it one, or name the servers' with --address", name)
		}
		s.address = have[0]
		return nil
	}
	for _, a := range have {
		if a == s.address {
			return nil
		}
		if a.Addr() == s.address.Addr() {
			return fmt.Errorf("bridge %s has %s already, with another prefix length than %s", name, a, s.address)
		}
	}
	if err := s.will(step{Op: opDelAddr, Link: name, Addr: s.address.String()}); err != nil {
		return err
	}
	return s.addAddress()
}

// AddressOf returns the first IPv4 address of an existing bridge, the zero
// prefix when it has none.
func AddressOf(bridge string) (netip.Prefix, error) {
	link, err := findBridge(bridge)
	if err != nil {
		return netip.Prefix{}, err
	}
	have, err := addresses(link)
	if err != nil || len(have) == 0 {
		return netip.Prefix{}, err
	}
	return have[0], nil
}

func findBridge(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w; make it with 'ip link add %[1]s type bridge', or leave --bridge out for a private segment", name, err)
	}
	if link.Type() != "bridge" {
		return nil, fmt.Errorf("%s is no bridge but a %s link: make one with 'ip link add br0 type bridge' and put %[1]s into it", name, link.Type())
	}
	return link, nil
}

func (s *Segment) addAddress() error {
	addr, err := netlink.ParseAddr(s.address.String())
	if err != nil {
		return fmt.Errorf("address %s: %w", s.address, err)
	}
	if err := netlink.AddrAdd(s.bridge, addr); err != nil {
		return needAdmin(fmt.Sprintf("add %s to %s", s.address, s.bridge.Attrs().Name), err)
	}
	return nil
}

func addresses(link netlink.Link) ([]netip.Prefix, error) {
	list, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok {
			bits, _ := a.Mask.Size()
			out = append(out, netip.PrefixFrom(ip, bits))
		}
	}
	return out, nil
}

func setUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return needAdmin("bring "+name+" up", err)
	}
	return nil
}

func writeAttr(path, value string) error {
	return os.WriteFile(path, []byte(value), 0o644)
}

// needAdmin adds to a refusal by the kernel what would lift it.
func needAdmin(what string, err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%s: %w: run as root", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// tunPath is the device that taps come from.
const tunPath = "/dev/net/tun"

// Tap is a guest's port on the bridge. It exists as long as a process holds
// File or a copy of it.
type Tap struct {
	Name string
	File *os.File
}

// Tap makes a port for the guest that has this address. The file is for QEMU's
// netdev "tap,fd="; close it here once QEMU has it.
func (s *Segment) Tap(mac [6]byte) (*Tap, error) {
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
	// The host itself has nothing to say on a guest's port.
	if err := writeAttr("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", "1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("IPv6 off on %s: %w", name, err)
	}
	if mtu := s.MTU(); mtu != link.Attrs().MTU {
		// A port with a smaller MTU would lower the whole bridge's.
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return fmt.Errorf("MTU %d on %s: %w", mtu, name, err)
		}
	}
	if err := netlink.LinkSetMaster(link, s.bridge); err != nil {
		return needAdmin(fmt.Sprintf("put %s into %s", name, s.Interface()), err)
	}
	return setUp(name)
}

func tunError(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%s: %w: load it with 'modprobe tun'", tunPath, err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("%s: %w: run as root, or 'chmod 666 %[1]s'", tunPath, err)
	}
	return fmt.Errorf("%s: %w", tunPath, err)
}

// STP reports whether spanning tree is on, which keeps a new port silent for
// its forward delay and so loses the first requests of a guest.
func (s *Segment) STP() bool {
	b, err := os.ReadFile("/sys/class/net/" + s.Interface() + "/bridge/stp_state")
	return err == nil && strings.TrimSpace(string(b)) != "0"
}
