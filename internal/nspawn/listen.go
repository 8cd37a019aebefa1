package nspawn

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// signalNumber is the number of a signal that nspawn is told the name of; 0 where
// it is not known here.
func signalNumber(name string) syscall.Signal {
	for prefix, base := range map[string]int{"SIGRTMIN": 34, "SIGRTMAX": 64} { // as C libraries have it
		if offset, ok := strings.CutPrefix(name, prefix); ok {
			if n, err := strconv.Atoi(cmp.Or(offset, "0")); err == nil && 34 <= base+n && base+n <= 64 {
				return syscall.Signal(base + n)
			}
			return 0
		}
	}
	return unix.SignalNum(name)
}

// listenPause is between two looks at an init that does not listen yet.
const listenPause = 20 * time.Millisecond

// awaitInit waits until the container's init listens to the stop signal: nspawn
// passes that on once, and the kernel drops what the first process of a namespace
// does not listen to. It waits no longer than half the time that there is, as
// that may not show, and reports whether there is anybody to ask.
func (c *Container) awaitInit(ctx context.Context) bool {
	half := time.After(c.opts.Grace / 2)
	for !c.listens() {
		select {
		case <-c.done:
			return false
		case <-ctx.Done():
			return false
		case <-half:
			return true
		case <-time.After(listenPause):
		}
	}
	return true
}

// listens reports whether the container's init does. Where that cannot be known
// it is taken to.
func (c *Container) listens() bool {
	if c.signal == 0 {
		return true
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", c.PID()))
	if err != nil {
		return true
	}
	for _, pid := range strings.Fields(string(children)) {
		status, _ := os.ReadFile("/proc/" + pid + "/status") // nothing is left of one that has ended
		wchan, _ := os.ReadFile("/proc/" + pid + "/wchan")
		if hears(string(status), string(wchan), c.signal) {
			return true
		}
	}
	return false
}

// hears reports whether a process is the first one of its namespace and listens to
// a signal: it has a handler for it, or blocks it to learn of it in another way, or
// waits for signals, which are not blocked meanwhile. It is pure; status and wchan
// are the process's files in /proc.
func hears(status, wchan string, s syscall.Signal) bool {
	first, listens := false, strings.Contains(wchan, "sigtimedwait")
	for line := range strings.Lines(status) {
		key, values, _ := strings.Cut(line, ":")
		f := strings.Fields(values)
		if len(f) == 0 {
			continue
		}
		value := f[len(f)-1]
		switch key {
		case "NSpid":
			first = value == "1" // nspawn's helpers are in its own namespace
		case "SigBlk", "SigCgt":
			mask, err := strconv.ParseUint(value, 16, 64)
			listens = listens || err == nil && mask>>(s-1)&1 == 1
		}
	}
	return first && listens
}
