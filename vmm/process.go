package vmm

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a QEMU that runs. It dies with us, however we die.
type process struct {
	cmd    *exec.Cmd
	stderr *tail
	done   chan struct{} // closed when it has been waited for; cmd.ProcessState is set
}

// startProcess runs argv with the files as descriptors 3 and up. It gets no
// input, and a process group of its own so that a Ctrl-C on the terminal is
// not meant for it. Its messages also go to watch, unless that is nil.
func startProcess(argv []string, files []*os.File, watch io.Writer) (*process, error) {
	p := &process{stderr: &tail{max: 16 << 10}, done: make(chan struct{})}
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.ExtraFiles = files
	p.cmd.Stderr = p.stderr
	if watch != nil {
		p.cmd.Stderr = io.MultiWriter(p.stderr, watch)
	}
	p.cmd.WaitDelay = time.Second // a grandchild may hold on to stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The signal comes when the thread that forked ends, and Go ends
		// threads as it likes unless a goroutine sits on them.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		_ = p.cmd.Wait() // what there is to know is in ProcessState
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func (p *process) kill() { _ = p.cmd.Process.Kill() }

// findQEMU returns the path of a program; empty means that of the architecture.
func findQEMU(name, arch string) (string, error) {
	usual := DefaultQEMU(arch)
	if name == "" {
		name = usual
	}
	path, err := exec.LookPath(name)
	switch {
	case err == nil:
		return path, nil
	case errors.Is(err, exec.ErrNotFound) && name == usual:
		pkg := "qemu-system-x86"
		if arch == ArchARM64 {
			pkg = "qemu-system-arm"
		}
		return "", fmt.Errorf("%s is not installed: install the package %s (apt-get install %[2]s)", name, pkg)
	}
	return "", fmt.Errorf("QEMU: %w", err)
}

// tail keeps the end of what is written to it.
type tail struct {
	max int // bytes

	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - t.max; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.buf))
}
