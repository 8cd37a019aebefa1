package supervise

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/every-channel/ecboot/internal/keeper"
)

// State is what is known of a guest.
type State struct {
	Guest
	Phase    Phase
	Since    time.Time // when the phase began
	Next     time.Time // when it is started again; zero: not by itself
	Reason   string    // of its last end, or why it cannot be started
	Restarts int
	Down     string      // why it is not to run; empty: it is
	Keeper   int         // process; 0: none
	PID      int         // of what it keeps
	Command  []string    // that it runs
	Plan     keeper.Plan // that it follows
	Drift    []string    // what differs from its declaration
}

// List returns all guests that are declared or run, by name.
func (s *Supervisor) List() []State {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]State, 0, len(s.guests))
	for _, g := range s.guests {
		l := g.life
		st := State{Guest: g.Guest, Phase: l.Phase, Since: l.Since, Next: l.Next, Reason: l.Reason, Restarts: l.Restarts, Down: l.Down}
		if r := g.run; r != nil {
			st.Keeper, st.PID, st.Command, st.Plan = r.pid, r.process, r.command, r.plan
			switch {
			case !g.declared:
				st.Drift = append(st.Drift, "it is no longer declared: it runs until it ends or is stopped")
			case r.plan.Digest != g.Digest:
				st.Drift = append(st.Drift, fmt.Sprintf("its declaration has changed since it was started: 'ecboot guest restart %s' applies that", g.Name))
			}
			st.Drift = append(st.Drift, g.drift...)
		}
		list = append(list, st)
	}
	slices.SortFunc(list, func(a, b State) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// ErrNotFound is the error for a name that no guest has.
var ErrNotFound = errors.New("there is no such guest")

// ErrNotRunning is the error of what needs a guest that runs.
var ErrNotRunning = errors.New("it does not run: 'ecboot guest start' starts it")

// awaitAdoption waits until it is known who runs.
func (s *Supervisor) awaitAdoption(ctx context.Context) error {
	select {
	case <-s.adopted:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.ctx.Done():
		return errLeft
	}
}

// happen lets somebody's wish happen to a guest, and returns once it is kept.
func (s *Supervisor) happen(ctx context.Context, name string, kind eventKind) error {
	if err := s.awaitAdoption(ctx); err != nil {
		return err
	}
	saved, err := s.wish(name, kind)
	if err != nil {
		return err
	}
	select {
	case <-saved:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *Supervisor) wish(name string, kind eventKind) (saved <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.guests[name]
	switch {
	case g == nil:
		return nil, fmt.Errorf("guest %s: %w", name, ErrNotFound)
	case s.closing != "":
		return nil, errors.New(s.closing)
	case !g.declared && (kind == startAsked || kind == restartAsked):
		return nil, fmt.Errorf("guest %s is no longer declared, so it can only be stopped", name)
	}
	if kind == stopAsked || kind == killAsked {
		g.how = ""
	}
	s.apply(g, event{kind: kind})
	return s.saved, nil
}

// Start starts a guest and waits until it runs. One that runs stays as it is,
// unless it is about to end.
func (s *Supervisor) Start(ctx context.Context, name string) error {
	if err := s.awaitOwnEnd(ctx, name); err != nil {
		return err
	}
	if err := s.happen(ctx, name, startAsked); err != nil {
		return err
	}
	return s.awaitStart(ctx, name)
}

// awaitOwnEnd waits while a guest ends of which nobody has heard here yet.
func (s *Supervisor) awaitOwnEnd(ctx context.Context, name string) error {
	r, err := s.running(ctx, name)
	if err != nil {
		return nil // there is nothing to wait for
	}
	switch st, err := r.Status(ctx); {
	case err == nil && st.State != keeper.StateEnded:
		return nil
	case err != nil && !endsSoon(ctx, r):
		return err // it can be neither talked to nor started again
	}
	return s.await(ctx, func() bool {
		g := s.guests[name]
		return g == nil || g.run != r
	})
}

// awaitStart waits until a guest that was to start runs, or does not.
func (s *Supervisor) awaitStart(ctx context.Context, name string) error {
	var l life
	err := s.await(ctx, func() bool {
		if g := s.guests[name]; g != nil {
			l = g.life
		} else {
			l = life{Phase: Stopped}
		}
		return l.Phase != Starting && !(l.Phase == Stopping && l.Again)
	})
	switch {
	case err != nil:
		return err
	case l.Phase == Running:
		return nil
	case l.Phase == Stopped && l.Down == downByHand, l.Phase == Stopping:
		return fmt.Errorf("guest %s was stopped while it started", name)
	case l.Reason != "":
		return fmt.Errorf("guest %s: %s", name, l.Reason)
	}
	return fmt.Errorf("guest %s is %s", name, l.Phase)
}

// How a guest was stopped that needed none of it.
const howStopped = "it did not run"

// Stop stops a guest and waits for its end: gracefully, then firmly when its
// time is over, or firmly at once. It stays down until somebody starts it, or
// until the host does if it starts by itself. how says what it took.
func (s *Supervisor) Stop(ctx context.Context, name string, firm bool) (how string, err error) {
	kind := stopAsked
	if firm {
		kind = killAsked
	}
	if err := s.happen(ctx, name, kind); err != nil {
		return "", err
	}
	err = s.await(ctx, func() bool {
		g := s.guests[name]
		if g == nil {
			how = cmp.Or(how, howStopped) // it was not declared either
			return true
		}
		how = cmp.Or(g.how, howStopped)
		return g.life.Phase != Stopping
	})
	return how, err
}

// Restart stops a guest gracefully, as it is declared now, and starts it again.
func (s *Supervisor) Restart(ctx context.Context, name string) (how string, err error) {
	s.mu.Lock()
	if g := s.guests[name]; g != nil {
		g.how = ""
	}
	s.mu.Unlock()
	if err := s.happen(ctx, name, restartAsked); err != nil {
		return "", err
	}
	if err := s.awaitStart(ctx, name); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.guests[name]; g != nil {
		how = cmp.Or(g.how, howStopped)
	}
	return how, nil
}

// running finds the keeper of a guest that runs.
func (s *Supervisor) running(ctx context.Context, name string) (*run, error) {
	if err := s.awaitAdoption(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.guests[name]
	switch {
	case g == nil:
		return nil, fmt.Errorf("guest %s: %w", name, ErrNotFound)
	case g.run == nil:
		return nil, fmt.Errorf("guest %s: %w", name, ErrNotRunning)
	}
	return g.run, nil
}

// Reset presses a guest's reset button.
func (s *Supervisor) Reset(ctx context.Context, name string) error {
	r, err := s.running(ctx, name)
	if err != nil {
		return err
	}
	return r.Reset(ctx)
}

// Console attaches to a guest's console: its history, then what comes. With
// write, which one may have at a time, what is written is typed.
func (s *Supervisor) Console(ctx context.Context, name string, write bool) (io.ReadWriteCloser, error) {
	r, err := s.running(ctx, name)
	if err != nil {
		return nil, err
	}
	return r.Console(ctx, write)
}

// Screenshot returns a guest's screen as PNG.
func (s *Supervisor) Screenshot(ctx context.Context, name string) ([]byte, error) {
	r, err := s.running(ctx, name)
	if err != nil {
		return nil, err
	}
	return r.Screenshot(ctx)
}

// Log returns the last lines of a guest's console, of one that has ended, too.
func (s *Supervisor) Log(ctx context.Context, name string, lines int) ([]byte, error) {
	r, err := s.running(ctx, name)
	if !errors.Is(err, ErrNotRunning) {
		if err != nil {
			return nil, err
		}
		return r.Log(ctx, lines)
	}
	s.mu.Lock()
	g := s.guests[name]
	file := ""
	if g != nil {
		file = g.LogFile
	}
	s.mu.Unlock()
	return keeper.ReadLog(file, lines)
}

// What is said to those who want something while it ends.
const (
	closingStop  = "ecboot is ending and stops its guests"
	closingLeave = "ecboot is ending and leaves its guests running"
)

// StopAll stops every guest, those of a higher order first, and returns when
// none runs. When ctx is done they are ended firmly. None of it is remembered:
// the next supervisor starts what is to run.
func (s *Supervisor) StopAll(ctx context.Context) {
	s.mu.Lock()
	s.closing = closingStop
	var list []Guest
	for _, g := range s.guests {
		list = append(list, g.Guest)
	}
	s.desired.forgetOwn()
	s.save()
	s.mu.Unlock()
	slices.SortFunc(list, func(a, b Guest) int { return cmp.Compare(b.Order, a.Order) })
	defer context.AfterFunc(ctx, func() { s.each(list, killAll) })()
	for from := 0; from < len(list); {
		same := list[from:]
		if n := slices.IndexFunc(same, func(g Guest) bool { return g.Order != same[0].Order }); n >= 0 {
			same = same[:n]
		}
		kind := shutDown
		if ctx.Err() != nil {
			kind = killAll
		}
		s.each(same, kind)
		_ = s.await(context.WithoutCancel(ctx), func() bool {
			return !slices.ContainsFunc(same, func(spec Guest) bool {
				g := s.guests[spec.Name]
				return g != nil && (g.run != nil || g.life.Phase == Stopping)
			})
		})
		from += len(same)
	}
	s.finish()
}

// each lets the same happen to several guests.
func (s *Supervisor) each(list []Guest, kind eventKind) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, spec := range list {
		if g := s.guests[spec.Name]; g != nil {
			s.apply(g, event{kind: kind})
		}
	}
}

// Leave ends the supervisor and lets its guests run on, for another to adopt.
func (s *Supervisor) Leave() {
	s.mu.Lock()
	s.closing = closingLeave
	for _, g := range s.guests {
		if g.abort != nil && g.life.Phase == Starting {
			g.abort() // half a start is nothing to adopt
		}
	}
	s.mu.Unlock()
	_ = s.await(context.Background(), func() bool {
		for _, g := range s.guests {
			if g.life.Phase == Starting {
				return false
			}
		}
		return true
	})
	s.finish()
}

// finish ends what goes on in the background.
func (s *Supervisor) finish() {
	s.mu.Lock()
	for _, g := range s.guests {
		if g.timer != nil {
			g.timer.Stop()
		}
	}
	s.mu.Unlock()
	s.end()
	s.work.Wait()
}
