package keeper

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"github.com/every-channel/ecboot/internal/nspawn"
	"github.com/every-channel/ecboot/internal/timeline"
	"github.com/every-channel/ecboot/vmm"
)

// guest is what a keeper keeps: a QEMU machine or a container that runs.
type guest interface {
	PID() int
	Command() []string
	Console() *vmm.Console
	State(context.Context) string
	Trouble() string                   // why it waits for its host; empty: it does not
	Stop(context.Context) (how string) // graceful, then firm
	Kill()
	Done() <-chan struct{}
	Exit() Exit // once it is done
	Reset(context.Context) error
	Screenshot(context.Context) (png []byte, err error)
}

// launch starts the guest of a plan.
func launch(ctx context.Context, p Plan, taps []*os.File, events *timeline.Recorder, log *slog.Logger) (guest, error) {
	if p.VM != nil {
		return launchMachine(ctx, p, taps, events, log)
	}
	return launchContainer(ctx, p, events, log)
}

// machine is a guest that QEMU runs.
type machine struct{ *vmm.Machine }

func launchMachine(ctx context.Context, p Plan, taps []*os.File, events *timeline.Recorder, log *slog.Logger) (guest, error) {
	m, err := vmm.Start(ctx, *p.VM, vmm.Options{
		QEMU: p.QEMU, Taps: taps, Machine: p.Machine, Timeline: events, Log: log, SkipBanner: p.SkipBanner,
		Grace:      p.grace() / 2, // for each of two requests
		Credential: p.Credential, Cgroup: p.Cgroup, ScreenGroup: p.ScreenGroup,
	})
	if err != nil {
		return nil, err
	}
	return machine{m}, nil
}

// stateTimeout is for QEMU to say its run state.
const stateTimeout = 2 * time.Second

func (m machine) State(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, stateTimeout)
	defer cancel()
	state, err := m.Status(ctx)
	switch {
	case err != nil:
		return "unresponsive"
	case state == "shutdown":
		return StateEnded
	}
	return state
}

func (m machine) Stop(ctx context.Context) string {
	how := m.Machine.Stop(ctx)
	if how == vmm.StoppedItself {
		return ""
	}
	return string(how)
}

func (m machine) Exit() Exit { return exitOfMachine(m.Machine.Exit()) }

// exitOfMachine judges an end that nobody has asked for. Who tells QEMU to quit
// knows what he does.
func exitOfMachine(e vmm.Exit) Exit {
	return Exit{
		Reason: string(e.Reason), Detail: e.Detail,
		Failed: e.Reason == vmm.GuestPanic || e.Reason == vmm.Killed || e.Reason == vmm.Failed,
		Reboot: e.Reason == vmm.GuestReset,
	}
}

// container is a guest that nspawn runs.
type container struct {
	*nspawn.Container
	console *vmm.Console
	done    chan struct{} // closed when its console has been read to the end, too
}

// Trouble is nothing: a container feels a full disk by itself.
func (c *container) Trouble() string { return "" }

func launchContainer(ctx context.Context, p Plan, events *timeline.Recorder, log *slog.Logger) (guest, error) {
	began := time.Now()
	box, err := nspawn.Start(ctx, *p.Container, nspawn.Options{Cache: p.Cache, Cgroup: p.Cgroup, Log: log, Grace: p.grace()})
	if err != nil {
		return nil, err
	}
	if err := box.Resize(80, 24); err != nil { // programs do strange things on a screen without lines
		log.Warn("the console's size", "err", err)
	}
	events.Record(timeline.Event{At: began, Machine: p.Machine, Stage: timeline.Start, Detail: "container"})
	c := &container{Container: box, console: vmm.NewConsole(box.Console()), done: make(chan struct{})}
	go func() {
		<-box.Done()
		_ = box.Console().SetReadDeadline(time.Now().Add(drainTimeout)) // it may have been read to its end
		<-c.console.Done()
		events.Record(timeline.Event{Machine: p.Machine, Stage: timeline.Exit, Detail: box.Exit().String()})
		close(c.done)
	}()
	return c, nil
}

// drainTimeout is how long a console may outlive its guest.
const drainTimeout = 2 * time.Second

func (c *container) Console() *vmm.Console { return c.console }
func (c *container) Done() <-chan struct{} { return c.done }

func (c *container) State(context.Context) string {
	if closed(c.Container.Done()) {
		return StateEnded // its console is read to the end
	}
	return "running"
}

func (c *container) Stop(ctx context.Context) string {
	how := c.Container.Stop(ctx)
	if how == nspawn.StoppedItself {
		return ""
	}
	return string(how)
}

func (c *container) Exit() Exit { return exitOfContainer(c.Container.Exit()) }

// exitOfContainer judges an end that nobody has asked for.
func exitOfContainer(e nspawn.Exit) Exit {
	return Exit{
		Reason: string(e.Reason), Detail: e.Detail,
		Failed: e.Reason == nspawn.Failed || e.Reason == nspawn.Killed,
		Reboot: e.Reason == nspawn.Reboot,
	}
}

func (c *container) Reset(context.Context) error {
	return errors.New("a container has no reset button: restart it")
}

func (c *container) Screenshot(context.Context) ([]byte, error) {
	return nil, errors.New("a container has no screen: look at its console")
}
