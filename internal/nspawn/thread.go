package nspawn

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// thread runs functions on one thread of the operating system, one after the
// other, until it is ended. Its namespaces end with it, and the processes that
// it has started with Pdeathsig.
type thread struct{ calls chan func() }

func newThread() *thread {
	t := &thread{make(chan func())}
	go t.run()
	return t
}

func (t *thread) run() {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		// The first thread of a process never ends, and /proc/self shows its
		// namespaces. While it waits here, another one does the work.
		defer runtime.UnlockOSThread()
		done := make(chan struct{})
		go func() {
			defer close(done)
			t.run()
		}()
		<-done
		return
	}
	// Never unlocked: Go ends the thread with the function.
	for call := range t.calls {
		call()
	}
}

func (t *thread) do(fn func() error) error {
	failed := make(chan error)
	t.calls <- func() { failed <- fn() }
	return <-failed
}

func (t *thread) end() { close(t.calls) }
