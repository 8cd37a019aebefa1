// Package timeline keeps what happened to each machine's boot: which stage was
// reached when, how many bytes it took, and where it ended. The servers and the
// machine monitor record events; the command line shows them, and Diagnose says
// what a boot that failed most likely lacks.
package timeline

import (
	"container/list"
	"slices"
	"sync"
	"time"
)

// Stage names a step of a boot. DHCP stages are composed with DHCP, because the
// same exchange is done by firmware, iPXE and the operating system in turn.
type Stage string

// The stages in the order in which a boot goes through them.
const (
	Start    Stage = "start"    // the machine was switched on; a QEMU process began
	Firmware Stage = "firmware" // the firmware's first sign of life on the console
	TFTP     Stage = "tftp"     // boot program over TFTP
	HTTPBoot Stage = "nbp"      // boot program over HTTP
	Script   Stage = "script"   // iPXE script handed out
	Kernel   Stage = "kernel"   // kernel transferred
	Initrd   Stage = "initrd"   // an initrd transferred
	Linux    Stage = "linux"    // the kernel began to run
	Panic    Stage = "panic"    // the kernel gave up
	Userland Stage = "userland" // the booted system reported to us
	Exit     Stage = "exit"     // the machine ended
	Guest    Stage = "guest"    // what the supervisor of declared guests has decided
)

// DHCP returns the stage of one DHCP message, such as "ipxe.ack": who is
// firmware, ipxe or os; message is discover, offer, request, ack, nak, decline,
// release or inform.
func DHCP(who, message string) Stage { return Stage(who + "." + message) }

// Phase says which part of a stage an event is.
type Phase uint8

// The phases. Most stages are a Point; transfers begin, progress and end.
const (
	Point Phase = iota
	Begin
	Progress // Bytes so far; passed on to watchers, never stored
	End      // Bytes in all
	Fail     // Detail says why
)

// Event is one thing that happened to one machine.
type Event struct {
	At      time.Time
	Machine string // MAC in canonical form
	Stage   Stage
	Phase   Phase
	Detail  string // in words: a file name, an address, a reason
	Bytes   int64
	Total   int64         // bytes expected, 0 when unknown
	Uptime  time.Duration // Userland: the guest kernel's own uptime
}

// Limits of what a Recorder keeps, so that strangers on the wire cannot make
// it grow: the machine that was silent longest goes first, and a machine that
// never stops booting keeps its newest events.
const (
	maxMachines = 4096
	maxEvents   = 256     // of one machine
	maxTotal    = 1 << 17 // of all: some 20 MB
)

// Recorder stores events and passes them to watchers. A nil Recorder accepts
// events and drops them. All methods may be called at the same time.
type Recorder struct {
	mu       sync.Mutex
	machines map[string]*list.Element // of silent
	silent   *list.List               // of *history, the machine that was silent longest first
	total    int                      // events
	watchers map[int]func(Event)
	nextID   int
}

type history struct {
	machine string
	events  []Event
}

// New returns an empty Recorder.
func New() *Recorder {
	return &Recorder{machines: map[string]*list.Element{}, silent: list.New(), watchers: map[int]func(Event){}}
}

// Record stores an event; a zero time becomes now.
func (r *Recorder) Record(e Event) {
	if r == nil {
		return
	}
	if e.At.IsZero() {
		e.At = time.Now()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.Phase != Progress {
		r.store(e)
	}
	for _, watch := range r.watchers {
		watch(e)
	}
}

func (r *Recorder) store(e Event) {
	known := r.machines[e.Machine]
	if known == nil {
		known = r.silent.PushBack(&history{machine: e.Machine})
		r.machines[e.Machine] = known
	}
	r.silent.MoveToBack(known)
	h := known.Value.(*history)
	if len(h.events) == maxEvents {
		h.events = slices.Delete(h.events, 0, maxEvents/4)
		r.total -= maxEvents / 4
	}
	h.events = append(h.events, e)
	r.total++
	for len(r.machines) > maxMachines || r.total > maxTotal {
		oldest := r.silent.Remove(r.silent.Front()).(*history)
		delete(r.machines, oldest.machine)
		r.total -= len(oldest.events)
	}
}

// Watch calls fn with every event from now on, Progress included, until cancel
// is called. Events arrive one at a time and in order; fn must be quick and
// must not call the Recorder.
func (r *Recorder) Watch(fn func(Event)) (cancel func()) {
	if r == nil {
		return func() {}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	id := r.nextID
	r.nextID++
	r.watchers[id] = fn
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.watchers, id)
	}
}

// Events returns a copy of what is stored of one machine, oldest first.
func (r *Recorder) Events(machine string) []Event {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.machines[machine]
	if known == nil {
		return nil
	}
	return slices.Clone(known.Value.(*history).events)
}

// Machines returns the MACs of which something is stored, sorted.
func (r *Recorder) Machines() []string {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	names := make([]string, 0, len(r.machines))
	for name := range r.machines {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
