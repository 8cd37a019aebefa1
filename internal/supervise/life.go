package supervise

import (
	"cmp"
	"time"

	"github.com/every-channel/ecboot/internal/keeper"
)

// Phase is where a guest is.
type Phase string

// The phases.
const (
	Stopped  Phase = "stopped"
	Starting Phase = "starting"
	Running  Phase = "running"
	Stopping Phase = "stopping"
	Waiting  Phase = "waiting" // it ended and is started again at life.Next
	Failed   Phase = "failed"  // it could not be started, or ended and is not started again; life.Reason says why
)

// The restart policies, as the configuration writes them.
const (
	RestartAlways    = "always"
	RestartOnFailure = "on-failure"
	RestartNever     = "never"
)

// Policy says what becomes of a guest that has ended.
type Policy struct {
	Restart    string        // empty: RestartOnFailure
	Delay, Max time.Duration // before the first of several restarts, and at most; 0: 5 s, 5 min
}

const (
	defaultDelay = 5 * time.Second
	defaultMax   = 5 * time.Minute
)

func (p Policy) withDefaults() Policy {
	p.Restart = cmp.Or(p.Restart, RestartOnFailure)
	p.Delay = cmp.Or(p.Delay, defaultDelay)
	p.Max = max(cmp.Or(p.Max, defaultMax), p.Delay)
	return p
}

// life is what the supervisor knows of how one guest lives. It changes by next
// only.
type life struct {
	Phase    Phase
	Since    time.Time // when the phase began
	Next     time.Time // Waiting, Failed: when it is started again; zero: not by itself
	Reason   string    // of its last end, or why it could not be started; Running: of the end after which it was started again by itself
	Failures int       // ends and failed starts in a row, none of which came after a long run
	Restarts int       // starts that nobody asked for
	Down     string    // why it is not to run: one of the down… constants; empty: it is
	Again    bool      // Stopping: it is to be started again
	Killed   bool      // Stopping: it is not waited for any longer
}

// Why a guest is not to run.
const (
	downByHand    = "by hand"    // somebody stopped it
	downByItself  = "by itself"  // it switched itself off
	downUnstarted = "unstarted"  // nobody has started it
	downForgotten = "undeclared" // the configuration no longer has it
	downEnding    = "ending"     // ecboot itself is told to end
)

// event is what happens to a guest.
type event struct {
	kind eventKind
	exit keeper.Exit // ended
	err  error       // startFailed
}

type eventKind uint8

const (
	startAsked   eventKind = iota // by somebody, or because it starts by itself
	stopAsked                     // gracefully
	killAsked                     // at once
	restartAsked                  // gracefully, then again
	started                       // the start succeeded, or one that runs was found
	startFailed                   // with err
	ended                         // with exit
	elapsed                       // Next has come
	changed                       // its declaration is another one
	forgotten                     // it is no longer declared
	shutDown                      // all are stopped, gracefully, because ecboot ends
	killAll                       // the same, at once
)

// action is what is to be done because of an event.
type action uint8

const (
	doNothing action = iota
	doStart          // prepare and start it; started or startFailed follows
	doAbort          // give up the start that goes on; started or startFailed follows
	doStop           // ask it to end; ended follows
	doKill           // end it; ended follows
)

// next is the whole of what the supervisor decides about a guest.
func (l life) next(e event, p Policy, now time.Time) (life, action) {
	p = p.withDefaults()
	switch e.kind {
	case startAsked:
		return l.askStart(now)
	case stopAsked, killAsked:
		return l.askStop(downByHand, e.kind == killAsked, now)
	case shutDown, killAll:
		return l.askStop(downEnding, e.kind == killAll, now)
	case forgotten:
		return l.forget(now)
	case restartAsked:
		l.Down = ""
		switch l.Phase {
		case Running:
			l, do := l.enter(Stopping, now), doStop
			l.Again = true
			return l, do
		case Stopping:
			l.Again = true
			return l, doNothing
		}
		return l.askStart(now)
	case started:
		if l.Phase == Stopping {
			// It was stopped while it started.
			if l.Killed {
				return l, doKill
			}
			return l, doStop
		}
		return l.enter(Running, now), doNothing
	case startFailed:
		return l.startFailed(e.err, p, now)
	case ended:
		return l.ended(e.exit, p, now)
	case elapsed:
		if l.Next.IsZero() || l.Phase != Waiting && l.Phase != Failed {
			return l, doNothing
		}
		l.Restarts++
		if l.Phase == Failed {
			l.Reason = ""
		}
		return l.enter(Starting, now), doStart
	case changed:
		// What kept it from starting may be mended.
		if l.Phase == Failed && l.Down == "" {
			l.Failures, l.Reason = 0, ""
			return l.enter(Starting, now), doStart
		}
	}
	return l, doNothing
}

// enter begins a phase.
func (l life) enter(p Phase, now time.Time) life {
	l.Phase, l.Since, l.Next = p, now, time.Time{}
	l.Again, l.Killed = false, false
	return l
}

func (l life) askStart(now time.Time) (life, action) {
	l.Down = ""
	switch l.Phase {
	case Stopping:
		l.Again = true
		return l, doNothing
	case Starting, Running:
		return l, doNothing
	}
	l.Failures, l.Reason = 0, "" // whoever asks believes that it will work
	return l.enter(Starting, now), doStart
}

func (l life) askStop(why string, kill bool, now time.Time) (life, action) {
	l.Down = why
	switch l.Phase {
	case Starting:
		l = l.enter(Stopping, now)
		l.Killed = kill
		return l, doAbort
	case Running:
		l = l.enter(Stopping, now)
		l.Killed = kill
		if kill {
			return l, doKill
		}
		return l, doStop
	case Stopping:
		l.Again = false
		if kill && !l.Killed {
			l.Killed = true
			return l, doKill
		}
	case Waiting, Failed:
		return l.enter(Stopped, now), doNothing
	}
	return l, doNothing
}

// forget leaves a guest alone that runs, and starts it no more.
func (l life) forget(now time.Time) (life, action) {
	switch l.Phase {
	case Running, Stopping:
		l.Down, l.Again = downForgotten, false
		return l, doNothing
	}
	return l.askStop(downForgotten, false, now)
}

func (l life) startFailed(err error, p Policy, now time.Time) (life, action) {
	stopping, again := l.Phase == Stopping, l.Again
	if stopping && again {
		return l.enter(Starting, now), doStart
	}
	if stopping {
		return l.enter(Stopped, now), doNothing
	}
	l = l.enter(Failed, now)
	l.Reason = err.Error()
	l.Failures++
	if p.Restart != RestartNever && l.Down == "" {
		l.Next = now.Add(p.backoff(l.Failures))
	}
	return l, doNothing
}

// quickReboots is how many times in a row a guest may reboot at once before it
// has run for Policy.Delay.
const quickReboots = 3

func (l life) ended(exit keeper.Exit, p Policy, now time.Time) (life, action) {
	stopping, again, ran := l.Phase == Stopping, l.Again, now.Sub(l.Since)
	l.Reason = exit.Reason
	if exit.Detail != "" {
		l.Reason += ": " + exit.Detail
	}
	if ran >= p.Max || exit.Reboot && ran >= p.Delay {
		l.Failures = 0
	}
	switch {
	case stopping && again:
		l.Failures, l.Reason = 0, ""
		return l.enter(Starting, now), doStart
	case stopping || l.Down != "":
		return l.enter(Stopped, now), doNothing
	case exit.Told:
		l.Down = downByHand
		return l.enter(Stopped, now), doNothing
	case exit.How != "":
		// A supervisor that is gone asked it to end, and not for good.
		l.Reason = ""
		return l.enter(Starting, now), doStart
	case exit.Reboot:
		l.Restarts++
		if l.Failures++; l.Failures <= quickReboots {
			return l.enter(Starting, now), doStart
		}
		return l.wait(p, now), doNothing
	case p.Restart == RestartAlways, exit.Failed && p.Restart == RestartOnFailure:
		l.Failures++
		return l.wait(p, now), doNothing
	case exit.Failed:
		return l.enter(Failed, now), doNothing
	}
	l.Down = downByItself
	return l.enter(Stopped, now), doNothing
}

func (l life) wait(p Policy, now time.Time) life {
	l = l.enter(Waiting, now)
	l.Next = now.Add(p.backoff(l.Failures))
	return l
}

// backoff doubles the delay with each failure after the first, up to Max.
func (p Policy) backoff(failures int) time.Duration {
	d := p.Delay
	for range failures - 1 {
		if d *= 2; d >= p.Max {
			return p.Max
		}
	}
	return min(d, p.Max)
}
