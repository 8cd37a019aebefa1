package keeper

import (
	"slices"
	"sync"

	"github.com/every-channel/ecboot/internal/timeline"
)

// maxEvents is how many events a keeper keeps; the oldest go first.
const maxEvents = 4096

// eventLog keeps what happened to the guest, for whoever wants to know, from the
// beginning.
type eventLog struct {
	mu      sync.Mutex
	events  []timeline.Event
	dropped int
	ended   bool
	changed chan struct{} // closed and replaced whenever there is more
}

func newEventLog() *eventLog { return &eventLog{changed: make(chan struct{})} }

func (l *eventLog) add(e timeline.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.events) == maxEvents {
		l.events = slices.Delete(l.events, 0, maxEvents/4)
		l.dropped += maxEvents / 4
	}
	l.events = append(l.events, e)
	close(l.changed)
	l.changed = make(chan struct{})
}

// end says that no more will come.
func (l *eventLog) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	close(l.changed)
	l.changed = make(chan struct{})
}

// from returns the events after the first seen ones, how many there are with
// them, and what is closed when there are more; nil if there never are.
func (l *eventLog) from(seen int) (fresh []timeline.Event, all int, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fresh = slices.Clone(l.events[min(max(0, seen-l.dropped), len(l.events)):])
	if l.ended {
		return fresh, l.dropped + len(l.events), nil
	}
	return fresh, l.dropped + len(l.events), l.changed
}
