package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/internal/durable"
	"github.com/every-channel/ecboot/internal/timeline"
)

const (
	// lingerTimeout is how long clients may take for the last of what they
	// asked for, when the guest has ended.
	lingerTimeout = 2 * time.Second
	firstFD       = 3 // what os/exec makes of ExtraFiles[0]
)

// RunKeeper is the life of a keeper: main calls it before anything else, and it
// returns in every other process.
func RunKeeper() { runKeeper(launch) }

// starter starts the guest of a plan.
type starter func(context.Context, Plan, []*os.File, *timeline.Recorder, *slog.Logger) (guest, error)

func runKeeper(launch starter) {
	dir := os.Getenv(keeperVar)
	if dir == "" {
		return
	}
	os.Unsetenv(keeperVar) // what the guest needs started must not become one
	// Nothing that is started gets what is not meant for it.
	_ = unix.CloseRange(firstFD, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
	lock := os.NewFile(firstFD, lockName)
	var o order
	err := noteProcesses(lock, os.Getpid(), 0)
	if err == nil {
		err = json.NewDecoder(os.Stdin).Decode(&o)
	}
	if err != nil {
		// Nobody is left who wants the guest.
		_ = os.RemoveAll(dir)
		os.Exit(1)
	}
	taps := make([]*os.File, o.Taps)
	for i := range taps {
		taps[i] = os.NewFile(uintptr(firstFD+1+i), "tap")
	}
	k := newKeeper(dir, o.Plan, slog.New(slog.NewTextHandler(&cappedLog{f: os.Stderr}, nil)))
	k.listenToSignals()
	err = k.run(func(ctx context.Context) (guest, error) {
		defer func() {
			for _, tap := range taps {
				tap.Close()
			}
		}()
		return launch(ctx, o.Plan, taps, k.recorder, k.log)
	}, func(r report) {
		if err := noteProcesses(lock, os.Getpid(), r.PID); err != nil {
			k.log.Error("note the guest's process", "err", err)
		}
		_ = json.NewEncoder(os.Stdout).Encode(r) // whoever asked may have died: the guest lives on
		forgetParent()
	})
	// Collected as garbage, it would be closed, and the keeper be taken for dead.
	runtime.KeepAlive(lock)
	if err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// forgetParent lets go of the pipes.
func forgetParent() {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer null.Close()
	_ = unix.Dup3(int(null.Fd()), 0, 0)
	_ = unix.Dup3(int(null.Fd()), 1, 0)
}

// cappedLog is a file that begins anew when it gets too large: a guest that
// restarts for months must not fill a file system in memory.
type cappedLog struct{ f *os.File }

const maxLog = 1 << 20 // bytes

func (l *cappedLog) Write(p []byte) (int, error) {
	if st, err := l.f.Stat(); err == nil && st.Mode().IsRegular() && st.Size() > maxLog {
		_ = l.f.Truncate(0)
	}
	return l.f.Write(p)
}

// keeper is the state of a keeper's process.
type keeper struct {
	dir      string
	plan     Plan
	log      *slog.Logger
	began    time.Time
	events   *eventLog
	recorder *timeline.Recorder

	cancelStart context.CancelFunc
	startCtx    context.Context
	started     chan struct{} // closed when starting has succeeded or failed
	stopped     chan struct{} // closed when a stop that was asked for is over
	done        chan struct{} // closed when the guest has ended; exit is valid
	guest       guest         // valid once started is closed; nil: it does not start

	mu       sync.Mutex
	stopping bool
	told     bool
	killed   bool
	how      string
	exit     Exit

	consoles sync.WaitGroup // attached
	writer   chan struct{}  // holds one while somebody may write to the console
}

func newKeeper(dir string, plan Plan, log *slog.Logger) *keeper {
	k := &keeper{
		dir: dir, plan: plan, log: log, began: time.Now(), events: newEventLog(), recorder: timeline.New(),
		started: make(chan struct{}), stopped: make(chan struct{}), done: make(chan struct{}),
		writer: make(chan struct{}, 1),
	}
	k.recorder.Watch(k.events.add)
	k.startCtx, k.cancelStart = context.WithCancel(context.Background())
	return k
}

// listenToSignals stops the guest in good order when the keeper is told to end,
// and lets nothing else end it. Signals are not ignored, because that would
// pass on to what it starts. SIGWINCH is from systemd, which ends the scope of a
// guest by it: QEMU, which gets it too, does not mind. SIGINT is a supervisor's,
// who may not live to say whether the guest is to stay down.
func (k *keeper) listenToSignals() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGWINCH, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	go func() {
		for s := range signals {
			if s == syscall.SIGTERM || s == syscall.SIGWINCH || s == syscall.SIGINT {
				k.log.Info("told to end", "signal", s.String())
				k.beginStop(s != syscall.SIGINT)
			}
		}
	}()
}

// errStopped is why a guest does not start that is stopped meanwhile.
var errStopped = errors.New("it was stopped while it started")

// run starts the guest and serves until it has ended. tell is called once the
// start has succeeded or failed.
func (k *keeper) run(start func(context.Context) (guest, error), tell func(report)) error {
	server := k.server()
	fail := func(err error) error {
		close(k.started)
		_ = os.RemoveAll(k.dir)
		tell(report{Error: err.Error()})
		k.linger(server)
		return err
	}
	listener, err := listen(k.dir)
	if err != nil {
		return fail(err)
	}
	// By this others find it, and talk to it from then on.
	if err := durable.WriteJSON(filepath.Join(k.dir, planName), k.plan, 0o600); err != nil {
		return fail(err)
	}
	log, err := k.openLog()
	if err != nil {
		return fail(err)
	}
	defer log.Close()
	go server.Serve(listener)

	g, err := start(k.startCtx)
	if err == nil && k.startCtx.Err() != nil {
		g.Kill()
		<-g.Done()
	}
	if k.startCtx.Err() != nil {
		err = errStopped
	}
	if err != nil {
		return fail(err)
	}
	k.guest = g
	close(k.started)
	fmt.Fprintf(log, "\r\n--- %s starts, %s ---\r\n", k.plan.Name, k.began.Format(time.RFC3339))
	detach := g.Console().Attach(log)
	tell(report{PID: g.PID()})

	<-g.Done()
	detach()
	k.conclude()
	if err := durable.WriteJSON(filepath.Join(k.dir, exitName), k.exit, 0o600); err != nil {
		k.log.Error("note the guest's end", "err", err)
	}
	k.linger(server)
	return nil
}

// openLog opens the file that the console goes to.
func (k *keeper) openLog() (*rotatingFile, error) {
	if k.plan.LogFile == "" {
		return &rotatingFile{}, nil
	}
	f, err := openRotating(k.plan.LogFile, k.log)
	if err != nil {
		return nil, fmt.Errorf("log of the console: %w", err)
	}
	return f, nil
}

// beginStop stops the guest, once, however many ask. told is whether the first of
// them is a signal that is nobody's Client's.
func (k *keeper) beginStop(told bool) {
	k.mu.Lock()
	first := !k.stopping
	if first {
		k.stopping, k.told = true, told
	}
	k.mu.Unlock()
	if !first {
		return
	}
	k.cancelStart()
	go func() {
		defer close(k.stopped)
		<-k.started
		how := errStopped.Error()
		if k.guest != nil {
			how = k.guest.Stop(context.Background())
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.killed {
			how = HowKilled
		}
		k.how = how
	}()
}

// kill ends the guest at once, whatever else is under way.
func (k *keeper) kill() {
	k.cancelStart()
	<-k.started
	if k.guest == nil || closed(k.guest.Done()) {
		return
	}
	k.mu.Lock()
	k.killed = true
	k.mu.Unlock()
	k.guest.Kill()
}

// conclude finds out how the guest ended, when it has.
func (k *keeper) conclude() {
	k.mu.Lock()
	stopping := k.stopping
	k.mu.Unlock()
	if stopping {
		<-k.stopped
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.exit = conclusion(k.guest.Exit(), k.how, k.killed)
	k.exit.Told, k.exit.At = k.told, time.Now()
	close(k.done)
}

// conclusion is how a guest ended that was stopped in this way, or killed: what
// was asked for is no failure, and no wish to be started again.
func conclusion(e Exit, how string, killed bool) Exit {
	if killed {
		how = HowKilled
	}
	if how != "" {
		e.How, e.Failed, e.Reboot = how, false, false
	}
	return e
}

// linger lets clients have the last of what they asked for.
func (k *keeper) linger(server *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), lingerTimeout)
	defer cancel()
	k.events.end()
	_ = server.Shutdown(ctx)
	_ = server.Close()
	attached := make(chan struct{})
	go func() {
		k.consoles.Wait()
		close(attached)
	}()
	select {
	case <-attached:
	case <-ctx.Done():
	}
}

// listen makes the socket. Its path may be longer than the address of a socket
// can be.
func listen(dir string) (net.Listener, error) {
	var listener net.Listener
	err := inDir(dir, func(short string) (err error) {
		listener, err = net.Listen("unix", filepath.Join(short, socketName))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("socket of the keeper: %w", err)
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false) // by a name that is gone
	if err := os.Chmod(filepath.Join(dir, socketName), 0o600); err != nil {
		listener.Close()
		return nil, fmt.Errorf("socket of the keeper: %w", err)
	}
	return listener, nil
}

// inDir calls fn with a short path of the directory.
func inDir(dir string, fn func(short string) error) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	defer unix.Close(fd)
	return fn(fmt.Sprintf("/proc/self/fd/%d", fd))
}
