package debtest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/dist"
	"github.com/every-channel/ecboot/internal/nettest"
	"github.com/every-channel/ecboot/internal/nspawn"
	"github.com/every-channel/ecboot/internal/systemdtest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// base is Debian 12 with systemd and nothing else, made by 'make deps-test'.
const base = "testdata/debian12.tar"

// TestPackage lives through the life of a package.
func TestPackage(t *testing.T) {
	t.Parallel()
	nettest.NeedRoot(t)
	nettest.Need(t, "make", "go", "tar", "dpkg-deb", "unshare")
	if _, err := os.Stat(base); err != nil {
		t.Skip("needs a Debian 12: run make deps-test")
	}
	deb := build(t)
	t.Run("chroot", func(t *testing.T) {
		t.Parallel()
		inChroot(newChroot(t, deb))
	})
	t.Run("systemd", func(t *testing.T) {
		t.Parallel()
		nettest.Need(t, nspawn.Program)
		underSystemd(newChroot(t, deb))
	})
}

// build makes the package twice and wants the same one.
func build(t *testing.T) []byte {
	t.Helper()
	var last []byte
	file := filepath.Join(t.TempDir(), "ecboot.deb")
	for range 2 {
		if out, err := exec.Command("make", "-C", "../..", "deb", "DEB="+file).CombinedOutput(); err != nil {
			t.Fatalf("make deb: %v\n%s", err, out)
		}
		deb, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if last != nil && !bytes.Equal(deb, last) {
			t.Error("the same commit gives two packages")
		}
		last = deb
	}
	return last
}

// chroot is a Debian of the test's own: a directory, and namespaces for each
// command in it, so that nothing is mounted when it has ended.
type chroot struct {
	t   *testing.T
	dir string
}

// newChroot is one with the package in /root.
func newChroot(t *testing.T, deb []byte) chroot {
	t.Helper()
	c := chroot{t, t.TempDir()}
	if out, err := exec.Command("tar", "-C", c.dir, "--numeric-owner", "-xpf", base).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	c.write("/root/ecboot.deb", string(deb))
	return c
}

func (c chroot) path(name string) string { return filepath.Join(c.dir, name) }

func (c chroot) write(name, text string) {
	c.t.Helper()
	if err := os.MkdirAll(filepath.Dir(c.path(name)), 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(c.path(name), []byte(text), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

func (c chroot) has(name, text string) {
	c.t.Helper()
	if data, err := os.ReadFile(c.path(name)); err != nil || string(data) != text {
		c.t.Errorf("%s is %q, want %q: %v", name, data, text, err)
	}
}

// must runs a command that is to succeed and to say these things.
func (c chroot) must(want []string, command ...string) {
	c.t.Helper()
	c.wants(0, want, command...)
}

// wants runs a command that is to end with this exit code.
func (c chroot) wants(code int, want []string, command ...string) {
	c.t.Helper()
	args := append([]string{"--mount", "--pid", "--fork", "--kill-child", "--root", c.dir, "--wd", "/", "--mount-proc"}, command...)
	cmd := exec.Command("unshare", args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != code {
		c.t.Fatalf("%q: %v, want exit code %d:\n%s", command, err, code, out)
	}
	for _, w := range want {
		if !strings.Contains(string(out), w) {
			c.t.Errorf("%q does not say %q:\n%s", command, w, out)
		}
	}
}

// traces are the files whose names speak of ecboot, but for dpkg's and apt's
// books and what has a "secboot" in it.
func (c chroot) traces() (names []string) {
	c.t.Helper()
	passed := []string{"/proc", "/root", "/usr/share/OVMF", "/var/lib/dpkg", "/var/lib/apt", "/var/cache/apt", "/var/log"}
	err := filepath.WalkDir(c.dir, func(path string, _ os.DirEntry, err error) error {
		name := strings.TrimPrefix(path, c.dir)
		if slices.Contains(passed, name) {
			return filepath.SkipDir
		}
		if strings.Contains(name, "ecboot") {
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return names
}

// inChroot uses the package where nothing runs.
func inChroot(c chroot) {
	t := c.t
	apt := func(args ...string) []string {
		return append([]string{"apt-get", "-qq", "--no-install-recommends"}, args...)
	}
	c.must([]string{"systemctl enable --now ecboot"}, apt("install", "/root/ecboot.deb")...)
	for _, f := range dist.Files(dist.Prefix) {
		c.has(f.Path, f.Content)
	}
	c.must([]string{"/usr/bin/ecboot"}, "sh", "-c", "command -v ecboot")
	c.must([]string{"ecboot-guest:x:"}, "getent", "passwd", "ecboot-guest")
	c.must([]string{"ecboot:x:"}, "getent", "group", "ecboot")
	c.must([]string{"_ecboot"}, "bash", "-c", ". /usr/share/bash-completion/completions/ecboot && complete -p ecboot")
	c.must([]string{"SYNOPSIS"}, "zgrep", "SYNOPSIS", "/usr/share/man/man1/ecboot-run.1.gz")
	c.must(nil, "systemd-analyze", "--man=no", "--generators=no", "verify", "/usr/lib/systemd/system/ecboot.service")

	// Without QEMU it serves, and says what guests need.
	c.must([]string{"/etc/ecboot/ecboot.toml: no mistakes"}, "ecboot", "config", "check")
	c.wants(5, []string{"qemu-system-x86_64 is not in PATH", "apt install qemu-system-x86", "/dev/net/tun is not there"}, "ecboot", "doctor")
	c.wants(5, []string{"qemu-system-x86"}, "ecboot", "run", "--dry-run")

	c.must(nil, apt("install", "qemu-system-x86", "qemu-utils", "ovmf")...)
	if err := os.MkdirAll(c.path("/dev/net"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(c.path("/dev/net/tun"), unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))); err != nil {
		t.Fatal(err)
	}
	c.must([]string{"/usr/share/OVMF", "fail: 0"}, "ecboot", "doctor")
	c.must([]string{"qemu-system-x86_64 ", "-machine q35"}, "ecboot", "run", "--dry-run")

	// An upgrade keeps what was changed.
	const mine = `[segment.lab]
bridge = "br-lab"
address = "10.77.0.1/24"
[guest.web]
backend = "qemu"
[[guest.web.nic]]
segment = "lab"
[[guest.web.disk]]
size = "1G"
`
	c.write("/etc/ecboot/ecboot.toml", mine)
	c.must(nil, apt("install", "--reinstall", "/root/ecboot.deb")...)
	c.has("/etc/ecboot/ecboot.toml", mine)
	c.must([]string{"# web", "qemu-system-x86_64 ", "-sandbox on"}, "ecboot", "up", "--dry-run")

	// State is nobody's but the owner's.
	const disk = "/var/lib/ecboot/guests/web/disk0.qcow2"
	c.write(disk, "data")
	c.must([]string{"/var/lib/ecboot is kept"}, apt("purge", "ecboot")...)
	c.has(disk, "data")
	want := []string{"/var/lib/ecboot", "/var/lib/ecboot/guests", "/var/lib/ecboot/guests/web", disk}
	if left := c.traces(); !slices.Equal(left, want) {
		t.Errorf("purging leaves %q, want %q", left, want)
	}
}

// underSystemd uses it where systemd does.
func underSystemd(c chroot) {
	const end = "all is well with the service"
	console := systemdtest.Boot(c.t, c.dir, `
export DEBIAN_FRONTEND=noninteractive
apt-get -qq --no-install-recommends install /root/ecboot.deb
test "$(systemctl is-enabled ecboot)" = disabled
test "$(systemctl is-active ecboot)" = inactive
test "$(stat -c %a /run/ecboot)" = 711
systemctl enable --now ecboot
systemctl is-active ecboot
ecboot guest list
systemctl reload ecboot
first=$(systemctl show -p MainPID ecboot)
apt-get -qq install --reinstall /root/ecboot.deb
systemctl is-active ecboot
test "$(systemctl show -p MainPID ecboot)" != "$first"
echo nonsense >>/etc/ecboot/ecboot.toml
apt-get -qq install --reinstall /root/ecboot.deb
test "$(dpkg-query -f '${db:Status-Abbrev}' -W ecboot)" = 'ii '
sed -i '$d' /etc/ecboot/ecboot.toml
systemctl restart ecboot
systemctl is-active ecboot
apt-get -qq purge ecboot
test "$(systemctl is-active ecboot)" = inactive
test ! -e /etc/systemd/system/multi-user.target.wants/ecboot.service
set +x
echo '`+end+`' | tr a-z A-Z
`)
	if !strings.Contains(console, strings.ToUpper(end)) {
		c.t.Errorf("the script did not come to its end:\n%s", console)
	}
}
