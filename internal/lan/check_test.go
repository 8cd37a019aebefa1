package lan

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/internal/nettest"
)

// plannedOn is what plans see of a host.
func plannedOn(h host) string {
	var lines []string
	for name, l := range h.links {
		var addresses []string
		for _, a := range l.addresses {
			addresses = append(addresses, a.String())
		}
		slices.Sort(addresses)
		lines = append(lines, fmt.Sprintf("%s: %s %s up=%t carrier=%t master=%s lower=%s vlan=%d %v\n", name, l.kind, l.mac, l.up, l.carrier, l.master, l.lower, l.vlan, addresses))
	}
	slices.Sort(lines)
	return strings.Join(lines, "") + fmt.Sprintln("exits", h.exits)
}

// notesOf is all that lies in a directory of notes.
func notesOf(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&all, "%s: %s\n", path, text)
	}
	return all.String()
}

// What is open is not in the way of a successor, whether that goes on with it or
// wants another network.
func TestCheckOfWhatIsOpen(t *testing.T) {
	own := netip.MustParsePrefix("10.79.0.2/24")
	bridge, parent := Config{Uplink: "nic0"}, Config{Parent: "nic0", Address: own}
	for _, tt := range []struct {
		name       string
		cfg, other Config
		beside     string // in the way of the other where both are to be
	}{
		{"uplink", Config{Uplink: "nic0"}, parent, "nic0 is a port of bridge ecbr-office"},
		{"uplink and a bridge that was there", Config{Bridge: "br0", Uplink: "nic0"}, parent, "nic0 is a port of bridge br0"},
		{"uplink and VLAN", Config{Uplink: "nic0", VLAN: 5, Address: private}, parent, ""},
		{"bridge and NAT", Config{Bridge: "br9", Address: private, NAT: true}, parent, ""},
		{"parent", Config{Parent: "nic0", Address: private}, bridge, "nic0 carries ecmv-office"},
		{"parent and its address", parent, bridge, "nic0 carries ecmv-office"},
		{"parent and VLAN", Config{Parent: "nic0", VLAN: 5, Address: private}, bridge, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			router := office(t)
			nettest.Bridge(t, "br0", "10.1.0.1/16")
			// Otherwise it would take over a port's address, and count seconds.
			run(t, "ip", "link", "set", "br0", "address", "02:00:00:00:00:b0", "type", "bridge", "forward_delay", "0")
			nettest.Connect(t, "br0", router, "lan1")
			await(t, "the bridge is up", func() bool { return strings.Contains(run(t, "ip", "link", "show", "br0"), "state UP") })
			h, err := readHost()
			if err != nil {
				t.Fatal(err)
			}
			before := plannedOn(h)
			tt.cfg.Name, tt.cfg.NoteDir = "office", t.TempDir()
			tt.other.NoteDir = tt.cfg.NoteDir
			s, err := Open(tt.cfg)
			if tt.cfg.VLAN != 0 && errors.Is(err, unix.EOPNOTSUPP) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			opened := network(t) + notesOf(t, tt.cfg.NoteDir)
			check := func(cfg Config, segment string, others ...string) string {
				t.Helper()
				cfg.Name = segment
				obstacles, warnings, err := Check(cfg, others...)
				if err != nil {
					t.Fatal(err)
				}
				if segment == "office" && cfg.same(tt.cfg) && !slices.Equal(warnings, s.Warnings()) {
					t.Errorf("warnings %q, want %q", warnings, s.Warnings())
				}
				return strings.Join(obstacles, "\n")
			}
			if got := check(tt.cfg, "office"); got != "" {
				t.Errorf("what is open: %s", got)
			}
			if got := check(tt.other, "office"); got != "" {
				t.Errorf("another network: %s", got)
			}
			if got := check(tt.other, "other"); got != "" {
				t.Errorf("another segment: %s", got)
			}
			if got := check(tt.other, "other", "office"); !strings.Contains(got, tt.beside) || tt.beside == "" && got != "" {
				t.Errorf("another segment beside it: %q, want %q", got, tt.beside)
			}
			if h, err = readHost(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, plannedOn(h.without(s.made))); diff != "" {
				t.Errorf("without the segment the host is not as before:\n%s", diff)
			}
			if diff := cmp.Diff(opened, network(t)+notesOf(t, tt.cfg.NoteDir)); diff != "" {
				t.Errorf("looking has changed something:\n%s", diff)
			}

			guest, _ := startProcess(t)
			if err := s.Hold(guest); err != nil {
				t.Fatal(err)
			}
			if got := check(tt.other, "office"); !strings.Contains(got, "its network is to change, and guests that run use it as it is") {
				t.Errorf("another network than what a guest holds: %q", got)
			}
			if got := check(tt.other, "other"); !strings.Contains(got, tt.beside) {
				t.Errorf("another segment than what a guest holds: %q, want %q", got, tt.beside)
			}
		})
	}
}

func TestCheckLeavesOldNotesAlone(t *testing.T) {
	nettest.NeedRoot(t)
	cfg := Config{Name: "old", Bridge: "br9", Address: private, NoteDir: t.TempDir()}
	old := note{Boot: "an earlier start", Made: []change{{Op: opEnslave, Link: "lo", On: "br9"}}}
	if err := old.write(noteFile(cfg.NoteDir, cfg.Name)); err != nil {
		t.Fatal(err)
	}
	before := notesOf(t, cfg.NoteDir)
	if obstacles, warnings, err := Check(cfg); obstacles != nil || warnings != nil || err != nil {
		t.Errorf("obstacles %q, warnings %q, error %v", obstacles, warnings, err)
	}
	if diff := cmp.Diff(before, notesOf(t, cfg.NoteDir)); diff != "" {
		t.Errorf("looking has changed the notes:\n%s", diff)
	}
}

// The kernel of a test may have no VLANs.
func TestHostWithoutAVLAN(t *testing.T) {
	h := machine()
	before := plannedOn(h)
	h.links["ec7-eth0"] = with(nic(), func(l *linkState) { l.kind, l.lower, l.vlan = "vlan", "eth0", 7 })
	h = h.without([]change{{Op: opVLAN, Link: "ec7-eth0", On: "eth0", VLAN: 7}, {Op: opVLAN, Link: "eth2", On: "eth0", VLAN: 8}})
	if diff := cmp.Diff(before, plannedOn(h)); diff != "" {
		t.Error(diff)
	}
}
