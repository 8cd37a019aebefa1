package vmm

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"github.com/every-channel/ecboot/internal/tail"
)

// process is a QEMU or a helper that runs. It dies with us, however we die.
type process struct {
	cmd    *exec.Cmd
	stderr *tail.Writer
	done   chan struct{} // closed when it has been waited for; cmd.ProcessState is set
}

// launch is a program to start. It gets no input, and a process group of its own
// so that a Ctrl-C on the terminal is not meant for it.
type launch struct {
	argv       []string
	files      []*os.File  // descriptors 3 and up
	watch      io.Writer   // is shown its messages, too; nil: nobody
	credential *Credential // nil: as this process
	cgroup     string      // directory of the cgroup that it starts in; empty: this process's
}

func startProcess(l launch) (*process, error) {
	p := &process{stderr: &tail.Writer{Max: 16 << 10}, done: make(chan struct{})}
	p.cmd = exec.Command(l.argv[0], l.argv[1:]...)
	p.cmd.ExtraFiles = l.files
	p.cmd.Stderr = p.stderr
	if l.watch != nil {
		p.cmd.Stderr = io.MultiWriter(p.stderr, l.watch)
	}
	p.cmd.WaitDelay = time.Second // a grandchild may hold on to stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if c := l.credential; c != nil {
		p.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: c.UID, Gid: c.GID, Groups: c.Groups}
	}
	if l.cgroup != "" {
		dir, err := os.Open(l.cgroup)
		if err != nil {
			return nil, fmt.Errorf("cgroup: %w", err)
		}
		defer dir.Close()
		p.cmd.SysProcAttr.UseCgroupFD, p.cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
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
