package lan

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"strings"
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
	tap.File.Close()

	if _, err := s.Tap(guestMAC); err == nil || !strings.Contains(err.Error(), "has a guest already") {
		t.Errorf("a second guest of the same address: %v", err)
	}
	if err := s.Unplug(macvtapName(guestMAC[:])); err != nil {
		t.Fatal(err)
	}
	if tap, err = s.Tap(guestMAC); err != nil {
		t.Fatal(err)
	}
	tap.File.Close()
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

// A container's macvlan is in its own namespace, where planning does not see it.
func TestUplinkWithMacvlanOfAContainer(t *testing.T) {
	office(t)
	container := nettest.NewHost(t, "container")
	run(t, "ip", strings.Fields("link add link nic0 name mv0 type macvlan mode bridge")...)
	mv0, err := netlink.LinkByName("mv0")
	if err != nil {
		t.Fatal(err)
	}
	var there *os.File
	container.Do(t, func() { there, err = os.Open("/proc/thread-self/ns/net") })
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	if err := netlink.LinkSetNsFd(mv0, int(there.Fd())); err != nil {
		t.Fatal(err)
	}
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
