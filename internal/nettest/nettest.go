// Package nettest gives tests a network of their own: the test process moves
// into a fresh network namespace, and other hosts are namespaces beside it, tied
// together by bridges and veth pairs. Nothing has a name outside the test, so
// nothing can stay behind, however the test ends.
package nettest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What a re-executed test binary is to be; set by Main and NewHost only.
const (
	roleVar  = "ECBOOT_NETTEST_ROLE"
	roleTest = "test" // run the tests, in the new namespace
	roleHost = "host" // hold a namespace open until standard input ends

	roleProgram = "program " // and its name
)

// Program is Go code that runs in a process of its own on a Host, see Self.
type Program struct {
	Name string
	Main func(args []string) error
}

// Main runs the tests in a network namespace of their own with lo up; call it
// from TestMain. Without root the tests run where they are, and those that
// call NeedRoot are skipped. programs are what the tests run by Self.
func Main(m *testing.M, programs ...Program) {
	for _, p := range programs {
		if os.Getenv(roleVar) == roleProgram+p.Name {
			if err := p.Main(os.Args[1:]); err != nil {
				fmt.Fprintln(os.Stderr, p.Name+":", err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	switch os.Getenv(roleVar) {
	case roleHost:
		holdHost()
	case roleTest:
		if err := loopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, "nettest: lo:", err)
			os.Exit(1)
		}
	default:
		if os.Geteuid() == 0 {
			fmt.Fprintln(os.Stderr, "nettest:", isolate())
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// isolate returns only on error. A namespace belongs to a thread: exec makes
// the thread that has it the whole process.
func isolate() error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("new network namespace: %w", err)
	}
	return syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), roleVar+"="+roleTest))
}

// holdHost is the life of a Host's process.
func holdHost() {
	if err := furnishHost(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// furnishHost hides from DHCP clients what they would share with this machine
// or write into it.
func furnishHost() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, dir := range []string{"/run", "/var/lib/dhcp", "/var/lib/dhcpcd"} {
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
		}
	}
	if err := os.WriteFile("/run/resolv.conf", nil, 0o644); err != nil {
		return err
	}
	if err := unix.Mount("/run/resolv.conf", "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind resolv.conf: %w", err)
	}
	// A sysfs shows the links of one namespace. What is mounted in the old one
	// must not be hidden beneath the new.
	const cgroups, aside = "/sys/fs/cgroup", "/run/cgroup"
	if err := os.Mkdir(aside, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(cgroups, aside, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("keep %s: %w", cgroups, err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount sysfs: %w", err)
	}
	if err := unix.Mount(aside, cgroups, "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("bring back %s: %w", cgroups, err)
	}
	if err := os.Remove(aside); err != nil {
		return err
	}
	return loopbackUp()
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// NeedRoot skips the test when namespaces cannot be made.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Getenv(roleVar) != roleTest {
		t.Skip("needs root and nettest.Main for network namespaces")
	}
}

// Need skips the test when a program is missing, and names it.
func Need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s: run make deps", p)
		}
	}
}

// Host is another machine on the test's network: a namespace for network,
// mounts and host name.
type Host struct {
	Name string
	pid  int
}

// NewHost makes a host with only lo. It is gone at the end of the test.
func NewHost(t testing.TB, name string) *Host {
	t.Helper()
	NeedRoot(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVar+"="+roleHost)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS}
	// The host ends when this pipe does, and so with the test in any case.
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("host %s: %v", name, err)
	}
	t.Cleanup(func() {
		stdin.Close()
		cmd.Wait()
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		t.Fatalf("host %s did not come up: %q %v", name, line, err)
	}
	return &Host{Name: name, pid: cmd.Process.Pid}
}

// Command prepares a program that will run on the host.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	enter := []string{"--target", strconv.Itoa(h.pid), "--net", "--mount", "--uts", "--", name}
	return exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
}

// Self prepares a Program of Main's that will run on the host.
func (h *Host) Self(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := h.Command(ctx, exe, args...)
	cmd.Env = append(os.Environ(), roleVar+"="+roleProgram+name)
	return cmd, nil
}

// Run runs a program on the host and returns what it printed, on either
// output; a failure ends the test.
func (h *Host) Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := h.Command(context.Background(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %s %s: %v\n%s", h.Name, name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Do calls fn on a thread that is in the host's network namespace: sockets that
// are made in it belong to the host, whoever uses them later.
func (h *Host) Do(t testing.TB, fn func()) {
	t.Helper()
	there, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", h.pid))
	must(t, h.Name, err)
	defer there.Close()
	here, err := os.Open("/proc/self/ns/net")
	must(t, "this namespace", err)
	defer here.Close()
	runtime.LockOSThread()
	must(t, "enter "+h.Name, unix.Setns(int(there.Fd()), unix.CLONE_NEWNET))
	// The thread must go on: programs that it has started end with it.
	defer func() {
		must(t, "leave "+h.Name, unix.Setns(int(here.Fd()), unix.CLONE_NEWNET))
		runtime.UnlockOSThread()
	}()
	fn()
}

// Bridge makes a bridge in the test's namespace; addr is an address with prefix
// length, or empty.
func Bridge(t testing.TB, name, addr string) {
	t.Helper()
	NeedRoot(t)
	la := netlink.NewLinkAttrs()
	la.Name = name
	bridge := &netlink.Bridge{LinkAttrs: la}
	must(t, "add bridge "+name, netlink.LinkAdd(bridge))
	t.Cleanup(func() { netlink.LinkDel(bridge) })
	if addr != "" {
		a, err := netlink.ParseAddr(addr)
		must(t, "parse "+addr, err)
		must(t, "address "+addr, netlink.AddrAdd(bridge, a))
	}
	must(t, "up "+name, netlink.LinkSetUp(bridge))
}

// Remove removes a link of the test's namespace.
func Remove(t testing.TB, name string) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	must(t, "find "+name, err)
	must(t, "remove "+name, netlink.LinkDel(link))
}

// Wire joins a host to the test's namespace by a veth pair: name here, ifname
// there, both up and without address.
func Wire(t testing.TB, name string, h *Host, ifname string) {
	t.Helper()
	la := netlink.NewLinkAttrs()
	la.Name = name
	veth := &netlink.Veth{LinkAttrs: la, PeerName: ifname, PeerNamespace: netlink.NsPid(h.pid)}
	must(t, "add veth "+name, netlink.LinkAdd(veth))
	t.Cleanup(func() { netlink.LinkDel(veth) })
	must(t, "up "+name, netlink.LinkSetUp(veth))
	h.Run(t, "ip", "link", "set", ifname, "up")
}

// Connect joins a host to a bridge of the test's namespace by a veth pair whose
// end in the host is called ifname. Both ends are up; the host has no address.
func Connect(t testing.TB, bridge string, h *Host, ifname string) {
	t.Helper()
	master, err := netlink.LinkByName(bridge)
	must(t, "find "+bridge, err)
	name := fmt.Sprintf("v%d.%s", h.pid, ifname)
	Wire(t, name, h, ifname)
	port, err := netlink.LinkByName(name)
	must(t, "find "+name, err)
	must(t, "put "+name+" into "+bridge, netlink.LinkSetMaster(port, master))
}

func must(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}
