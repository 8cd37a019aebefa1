package keeper

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/internal/nspawn"
)

// keeperVar makes a process a keeper; its value is the guest's directory.
const keeperVar = "ECBOOT_KEEPER"

// notOurs are variables that mean this process alone to its service manager.
var notOurs = []string{"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}

// order is what a keeper reads on its standard input.
type order struct {
	Plan Plan
	Taps int
}

// report is what it writes to its standard output, once.
type report struct {
	PID   int    // of QEMU or nspawn
	Error string // why there is none
}

// Spawn starts a guest in a keeper of its own and returns when it runs. ctx is
// for that long. The error is that of starting the guest, and nothing is left
// then; ErrRunning if the directory's guest runs.
func Spawn(ctx context.Context, plan Plan, opts SpawnOptions) (_ *Client, err error) {
	defer func() {
		for _, tap := range opts.Taps {
			tap.Close()
		}
	}()
	if os.Getenv(keeperVar) != "" {
		return nil, errors.New("this process was to be a keeper: call RunKeeper first in main") // or each would spawn another
	}
	plan.Schema = Schema
	if opts.Dir, err = filepath.Abs(opts.Dir); err != nil {
		return nil, err
	}
	if err := plan.check(); err != nil {
		return nil, err
	}
	lock, err := claim(opts.Dir)
	if err != nil {
		return nil, err
	}
	// The keeper has it, too, and keeps it.
	defer lock.Close()
	defer func() {
		if err != nil {
			_ = os.RemoveAll(opts.Dir)
		}
	}()
	if plan.ScreenGroup != 0 {
		// Whatever the umask has made of the way there.
		err := errors.Join(os.Chmod(filepath.Dir(opts.Dir), 0o711), os.Chown(opts.Dir, -1, plan.ScreenGroup), os.Chmod(opts.Dir, 0o710))
		if err != nil {
			return nil, err
		}
	}
	k, err := begin(plan.Name, opts, lock)
	if err != nil {
		return nil, err
	}
	pid, err := k.command(ctx, &plan, opts)
	if err != nil {
		k.end(lingerTimeout)
		if plan.Container != nil {
			nspawn.Sweep(plan.Cgroup)
		}
		return nil, err
	}
	go k.cmd.Wait()
	guest, _ := openProcess(pid) // it may have ended already
	return newClient(opts.Dir, plan, k.process, guest), nil
}

// child is a keeper that has yet to be told what to do.
type child struct {
	cmd     *exec.Cmd
	process *os.File // pidfd
	orders  *os.File
	reports *os.File
	log     string
}

// begin starts the keeper's process, which waits for its orders.
func begin(name string, opts SpawnOptions, lock *os.File) (*child, error) {
	fail := func(err error) (*child, error) { return nil, fmt.Errorf("start the keeper: %w", err) }
	// What this process was given by whoever started it is not for the keeper.
	_ = unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC) // since Linux 5.11
	k := &child{log: filepath.Join(opts.Dir, logName)}
	log, err := os.OpenFile(k.log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return fail(err)
	}
	defer log.Close()
	stdin, orders, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer stdin.Close()
	reports, stdout, err := os.Pipe()
	if err != nil {
		orders.Close()
		return fail(err)
	}
	defer stdout.Close()
	k.orders, k.reports = orders, reports

	k.cmd = exec.Command("/proc/self/exe")
	k.cmd.Args = []string{"ecboot-keeper", name}
	k.cmd.Env = append(without(os.Environ(), notOurs), keeperVar+"="+opts.Dir)
	k.cmd.Dir = "/"
	k.cmd.Stdin, k.cmd.Stdout, k.cmd.Stderr = stdin, stdout, log
	k.cmd.ExtraFiles = append([]*os.File{lock}, opts.Taps...)
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := k.cmd.Start(); err != nil {
		orders.Close()
		reports.Close()
		return fail(err)
	}
	if k.process, err = openProcess(k.cmd.Process.Pid); err != nil {
		k.end(0)
		return fail(err)
	}
	return k, nil
}

func without(env, names []string) (rest []string) {
next:
	for _, v := range env {
		for _, name := range names {
			if strings.HasPrefix(v, name+"=") {
				continue next
			}
		}
		rest = append(rest, v)
	}
	return rest
}

// command has the keeper start the guest, and returns the guest's process id.
func (k *child) command(ctx context.Context, plan *Plan, opts SpawnOptions) (int, error) {
	defer k.orders.Close()
	defer k.reports.Close()
	if opts.Join != nil {
		cgroup, err := opts.Join(k.cmd.Process.Pid)
		if err != nil {
			return 0, err
		}
		if cgroup != "" {
			plan.Cgroup = cgroup
		}
	}
	over := make(chan struct{})
	defer close(over)
	inTime := context.AfterFunc(ctx, func() { k.giveUp(over) })
	defer inTime()
	if err := json.NewEncoder(k.orders).Encode(order{Plan: *plan, Taps: len(opts.Taps)}); err != nil && !errors.Is(err, syscall.EPIPE) {
		return 0, fmt.Errorf("tell the keeper what to do: %w", err)
	}
	answer, err := io.ReadAll(k.reports)
	var r report
	switch {
	case !inTime():
		return 0, context.Cause(ctx)
	case err != nil:
		return 0, err
	case json.Unmarshal(answer, &r) != nil:
		said, _ := readFile(k.log)
		return 0, fmt.Errorf("the keeper ended before the guest ran: %.2000s", cmp.Or(string(bytes.TrimSpace(said)), "somebody killed it"))
	case r.Error != "":
		return 0, errors.New(r.Error)
	}
	return r.PID, nil
}

// giveUp ends a start whose end is told by over. What it has made already is best
// taken back by the keeper itself, which waits until its guest is gone.
func (k *child) giveUp(over <-chan struct{}) {
	_ = signalProcess(k.process, syscall.SIGINT)
	select {
	case <-over:
	case <-time.After(killPatience):
		_ = signalProcess(k.process, syscall.SIGKILL)
	}
}

// end makes sure that the process is gone. One that has reported ends by itself.
func (k *child) end(patience time.Duration) {
	k.orders.Close()
	k.reports.Close()
	kill := time.AfterFunc(patience, func() { _ = k.cmd.Process.Kill() })
	defer kill.Stop()
	_ = k.cmd.Wait()
	if k.process != nil {
		k.process.Close()
	}
}
