package keeper

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/every-channel/ecboot/images"
	"github.com/every-channel/ecboot/internal/nettest"
	"github.com/every-channel/ecboot/internal/nspawn"
	"github.com/every-channel/ecboot/internal/systemdtest"
	"github.com/every-channel/ecboot/internal/timeline"
	"github.com/every-channel/ecboot/vmm"
)

// errand is what a parent has to do.
type errand struct {
	Plan Plan
	Dir  string
}

// parent is the life of a supervisor that spawns a guest and is killed. It says
// which process it was about to have started, and that it runs.
func parent(role string) {
	var e errand
	err := json.Unmarshal([]byte(role), &e)
	if err == nil {
		os.Unsetenv(parentVar)
		_, err = Spawn(context.Background(), e.Plan, SpawnOptions{Dir: e.Dir, Join: func(pid int) (string, error) {
			fmt.Println("joined", pid)
			if e.Plan.Node == "orphan" {
				select {} // until it is killed
			}
			return "", nil
		}})
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("spawned")
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// spawnAndDie has a process spawn a guest that is killed when it has said this,
// and returns what it said before.
func spawnAndDie(t *testing.T, p Plan, dir, until string) string {
	t.Helper()
	role, err := json.Marshal(errand{p, dir})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), parentVar+"="+string(role))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	var said strings.Builder
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), until) {
			return said.String() + lines.Text()
		}
		said.WriteString(lines.Text() + "\n")
	}
	t.Fatalf("it ended without saying %q:\n%s", until, said.String())
	return ""
}

// adopt finds the guest that another process has spawned.
func adopt(t *testing.T, dir string) *Client {
	t.Helper()
	f := findOne(t, dir)
	if f.Client == nil || f.Err != nil {
		t.Fatalf("found %+v", f)
	}
	endWith(t, f.Client)
	return f.Client
}

// systemPlan is one of a machine that boots the system which ecboot carries.
func systemPlan(t *testing.T) Plan {
	t.Helper()
	nettest.NeedRoot(t)
	nettest.Need(t, "qemu-system-x86_64")
	set, err := images.Default()
	if err != nil {
		t.Skip(err)
	}
	files, err := set.Extract(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return Plan{
		Name: "box", Backend: MicroVM, Machine: "52:54:00:00:00:01",
		Credential: &vmm.Credential{UID: 65534, GID: 65534},
		VM:         &vmm.Spec{Machine: "microvm", MemoryMiB: 512, Sandbox: true, Kernel: files.Path("vmlinuz"), Initrd: files.Path("initramfs.cpio.zst"), Append: "console=ttyS0"},
	}
}

// A machine goes on when the process that spawned it is killed, and another one
// takes it over.
func TestMachineOutlivesItsParent(t *testing.T) {
	t.Parallel()
	p := systemPlan(t)
	p.LogFile = filepath.Join(t.TempDir(), "console.log")
	dir := filepath.Join(t.TempDir(), "box")
	spawnAndDie(t, p, dir, "spawned")

	c := adopt(t, dir)
	if _, err := c.Screenshot(t.Context()); err == nil || err.Error() != vmm.ErrNoScreen.Error() {
		t.Errorf("screenshot: %v", err)
	}
	reader, writer := attach(t, c, false), attach(t, c, true)
	reader.expect(t, "Linux version") // from the past, perhaps
	reader.expect(t, "ecboot: userland after")
	st, err := c.Status(t.Context())
	if err != nil || st.State != "running" || !strings.Contains(st.Command[0], "qemu-system") || st.PID == st.Keeper {
		t.Errorf("status %+v, %v", st, err)
	}
	writer.expect(t, "$ ")
	writer.tell(t, "poweroff")
	await(t, "the machine's end", c.Done())
	if e := c.Exit(); e.Reason != string(vmm.GuestShutdown) || e.Failed || e.Reboot || e.How != "" {
		t.Errorf("exit %+v", e)
	}
	await(t, "the console's end", reader.ended)
	if log, err := ReadLog(p.LogFile, 10000); err != nil || !strings.Contains(string(log), "Linux version") {
		t.Errorf("log:\n%s%v", log, err)
	}
}

// busyboxRoot is a container's root whose init does what it is told.
func busyboxRoot(t *testing.T) string {
	t.Helper()
	nettest.NeedRoot(t)
	nettest.Need(t, nspawn.Program, "busybox")
	if out, _ := exec.Command("sh", "-c", "ldd $(command -v busybox)").CombinedOutput(); !strings.Contains(string(out), "not a dynamic executable") {
		t.Skip("needs busybox-static: run make deps-test")
	}
	root := t.TempDir()
	for _, dir := range []string{"bin", "dev", "etc", "proc", "run", "sbin", "sys", "tmp", "usr", "var"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const init = `#!/bin/sh
export PATH=/bin
trap 'echo init: powers off; poweroff -f' 38 # SIGRTMIN+4
echo "init: ready"
while read -r line; do eval "$line"; done
`
	for name, content := range map[string]string{"sbin/init": init, "etc/os-release": "ID=test\n"} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	copied, err := exec.Command("sh", "-c", `cp "$(command -v busybox)" "$0/bin/" && for i in sh poweroff reboot stty sleep; do ln -s busybox "$0/bin/$i"; done`, root).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, copied)
	}
	return root
}

func containerPlan(t *testing.T) Plan {
	t.Helper()
	return Plan{
		Name: "box", Backend: Container, Machine: "box", Container: &nspawn.Spec{Name: "box", Root: busyboxRoot(t)},
		Cgroup: systemdtest.Cgroup(t),
	}
}

func TestContainerOutlivesItsParent(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "box")
	spawnAndDie(t, containerPlan(t), dir, "spawned")

	c := adopt(t, dir)
	reader, writer := attach(t, c, false), attach(t, c, true)
	reader.expect(t, "init: ready")
	writer.tell(t, "echo size: $(stty size)")
	reader.expect(t, "size: 24 80")
	if err := c.Reset(t.Context()); err == nil || err.Error() != "a container has no reset button: restart it" {
		t.Errorf("reset: %v", err)
	}
	if how, err := c.Stop(patient(t)); how != string(nspawn.StoppedPowerOff) || err != nil {
		t.Errorf("stopped %q, %v", how, err)
	}
	reader.expect(t, "init: powers off")
	if e := c.Exit(); e.Reason != string(nspawn.PowerOff) || e.Failed || e.How != string(nspawn.StoppedPowerOff) {
		t.Errorf("exit %+v", e)
	}
}

func TestContainerReboots(t *testing.T) {
	t.Parallel()
	c := spawn(t, containerPlan(t), SpawnOptions{})
	attach(t, c, false).expect(t, "init: ready")
	tell(t, c, "reboot -f")
	await(t, "the container's end", c.Done())
	if e := c.Exit(); !e.Reboot || e.Failed || e.Reason != string(nspawn.Reboot) {
		t.Errorf("exit %+v", e)
	}
	var stages []timeline.Stage
	if err := c.Events(patient(t), func(e timeline.Event) { stages = append(stages, e.Stage) }); err == nil {
		t.Errorf("events of a keeper that is gone: %v", stages)
	}
}

// Whoever kills a keeper gets rid of its guest, and is told that it is gone when
// it is.
func TestNothingOutlivesAKeeper(t *testing.T) {
	t.Parallel()
	for name, plan := range map[string]func(*testing.T) Plan{
		QEMU: func(t *testing.T) Plan {
			nettest.Need(t, "qemu-system-x86_64")
			return Plan{Name: "box", Backend: QEMU, Machine: "box", VM: &vmm.Spec{MemoryMiB: 64}}
		},
		Container: containerPlan,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := spawn(t, plan(t), SpawnOptions{})
			st, err := c.Status(patient(t))
			if err != nil {
				t.Fatal(err)
			}
			guest, err := openProcess(st.PID)
			if err != nil {
				t.Fatal(err)
			}
			defer guest.Close()
			if err := signalProcess(c.keeper, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			await(t, "the end", c.Done())
			if !hasEnded(guest.Fd()) {
				t.Errorf("process %d of the guest is there", st.PID)
			}
			if e := c.Exit(); e.Reason != "killed" || !e.Failed {
				t.Errorf("exit %+v", e)
			}
		})
	}
}

// The firmware has no ear for the power button, so a stop gets firm, after the
// plan's grace.
func TestMachineThatDoesNotListen(t *testing.T) {
	t.Parallel()
	nettest.Need(t, "qemu-system-x86_64")
	p := Plan{Name: "box", Backend: QEMU, Machine: "box", Grace: time.Second, VM: &vmm.Spec{MemoryMiB: 64, VNC: filepath.Join(t.TempDir(), "vnc")}}
	c := spawn(t, p, SpawnOptions{})
	attach(t, c, false).expect(t, "SeaBIOS")
	if err := c.Reset(t.Context()); err != nil {
		t.Error(err)
	}
	if png, err := c.Screenshot(patient(t)); !bytes.HasPrefix(png, []byte("\x89PNG")) || err != nil {
		t.Errorf("screenshot of %d bytes, %v", len(png), err)
	}
	if how, err := c.Stop(patient(t)); how != string(vmm.StoppedQuit) || err != nil {
		t.Errorf("stopped %q, %v", how, err)
	}
	if e := c.Exit(); e.Failed || e.How != string(vmm.StoppedQuit) || e.Reason != string(vmm.Quit) {
		t.Errorf("exit %+v", e)
	}
}

// What is wrong is said by who finds it, and nothing is left.
func TestWhatCannotStart(t *testing.T) {
	t.Parallel()
	nettest.Need(t, "qemu-system-x86_64", nspawn.Program)
	for name, tt := range map[string]struct {
		plan Plan
		want string
	}{
		"QEMU":      {Plan{Backend: QEMU, VM: &vmm.Spec{}, QEMU: "/nowhere/qemu"}, "/nowhere/qemu: no such file"},
		"kernel":    {Plan{Backend: MicroVM, VM: &vmm.Spec{Kernel: "/nowhere/vmlinuz"}}, "/nowhere/vmlinuz"},
		"arguments": {Plan{Backend: QEMU, VM: &vmm.Spec{Extra: []string{"-device", "toaster"}}}, "'toaster' is not a valid device"},
		"tap":       {Plan{Backend: QEMU, VM: &vmm.Spec{NICs: []vmm.NIC{{MAC: []byte{2, 0, 0, 0, 0, 1}}}}}, "0 taps for 1 NIC"},
		"root":      {Plan{Backend: Container, Container: &nspawn.Spec{Name: "box", Root: "/nowhere/root"}}, "/nowhere/root: no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			tt.plan.Name = "box"
			_, err := Spawn(patient(t), tt.plan, SpawnOptions{Dir: filepath.Join(base, "box")})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %s", err, tt.want)
			}
			if left, _ := os.ReadDir(base); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// A keeper that does not listen is killed itself.
func TestKillWithoutTheKeepersHelp(t *testing.T) {
	t.Parallel()
	nettest.Need(t, "qemu-system-x86_64")
	c := spawn(t, Plan{Name: "box", Backend: QEMU, Machine: "box", VM: &vmm.Spec{MemoryMiB: 64}}, SpawnOptions{})
	if err := signalProcess(c.keeper, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := c.Kill(patient(t)); err != nil {
		t.Error(err)
	}
	if e := c.Exit(); e.Reason != "killed" {
		t.Errorf("exit %+v", e)
	}
}

// QEMU that is killed by others is a failure, and the keeper lives to tell it.
func TestQEMUIsKilled(t *testing.T) {
	t.Parallel()
	nettest.Need(t, "qemu-system-x86_64")
	c := spawn(t, Plan{Name: "box", Backend: QEMU, Machine: "box", VM: &vmm.Spec{MemoryMiB: 64}}, SpawnOptions{})
	st, err := c.Status(patient(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(st.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := c.Exit(); e.Reason != string(vmm.Killed) || e.Detail != "by signal killed" || !e.Failed || e.How != "" {
		t.Errorf("exit %+v", e)
	}
}

// A keeper whose parent is killed before it has told what to start is of no use.
func TestParentDiesEarly(t *testing.T) {
	t.Setenv(fakeVar, "1")
	dir := filepath.Join(t.TempDir(), "box")
	said := spawnAndDie(t, plan("orphan"), dir, "joined")
	keeper := 0
	if _, err := fmt.Sscanf(said, "joined %d", &keeper); err != nil {
		t.Fatal(err)
	}
	if process, err := openProcess(keeper); err == nil {
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = awaitEnd(process)
		}()
		await(t, "the keeper's end", ended)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
}
