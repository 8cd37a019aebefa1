package lan

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// watchdogVar makes a process a watchdog; its value is the path of the note.
const watchdogVar = "ECBOOT_WATCHDOG"

// watchdog is the process that undoes what is noted when this one has ended
// without doing so. It is this program again, in a session of its own, so that
// what ends this one leaves it alone.
type watchdog struct {
	cmd  *exec.Cmd
	life *os.File // the kernel closes it with this process
	id   process
}

// RunWatchdog is the life of a watchdog: main calls it before anything else, and
// it returns in every other process.
func RunWatchdog() {
	note := os.Getenv(watchdogVar)
	if note == "" {
		return
	}
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGPIPE)
	os.Stdout.Close() // says that it listens
	io.Copy(io.Discard, os.Stdin)
	undone, waited, err := guard(note)
	why := "its process ended without putting the network back"
	if waited {
		why = "the last guest on the network has ended, and no ecboot is there for it"
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "ecboot: %s, and putting it back failed: %v\n", why, err)
		os.Exit(1)
	}
	if undone {
		fmt.Fprintf(os.Stderr, "ecboot: %s; it is put back now\n", why)
	}
	os.Exit(0)
}

// guard takes the place of an owner that is gone: it undoes the note once nobody
// holds the segment, and until then does for its addresses what the owner did.
// It does nothing when the note is gone or has another watchdog.
func guard(path string) (undone, waited bool, err error) {
	me, err := processOf(os.Getpid())
	if err != nil {
		return false, false, err
	}
	// Before the first look, so that nothing that happens after it is missed.
	// Without it the watchdog looks from time to time.
	events, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err == nil {
		_, err = unix.InotifyAddWatch(events, filepath.Dir(path), unix.IN_MOVED_TO|unix.IN_DELETE)
	}
	if err != nil {
		events = -1
	}
	for ; ; waited = true {
		held, undone, err := standIn(path, me)
		if len(held) == 0 || err != nil {
			return undone, waited, err
		}
		if !waited {
			guardAddresses(path, me)
		}
		awaitEnd(events, held)
	}
}

// mine returns a note of which this process is the watchdog, else nil. What is to
// be done with it is done before unlock is called, which is never nil.
func mine(path string, me process) (n *note, unlock func(), err error) {
	unlock, err = lockNotes(path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		return nil, func() {}, err
	}
	if n, err = readNote(path); n != nil && n.Watchdog != me {
		n = nil
	}
	return n, unlock, err
}

// standIn undoes the note, or returns who holds the segment.
func standIn(path string, me process) (held []process, undone bool, err error) {
	n, unlock, err := mine(path, me)
	defer unlock()
	if n == nil {
		return nil, false, err
	}
	if held = n.holders(); len(held) > 0 {
		return held, false, nil
	}
	return nil, true, n.undo(path)
}

// guardAddresses lets renewed addresses follow to the bridge, to the end of this
// process.
func guardAddresses(path string, me process) {
	again := func() {
		n, unlock, err := mine(path, me)
		defer unlock()
		if n != nil && err == nil {
			moveAgain(n.Made, func() error { return n.write(path) })
		}
	}
	n, unlock, err := mine(path, me)
	unlock()
	if n == nil || err != nil {
		return
	}
	if i := moveOf(n.Made); i >= 0 && followNIC(n.Made[i].Link, nil, again) == nil {
		again() // for what came while nobody looked
	}
}

// awaitEnd returns when one of the processes may have ended or a note has
// changed.
func awaitEnd(events int, held []process) {
	timeout := -1
	wait := []unix.PollFd{{Fd: int32(events), Events: unix.POLLIN}}
	for _, p := range held {
		fd, err := p.open()
		if errors.Is(err, unix.ESRCH) {
			return
		}
		if err != nil {
			timeout = lookAgain
			continue
		}
		defer unix.Close(fd)
		wait = append(wait, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	if events < 0 {
		timeout = lookAgain
	}
	unix.Poll(wait, timeout)
	for buf := make([]byte, 4096); events >= 0; {
		if n, err := unix.Read(events, buf); n <= 0 || err != nil {
			return
		}
	}
}

// lookAgain is how often a watchdog looks that the kernel does not wake, in
// milliseconds.
const lookAgain = 1000

// startWatchdog returns once the watchdog is watching.
func startWatchdog(note string) (*watchdog, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"ecboot-watchdog"}
	cmd.Env = append(os.Environ(), watchdogVar+"="+note)
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	fail := func(err error) (*watchdog, error) { return nil, fmt.Errorf("start the watchdog: %w", err) }
	stdin, life, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer stdin.Close()
	cmd.Stdin = stdin
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		life.Close()
		return fail(err)
	}
	if err := cmd.Start(); err != nil {
		life.Close()
		return fail(err)
	}
	io.Copy(io.Discard, stdout)
	w := &watchdog{cmd: cmd, life: life}
	if w.id, err = processOf(cmd.Process.Pid); err != nil {
		return fail(errors.Join(err, w.release()))
	}
	return w, nil
}

// release lets the watchdog look for a note that is left, and waits for it.
func (w *watchdog) release() error {
	if w == nil {
		return nil
	}
	w.life.Close()
	if err := w.cmd.Wait(); err != nil {
		return fmt.Errorf("watchdog: %w", err)
	}
	return nil
}

// abandon leaves the note to the watchdog.
func (w *watchdog) abandon() {
	w.life.Close()
	go w.cmd.Wait() // unless this process ends before
}
