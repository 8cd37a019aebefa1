package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/every-channel/ecboot/internal/nettest"
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
	config := filepath.Join(dir, "ecboot.toml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(config, []byte("[segment.lan]\nbridge = \"br1\"\naddress = \"10.79.0.1/24\"\n[server]\nstate_dir = \""+dir+"\"\n[profile.rescue]\ncmdline = \"rescue\"\n"+text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("")
	s := start(t, "serve", "--config", config)
	s.until(t, "to 0 declared machines only")
	script := func(want string) {
		t.Helper()
		if got := host.Run(t, "curl", "-sf", "http://10.79.0.1/ipxe/"+mac); !strings.Contains(got, want) {
			t.Errorf("the script does not say %q:\n%s", want, got)
		}
	}
	verb := func(code int, args []string, want ...string) {
		t.Helper()
		ecboot(t, append([]string{"--config", config}, args...)...).want(t, code, want...)
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
