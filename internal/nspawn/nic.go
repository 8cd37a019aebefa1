package nspawn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The links of a container that has just ended may still be there: the kernel
// removes a network namespace when it finds time.
const (
	busyPatience = 5 * time.Second
	busyPause    = 50 * time.Millisecond
)

// plug makes the link of a NIC in another network namespace, straight away: it
// is never seen in this one. It is patient with what is busy.
func (n NIC) plug(ctx context.Context, in netns) error {
	ctx, cancel := context.WithTimeout(ctx, busyPatience)
	defer cancel()
	for {
		err := n.tryPlug(in)
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EADDRINUSE) && !errors.Is(err, unix.EEXIST) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(busyPause):
		}
	}
}

func (n NIC) tryPlug(in netns) error {
	if n.Parent != "" {
		return n.macvlan(in)
	}
	return n.veth(in)
}

func (n NIC) macvlan(in netns) error {
	parent, err := netlink.LinkByName(n.Parent)
	if err != nil {
		return fmt.Errorf("parent %s of %s: %w", n.Parent, n.name(), err)
	}
	la := netlink.NewLinkAttrs()
	la.Name, la.HardwareAddr, la.ParentIndex, la.Namespace = n.name(), n.MAC, parent.Attrs().Index, netlink.NsFd(in.file.Fd())
	err = netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: la, Mode: netlink.MACVLAN_MODE_BRIDGE})
	what := fmt.Sprintf("make the macvlan %s on %s", n.name(), n.Parent)
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s: %w: something else has %s, such as a bridge; name that bridge instead of the parent", what, err, n.Parent)
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%s: %w: this kernel has no macvlan links: 'modprobe macvlan'", what, err)
	case err != nil:
		return needAdmin(what, err)
	}
	// Nobody would tell why the link does not come up in the container.
	err = in.probe(n.name())
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.EADDRINUSE) {
		err = fmt.Errorf("the address %s is taken on %s, by this host or another guest: %w; give this one another", n.MAC, n.Parent, err)
	} else {
		err = fmt.Errorf("bring %s up: %w", n.name(), err)
	}
	return errors.Join(err, in.remove(n.name()))
}

// veth makes a pair of links, of which the outer one is a port of the bridge.
// They end together.
func (n NIC) veth(in netns) error {
	bridge, err := netlink.LinkByName(n.Bridge)
	if err != nil {
		return fmt.Errorf("bridge %s of %s: %w", n.Bridge, n.name(), err)
	}
	la := netlink.NewLinkAttrs()
	la.Name, la.MTU = portName(n.MAC), bridge.Attrs().MTU // one with a smaller MTU would lower the bridge's
	port := &netlink.Veth{LinkAttrs: la, PeerName: n.name(), PeerHardwareAddr: n.MAC, PeerNamespace: netlink.NsFd(in.file.Fd())}
	err = netlink.LinkAdd(port)
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("the address %s has a guest already: its link %s is there; give this guest another, or 'ip link del %[2]s' if nobody uses it: %w", n.MAC, la.Name, err)
	}
	if err != nil {
		return needAdmin("make the veth pair "+la.Name, err)
	}
	if err := n.join(port, bridge); err != nil {
		return errors.Join(err, netlink.LinkDel(port))
	}
	return nil
}

func (n NIC) join(port, bridge netlink.Link) error {
	name := port.Attrs().Name
	// The host has nothing to say on a guest's port.
	err := os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", name, "disable_ipv6"), []byte("1"), 0o644)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := netlink.LinkSetMaster(port, bridge); err != nil {
		return needAdmin(fmt.Sprintf("put %s into %s", name, n.Bridge), err)
	}
	if err := netlink.LinkSetUp(port); err != nil {
		return needAdmin("bring "+name+" up", err)
	}
	return nil
}

// portName is always 15 bytes long, as long as a name can be.
func portName(mac net.HardwareAddr) string { return fmt.Sprintf("ecv%x", []byte(mac)) }

// netns is the network namespace of a thread.
type netns struct {
	thread *thread
	file   *os.File
}

// probe sees whether a link can come up.
func (in netns) probe(name string) error {
	return in.thread.do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		return netlink.LinkSetDown(link)
	})
}

func (in netns) remove(name string) error {
	return in.thread.do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
}

func needAdmin(what string, err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%s: %w: run as root", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
