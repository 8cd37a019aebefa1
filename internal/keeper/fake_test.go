package keeper

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/nettest"
	"github.com/every-channel/ecboot/internal/timeline"
	"github.com/every-channel/ecboot/vmm"
)

// What a re-executed test binary is to be.
const (
	fakeVar   = "KEEPER_TEST_FAKE"   // keepers keep a fake
	parentVar = "KEEPER_TEST_PARENT" // a program that spawns a guest: see parent
)

func TestMain(m *testing.M) {
	if os.Getenv(fakeVar) != "" {
		runKeeper(launchFake)
	}
	RunKeeper()
	if role := os.Getenv(parentVar); role != "" {
		parent(role)
	}
	nettest.Main(m)
}

// fake is a guest without QEMU. It does what it is told on its console; Plan.Node
// says how it starts and how it takes a stop.
type fake struct {
	plan    Plan
	conn    net.Conn
	console *vmm.Console
	done    chan struct{}
	once    sync.Once
	exit    Exit
}

func launchFake(ctx context.Context, p Plan, taps []*os.File, events *timeline.Recorder, log *slog.Logger) (guest, error) {
	switch p.Node {
	case "fails":
		return nil, errors.New("no disk at /nowhere: make it first")
	case "hangs":
		<-ctx.Done()
		return nil, ctx.Err()
	case "tidies":
		<-ctx.Done()
		return nil, errors.Join(ctx.Err(), os.WriteFile(p.LogFile+".tidied", nil, 0o600))
	case "late":
		<-ctx.Done() // and starts all the same
	case "dies":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case "crashes":
		panic("a bug")
	}
	for i, tap := range taps {
		fmt.Fprintf(tap, "tap %d", i)
	}
	ours, theirs := net.Pipe()
	f := &fake{plan: p, conn: theirs, console: vmm.NewConsole(ours), done: make(chan struct{})}
	events.Record(timeline.Event{Machine: p.Machine, Stage: timeline.Start})
	go f.run(events)
	return f, nil
}

func (f *fake) run(events *timeline.Recorder) {
	fmt.Fprintf(f.conn, "fake: boots\r\n")
	for in := bufio.NewScanner(f.conn); in.Scan(); {
		word, n, _ := strings.Cut(in.Text(), " ")
		switch word {
		case "poweroff":
			f.end(Exit{Reason: "guest-shutdown"})
		case "reboot":
			f.end(Exit{Reason: "reboot", Reboot: true})
		case "crash":
			f.end(Exit{Reason: "failed", Detail: "it crashed", Failed: true})
		case "flood":
			lines, _ := strconv.Atoi(n)
			for i := range lines {
				fmt.Fprintf(f.conn, "line %d %s\r\n", i+1, strings.Repeat("x", 90))
			}
			fmt.Fprint(f.conn, "flood is over\r\n")
		case "event":
			events.Record(timeline.Event{Machine: f.plan.Machine, Stage: timeline.Linux, Detail: n})
		case "collect":
			for range 2 { // the first finds what has a finalizer
				runtime.GC()
			}
			fmt.Fprint(f.conn, "fake: collected\r\n")
		case "big":
			_, _ = io.WriteString(f.conn, strings.Repeat("y", 1<<16))
		default:
			fmt.Fprintf(f.conn, "fake: heard %s\r\n", in.Text())
		}
	}
}

func (f *fake) end(e Exit) {
	f.once.Do(func() {
		f.exit = e
		f.conn.Close()
		<-f.console.Done()
		close(f.done)
	})
}

func (f *fake) PID() int                     { return os.Getpid() }
func (f *fake) Command() []string            { return []string{"fake", f.plan.Name} }
func (f *fake) Console() *vmm.Console        { return f.console }
func (f *fake) State(context.Context) string { return "running" }
func (f *fake) Trouble() string              { return "" }
func (f *fake) Done() <-chan struct{}        { return f.done }
func (f *fake) Exit() Exit                   { return f.exit }
func (f *fake) Reset(context.Context) error {
	fmt.Fprint(f.conn, "fake: was reset\r\n")
	return nil
}
func (f *fake) Screenshot(context.Context) ([]byte, error) { return []byte("\x89PNG"), nil }

// Stop is what a guest does that has an ear for it, unless it is deaf.
func (f *fake) Stop(context.Context) string {
	if closed(f.done) {
		return ""
	}
	if f.plan.Node != "deaf" {
		f.end(Exit{Reason: "guest-shutdown"})
		return "asked"
	}
	fmt.Fprint(f.conn, "fake: hears nothing\r\n")
	select {
	case <-f.done:
		return "asked" // as vmm says when it ends meanwhile
	case <-time.After(f.plan.grace()):
		f.end(Exit{Reason: "killed", Failed: true})
		return "killed"
	}
}

func (f *fake) Kill() { f.end(Exit{Reason: "killed", Failed: true}) }
