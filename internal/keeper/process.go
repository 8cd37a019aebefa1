package keeper

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// openProcess returns a pidfd, by which a process can be waited for that is not
// a child, and signalled without hitting another one that has got its id.
func openProcess(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	return os.NewFile(uintptr(fd), fmt.Sprintf("process %d", pid)), nil
}

// awaitEnd waits for a process's end, or for the read deadline of its pidfd.
func awaitEnd(process *os.File) error {
	conn, err := process.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Read(hasEnded)
}

// hasEnded also when nobody has waited for the process.
func hasEnded(pidfd uintptr) bool {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
		if !errors.Is(err, unix.EINTR) {
			return n > 0 || err != nil
		}
	}
}

func signalProcess(process *os.File, s syscall.Signal) error {
	conn, err := process.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Control(func(fd uintptr) { failed = unix.PidfdSendSignal(int(fd), s, nil, 0) })
	return errors.Join(err, failed)
}
