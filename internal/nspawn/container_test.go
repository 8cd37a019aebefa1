package nspawn

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/internal/nettest"
)

// starterVar makes the test binary a program that starts a container and waits
// to be killed; its value is the container's root. starterCgroup is its cgroup.
const (
	starterVar    = "NSPAWN_TEST_START"
	starterCgroup = "NSPAWN_TEST_CGROUP"
)

var otherMAC = net.HardwareAddr{2, 0, 0, 0, 0, 2}

func TestMain(m *testing.M) {
	if root := os.Getenv(starterVar); root != "" {
		c, err := Start(context.Background(), Spec{Name: "orphan", Root: root, NICs: []NIC{
			{Parent: "up0", MAC: testMAC}, {Bridge: "br0", MAC: otherMAC},
		}}, Options{Cgroup: os.Getenv(starterCgroup)})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(c.PID())
		io.Copy(os.Stdout, c.Console())
		os.Exit(0)
	}
	nettest.Main(m)
}

// patience is for what may take long on a busy machine, and never comes when
// there is a bug.
const patience = time.Minute

// initScript does what it is told on the console.
const initScript = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
trap 'echo init: powers off; poweroff -f' 38 # SIGRTMIN+4
echo "init: ready on $(hostname)"
while test -t 0; do read -r line && eval "$line"; done
`

// leaseScript prints what udhcpc has got.
const leaseScript = `#!/bin/sh
test "$1" = bound && echo "lease: $ip"
exit 0
`

// busyboxRoot makes a directory that a container can boot from.
func busyboxRoot(t *testing.T) string {
	t.Helper()
	nettest.NeedRoot(t)
	nettest.Need(t, Program, "busybox")
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	program, err := elf.Open(busybox)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	if libs, err := program.ImportedLibraries(); err == nil && len(libs) > 0 {
		t.Skip("needs busybox-static: run make deps-test")
	}
	content, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "root, with: odd name")
	for _, sub := range []string{"bin", "dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp", "usr", "var"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range map[string][]byte{
		"bin/busybox": content, "bin/lease": []byte(leaseScript), "sbin/init": []byte(initScript), "etc/os-release": []byte("ID=test\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("busybox", filepath.Join(dir, "bin/sh")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// testCgroup makes a cgroup for a container; empty where there is no cgroup v2.
func testCgroup(t *testing.T) string {
	t.Helper()
	below := unifiedCgroups
	if onlyUnified() {
		below = cgroups
	}
	if _, err := os.Stat(filepath.Join(below, "cgroup.procs")); err != nil {
		return ""
	}
	dir, err := os.MkdirTemp(below, "ecboot-test-*")
	if err != nil {
		t.Skip("needs control groups that can be written: ", err)
	}
	t.Cleanup(func() {
		Sweep(dir)
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// wantNoCgroups checks that nspawn has left none in a container's cgroup.
func wantNoCgroups(t *testing.T, cgroup string) {
	t.Helper()
	for _, dir := range []string{cgroup, filepath.Join(systemdCgroups, filepath.Base(cgroup))} {
		if left, _ := filepath.Glob(filepath.Join(dir, "*", "cgroup.procs")); cgroup != "" && len(left) > 0 {
			t.Errorf("cgroups are left: %q", left)
		}
	}
}

// session is a container with what it has said so far.
type session struct {
	*Container

	mu      sync.Mutex
	said    bytes.Buffer
	changed chan struct{}
	ended   chan struct{} // closed when all is said
}

// start runs a container for the length of a test.
func start(t *testing.T, spec Spec, opts Options) *session {
	t.Helper()
	if spec.Name == "" {
		spec.Name = "box"
	}
	if opts.Cgroup == "" {
		opts.Cgroup = testCgroup(t)
	}
	c, err := Start(t.Context(), spec, opts)
	if err != nil {
		t.Fatal(err)
	}
	s := &session{Container: c, changed: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		buf := make([]byte, 4096)
		for {
			n, err := c.Console().Read(buf)
			s.mu.Lock()
			s.said.Write(buf[:n])
			close(s.changed)
			s.changed = make(chan struct{})
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		c.Kill()
		<-c.Done()
		<-s.ended
		c.Console().Close()
		if t.Failed() {
			t.Logf("exit: %s\nstderr: %s\nconsole:\n%s", c.Exit(), c.Exit().Stderr, s.text())
		}
	})
	return s
}

func (s *session) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.said.String()
}

// expect waits for text on the console and returns its last group.
func (s *session) expect(t *testing.T, re string) string {
	t.Helper()
	exp, limit := regexp.MustCompile(re), time.After(patience)
	for over := false; ; {
		s.mu.Lock()
		m, changed := exp.FindStringSubmatch(s.said.String()), s.changed
		s.mu.Unlock()
		if m != nil {
			return m[len(m)-1]
		}
		if over {
			t.Fatalf("the container ended and did not say %s", re)
		}
		select {
		case <-changed:
		case <-s.ended:
			over = true
		case <-limit:
			t.Fatalf("the container does not say %s", re)
		}
	}
}

// tell has the container's init run a command. The terminal echoes it, so that
// what is expected must differ from it.
func (s *session) tell(t *testing.T, command string) {
	t.Helper()
	if _, err := fmt.Fprintln(s.Console(), command); err != nil {
		t.Fatal(err)
	}
}

// await waits for what may never come.
func await(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("waited in vain: %s", what)
	}
}

// initOf is the container's init as a pidfd, which the test closes.
func initOf(t *testing.T, nspawn int) (pidfd int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", nspawn))
	if err != nil {
		t.Skip("needs a kernel with CONFIG_PROC_CHILDREN")
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err == nil {
		pidfd, err = unix.PidfdOpen(pid, 0)
	}
	if err != nil {
		t.Fatalf("nspawn has the children %q: %v", b, err)
	}
	t.Cleanup(func() {
		// Whatever has failed, it must not stay.
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		unix.Close(pidfd)
	})
	return pidfd
}

// isDead waits at most so long for the death of a process.
func isDead(pidfd int, limit time.Duration) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(limit.Milliseconds()))
	return n == 1 && err == nil
}

func TestContainerBootsAndPowersOff(t *testing.T) {
	root, cgroup := busyboxRoot(t), testCgroup(t)
	s := start(t, Spec{Name: "box-1", Root: root, Ephemeral: true}, Options{Cgroup: cgroup})
	s.expect(t, "init: ready on box-1")
	s.tell(t, "echo links: $(ls /sys/class/net).; touch /x && echo made: $?")
	if got := s.expect(t, `links: ([^$]*)\.\r`); got != "lo" {
		t.Errorf("a container without NICs has the links %s", got)
	}
	s.expect(t, "made: 0")
	if err := s.Resize(132, 50); err != nil {
		t.Error(err)
	}
	s.tell(t, `while test "$(stty size)" != "50 132"; do :; done; echo size: $?`)
	s.expect(t, "size: 0")
	s.tell(t, "poweroff -f")
	if e := s.Exit(); e.Reason != PowerOff || e.Code != 0 || e.String() != "poweroff" {
		t.Errorf("exit %+v", e)
	}
	if how := s.Stop(t.Context()); how != StoppedItself {
		t.Errorf("stopped: %s", how)
	}
	if _, err := os.Stat(filepath.Join(root, "x")); err == nil {
		t.Error("an ephemeral container has changed its root")
	}
	wantNoCgroups(t, cgroup)
}

func TestDirectoryIsUsedInPlace(t *testing.T) {
	root := busyboxRoot(t)
	s := start(t, Spec{Root: root}, Options{})
	s.expect(t, "init: ready")
	s.tell(t, "echo $((6*7)) >/x; echo made: $?")
	s.expect(t, "made: 0")
	if b, err := os.ReadFile(filepath.Join(root, "x")); string(b) != "42\n" {
		t.Errorf("x holds %q, %v", b, err)
	}
	state := t.TempDir()
	for _, test := range []struct {
		other Spec
		want  string
	}{
		{Spec{Root: root}, root + ": another container uses it: stop that one, or make both ephemeral or give each a state"},
		// It would change nothing, and sees what changes.
		{Spec{Root: root, Ephemeral: true}, root + ": another container changes it in place: stop that one, or make both ephemeral"},
		{Spec{Root: root, State: state}, root + ": another container changes it in place"},
	} {
		test.other.Name = "other"
		_, err := Start(t.Context(), test.other, Options{Cgroup: testCgroup(t)})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("beside one that is used in place, %+v: %v, want %q", test.other, err, test.want)
		}
	}
	if how := s.Stop(t.Context()); how != StoppedPowerOff || !strings.Contains(s.text(), "init: powers off") {
		t.Errorf("stopped: %s", how)
	}
	if e := s.Exit(); e.Reason != PowerOff {
		t.Errorf("exit %+v", e)
	}
	if entries, err := os.ReadDir(filepath.Dir(root)); err != nil || len(entries) != 1 {
		t.Errorf("beside the root lie %v, %v", entries, err)
	}
}

func TestStateIsOneContainers(t *testing.T) {
	root, state := busyboxRoot(t), t.TempDir()
	start(t, Spec{Root: root, State: state}, Options{}).expect(t, "init: ready")
	start(t, Spec{Name: "beside", Root: root, State: t.TempDir()}, Options{}).expect(t, "init: ready")
	_, err := Start(t.Context(), Spec{Name: "other", Root: root, State: state}, Options{Cgroup: testCgroup(t)})
	if want := state + ": another container uses it: stop that one, or give this one another state"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("two containers with one state: %v, want %q", err, want)
	}
}

func TestRebootIsForTheCallerToDo(t *testing.T) {
	root := busyboxRoot(t)
	peer := nettest.NewHost(t, "peer")
	nettest.Wire(t, "up0", peer, "eth0")
	spec := Spec{Root: root, NICs: []NIC{{Parent: "up0", MAC: testMAC}}}
	s := start(t, spec, Options{})
	s.expect(t, "init: ready")
	s.tell(t, "ip link set mv-up0 up; reboot -f")
	if e := s.Exit(); e.Reason != Reboot || e.Code != 133 {
		t.Fatalf("exit %+v", e)
	}
	// At once: the old link with the same address may still be there.
	start(t, spec, Options{}).expect(t, "init: ready")
}

func TestStopKillsAnInitThatDoesNotListen(t *testing.T) {
	s := start(t, Spec{Root: busyboxRoot(t), Ephemeral: true}, Options{Grace: time.Millisecond})
	s.expect(t, "init: ready")
	s.tell(t, "trap : 38; echo deaf: $?")
	s.expect(t, "deaf: 0")
	leader := initOf(t, s.PID())
	if how := s.Stop(t.Context()); how != StoppedKill {
		t.Errorf("stopped: %s", how)
	}
	if e := s.Exit(); e.Reason != Killed || e.Signal != syscall.SIGKILL || e.Code != -1 || e.Detail != "" {
		t.Errorf("exit %+v", e)
	}
	if !isDead(leader, 0) {
		t.Error("nspawn has ended and the container's init is still there")
	}
}

// Who stops a container that has just started does not wait in vain, because it
// was asked before it could listen.
func TestStopBeforeInitListens(t *testing.T) {
	for _, tt := range []struct {
		name, init, signal string
	}{
		{"a handler", initScript, ""},
		{"a handler, later", "#!/bin/busybox sh\n/bin/busybox sleep 1\ntrap '/bin/busybox poweroff -f' USR2\nwhile :; do /bin/busybox sleep 1; done\n", "SIGUSR2"},
		{"BusyBox, which waits for signals", "", "SIGUSR2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := busyboxRoot(t)
			init := filepath.Join(root, "sbin/init")
			if err := os.Remove(init); err != nil {
				t.Fatal(err)
			}
			err := os.WriteFile(init, []byte(tt.init), 0o755)
			if tt.init == "" {
				err = errors.Join(os.Remove(init), os.Symlink("/bin/busybox", init), os.WriteFile(filepath.Join(root, "etc/inittab"), []byte("::sysinit:/bin/busybox true\n"), 0o644))
			}
			if err != nil {
				t.Fatal(err)
			}
			s := start(t, Spec{Root: root, Ephemeral: true, StopSignal: tt.signal}, Options{Grace: patience})
			if how := s.Stop(t.Context()); how != StoppedPowerOff {
				t.Errorf("stopped: %s", how)
			}
			if e := s.Exit(); e.Reason != PowerOff {
				t.Errorf("exit %+v", e)
			}
		})
	}
}

func TestNspawnIsKilledByOthers(t *testing.T) {
	s := start(t, Spec{Root: busyboxRoot(t), Ephemeral: true}, Options{})
	s.expect(t, "init: ready")
	leader := initOf(t, s.PID())
	if err := syscall.Kill(s.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := s.Exit(); e.String() != "killed: by signal killed" {
		t.Errorf("exit %+v", e)
	}
	if !isDead(leader, 0) {
		t.Error("nspawn has ended and the container's init is still there")
	}
}

func TestContainerGetsAnAddressOverAMacvlan(t *testing.T) {
	root := busyboxRoot(t)
	peer := nettest.NewHost(t, "peer")
	nettest.Wire(t, "up0", peer, "eth0")
	peer.ServeDHCP(t, "dnsmasq", "eth0", netip.MustParsePrefix("10.79.0.0/24"))
	for _, uidBase := range []uint32{0, 0x10000000} {
		t.Run(fmt.Sprint("user ids from ", uidBase), func(t *testing.T) {
			s := start(t, Spec{Root: root, UIDBase: uidBase, NICs: []NIC{{Parent: "up0", MAC: testMAC}}}, Options{})
			s.expect(t, "init: ready")
			if got := linkNames(t); got != "lo up0" {
				t.Errorf("links here: %s", got)
			}
			getAddress(t, s, "mv-up0", testMAC)
			s.tell(t, "cat /proc/self/uid_map; touch /root/mine; echo made: $?")
			s.expect(t, fmt.Sprintf(`\n +0 +%d `, uidBase))
			s.expect(t, "made: 0")
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(root, "root/mine"), &st); err != nil || st.Uid != 0 {
				t.Errorf("what the container's root made belongs to %d, %v", st.Uid, err)
			}
		})
	}
}

func getAddress(t *testing.T, s *session, name string, mac net.HardwareAddr) {
	t.Helper()
	s.tell(t, fmt.Sprintf("echo mac: $(cat /sys/class/net/%s/address).", name))
	if got := s.expect(t, `mac: ([0-9a-f:]+)\.`); got != mac.String() {
		t.Errorf("the container's link has the address %s, want %s", got, mac)
	}
	s.tell(t, fmt.Sprintf("ip link set %s up; udhcpc -q -f -t 30 -T 1 -i %[1]s -s /bin/lease", name))
	if got := s.expect(t, `lease: ([0-9.]+)\r`); !strings.HasPrefix(got, "10.79.0.1") {
		t.Errorf("it got the address %s", got)
	}
}

func linkNames(t *testing.T) string {
	t.Helper()
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range links {
		names = append(names, l.Name)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func TestContainerOnABridge(t *testing.T) {
	root := busyboxRoot(t)
	nettest.Bridge(t, "br0", "")
	peer := nettest.NewHost(t, "peer")
	nettest.Connect(t, "br0", peer, "eth0")
	peer.ServeDHCP(t, "dnsmasq", "eth0", netip.MustParsePrefix("10.79.0.0/24"))
	nic := NIC{Bridge: "br0", MAC: testMAC}
	s := start(t, Spec{Root: root, Ephemeral: true, NICs: []NIC{nic}}, Options{})
	s.expect(t, "init: ready")
	getAddress(t, s, "host0", testMAC)

	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err := Start(ctx, Spec{Name: "other", Root: root, Ephemeral: true, NICs: []NIC{nic}}, Options{Cgroup: testCgroup(t)})
	if err == nil || !strings.Contains(err.Error(), "the address 02:01:27:00:00:01 has a guest already") {
		t.Errorf("two containers with one address: %v", err)
	}

	gone := linkGone(t, portName(testMAC))
	s.Kill()
	await(t, "the container's port goes", gone)
}

// linkGone watches a link that is there.
func linkGone(t *testing.T, name string) <-chan struct{} {
	t.Helper()
	updates, stop, gone := make(chan netlink.LinkUpdate, 100), make(chan struct{}), make(chan struct{})
	if err := netlink.LinkSubscribe(updates, stop); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(stop) })
	if _, err := netlink.LinkByName(name); err != nil {
		t.Fatal(err)
	}
	go func() {
		closed := false
		for u := range updates {
			if u.Header.Type == unix.RTM_DELLINK && u.Attrs().Name == name && !closed {
				close(gone)
				closed = true
			}
		}
	}()
	return gone
}

func TestAddressIsTakenOnTheParent(t *testing.T) {
	root := busyboxRoot(t)
	peer := nettest.NewHost(t, "peer")
	nettest.Wire(t, "up0", peer, "eth0")
	la := netlink.NewLinkAttrs()
	la.Name, la.ParentIndex, la.HardwareAddr = "other", linkByName(t, "up0").Attrs().Index, testMAC
	other := &netlink.Macvlan{LinkAttrs: la, Mode: netlink.MACVLAN_MODE_BRIDGE}
	if err := errors.Join(netlink.LinkAdd(other), netlink.LinkSetUp(other)); err != nil {
		t.Fatal(err)
	}
	spec := Spec{Name: "box", Root: root, NICs: []NIC{{Parent: "up0", MAC: testMAC}}}
	err := startInVain(t, spec)
	if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "is taken on up0") {
		t.Errorf("error %v", err)
	}
	// Once the other is gone while we wait, the container starts.
	time.AfterFunc(2*busyPause, func() { netlink.LinkDel(other) })
	start(t, spec, Options{}).expect(t, "init: ready")
}

func TestParentIsABridgePort(t *testing.T) {
	root := busyboxRoot(t)
	nettest.Bridge(t, "br0", "")
	peer := nettest.NewHost(t, "peer")
	nettest.Wire(t, "up0", peer, "eth0")
	up0 := linkByName(t, "up0")
	if err := netlink.LinkSetMaster(up0, linkByName(t, "br0")); err != nil {
		t.Fatal(err)
	}
	spec := Spec{Name: "box", Root: root, NICs: []NIC{{Parent: "up0", MAC: testMAC}}}
	err := startInVain(t, spec)
	if !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "name that bridge instead") {
		t.Errorf("error %v", err)
	}
	time.AfterFunc(2*busyPause, func() { netlink.LinkSetNoMaster(up0) })
	start(t, spec, Options{}).expect(t, "init: ready")
}

func linkByName(t *testing.T, name string) netlink.Link {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// startInVain starts a container without patience for what is busy.
func startInVain(t *testing.T, spec Spec) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	c, err := Start(ctx, spec, Options{Cgroup: testCgroup(t)})
	if err == nil {
		c.Kill()
		<-c.Done()
		c.Console().Close()
	}
	return err
}

func TestBinds(t *testing.T) {
	host := filepath.Join(t.TempDir(), "data: a, b")
	if err := os.MkdirAll(host, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(host, "hello"), []byte("from the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, uidBase := range []uint32{0, 0x10000000} {
		t.Run(fmt.Sprint("user ids from ", uidBase), func(t *testing.T) {
			name := fmt.Sprint("made-", uidBase)
			s := start(t, Spec{Root: busyboxRoot(t), UIDBase: uidBase, Binds: []Bind{
				{Source: host, Target: "/guests/rw: x"},
				{Source: host, Target: "/ro", ReadOnly: true},
			}}, Options{})
			s.expect(t, "init: ready")
			s.tell(t, "echo read: $(cat '/guests/rw: x/hello').")
			if got := s.expect(t, `read: ([^$]*)\.\r`); got != "from the host" {
				t.Errorf("the container reads %q", got)
			}
			s.tell(t, "touch /ro/no || echo refused: $?; touch '/guests/rw: x/"+name+"'; echo made: $?")
			s.expect(t, "refused: 1")
			s.expect(t, "made: 0")
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(host, name), &st); err != nil || st.Uid != 0 {
				t.Errorf("what the container made belongs to %d, %v", st.Uid, err)
			}
			if _, err := os.Stat(filepath.Join(host, "no")); err == nil {
				t.Error("the container has written through a read-only bind")
			}
		})
	}
}

func TestImages(t *testing.T) {
	root := busyboxRoot(t)
	for _, test := range []struct {
		kind kind
		pack []string // before the image, where IMAGE is
	}{
		{tarball, []string{"tar", "-C", root, "-czf", "IMAGE", "."}},
		{squashfs, []string{"mksquashfs", root, "IMAGE", "-quiet", "-no-progress"}},
	} {
		t.Run(string(test.kind), func(t *testing.T) {
			dir := t.TempDir()
			image := filepath.Join(dir, "image, a: b")
			pack(t, image, test.pack...)
			if k, err := kindOf(image); k != test.kind {
				t.Errorf("it is a %s, %v", k, err)
			}
			opts := Options{Cache: filepath.Join(dir, "cache")}
			state := filepath.Join(dir, "state, c: d")
			count := "echo found: $(ls /var | wc -l); touch /var/mark; echo made: $?"
			// Twice with a state that is kept, and beside it without one.
			for i, want := range []string{"0", "1"} {
				s := start(t, Spec{Root: image, State: state}, opts)
				other := start(t, Spec{Name: "other", Root: image}, opts)
				for s, want := range map[*session]string{s: want, other: "0"} {
					s.expect(t, "init: ready")
					s.tell(t, count)
					if got := s.expect(t, `found: ([0-9]+)`); got != want {
						t.Errorf("start %d of %s finds %s files, want %s", i, s.name, got, want)
					}
					s.expect(t, "made: 0")
				}
				if how := s.Stop(t.Context()); how != StoppedPowerOff {
					t.Errorf("stopped: %s", how)
				}
				other.Kill()
				<-other.Done()
			}
			awaitNoLoop(t, image)
		})
	}
}

func pack(t *testing.T, image string, argv ...string) {
	t.Helper()
	nettest.Need(t, argv[0])
	argv[slices.Index(argv, "IMAGE")] = image
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// awaitNoLoop waits until no loop device has a file. The kernel does not tell
// when it detaches one.
func awaitNoLoop(t *testing.T, image string) {
	t.Helper()
	for until := time.Now().Add(patience); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		if !slices.Contains(loopFiles(), image) {
			return
		}
	}
	t.Errorf("a loop device still has %s", image)
}

func loopFiles() (files []string) {
	devices, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, d := range devices {
		if b, err := os.ReadFile(d); err == nil {
			files = append(files, strings.TrimSpace(string(b)))
		}
	}
	return files
}

func TestNothingOutlivesTheStarter(t *testing.T) {
	root := busyboxRoot(t)
	image := filepath.Join(t.TempDir(), "image")
	pack(t, image, "mksquashfs", root, "IMAGE", "-quiet", "-no-progress")
	peer := nettest.NewHost(t, "peer")
	nettest.Wire(t, "up0", peer, "eth0")
	nettest.Bridge(t, "br0", "")
	cgroup := testCgroup(t)

	// The starter must not outlive this test either.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Env = append(os.Environ(), starterVar+"="+image, starterCgroup+"="+cgroup)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	lines := bufio.NewScanner(out)
	lines.Scan()
	pid, err := strconv.Atoi(lines.Text())
	if err != nil {
		t.Fatal(lines.Text())
	}
	for lines.Scan() && !strings.Contains(lines.Text(), "init: ready") {
	}
	leader := initOf(t, pid)
	if !slices.Contains(loopFiles(), image) {
		t.Error("no loop device has the image, so that this test cannot fail")
	}
	gone := linkGone(t, portName(otherMAC))
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if !isDead(leader, patience) {
		t.Fatal("the container's init is still there")
	}
	await(t, "the container's port goes", gone)
	awaitNoLoop(t, image)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || bytes.Contains(mounts, []byte(stage)) {
		t.Errorf("mounts are left, or %v:\n%s", err, mounts)
	}
	Sweep(cgroup)
	wantNoCgroups(t, cgroup)
	// The macvlan would keep its address if it were still anywhere.
	start(t, Spec{Root: root, NICs: []NIC{{Parent: "up0", MAC: testMAC}}}, Options{}).expect(t, "init: ready")
}

func TestWhatCannotStart(t *testing.T) {
	root := busyboxRoot(t)
	for _, test := range []struct {
		name string
		spec Spec
		opts Options
		want string
	}{
		{"no root", Spec{Root: filepath.Join(root, "missing")}, Options{}, "missing: no such file"},
		{"no image", Spec{Root: filepath.Join(root, "etc/os-release")}, Options{}, "is neither a directory nor"},
		{"bind of nothing", Spec{Root: root, Binds: []Bind{{Source: "/missing/dir"}}}, Options{}, "/missing/dir: no such file"},
		{"no parent", Spec{Root: root, NICs: []NIC{{Parent: "none0", MAC: testMAC}}}, Options{}, "parent none0 of mv-none0"},
		{"no bridge", Spec{Root: root, NICs: []NIC{{Bridge: "none0", MAC: testMAC}}}, Options{}, "bridge none0 of host0"},
		{"no program", Spec{Root: root}, Options{Program: "no-such-nspawn"}, "no-such-nspawn"},
		{"limits without a cgroup", Spec{Root: root, Limits: Limits{Tasks: 9}}, Options{}, "a cgroup (v2) of the container's own"},
		{"limits without a controller", Spec{Root: root, Limits: Limits{Tasks: 9}}, Options{Cgroup: t.TempDir()}, "write +pids to"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.spec.Name = "box"
			if _, err := Start(t.Context(), test.spec, test.opts); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
	// Whatever it was, the root is free again.
	start(t, Spec{Root: root}, Options{}).expect(t, "init: ready")
}

func TestBrokenContainers(t *testing.T) {
	for _, test := range []struct {
		name, damage  string
		exit, console string
	}{
		{"no init", "rm sbin/init", "failed: exit code 1", "/sbin/init) failed: No such file"},
		{"init that is no program", "echo >sbin/init nonsense", "failed: exit code 1", "/sbin/init) failed: Exec format error"},
		{"init that fails", "printf '#!/bin/sh\nexit 3\n' >sbin/init", "failed: exit code 3", ""},
		{"no system", "rm etc/os-release", "os-release file is missing", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := busyboxRoot(t)
			cmd := exec.Command("sh", "-c", test.damage)
			cmd.Dir = root
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			s := start(t, Spec{Root: root}, Options{})
			if e := s.Exit(); e.Reason != Failed || !strings.Contains(e.String(), test.exit) {
				t.Errorf("exit %+v, want %q", e, test.exit)
			}
			s.expect(t, regexp.QuoteMeta(test.console))
		})
	}
}

func TestContainerInItsCgroup(t *testing.T) {
	root, dir := busyboxRoot(t), testCgroup(t)
	if dir == "" {
		t.Skip("needs cgroup v2")
	}
	s := start(t, Spec{Root: root}, Options{Cgroup: dir})
	s.expect(t, "init: ready")
	group, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", s.PID()))
	if err != nil || !bytes.Contains(group, []byte("0::/"+filepath.Base(dir))) {
		t.Errorf("nspawn's cgroups:\n%s%v", group, err)
	}
	s.Kill()
	<-s.Done()
	wantNoCgroups(t, dir)
}
