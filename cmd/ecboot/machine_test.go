package main

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/every-channel/ecboot/dhcpd"
	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/internal/nettest"
	"github.com/every-channel/ecboot/internal/timeline"
)

// What is said of machines while the servers run holds at once.
func TestMachinesAtRunTime(t *testing.T) {
	needImages(t)
	nettest.Need(t, "udhcpc", "curl", "ip")
	nettest.Bridge(t, "br1", "10.79.0.1/24")
	host := nettest.NewHost(t, "node")
	nettest.Connect(t, "br1", host, "eth0")
	const mac = "02:00:00:00:00:07"
	host.Run(t, "ip", "link", "set", "eth0", "address", mac)
	host.Run(t, "ip", "addr", "add", "10.79.0.9/24", "dev", "eth0")

	dir := t.TempDir()
	file := filepath.Join(dir, "ecboot.toml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte("[segment.lan]\nbridge = \"br1\"\naddress = \"10.79.0.1/24\"\n[server]\nstate_dir = \""+dir+"\"\n[profile.rescue]\ncmdline = \"rescue\"\n"+text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("")
	s := start(t, "serve", "--config", file)
	s.until(t, "to 0 declared machines only")
	script := func(want string) {
		t.Helper()
		if got := host.Run(t, "curl", "-sf", "http://10.79.0.1/ipxe/"+mac); !strings.Contains(got, want) {
			t.Errorf("the script does not say %q:\n%s", want, got)
		}
	}
	verb := func(code int, args []string, want ...string) {
		t.Helper()
		ecboot(t, append([]string{"--config", file}, args...)...).want(t, code, want...)
	}

	script("no profile for " + mac)
	verb(0, []string{"machine", "list"}, mac) // a stranger that has asked
	verb(0, []string{"machine", "set", mac, "name=node7", "address=10.79.0.7"})
	script("profile default for " + mac)
	host.Run(t, "udhcpc", "-n", "-q", "-f", "-i", "eth0", "-s", "/bin/true")
	verb(0, []string{"lease", "show", "node7"}, "10.79.0.7", mac, "bound")
	verb(0, []string{"machine", "show", "node7"}, "10.79.0.7", "set", "name=node7", "os.ack")

	// One time, then what it boots otherwise: the kernel's transfer counts.
	verb(0, []string{"machine", "next", "NODE7", "rescue"})
	verb(0, []string{"machine", "list"}, "rescue (next time)")
	script("profile rescue for " + mac)
	host.Run(t, "curl", "-sfo", "/dev/null", "http://10.79.0.1/profile/rescue/kernel")
	s.until(t, mac+" kernel")
	eventually(t, func() bool {
		return strings.Contains(host.Run(t, "curl", "-sf", "http://10.79.0.1/ipxe/"+mac), "profile default for")
	})

	// Once and never again.
	verb(0, []string{"machine", "set", mac, "next=once"})
	script("profile default for " + mac)
	host.Run(t, "curl", "-sfo", "/dev/null", "http://10.79.0.1/profile/default/kernel")
	eventually(t, func() bool {
		return strings.Contains(host.Run(t, "curl", "-sf", "http://10.79.0.1/ipxe/"+mac), "local disk")
	})
	verb(0, []string{"machine", "next", "node7"})
	script("profile default for " + mac)

	verb(2, []string{"machine", "set", mac, "profile=gone"}, `there is no profile "gone"`)
	verb(0, []string{"machine", "next", mac, "rescue"})
	verb(2, []string{"machine", "set", mac, "profile=gone"}, `there is no profile "gone"`) // also when it would not matter yet
	verb(0, []string{"machine", "next", mac, "--clear"})
	verb(2, []string{"machine", "set", mac, "address=10.79.0.1"}, "servers' own address")
	verb(2, []string{"machine", "set", mac, "colour=red"}, `"colour" is no key`)
	verb(2, []string{"machine", "set", mac, "name"}, "is not KEY=VALUE")
	verb(2, []string{"machine", "next", mac, "gone"}, "there is no profile")
	verb(2, []string{"machine", "next", "52:54:00:00:00:01"}, "which profile?")
	verb(2, []string{"machine", "set", "a.b", "name=x"}, "neither a MAC address")
	verb(1, []string{"machine", "show", "nobody"}, "no machine nobody")
	verb(2, []string{"machine", "wake", "nobody"}, "MAC address of nobody is not known")
	verb(0, []string{"machine", "wake", "node7"})

	// The file, read again: good, wrong, and never half.
	write("[[machine]]\nmac = \"" + mac + "\"\nprofile = \"rescue\"\n")
	s.cmd.Process.Signal(syscall.SIGHUP)
	s.until(t, "was read again")
	script("profile rescue for " + mac)
	write("[[machine]]\nmac = \"" + mac + "\"\nprofile = \"gone\"\n")
	s.cmd.Process.Signal(syscall.SIGHUP)
	s.until(t, "there is no profile")
	script("profile rescue for " + mac)
	write("")
	s.cmd.Process.Signal(syscall.SIGHUP)
	s.until(t, "was read again")
	script("profile default for " + mac)

	verb(0, []string{"lease", "release", "10.79.0.7"}, "released 10.79.0.7")
	verb(0, []string{"lease", "show", mac}, "released")
	verb(1, []string{"lease", "release", "10.79.0.99"}, "no lease of 10.79.0.99")
	verb(0, []string{"machine", "forget", mac})
	script("no profile for " + mac)
	verb(2, []string{"machine", "forget", mac}, "nothing was said")

	s.cmd.Process.Signal(syscall.SIGTERM)
	if code := s.end(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	// Without a server the lease file itself is changed.
	verb(0, []string{"lease", "release", mac})
	verb(0, []string{"machine", "set", mac, "name=node8"})
	verb(0, []string{"machine", "list"}, "node8")
}

// Guests are machines that are declared, by their own names or as the network
// knows them. A name that nobody has is for a machine to come.
func TestGuestsAsMachines(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "ecboot.toml")
	text := "[segment.lab]\nbridge = \"br0\"\naddress = \"10.79.0.1/24\"\n[server]\nstate_dir = \"" + dir + "\"\n[profile.rescue]\n[profile.www]\n" +
		"[guest.web]\nbackend = \"qemu\"\nnode_name = \"www1\"\nprofile = \"www\"\n[[guest.web.nic]]\nsegment = \"lab\"\nmac = \"02:00:00:00:00:07\"\n" +
		"[guest.vm]\nbackend = \"microvm\"\nnode_name = \"vm1\"\n[[guest.vm.nic]]\nsegment = \"lab\"\n"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	verb := func(code int, args []string, want ...string) result {
		t.Helper()
		r := ecboot(t, append([]string{"--config", file, "machine"}, args...)...)
		r.want(t, code, want...)
		return r
	}
	verb(0, []string{"list"}, "www1  02:00:00:00:00:07  -        -        -         www", "vm1   02:01:27:")
	for _, name := range []string{"web", "WWW1", "02:00:00:00:00:07"} {
		if r := verb(0, []string{"next", name, "rescue"}); r.stderr != "" {
			t.Errorf("%s: %s", name, r.stderr)
		}
		verb(0, []string{"show", name}, "www1", "02:00:00:00:00:07", "rescue (next time)")
		verb(0, []string{"forget", name})
	}
	if err := os.Mkdir(filepath.Join(dir, "lab"), 0o755); err != nil {
		t.Fatal(err)
	}
	store, err := dhcpd.OpenFileStore(filepath.Join(dir, "lab", leaseFileName), nil)
	if err != nil {
		t.Fatal(err)
	}
	lease := dhcpd.Lease{Addr: netip.MustParseAddr("10.79.0.60"), MAC: boot.MAC{2, 0, 0, 0, 0, 7}, State: dhcpd.Bound, Expires: time.Now().Add(time.Hour)}
	if err := errors.Join(store.Append([]dhcpd.Lease{lease}), store.Close()); err != nil {
		t.Fatal(err)
	}
	ecboot(t, "--config", file, "lease", "show", "www1").want(t, 0, "10.79.0.60")
	verb(2, []string{"next", "vm1", "rescue"}, "guest vm boots nothing from the network: 'ecboot guest edit vm'")
	verb(2, []string{"set", "vm", "profile=rescue"}, "guest vm boots nothing")
	verb(0, []string{"next", "wbe", "rescue"}, "no machine wbe was declared", "'ecboot machine forget wbe'")
	if r := verb(0, []string{"forget", "wbe"}); r.stderr != "" {
		t.Error(r.stderr)
	}
}

// A guest is on a segment when its servers have heard of it, and not because
// there is one.
func TestSegmentOfMachine(t *testing.T) {
	s := &stack{segments: []*segment{{Segment: config.Segment{Name: "lab"}}}}
	mac := boot.MAC{2, 0, 0, 0, 0, 7}
	events := []timeline.Event{{Stage: timeline.Guest}, {Stage: timeline.Start}, {Stage: timeline.Linux}}
	if got := s.machine(mac, events).Segment; got != "" {
		t.Errorf("on %s, which it never asked", got)
	}
	if got := s.machine(mac, append(events, timeline.Event{Stage: timeline.DHCP("os", "discover")})).Segment; got != "lab" {
		t.Errorf("on %q", got)
	}
}

// eventually waits for something that a server does after it has answered. It
// asks again at once: asking takes its time.
func eventually(t *testing.T, done func() bool) {
	t.Helper()
	for range 200 {
		if done() {
			return
		}
	}
	t.Error("it never happened")
}
