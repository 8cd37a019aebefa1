package keeper

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/internal/durable"
	"github.com/every-channel/ecboot/internal/nspawn"
	"github.com/every-channel/ecboot/internal/timeline"
	"github.com/every-channel/ecboot/vmm"
)

// patience is for what may take long on a busy machine, and never comes when
// there is a bug.
const patience = time.Minute

func patient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// plan is one of a fake guest.
func plan(node string) Plan {
	return Plan{Name: "box", Node: node, Backend: QEMU, Machine: "52:54:00:00:00:01", Digest: "d1", VM: &vmm.Spec{}, Grace: patience}
}

func spawn(t *testing.T, p Plan, opts SpawnOptions) *Client {
	t.Helper()
	if opts.Dir == "" {
		opts.Dir = filepath.Join(t.TempDir(), p.Name)
	}
	c, err := Spawn(patient(t), p, opts)
	if err != nil {
		t.Fatal(err)
	}
	endWith(t, c)
	return c
}

// endWith ends a guest with its test.
func endWith(t *testing.T, c *Client) {
	t.Cleanup(func() {
		if err := c.Kill(context.Background()); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(c.dir, logName))
			t.Logf("exit: %s\nlog of the keeper:\n%s", c.Exit(), log)
		}
	})
}

func spawnFake(t *testing.T, node string) *Client {
	t.Helper()
	t.Setenv(fakeVar, "1")
	return spawn(t, plan(node), SpawnOptions{})
}

func await(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("waited in vain: %s", what)
	}
}

// terminal is a client's end of a console with what has come so far.
type terminal struct {
	io.ReadWriteCloser

	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{}
	ended   chan struct{}
}

func attach(t *testing.T, c *Client, write bool) *terminal {
	t.Helper()
	conn, err := c.Console(patient(t), write)
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{ReadWriteCloser: conn, changed: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(term.ended)
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			term.mu.Lock()
			term.text.Write(buf[:n])
			close(term.changed)
			term.changed = make(chan struct{})
			term.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { conn.Close() })
	return term
}

func (term *terminal) said() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.text.String()
}

func (term *terminal) expect(t *testing.T, text string) {
	t.Helper()
	for limit := time.After(patience); ; {
		term.mu.Lock()
		found, changed := strings.Contains(term.text.String(), text), term.changed
		term.mu.Unlock()
		if found {
			return
		}
		select {
		case <-changed:
		case <-term.ended:
			if !strings.Contains(term.said(), text) {
				t.Fatalf("the console ended without %q:\n%s", text, term.said())
			}
			return
		case <-limit:
			t.Fatalf("no %q on the console:\n%s", text, term.said())
		}
	}
}

func (term *terminal) tell(t *testing.T, line string) {
	t.Helper()
	if _, err := io.WriteString(term, line+"\n"); err != nil {
		t.Fatal(err)
	}
}

// tell has a fake guest do something.
func tell(t *testing.T, c *Client, line string) {
	t.Helper()
	term := attach(t, c, true)
	term.tell(t, line)
	term.Close()
}

func TestSpawn(t *testing.T) {
	t.Setenv(fakeVar, "1")
	t.Setenv("NOTIFY_SOCKET", "/nowhere")
	// What this process was given by mistake.
	stray, err := unix.Open("/etc/hostname", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(stray)
	tapOut, tap, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer tapOut.Close()
	// Longer than the address of a socket can be.
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30), "box")
	joined := 0
	c := spawn(t, plan(""), SpawnOptions{Dir: dir, Taps: []*os.File{tap}, Join: func(pid int) (string, error) {
		if _, err := os.Stat(filepath.Join(dir, planName)); err == nil {
			t.Error("the keeper knows its plan before it was told to start")
		}
		joined = pid
		return "/some/cgroup", nil
	}})
	if _, err := tap.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the tap is open here: %v", err)
	}
	if b, err := io.ReadAll(tapOut); string(b) != "tap 0" || err != nil {
		t.Errorf("the guest wrote %q to its tap, and it was closed: %v", b, err)
	}

	st, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if st.Schema != Schema || st.Name != "box" || st.Digest != "d1" || st.Backend != QEMU || st.State != "running" ||
		st.PID != st.Keeper || st.Keeper != joined || !slices.Equal(st.Command, []string{"fake", "box"}) || time.Since(st.Since) > patience {
		t.Errorf("status %+v", st)
	}
	if st.Plan.Cgroup != "/some/cgroup" || st.Plan.Schema != Schema || c.Plan().Cgroup != "/some/cgroup" {
		t.Errorf("plan %+v", st.Plan)
	}
	for name, mode := range map[string]os.FileMode{"": 0o700 | os.ModeDir, planName: 0o600, socketName: 0o600 | os.ModeSocket, logName: 0o600, lockName: 0o600} {
		if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || fi.Mode() != mode {
			t.Errorf("%s: %v, %v", name, fi.Mode(), err)
		}
	}

	proc := "/proc/" + strconv.Itoa(st.Keeper)
	if sid, err := unix.Getsid(st.Keeper); sid != st.Keeper || err != nil {
		t.Errorf("session %d of keeper %d: %v", sid, st.Keeper, err)
	}
	fds, err := os.ReadDir(proc + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		target, _ := os.Readlink(proc + "/fd/" + fd.Name())
		n, _ := strconv.Atoi(fd.Name())
		switch {
		case n < 2 && target != os.DevNull, n == 2 && target != filepath.Join(dir, logName), n == firstFD && target != filepath.Join(dir, lockName):
			t.Errorf("descriptor %d is %s", n, target)
		case strings.HasPrefix(target, "pipe:"), target == "/etc/hostname":
			t.Errorf("descriptor %d is %s", n, target)
		}
	}
	if env, _ := os.ReadFile(proc + "/environ"); bytes.Contains(env, []byte("NOTIFY_SOCKET")) {
		t.Error("the keeper may notify the service manager of its parent")
	}
	if cwd, _ := os.Readlink(proc + "/cwd"); cwd != "/" {
		t.Errorf("it works in %s", cwd)
	}
}

func TestSpawnErrors(t *testing.T) {
	t.Setenv(fakeVar, "1")
	busy := errors.New("no such slice")
	for _, tt := range []struct {
		name string
		plan func(*Plan)
		join error
		want string
	}{
		{"no name", func(p *Plan) { p.Name = "" }, nil, "a guest without a name"},
		{"backend", func(p *Plan) { p.Backend = "xen" }, nil, `backend "xen": use qemu, microvm or container`},
		{"no machine", func(p *Plan) { p.VM = nil }, nil, "backend qemu does not go with what is planned"},
		{"log", func(p *Plan) { p.LogFile = "console.log" }, nil, `log "console.log": use an absolute path`},
		{"log is a directory", func(p *Plan) { p.LogFile = "/proc" }, nil, "log of the console: open /proc: is a directory"},
		{"join", func(*Plan) {}, busy, busy.Error()},
		{"start", func(p *Plan) { p.Node = "fails" }, nil, "no disk at /nowhere: make it first"},
		{"crash", func(p *Plan) { p.Node = "crashes" }, nil, "the keeper ended before the guest ran: panic: a bug"},
		{"kill", func(p *Plan) { p.Node = "dies" }, nil, "the keeper ended before the guest ran: somebody killed it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			base := t.TempDir()
			p := plan("")
			tt.plan(&p)
			r, tap, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			keeper := 0
			_, err = Spawn(patient(t), p, SpawnOptions{Dir: filepath.Join(base, "box"), Taps: []*os.File{tap}, Join: func(pid int) (string, error) {
				keeper = pid
				return "", tt.join
			}})
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("error %v, want %s", err, tt.want)
			}
			if _, err := io.ReadAll(r); err != nil {
				t.Error(err) // the tap is closed everywhere
			}
			if left, _ := os.ReadDir(base); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			if keeper != 0 && unix.Kill(keeper, 0) == nil {
				t.Errorf("the keeper lives")
			}
		})
	}
}

// Whoever gives up a start waits until what it has begun is taken back.
func TestSpawnCancelled(t *testing.T) {
	t.Setenv(fakeVar, "1")
	dir := filepath.Join(t.TempDir(), "box")
	ctx, cancel := context.WithCancelCause(t.Context())
	keeper := 0
	why := errors.New("no more time")
	p := plan("tidies")
	p.LogFile = filepath.Join(t.TempDir(), "log")
	_, err := Spawn(ctx, p, SpawnOptions{Dir: dir, Join: func(pid int) (string, error) {
		keeper = pid
		go func() {
			for ctx.Err() == nil {
				if _, err := os.Stat(filepath.Join(dir, socketName)); err == nil {
					cancel(why)
				}
				time.Sleep(time.Millisecond)
			}
		}()
		return "", nil
	}})
	if !errors.Is(err, why) {
		t.Errorf("error %v", err)
	}
	if unix.Kill(keeper, 0) == nil {
		t.Error("the keeper lives")
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
	if _, err := os.Stat(p.LogFile + ".tidied"); err != nil {
		t.Error(err)
	}
}

// A keeper that does not hear that is killed.
func TestSpawnCancelledForGood(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "box")
	ctx, cancel := context.WithCancel(t.Context())
	keeper := 0
	_, err := Spawn(ctx, plan(""), SpawnOptions{Dir: dir, Join: func(pid int) (string, error) {
		keeper = pid
		cancel()
		return "", unix.Kill(pid, unix.SIGSTOP)
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if unix.Kill(keeper, 0) == nil {
		t.Error("the keeper lives")
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
}

func TestSpawnTwice(t *testing.T) {
	c := spawnFake(t, "")
	if _, err := Spawn(t.Context(), plan(""), SpawnOptions{Dir: c.dir}); !errors.Is(err, ErrRunning) {
		t.Errorf("error %v", err)
	}
	if err := c.Forget(); err == nil {
		t.Error("a guest that runs was forgotten")
	}
	tell(t, c, "crash")
	if e := c.Exit(); !e.Failed {
		t.Errorf("exit %+v", e)
	}
	// The directory of one that ended is no obstacle.
	c = spawn(t, plan(""), SpawnOptions{Dir: c.dir})
	if _, err := os.Stat(filepath.Join(c.dir, exitName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the exit of the last one is there: %v", err)
	}
}

func TestExit(t *testing.T) {
	for _, tt := range []struct {
		command string
		want    Exit
	}{
		{"poweroff", Exit{Reason: "guest-shutdown"}},
		{"reboot", Exit{Reason: "reboot", Reboot: true}},
		{"crash", Exit{Reason: "failed", Detail: "it crashed", Failed: true}},
	} {
		t.Run(tt.command, func(t *testing.T) {
			c := spawnFake(t, "")
			tell(t, c, tt.command)
			await(t, "the end", c.Done())
			got := c.Exit()
			if time.Since(got.At) > patience {
				t.Errorf("it ended at %s", got.At)
			}
			if got.At = (time.Time{}); got != tt.want {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
			f := findOne(t, c.dir)
			if f.Exit.At = (time.Time{}); f.Exit != tt.want || f.Client != nil || f.Err != nil || f.Plan.Digest != "d1" {
				t.Errorf("found %+v", f)
			}
			if _, err := c.Status(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "box has ended: "+tt.want.Reason) {
				t.Errorf("status of an ended guest: %v", err)
			}
			if how, err := c.Stop(t.Context()); how != hadEnded || err != nil {
				t.Errorf("stopped %q, %v", how, err)
			}
			if err := c.Forget(); err != nil {
				t.Error(err)
			}
			if list, err := Find(filepath.Dir(c.dir)); len(list) > 0 || err != nil {
				t.Errorf("found %v, %v", list, err)
			}
		})
	}
}

// What was asked for is no failure, however it came.
func TestConclusion(t *testing.T) {
	for _, tt := range []struct {
		exit           Exit
		how            string
		killed         bool
		failed, reboot bool
		wantHow        string
	}{
		{exit: exitOfMachine(vmm.Exit{Reason: vmm.GuestShutdown})},
		{exit: exitOfMachine(vmm.Exit{Reason: vmm.Quit})},
		{exit: exitOfMachine(vmm.Exit{Reason: vmm.GuestReset}), reboot: true},
		{exit: exitOfMachine(vmm.Exit{Reason: vmm.GuestPanic}), failed: true},
		{exit: exitOfMachine(vmm.Exit{Reason: vmm.Killed}), failed: true},
		{exit: exitOfMachine(vmm.Exit{Reason: vmm.Failed}), failed: true},
		{exit: exitOfMachine(vmm.Exit{Reason: vmm.Quit}), how: string(vmm.StoppedQuit), wantHow: string(vmm.StoppedQuit)},
		{exit: exitOfMachine(vmm.Exit{Reason: vmm.Killed}), how: string(vmm.StoppedKill), wantHow: string(vmm.StoppedKill)},
		{exit: exitOfMachine(vmm.Exit{Reason: vmm.Killed}), how: string(vmm.StoppedPowerOff), killed: true, wantHow: HowKilled},
		{exit: exitOfMachine(vmm.Exit{Reason: vmm.GuestPanic}), how: string(vmm.StoppedPowerOff), wantHow: string(vmm.StoppedPowerOff)},
		{exit: exitOfContainer(nspawn.Exit{Reason: nspawn.PowerOff})},
		{exit: exitOfContainer(nspawn.Exit{Reason: nspawn.Reboot}), reboot: true},
		{exit: exitOfContainer(nspawn.Exit{Reason: nspawn.Failed}), failed: true},
		{exit: exitOfContainer(nspawn.Exit{Reason: nspawn.Killed}), failed: true},
		{exit: exitOfContainer(nspawn.Exit{Reason: nspawn.Killed}), killed: true, wantHow: HowKilled},
		{exit: exitOfContainer(nspawn.Exit{Reason: nspawn.Reboot}), how: string(nspawn.StoppedPowerOff), wantHow: string(nspawn.StoppedPowerOff)},
	} {
		got := conclusion(tt.exit, tt.how, tt.killed)
		if got.Failed != tt.failed || got.Reboot != tt.reboot || got.How != tt.wantHow || got.Reason != tt.exit.Reason {
			t.Errorf("%+v, %q, killed %v: %+v", tt.exit, tt.how, tt.killed, got)
		}
	}
}

func findOne(t *testing.T, dir string) Found {
	t.Helper()
	list, err := Find(filepath.Dir(dir))
	if err != nil || len(list) != 1 || list[0].Dir != dir {
		t.Fatalf("found %+v, %v", list, err)
	}
	return list[0]
}

// stops asks for n stops at once and returns what each said.
func stops(t *testing.T, c *Client, n int) <-chan string {
	said := make(chan string, n)
	for range n {
		go func() {
			how, err := c.Stop(patient(t))
			if err != nil {
				t.Error(err)
			}
			said <- how
		}()
	}
	return said
}

func TestStop(t *testing.T) {
	c := spawnFake(t, "")
	said := stops(t, c, 3)
	for range 3 {
		if how := <-said; how != "asked" {
			t.Errorf("stopped %q", how)
		}
	}
	if e := c.Exit(); e.How != "asked" || e.Failed || e.Reason != "guest-shutdown" {
		t.Errorf("exit %+v", e)
	}
}

func TestKillDuringStop(t *testing.T) {
	c := spawnFake(t, "deaf")
	term := attach(t, c, false)
	said := stops(t, c, 2)
	term.expect(t, "hears nothing")
	if st, err := c.Status(t.Context()); st.State != "stopping" || err != nil {
		t.Errorf("status %+v, %v", st, err)
	}
	// Who stops waiting changes nothing.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Stop(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if closed(c.Done()) {
		t.Error("it ended")
	}
	if err := c.Kill(patient(t)); err != nil {
		t.Error(err)
	}
	for range 2 {
		if how := <-said; how != HowKilled {
			t.Errorf("stopped %q", how)
		}
	}
	if e := c.Exit(); e.How != HowKilled || e.Failed || e.Reason != "killed" {
		t.Errorf("exit %+v", e)
	}
}

// A stop or kill that comes before the guest runs is for the start: Spawn fails,
// and no guest is left whose start could not be interrupted.
func TestEndWhileStarting(t *testing.T) {
	t.Setenv(fakeVar, "1")
	for _, node := range []string{"hangs", "late"} {
		for name, end := range map[string]func(*Client) error{
			"stop": func(c *Client) error {
				how, err := c.Stop(patient(t))
				if err == nil && how != errStopped.Error() {
					err = fmt.Errorf("stopped %q", how)
				}
				return err
			},
			"kill":   func(c *Client) error { return c.Kill(patient(t)) },
			"signal": func(c *Client) error { return signalProcess(c.keeper, syscall.SIGTERM) },
		} {
			t.Run(node+" "+name, func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "box")
				failed := make(chan error)
				go func() {
					_, err := Spawn(patient(t), plan(node), SpawnOptions{Dir: dir})
					failed <- err
				}()
				var c *Client
				for c == nil {
					list, err := Find(filepath.Dir(dir))
					if err != nil {
						t.Fatal(err)
					}
					if len(list) == 1 && list[0].Client != nil {
						if st, err := list[0].Client.Status(t.Context()); err == nil && st.State == "starting" {
							c = list[0].Client
						}
					}
				}
				if err := end(c); err != nil {
					t.Error(err)
				}
				if err := <-failed; err == nil || err.Error() != errStopped.Error() {
					t.Errorf("error %v", err)
				}
				await(t, "the keeper's end", c.Done())
				if e := c.Exit(); e.Reason != "failed" || e.Detail != "it did not start" {
					t.Errorf("exit %+v", e)
				}
			})
		}
	}
}

// Whoever finds a keeper by its plan can talk to it.
func TestListensBeforeItIsFound(t *testing.T) {
	dir := t.TempDir()
	beingWritten := filepath.Join(dir, planName+".new")
	if err := unix.Mkfifo(beingWritten, 0o600); err != nil {
		t.Fatal(err)
	}
	p := plan("")
	p.VM.InitrdData = make([]byte, 1<<20) // more than a pipe takes
	k := newKeeper(dir, p, slog.New(slog.DiscardHandler))
	ended := make(chan error)
	go func() {
		ended <- k.run(func(context.Context) (guest, error) { return nil, errStopped }, func(report) {})
	}()
	f, err := os.Open(beingWritten) // when the keeper writes it
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, socketName)); err != nil {
		t.Error(err)
	}
	_, _ = io.Copy(io.Discard, f)
	f.Close()
	if err := <-ended; err == nil {
		t.Error("it ran")
	}
}

func TestSignals(t *testing.T) {
	c := spawnFake(t, "")
	term := attach(t, c, true)
	for _, s := range []syscall.Signal{syscall.SIGHUP, syscall.SIGPIPE} {
		if err := signalProcess(c.keeper, s); err != nil {
			t.Fatal(err)
		}
	}
	term.tell(t, "still there?")
	term.expect(t, "heard still there?")
	if err := signalProcess(c.keeper, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if e := c.Exit(); e.How != "asked" || !e.Told || e.Failed {
		t.Errorf("exit %+v", e)
	}
}

// A supervisor that cannot talk to a keeper, or not yet, signals in a way that is
// not taken for the service manager's, which is to hold.
func TestSignalOfASupervisor(t *testing.T) {
	c := spawnFake(t, "")
	if err := os.Remove(filepath.Join(c.dir, socketName)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Stop(patient(t)); err != nil {
		t.Fatal(err)
	}
	if e := c.Exit(); e.How != "asked" || e.Told {
		t.Errorf("exit %+v", e)
	}
}

func TestKeeperIsKilled(t *testing.T) {
	c := spawnFake(t, "")
	if err := signalProcess(c.keeper, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	e := c.Exit()
	if e.Reason != "killed" || e.Detail != "its keeper was killed" || !e.Failed || e.Reboot || e.How != "" || time.Since(e.At) > patience {
		t.Errorf("exit %+v", e)
	}
	if f := findOne(t, c.dir); f.Exit != e || f.Plan.Name != "box" || f.Err != nil || f.Client != nil {
		t.Errorf("found %+v", f)
	}
}

// Neither finding nor killing needs a keeper that listens.
func TestKeeperHangs(t *testing.T) {
	c := spawnFake(t, "")
	st, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := signalProcess(c.keeper, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for stopped := false; !stopped; {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", st.Keeper))
		if err != nil {
			t.Fatal(err)
		}
		stopped = bytes.Contains(b, []byte(") T "))
	}
	f := findOne(t, c.dir)
	if f.Client == nil || f.Err != nil {
		t.Fatalf("found %+v", f)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := f.Client.Status(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("status: %v", err)
	}
	// Whoever asked loses patience; the killing goes on with what remains.
	if err := signalProcess(c.keeper, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	await(t, "the found one's end", f.Client.Done())
	if e := f.Client.Exit(); e.Reason != "killed" {
		t.Errorf("exit %+v", e)
	}
}

func TestConsole(t *testing.T) {
	c := spawnFake(t, "")
	writer := attach(t, c, true)
	writer.expect(t, "fake: boots")
	if _, err := c.Console(t.Context(), true); !errors.Is(err, ErrBusy) {
		t.Errorf("a second writer: %v", err)
	}
	reader := attach(t, c, false)
	reader.expect(t, "fake: boots") // the past
	reader.tell(t, "I may not")
	writer.tell(t, "hello")
	for _, term := range []*terminal{writer, reader} {
		term.expect(t, "fake: heard hello")
	}
	if err := c.Reset(t.Context()); err != nil {
		t.Error(err)
	}
	reader.expect(t, "fake: was reset")
	if png, err := c.Screenshot(t.Context()); string(png) != "\x89PNG" || err != nil {
		t.Errorf("screenshot %q, %v", png, err)
	}
	if log, err := c.Log(t.Context(), 2); string(log) != "fake: heard hello\nfake: was reset\n" || err != nil {
		t.Errorf("log %q, %v", log, err)
	}

	// The role of the writer ends with its connection.
	writer.Close()
	if conn, err := c.Console(patient(t), true); err != nil {
		t.Error(err)
	} else {
		conn.Close()
	}
	if strings.Contains(reader.said(), "I may not") {
		t.Error("a reader wrote")
	}
	if _, err := c.Stop(patient(t)); err != nil {
		t.Error(err)
	}
	await(t, "the end of the console", reader.ended)
}

// A client that does not read what it is sent holds up neither the guest nor the
// others.
func TestSlowReader(t *testing.T) {
	c := spawnFake(t, "")
	slow, err := c.Console(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	quick := attach(t, c, true)
	quick.tell(t, "flood 30000") // 3 MB
	quick.expect(t, "flood is over")
	late := attach(t, c, false)
	late.expect(t, "flood is over")
	if n := len(late.said()); n > 65<<10 {
		t.Errorf("%d bytes of history", n)
	}
	var all []byte
	for buf := make([]byte, 4096); !bytes.Contains(all, []byte("flood is over")); {
		n, err := slow.Read(buf)
		if all = append(all, buf[:n]...); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Contains(all, []byte("bytes of output left out]")) || len(all) > 2<<20 {
		t.Errorf("the slow one got %d bytes and was not told that there were more", len(all))
	}
}

func TestEvents(t *testing.T) {
	c := spawnFake(t, "")
	tell(t, c, "event one")
	details := make(chan string, 100)
	over := make(chan error)
	go func() {
		over <- c.Events(t.Context(), func(e timeline.Event) { details <- e.Machine + " " + string(e.Stage) + " " + e.Detail })
	}()
	want := func(text string) {
		t.Helper()
		select {
		case got := <-details:
			if got != "52:54:00:00:00:01 "+text {
				t.Errorf("event %q, want %q", got, text)
			}
		case <-time.After(patience):
			t.Fatalf("no event %q", text)
		}
	}
	want("start ")
	want("linux one")
	tell(t, c, "event two")
	want("linux two")
	ctx, cancel := context.WithCancel(t.Context())
	if err := c.Events(ctx, func(timeline.Event) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("events that nobody wants any more: %v", err)
	}
	if _, err := c.Stop(patient(t)); err != nil {
		t.Error(err)
	}
	if err := <-over; err != nil {
		t.Errorf("events of a guest that ended: %v", err)
	}
}

func TestEventLogIsBounded(t *testing.T) {
	l := newEventLog()
	for i := range 3 * maxEvents {
		l.add(timeline.Event{Bytes: int64(i)})
	}
	fresh, all, changed := l.from(0)
	if len(fresh) > maxEvents || all != 3*maxEvents || fresh[len(fresh)-1].Bytes != 3*maxEvents-1 || changed == nil {
		t.Errorf("%d events, %d in all", len(fresh), all)
	}
	if fresh, _, _ := l.from(all - 1); len(fresh) != 1 || fresh[0].Bytes != 3*maxEvents-1 {
		t.Errorf("the last one: %+v", fresh)
	}
}

// The log goes on where the last run ended, and says where.
func TestLog(t *testing.T) {
	t.Setenv(fakeVar, "1")
	p := plan("")
	p.LogFile = filepath.Join(t.TempDir(), "logs", "box.log")
	dir := filepath.Join(t.TempDir(), "box")
	for range 2 {
		c := spawn(t, p, SpawnOptions{Dir: dir})
		term := attach(t, c, true)
		term.tell(t, "hello")
		term.expect(t, "heard hello")
		if _, err := c.Stop(patient(t)); err != nil {
			t.Fatal(err)
		}
	}
	text, err := ReadLog(p.LogFile, 100)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if len(lines) != 6 || !strings.HasPrefix(lines[3], "--- box starts, 2") || lines[5] != "fake: heard hello" {
		t.Errorf("log:\n%s", text)
	}
	if all, err := ReadLog(p.LogFile, 0); !bytes.Equal(all, text) || err != nil {
		t.Errorf("all of the log: %q, %v", all, err)
	}
	if text, err := ReadLog(p.LogFile, 1); string(text) != "fake: heard hello\n" || err != nil {
		t.Errorf("the last line: %q, %v", text, err)
	}
	if text, err := ReadLog(p.LogFile+".missing", 1); len(text) > 0 || err != nil {
		t.Errorf("a log that is missing: %q, %v", text, err)
	}
}

func TestLogRotates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	r, err := openRotating(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	chunk := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16) // 1 MiB
	for range 25 {
		r.Write(chunk)
	}
	r.Write([]byte("the end\n"))
	r.Close()
	for name, want := range map[string]int64{path: 5<<20 + 8, path + ".1": 10 << 20} {
		if st, err := os.Stat(name); err != nil || st.Size() != want {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	if text, err := ReadLog(path, 2); string(text) != "0123456789abcde\nthe end\n" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
}

func TestKeeperLogIsCapped(t *testing.T) {
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "log"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l := &cappedLog{f}
	for range 3 * maxLog / 1024 {
		l.Write(make([]byte, 1024))
	}
	if st, _ := f.Stat(); st.Size() > maxLog+1024 {
		t.Errorf("%d bytes", st.Size())
	}
}

// The lock is all that says that a keeper lives, and nothing else uses it.
func TestLockIsNoGarbage(t *testing.T) {
	c := spawnFake(t, "")
	writer := attach(t, c, true)
	for range 3 {
		writer.tell(t, "collect")
		writer.expect(t, "fake: collected")
	}
	if alive, err := inhabited(c.dir); !alive || err != nil {
		t.Errorf("a keeper that lives is taken for dead (%v)", err)
	}
}

// Whatever lies in the directory, what makes sense is found.
func TestFindGarbage(t *testing.T) {
	c := spawnFake(t, "")
	base := filepath.Dir(c.dir)
	dir := func(name string) string {
		d := filepath.Join(base, name)
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
		return d
	}
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(base, "file"), "x")
	dir("empty")
	write(filepath.Join(dir("no json"), planName), "{")
	write(filepath.Join(dir("newer"), planName), `{"Schema": 99, "Name": "newer"}`)
	write(filepath.Join(dir("senseless"), planName), `{"Schema": 1, "Name": "x", "Backend": "qemu"}`)
	if err := unix.Mkfifo(filepath.Join(dir("fifo"), planName), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir("fifo lock"), lockName), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/zero", filepath.Join(dir("link"), planName)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir("dir"), planName), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir("huge"), planName), 0); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	write(filepath.Join(base, "huge", planName), "")
	if err := os.Truncate(filepath.Join(base, "huge", planName), maxFile+1); err != nil {
		t.Fatal(err)
	}
	ended := dir("no exit")
	good, _ := json.Marshal(c.Plan())
	write(filepath.Join(ended, planName), string(good))
	write(filepath.Join(ended, exitName), "{garbage")

	list, err := Find(base)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		name := filepath.Base(f.Dir)
		switch name {
		case "box":
			if f.Client == nil || f.Err != nil {
				t.Errorf("found %+v", f)
			}
			if err := f.Forget(); !errors.Is(err, ErrRunning) {
				t.Errorf("forget one that lives: %v", err)
			}
			continue
		case "no exit":
			if f.Client != nil || f.Err != nil || f.Exit.Reason != "killed" || !f.Exit.Failed {
				t.Errorf("found %+v", f)
			}
		default:
			if f.Client != nil || f.Err == nil {
				t.Errorf("found %+v", f)
			}
		}
		if err := f.Forget(); err != nil {
			t.Error(err)
		}
	}
	if len(list) != 11 {
		t.Errorf("found %d", len(list))
	}
	if list, err := Find(base); len(list) != 1 || err != nil {
		t.Errorf("left: %+v, %v", list, err)
	}
	if list, err := Find(filepath.Join(base, "missing")); len(list) > 0 || err != nil {
		t.Errorf("%v, %v", list, err)
	}
}

// What a keeper that was killed was about to start has its lock until it executes
// its program: the keeper is dead all the same.
func TestFindLockOfTheDead(t *testing.T) {
	c := spawnFake(t, "")
	base := t.TempDir()
	dir := filepath.Join(base, "box")
	lock, err := claim(dir)
	if err != nil {
		t.Fatal(err)
	}
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	plan := filepath.Join(dir, planName)
	if err := errors.Join(noteProcesses(lock, dead.Process.Pid, 0), durable.WriteJSON(plan, c.Plan(), 0o600)); err != nil {
		t.Fatal(err)
	}
	looks, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(looks)
	if _, err := unix.InotifyAddWatch(looks, plan, unix.IN_CLOSE_NOWRITE); err != nil {
		t.Fatal(err)
	}
	found := make(chan []Found, 1)
	go func() {
		list, err := Find(base)
		if err != nil {
			t.Error(err)
		}
		found <- list
	}()
	// Who reads the plan has found it locked.
	if _, err := unix.Read(looks, make([]byte, unix.SizeofInotifyEvent)); err != nil {
		t.Fatal(err)
	}
	lock.Close()
	if list := <-found; len(list) != 1 || list[0].Err != nil || list[0].Exit.Reason != "killed" {
		t.Errorf("found %+v", list)
	}
}

// A keeper of another version says so, and can be stopped all the same.
func TestOtherVersion(t *testing.T) {
	c := spawnFake(t, "")
	socket := filepath.Join(c.dir, socketName)
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"Schema": %d, "Name": "box", "NewThing": {}}`, Schema+1)
	})
	server := &http.Server{Handler: mux}
	go server.Serve(l)
	defer server.Close()
	if _, err := c.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "is of a newer ecboot (schema 2, and this one knows 1)") {
		t.Errorf("status: %v", err)
	}
	if err := c.Reset(t.Context()); err == nil || !strings.Contains(err.Error(), "of another version of ecboot, which cannot do this: restart the guest") {
		t.Errorf("reset: %v", err)
	}
	b, err := os.ReadFile(filepath.Join(c.dir, planName))
	if err != nil {
		t.Fatal(err)
	}
	newer := bytes.Replace(b, []byte(`"Schema": 1`), []byte(`"Schema": 2`), 1)
	if err := os.WriteFile(filepath.Join(c.dir, planName), newer, 0o600); err != nil {
		t.Fatal(err)
	}
	f := findOne(t, c.dir)
	if f.Client == nil || f.Err == nil || !strings.Contains(f.Err.Error(), "made by a newer one") {
		t.Fatalf("found %+v", f)
	}
	if how, err := f.Client.Stop(patient(t)); how != "asked" || err != nil {
		t.Errorf("stopped %q, %v", how, err)
	}
}

// Whoever is not the keeper's own user has no way in, and what is too much is
// refused.
func TestServerBounds(t *testing.T) {
	c := spawnFake(t, "")
	conn, err := c.http.Transport.(*http.Transport).DialContext(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /v1/status HTTP/1.1\r\nHost: x\r\n%s\r\n", strings.Repeat("X-Long: "+strings.Repeat("x", 1000)+"\r\n", 40))
	answer, _ := io.ReadAll(conn)
	if !bytes.HasPrefix(answer, []byte("HTTP/1.1 431 ")) {
		t.Errorf("answer to endless headers: %.60q", answer)
	}
	for path, want := range map[string]string{
		"/v1/log?lines=-1":   "lines: use a number of lines, or 0 for all",
		"/v1/log?lines=many": "lines: use a number of lines, or 0 for all",
		"/v1/console":        "a console needs Upgrade: ecboot-console",
		"/v1/nothing":        "another version",
	} {
		if err := c.call(t.Context(), http.MethodGet, path, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
