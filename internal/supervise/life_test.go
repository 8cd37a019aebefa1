package supervise

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/every-channel/ecboot/internal/keeper"
)

var (
	crash    = keeper.Exit{Reason: "guest-panic", Detail: "oops", Failed: true}
	poweroff = keeper.Exit{Reason: "guest-shutdown"}
	reboot   = keeper.Exit{Reason: "reboot", Reboot: true}
)

func TestNext(t *testing.T) {
	t0 := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	now := t0.Add(time.Second)                                    // the guest has run for a second
	policy := Policy{Delay: 5 * time.Second, Max: time.Minute}    // restarts on failure
	always := Policy{Restart: RestartAlways, Delay: policy.Delay} // Max is the default
	never := Policy{Restart: RestartNever}
	in := func(p Phase, change ...func(*life)) life {
		l := life{Phase: p, Since: t0}
		for _, c := range change {
			c(&l)
		}
		return l
	}
	failures := func(n int) func(*life) { return func(l *life) { l.Failures = n } }
	down := func(why string) func(*life) { return func(l *life) { l.Down = why } }
	again := func(l *life) { l.Again = true }
	next := func(d time.Duration) func(*life) { return func(l *life) { l.Next = now.Add(d) } }
	reason := func(s string) func(*life) { return func(l *life) { l.Reason = s } }
	since := func(d time.Duration) func(*life) { return func(l *life) { l.Since = t0.Add(d) } }
	restarts := func(l *life) { l.Restarts = 1 }
	begun := since(time.Second) // the phase began now
	killed := func(l *life) { l.Killed = true }
	const oops = "guest-panic: oops"

	for _, tt := range []struct {
		name   string
		from   life
		event  event
		policy Policy
		to     life
		do     action
	}{
		{"start", in(Stopped, down(downUnstarted)), event{kind: startAsked}, policy, in(Starting, begun), doStart},
		{"start what runs", in(Running), event{kind: startAsked}, policy, in(Running), doNothing},
		{"start what waits", in(Waiting, failures(4), reason(oops), next(9)), event{kind: startAsked}, policy, in(Starting, begun), doStart},
		{"start what stops", in(Stopping, down(downByHand)), event{kind: startAsked}, policy, in(Stopping, again), doNothing},
		{"it runs", in(Starting), event{kind: started}, policy, in(Running, begun), doNothing},
		{"it runs again", in(Starting, failures(2), reason(oops)), event{kind: started}, policy, in(Running, begun, failures(2), reason(oops)), doNothing},

		{"it cannot be started", in(Starting), event{kind: startFailed, err: errors.New("no image")}, policy,
			in(Failed, begun, failures(1), reason("no image"), next(5*time.Second)), doNothing},
		{"nor again", in(Starting, failures(2)), event{kind: startFailed, err: errors.New("no image")}, policy,
			in(Failed, begun, failures(3), reason("no image"), next(20*time.Second)), doNothing},
		{"nor ever", in(Starting), event{kind: startFailed, err: errors.New("no image")}, never,
			in(Failed, begun, failures(1), reason("no image")), doNothing},
		{"it is tried again", in(Failed, failures(1), reason("no image"), next(0)), event{kind: elapsed}, policy, in(Starting, begun, failures(1), restarts), doStart},
		{"a mended declaration is tried at once", in(Failed, failures(5), reason("no image"), next(9)), event{kind: changed}, policy, in(Starting, begun), doStart},
		{"a changed one does not matter to what runs", in(Running), event{kind: changed}, policy, in(Running), doNothing},

		{"stopped by the service manager", in(Running), event{kind: ended, exit: keeper.Exit{Reason: "poweroff", How: "power button", Told: true}}, always,
			in(Stopped, begun, down(downByHand), reason("poweroff")), doNothing},
		{"stopped by a supervisor that is gone", in(Running, failures(2)), event{kind: ended, exit: keeper.Exit{Reason: "poweroff", How: "power button"}}, policy,
			in(Starting, begun, failures(2)), doStart},
		{"it was to stay down", in(Running, down(downByHand)), event{kind: ended, exit: keeper.Exit{Reason: "poweroff", How: "power button"}}, always,
			in(Stopped, begun, down(downByHand), reason("poweroff")), doNothing},
		{"crash", in(Running), event{kind: ended, exit: crash}, policy, in(Waiting, begun, failures(1), reason(oops), next(5*time.Second)), doNothing},
		{"crash after crash", in(Running, failures(3)), event{kind: ended, exit: crash}, policy,
			in(Waiting, begun, failures(4), reason(oops), next(40*time.Second)), doNothing},
		{"the longest wait", in(Running, failures(60)), event{kind: ended, exit: crash}, policy,
			in(Waiting, begun, failures(61), reason(oops), next(time.Minute)), doNothing},
		{"crash after a long run", in(Running, failures(3), since(-time.Minute)), event{kind: ended, exit: crash}, policy,
			in(Waiting, begun, failures(1), reason(oops), next(5*time.Second)), doNothing},
		{"crash without restart", in(Running), event{kind: ended, exit: crash}, never, in(Failed, begun, reason(oops)), doNothing},
		{"poweroff", in(Running), event{kind: ended, exit: poweroff}, policy, in(Stopped, begun, down(downByItself), reason("guest-shutdown")), doNothing},
		{"poweroff of one that always runs", in(Running), event{kind: ended, exit: poweroff}, always,
			in(Waiting, begun, failures(1), reason("guest-shutdown"), next(5*time.Second)), doNothing},
		{"reboot", in(Running), event{kind: ended, exit: reboot}, never, in(Starting, begun, failures(1), reason("reboot"), restarts), doStart},
		{"reboot after reboot", in(Running, failures(3)), event{kind: ended, exit: reboot}, policy,
			in(Waiting, begun, failures(4), reason("reboot"), next(40*time.Second), restarts), doNothing},
		{"reboot after a while", in(Running, failures(3), since(-4*time.Second)), event{kind: ended, exit: reboot}, policy,
			in(Starting, begun, failures(1), reason("reboot"), restarts), doStart},
		{"the wait is over", in(Waiting, failures(2), reason(oops), next(0)), event{kind: elapsed}, policy, in(Starting, begun, failures(2), reason(oops), restarts), doStart},
		{"it was over before", in(Running), event{kind: elapsed}, policy, in(Running), doNothing},

		{"stop", in(Running), event{kind: stopAsked}, policy, in(Stopping, begun, down(downByHand)), doStop},
		{"stop firmly", in(Running), event{kind: killAsked}, policy, in(Stopping, begun, down(downByHand), killed), doKill},
		{"then firmly", in(Stopping, down(downByHand)), event{kind: killAsked}, policy, in(Stopping, down(downByHand), killed), doKill},
		{"firmly once", in(Stopping, down(downByHand), killed), event{kind: killAsked}, policy, in(Stopping, down(downByHand), killed), doNothing},
		{"stop what waits", in(Waiting, next(9)), event{kind: stopAsked}, policy, in(Stopped, begun, down(downByHand)), doNothing},
		{"stop what is down", in(Stopped, down(downByItself)), event{kind: stopAsked}, policy, in(Stopped, down(downByHand)), doNothing},
		{"stop what starts", in(Starting), event{kind: stopAsked}, policy, in(Stopping, begun, down(downByHand)), doAbort},
		{"it was too late", in(Stopping, down(downByHand)), event{kind: started}, policy, in(Stopping, down(downByHand)), doStop},
		{"it was too late for a kill", in(Stopping, down(downByHand), killed), event{kind: started}, policy, in(Stopping, down(downByHand), killed), doKill},
		{"it was not", in(Stopping, down(downByHand)), event{kind: startFailed, err: errors.New("aborted")}, policy, in(Stopped, begun, down(downByHand)), doNothing},
		{"it has stopped", in(Stopping, down(downByHand)), event{kind: ended, exit: poweroff}, policy,
			in(Stopped, begun, down(downByHand), reason("guest-shutdown")), doNothing},
		{"also one that always runs", in(Stopping, down(downByHand)), event{kind: ended, exit: crash}, always,
			in(Stopped, begun, down(downByHand), reason(oops)), doNothing},

		{"restart", in(Running, failures(2)), event{kind: restartAsked}, policy, in(Stopping, begun, failures(2), again), doStop},
		{"restart what is down", in(Stopped, down(downByHand)), event{kind: restartAsked}, policy, in(Starting, begun), doStart},
		{"it starts again", in(Stopping, failures(2), again), event{kind: ended, exit: poweroff}, never, in(Starting, begun), doStart},
		{"somebody would rather have it down", in(Stopping, again), event{kind: stopAsked}, policy, in(Stopping, down(downByHand)), doNothing},

		{"no longer declared", in(Running), event{kind: forgotten}, always, in(Running, down(downForgotten)), doNothing},
		{"then it ends", in(Running, down(downForgotten)), event{kind: ended, exit: crash}, always, in(Stopped, begun, down(downForgotten), reason(oops)), doNothing},
		{"no longer declared while it waits", in(Waiting, next(9)), event{kind: forgotten}, always, in(Stopped, begun, down(downForgotten)), doNothing},
		{"ecboot ends", in(Running), event{kind: shutDown}, always, in(Stopping, begun, down(downEnding)), doStop},
		{"ecboot ends at once", in(Stopping, down(downEnding)), event{kind: killAll}, always, in(Stopping, down(downEnding), killed), doKill},
	} {
		t.Run(tt.name, func(t *testing.T) {
			to, do := tt.from.next(tt.event, tt.policy, now)
			if diff := cmp.Diff(tt.to, to); diff != "" || do != tt.do {
				t.Errorf("action %d, want %d; life (-want +got):\n%s", do, tt.do, diff)
			}
		})
	}
}

// No event at any time may start a guest twice, or leave it where nothing
// follows.
func TestNextKeepsItsPromises(t *testing.T) {
	now := time.Unix(1e9, 0)
	phases := []Phase{Stopped, Starting, Running, Stopping, Waiting, Failed}
	for _, phase := range phases {
		for kind := startAsked; kind <= killAll; kind++ {
			switch kind {
			case started, startFailed, ended:
				continue // only where they can happen
			}
			for _, policy := range []Policy{{}, {Restart: RestartAlways}, {Restart: RestartNever}} {
				l := life{Phase: phase, Since: now, Next: now}
				to, do := l.next(event{kind: kind, err: errors.New("x")}, policy, now)
				alive := phase == Starting || phase == Running || phase == Stopping
				if do == doStart && (alive || to.Phase != Starting) {
					t.Errorf("%s, event %d: started, and is %s", phase, kind, to.Phase)
				}
				if (to.Phase == Starting || to.Phase == Stopping) && to.Phase != phase && do == doNothing {
					t.Errorf("%s, event %d: is %s, and nothing is done", phase, kind, to.Phase)
				}
				if alive && (to.Phase == Stopped || to.Phase == Waiting || to.Phase == Failed) {
					t.Errorf("%s, event %d: is %s while it runs", phase, kind, to.Phase)
				}
			}
		}
	}
}
