package supervise

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/internal/keeper"
	"github.com/every-channel/ecboot/internal/timeline"
)

// noKeepers is a host on which no guest can be started.
type noKeepers struct{}

func (noKeepers) find(string) ([]found, error) { return nil, nil }

func (noKeepers) spawn(context.Context, keeper.Plan, keeper.SpawnOptions) (instance, error) {
	return nil, errors.New("not here")
}

// A start that takes its time holds up neither the end of the supervisor nor
// those of other guests.
func TestLeaveGivesUpStarts(t *testing.T) {
	s, err := New(Config{host: noKeepers{}})
	if err != nil {
		t.Fatal(err)
	}
	starting := make(chan struct{})
	s.Update([]Guest{
		{Name: "slow", Autostart: true, Prepare: func(ctx context.Context) (*Prepared, error) {
			close(starting)
			<-ctx.Done()
			return nil, ctx.Err()
		}},
		{Name: "wrong", Autostart: true, Prepare: func(context.Context) (*Prepared, error) { return &Prepared{}, nil }},
		{Name: "unasked", Prepare: func(context.Context) (*Prepared, error) { panic("nobody asked for it") }},
	})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-starting
	if err := s.await(t.Context(), func() bool { return s.guests["wrong"].life.Phase == Failed }); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	s.Leave()
	for _, st := range s.List() {
		if st.Phase == Starting || st.Keeper != 0 {
			t.Errorf("%s is %s", st.Name, st.Phase)
		}
	}
}

// What is declared while the first guests start is started after them.
func TestStartsWhatIsDeclaredMeanwhile(t *testing.T) {
	s, err := New(Config{host: noKeepers{}})
	if err != nil {
		t.Fatal(err)
	}
	begun, release := make(chan struct{}), make(chan struct{})
	first := Guest{Name: "first", Autostart: true, Restart: RestartNever, Prepare: func(context.Context) (*Prepared, error) {
		close(begun)
		<-release
		return nil, errors.New("no image")
	}}
	second := Guest{Name: "second", Autostart: true, Prepare: func(context.Context) (*Prepared, error) {
		return nil, errors.New("nor here")
	}}
	s.Update([]Guest{first})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-begun
	s.Update([]Guest{first, second})
	close(release)
	<-s.Ready()
	if st := s.List()[1]; st.Phase != Failed {
		t.Errorf("%+v", st)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	s.Leave()
}

// tornHost has the directory of a guest whose keeper never learned its plan.
type tornHost struct{ noKeepers }

func (tornHost) find(string) ([]found, error) {
	return []found{{name: "torn", err: errors.New("it has no plan"), forget: func() error { return nil }}}, nil
}

// What is cleaned of a guest whose plan is not known is that guest's, and not
// that of a guest without a name: whoever removes by name would take them all.
func TestCleansByName(t *testing.T) {
	var cleaned []string
	s, err := New(Config{host: tornHost{}, Clean: func(p keeper.Plan) error {
		cleaned = append(cleaned, p.Name)
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.adopt(t.Context()); err != nil {
		t.Error(err)
	}
	if len(cleaned) != 1 || cleaned[0] != "torn" {
		t.Errorf("cleaned %q", cleaned)
	}
}

// brief is a guest that switches itself off before anybody can ask for it.
type brief struct {
	instance
	ended     chan struct{}
	forgotten chan struct{}
	forgets   func() // is called before it is forgotten
}

func newBrief() *brief {
	b := &brief{ended: make(chan struct{}), forgotten: make(chan struct{}), forgets: func() {}}
	close(b.ended)
	return b
}

func (b *brief) Status(context.Context) (keeper.Status, error) {
	return keeper.Status{}, errors.New("nobody listens")
}

func (b *brief) Events(context.Context, func(timeline.Event)) error {
	return errors.New("nobody listens")
}
func (b *brief) Kill(context.Context) error { return nil }
func (b *brief) Done() <-chan struct{}      { return b.ended }
func (b *brief) Exit() keeper.Exit          { return poweroff }
func (b *brief) Forget() error {
	b.forgets()
	close(b.forgotten)
	return nil
}

// briefHost has such guests alone: one that runs already, and those it starts.
type briefHost struct{ runs, starts *brief }

func (h briefHost) find(string) ([]found, error) {
	return []found{{name: "runs", in: h.runs, plan: keeper.Plan{Name: "runs"}, forget: h.runs.Forget}}, nil
}

func (h briefHost) spawn(context.Context, keeper.Plan, keeper.SpawnOptions) (instance, error) {
	return h.starts, nil
}

// A guest that has ended before it could be asked what it is has not failed to
// start, nor does its keeper hold it.
func TestBriefGuests(t *testing.T) {
	h := briefHost{newBrief(), newBrief()}
	var complaints strings.Builder
	s, err := New(Config{host: h, Log: slog.New(slog.NewTextHandler(&complaints, &slog.HandlerOptions{Level: slog.LevelWarn}))})
	if err != nil {
		t.Fatal(err)
	}
	prepare := func(context.Context) (*Prepared, error) { return &Prepared{}, nil }
	s.Update([]Guest{{Name: "runs", Autostart: true, Prepare: prepare}, {Name: "starts", Autostart: true, Prepare: prepare}})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	for name, b := range map[string]*brief{"runs": h.runs, "starts": h.starts} {
		var l life
		_ = s.await(t.Context(), func() bool {
			l = s.guests[name].life
			return l.Down == downByItself || l.Phase == Failed
		})
		if l.Phase != Stopped {
			t.Fatalf("%s: %+v", name, l)
		}
		<-b.forgotten
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	s.Leave()
	if complaints.Len() > 0 {
		t.Error(complaints.String())
	}
}

// Whoever is impatient with a start that is given up already gets no quicker end
// of it, and no other.
func TestKillsWhatIsGivenUp(t *testing.T) {
	s, err := New(Config{host: noKeepers{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.adopt(t.Context()); err != nil {
		t.Fatal(err)
	}
	begun, release := make(chan struct{}), make(chan struct{})
	s.Update([]Guest{{Name: "slow", Prepare: func(ctx context.Context) (*Prepared, error) {
		close(begun)
		<-release // it cannot be interrupted
		return nil, ctx.Err()
	}}})
	started, stopped := make(chan error, 1), make(chan error, 2)
	go func() { started <- s.Start(t.Context(), "slow") }()
	<-begun
	for _, firm := range []bool{false, true} {
		go func() {
			_, err := s.Stop(t.Context(), "slow", firm)
			stopped <- err
		}()
		if err := s.await(t.Context(), func() bool { l := s.guests["slow"].life; return l.Phase == Stopping && l.Killed == firm }); err != nil {
			t.Fatal(err)
		}
	}
	close(release)
	if err := <-started; err == nil {
		t.Error("it started")
	}
	for range 2 {
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	}
	s.Leave()
}

// ending is a guest that has switched itself off and is not gone yet.
type ending struct {
	*brief
	asked chan struct{} // holds one from when it was asked on
}

func (e ending) Status(context.Context) (keeper.Status, error) {
	select {
	case e.asked <- struct{}{}:
	default: // before
	}
	return keeper.Status{State: keeper.StateEnded}, nil
}

// endingHost has an ending guest that runs already, and starts brief ones.
type endingHost struct {
	runs   ending
	starts chan *brief
}

func (h endingHost) find(string) ([]found, error) {
	return []found{{name: "runs", in: h.runs, plan: keeper.Plan{Name: "runs"}, forget: h.runs.Forget}}, nil
}

func (h endingHost) spawn(context.Context, keeper.Plan, keeper.SpawnOptions) (instance, error) {
	b := newBrief()
	h.starts <- b
	return b, nil
}

// Whoever asks for a guest that has just switched itself off gets it started
// again, and is not told that it runs.
func TestStartsAgainWhatIsEnding(t *testing.T) {
	h := endingHost{runs: ending{&brief{ended: make(chan struct{}), forgotten: make(chan struct{}), forgets: func() {}}, make(chan struct{}, 1)}, starts: make(chan *brief, 1)}
	s, err := New(Config{host: h})
	if err != nil {
		t.Fatal(err)
	}
	s.Update([]Guest{{Name: "runs", Prepare: func(context.Context) (*Prepared, error) { return &Prepared{}, nil }}})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.Ready()
	<-h.runs.asked // when it was taken over
	started := make(chan error, 1)
	go func() { started <- s.Start(t.Context(), "runs") }()
	<-h.runs.asked
	close(h.runs.ended)
	<-h.starts
	<-started // it may have ended again by now
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	s.Leave()
}

// What a guest that runs lacks of its declaration is told with what helps.
func TestDrift(t *testing.T) {
	s, err := New(Config{host: noKeepers{}})
	if err != nil {
		t.Fatal(err)
	}
	s.guests["db"] = &guest{Guest: Guest{Name: "db", Digest: "of now"}, declared: true, run: &run{plan: keeper.Plan{Digest: "of then"}}}
	s.guests["gone"] = &guest{Guest: Guest{Name: "gone", Digest: "of then"}, run: &run{plan: keeper.Plan{Digest: "of then"}}}
	var got []string
	for _, st := range s.List() {
		got = append(got, st.Drift...)
	}
	want := []string{
		"its declaration has changed since it was started: 'ecboot guest restart db' applies that",
		"it is no longer declared: it runs until it ends or is stopped",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// What is wrong with a guest that runs is told once, and so is its end.
func TestDriftThatEnds(t *testing.T) {
	s, err := New(Config{host: noKeepers{}, Timeline: timeline.New()})
	if err != nil {
		t.Fatal(err)
	}
	drift := []string{"the disk is full"}
	g := &guest{Guest: Guest{Name: "db", Machine: "m", Check: func(context.Context, keeper.Plan) []string { return drift }}, declared: true, run: &run{instance: &lasting{}}}
	s.guests["db"] = g
	s.Check(t.Context())
	s.Check(t.Context())
	drift = nil
	s.Check(t.Context())
	var said []string
	for _, e := range s.cfg.Timeline.Events("m") {
		said = append(said, e.Detail)
	}
	if want := []string{"the disk is full", "no longer: the disk is full"}; !slices.Equal(said, want) || g.drift != nil {
		t.Errorf("%q, %q", said, g.drift)
	}
}

// lasting is a guest that runs until it is stopped.
type lasting struct {
	instance
	stopped chan struct{}
}

func (*lasting) Status(context.Context) (keeper.Status, error) {
	return keeper.Status{Keeper: 1, PID: 2}, nil
}

func (l *lasting) Events(ctx context.Context, _ func(timeline.Event)) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-l.stopped:
		return nil
	}
}

func (l *lasting) Stop(context.Context) (string, error) {
	close(l.stopped)
	return "power button", nil
}

func (l *lasting) Done() <-chan struct{} { return l.stopped }
func (*lasting) Exit() keeper.Exit       { return keeper.Exit{Reason: "poweroff", How: "power button"} }
func (*lasting) Forget() error           { return nil }

// lastingHost has one of these, which an earlier supervisor has started.
type lastingHost struct{ noKeepers }

func (lastingHost) find(string) ([]found, error) {
	return []found{{name: "runs", in: &lasting{stopped: make(chan struct{})}, plan: keeper.Plan{Name: "runs"}}}, nil
}

func newLastingHost(t *testing.T, state string) *Supervisor {
	t.Helper()
	s, err := New(Config{host: lastingHost{}, State: state})
	if err != nil {
		t.Fatal(err)
	}
	s.Update([]Guest{{Name: "runs", Autostart: true, Prepare: func(context.Context) (*Prepared, error) {
		t.Error("what runs is made ready to start")
		return nil, errors.New("it runs")
	}}})
	t.Cleanup(s.Leave)
	return s
}

// Who asks before it is known what runs is not taken at his word: a guest that
// runs would be started, or not be stopped.
func TestWaitsForAdoption(t *testing.T) {
	s := newLastingHost(t, "")
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	_, stop := s.Stop(impatient, "runs", false)
	_, restart := s.Restart(impatient, "runs")
	_, log := s.Log(impatient, "runs", 1)
	for what, err := range map[string]error{"start": s.Start(impatient, "runs"), "stop": stop, "restart": restart, "log": log} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := s.adopt(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context(), "runs"); err != nil {
		t.Error(err)
	}
	if st := s.List()[0]; st.Phase != Running || st.Down != "" {
		t.Errorf("%+v", st)
	}
}

// A supervisor that died while it stopped a guest leaves that to the next.
func TestFinishesAStop(t *testing.T) {
	state := filepath.Join(t.TempDir(), "guests.json")
	d := desired{state, desiredDoc{desiredSchema, "", map[string]string{"runs": downByHand}}}
	if err := d.save(); err != nil {
		t.Fatal(err)
	}
	s := newLastingHost(t, state)
	if err := s.adopt(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.await(t.Context(), func() bool { return s.guests["runs"].life.Phase != Stopping }); err != nil {
		t.Fatal(err)
	}
	if st := s.List()[0]; st.Phase != Stopped || st.Down != downByHand {
		t.Errorf("%+v", st)
	}
}

// stoppingHost has a guest that is being stopped, which an earlier supervisor has
// begun, or a signal, and starts brief ones.
type stoppingHost struct {
	told   bool
	starts chan *brief
}

type stopping struct {
	*lasting
	told bool
}

func (s stopping) Status(context.Context) (keeper.Status, error) {
	return keeper.Status{Keeper: 1, PID: 2, State: keeper.StateStopping, Told: s.told}, nil
}

func (h stoppingHost) find(string) ([]found, error) {
	return []found{{name: "runs", in: stopping{&lasting{stopped: make(chan struct{})}, h.told}, plan: keeper.Plan{Name: "runs"}}}, nil
}

func (h stoppingHost) spawn(context.Context, keeper.Plan, keeper.SpawnOptions) (instance, error) {
	b := newBrief()
	h.starts <- b
	return b, nil
}

// A guest that is found stopping is no guest that runs: it is started again once
// it has ended, unless it was the service manager that asked it to end.
func TestFindsAStopUnderWay(t *testing.T) {
	for _, told := range []bool{false, true} {
		h := stoppingHost{told, make(chan *brief, 1)}
		s, err := New(Config{host: h})
		if err != nil {
			t.Fatal(err)
		}
		s.Update([]Guest{{Name: "runs", Autostart: true, Prepare: func(context.Context) (*Prepared, error) { return &Prepared{}, nil }}})
		s.mu.Lock()
		before := s.changed
		s.mu.Unlock()
		if err := s.adopt(t.Context()); err != nil {
			t.Fatal(err)
		}
		<-before // it is stopping, or further
		if !told {
			<-h.starts
		}
		var l life
		if err := s.await(t.Context(), func() bool { l = s.guests["runs"].life; return l.Phase == Stopped }); err != nil {
			t.Fatal(err)
		}
		if want := map[bool]string{true: downByHand, false: downByItself}[told]; l.Down != want {
			t.Errorf("told %v: down %q, want %q", told, l.Down, want)
		}
		s.Leave()
	}
}

// mute is a guest whose keeper does not answer, such as one that was suspended.
type mute struct{ *lasting }

func (mute) Status(context.Context) (keeper.Status, error) {
	return keeper.Status{}, errors.New("its keeper does not answer")
}

// muteHost has one of these, which an earlier supervisor has started.
type muteHost struct{ noKeepers }

func (muteHost) find(string) ([]found, error) {
	return []found{{name: "runs", in: mute{&lasting{stopped: make(chan struct{})}}, plan: keeper.Plan{Name: "runs"}}}, nil
}

// A guest whose keeper does not answer runs all the same: nothing starts it, what
// is cleaned would be ended, and it can be stopped.
func TestTakesOverWhatDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var cleaned []string
		s, err := New(Config{host: muteHost{}, Clean: func(p keeper.Plan) error {
			cleaned = append(cleaned, p.Name)
			return nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		declare := func(digest string) {
			s.Update([]Guest{{Name: "runs", Digest: digest, Autostart: true, Prepare: func(context.Context) (*Prepared, error) {
				t.Error("what runs is made ready to start")
				return nil, errors.New("it runs")
			}}})
		}
		declare("")
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		<-s.Ready()
		declare("another")
		synctest.Wait()
		if st := s.List()[0]; st.Phase != Running || !slices.Contains(st.Drift, "its keeper does not answer; the guest runs on, and 'ecboot guest stop runs' ends both") || len(cleaned) > 0 {
			t.Errorf("%+v, cleaned %q", st, cleaned)
		}
		if how, err := s.Stop(t.Context(), "runs", false); how != "power button" || err != nil {
			t.Errorf("%q, %v", how, err)
		}
		if st := s.List()[0]; st.Phase != Stopped || len(cleaned) != 1 {
			t.Errorf("%+v, cleaned %q", st, cleaned)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		s.Leave()
	})
}

// Whoever is told to end before it is known what runs stops that, too.
func TestStopsWhatIsBeingTakenOver(t *testing.T) {
	s, err := New(Config{host: muteHost{}})
	if err != nil {
		t.Fatal(err)
	}
	s.Update([]Guest{{Name: "runs", Autostart: true}})
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
	s.StopAll(t.Context())
	if st := s.List()[0]; st.Phase != Stopped || st.Reason != "poweroff" {
		t.Errorf("%+v", st)
	}
}

// talker is a guest that tells of itself, of its end with a delay.
type talker struct{ *lasting }

func (t talker) Events(ctx context.Context, tell func(timeline.Event)) error {
	tell(timeline.Event{Machine: "m", Stage: timeline.Start})
	tell(timeline.Event{Machine: "m", Stage: timeline.Firmware})
	err := t.lasting.Events(ctx, tell)
	time.Sleep(time.Second)
	tell(timeline.Event{Machine: "m", Stage: timeline.Exit})
	return err
}

// talkerHost starts one of these.
type talkerHost struct{ noKeepers }

func (talkerHost) spawn(context.Context, keeper.Plan, keeper.SpawnOptions) (instance, error) {
	return talker{&lasting{stopped: make(chan struct{})}}, nil
}

// What a guest tells of itself and what the supervisor says of it come in the order
// in which it happened.
func TestTellsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{host: talkerHost{}, Timeline: timeline.New()})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.adopt(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.Update([]Guest{{Name: "db", Machine: "m", Prepare: func(context.Context) (*Prepared, error) { return &Prepared{}, nil }}})
		if err := s.Start(t.Context(), "db"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if _, err := s.Stop(t.Context(), "db", false); err != nil {
			t.Fatal(err)
		}
		s.Leave()
		var told []string
		for _, e := range s.cfg.Timeline.Events("m") {
			told = append(told, strings.TrimSpace(string(e.Stage)+" "+e.Detail))
		}
		want := []string{"start", "guest runs as process 2", "firmware", "guest is stopping", "exit", "guest stopped: power button"}
		if !slices.Equal(told, want) {
			t.Errorf("%q, want %q", told, want)
		}
	})
}

// silentHost starts guests that tell nothing.
type silentHost struct{ noKeepers }

func (silentHost) spawn(context.Context, keeper.Plan, keeper.SpawnOptions) (instance, error) {
	return &lasting{stopped: make(chan struct{})}, nil
}

// A guest whose keeper tells nothing runs all the same.
func TestRunsWithoutAWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{host: silentHost{}})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.adopt(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.Update([]Guest{{Name: "db", Prepare: func(context.Context) (*Prepared, error) { return &Prepared{}, nil }}})
		if err := s.Start(t.Context(), "db"); err != nil {
			t.Fatal(err)
		}
		if how, err := s.Stop(t.Context(), "db", false); how != "power button" || err != nil {
			t.Errorf("%q, %v", how, err)
		}
		s.Leave()
	})
}

// heldHost has the directory of a guest in which somebody may live.
type heldHost struct{}

func (heldHost) find(string) ([]found, error) {
	return []found{{name: "runs", err: errors.New("no descriptors are left"), forget: func() error { return keeper.ErrRunning }}}, nil
}

func (heldHost) spawn(context.Context, keeper.Plan, keeper.SpawnOptions) (instance, error) {
	return nil, keeper.ErrRunning
}

// What may run is not cleaned, which would end it, neither when it is found nor
// when it is in the way of a start.
func TestCleansNothingThatMayRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{host: heldHost{}, Clean: func(p keeper.Plan) error {
			t.Error("cleaned", p.Name)
			return nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		attempts := make(chan struct{}, 1)
		s.Update([]Guest{{Name: "runs", Autostart: true, Prepare: func(context.Context) (*Prepared, error) {
			attempts <- struct{}{}
			return &Prepared{}, nil
		}}})
		if err := s.adopt(t.Context()); err != nil {
			t.Fatal(err)
		}
		if st := s.List()[0]; st.Phase != Failed || st.Next.IsZero() {
			t.Errorf("%+v", st)
		}
		<-attempts
		synctest.Wait()
		if st := s.List()[0]; st.Phase != Failed || st.Reason != keeper.ErrRunning.Error() {
			t.Errorf("%+v", st)
		}
		s.Leave()
	})
}

// endedHost has two guests that switched themselves off: one while nobody was
// there, and one at this moment.
type endedHost struct {
	noKeepers
	before, now *brief
}

func (h endedHost) find(string) ([]found, error) {
	return []found{
		{name: "before", exit: poweroff, forget: h.before.Forget},
		{name: "now", in: h.now, plan: keeper.Plan{Name: "now"}},
	}, nil
}

// Cleaning takes its time: it holds up nobody, and what tells of the end stays
// until it is done, for another supervisor if this one is killed.
func TestCleansBeforeItForgets(t *testing.T) {
	h := endedHost{before: newBrief(), now: newBrief()}
	entered, release := make(chan string), make(chan struct{})
	s, err := New(Config{host: h, Clean: func(p keeper.Plan) error {
		entered <- p.Name
		<-release
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	adopted := make(chan error, 1)
	go func() { adopted <- s.adopt(t.Context()) }()
	for range 2 {
		b := map[string]*brief{"before": h.before, "now": h.now}[<-entered]
		select {
		case <-b.forgotten:
			t.Error("forgotten before it was cleaned")
		default:
		}
		s.List()
	}
	close(release)
	if err := <-adopted; err != nil {
		t.Error(err)
	}
	for _, b := range []*brief{h.before, h.now} {
		<-b.forgotten
	}
	s.Leave()
}

// unasked is a guest that has started, but whose keeper does not answer in time,
// and takes its time to be killed.
type unasked struct {
	*lasting
	killing chan struct{} // closed when it is told to
}

func (unasked) Status(ctx context.Context) (keeper.Status, error) {
	<-ctx.Done()
	return keeper.Status{}, ctx.Err()
}

func (u unasked) Kill(ctx context.Context) error {
	close(u.killing)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Second):
		close(u.stopped)
		return nil
	}
}

// unaskedHost starts one of these.
type unaskedHost struct {
	noKeepers
	starts unasked
}

func (h unaskedHost) spawn(context.Context, keeper.Plan, keeper.SpawnOptions) (instance, error) {
	return h.starts, nil
}

// A start that is given up is taken back whole, also when the supervisor ends
// meanwhile.
func TestLeaveTakesBackStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := unaskedHost{starts: unasked{&lasting{stopped: make(chan struct{})}, make(chan struct{})}}
		s, err := New(Config{host: h})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.adopt(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.Update([]Guest{{Name: "slow", Prepare: func(context.Context) (*Prepared, error) { return &Prepared{}, nil }}})
		go s.Start(t.Context(), "slow")
		synctest.Wait()
		go s.Stop(t.Context(), "slow", false)
		<-h.starts.killing
		s.Leave()
		if st := s.List()[0]; st.Phase != Stopped {
			t.Errorf("%+v", st)
		}
	})
}

// A disk that takes its time holds up nobody but those who change what is kept
// there; and what is done is kept before.
func TestWaitsForTheDisk(t *testing.T) {
	state := filepath.Join(t.TempDir(), "guests.json")
	slow := state + ".new" // by which it is written
	if err := unix.Mkfifo(slow, 0o600); err != nil {
		t.Fatal(err)
	}
	s := newLastingHost(t, state)
	if err := s.adopt(t.Context()); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan error, 1)
	go func() {
		_, err := s.Stop(t.Context(), "runs", false)
		stopped <- err
	}()
	var in *lasting
	err := s.await(t.Context(), func() bool {
		g := s.guests["runs"]
		in = g.run.instance.(*lasting)
		return g.life.Phase == Stopping
	})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-in.stopped:
		t.Error("stopped before that was kept")
	default:
	}
	written, err := os.ReadFile(slow)
	if err != nil || !strings.Contains(string(written), downByHand) {
		t.Errorf("%s, %v", written, err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// What runs is looked after while others start, however long that takes, and a
// look that takes too long does not hold up the end.
func TestLooksAfterGuestsWhileOthersStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{host: lastingHost{}})
		if err != nil {
			t.Fatal(err)
		}
		looks := make(chan struct{}, 1)
		s.Update([]Guest{
			{Name: "runs", Check: func(ctx context.Context, _ keeper.Plan) []string {
				looks <- struct{}{}
				<-ctx.Done() // of a program that hangs
				return nil
			}},
			{Name: "slow", Autostart: true, Prepare: func(ctx context.Context) (*Prepared, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}},
		})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		<-looks
		if st := s.List()[1]; st.Phase != Starting {
			t.Errorf("%+v", st)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		s.Leave()
	})
}

// A guest whose start is being given up, because it was not declared for a
// moment, is started when it is declared again.
func TestStartsWhatIsDeclaredAgain(t *testing.T) {
	s, err := New(Config{host: noKeepers{}})
	if err != nil {
		t.Fatal(err)
	}
	starts, giveUp := make(chan struct{}), make(chan struct{})
	list := []Guest{{Name: "slow", Autostart: true, Restart: RestartNever, Prepare: func(ctx context.Context) (*Prepared, error) {
		starts <- struct{}{}
		<-giveUp
		return nil, errors.New("no image")
	}}}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.Ready()
	s.Update(list)
	<-starts
	s.Update(nil)
	s.Update(list)
	close(giveUp)
	var l life
	if err := s.await(t.Context(), func() bool { l = s.guests["slow"].life; return l.Phase != Stopping }); err != nil {
		t.Fatal(err)
	}
	if l.Phase != Starting {
		t.Errorf("%+v", l)
	} else {
		<-starts
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	s.Leave()
}

// Before what tells that a guest switched itself off is forgotten, it is kept
// that the guest stays down: whoever comes after a supervisor that is killed
// there would start it.
func TestKeepsAnEndBeforeItForgets(t *testing.T) {
	state := filepath.Join(t.TempDir(), "guests.json")
	h := endedHost{before: newBrief(), now: newBrief()}
	s, err := New(Config{host: h, State: state})
	if err != nil {
		t.Fatal(err)
	}
	down := func(name string) {
		d, err := loadDesired(state, "")
		if err != nil || d.down(name, true) != downByItself {
			t.Errorf("%s: %q, %v", name, d.down(name, true), err)
		}
	}
	h.before.forgets = func() { down("before") }
	h.now.forgets = func() { down("now") }
	s.Update([]Guest{{Name: "before", Autostart: true}, {Name: "now", Autostart: true}})
	if err := s.adopt(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, b := range []*brief{h.before, h.now} {
		<-b.forgotten
	}
	s.Leave()
	down("before")
	down("now")
}
