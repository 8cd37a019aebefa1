package lan

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// watchdogVar makes a process a watchdog; its value is the path of the note.
const watchdogVar = "ECBOOT_WATCHDOG"

// watchdog is the process that undoes what is noted when this one has ended
// without doing so. It is this program again, in a session of its own, so that
// what ends this one leaves it alone.
type watchdog struct {
	cmd  *exec.Cmd
	life *os.File // the kernel closes it with this process
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
	_, err := os.Stat(note)
	if errors.Is(err, os.ErrNotExist) {
		os.Exit(0)
	}
	if err := sweepNote(note); err != nil {
		fmt.Fprintf(os.Stderr, "ecboot: its process ended without putting the network back, and that failed: %v\n", err)
		os.Exit(1)
	}
	fmt.Fprintln(os.Stderr, "ecboot: its process ended without putting the network back; that is done now")
	os.Exit(0)
}

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
	return &watchdog{cmd: cmd, life: life}, nil
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
