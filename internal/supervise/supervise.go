// Package supervise keeps declared guests as they are to be: it starts them in
// order, starts again what crashed, leaves down what switched itself off, and
// takes over what still runs after a restart of its own. What is decided about
// one guest is a pure function, life.next; around it is a thin shell that starts
// and stops guests through package keeper.
package supervise

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/every-channel/ecboot/internal/keeper"
	"github.com/every-channel/ecboot/internal/timeline"
)

// Guest is one declared guest.
type Guest struct {
	Name    string
	Machine string // who it is in the timeline
	Digest  string // of its declaration: another one means that it has changed

	Autostart bool
	Order     int           // those of a lower one start first
	Delay     time.Duration // between its start and that of the next

	Restart                  string // RestartOnFailure, which empty means, RestartAlways or RestartNever
	RestartDelay, RestartMax time.Duration
	StopTimeout              time.Duration // how long it may take to stop when asked to; 0: a minute

	// Prepare makes everything that the guest needs; Config.Clean takes it
	// back. On an error, which says what is missing, nothing is left.
	Prepare func(context.Context) (*Prepared, error)
	// Check mends what has come loose of a guest that runs as planned, such as
	// a link, and says what it could not mend. May be nil.
	Check   func(context.Context, keeper.Plan) (drift []string)
	LogFile string // of its console
}

func (g *Guest) policy() Policy { return Policy{g.Restart, g.RestartDelay, g.RestartMax} }

// Prepared is a guest that can be started.
type Prepared struct {
	Plan keeper.Plan
	Taps []*os.File // the supervisor closes them
	// Join puts a process, the keeper, where it belongs before anything of the
	// guest starts, and returns the cgroup for that. May be nil.
	Join func(pid int) (cgroup string, err error)
}

// Config is what a Supervisor works with.
type Config struct {
	Dir   string // of the keepers, each in one of its own there
	State string // file in which is kept who was stopped by hand; empty: nowhere
	Boot  string // of the host: another id after each start, which ends what is in State

	Timeline *timeline.Recorder // what is decided is recorded there; nil: nowhere
	Log      *slog.Logger       // nil: silent

	// OnAdopt is told of every keeper that is taken over, before its guest
	// counts as running. May be nil.
	OnAdopt func(name string, pid int) error
	// Clean takes back what Prepare has made for a guest that has ended, or
	// was not started; this supervisor need not have started it. May be nil.
	Clean func(keeper.Plan) error

	host // in tests another than the real one
}

// Supervisor looks after guests. Its methods may be called at the same time.
type Supervisor struct {
	cfg     Config
	ctx     context.Context // until it ends
	end     context.CancelFunc
	work    sync.WaitGroup
	slots   chan struct{} // bounds how many starts go on at once
	ready   chan struct{}
	adopted chan struct{}

	mu      sync.Mutex
	guests  map[string]*guest
	desired desired
	saved   <-chan struct{} // closed when desired is on disk
	closing string          // why nothing is started any more; empty: it is
	changed chan struct{}   // closed and replaced whenever a life changes
}

// guest is a Guest with its life.
type guest struct {
	Guest
	declared bool
	life     life
	run      *run               // nil while there is no keeper
	abort    context.CancelFunc // ends the start that goes on
	timer    *time.Timer        // for life.Next
	drift    []string           // found last
	how      string             // by what it was stopped last
}

// run is a keeper with the guest that it keeps.
type run struct {
	instance
	plan    keeper.Plan
	pid     int // of the keeper; 0: it ended before it could be asked
	process int // of what it runs
	command []string
	since   time.Time
	// It was found to be stopping already, as Exit.Told says.
	stopping, told bool

	asked chan struct{} // closed when it has answered a wish to stop; nil: there was none
}

// New returns a Supervisor that does nothing before Run. Give it its guests by
// Update first.
func New(cfg Config) (*Supervisor, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.host == nil {
		cfg.host = keepers{}
	}
	s := &Supervisor{
		cfg: cfg, ready: make(chan struct{}), adopted: make(chan struct{}), guests: map[string]*guest{}, changed: make(chan struct{}),
		slots: make(chan struct{}, max(2, runtime.NumCPU())),
	}
	s.ctx, s.end = context.WithCancel(context.Background())
	onDisk := make(chan struct{})
	close(onDisk)
	s.saved = onDisk
	var err error
	s.desired, err = loadDesired(cfg.State, cfg.Boot)
	return s, err
}

// String names the supervisor.
func (s *Supervisor) String() string { return "supervisor of guests" }

// Ready is closed once every guest that starts by itself has been started, or
// could not be.
func (s *Supervisor) Ready() <-chan struct{} { return s.ready }

// Adopted is closed once it is known who runs. Before, guests that do are taken
// for down.
func (s *Supervisor) Adopted() <-chan struct{} { return s.adopted }

// checkPause is how long what has come loose may stay so.
const checkPause = 10 * time.Second

// Run takes over what runs, starts what is to run, and looks after both until
// ctx is done. It leaves all guests as they are then: see StopAll and Leave.
func (s *Supervisor) Run(ctx context.Context) error {
	if err := s.adopt(ctx); err != nil {
		return err
	}
	var looking sync.WaitGroup
	defer looking.Wait()
	looking.Go(func() { s.look(ctx) })
	for s.startDue(ctx) {
	}
	<-ctx.Done()
	return nil
}

// look checks now and again until ctx is done.
func (s *Supervisor) look(ctx context.Context) {
	tick := time.NewTicker(checkPause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.Check(ctx)
		}
	}
}

// startDue starts those that are due, and reports whether there were any. Once
// there are none, Update starts what is declared from then on.
func (s *Supervisor) startDue(ctx context.Context) bool {
	s.mu.Lock()
	list := s.due()
	if len(list) == 0 || s.closing != "" || ctx.Err() != nil {
		close(s.ready)
		s.mu.Unlock()
		return false
	}
	s.mu.Unlock()
	s.startAll(ctx, list)
	return true
}

// adopt takes over keepers that another supervisor has started, and the ends of
// guests that it did not see. What cannot be understood is told and left alone:
// it keeps its own guest down only.
func (s *Supervisor) adopt(ctx context.Context) error {
	defer close(s.adopted)
	list, err := s.cfg.find(s.cfg.Dir)
	if err != nil {
		return fmt.Errorf("look for guests that run: %w", err)
	}
	var all sync.WaitGroup
	for _, f := range list {
		all.Go(func() { s.adoptOne(ctx, f) })
	}
	all.Wait()
	return nil
}

func (s *Supervisor) adoptOne(ctx context.Context, f found) {
	if f.in == nil {
		s.adoptEnd(f)
		return
	}
	f.plan.Name = f.name // also of one that makes no sense
	r, mute := newRun(ctx, f.in, f.plan)
	if mute != nil {
		// It runs all the same: it can be stopped, and its end is seen.
		r = &run{instance: f.in, plan: f.plan, since: time.Now()}
	}
	if r.pid != 0 && s.cfg.OnAdopt != nil {
		if err := s.cfg.OnAdopt(f.name, r.pid); err != nil {
			s.cfg.Log.Error("a guest runs on that may lose its network when ecboot ends", "guest", f.name, "error", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.guestOf(f)
	// Whoever was to stop it died.
	unstopped := g.declared && g.life.Down == downByHand || r.stopping && r.told
	if g.declared && g.life.Down != "" && !unstopped {
		g.life.Down = ""
		s.keep(g, "")
	}
	g.life = g.life.enter(Running, r.since)
	g.run = r
	switch {
	case mute != nil && ctx.Err() == nil:
		g.drift = []string{silence(f.name, mute)}
		s.fail(g, g.drift[0])
	case r.process != 0:
		s.say(g, fmt.Sprintf("runs on as process %d, since %s", r.process, r.since.Format(time.DateTime)))
	case r.pid != 0:
		s.say(g, "is still being started, since "+r.since.Format(time.DateTime))
	}
	switch {
	case unstopped:
		s.apply(g, event{kind: stopAsked})
	case r.stopping && g.declared:
		s.apply(g, event{kind: restartAsked}) // see life.ended
	}
	s.follow(g, r, func() {})
}

// adoptEnd takes in the end of a guest that this supervisor has not seen.
func (s *Supervisor) adoptEnd(f found) {
	f.plan.Name = f.name // also of one that is not known
	if f.err == nil {
		s.clean(f.plan)
		s.mu.Lock()
		g := s.guestOf(f)
		saved := s.foresee(g, g.life.enter(Running, f.exit.At), f.exit)
		s.mu.Unlock()
		<-saved
	} else {
		s.cfg.Log.Warn("what a guest has left is of no use and is removed", "guest", f.name, "error", f.err)
	}
	err := f.forget()
	if err != nil {
		s.cfg.Log.Error("what a keeper has left cannot be removed", "guest", f.name, "error", err)
	}
	occupied := f.err != nil && err != nil // maybe by a guest, which cleaning would end
	if f.err != nil && !occupied {
		s.clean(f.plan)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.guestOf(f)
	switch {
	case occupied && g.isDue():
		g.life = g.life.enter(Starting, time.Now())
		s.apply(g, event{kind: startFailed, err: err})
	case f.err != nil:
		s.bury(g)
	default:
		// It was running until then.
		g.life = g.life.enter(Running, f.exit.At)
		s.apply(g, event{kind: ended, exit: f.exit})
	}
}

// silence says that a keeper does not answer, and what helps.
func silence(guest string, err error) string {
	return fmt.Sprintf("%v; the guest runs on, and 'ecboot guest stop %s' ends both", err, guest)
}

// guestOf is the guest that was found, known or not. The lock is held.
func (s *Supervisor) guestOf(f found) *guest {
	g := s.guests[f.name]
	if g == nil {
		g = &guest{Guest: Guest{Name: f.name, Machine: f.plan.Machine, Digest: f.plan.Digest, LogFile: f.plan.LogFile}}
		g.life = life{Phase: Stopped, Down: downForgotten}
		s.guests[g.Name] = g
	}
	return g
}

func (s *Supervisor) clean(p keeper.Plan) {
	if s.cfg.Clean == nil {
		return
	}
	if err := s.cfg.Clean(p); err != nil {
		s.cfg.Log.Error("what a guest has left cannot be removed", "guest", p.Name, "error", err)
	}
}

// due are the guests that are to run, do not, and were never asked to, in the
// order in which they start.
func (s *Supervisor) due() (list []Guest) {
	for _, g := range s.guests {
		if g.isDue() {
			list = append(list, g.Guest)
		}
	}
	slices.SortFunc(list, inOrder)
	return list
}

func inOrder(a, b Guest) int {
	return cmp.Or(cmp.Compare(a.Order, b.Order), cmp.Compare(a.Name, b.Name))
}

func (g *guest) isDue() bool {
	return g.declared && g.life.Phase == Stopped && g.life.Down == ""
}

// startAll starts guests in the order given. Those of one order start at once
// unless there is a delay between them.
func (s *Supervisor) startAll(ctx context.Context, list []Guest) {
	for i, spec := range list {
		if i > 0 && list[i-1].Order != spec.Order {
			s.settle(ctx, list[:i]...)
		}
		s.mu.Lock()
		if g := s.guests[spec.Name]; g != nil && g.isDue() && s.closing == "" && ctx.Err() == nil {
			s.apply(g, event{kind: startAsked})
		}
		s.mu.Unlock()
		if spec.Delay > 0 && i < len(list)-1 {
			s.settle(ctx, spec)
			select {
			case <-time.After(spec.Delay):
			case <-ctx.Done():
			case <-s.ctx.Done():
			}
		}
	}
	s.settle(ctx, list...)
}

// settle waits while guests start.
func (s *Supervisor) settle(ctx context.Context, list ...Guest) {
	_ = s.await(ctx, func() bool {
		return !slices.ContainsFunc(list, func(spec Guest) bool {
			g := s.guests[spec.Name]
			return g != nil && g.life.Phase == Starting
		})
	})
}

// await waits until what it is asked is so. It is asked with the lock held.
func (s *Supervisor) await(ctx context.Context, so func() bool) error {
	for {
		s.mu.Lock()
		done, changed := so(), s.changed
		s.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.ctx.Done():
			return errLeft
		}
	}
}

var errLeft = errors.New("ecboot is ending and leaves the guest as it is")

// Update gives the supervisor the guests that are declared now. What runs goes
// on running; what is new and starts by itself is started.
func (s *Supervisor) Update(guests []Guest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	declared := map[string]bool{}
	for _, spec := range guests {
		declared[spec.Name] = true
		g := s.guests[spec.Name]
		if g == nil || !g.declared {
			if g == nil {
				g = &guest{life: life{Phase: Stopped}}
				s.guests[spec.Name] = g
			}
			g.life.Down = s.desired.down(spec.Name, spec.Autostart)
			switch g.life.Phase {
			case Running, Starting:
				g.life.Down = ""
			case Stopping:
				g.life.Again = g.life.Down == "" && s.closing == ""
			}
		}
		other := g.declared && g.Digest != spec.Digest
		if spec.Autostart && !g.Autostart && g.life.Down == downUnstarted {
			g.life.Down = ""
		}
		g.Guest, g.declared = spec, true
		if other {
			s.apply(g, event{kind: changed})
		}
	}
	for name, g := range s.guests {
		if g.declared && !declared[name] {
			g.declared = false
			s.apply(g, event{kind: forgotten})
			s.bury(g)
		}
	}
	select {
	case <-s.ready:
		list := s.due()
		s.work.Go(func() {
			s.startAll(s.ctx, list)
			s.Check(s.ctx)
		})
	default: // Run will
	}
}

// bury drops a guest that neither runs nor is declared.
func (s *Supervisor) bury(g *guest) {
	if !g.declared && g.life.Phase == Stopped && s.guests[g.Name] == g {
		delete(s.guests, g.Name)
		s.desired.forget(g.Name)
		s.save()
	}
}

// apply lets an event happen to a guest. The lock is held.
func (s *Supervisor) apply(g *guest, e event) {
	before := g.life
	after, do := g.life.next(e, g.policy(), time.Now())
	g.life = after
	if g.timer != nil {
		g.timer.Stop()
		g.timer = nil
	}
	if !after.Next.IsZero() {
		g.timer = time.AfterFunc(time.Until(after.Next), func() { s.onTimer(g, after.Next) })
	}
	s.tell(g, before)
	s.keep(g, after.Down)
	close(s.changed)
	s.changed = make(chan struct{})
	s.act(g, do)
	s.bury(g)
}

// keep keeps why a guest is not to run; empty: it is. The lock is held.
func (s *Supervisor) keep(g *guest, down string) {
	if s.desired.set(g.Name, g.Autostart, down) {
		s.save()
	}
}

// foresee keeps what an end will make of a guest, before what tells of it is
// forgotten: whoever comes after a supervisor that is killed there must know. The
// lock is held.
func (s *Supervisor) foresee(g *guest, l life, exit keeper.Exit) (saved <-chan struct{}) {
	l, _ = l.next(event{kind: ended, exit: exit}, g.policy(), time.Now())
	s.keep(g, l.Down)
	return s.saved
}

func (s *Supervisor) onTimer(g *guest, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing == "" && g.life.Next.Equal(at) {
		s.apply(g, event{kind: elapsed})
	}
}

// act does what was decided, and has the outcome happen to the guest.
func (s *Supervisor) act(g *guest, do action) {
	r, saved := g.run, s.saved
	switch do {
	case doStart:
		ctx, cancel := context.WithCancel(s.ctx)
		g.abort = cancel
		spec := g.Guest
		s.work.Go(func() {
			defer cancel()
			r, err := s.launch(ctx, spec)
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.closing == closingLeave && err != nil {
				// The next supervisor sees to it.
				g.life = g.life.enter(Stopped, time.Now())
				close(s.changed)
				s.changed = make(chan struct{})
				return
			}
			if err != nil {
				s.apply(g, event{kind: startFailed, err: err})
				return
			}
			s.follow(g, r, func() {
				g.run = r
				s.apply(g, event{kind: started})
			})
		})
	case doAbort:
		g.abort()
	case doStop:
		limit := cmp.Or(g.StopTimeout, time.Minute) + stopSlack
		asked := make(chan struct{})
		r.asked = asked
		s.work.Go(func() {
			defer close(asked)
			<-saved
			ctx, cancel := context.WithTimeout(s.ctx, limit)
			defer cancel()
			how, err := r.Stop(ctx)
			if s.ctx.Err() != nil {
				return
			}
			if err != nil {
				s.cfg.Log.Error("the guest does not stop and is killed", "guest", g.Name, "error", err)
				how = "killed"
				s.kill(g.Name, r)
			}
			s.mu.Lock()
			g.how = how
			s.mu.Unlock()
		})
	case doKill:
		if r == nil {
			break // its start is given up already
		}
		g.how = "killed"
		s.work.Go(func() {
			<-saved
			s.kill(g.Name, r)
		})
	}
}

// stopSlack is for the keeper, which counts the time itself and then ends the
// guest firmly.
const stopSlack = 30 * time.Second

func (s *Supervisor) kill(name string, r *run) {
	ctx, cancel := context.WithTimeout(s.ctx, stopSlack)
	defer cancel()
	if err := r.Kill(ctx); err != nil {
		s.mu.Lock()
		pid := r.pid
		s.mu.Unlock()
		s.cfg.Log.Error("the guest cannot be killed", "guest", name, "keeper", pid, "error", err)
	}
}

// launch prepares and starts a guest.
func (s *Supervisor) launch(ctx context.Context, g Guest) (*run, error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	p, err := g.Prepare(ctx)
	if err != nil {
		return nil, err
	}
	instance, err := s.cfg.spawn(ctx, p.Plan, keeper.SpawnOptions{Dir: filepath.Join(s.cfg.Dir, g.Name), Taps: p.Taps, Join: p.Join})
	if err != nil {
		if !errors.Is(err, keeper.ErrRunning) { // what runs there, cleaning would end
			s.clean(p.Plan)
		}
		return nil, err
	}
	r, err := newRun(ctx, instance, p.Plan)
	if err != nil {
		// Also when this supervisor ends: half a start is nothing to adopt.
		patient, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopSlack)
		defer cancel()
		err = errors.Join(err, instance.Kill(patient))
		<-instance.Done()
		instance.Forget()
		s.clean(p.Plan)
		return nil, err
	}
	return r, nil
}

// newRun asks a keeper what it keeps. One that ends before it answers has run, and
// its end is told like any other.
func newRun(ctx context.Context, in instance, plan keeper.Plan) (*run, error) {
	st, err := in.Status(ctx)
	if err == nil {
		return &run{
			instance: in, plan: st.Plan, pid: st.Keeper, process: st.PID, command: st.Command, since: st.Since,
			stopping: st.State == keeper.StateStopping, told: st.Told,
		}, nil
	}
	if endsSoon(ctx, in) {
		return &run{instance: in, plan: plan, since: time.Now()}, nil
	}
	return nil, err
}

// endPatience is for a keeper to be gone that does not listen any more.
const endPatience = 5 * time.Second

func endsSoon(ctx context.Context, in instance) bool {
	select {
	case <-in.Done():
		return true
	case <-time.After(endPatience):
	case <-ctx.Done():
	}
	return false
}

// follow passes on what a keeper tells, and sees its end. begin is called, with the
// lock held, once the first of that is passed on, which is the guest's start, and
// before the rest: what the supervisor says of it comes after its start, and of its
// end after all that it has told.
func (s *Supervisor) follow(g *guest, r *run, begin func()) {
	begun := sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		begin()
	})
	told := make(chan struct{})
	s.work.Go(func() {
		mute := time.AfterFunc(endPatience, begun)
		err := r.Events(s.ctx, func(e timeline.Event) {
			s.cfg.Timeline.Record(e)
			begun()
		})
		mute.Stop()
		begun()
		close(told)
		// Its end is no news here; what else goes wrong costs the timeline only.
		if err != nil && !endsSoon(s.ctx, r) && s.ctx.Err() == nil {
			s.cfg.Log.Warn("the timeline of a guest is not followed any more", "guest", g.Name, "error", err)
		}
	})
	s.work.Go(func() {
		select {
		case <-s.ctx.Done():
			return
		case <-r.Done():
		}
		select {
		case <-told:
		case <-time.After(endPatience):
			begun()
		}
		s.mu.Lock()
		asked := r.asked
		s.mu.Unlock()
		if asked != nil {
			<-asked // how it was stopped is told with its end
		}
		exit := r.Exit()
		s.clean(r.plan)
		s.mu.Lock()
		saved := s.foresee(g, g.life, exit)
		s.mu.Unlock()
		<-saved
		if err := r.Forget(); err != nil {
			s.cfg.Log.Error("what a keeper has left cannot be removed", "guest", g.Name, "error", err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		g.run, g.drift = nil, nil
		s.apply(g, event{kind: ended, exit: exit})
	})
}

// tell says what has become of a guest, where that is news.
func (s *Supervisor) tell(g *guest, before life) {
	l := g.life
	again := func() string { return time.Until(l.Next).Round(time.Second).String() }
	switch {
	case before.Phase == l.Phase:
	case l.Phase == Waiting:
		s.say(g, fmt.Sprintf("ended (%s), is started again in %s", l.Reason, again()))
	case l.Phase == Failed && before.Reason == l.Reason:
		// It was said before the last attempt.
	case l.Phase == Failed && before.Phase == Starting && l.Next.IsZero():
		s.fail(g, "cannot be started: "+l.Reason)
	case l.Phase == Failed && before.Phase == Starting:
		s.fail(g, fmt.Sprintf("cannot be started: %s; tried again in %s and later", l.Reason, again()))
	case l.Phase == Failed:
		s.fail(g, "failed: "+l.Reason)
	case l.Phase == Stopping:
		s.say(g, "is stopping")
	case l.Phase == Stopped && before.Phase == Stopping && g.how != "":
		s.say(g, "stopped: "+g.how)
	case l.Phase == Stopped && before.Phase == Stopping:
		s.say(g, "stopped")
	case l.Phase == Stopped && l.Down == downByItself:
		s.say(g, "stays down: "+l.Reason)
	case l.Phase == Running && g.run != nil && g.run.process != 0:
		s.say(g, fmt.Sprintf("runs as process %d", g.run.process))
	}
}

func (s *Supervisor) say(g *guest, what string) { s.record(g, timeline.Point, what) }

func (s *Supervisor) fail(g *guest, what string) { s.record(g, timeline.Fail, what) }

func (s *Supervisor) record(g *guest, p timeline.Phase, what string) {
	s.cfg.Timeline.Record(timeline.Event{Machine: g.Machine, Stage: timeline.Guest, Phase: p, Detail: what})
	s.cfg.Log.Info(what, "guest", g.Name)
}

// save keeps who is to run. The lock is held, so it waits for no disk: who does
// something because of it waits for saved.
func (s *Supervisor) save() {
	now, before, done := s.desired.clone(), s.saved, make(chan struct{})
	s.saved = done
	s.work.Go(func() {
		defer close(done)
		<-before
		if err := now.save(); err != nil {
			s.cfg.Log.Error("who is to run cannot be kept for the next start", "error", err)
		}
	})
}

// Check mends what has come loose of guests that run, and keeps for List what it
// could not mend and what they wait for.
func (s *Supervisor) Check(ctx context.Context) {
	type job struct {
		g     *guest
		r     *run
		check func(context.Context, keeper.Plan) []string
	}
	var jobs []job
	s.mu.Lock()
	for _, g := range s.guests {
		if g.run != nil {
			jobs = append(jobs, job{g, g.run, g.Guest.Check})
		}
	}
	s.mu.Unlock()
	for _, j := range jobs {
		var drift []string
		if j.check != nil {
			drift = j.check(ctx, j.r.plan)
		}
		st, err := j.r.Status(ctx)
		switch {
		case err == nil && st.Trouble != "":
			drift = append(drift, st.Trouble)
		case err != nil && !endsSoon(ctx, j.r):
			drift = append(drift, silence(j.g.Name, err))
		}
		if ctx.Err() != nil {
			return // what was found out by then is not what is wrong
		}
		s.mu.Lock()
		if j.g.run == j.r {
			if err == nil && j.r.process == 0 { // it could not be asked before, or was taken over while it started
				j.r.pid, j.r.process, j.r.command = st.Keeper, st.PID, st.Command
			}
			for _, d := range drift {
				if !slices.Contains(j.g.drift, d) {
					s.fail(j.g, d)
				}
			}
			for _, d := range j.g.drift {
				if !slices.Contains(drift, d) {
					s.say(j.g, "no longer: "+d)
				}
			}
			j.g.drift = drift
		}
		s.mu.Unlock()
	}
}
