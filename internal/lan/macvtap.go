package lan

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Macvtap makes a guest's link on a NIC that need not be of any segment. Nobody
// undoes it: Remove does. What stands under this name from a guest that ended
// hard, with the same address on the same NIC, is replaced.
func Macvtap(parent, name string, mac [6]byte) (*Tap, error) {
	if err := checkLinkName(name); err != nil {
		return nil, fmt.Errorf("macvtap: %w", err)
	}
	h, err := readHost()
	if err != nil {
		return nil, fmt.Errorf("look at the network: %w", err)
	}
	l, ok := h.links[parent]
	if !ok {
		return nil, fmt.Errorf("macvtap: there is no NIC %s: this machine has %s", parent, cmp.Or(h.names(), "none"))
	}
	if err := errors.Join(macvtapObstacles(parent, l, h)...); err != nil {
		return nil, err
	}
	c := change{Op: opMacvtap, Link: name, On: parent, MAC: net.HardwareAddr(mac[:]).String(), Index: freeIndex()}
	if old, ok := h.links[name]; ok {
		if old.kind != "macvtap" || old.lower != parent || old.mac.String() != c.MAC {
			return nil, fmt.Errorf("macvtap %s: a link of this name is there already, a %s with the address %s, and is not this guest's: name another, or 'ip link del %[1]s'", name, old.kind, old.mac)
		}
		if err := InUse(name); err != nil {
			return nil, err
		}
		if err := Remove(name); err != nil {
			return nil, err
		}
	}
	return c.plug(change.makeMarked, func(c change) error { return Remove(c.Link) })
}

// macvtapMark is the alias ('ip link') of links that Macvtap makes.
const macvtapMark = "ecboot guest"

// makeMarked makes a link that RemoveUnused knows again.
func (c change) makeMarked() error {
	if err := c.makeUpper(); err != nil {
		return err
	}
	link, err := netlink.LinkByName(c.Link)
	if err == nil {
		err = netlink.LinkSetAlias(link, macvtapMark)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("alias of %s: %w", c.Link, err), Remove(c.Link))
	}
	return nil
}

// RemoveUnused removes the links that Macvtap has made and no process has open,
// as deaths at the wrong moment leave them, and names them. The caller makes none
// at the same time.
func RemoveUnused() (names []string, err error) {
	links, err := settled(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("look at the network: %w", err)
	}
	var errs []error
	for _, link := range links {
		if la := link.Attrs(); la.Alias == macvtapMark && InUse(la.Name) == nil {
			names, errs = append(names, la.Name), append(errs, Remove(la.Name))
		}
	}
	return names, errors.Join(errs...)
}

// Remove removes a macvtap. One that is not there is fine; any other kind of link
// stays.
func Remove(name string) error {
	link, err := netlink.LinkByName(name)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if link.Type() != "macvtap" {
		return fmt.Errorf("%s is no macvtap but a %s link, and stays", name, link.Type())
	}
	return removeLink(link)
}

// macvtap makes a guest's link on the parent.
func (s *Segment) macvtap(cfg PortConfig) (*Tap, error) {
	mac := net.HardwareAddr(cfg.MAC[:])
	name := cmp.Or(cfg.Name, macvtapName(mac))
	c := change{Op: opMacvtap, Link: name, On: s.opened.Parent, MAC: mac.String(), Index: freeIndex()}
	// What a guest that ended hard has left is replaced.
	if err := InUse(name); err != nil {
		return nil, err
	}
	if err := s.undo(c); err != nil {
		return nil, err
	}
	if link, err := netlink.LinkByName(name); err == nil {
		return nil, fmt.Errorf("port %s: a link of this name is there already, a %s with the address %s, and is not of this segment: name another, or 'ip link del %[1]s'", name, link.Type(), link.Attrs().HardwareAddr)
	}
	return c.plug(func(c change) error {
		if err := s.change(c); err != nil {
			return errors.Join(err, s.undo(c))
		}
		return nil
	}, s.undo)
}

// plug makes a macvtap by do and opens it. If that fails, what do has made is
// undone; what do has not, it undoes itself.
func (c change) plug(do, undo func(change) error) (*Tap, error) {
	for try := 0; ; try++ {
		if err := do(c); err != nil {
			return nil, err
		}
		tap, err := c.openMacvtap()
		if err == nil {
			return tap, nil
		}
		undone := undo(c)
		if undone != nil || !errors.Is(err, errNotItsFile) || try == indexTries {
			return nil, errors.Join(err, undone)
		}
		c.Index = freeIndex() // another namespace was faster to take it
	}
}

// errNotItsFile says that the device file with a link's index is that of a link of
// another network namespace.
var errNotItsFile = errors.New("it belongs to a link of another network namespace")

// InUse says which process has the file of a macvtap of this name; nil: none.
func InUse(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil
	}
	// By its last part: a process may see another /dev.
	device := filepath.Base(devicePath(link))
	files, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, file := range files {
		if to, err := os.Readlink(file); err == nil && filepath.Base(to) == device {
			parts := strings.Split(file, "/") // the empty one, proc, PID, fd, number
			pid, _ := strconv.Atoi(parts[2])
			fd, _ := strconv.Atoi(parts[4])
			// A link of another namespace may have the same index, and so a
			// device of the same name.
			if theirs, err := tapOf(pid, fd); err == nil && !theirs.is(link) {
				continue
			}
			return fmt.Errorf("%s with the address %s has a guest already: process %s", name, link.Attrs().HardwareAddr, process{PID: pid})
		}
	}
	return nil
}

// tapID tells links apart that have the same index in several namespaces. Their
// names are not enough: a configuration may be the same in each of them.
type tapID struct{ name, mac string }

func (id tapID) is(link netlink.Link) bool {
	return id == tapID{link.Attrs().Name, link.Attrs().HardwareAddr.String()}
}

// tapOf is the link whose file a process has open.
func tapOf(pid, fd int) (tapID, error) {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return tapID{}, err
	}
	defer unix.Close(process)
	file, err := unix.PidfdGetfd(process, fd, 0)
	if err != nil {
		return tapID{}, err
	}
	defer unix.Close(file)
	return tapOfFile(file)
}

func tapOfFile(fd int) (tapID, error) {
	req := struct {
		name [unix.IFNAMSIZ]byte
		mac  unix.RawSockaddr
		_    [8]byte // the rest of a struct ifreq
	}{}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCGIFHWADDR, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return tapID{}, errno
	}
	mac := make(net.HardwareAddr, 6)
	for i := range mac {
		mac[i] = byte(req.mac.Data[i])
	}
	return tapID{unix.ByteSliceToString(req.name[:]), mac.String()}, nil
}

func devicePath(link netlink.Link) string { return "/dev/tap" + strconv.Itoa(link.Attrs().Index) }

// macvtapName is always 15 bytes long, as long as a name can be.
func macvtapName(mac net.HardwareAddr) string { return fmt.Sprintf("ect%x", []byte(mac)) }

// openMacvtap brings a macvtap that was made up, and opens it.
func (c change) openMacvtap() (*Tap, error) {
	link, err := netlink.LinkByName(c.Link)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.Link, err)
	}
	err = startMacvtap(link)
	if errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("the address %s is taken on %s, by this host or a guest of somebody else: %w; give this guest another", c.MAC, c.On, err)
	}
	if err != nil {
		return nil, err
	}
	return openMacvtap(link)
}

// MendMacvtap brings up what Macvtap has made, if somebody took it down, and reports
// whether it did. One that is gone does not come back, as with Replug.
func MendMacvtap(name string) (mended bool, err error) {
	port, err := findPort(name)
	switch {
	case err != nil:
		return false, err
	case port.Type() != "macvtap":
		return false, notThePort(port)
	case port.Attrs().Flags&net.FlagUp != 0:
		return false, nil
	}
	return true, startMacvtap(port)
}

func startMacvtap(link netlink.Link) error {
	name := link.Attrs().Name
	if err := noIPv6(name); err != nil {
		return err
	}
	if err := netlink.LinkSetAllmulticastOn(link); err != nil {
		return fmt.Errorf("all multicast on %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return needAdmin("bring "+name+" up", err)
	}
	return nil
}

// macvtapWait is for whoever makes device files: the kernel does so at once,
// udev sets their rights after a while.
const macvtapWait = 5 * time.Second

// openMacvtap opens the file of a macvtap, whose name is made of the link's
// index.
func openMacvtap(link netlink.Link) (*Tap, error) {
	la := link.Attrs()
	path := devicePath(link)
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
	id, err := tapOfFile(fd)
	if err == nil && !id.is(link) {
		err = errNotItsFile
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
	links, _ := settled(netlink.LinkList)
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
