package debtest

import (
	"context"
	"crypto/sha256"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/dist"
	"github.com/every-channel/ecboot/internal/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// base is Debian 12 with systemd and nothing else, made by 'make deps-test'.
const base = "testdata/debian12.tar"

// chroot is a Debian of the test's own: a directory, and a name space for each
// command in it, so that nothing is mounted when it has ended.
type chroot struct {
	t   *testing.T
	dir string
}

func newChroot(t *testing.T) chroot {
	t.Helper()
	nettest.NeedRoot(t)
	nettest.Need(t, "make", "go", "tar", "dpkg-deb", "unshare")
	if _, err := os.Stat(base); err != nil {
		t.Skip("needs a Debian 12: run make deps-test")
	}
	c := chroot{t, t.TempDir()}
	if out, err := exec.Command("tar", "-C", c.dir, "--numeric-owner", "-xpf", base).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	return c
}

// run runs a command in it and returns what it said and its exit code.
func (c chroot) run(command ...string) (string, int) {
	c.t.Helper()
	args := append([]string{"--mount", "--pid", "--fork", "--kill-child", "--root", c.dir, "--wd", "/", "--mount-proc"}, command...)
	cmd := exec.CommandContext(context.Background(), "unshare", args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		c.t.Fatalf("%q: %v", command, err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// must runs a command that is to succeed and to say these things.
func (c chroot) must(want []string, command ...string) {
	c.t.Helper()
	c.wants(0, want, command...)
}

func (c chroot) wants(code int, want []string, command ...string) {
	c.t.Helper()
	out, got := c.run(command...)
	if got != code {
		c.t.Fatalf("%q ended with %d, want %d:\n%s", command, got, code, out)
	}
	for _, w := range want {
		if !strings.Contains(out, w) {
			c.t.Errorf("%q does not say %q:\n%s", command, w, out)
		}
	}
}

func (c chroot) path(name string) string { return filepath.Join(c.dir, name) }

// traces are the files whose names speak of ecboot, but for dpkg's and
// apt's books and what has a "secboot" in it.
func (c chroot) traces() (names []string) {
	c.t.Helper()
	books := []string{"/proc", "/root", "/usr/share/OVMF", "/var/lib/dpkg", "/var/lib/apt", "/var/cache/apt", "/var/log"}
	err := filepath.WalkDir(c.dir, func(path string, _ os.DirEntry, err error) error {
		name := strings.TrimPrefix(path, c.dir)
		if slices.Contains(books, name) {
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

// build makes the package twice and wants the same one.
func build(t *testing.T) string {
	t.Helper()
	var last []byte
	deb := filepath.Join(t.TempDir(), "ecboot.deb")
	for range 2 {
		cmd := exec.Command("make", "-C", "../..", "deb", "DEB="+deb)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("make deb: %v\n%s", err, out)
		}
		data, err := os.ReadFile(deb)
		if err != nil {
			t.Fatal(err)
		}
		if last != nil && sha256.Sum256(data) != sha256.Sum256(last) {
			t.Error("the same commit gives two packages")
		}
		last = data
	}
	return deb
}

// TestPackage lives through the life of a package.
func TestPackage(t *testing.T) {
	t.Parallel()
	c := newChroot(t)
	deb, err := os.ReadFile(build(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.path("/root/ecboot.deb"), deb, 0o644); err != nil {
		t.Fatal(err)
	}
	apt := func(args ...string) []string {
		return append([]string{"apt-get", "-qq", "--no-install-recommends"}, args...)
	}
	c.must([]string{"systemctl enable --now ecboot"}, apt("install", "/root/ecboot.deb")...)
	for _, f := range dist.Files(dist.Prefix) {
		if data, err := os.ReadFile(c.path(f.Path)); err != nil || string(data) != f.Content {
			t.Errorf("%s is not what 'ecboot install' writes: %v", f.Path, err)
		}
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
	const mine = "# mine\n[guest]\nmemory = \"2G\"\n"
	if err := os.WriteFile(c.path("/etc/ecboot/ecboot.toml"), []byte(mine), 0o644); err != nil {
		t.Fatal(err)
	}
	c.must(nil, apt("install", "--reinstall", "/root/ecboot.deb")...)
	if data, err := os.ReadFile(c.path("/etc/ecboot/ecboot.toml")); err != nil || string(data) != mine {
		t.Errorf("the configuration has become %q: %v", data, err)
	}

	// State is nobody's but the owner's.
	state := c.path("/var/lib/ecboot/guests/web/disk0.qcow2")
	if err := os.MkdirAll(filepath.Dir(state), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(state, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.must([]string{"/var/lib/ecboot is kept"}, apt("purge", "ecboot")...)
	if data, err := os.ReadFile(state); err != nil || string(data) != "data" {
		t.Errorf("purging took the state: %v", err)
	}
	want := []string{"/var/lib/ecboot", "/var/lib/ecboot/guests", "/var/lib/ecboot/guests/web", "/var/lib/ecboot/guests/web/disk0.qcow2"}
	if left := c.traces(); !slices.Equal(left, want) {
		t.Errorf("purging leaves %q", left)
	}
}
