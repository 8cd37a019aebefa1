package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/every-channel/ecboot/images"
	"github.com/every-channel/ecboot/internal/nettest"
)

// serveConfig writes a configuration that serves every machine on a bridge.
func serveConfig(t *testing.T, bridge string) (path string) {
	t.Helper()
	dir := t.TempDir()
	path = filepath.Join(dir, "ecboot.toml")
	text := fmt.Sprintf("[segment.lan]\nbridge = %q\naddress = \"10.78.0.1/24\"\nunknown = \"boot\"\n\n[server]\nstate_dir = %q\nhttps_port = 443\n\n"+
		"[[machine]]\nmac = \"02:00:00:00:00:07\"\nname = \"node7\"\naddress = \"10.78.0.7\"\n", bridge, dir)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func needImages(t *testing.T) {
	t.Helper()
	nettest.NeedRoot(t)
	if _, err := images.Default(); err != nil {
		t.Skip(err)
	}
}

func TestServeABridge(t *testing.T) {
	needImages(t)
	nettest.Need(t, "udhcpc", "curl", "ip")
	nettest.Bridge(t, "br0", "10.78.0.1/24")
	host := nettest.NewHost(t, "node")
	nettest.Connect(t, "br0", host, "eth0")
	host.Run(t, "ip", "link", "set", "eth0", "address", "02:00:00:00:00:07")
	config := serveConfig(t, "br0")

	s := start(t, "serve", "--config", config)
	s.until(t, "serving 10.78.0.1/24 on br0")
	host.Run(t, "udhcpc", "-n", "-q", "-f", "-i", "eth0", "-s", "/bin/true")
	s.until(t, "02:00:00:00:00:07 os.ack")
	host.Run(t, "ip", "addr", "add", "10.78.0.7/24", "dev", "eth0")
	if script := host.Run(t, "curl", "-sf", "http://10.78.0.1/ipxe/02:00:00:00:00:07"); !strings.HasPrefix(script, "#!ipxe") {
		t.Errorf("the script is\n%s", script)
	}
	ca := filepath.Join(filepath.Dir(config), "tls", "ca.crt")
	if script := host.Run(t, "curl", "-sSf", "--cacert", ca, "https://10.78.0.1/ipxe/02:00:00:00:00:07"); !strings.Contains(script, "kernel https://10.78.0.1/") {
		t.Errorf("the script over HTTPS is\n%s", script)
	}
	ecboot(t, "lease", "list", "--config", config).want(t, 0, "lan", "10.78.0.7", "02:00:00:00:00:07", "bound")

	t.Run("a second server is refused", func(t *testing.T) {
		ecboot(t, "serve", "--config", serveConfig(t, "br0")).want(t, exitEnvironment, "67", "is taken", "ss -")
	})
	s.cmd.Process.Signal(syscall.SIGTERM)
	if code := s.end(t); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
}

// Sockets are bound to one link: what takes its place is served as well, with the
// leases of before.
func TestServeALinkThatIsReplaced(t *testing.T) {
	needImages(t)
	nettest.Need(t, "udhcpc", "curl", "ip")
	for _, tt := range []struct {
		name string
		make func(t *testing.T) // the bridge, if it is not ecboot's own
		said string
	}{
		{"its own", func(*testing.T) {}, "bridge br7 made"},
		{"somebody else's", func(t *testing.T) { nettest.Bridge(t, "br7", "10.78.0.1/24") }, "the link br7 is gone"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.make(t)
			s := start(t, "serve", "--config", serveConfig(t, "br7"))
			s.until(t, "serving 10.78.0.1/24 on br7")
			boots := func(name string) (address string) {
				t.Helper()
				host := nettest.NewHost(t, name)
				nettest.Connect(t, "br7", host, "eth0")
				host.Run(t, "ip", "link", "set", "eth0", "address", "02:00:00:00:00:08")
				lease := host.Run(t, "udhcpc", "-n", "-q", "-f", "-i", "eth0", "-s", "/bin/true")
				_, lease, _ = strings.Cut(lease, "lease of ")
				address, _, _ = strings.Cut(lease, " obtained")
				host.Run(t, "ip", "addr", "add", address+"/24", "dev", "eth0")
				host.Run(t, "curl", "-sf", "http://10.78.0.1/ipxe/02:00:00:00:00:08")
				host.Run(t, "curl", "-sf", "tftp://10.78.0.1/undionly.kpxe", "-o", "/dev/null")
				return address
			}
			before := boots("before")
			for range 2 {
				nettest.Remove(t, "br7")
				s.until(t, tt.said)
				tt.make(t)
				s.until(t, "was replaced by another one, and is served")
			}
			if after := boots("after"); after != before || after == "" {
				t.Errorf("the address was %q and is %q", before, after)
			}
			s.cmd.Process.Signal(syscall.SIGTERM)
			if code := s.end(t); code != 0 {
				t.Errorf("exit code %d after SIGTERM", code)
			}
		})
	}
}

// What is wrong with the machine must be said so that it can be mended, and
// leave nothing half made.
func TestEnvironmentInTheWay(t *testing.T) {
	needImages(t)
	nettest.Need(t, "setpriv", "mount")
	host := nettest.NewHost(t, "bad")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The test binary must be in reach of users without rights.
	bin := filepath.Join("/run", "ecboot.test")
	host.Run(t, "cp", exe, bin)
	run := func(t *testing.T, script string) result {
		t.Helper()
		cmd := host.Command(context.Background(), "env", mainVar+"=1", "HOME=/run/home", "sh", "-c", script)
		return resultOf(t, cmd)
	}
	t.Run("full disk", func(t *testing.T) {
		host.Run(t, "mkdir", "-p", "/var/cache/ecboot")
		host.Run(t, "mount", "-t", "tmpfs", "-o", "size=1m", "none", "/var/cache/ecboot")
		run(t, bin+" run").want(t, exitEnvironment, "no space left on device", "/var/cache/ecboot")
		left := strings.TrimSpace(host.Run(t, "find", "/var/cache/ecboot", "-type", "f"))
		if strings.Contains(left, "vmlinuz") {
			t.Errorf("half made: %s", left)
		}
		host.Run(t, "umount", "/var/cache/ecboot")
	})
	// Which device nodes a user may open differs from machine to machine.
	device := func(t *testing.T, mode string) {
		host.Run(t, "sh", "-c", "rm -f /run/tun && mknod -m "+mode+" /run/tun c 10 200 && mount --bind /run/tun /dev/net/tun")
		t.Cleanup(func() { host.Run(t, "umount", "/dev/net/tun") })
		host.Run(t, "sh", "-c", "mkdir -p /run/home && chown 65534 /run/home")
	}
	const asNobody = "setpriv --reuid 65534 --regid 65534 --clear-groups "
	t.Run("no rights", func(t *testing.T) {
		device(t, "600")
		run(t, asNobody+bin+" run --accel tcg").want(t, exitEnvironment, "/dev/net/tun", "run as root")
	})
	t.Run("without root", func(t *testing.T) {
		nettest.Need(t, "qemu-system-x86_64")
		if out, err := exec.Command("setpriv", "--reuid", "65534", "unshare", "--map-root-user", "--net", "true").CombinedOutput(); err != nil {
			t.Skipf("users may not make namespaces here: %s", out)
		}
		device(t, "666")
		run(t, asNobody+bin+" run --accel tcg --first-stage ipxe --until ready").want(t, 0, "userland")
		// The command that is told for its private segment works.
		run(t, `mkfifo -m 666 /run/home/said
`+asNobody+bin+` serve 2>/run/home/said & exec 3</run/home/said
while read -r line <&3; do case "$line" in *nsenter*) break;; esac; done
`+asNobody+`$(echo "$line" | cut -d "'" -f 2) ip -br link show ecbr0; code=$?
kill $!; wait $!; exit $code`).want(t, 0, "ecbr0")
	})
}

// A second DHCP server that answers everybody harms a network: ecboot looks
// before it becomes one.
func TestBesideAnotherDHCPServer(t *testing.T) {
	needImages(t)
	nettest.Need(t, "dnsmasq")
	t.Parallel()
	network := netip.MustParsePrefix("10.84.0.1/24")
	nettest.Bridge(t, "other0", network.String())
	host := nettest.NewHost(t, "other")
	nettest.Connect(t, "other0", host, "eth0")
	host.ServeDHCP(t, "dnsmasq", "eth0", network)
	mac := strings.Fields(host.Run(t, "cat", "/sys/class/net/eth0/address"))[0]

	dir := t.TempDir()
	file := filepath.Join(dir, "ecboot.toml")
	write := func(line string) {
		t.Helper()
		text := fmt.Sprintf("[segment.lan]\nbridge = \"other0\"\n%s\n[server]\nstate_dir = %q\n", line, dir)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("")
	ecboot(t, "serve", "--config", file).want(t, exitEnvironment, "segment lan: another DHCP server gives addresses on other0", mac, `mode = "proxy"`, "allow_other_dhcp = true")
	ecboot(t, "run", "--bridge", "other0", "--config", file).want(t, exitEnvironment, mac)
	for _, line := range []string{"allow_other_dhcp = true", `mode = "proxy"`} {
		write(line)
		s := start(t, "serve", "--config", file)
		s.until(t, "serving")
		s.cmd.Process.Signal(syscall.SIGTERM)
		if code := s.end(t); code != 0 {
			t.Errorf("%s: exit code %d", line, code)
		}
	}
}
