package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// escapeKey leaves an attached console: Ctrl-], as in telnet and virsh.
const escapeKey = 0x1d

const escapeKeyName = "Ctrl-]"

// isTerminal reports whether f is a terminal that a person may sit at.
func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// isTerminalWriter is isTerminal for an output that may not be a file.
func isTerminalWriter(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isTerminal(f)
}

// rawTerminal gives the terminal to a guest until restore is called: keys go to
// the guest one by one, Ctrl-C and its like among them, and what the guest shows
// is shown as it is.
func rawTerminal(terminal *os.File) (restore func(), err error) {
	fd := int(terminal.Fd())
	state, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	return func() { term.Restore(fd, state) }, nil
}

// typeInto sends what is typed on the raw terminal in to the guest, until the
// escape key, the end of input or the end of ctx. It returns nil for the escape
// key.
func typeInto(ctx context.Context, in *os.File, guest io.Writer) error {
	fd := int(in.Fd())
	// A read of a terminal cannot be given a deadline: poll it together with
	// a pipe that ctx closes.
	wake, wakeEnd, err := os.Pipe()
	if err != nil {
		return err
	}
	defer wake.Close()
	stop := context.AfterFunc(ctx, func() { wakeEnd.Close() })
	defer func() {
		if stop() {
			wakeEnd.Close()
		}
	}()
	keys := make([]byte, 1024)
	for {
		polled := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(wake.Fd()), Events: unix.POLLIN}}
		if _, err := unix.Poll(polled, -1); err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		n, err := in.Read(keys)
		if err != nil {
			return err
		}
		before, _, escaped := bytes.Cut(keys[:n], []byte{escapeKey})
		if _, err := guest.Write(before); err != nil {
			return err
		}
		if escaped {
			return nil
		}
	}
}
