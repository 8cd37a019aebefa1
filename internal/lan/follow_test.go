package lan

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"

	"github.com/every-channel/ecboot/internal/nettest"
)

// await waits until a state is reached that nothing announces.
func await(t *testing.T, what string, reached func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !reached(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what + " has not happened")
		}
	}
}

func TestRenewedAddressesFollowToTheBridge(t *testing.T) {
	office(t)
	s, err := Open(Config{Uplink: "nic0", NoteDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	// What dhclient's script does when a lease is renewed, and when there is
	// another.
	run(t, "ip", strings.Fields("addr change 10.79.0.2/24 broadcast 10.79.0.255 valid_lft 4242 preferred_lft 4242 dev nic0")...)
	run(t, "ip", strings.Fields("addr add 10.79.0.77/24 dev nic0")...)
	run(t, "ip", strings.Fields("route add 10.88.0.0/16 via 10.79.0.1 dev nic0")...)
	await(t, "the move to the bridge", func() bool {
		have := run(t, "ip", "-4", "addr", "show", "dev", s.Interface())
		routes := run(t, "ip", "route", "show", "10.88.0.0/16")
		return strings.Contains(have, "10.79.0.77/24") && strings.Contains(routes, s.Interface()) && run(t, "ip", "-4", "addr", "show", "dev", "nic0") == ""
	})
	if have := run(t, "ip", "-4", "addr", "show", "dev", s.Interface()); !strings.Contains(have, "valid_lft 424") {
		t.Errorf("the renewed lifetime did not come along: %s", have)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	have := run(t, "ip", "-4", "addr", "show", "dev", "nic0") + run(t, "ip", "route", "show", "dev", "nic0")
	for _, want := range []string{"10.79.0.77/24", "valid_lft 42", "10.88.0.0/16", "default via 10.79.0.1"} {
		if !strings.Contains(have, want) {
			t.Errorf("the NIC lacks %q: %s", want, have)
		}
	}
}

// While a DHCP client's default route is on a port nothing comes back: whether the
// gateway answers there is no question any more.
func TestRenewedRoutesMoveWithoutAsking(t *testing.T) {
	router := office(t)
	s, err := Open(Config{Uplink: "nic0", NoteDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	gateway := netip.MustParseAddr("10.79.0.99")
	var heard *packet.Conn
	router.Do(t, func() {
		link, err := netlink.LinkByName("lan0")
		if err == nil {
			heard, err = listenARP(link.Attrs())
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	defer heard.Close()
	run(t, "ip", strings.Fields("addr add 10.79.0.77/24 dev nic0")...)
	run(t, "ip", strings.Fields("route add default via 10.79.0.99 dev nic0 metric 5")...)
	await(t, "the move to the bridge", func() bool {
		return strings.Contains(run(t, "ip", "route", "show", "default"), "default via 10.79.0.99 dev "+s.Interface())
	})
	// What it was asked is here by now.
	if err := heard.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	for buf := make([]byte, 128); ; {
		n, _, err := heard.ReadFrom(buf)
		if err != nil {
			break
		}
		if n >= 28 && netip.AddrFrom4([4]byte(buf[24:28])) == gateway {
			t.Error("the gateway was asked")
			break
		}
	}
}

// A lease that was renewed is as old as its renewal, not as the first one.
func TestRenewedAddressesComeBackWithALostBridge(t *testing.T) {
	office(t)
	lease := func(verb string) {
		run(t, "ip", "addr", verb, "10.79.0.60/24", "dev", "nic0", "valid_lft", "3600", "preferred_lft", "3600")
	}
	lease("add")
	s, err := Open(Config{Uplink: "nic0", NoteDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const later = 50 * time.Minute
	pass := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		saved := s.made[moveOf(s.made)].Saved
		saved.At = saved.At.Add(-later)
	}
	pass()
	lease("add")
	await(t, "the move to the bridge", func() bool { return run(t, "ip", "-4", "addr", "show", "dev", "nic0") == "" })
	pass()
	run(t, "ip", "link", "del", s.Interface())
	if _, err := s.Mend(); err != nil {
		t.Fatal(err)
	}
	if have := run(t, "ip", "-4", "addr", "show", "dev", s.Interface()); !strings.Contains(have, "10.79.0.60/24") {
		t.Errorf("the bridge has no longer the address: %s", have)
	}
}

// A machine with many containers may change more addresses at once than the
// kernel keeps for somebody who is busy.
func TestFollowingGoesOnAfterAFlood(t *testing.T) {
	office(t)
	nettest.Bridge(t, "br8", "")
	bridge, err := netlink.LinkByName("br8")
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	defer close(stop)
	called, goOn := make(chan struct{}), make(chan struct{})
	if err := followNIC("nic0", stop, func() { called <- struct{}{}; <-goOn }); err != nil {
		t.Fatal(err)
	}
	again := func(what string) {
		t.Helper()
		select {
		case <-called:
		case <-time.After(30 * time.Second):
			t.Fatal("not called after " + what)
		}
	}
	run(t, "ip", "addr", "add", "10.79.0.77/24", "dev", "nic0")
	again("an address was added")
	for i := range 4000 {
		ip := net.IPv4(10, 50, byte(i>>8), byte(i))
		if err := netlink.AddrAdd(bridge, &netlink.Addr{IPNet: netlink.NewIPNet(ip)}); err != nil {
			t.Fatal(err)
		}
	}
	goOn <- struct{}{}
	again("some changes were lost")
	goOn <- struct{}{}
	run(t, "ip", "addr", "add", "10.79.0.78/24", "dev", "nic0")
	again("another address was added")
	goOn <- struct{}{}
}

func TestSilentGatewayPutsEverythingBack(t *testing.T) {
	router := office(t)
	before := network(t)
	moved := false
	dir := t.TempDir()
	s, err := Open(Config{Uplink: "nic0", NoteDir: dir, pause: func() {
		if !moved && strings.Contains(run(t, "ip", "addr", "show", "to", "10.79.0.2"), "ecbr-nic0") {
			moved = true
			router.Run(t, "ip", "addr", "del", "10.79.0.1/24", "dev", "lan0")
		}
	}})
	if err == nil || !strings.Contains(err.Error(), "gateway 10.79.0.1 answered on nic0 and does not") {
		if s != nil {
			s.Close()
		}
		t.Fatalf("got %v", err)
	}
	if diff := cmp.Diff(before, network(t)); diff != "" {
		t.Errorf("the network is not as it was:\n%s", diff)
	}
	if left, _ := filepath.Glob(dir + "/*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestLostBridgePutsEverythingBack(t *testing.T) {
	office(t)
	before := network(t)
	lost := false
	s, err := Open(Config{Uplink: "nic0", NoteDir: t.TempDir(), pause: func() {
		// When the NIC has nothing any more and the routes are still to
		// be made.
		if !lost && run(t, "ip", "-4", "addr", "show", "dev", "nic0") == "" {
			lost = true
			run(t, "ip", "link", "del", "ecbr-nic0")
		}
	}})
	if err == nil {
		s.Close()
		t.Fatal("no error")
	}
	if !lost {
		t.Fatalf("the bridge was not lost: %v", err)
	}
	if diff := cmp.Diff(before, network(t)); diff != "" {
		t.Errorf("%v\nthe network is not as it was:\n%s", err, diff)
	}
}

func TestGatewayThatNeverAnswersIsNoReason(t *testing.T) {
	router := office(t)
	router.Run(t, "ip", "addr", "del", "10.79.0.1/24", "dev", "lan0")
	s, err := Open(Config{Uplink: "nic0", NoteDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestNameServersOfTheLinkComeAlong(t *testing.T) {
	office(t)
	dir := t.TempDir()
	script := `#!/bin/sh
echo "$@" >>` + dir + `/log
test $# = 2 || exit 0
case $1 in
dns) echo "Link 4 ($2): 192.0.2.53 2001:db8::53" ;;
domain) echo "Link 4 ($2): example.net ~." ;;
default-route) echo "Link 4 ($2): yes" ;;
esac
`
	if err := os.WriteFile(filepath.Join(dir, "resolvectl"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	s, err := Open(Config{Name: "x", Uplink: "nic0", NoteDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"dns ecbr-x 192.0.2.53 2001:db8::53\n", "domain ecbr-x example.net ~.\n", "default-route ecbr-x yes\n"} {
		if !strings.Contains(string(log), want) {
			t.Errorf("resolvectl was not called with %q: %s", want, log)
		}
	}
}

// An address that has run out takes along what came with it.
func TestWhatHasRunOutIsNotPutBack(t *testing.T) {
	office(t)
	for _, args := range []string{
		"addr add 10.61.0.60/24 dev nic0 valid_lft 4 preferred_lft 4",
		"route add 10.62.0.0/16 via 10.61.0.1",
		"route add 10.63.0.0/16 via 10.79.0.1 src 10.61.0.60",
	} {
		run(t, "ip", strings.Fields(args)...)
	}
	s, err := Open(Config{Uplink: "nic0", NoteDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	await(t, "the end of the address", func() bool {
		return !strings.Contains(run(t, "ip", "addr", "show", "dev", s.Interface()), "10.61.0.60")
	})
	if mended, err := s.Mend(); len(mended) > 0 || err != nil {
		t.Errorf("mended %q, %v", mended, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if have := run(t, "ip", "route"); !strings.Contains(have, "default via 10.79.0.1 dev nic0") {
		t.Errorf("the routes are %s", have)
	}
}

// A port whose MTU somebody has lowered has no IPv6 any more.
func TestWhatCannotComeBackKeepsNothingElseAway(t *testing.T) {
	office(t)
	dir := t.TempDir()
	s, err := Open(Config{Uplink: "nic0", NoteDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	run(t, "ip", "link", "set", "nic0", "mtu", "1200")
	if err := s.Close(); err == nil || !strings.Contains(err.Error(), "2001:db8:79::2/64") {
		t.Errorf("got %v", err)
	}
	have := run(t, "ip", "addr", "show", "dev", "nic0") + run(t, "ip", "route", "show", "table", "all", "dev", "nic0")
	for _, want := range []string{"10.79.0.2/24", "192.0.2.5/32", "default via 10.79.0.1", "10.81.0.0/16 via 10.79.0.1 table 100"} {
		if !strings.Contains(have, want) {
			t.Errorf("the NIC lacks %q: %s", want, have)
		}
	}
	run(t, "ip", "link", "set", "nic0", "mtu", "1500")
	if err := Sweep(dir); err != nil {
		t.Errorf("once it can: %v", err)
	}
	if have := run(t, "ip", "-6", "addr", "show", "dev", "nic0"); !strings.Contains(have, "2001:db8:79::2/64") {
		t.Errorf("once it can: %s", have)
	}
}
