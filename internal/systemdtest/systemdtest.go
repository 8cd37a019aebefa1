// Package systemdtest gives tests a systemd: that of this machine, as the first
// process of a container which has the machine's programs and nothing of its
// state.
package systemdtest

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/internal/nspawn"
)

const script = "/script"

// The units that run the script, once the basic system is there.
var units = map[string]string{
	"default.target": "[Unit]\nWants=script.service\nAllowIsolate=yes\n",
	"script.service": "[Unit]\nSuccessAction=poweroff\nFailureAction=poweroff\n" +
		"[Service]\nType=oneshot\nTimeoutStartSec=5min\nExecStart=/bin/sh -e -x " + script + "\nStandardOutput=journal+console\nStandardError=journal+console\n",
}

// patience is for a busy machine.
const patience = 10 * time.Minute

// Run boots systemd, has it run a script, and waits until it has powered off in
// good order. It returns what was on the console. Files and directories named in
// binds are there as they are here; /usr is, and cannot be written to, except
// /usr/local, which is empty.
func Run(t testing.TB, commands string, binds ...string) (console string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	spec := nspawn.Spec{Root: makeRoot(t, commands), Extra: []string{"--tmpfs=/usr/local"}}
	spec.Binds = append(spec.Binds, nspawn.Bind{Source: "/usr", ReadOnly: true})
	for _, b := range binds {
		spec.Binds = append(spec.Binds, nspawn.Bind{Source: b})
	}
	return boot(t, spec)
}

// Boot does the same with the system in a directory, which keeps what that does.
func Boot(t testing.TB, root, commands string) (console string) {
	t.Helper()
	for name, text := range units {
		if err := os.WriteFile(filepath.Join(root, "etc/systemd/system", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, script), []byte(commands), 0o644); err != nil {
		t.Fatal(err)
	}
	// By its name, nspawn sees that this systemd knows cgroup v2.
	libraries, _ := filepath.Glob(filepath.Join(root, "usr/lib/*/systemd/libsystemd-shared-*.so"))
	for _, name := range libraries {
		if err := os.WriteFile(filepath.Join(root, "usr/lib/systemd", filepath.Base(name)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return boot(t, nspawn.Spec{Root: root})
}

func boot(t testing.TB, spec nspawn.Spec) (console string) {
	t.Helper()
	for _, program := range []string{nspawn.Program, "/lib/systemd/systemd"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s: run make deps-test", program)
		}
	}
	spec.Name = "systemd-test"
	c, err := nspawn.Start(t.Context(), spec, nspawn.Options{Cgroup: Cgroup(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Console().Close()
	defer func() {
		c.Kill()
		<-c.Done()
	}()
	var said bytes.Buffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(&said, c.Console()) // an error is its end
	}()
	select {
	case <-c.Done():
		<-read
	case <-time.After(patience):
		c.Kill()
		<-read
		t.Fatalf("systemd does not power off:\n%s", &said)
	}
	if e := c.Exit(); e.Reason != nspawn.PowerOff {
		t.Fatalf("the container ended by %s:\n%s%s", e, &said, e.Stderr)
	}
	return said.String()
}

// makeRoot makes what a system needs beside /usr.
func makeRoot(t testing.TB, commands string) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "root")
	files := map[string]string{
		script: commands, "/usr/": "", "/dev/": "", "/proc/": "", "/run/": "", "/sys/": "", "/tmp/": "", "/root/": "", "/var/": "",
		"/etc/machine-id": strings.Repeat("1", 32) + "\n", // without one, it would enable all that is installed
	}
	// By its name, nspawn sees that this systemd knows cgroup v2.
	libraries, _ := filepath.Glob("/usr/lib*/systemd/libsystemd-shared-*.so")
	more, _ := filepath.Glob("/usr/lib/*/systemd/libsystemd-shared-*.so")
	for _, name := range append(libraries, more...) {
		files["/usr/lib/systemd/"+filepath.Base(name)] = ""
	}
	for name, text := range units {
		files["/etc/systemd/system/"+name] = text
	}
	for _, name := range []string{"/etc/os-release", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = string(b)
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		parent := path
		if !strings.HasSuffix(name, "/") {
			parent = filepath.Dir(path)
		}
		if err := os.MkdirAll(parent, 0o755); err != nil {
			t.Fatal(err)
		}
		if parent == path {
			continue
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		target, err := os.Readlink("/" + name)
		if err != nil {
			t.Skip("needs a system whose programs are all in /usr")
		}
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// Cgroup makes a control group for a container, for as long as a test runs; empty
// where there is no cgroup v2. Tests that share one would take away what others
// are about to use.
func Cgroup(t testing.TB) string {
	t.Helper()
	below := "/sys/fs/cgroup"
	var st unix.Statfs_t
	if err := unix.Statfs(below, &st); err != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
		below = filepath.Join(below, "unified") // beside cgroup v1
	}
	if _, err := os.Stat(filepath.Join(below, "cgroup.procs")); err != nil {
		return ""
	}
	dir, err := os.MkdirTemp(below, "ecboot-test-*")
	if err != nil {
		t.Skip("needs control groups that can be written: ", err)
	}
	t.Cleanup(func() {
		nspawn.Sweep(dir)
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}
