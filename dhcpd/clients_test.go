package dhcpd

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/nettest"
	"github.com/every-channel/ecboot/internal/timeline"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// lab is a server on a bridge of the test's own.
type lab struct {
	*Server
	timeline *timeline.Recorder
	events   chan timeline.Event
}

func startLab(t *testing.T, change func(*Config)) *lab {
	t.Helper()
	nettest.NeedRoot(t)
	nettest.Bridge(t, "br0", "10.77.0.1/24")
	l := &lab{timeline: timeline.New(), events: make(chan timeline.Event, 4096)}
	t.Cleanup(l.timeline.Watch(func(e timeline.Event) { l.events <- e }))
	cfg := testConfig()
	cfg.Interface = "br0"
	cfg.Timeline = l.timeline
	cfg.Now = nil
	cfg.Logger = slog.New(slog.NewTextHandler(testWriter{t}, nil))
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l.Server = s
	run(t, s)
	return l
}

// run serves until the test ends.
func run(t *testing.T, s interface {
	Run(context.Context) error
	Ready() <-chan struct{}
}) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	<-s.Ready()
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimSuffix(b, []byte("\n")))
	return len(b), nil
}

// await returns the next event of the stage. Clients back off for up to a
// minute, so only a much longer silence means that nothing will come.
func (l *lab) await(t *testing.T, stage timeline.Stage) timeline.Event {
	t.Helper()
	return l.awaitSignal(t, stage, func() {})
}

// awaitSignal makes a client do what leads to an event of the stage. It signals
// again and again: dhcpcd loses signals that come while its hooks run.
func (l *lab) awaitSignal(t *testing.T, stage timeline.Stage, signal func()) timeline.Event {
	t.Helper()
	again := time.NewTicker(time.Second)
	defer again.Stop()
	signal()
	for end := time.After(patience); ; {
		select {
		case e := <-l.events:
			t.Logf("%s %s %s", e.Machine, e.Stage, e.Detail)
			if e.Stage == stage {
				return e
			}
		case <-again.C:
			signal()
		case <-end:
			t.Fatalf("no %s", stage)
		}
	}
}

const patience = 2 * time.Minute

const hostMAC = "02:00:00:00:00:42"

func newClient(t *testing.T) *nettest.Host {
	t.Helper()
	h := nettest.NewHost(t, "client")
	nettest.Connect(t, "br0", h, "eth0")
	h.Run(t, "ip", "link", "set", "eth0", "down")
	h.Run(t, "ip", "link", "set", "eth0", "address", hostMAC, "up")
	return h
}

// client is a running DHCP client.
type client struct {
	*exec.Cmd
	lines chan string // what it prints
}

// start runs a client until the test ends.
func start(t *testing.T, cmd *exec.Cmd) *client {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	c := &client{Cmd: cmd, lines: make(chan string, 4096)}
	go func() {
		for scanner := bufio.NewScanner(r); scanner.Scan(); {
			c.lines <- scanner.Text()
		}
		close(c.lines)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		r.Close()
		for line := range c.lines {
			t.Logf("client: %s", line)
		}
	})
	return c
}

// signal returns a function that signals a process.
func signal(t *testing.T, pid int, sig syscall.Signal) func() {
	return func() {
		if err := syscall.Kill(pid, sig); err != nil {
			t.Fatal(err)
		}
	}
}

// child returns the only child of a process.
func child(t *testing.T, pid int) int {
	t.Helper()
	list, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(list)))
	if err != nil {
		t.Fatalf("children of %d: %v", pid, err)
	}
	return n
}

// await waits until the client prints a line that holds text.
func (c *client) await(t *testing.T, text string) {
	t.Helper()
	for {
		select {
		case line, ok := <-c.lines:
			if !ok {
				t.Fatalf("the client ended before it printed %q", text)
			}
			t.Logf("client: %s", line)
			if strings.Contains(line, text) {
				return
			}
		case <-time.After(patience):
			t.Fatalf("the client did not print %q", text)
		}
	}
}

func (l *lab) check(t *testing.T, addr string, state State) {
	t.Helper()
	mac, _ := boot.ParseMAC(hostMAC)
	for _, lease := range l.Leases() {
		if lease.MAC == mac && lease.Addr == netip.MustParseAddr(addr) && lease.State == state {
			return
		}
	}
	t.Errorf("%s is not %s: leases are %v", addr, state, l.Leases())
}

func TestDhclientGetsRenewsAndReleases(t *testing.T) {
	nettest.Need(t, "dhclient")
	l := startLab(t, nil)
	h := newClient(t)
	dir := t.TempDir()
	conf := filepath.Join(dir, "conf")
	// dhclient has no way to be told to renew: it is made to believe in a T1
	// of one second.
	if err := os.WriteFile(conf, []byte("supersede dhcp-renewal-time 1;\nsupersede dhcp-rebinding-time 30;\nsupersede dhcp-lease-time 60;\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"-d", "-v", "-4", "-cf", conf, "-lf", filepath.Join(dir, "leases"), "-pf", filepath.Join(dir, "pid"), "eth0"}
	client := start(t, h.Command(t.Context(), "dhclient", args...))
	l.await(t, "os.discover")
	if e := l.await(t, "os.ack"); e.Detail != "10.77.0.50" || e.Machine != hostMAC {
		t.Errorf("got %+v", e)
	}
	l.await(t, "os.ack")
	l.check(t, "10.77.0.50", Bound)
	client.Process.Signal(syscall.SIGKILL)
	h.Run(t, "dhclient", append([]string{"-r"}, args[1:]...)...)
	l.await(t, "os.release")
	l.check(t, "10.77.0.50", Released)
}

func TestUdhcpcGetsRenewsAndReleases(t *testing.T) {
	nettest.Need(t, "udhcpc")
	l := startLab(t, nil)
	h := newClient(t)
	client := start(t, h.Command(t.Context(), "udhcpc", "-f", "-i", "eth0", "-s", configure(t)))
	l.await(t, "os.ack")
	l.check(t, "10.77.0.50", Bound)
	client.await(t, "configured by bound")
	if e := l.awaitSignal(t, "os.request", signal(t, client.Process.Pid, syscall.SIGUSR1)); e.Detail != "10.77.0.50" {
		t.Errorf("renewal: %+v", e)
	}
	l.await(t, "os.ack")
	l.awaitSignal(t, "os.release", signal(t, client.Process.Pid, syscall.SIGUSR2))
	l.check(t, "10.77.0.50", Released)
}

func TestDhcpcdGetsRenewsAndReleases(t *testing.T) {
	nettest.Need(t, "dhcpcd")
	l := startLab(t, nil)
	h := newClient(t)
	// dhcpcd's helpers outlive it, unless it is the first process of a PID
	// namespace.
	client := start(t, h.Command(t.Context(), "unshare", "--pid", "--fork", "--kill-child", "dhcpcd", "-4", "-B", "-d", "--noarp", "eth0"))
	l.await(t, "os.ack")
	client.await(t, "spawned listener")
	dhcpcd := child(t, client.Process.Pid)
	l.check(t, "10.77.0.50", Bound)
	l.awaitSignal(t, "os.ack", signal(t, dhcpcd, syscall.SIGUSR1))
	client.await(t, "dhcpcd-run-hooks RENEW")
	l.awaitSignal(t, "os.release", signal(t, dhcpcd, syscall.SIGALRM))
	l.check(t, "10.77.0.50", Released)
}

// configure is the script that udhcpc calls; a host has another working
// directory.
func configure(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("testdata/configure")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// The address of a machine is the same in every stage of its boot, although
// each sends another client identifier, and belongs to nobody else.
func TestAddressBelongsToMAC(t *testing.T) {
	nettest.Need(t, "udhcpc")
	l := startLab(t, nil)
	h := newClient(t)
	for _, id := range []string{"0x3d:01aabbccddeeff", "0x3d:00112233", "0x3d:ff0000"} {
		h.Run(t, "udhcpc", "-q", "-n", "-f", "-i", "eth0", "-s", configure(t), "-C", "-x", id)
		if e := l.await(t, "os.ack"); e.Detail != "10.77.0.50" {
			t.Errorf("client identifier %s: %s", id, e.Detail)
		}
	}
	if who := l.Who(netip.MustParseAddr("10.77.0.50")); who != hostMAC {
		t.Errorf("Who: %q", who)
	}
}

func TestPortInUse(t *testing.T) {
	l := startLab(t, nil)
	cfg := l.cfg
	if s, err := New(cfg); err == nil || !strings.Contains(err.Error(), "another DHCP server") {
		t.Errorf("got %v, %v", s, err)
	}
}
