package vmm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/internal/timeline"
)

// helperEnv makes the test binary a program that starts the machine that it
// holds, prints the process ids of QEMU and its helpers and waits to be killed.
const helperEnv = "VMM_TEST_START"

func TestMain(m *testing.M) {
	if text := os.Getenv(helperEnv); text != "" {
		if err := startAndWait(text); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func startAndWait(text string) error {
	var spec Spec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		return err
	}
	var opts Options
	if os.Geteuid() == 0 {
		opts.Credential = nobody // a change of user may lose what kills
	}
	m, err := Start(context.Background(), spec, opts)
	if err != nil {
		return err
	}
	fmt.Print(m.PID())
	for _, h := range m.helpers {
		pid := h.proc.cmd.Process.Pid
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
		fmt.Print(" ", pid, " ", strings.TrimSpace(string(children)))
	}
	fmt.Println()
	<-m.Done()
	return nil
}

const mac0 = "52:54:00:00:00:01"

// start runs a machine for the length of a test.
func start(t *testing.T, spec Spec, opts Options) (*Machine, *timeline.Recorder) {
	t.Helper()
	needQEMU(t)
	opts.Timeline, opts.Machine = timeline.New(), mac0
	m, err := Start(t.Context(), spec, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Kill()
		<-m.Done()
		if t.Failed() {
			t.Logf("exit: %s\nstderr: %s\nconsole:\n%s", m.Exit(), m.Exit().Stderr, strings.Join(m.Console().Tail(40), "\n"))
		}
	})
	return m, opts.Timeline
}

// expect waits for text on the console. It gives up only when the test as a
// whole must.
func expect(t *testing.T, m *Machine, re string) {
	t.Helper()
	ctx := t.Context()
	if deadline, ok := t.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-5*time.Second))
		defer cancel()
	}
	if err := m.Console().Expect(ctx, regexp.MustCompile(re)); err != nil {
		t.Fatal(err)
	}
}

func stages(r *timeline.Recorder) (list []timeline.Stage) {
	for _, e := range r.Events(mac0) {
		list = append(list, e.Stage)
	}
	return list
}

func TestMachineBIOS(t *testing.T) {
	m, events := start(t, Spec{MemoryMiB: 64}, Options{})
	expect(t, m, "SeaBIOS")
	if status, err := m.Status(t.Context()); status != "running" || err != nil {
		t.Errorf("status %q, %v", status, err)
	}
	if err := m.Execute(t.Context(), "no-such-command", nil, nil); err == nil || !strings.Contains(err.Error(), "QMP no-such-command: ") {
		t.Errorf("error %v", err)
	}
	expect(t, m, "No bootable device")
	m.Kill()
	if e := m.Exit(); e.Reason != Killed || e.Signal != syscall.SIGKILL || e.Code != -1 {
		t.Errorf("exit %+v", e)
	}
	got := events.Events(mac0)
	if len(got) != 3 || got[0].Stage != timeline.Start || got[1].Stage != timeline.Firmware || got[2].Stage != timeline.Exit {
		t.Fatalf("events %+v", got)
	}
	if got[0].Detail != "q35, BIOS, tcg" || !strings.HasPrefix(got[1].Detail, "SeaBIOS") || got[2].Detail != "killed" {
		t.Errorf("details %q, %q, %q", got[0].Detail, got[1].Detail, got[2].Detail)
	}
	if err := m.Console().Expect(t.Context(), regexp.MustCompile("never")); !errors.Is(err, ErrConsoleEnded) {
		t.Errorf("expect after the end: %v", err)
	}
	if how := m.Stop(t.Context()); how != StoppedItself {
		t.Errorf("stopped by %q", how)
	}
}

// SeaBIOS has no ear for the power button, so a stop gets to quit.
func TestStopQuits(t *testing.T) {
	m, _ := start(t, Spec{MemoryMiB: 64}, Options{Grace: time.Millisecond})
	if how := m.Stop(t.Context()); how != StoppedQuit {
		t.Errorf("stopped by %q", how)
	}
	if e := m.Exit(); e.Reason != Quit || e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
}

func TestStopDoesNotWaitWhenCancelled(t *testing.T) {
	m, _ := start(t, Spec{MemoryMiB: 64}, Options{Grace: time.Hour})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if how := m.Stop(ctx); how != StoppedQuit {
		t.Errorf("stopped by %q", how)
	}
}

// A QEMU that does not answer is killed.
func TestStopKills(t *testing.T) {
	m, _ := start(t, Spec{MemoryMiB: 64}, Options{})
	m.qmp.conn.Close()
	if how := m.Stop(t.Context()); how != StoppedKill {
		t.Errorf("stopped by %q", how)
	}
	if e := m.Exit(); e.Reason != Killed {
		t.Errorf("exit %+v", e)
	}
}

func TestKilledFromOutside(t *testing.T) {
	m, _ := start(t, Spec{MemoryMiB: 64}, Options{})
	if err := syscall.Kill(m.PID(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if e := m.Exit(); e.Reason != Killed || e.Detail != "a signal told QEMU to end" {
		t.Errorf("exit %+v", e)
	}
}

func TestCrashIsAFailure(t *testing.T) {
	m, _ := start(t, Spec{MemoryMiB: 64}, Options{})
	if err := syscall.Kill(m.PID(), syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	if e := m.Exit(); e.Reason != Failed || e.Signal != syscall.SIGABRT || !strings.Contains(e.Detail, "aborted") {
		t.Errorf("exit %+v", e)
	}
}

// A reset begins the firmware's stage anew. SeaBIOS turns the one that QEMU
// makes into one of its own.
func TestReset(t *testing.T) {
	m, events := start(t, Spec{MemoryMiB: 64}, Options{})
	expect(t, m, "No bootable device")
	again := make(chan struct{}, 16)
	defer events.Watch(func(e timeline.Event) {
		if e.Stage == timeline.Firmware {
			again <- struct{}{}
		}
	})()
	if err := m.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-again
	m.Kill()
	if e := m.Exit(); e.Resets == 0 {
		t.Errorf("resets %d; want more", e.Resets)
	}
}

func TestMachineReadsItsConsole(t *testing.T) {
	ipxe := needFile(t, "/usr/lib/ipxe/ipxe.lkrn", "ipxe")
	m, _ := start(t, Spec{MemoryMiB: 128, Kernel: ipxe, InitrdData: []byte("#!ipxe\necho hello from script\nshell\n")}, Options{})
	var shown bytes.Buffer
	detach := m.Console().Attach(&shown)
	expect(t, m, "^hello from script$")
	expect(t, m, `^iPXE> $`)
	if _, err := m.Console().Write([]byte("echo one${}two\r")); err != nil {
		t.Fatal(err)
	}
	expect(t, m, "^onetwo$")
	detach()
	if !strings.Contains(shown.String(), "SeaBIOS") || !strings.Contains(shown.String(), "onetwo") {
		t.Errorf("attached writer saw %q", shown.String())
	}
}

// kernel finds the kernel that the module pins.
func kernel(t *testing.T) string {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/gokrazy/kernel.amd64").Output()
	if err != nil {
		t.Skipf("go list: %v: the kernel's module is missing", err)
	}
	return needFile(t, filepath.Join(strings.TrimSpace(string(out)), "vmlinuz"), "its Go module (go mod download)")
}

func TestKernelPanic(t *testing.T) {
	m, events := start(t, Spec{Kernel: kernel(t), Append: "console=ttyS0 panic=0"}, Options{})
	if e := m.Exit(); e.Reason != GuestPanic || !strings.Contains(e.Detail, "VFS: Unable to mount root fs") {
		t.Errorf("exit %+v", e)
	}
	want := []timeline.Stage{timeline.Start, timeline.Firmware, timeline.Linux, timeline.Panic, timeline.Exit}
	if got := stages(events); !slices.Equal(got, want) {
		t.Errorf("stages %v; want %v", got, want)
	}
}

func TestKernelPanicPauses(t *testing.T) {
	m, events := start(t, Spec{Kernel: kernel(t), Append: "console=ttyS0 panic=0", OnPanic: PanicPauses}, Options{Grace: time.Hour})
	expect(t, m, `---\[ end Kernel panic`)
	var status string
	for status != "paused" && status != "guest-panicked" {
		var err error
		if status, err = m.Status(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := stages(events); got[len(got)-1] != timeline.Panic {
		t.Errorf("stages %v", got)
	}
	if how := m.Stop(t.Context()); how != StoppedQuit {
		t.Errorf("stopped by %q", how)
	}
	if e := m.Exit(); e.Reason != GuestPanic {
		t.Errorf("exit %+v", e)
	}
}

func needFile(t *testing.T, path, pkg string) string {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		t.Skipf("%s is missing: install the package %s", path, pkg)
	}
	return path
}

// tap makes a tap in a network of its own, where nobody answers.
func tap(t *testing.T) *os.File {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making a tap needs root")
	}
	type result struct {
		file *os.File
		err  error
	}
	made := make(chan result)
	go func() {
		// The thread is left in its network and ends with this goroutine.
		runtime.LockOSThread()
		f, err := newTap()
		made <- result{f, err}
	}()
	r := <-made
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { r.file.Close() })
	return r.file
}

func newTap() (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "tap")
	req, err := unix.NewIfreq("tap0")
	if err != nil {
		return f, err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return f, err
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return f, err
	}
	defer unix.Close(s)
	req.SetUint16(unix.IFF_UP)
	return f, unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req)
}

func TestNICBootsAndIsCaptured(t *testing.T) {
	for _, user := range []*Credential{nil, nobody} { // making a tap needs root anyway
		pcap := filepath.Join(t.TempDir(), "a,b.pcap")
		m, _ := start(t, Spec{MemoryMiB: 128, Sandbox: true, NICs: []NIC{{MAC: mac2, BootIndex: 1, Pcap: pcap}}},
			Options{SkipBanner: true, Credential: user, Taps: []*os.File{tap(t)}})
		expect(t, m, regexp.QuoteMeta("Configuring (net0 "+mac2.String()+")..."))
		// The first packet follows this line at any time.
		awaitContent(t, pcap, mac2)
		m.Kill()
		<-m.Done()
	}
}

// awaitContent waits until a file that is being written contains want.
func awaitContent(t *testing.T, path string, want []byte) {
	t.Helper()
	changes, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(changes)
	if _, err := unix.InotifyAddWatch(changes, path, unix.IN_MODIFY); err != nil {
		t.Fatal(err)
	}
	events := make([]byte, 4096)
	for {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(content, want) {
			return
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(changes), Events: unix.POLLIN}}, 60_000)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil || n == 0:
			t.Fatalf("%x is not among the %d bytes of %s (%v)", want, len(content), path, err)
		default:
			unix.Read(changes, events)
		}
	}
}

// iPXE's banner is answered as long as it is there, so the ROM goes on without
// reaching the end of its wait. A fake guest that waits for ever proves it.
func TestSkipBanner(t *testing.T) {
	ours, guest := net.Pipe()
	defer guest.Close()
	m := &Machine{console: newConsole(ours)}
	m.console.prompt = m.skipBanner()
	go m.console.run()
	key := make([]byte, 8)
	for range 2 { // a ROM, then what it chainloads
		for _, part := range []string{"iPXE 1.0.0\r\n\nPress Ctrl-B for the iPXE", " command line..."} {
			say(t, guest, part)
		}
		n, err := guest.Read(key)
		if string(key[:n]) != " " || err != nil {
			t.Fatalf("pressed %q, %v", key[:n], err)
		}
		say(t, guest, strings.Repeat("\b \b", 41)+"net0: up\r\n")
	}
}

func TestNICModels(t *testing.T) {
	for _, nic := range []NIC{{Model: "e1000"}, {Model: "e1000e"}, {Model: "rtl8139"}, {Model: "vmxnet3"}, {ROM: ROMNone}} {
		nic.MAC, nic.BootIndex = mac1, 1
		m, _ := start(t, Spec{MemoryMiB: 64, NICs: []NIC{nic}}, Options{Taps: []*os.File{tap(t)}})
		expect(t, m, "SeaBIOS")
		m.Kill()
		<-m.Done()
	}
}

func TestUEFIWritesItsVariables(t *testing.T) {
	needQEMU(t)
	uefi, err := FindUEFI(Wanted{})
	if err != nil {
		t.Skip(err)
	}
	template, err := os.ReadFile(uefi.Vars)
	if err != nil {
		t.Fatal(err)
	}
	m, events := start(t, Spec{UEFI: uefi, MemoryMiB: 256}, Options{})
	expect(t, m, "BdsDxe: (loading|starting|failed)")
	vars := variables(t, m.PID())
	if len(vars) != len(template) {
		t.Errorf("the machine has %d bytes of variables; want %d", len(vars), len(template))
	}
	if bytes.Equal(vars, template) {
		t.Error("the firmware's variables did not arrive in the machine's copy")
	}
	if now, err := os.ReadFile(uefi.Vars); err != nil || !bytes.Equal(now, template) {
		t.Errorf("the template has changed (%v)", err)
	}
	expect(t, m, "Press .*ESC.* in")
	if _, err := m.Console().Write([]byte("\x1b")); err != nil {
		t.Fatal(err)
	}
	expect(t, m, "Shell> ")
	if _, err := m.Console().Write([]byte("reset -s\r")); err != nil {
		t.Fatal(err)
	}
	if e := m.Exit(); e.Reason != GuestShutdown || e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
	if got := events.Events(mac0); !strings.HasPrefix(got[1].Detail, "BdsDxe") || got[0].Detail != "q35, UEFI, tcg" {
		t.Errorf("events %+v", got)
	}
}

// variables reads the copy that QEMU holds: it exists nowhere else.
func variables(t *testing.T, pid int) []byte {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if target, _ := os.Readlink(fd); strings.HasPrefix(target, "/memfd:uefi-vars") {
			data, err := os.ReadFile(fd)
			if err != nil {
				t.Fatal(err)
			}
			return data
		}
	}
	t.Fatal("QEMU holds no variables")
	return nil
}

func TestStartErrors(t *testing.T) {
	needQEMU(t)
	missing := filepath.Join(t.TempDir(), "missing")
	for _, tt := range []struct {
		name string
		spec Spec
		opts Options
		want string
	}{
		{"bad argument", Spec{Extra: []string{"-device", "no-such-device"}}, Options{}, "QEMU does not start: qemu-system-x86_64: -device no-such-device: 'no-such-device' is not a valid device model name"},
		{"missing kernel", Spec{Kernel: missing}, Options{}, missing},
		{"missing template", Spec{UEFI: UEFI{Code: missing, Vars: missing}}, Options{}, "template of the UEFI variables: open " + missing},
		{"missing code", Spec{UEFI: UEFI{Code: missing, Vars: "/dev/null"}}, Options{}, "No such file"},
		{"taps", Spec{NICs: []NIC{{MAC: mac1}}}, Options{}, "0 taps for 1 NICs"},
		{"contradiction", Spec{Append: "x"}, Options{}, "name a kernel"},
		{"no such QEMU", Spec{}, Options{QEMU: missing}, missing},
	} {
		m, err := Start(t.Context(), tt.spec, tt.opts)
		if m != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want an error with %q", tt.name, err, tt.want)
		}
	}
}

func TestStartNamesThePackage(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := Start(t.Context(), Spec{}, Options{}); err == nil || !strings.Contains(err.Error(), "apt-get install qemu-system-x86") {
		t.Errorf("error %v", err)
	}
}

// A start that is cancelled leaves no QEMU.
func TestStartIsCancelled(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	fifo := filepath.Join(t.TempDir(), "started")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, err := Start(ctx, Spec{}, Options{QEMU: script(t, "echo $$ >"+pidFile+"; echo >"+fifo+"; exec sleep 600")})
		done <- err
	}()
	if _, err := os.ReadFile(fifo); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	data, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d is still there (%v)", pid, err)
	}
}

// However we die, QEMU and its helpers die too.
func TestNoOrphan(t *testing.T) {
	needQEMU(t)
	spec := Spec{MemoryMiB: 64, Sandbox: true}
	want := 1
	if _, err := exec.LookPath("swtpm"); err == nil {
		spec.TPM = filepath.Join(t.TempDir(), "tpm")
		want++
	}
	if findVirtiofsd() != "" && os.Geteuid() == 0 {
		spec.Shares = []Share{{Tag: "share", Path: t.TempDir()}, {Tag: "fixed", Path: t.TempDir(), Driver: ShareVirtiofs, ReadOnly: true}}
		want += 2
	}
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			parent := exec.Command(os.Args[0])
			parent.Env = append(os.Environ(), helperEnv+"="+string(text))
			out, err := parent.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := parent.Start(); err != nil {
				t.Fatal(err)
			}
			line, _ := bufio.NewReader(out).ReadString('\n')
			pids := strings.Fields(line)
			var fds []int
			for _, word := range pids {
				pid, err := strconv.Atoi(word)
				if err != nil {
					t.Fatalf("the helper says %q", line)
				}
				fd, err := unix.PidfdOpen(pid, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer unix.Close(fd)
				fds = append(fds, fd)
			}
			if len(fds) < want {
				t.Fatalf("processes %q; want %d or more", line, want)
			}
			if err := parent.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			_ = parent.Wait()
			for _, fd := range fds {
				waitPidfd(t, fd)
			}
		})
	}
}

// waitPidfd waits for the end of a process that is not ours to wait for.
func waitPidfd(t *testing.T, fd int) {
	t.Helper()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 60_000)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			t.Fatal(err)
		case n == 0:
			t.Fatal("QEMU outlived its parent by a minute")
		default:
			return
		}
	}
}

// A QEMU that ends by itself closes its images and answers nobody: to kill it for
// that could cost them what the guest wrote last.
func TestStopLeavesAnEndingMachineAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, monitor := newMonitor(t)
		m := &Machine{qmp: q, done: make(chan struct{})}
		m.onEvent(event{Name: "SHUTDOWN", Data: []byte(`{"guest": true, "reason": "guest-shutdown"}`)})
		monitor.conn.Close()
		if status, err := m.Status(t.Context()); status != "shutdown" || err != nil {
			t.Errorf("%s, %v", status, err)
		}
		time.AfterFunc(time.Second, func() { close(m.done) })
		if how := m.Stop(t.Context()); how != StoppedItself { // it has no process to kill
			t.Errorf("%s", how)
		}
	})
}
