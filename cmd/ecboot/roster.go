package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/internal/fleet"
	"github.com/every-channel/ecboot/internal/timeline"
)

// machineStore is where 'ecboot machine' keeps what it was told.
func machineStore(cfg *config.Config) fleet.Store {
	return fleet.Store{Path: filepath.Join(stateDir(cfg), "machines.json")}
}

// roster is what a serving process knows of machines and profiles: what the
// configuration file and 'ecboot machine' say at the moment.
type roster struct {
	path string // of the configuration file, if one was named
	log  *slog.Logger
	read func() (*config.Config, error) // the configuration of now
	// applied is told of each configuration that a reload has put into effect;
	// may be nil.
	applied func(*config.Config, *bootFiles)

	reloading sync.Mutex // held while the file becomes the configuration

	mu       sync.Mutex
	file     *config.Config // as it was read
	store    fleet.Store
	state    fleet.State // as it was read last
	files    *bootFiles
	segments []*segment
}

// load reads what was said at run time and gives every segment its inventory.
// When it fails, everything stays as it was.
func (r *roster) load() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.loadLocked()
}

func (r *roster) loadLocked() error {
	st, err := r.store.Load()
	if err != nil {
		return err
	}
	r.state = st
	cfg, lost := st.Apply(r.file)
	for _, sentence := range lost {
		r.log.Warn(sentence)
	}
	for _, s := range r.segments {
		s.know(func(seg config.Segment) *boot.Inventory { return r.files.inventory(cfg, seg) })
	}
	return nil
}

// reload reads the configuration file again. Machines, rules and profiles are as
// it says from then on; networks stay as they are until a restart. Whoever asks
// while another reload goes on has the file read after it.
func (r *roster) reload(ctx context.Context) error {
	r.reloading.Lock()
	defer r.reloading.Unlock()
	next, err := r.read()
	if err != nil {
		return err
	}
	files, err := prepare(ctx, next, r.log)
	if err != nil {
		return err
	}
	if err := r.put(next, files); err != nil {
		return err
	}
	if r.applied != nil {
		r.applied(next, files)
	}
	return nil
}

// put puts a configuration in the place of the one before.
func (r *roster) put(next *config.Config, files *bootFiles) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	before, beforeFiles := r.file, r.files
	r.file, r.files = next, files
	if err := r.loadLocked(); err != nil {
		r.file, r.files = before, beforeFiles
		return err
	}
	if changesNetworks(before, next) {
		r.log.Warn("machines, rules and profiles are in effect; what has changed in [segment] and [server] will be after a restart")
	}
	return nil
}

// changesNetworks reports whether two configurations differ in what is opened once,
// at the start.
func changesNetworks(before, next *config.Config) bool {
	return !reflect.DeepEqual(before.Segments, next.Segments) || !reflect.DeepEqual(before.Server, next.Server)
}

// wasRead is what a serving process says of a reload.
const wasRead = "the configuration was read again"

// onHangup reloads at every SIGHUP until ctx is done.
func (r *roster) onHangup(ctx context.Context, hangup <-chan os.Signal, say func(string)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			if err := r.reload(ctx); err != nil {
				say("the configuration is wrong and stays as it was:\n" + err.Error())
			} else {
				say(wasRead)
			}
		}
	}
}

// quiet is how long a machine must have fetched nothing before the programs of
// its profile are taken for loaded: they fetch further files one by one.
const quiet = 30 * time.Second

// watchBoots notes which machines have had a boot that was for one time. Events
// come from a timeline, in order.
func (r *roster) watchBoots(ctx context.Context, events <-chan timeline.Event) {
	loading := map[string]time.Time{} // machines whose programs run, since their last transfer
	tick := time.NewTicker(quiet / 6)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			// A program that was handed out has been booted for all that
			// will ever be known.
			for machine := range loading {
				r.booted(machine)
			}
			return
		case e := <-events:
			switch r.progress(e) {
			case bootDone:
				r.booted(e.Machine)
			case bootBegun:
				loading[e.Machine] = time.Now()
			default:
				if _, ok := loading[e.Machine]; ok {
					loading[e.Machine] = time.Now()
				}
			}
		case now := <-tick.C:
			for machine, since := range loading {
				if now.Sub(since) >= quiet {
					delete(loading, machine)
					r.booted(machine)
				}
			}
		}
	}
}

// bootEvents passes on what a timeline learns of how far boots are, for
// watchBoots, until stop.
func (r *roster) bootEvents(of *timeline.Recorder) (events <-chan timeline.Event, stop func()) {
	out := make(chan timeline.Event, 1<<14)
	stop = of.Watch(func(e timeline.Event) {
		if !tellsOfBoot(e) {
			return
		}
		select {
		case out <- e:
		default: // nobody listens any more
		}
	})
	return out, stop
}

// tellsOfBoot reports whether an event says something of how far a boot is; most do
// not, and a stage that never ends is none.
func tellsOfBoot(e timeline.Event) bool {
	switch e.Stage {
	case timeline.TFTP, timeline.HTTPBoot, timeline.Kernel:
		return e.Phase == timeline.End
	case timeline.Script:
		return e.Phase == timeline.Point
	}
	return false
}

// progress is what an event means for a boot that is for one time.
type progress uint8

const (
	bootGoesOn progress = iota
	bootBegun           // the profile's program runs, and fetches the rest
	bootDone            // the machine has all that it asks us for
)

func (r *roster) progress(e timeline.Event) progress {
	_, p, known := r.find(e.Machine)
	switch {
	case !known || p.Name == "" || p.Local():
		return bootGoesOn
	case e.Stage == timeline.Script && p.Script != "",
		e.Stage == timeline.Kernel && p.Kernel.Name != "",
		e.Stage == timeline.TFTP && p.Kernel.Name != "" && e.Detail == config.ProgramPath(p.Name, p.Kernel.Name):
		return bootDone
	case e.Stage != timeline.TFTP && e.Stage != timeline.HTTPBoot:
		return bootGoesOn
	}
	for _, program := range p.Programs {
		if e.Detail == program {
			return bootBegun
		}
	}
	return bootGoesOn
}

// find looks a machine of the timeline up in the inventories.
func (r *roster) find(machine string) (id config.MachineID, p boot.Profile, known bool) {
	mac, err := boot.ParseMAC(machine)
	if err != nil {
		return
	}
	for _, s := range r.segments {
		inv := s.inventory.Load()
		c := s.client(mac)
		var m boot.Machine
		if m, p, known = inv.Lookup(c); !known {
			continue
		}
		if _, ok := inv.Machines[mac]; ok {
			return config.MachineID{MAC: mac}, p, true
		}
		if _, ok := inv.ByUUID[c.UUID]; ok {
			return config.MachineID{UUID: c.UUID}, p, true
		}
		if _, ok := inv.ByName[strings.ToLower(m.Name)]; ok && m.Name != "" {
			return config.MachineID{Name: m.Name}, p, true
		}
		return config.MachineID{MAC: mac}, p, true // a rule's
	}
	return
}

// knows reports whether a machine of the timeline is declared.
func (r *roster) knows(machine string) bool {
	_, _, known := r.find(machine)
	return known
}

// booted ends what was for one time.
func (r *roster) booted(machine string) {
	id, _, known := r.find(machine)
	if !known {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.state.Booted(r.file, id) {
		return
	}
	err := r.store.Update(func(st *fleet.State) error {
		st.Booted(r.file, id)
		return nil
	})
	if err == nil {
		err = r.loadLocked()
	}
	if err != nil {
		r.log.Error("it could not be noted that a machine has had its one boot; it will have another", "machine", machine, "error", err)
	}
}
