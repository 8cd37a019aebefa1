package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/internal/api"
	"github.com/every-channel/ecboot/internal/nettest"
	"github.com/every-channel/ecboot/internal/scope"
)

// upHost is a machine of the test's own on which 'ecboot up' runs.
type upHost struct {
	*nettest.Host
	dir    string // of the configuration and the state
	config string
	env    []string // of its ecboots, more
}

// newUpHost makes one with a configuration, whose state directory is filled in.
func newUpHost(t *testing.T, name, text string) *upHost {
	t.Helper()
	needGuests(t)
	u := &upHost{Host: nettest.NewHost(t, name), dir: t.TempDir()}
	u.config = filepath.Join(u.dir, "ecboot.toml")
	u.write(t, text)
	// Guests outlive everything but their keepers.
	t.Cleanup(func() {
		guests, _ := u.Command(context.Background(), "ls", "/run/ecboot/guests").Output()
		for _, pid := range u.keepers() {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		for _, name := range strings.Fields(string(guests)) {
			if err := scope.Here().Remove(context.Background(), name); err != nil {
				t.Error(err)
			}
		}
	})
	return u
}

// guestsOf has the test of every guest that was declared: control groups are
// those of the machine, whose guests have one name each.
var guestsOf sync.Map

var declaresGuest = regexp.MustCompile(`(?m)^\[guest\.([^].]+)\]`)

func (u *upHost) write(t *testing.T, text string) {
	t.Helper()
	for _, m := range declaresGuest.FindAllStringSubmatch(text, -1) {
		if other, taken := guestsOf.LoadOrStore(m[1], t.Name()); taken && other != t.Name() {
			t.Fatalf("guest %s is %s's, too", m[1], other)
		}
	}
	text = fmt.Sprintf("[server]\nstate_dir = %q\n[guest]\naccel = \"tcg\"\n%s", u.dir, text)
	if err := os.WriteFile(u.config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// keepers are the processes that hold guests of this host.
func (u *upHost) keepers() (pids []int) {
	out, _ := u.Command(context.Background(), "sh", "-c", "cat /run/ecboot/guests/*/lock").Output()
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) > 0 {
			if pid, err := strconv.Atoi(f[0]); err == nil && pid > 1 {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// command prepares an ecboot on the host.
func (u *upHost) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := u.Command(inTime(t, t.Context()), exe, append(args, "--config", u.config)...)
	cmd.Env = slices.Concat(os.Environ(), []string{mainVar + "=1"}, u.env)
	cmd.Dir = u.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// up starts 'ecboot up'.
func (u *upHost) up(t *testing.T, args ...string) *started {
	t.Helper()
	s := &started{cmd: u.command(t, append([]string{"up"}, args...)...)}
	pipe, err := s.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.stderr = bufio.NewReader(pipe)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.cmd.Process.Kill()
		s.cmd.Wait()
	})
	return s
}

// guest asks an 'ecboot up' for one guest.
func (s *started) guest(t *testing.T, name string) api.Guest {
	t.Helper()
	list, err := s.control().Guests(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range list {
		if g.Name == name {
			return g
		}
	}
	t.Fatalf("no guest %s in %+v", name, list)
	return api.Guest{}
}

// control reaches into the host's mounts.
func (s *started) control() *api.Client {
	return api.Connect(fmt.Sprintf("/proc/%d/root/run/ecboot/up/%s", s.cmd.Process.Pid, api.SocketName))
}

// awaitGuest waits until a guest is as it should be.
func (s *started) awaitGuest(t *testing.T, name string, so func(api.Guest) bool) api.Guest {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		g := s.guest(t, name)
		if so(g) {
			return g
		}
		if time.Now().After(deadline) {
			t.Fatalf("guest %s is still %+v", name, g)
		}
	}
}

// wantNothing checks that an 'ecboot up' that has stopped its guests has left
// nothing.
func (u *upHost) wantNothing(t *testing.T) {
	t.Helper()
	if links := u.Run(t, "ip", "-o", "link"); strings.Contains(links, "vm-") || strings.Contains(links, "ec-") {
		t.Errorf("links are left:\n%s", links)
	}
	if left := u.Run(t, "sh", "-c", "ls /run/ecboot/guests 2>/dev/null; ls /run/ecboot/up"); strings.TrimSpace(left) != "" {
		t.Errorf("left in /run/ecboot:\n%s", left)
	}
	if pids := u.keepers(); len(pids) > 0 {
		t.Errorf("keepers are left: %v", pids)
	}
}

// The thinnest line through all of it: a guest of a private segment is started,
// boots from our servers, and is stopped.
func TestUpBootsAGuest(t *testing.T) {
	t.Parallel()
	u := newUpHost(t, "up", `
[segment.lab]
[guest.first]
backend = "qemu"
memory = "512M"
autostart = true
stop_timeout = "2s"
[[guest.first.nic]]
segment = "lab"
`)
	s := u.up(t)
	s.until(t, "serving 10.77.0.1/24 on ec-lab")
	s.until(t, "runs as process")
	s.until(t, "ipxe.ack")
	s.until(t, "userland")
	g := s.guest(t, "first")
	if g.State != api.Running || len(g.Addresses) != 1 || len(g.MACs) != 1 {
		t.Errorf("%+v", g)
	}
	s.cmd.Process.Signal(syscall.SIGTERM)
	s.until(t, "stopped: ")
	if code := s.end(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	u.wantNothing(t)
}

// A supervisor that is killed takes no guest along; the next one knows them.
// QEMU that is killed is started again.
func TestUpTakesOver(t *testing.T) {
	t.Parallel()
	u := newUpHost(t, "takeover", `
[segment.lab]
[guest.adopted]
backend = "qemu"
memory = "128M"
autostart = true
stop_timeout = "2s"
restart_delay = "1s"
[[guest.adopted.nic]]
segment = "lab"
`)
	s := u.up(t)
	s.until(t, "ipxe.ack")
	before := s.guest(t, "adopted")
	s.cmd.Process.Kill()
	s.cmd.Wait()
	if syscall.Kill(before.PID, 0) != nil {
		t.Fatal("the guest died with its supervisor")
	}

	s = u.up(t, "--leave-guests")
	s.until(t, "serving") // before it is known who runs
	after := s.guest(t, "adopted")
	s.until(t, "runs on as process "+strconv.Itoa(before.PID))
	if after.PID != before.PID || after.State != api.Running || len(after.Drift) > 0 {
		t.Fatalf("before %+v\nafter %+v", before, after)
	}
	u.commandWant(t, exitEnvironment, []string{"up"}, "runs already, as process "+strconv.Itoa(s.cmd.Process.Pid))

	syscall.Kill(after.PID, syscall.SIGKILL)
	s.until(t, "is started again in 1s")
	again := s.awaitGuest(t, "adopted", func(g api.Guest) bool { return g.State == api.Running && g.PID != before.PID })
	if again.Restarts != 1 || again.MACs[0] != before.MACs[0] {
		t.Errorf("%+v", again)
	}

	// The unit ends it so, and starts another one.
	s.cmd.Process.Signal(syscall.SIGTERM)
	if err := s.cmd.Wait(); err != nil { // the watchdog, which stays, has its standard error
		t.Error(err)
	}
	s = u.up(t)
	s.until(t, "runs on as process "+strconv.Itoa(again.PID))
	s.cmd.Process.Signal(syscall.SIGTERM)
	if code := s.end(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	u.wantNothing(t)
}

// What a supervisor that was killed was about to start has its lock for a moment;
// the next one waits for that, and for nobody who lives.
func TestUpLockOfTheDead(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, ".lock")
	held, err := upLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := upLock(dir); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("runs already, as process %d:", os.Getpid())) {
		t.Errorf("of one that lives: %v", err)
	}
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, fmt.Appendln(nil, dead.Process.Pid), 0o600); err != nil {
		t.Fatal(err)
	}
	looks, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(looks)
	if _, err := unix.InotifyAddWatch(looks, path, unix.IN_CLOSE_NOWRITE); err != nil {
		t.Fatal(err)
	}
	took := make(chan error, 1)
	go func() {
		f, err := upLock(dir)
		if err == nil {
			err = f.Close()
		}
		took <- err
	}()
	// Who finds it taken reads whose it is.
	if _, err := unix.Read(looks, make([]byte, unix.SizeofInotifyEvent)); err != nil {
		t.Fatal(err)
	}
	held.Close()
	if err := <-took; err != nil {
		t.Error(err)
	}
}

// A supervisor that is killed while a guest starts leaves it its network.
func TestUpKilledDuringAStart(t *testing.T) {
	t.Parallel()
	u := newUpHost(t, "early", `
[segment.lan]
parent = "eth0"
address = "10.77.0.1/24"
allow_other_dhcp = true
[guest.early]
backend = "qemu"
memory = "128M"
autostart = true
stop_timeout = "1s"
[[guest.early.nic]]
segment = "lan"
`)
	nettest.Bridge(t, "early", "")
	nettest.Connect(t, "early", u.Host, "eth0")
	// A QEMU that waits until it is let go. Its user is nobody.
	bin, err := os.MkdirTemp("", "ecboot-test-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(bin) })
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Fatal(err)
	}
	gate := filepath.Join(bin, "gate")
	script := fmt.Sprintf("#!/bin/sh\nread -r go <%s\nexec %s \"$@\"\n", gate, qemu)
	if err := errors.Join(os.Chmod(bin, 0o755), syscall.Mkfifo(gate, 0o644),
		os.WriteFile(filepath.Join(bin, "qemu-system-x86_64"), []byte(script), 0o755)); err != nil {
		t.Fatal(err)
	}
	u.env = []string{"PATH=" + bin + ":" + os.Getenv("PATH")}
	s := u.up(t)
	waits := make(chan *os.File, 1)
	go func() {
		f, _ := os.OpenFile(gate, os.O_WRONLY, 0) // when somebody reads there
		waits <- f
	}()
	var open *os.File
	select {
	case open = <-waits:
	case <-time.After(2 * time.Minute):
	}
	if open == nil {
		t.Fatal("no QEMU is started")
	}
	defer open.Close()
	s.cmd.Process.Kill()
	s.cmd.Wait()

	s = u.up(t)
	s.until(t, "early guest")
	fmt.Fprintln(open, "go")
	s.until(t, "ipxe.ack")
	s.awaitGuest(t, "early", func(g api.Guest) bool { return g.State == api.Running && g.PID != 0 })
	s.cmd.Process.Signal(syscall.SIGTERM)
	if code := s.end(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	u.wantNothing(t)
}

// commandWant runs an ecboot on the host to its end.
func (u *upHost) commandWant(t *testing.T, code int, args []string, parts ...string) result {
	t.Helper()
	r := resultOf(t, u.command(t, args...))
	r.want(t, code, parts...)
	return r
}

// What a supervisor that is gone has left of segments and links that nobody
// declares or uses any more is undone by the next.
func TestUpUndoesWhatIsDeclaredNoLonger(t *testing.T) {
	t.Parallel()
	segment := func(name string) string {
		return fmt.Sprintf("[segment.%s]\nbridge = \"br-%[1]s\"\naddress = \"10.77.0.1/24\"\nmode = \"off\"\n", name)
	}
	u := newUpHost(t, "sweep", segment("old"))
	s := u.up(t)
	s.until(t, "10.77.0.1")
	// The watchdog, too.
	u.Run(t, "sh", "-c", fmt.Sprintf("kill -9 $(cat /proc/%d/task/*/children)", s.cmd.Process.Pid))
	s.cmd.Process.Kill()
	s.cmd.Wait()
	u.Run(t, "ip", "link", "show", "br-old")
	u.Run(t, "ip", "link", "add", "nic0", "type", "veth", "peer", "name", "nic1")
	for _, name := range []string{"vm-left", "other"} {
		u.Run(t, "ip", "link", "add", "link", "nic0", "name", name, "type", "macvtap", "mode", "bridge")
	}
	u.Run(t, "ip", "link", "set", "vm-left", "alias", "ecboot guest")
	left := leftScope(t)

	u.write(t, segment("new"))
	s = u.up(t)
	s.until(t, "link=vm-left")
	s.until(t, "10.77.0.1")
	links := u.Run(t, "ip", "-o", "link")
	for name, want := range map[string]bool{"br-old": false, "br-new": true, "vm-left": false, "other": true} {
		if strings.Contains(links, name) != want {
			t.Errorf("%s is there: %v, want %v", name, !want, want)
		}
	}
	if _, err := os.Stat(left); left != "" && err == nil {
		t.Errorf("%s is left", left)
	}
	s.cmd.Process.Signal(syscall.SIGTERM)
	if code := s.end(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// leftScope is the control group of a guest that began to start and has left
// nothing else; empty where systemd removes it, or there is none.
func leftScope(t *testing.T) (cgroup string) {
	t.Helper()
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe() // it ends with this process
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s, err := scope.Here().Join(t.Context(), scope.Guest{Name: fmt.Sprintf("left-%d", os.Getpid())}, cmd.Process.Pid)
	in.Close()
	cmd.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if s.Unit != "" {
		return ""
	}
	return s.Cgroup
}

// One guest's trouble is its own, and a configuration that has one more leaves
// the others as they are.
func TestUpKeepsGuestsApart(t *testing.T) {
	t.Parallel()
	guest := func(name, more string) string {
		return fmt.Sprintf("[guest.%s]\nbackend = \"qemu\"\nmemory = \"128M\"\nautostart = true\nstop_timeout = \"1s\"\nrestart_delay = \"1s\"\nchain_url = \"http://10.0.2.2/\"\n%s[[guest.%[1]s.nic]]\nuser = true\n", name, more)
	}
	missing := guest("imageless", "") + "[[guest.imageless.disk]]\nbase = \"/nowhere/base.qcow2\"\n"
	u := newUpHost(t, "apart", guest("apart-one", "")+missing)
	s := u.up(t)
	s.until(t, "FAILED: cannot be started: ")
	one := s.awaitGuest(t, "apart-one", func(g api.Guest) bool { return g.State == api.Running })
	s.awaitGuest(t, "imageless", func(g api.Guest) bool {
		return g.State == api.Failed && strings.Contains(g.LastExit, "/nowhere/base.qcow2")
	})

	u.write(t, "nonsense = [\n")
	s.cmd.Process.Signal(syscall.SIGHUP)
	s.until(t, "the configuration is wrong and stays as it was")
	s.until(t, u.config+":") // each mistake in a line of its own
	u.write(t, guest("apart-one", "")+missing+guest("apart-two", "cpus = 1\n"))
	s.cmd.Process.Signal(syscall.SIGHUP)
	s.until(t, "the configuration was read again")
	s.until(t, "apart-two")
	s.awaitGuest(t, "apart-two", func(g api.Guest) bool { return g.State == api.Running })
	if now := s.guest(t, "apart-one"); now.PID != one.PID || now.MACs[0] != one.MACs[0] || len(now.Drift) > 0 {
		t.Errorf("before %+v\nafter %+v", one, now)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", one.PID))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(status), "Uid:\t0\t") {
		t.Errorf("QEMU runs as root:\n%s", status)
	}

	// Stopped by hand, it stays so for the next supervisor.
	if how, err := s.control().Stop(t.Context(), "apart-two", true); err != nil || how == "" {
		t.Errorf("%q, %v", how, err)
	}
	s.cmd.Process.Kill()
	s.cmd.Wait()
	s = u.up(t)
	s.until(t, "runs on as process "+strconv.Itoa(one.PID))
	s.awaitGuest(t, "imageless", func(g api.Guest) bool { return g.State == api.Failed })
	if g := s.guest(t, "apart-two"); g.State != api.Stopped || g.Down != api.ByHand {
		t.Errorf("%+v", g)
	}
	s.cmd.Process.Signal(syscall.SIGTERM)
	if code := s.end(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	u.wantNothing(t)
}

// A microvm boots the kernel that HTTP serves, reports to the server, and stays
// down when it has switched itself off.
func TestUpLeavesDownWhatSwitchedItselfOff(t *testing.T) {
	t.Parallel()
	u := newUpHost(t, "poweroff", `
[segment.lab]
[guest.brief]
backend = "microvm"
memory = "256M"
append = "ecboot.poweroff"
autostart = true
[[guest.brief.nic]]
segment = "lab"
`)
	s := u.up(t)
	s.until(t, "userland")
	s.until(t, "stays down")
	if g := s.guest(t, "brief"); g.State != api.Stopped || g.Restarts != 0 {
		t.Errorf("%+v", g)
	}
	s.cmd.Process.Signal(syscall.SIGTERM)
	if code := s.end(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	u.wantNothing(t)
}
