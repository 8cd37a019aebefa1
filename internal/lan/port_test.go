package lan

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/every-channel/ecboot/internal/nettest"
)

func openParent(t *testing.T, address string) *Segment {
	t.Helper()
	s, err := Open(Config{Parent: "nic0", Address: netip.MustParsePrefix(address), NoteDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestMacvtapCarriesFramesOfItsGuest(t *testing.T) {
	router := office(t)
	before := network(t)
	s := openParent(t, "10.79.0.4/24")
	if s.Interface() != "ecmv-nic0" {
		t.Errorf("the servers are on %s", s.Interface())
	}
	tap, err := s.Tap(guestMAC)
	if err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName(tap.Name)
	if err != nil {
		t.Fatal(err)
	}
	la := link.Attrs()
	if macvtap, ok := link.(*netlink.Macvtap); !ok || macvtap.Mode != netlink.MACVLAN_MODE_BRIDGE || la.Allmulti != 1 || la.HardwareAddr.String() != net.HardwareAddr(guestMAC[:]).String() {
		t.Errorf("the port is %+v", link)
	}
	// The guest asks for the servers, for the router, and for the host
	// itself, which it cannot see.
	guest := netip.MustParseAddr("10.79.0.50")
	for target, want := range map[string]bool{"10.79.0.4": true, "10.79.0.1": true, "10.79.0.2": false} {
		if got := guestAsks(t, tap.File, guest, netip.MustParseAddr(target)); got != want {
			t.Errorf("%s answers: %v, want %v", target, got, want)
		}
	}
	// Who is on the wire finds the servers under their own hardware address.
	router.Run(t, "ping", "-c1", "-W5", "10.79.0.4")
	if have := router.Run(t, "ip", "neigh", "show", "10.79.0.4"); !strings.Contains(have, s.servers().Attrs().HardwareAddr.String()) {
		t.Errorf("the router finds the servers at %s", have)
	}
	if _, err := s.Tap(guestMAC); err == nil || !strings.Contains(err.Error(), "has a guest already") {
		t.Errorf("a second guest of the same address: %v", err)
	}
	// One that ended hard leaves its port to the next.
	tap.File.Close()
	if tap, err = s.Tap(guestMAC); err != nil {
		t.Fatal(err)
	}
	tap.File.Close()
	if err := s.Unplug(tap.Name); err != nil {
		t.Fatal(err)
	}
	wantNoLink(t, tap.Name)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, network(t)); diff != "" {
		t.Errorf("the network is not as it was:\n%s", diff)
	}
}

// guestAsks sends an ARP request out of a guest's port and reports whether it is
// answered. Frames on the file follow a virtio header of ten bytes.
func guestAsks(t *testing.T, tap *os.File, source, target netip.Addr) bool {
	t.Helper()
	const header = 10
	frame := bytes.Repeat([]byte{0xff}, 6)
	frame = append(append(frame, guestMAC[:]...), 0x08, 0x06)
	frame = append(frame, arpRequest(guestMAC[:], source, target)...)
	if _, err := tap.Write(append(make([]byte, header), frame...)); err != nil {
		t.Fatal(err)
	}
	if err := tap.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for buf := make([]byte, 65536); ; {
		n, err := tap.Read(buf)
		if err != nil {
			return false
		}
		b := buf[min(n, header):n]
		if len(b) < 14 || b[12] != 0x08 || b[13] != 0x06 {
			continue
		}
		if from, ok := arpReplyFrom(b[14:]); ok && from == target {
			return true
		}
	}
}

func TestMacvtapOfATakenAddress(t *testing.T) {
	office(t)
	s := openParent(t, "10.79.0.4/24")
	mac := net.HardwareAddr(guestMAC[:]).String()
	for _, args := range []string{"link add other link nic0 address " + mac + " type macvlan mode bridge", "link set other up"} {
		run(t, "ip", strings.Fields(args)...)
	}
	t.Cleanup(func() { run(t, "ip", "link", "del", "other") })
	if _, err := s.Tap(guestMAC); err == nil || !strings.Contains(err.Error(), "is taken on nic0") {
		t.Errorf("got %v", err)
	}
	wantNoLink(t, macvtapName(guestMAC[:]))
}

func TestParentsAddressMovesToTheServers(t *testing.T) {
	router := office(t)
	before := network(t)
	s := openParent(t, "10.79.0.2/24")
	// The router has talked to the NIC's hardware address and must learn the
	// new one.
	router.Run(t, "ping", "-c1", "-W5", "10.79.0.2")
	run(t, "ping", "-c1", "-W5", "10.79.0.1")
	if out := run(t, "ip", "route", "show", "default"); !strings.Contains(out, "dev ecmv-nic0") {
		t.Errorf("the default route is %s", out)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, network(t)); diff != "" {
		t.Errorf("the network is not as it was:\n%s", diff)
	}
	run(t, "ping", "-c1", "-W5", "10.79.0.1")
}

func TestMendMacvtap(t *testing.T) {
	office(t)
	tap, err := Macvtap("nic0", "web", guestMAC)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.File.Close()
	for _, want := range []bool{false, true} {
		if mended, err := MendMacvtap("web"); err != nil || mended != want {
			t.Errorf("mended %t, %v", mended, err)
		}
		run(t, "ip", "link", "set", "web", "down")
	}
	run(t, "ip", "link", "del", "web")
	if _, err := MendMacvtap("web"); err == nil || !strings.Contains(err.Error(), "web is gone, and comes back only when") {
		t.Error(err)
	}
	run(t, "ip", "link", "add", "web", "type", "bridge")
	defer run(t, "ip", "link", "del", "web")
	if _, err := MendMacvtap("web"); err == nil || !strings.Contains(err.Error(), "web is gone: the link of this name is a bridge") {
		t.Error(err)
	}
}

// A container's macvlan is in its own namespace, where planning does not see it.
func TestUplinkWithMacvlanOfAContainer(t *testing.T) {
	office(t)
	container := nettest.NewHost(t, "container")
	run(t, "ip", strings.Fields("link add link nic0 name mv0 type macvlan mode bridge")...)
	giveLink(t, "mv0", container)
	before := network(t)
	dir := t.TempDir()
	s, err := Open(Config{Uplink: "nic0", NoteDir: dir})
	if err == nil {
		s.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "perhaps of a container") {
		t.Errorf("got %v", err)
	}
	if diff := cmp.Diff(before, network(t)); diff != "" {
		t.Errorf("the network is not as it was:\n%s", diff)
	}
}

func TestPortsWithNames(t *testing.T) {
	nettest.NeedRoot(t)
	nettest.Need(t, "ip")
	s, err := Open(Config{Address: private, NoteDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, name := range []string{"a/b", "sixteen-bytes-xx", "ectap%d", ".."} {
		if _, err := s.Port(PortConfig{Name: name}); err == nil {
			t.Errorf("a port was named %q", name)
		}
	}
	port, err := s.Port(PortConfig{Name: "web", MAC: guestMAC})
	if err != nil {
		t.Fatal(err)
	}
	defer port.File.Close()
	// Neither a tap that is used nor one that waits for its next user.
	run(t, "ip", "tuntap", "add", "kept", "mode", "tap")
	t.Cleanup(func() { run(t, "ip", "link", "del", "kept") })
	for _, name := range []string{"web", "kept", "lo"} {
		if _, err := s.Port(PortConfig{Name: name}); err == nil || !strings.Contains(err.Error(), "is there already") {
			t.Errorf("a second %s: %v", name, err)
		}
	}
	for _, harm := range []string{"link set web nomaster", "link set web down", "link del " + PrivateBridge} {
		if !s.Plugged("web") {
			t.Error("the port is not plugged")
		}
		run(t, "ip", strings.Fields(harm)...)
		if s.Plugged("web") {
			t.Errorf("%q is not noticed", harm)
		}
		if _, err := s.Mend(); err != nil {
			t.Error(err)
		}
		if err := s.Replug("web"); err != nil {
			t.Error(err)
		}
	}
	if !s.Plugged("web") {
		t.Error("the port is not plugged")
	}
	if err := s.Unplug("lo"); err == nil {
		t.Error("lo was unplugged")
	}
	for range 2 {
		if err := s.Unplug("web"); err != nil {
			t.Error(err)
		}
	}
	wantNoLink(t, "web")
	if err := s.Replug("web"); err == nil || !strings.Contains(err.Error(), "is gone") {
		t.Errorf("a port that is gone: %v", err)
	}
	nettest.Wire(t, "web", nettest.NewHost(t, "other"), "eth0")
	if err := s.Replug("web"); err == nil || !strings.Contains(err.Error(), "the link of this name is a veth") {
		t.Errorf("a link of somebody else's: %v", err)
	}
	if s.Plugged("web") {
		t.Error("a link of somebody else's was put into the bridge")
	}
}

func TestMacvtapWithoutASegment(t *testing.T) {
	router := office(t)
	before := network(t)
	const name = "vm-525400123456"
	tap, err := Macvtap("nic0", name, guestMAC)
	if err != nil {
		t.Fatal(err)
	}
	if !guestAsks(t, tap.File, netip.MustParseAddr("10.79.0.50"), netip.MustParseAddr("10.79.0.1")) {
		t.Error("the router does not answer")
	}
	if _, err := Macvtap("nic0", name, guestMAC); err == nil || !strings.Contains(err.Error(), "has a guest already: process") {
		t.Errorf("of a guest that runs: %v", err)
	}
	if _, err := Macvtap("nic0", "other", guestMAC); err == nil || !strings.Contains(err.Error(), "is taken on nic0") {
		t.Errorf("of a taken address: %v", err)
	}
	wantNoLink(t, "other")
	if names, err := RemoveUnused(); len(names) > 0 || err != nil {
		t.Errorf("of a guest that runs: %q, %v", names, err)
	}
	tap.File.Close()
	// As after a crash.
	if tap, err = Macvtap("nic0", name, guestMAC); err != nil {
		t.Fatal(err)
	}
	tap.File.Close()
	for parent, want := range map[string]string{"lo": "without Ethernet", "nowhere": "there is no NIC nowhere"} {
		if _, err := Macvtap(parent, "other", guestMACOf(1)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("on %s: %v", parent, err)
		}
	}
	for _, taken := range []string{"nic0", "lo", name} {
		if _, err := Macvtap("nic0", taken, guestMACOf(1)); err == nil || !strings.Contains(err.Error(), "is not this guest's") {
			t.Errorf("named %s: %v", taken, err)
		}
		if taken == name {
			continue
		}
		if err := Remove(taken); err == nil || !strings.Contains(err.Error(), "is no macvtap") {
			t.Errorf("%s was removed: %v", taken, err)
		}
	}
	for range 2 {
		if err := Remove(name); err != nil {
			t.Error(err)
		}
	}
	if tap, err = Macvtap("nic0", name, guestMAC); err != nil {
		t.Fatal(err)
	}
	tap.File.Close()
	run(t, "ip", strings.Fields("link add link nic0 name other type macvtap mode bridge")...)
	if names, err := RemoveUnused(); len(names) != 1 || names[0] != name || err != nil {
		t.Errorf("unused: %q, %v", names, err)
	}
	if err := Remove("other"); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(before, network(t)); diff != "" {
		t.Errorf("the network is not as it was:\n%s", diff)
	}

	s, err := Open(Config{Uplink: "nic0", NoteDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := Macvtap("nic0", name, guestMAC); err == nil || !strings.Contains(err.Error(), `use bridge = "ecbr-nic0"`) {
		t.Errorf("on a port: %v", err)
	}
	router.Run(t, "ping", "-c1", "-W5", "10.79.0.2")
}

// Device files are named by the links' indices, which are the same in several
// namespaces: a file may be that of another link, which may even have the name of
// this one. That one is neither in use by this one's guest nor given to it.
func TestMacvtapOfAnotherNamespaceIsNotThisOne(t *testing.T) {
	for _, name := range []string{"mine", "theirs"} {
		t.Run(name, func(t *testing.T) {
			router := office(t)
			const index = 7777
			router.Run(t, "ip", "link", "add", "link", "lan0", "name", "theirs", "index", strconv.Itoa(index), "type", "macvtap", "mode", "bridge")
			router.Run(t, "ip", "link", "set", "theirs", "up")
			t.Cleanup(func() { router.Run(t, "ip", "link", "del", "theirs") })
			theirs, err := os.OpenFile("/dev/tap"+strconv.Itoa(index), os.O_RDWR|syscall.O_NONBLOCK, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer theirs.Close()
			mine := change{Op: opMacvtap, Link: name, On: "nic0", MAC: net.HardwareAddr(guestMAC[:]).String(), Index: index}
			if err := mine.makeUpper(); err != nil {
				t.Fatal(err)
			}
			if err := InUse(name); err != nil {
				t.Error(err)
			}
			router.Do(t, func() {
				if err := InUse("theirs"); err == nil || !strings.Contains(err.Error(), "has a guest already") {
					t.Errorf("of the link whose file it is: %v", err)
				}
			})
			if err := Remove(name); err != nil {
				t.Fatal(err)
			}
			tap, err := mine.plug(change.makeUpper, func(c change) error { return Remove(c.Link) })
			if err != nil {
				t.Fatal(err)
			}
			defer tap.File.Close()
			if !guestAsks(t, tap.File, netip.MustParseAddr("10.79.0.50"), netip.MustParseAddr("10.79.0.1")) {
				t.Error("the file is not that of a link of this namespace")
			}
			if err := Remove(name); err != nil {
				t.Error(err)
			}
		})
	}
}

// Guests that start at once look for a free index at once.
func TestMacvtapTakesAnotherIndex(t *testing.T) {
	office(t)
	const name = "vm-525400123456"
	taken, err := netlink.LinkByName("nic0")
	if err != nil {
		t.Fatal(err)
	}
	c := change{Op: opMacvtap, Link: name, On: "nic0", MAC: net.HardwareAddr(guestMAC[:]).String(), Index: taken.Attrs().Index}
	if err := c.makeUpper(); err != nil {
		t.Fatal(err)
	}
	if err := c.makeUpper(); !errors.Is(err, syscall.EEXIST) {
		t.Errorf("with a name that is taken: %v", err)
	}
	if err := Remove(name); err != nil {
		t.Error(err)
	}
}

// The servers' macvlan, a guest's macvtap, a container's macvlan and another
// machine on the wire all see one another.
func TestEverybodyOnOneParent(t *testing.T) {
	router := office(t)
	s := openParent(t, "10.79.0.2/24")
	container, guest := nettest.NewHost(t, "container"), nettest.NewHost(t, "guest")
	run(t, "ip", strings.Fields("link add link nic0 name mv-nic0 type macvlan mode bridge")...)
	giveLink(t, "mv-nic0", container)
	container.Run(t, "ip", "addr", "add", "10.79.0.60/24", "dev", "mv-nic0")
	container.Run(t, "ip", "link", "set", "mv-nic0", "up")
	port, err := s.Port(PortConfig{Name: "web", MAC: guestMAC})
	if err != nil {
		t.Fatal(err)
	}
	cmd, err := guest.Self(context.Background(), "guest", net.HardwareAddr(guestMAC[:]).String(), "10.79.0.50/24")
	if err != nil {
		t.Fatal(err)
	}
	life, end, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{port.File, life}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end.Close(); cmd.Wait() })
	life.Close()
	port.File.Close()
	await(t, "the start of the guest", func() bool { return reaches(guest, "10.79.0.2") })

	all := map[string]*nettest.Host{"10.79.0.1": router, "10.79.0.60": container, "10.79.0.50": guest}
	for from, h := range all {
		for target := range all {
			if from != target && !reaches(h, target) {
				t.Errorf("%s does not reach %s", from, target)
			}
		}
		if !reaches(h, "10.79.0.2") {
			t.Errorf("%s does not reach the servers", from)
		}
		run(t, "ping", "-c1", "-W5", "-I", s.Interface(), from)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if !reaches(router, "10.79.0.60") {
		t.Error("the container has lost its network with the segment")
	}
}

// giveLink moves a link to another host.
func giveLink(t *testing.T, name string, to *nettest.Host) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	var there *os.File
	to.Do(t, func() { there, err = os.Open("/proc/thread-self/ns/net") })
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	if err := netlink.LinkSetNsFd(link, int(there.Fd())); err != nil {
		t.Fatal(err)
	}
}

func TestParentOfTwoSegments(t *testing.T) {
	office(t)
	before := network(t)
	const ignore = "ipv4/conf/nic0/arp_ignore"
	dir := t.TempDir()
	var list []*Segment
	for _, address := range []string{"10.77.0.1/24", "10.78.0.1/24"} {
		s, err := Open(Config{Name: "net" + address[3:5], Parent: "nic0", Address: netip.MustParsePrefix(address), NoteDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		list = append(list, s)
	}
	for _, s := range list {
		if value, _ := readSetting(ignore); value != "1" {
			t.Errorf("%s is %s while a segment is open", ignore, value)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(before, network(t)); diff != "" {
		t.Errorf("the network is not as it was:\n%s", diff)
	}
}
