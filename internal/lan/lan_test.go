package lan

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/every-channel/ecboot/internal/nettest"
)

func TestMain(m *testing.M) {
	RunWatchdog()
	if os.Getenv(victimVar) != "" {
		beVictim()
		os.Exit(0)
	}
	nettest.Main(m, nettest.Program{Name: "guest", Main: beGuest})
}

var guestMAC = [6]byte{0x52, 0x54, 0, 0x12, 0x34, 0x56}

var private = netip.MustParsePrefix("10.77.0.1/24")

func TestPrivateSegmentComesAndGoes(t *testing.T) {
	nettest.NeedRoot(t)
	s, err := Open(Config{Address: private, NoteDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName(PrivateBridge)
	if err != nil {
		t.Fatal(err)
	}
	if got := link.Attrs().HardwareAddr.String(); got != privateMAC.String() {
		t.Errorf("the bridge's address is %s, want %s", got, privateMAC)
	}
	if have, _ := addresses(link); len(have) != 1 || have[0] != private {
		t.Errorf("the bridge has the addresses %v, want %s", have, private)
	}
	if s.STP() {
		t.Error("STP is on")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wantNoLink(t, PrivateBridge)
}

func TestTapIsAPortUntilItsFileCloses(t *testing.T) {
	nettest.NeedRoot(t)
	if _, err := os.Stat(tunPath); err != nil {
		t.Skip("needs " + tunPath)
	}
	s, err := Open(Config{Address: private, NoteDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	tap, err := s.Tap(guestMAC)
	if err != nil {
		t.Fatal(err)
	}
	port, err := netlink.LinkByName(tap.Name)
	if err != nil {
		t.Fatal(err)
	}
	if port.Attrs().MasterIndex != s.servers().Attrs().Index || port.Attrs().Flags&net.FlagUp == 0 {
		t.Errorf("%s is not an active port of the bridge: %+v", tap.Name, port.Attrs())
	}
	tap.File.Close()
	wantNoLink(t, tap.Name)
}

func TestJoinedBridgeIsLeftAsItWas(t *testing.T) {
	nettest.NeedRoot(t)
	tests := []struct {
		name    string
		has     string
		asked   netip.Prefix
		want    string
		wantErr string
	}{
		{name: "takes the bridge's address", has: "10.1.0.1/16", want: "10.1.0.1/16"},
		{name: "adds the address asked for", asked: private, want: "10.77.0.1/24"},
		{name: "address already there", has: "10.77.0.1/24", asked: private, want: "10.77.0.1/24"},
		{name: "no address at all", wantErr: "has no IPv4 address"},
		{name: "another prefix length", has: "10.77.0.1/16", asked: private, wantErr: "another prefix length"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			nettest.Bridge(t, "br0", tt.has)
			link, _ := netlink.LinkByName("br0")
			before, _ := addresses(link)
			dir := t.TempDir()
			s, err := Open(Config{Bridge: "br0", Address: tt.asked, NoteDir: dir})
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Fatalf("got error %v, want one with %q", err, tt.wantErr)
				}
			} else {
				if err != nil {
					t.Fatal(err)
				}
				if s.Address().String() != tt.want {
					t.Errorf("the servers' address is %s, want %s", s.Address(), tt.want)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}
			if after, _ := addresses(link); len(after) != len(before) {
				t.Errorf("addresses before %v, after %v", before, after)
			}
			if left, _ := filepath.Glob(dir + "/*"); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestJoinRefusesWhatIsNoBridge(t *testing.T) {
	nettest.NeedRoot(t)
	if _, err := Open(Config{Bridge: "lo", Address: private, NoteDir: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "is no bridge") {
		t.Errorf("got %v", err)
	}
}

func TestMissingBridgeIsMade(t *testing.T) {
	nettest.NeedRoot(t)
	nettest.Need(t, "ip")
	dir := t.TempDir()
	s, err := Open(Config{Bridge: "br8", Address: private, NoteDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	out, err := exec.Command("ip", "-d", "link", "show", "br8").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"forward_delay 0 ", "stp_state 0 ", "mcast_snooping 0 ", "link/ether " + stableMAC(machineID(), "br8").String()} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the bridge lacks %q: %s", want, out)
		}
	}
	if s.STP() {
		t.Error("STP is on")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wantNoLink(t, "br8")
	if left, _ := filepath.Glob(dir + "/*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestSpanningTreeIsSeen(t *testing.T) {
	nettest.NeedRoot(t)
	nettest.Need(t, "ip")
	nettest.Bridge(t, "br0", "10.1.0.1/16")
	if out, err := exec.Command("ip", "link", "set", "br0", "type", "bridge", "stp_state", "1").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s, err := Open(Config{Bridge: "br0", NoteDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if !s.STP() {
		t.Error("the bridge's spanning tree is not seen")
	}
}

func wantNoLink(t *testing.T, name string) {
	t.Helper()
	if _, err := netlink.LinkByName(name); !isNotFound(err) {
		t.Errorf("link %s is still there (%v)", name, err)
	}
}

func TestAddressesThatOthersAddedSinceStay(t *testing.T) {
	nettest.NeedRoot(t)
	nettest.Bridge(t, "br7", "")
	const key = "ipv4/conf/br7/promote_secondaries"
	if err := writeSetting(key, "0"); err != nil {
		t.Fatal(err)
	}
	s, err := Open(Config{Bridge: "br7", Address: private, NoteDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	run(t, "ip", "addr", "add", "10.77.0.9/24", "dev", "br7")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	got := run(t, "ip", "addr", "show", "dev", "br7")
	if !strings.Contains(got, "10.77.0.9/24") || strings.Contains(got, private.String()) {
		t.Errorf("the bridge has %s", got)
	}
	if value, _ := readSetting(key); value != "0" {
		t.Errorf("%s is %s", key, value)
	}
}

// Between the look at the network and a change of it somebody else may make the
// same.
func TestWhatOthersWereFasterToMakeStays(t *testing.T) {
	nettest.NeedRoot(t)
	nettest.Bridge(t, "br7", "")
	t.Cleanup(func() { exec.Command("ip", "link", "del", "br8").Run() })
	for what, tt := range map[string]struct {
		cfg  Config
		make string
		show string
	}{
		"a bridge":   {Config{Bridge: "br8", Address: private}, "link add br8 address " + stableMAC(machineID(), "br8").String() + " type bridge", "link show br8"},
		"an address": {Config{Bridge: "br7", Address: private}, "addr add " + private.String() + " dev br7", "addr show to " + private.Addr().String()},
	} {
		t.Run(what, func(t *testing.T) {
			tt.cfg.NoteDir = t.TempDir()
			made := false
			tt.cfg.pause = func() {
				if !made {
					made = true
					run(t, "ip", strings.Fields(tt.make)...)
				}
			}
			s, err := Open(tt.cfg)
			if err == nil {
				s.Close()
			}
			if err == nil || !strings.Contains(err.Error(), "file exists") {
				t.Errorf("got %v", err)
			}
			if got := run(t, "ip", strings.Fields(tt.show)...); got == "" {
				t.Error("it is gone")
			}
			if left, _ := os.ReadDir(tt.cfg.NoteDir); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}
