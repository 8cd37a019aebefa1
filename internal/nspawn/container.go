package nspawn

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/internal/tail"
)

// Options is what Start needs beside the container itself.
type Options struct {
	Program string // empty: Program
	Cache   string // directory where tar archives are unpacked; needed by those only
	// Cgroup is the directory of an empty cgroup (v2) that is the container's
	// alone and that whoever made it removes, after Sweep if this process was
	// killed. Empty: that of this process, for hosts with cgroup v1 on which
	// none can be made; where one can be, nspawn would leave some of its own.
	Cgroup string
	Log    *slog.Logger  // nil: silent
	Grace  time.Duration // how long Stop waits for the container's init; 0: 30 s
}

const (
	defaultGrace = 30 * time.Second
	exitReboot   = 133 // nspawn's exit code when the container wants to start again
)

// Container is an nspawn process, from Start to its end.
type Container struct {
	name    string
	opts    Options
	argv    []string
	signal  syscall.Signal // to stop it; 0: not known
	cmd     *exec.Cmd
	console *os.File
	stderr  *tail.Writer
	root    root
	thread  *thread
	killed  atomic.Bool // by Kill
	done    chan struct{}
	exit    Exit // valid once done is closed
}

// Start runs the container and returns as soon as nspawn runs: a container that
// does not boot, or takes its time, holds up nobody. ctx is for starting only: a
// container that has started runs until it ends, is stopped or killed, or this
// process dies, by whatever cause. The links are made in the network namespace
// of this process.
func Start(ctx context.Context, spec Spec, opts Options) (_ *Container, err error) {
	if opts.Grace == 0 {
		opts.Grace = defaultGrace
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	program, err := find(opts.Program)
	if err != nil {
		return nil, err
	}
	c := &Container{name: spec.Name, opts: opts, stderr: &tail.Writer{Max: 16 << 10}, done: make(chan struct{})}
	if c.argv, err = spec.Command(program); err != nil {
		return nil, err
	}
	c.signal = signalNumber(spec.stopSignal())
	for _, b := range spec.Binds {
		if _, err := os.Stat(b.Source); err != nil {
			return nil, fmt.Errorf("bind: %w", err)
		}
	}
	c.root, err = spec.open(func(archive string) (string, error) {
		if opts.Cache == "" {
			return "", errors.New("no directory is named where it can be unpacked")
		}
		return Unpack(ctx, archive, opts.Cache)
	})
	if err != nil {
		return nil, err
	}
	c.thread = newThread()
	defer func() {
		if err != nil {
			c.thread.end()
			c.root.close()
		}
	}()
	if err := c.furnish(ctx, spec); err != nil {
		return nil, err
	}
	Sweep(opts.Cgroup) // nspawn fails on what it left when it was killed
	if err := c.launch(spec.Limits); err != nil {
		return nil, err
	}
	opts.Log.Info("container started", "container", c.name, "root", string(c.root.kind))
	go c.supervise()
	return c, nil
}

// furnish makes mounts and links where nspawn will run.
func (c *Container) furnish(ctx context.Context, spec Spec) error {
	var ns *os.File
	err := c.thread.do(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWNET); err != nil {
			return needAdmin("new mount and network namespace", err)
		}
		if ns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		return c.root.mount()
	})
	if ns != nil {
		defer ns.Close()
	}
	if err != nil {
		return err
	}
	for _, nic := range spec.NICs {
		if err := nic.plug(ctx, netns{c.thread, ns}); err != nil {
			return err
		}
	}
	return nil
}

// launch starts nspawn with a terminal of its own, so that a Ctrl-C on ours is
// not meant for it.
func (c *Container) launch(limits Limits) error {
	group, err := openCgroup(c.opts.Cgroup, limits)
	if err != nil {
		return err
	}
	if group != nil {
		defer group.Close()
	}
	master, slave, err := pty()
	if err != nil {
		return err
	}
	defer slave.Close()
	// If we die before the child has asked for Pdeathsig, nobody tells it. So it
	// becomes nspawn only when it hears that we live, which is after that.
	wait, alive, err := os.Pipe()
	if err != nil {
		master.Close()
		return err
	}
	defer wait.Close()
	defer alive.Close()
	// In a new process namespace, nspawn needs a /proc of that; unshare(1)
	// mounts it.
	argv := append([]string{"unshare", "--mount", "--propagation=unchanged", "--mount-proc", "--",
		"sh", "-c", `read -r _ <&3 && exec 3<&- "$@"`, "sh"}, c.argv...)
	c.cmd = exec.Command(argv[0], argv[1:]...)
	c.cmd.ExtraFiles = []*os.File{wait}
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = slave, slave, c.stderr
	c.cmd.Dir = "/"
	// A first process would log to the kernel's log.
	c.cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "TERM=vt220", "SYSTEMD_LOG_TARGET=console", "SYSTEMD_LOG_COLOR=0", "SYSTEMD_TINT_BACKGROUND=0"}
	c.cmd.WaitDelay = time.Second // somebody may hold on to stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Pdeathsig: syscall.SIGKILL, Cloneflags: unix.CLONE_NEWPID}
	if group != nil {
		c.cmd.SysProcAttr.UseCgroupFD, c.cmd.SysProcAttr.CgroupFD = true, int(group.Fd())
	}
	if err := c.thread.do(c.cmd.Start); err != nil {
		master.Close()
		return err
	}
	_, _ = alive.WriteString("\n") // if it has ended already, supervise tells
	c.console = master
	return nil
}

// supervise waits for nspawn's end, which comes after that of all processes of
// the container: what was bound into them can be unmounted then.
func (c *Container) supervise() {
	_ = c.cmd.Wait() // what there is to know is in ProcessState
	c.exit = c.judge()
	c.thread.end()
	c.root.close()
	Sweep(c.opts.Cgroup)
	c.opts.Log.Info("container ended", "container", c.name, "exit", c.exit.String())
	close(c.done)
}

// Console is the container's terminal. It must be read all the time, or the
// container waits for that. A read error is its end; close it after Done.
func (c *Container) Console() *os.File { return c.console }

// Resize tells the container how large the terminal is.
func (c *Container) Resize(columns, rows uint16) error {
	conn, err := c.console.SyscallConn()
	if err != nil {
		return err
	}
	size := &unix.Winsize{Col: columns, Row: rows}
	var failed error
	err = conn.Control(func(fd uintptr) { failed = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, size) })
	return errors.Join(err, failed)
}

// Command is nspawn's command line, program first.
func (c *Container) Command() []string { return slices.Clone(c.argv) }

// PID is the process id of nspawn.
func (c *Container) PID() int { return c.cmd.Process.Pid }

// Done is closed when the container has ended.
func (c *Container) Done() <-chan struct{} { return c.done }

// Exit waits for the container's end and tells how it came.
func (c *Container) Exit() Exit {
	<-c.done
	return c.exit
}

// Kill ends the container at once. It does not wait: see Done.
func (c *Container) Kill() {
	c.killed.Store(true)
	_ = c.cmd.Process.Kill() // it may have ended
}

// How is what it took to stop a container.
type How string

// From gentle to rough.
const (
	StoppedItself   How = "it had ended already"
	StoppedPowerOff How = "told its init to power off"
	StoppedKill     How = "killed it"
)

// Stop ends the container: it tells its init to power off, as soon as that listens,
// and kills it if that does not help within Options.Grace. It returns when the
// container is gone and says which of these did it. When ctx is done the init is
// not waited for any longer.
func (c *Container) Stop(ctx context.Context) How {
	select {
	case <-c.done:
		return StoppedItself
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, c.opts.Grace)
	defer cancel()
	how := StoppedItself
	// nspawn passes it on as the stop signal. A second one would make it kill.
	if c.awaitInit(ctx) && c.cmd.Process.Signal(syscall.SIGTERM) == nil {
		how = StoppedPowerOff
	}
	select {
	case <-c.done:
		return how
	case <-ctx.Done():
	}
	c.Kill()
	<-c.done
	return StoppedKill
}

// Reason is why a container ended.
type Reason string

// The reasons.
const (
	PowerOff Reason = "poweroff" // it switched itself off, or its init ended in peace
	Reboot   Reason = "reboot"   // it wants to be started again
	Failed   Reason = "failed"   // it did not start, or its init failed
	Killed   Reason = "killed"   // by a signal, ours or another's
)

// Exit is how a container ended.
type Exit struct {
	Reason Reason
	Detail string         // in words; may be empty
	Code   int            // nspawn's exit code, -1 if a signal ended it
	Signal syscall.Signal // that ended nspawn; 0 if none did
	Stderr string         // the end of nspawn's own messages
}

// String is the reason with its detail.
func (e Exit) String() string {
	if e.Detail == "" {
		return string(e.Reason)
	}
	return string(e.Reason) + ": " + e.Detail
}

// judge finds the reason.
func (c *Container) judge() Exit {
	state := c.cmd.ProcessState
	e := Exit{Code: state.ExitCode(), Stderr: c.stderr.String()}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		e.Signal = ws.Signal()
	}
	switch {
	case e.Signal != 0 && c.killed.Load():
		e.Reason = Killed
	case e.Signal != 0:
		e.Reason, e.Detail = Killed, "by signal "+e.Signal.String()
	case e.Code == 0:
		e.Reason = PowerOff
	case e.Code == exitReboot:
		e.Reason = Reboot
	default:
		last := e.Stderr[strings.LastIndexByte(e.Stderr, '\n')+1:]
		e.Reason, e.Detail = Failed, strings.TrimSuffix(fmt.Sprintf("exit code %d: %s", e.Code, last), ": ")
	}
	return e
}

// find returns the path of a program; empty means Program.
func find(name string) (string, error) {
	usual := name == "" || name == Program
	if usual {
		name = Program
	}
	path, err := exec.LookPath(name)
	switch {
	case err == nil:
		return path, nil
	case usual && errors.Is(err, exec.ErrNotFound):
		return "", errors.New("systemd-nspawn is not installed: install the package systemd-container (apt-get install systemd-container)")
	}
	return "", fmt.Errorf("nspawn: %w", err)
}

// pty makes a terminal. Its slave is opened by its master: a path would depend on
// what is mounted on /dev/pts.
func pty() (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a terminal: /dev/ptmx: %w", err)
	}
	master = os.NewFile(uintptr(fd), "console")
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		master.Close()
		return nil, nil, fmt.Errorf("make a terminal: %w", err)
	}
	other, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		master.Close()
		return nil, nil, fmt.Errorf("make a terminal: %w", errno)
	}
	return master, os.NewFile(other, "terminal"), nil
}
