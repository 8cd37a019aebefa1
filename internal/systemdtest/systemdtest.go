// Package systemdtest gives tests a systemd: that of this machine, as the first
// process of a container which has the machine's programs and nothing of its
// state.
package systemdtest

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
		"[Service]\nType=oneshot\nTimeoutStartSec=5min\nExecStartPre=" + writable + "\nExecStart=/bin/sh -e -x " + script + "\nStandardOutput=journal+console\nStandardError=journal+console\n",
}

// writable makes of cgroup v1, which nspawn mounts so that it cannot be written to,
// something that systemd works with.
var writable = "/bin/sh -c 'for c in " + strings.Join(controllers, " ") + "; do ! test -d /sys/fs/cgroup/$$c || mount -o remount,bind,rw /sys/fs/cgroup/$$c; done; systemctl daemon-reexec'"

// controllers are those of cgroup v1 that the container has; of v2 it has what
// its control group has.
var controllers = []string{"cpu", "cpuacct", "memory", "pids"}

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
	c, err := nspawn.Start(t.Context(), spec, nspawn.Options{Cgroup: Cgroup(t), Program: inOldCgroups(t)})
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

// NeedControllers skips a test where the container's systemd lacks one of these
// controllers of control groups.
func NeedControllers(t testing.TB, names ...string) {
	t.Helper()
	unified, err := os.ReadFile("/sys/fs/cgroup/cgroup.subtree_control")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	old := oldCgroups(t)
	for _, name := range names {
		if old[name] == "" && !slices.Contains(strings.Fields(string(unified)), name) {
			t.Skipf("needs the controller %s of control groups", name)
		}
	}
}

// oldCgroups are the control groups of v1 that this process is in, by controller.
func oldCgroups(t testing.TB) map[string]string {
	t.Helper()
	list, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	groups := map[string]string{}
	for line := range strings.Lines(string(list)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3) // 4:memory:/…
		if len(f) == 3 && slices.Contains(controllers, f[1]) {
			groups[f[1]] = filepath.Join("/sys/fs/cgroup", f[1], f[2])
		}
	}
	return groups
}

// inOldCgroups returns a program that runs nspawn in control groups of v1 which it
// has for itself, so that the container's systemd finds them at the root.
func inOldCgroups(t testing.TB) (program string) {
	t.Helper()
	text := "#!/bin/sh -e\n"
	for _, group := range oldCgroups(t) {
		dir, err := os.MkdirTemp(group, "ecboot-test-*")
		if err != nil {
			t.Skip("needs control groups that can be written: ", err)
		}
		t.Cleanup(func() { removeTree(t, dir) })
		text += "echo 0 >" + filepath.Join(dir, "cgroup.procs") + "\n"
	}
	program = filepath.Join(t.TempDir(), "nspawn")
	if err := os.WriteFile(program, []byte(text+"exec "+nspawn.Program+` "$@"`), 0o755); err != nil {
		t.Fatal(err)
	}
	return program
}

// removeTree removes a control group and those within.
func removeTree(t testing.TB, dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Error(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			removeTree(t, filepath.Join(dir, e.Name()))
		}
	}
	if err := os.Remove(dir); err != nil {
		t.Error(err)
	}
}
