// Package fleet keeps what was said of machines at run time, beside the
// configuration file: settings, a profile to boot one time, and which machines
// have had their one boot. It lives in a file that the command line and the
// servers share.
package fleet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/internal/durable"
)

// schema is raised when a field changes its meaning.
const schema = 1

// State is the contents of the file.
type State struct {
	Schema   int     `json:"schema"`
	Machines []Entry `json:"machines"` // sorted by ID
}

// Entry is what was said of one machine.
type Entry struct {
	ID     string            `json:"machine"`          // MAC, UUID or name: config.MachineID
	Set    map[string]string `json:"set,omitempty"`    // by config.Machine.Set
	Once   string            `json:"once,omitempty"`   // profile of the next boot alone
	Booted bool              `json:"booted,omitempty"` // a machine with next = "once" has had its boot
}

func (e Entry) empty() bool { return len(e.Set) == 0 && e.Once == "" && !e.Booted }

// Store is the file. A missing one says nothing of any machine.
type Store struct{ Path string }

// Load reads the file.
func (s Store) Load() (State, error) {
	data, err := os.ReadFile(s.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return State{Schema: schema}, nil
	}
	if err != nil {
		return State{}, fmt.Errorf("machines: %w", err)
	}
	return parse(s.Path, data)
}

func parse(name string, data []byte) (State, error) {
	var st State
	if err := json.Unmarshal(data, &st); err != nil {
		return State{}, fmt.Errorf("%s is damaged: %w; move it away to forget what 'ecboot machine' has set", name, err)
	}
	if st.Schema != schema {
		return State{}, fmt.Errorf("%s has schema %d, and this ecboot reads %d: it is of another version", name, st.Schema, schema)
	}
	for _, e := range st.Machines {
		if id, err := config.ParseMachineID(e.ID); err != nil || id.String() != e.ID {
			return State{}, fmt.Errorf("%s is damaged: %q is no machine; move it away to forget what 'ecboot machine' has set", name, e.ID)
		}
	}
	return st, nil
}

// Update changes the file by change, under a lock that all processes respect:
// whole or, when change fails, not at all.
func (s Store) Update(change func(*State) error) error {
	unlock, err := durable.Lock(s.Path)
	if err != nil {
		return fmt.Errorf("machines: %w", err)
	}
	defer unlock()
	st, err := s.Load()
	if err != nil {
		return err
	}
	if err := change(&st); err != nil {
		return err
	}
	if err := durable.WriteJSON(s.Path, st, 0o644); err != nil {
		return fmt.Errorf("machines: %w", err)
	}
	return nil
}

// Entry returns what was said of a machine.
func (st State) Entry(id config.MachineID) Entry {
	if i, ok := st.find(id); ok {
		return st.Machines[i]
	}
	return Entry{ID: id.String()}
}

// Put replaces what was said of the machine; an Entry that says nothing goes.
func (st *State) Put(e Entry) {
	id, _ := config.ParseMachineID(e.ID)
	i, found := st.find(id)
	switch {
	case found && e.empty():
		st.Machines = slices.Delete(st.Machines, i, i+1)
	case found:
		st.Machines[i] = e
	case !e.empty():
		st.Machines = slices.Insert(st.Machines, i, e)
	}
}

func (st State) find(id config.MachineID) (int, bool) {
	return slices.BinarySearchFunc(st.Machines, id.String(), func(e Entry, id string) int {
		switch {
		case e.ID < id:
			return -1
		case e.ID > id:
			return 1
		}
		return 0
	})
}

// Apply returns the configuration with what the state says laid over it. A
// machine that the file does not declare is added. What no longer fits the
// file, such as a profile that it has lost, is left out and returned as a
// sentence for each.
func (st State) Apply(cfg *config.Config) (*config.Config, []string) {
	out, lost := st.apply(cfg, func(*config.Config) error { return nil })
	if out.Check() != nil {
		// Something does not fit; only now is it worth looking for what.
		out, lost = st.apply(cfg, (*config.Config).Check)
	}
	return out, lost
}

func (st State) apply(cfg *config.Config, check func(*config.Config) error) (*config.Config, []string) {
	out := *cfg
	out.Machines = slices.Clone(cfg.Machines)
	var lost []string
	for _, e := range st.Machines {
		id, err := config.ParseMachineID(e.ID)
		if err != nil {
			continue
		}
		m, declared := out.Machine(id)
		if !declared {
			added := config.Machine{MAC: id.MAC, UUID: id.UUID, Name: id.Name, Next: config.NextAlways}
			if g, isGuest := out.GuestWith(id.MAC); isGuest {
				added.Name = g.Node // by which a machine is the guest
			}
			out.Machines = append(out.Machines, added)
			m = &out.Machines[len(out.Machines)-1]
		}
		for _, key := range slices.Sorted(maps.Keys(e.Set)) {
			before := *m
			err := m.Set(key, e.Set[key])
			if err == nil {
				err = check(&out)
			}
			if err != nil {
				*m = before
				lost = append(lost, fmt.Sprintf("machine %s: %s = %q, which was set at run time, is not used: %v", e.ID, key, e.Set[key], err))
			}
		}
		switch _, there := cfg.Profiles[e.Once]; {
		case e.Once == "":
			if m.Next == config.NextOnce && e.Booted {
				m.Next = config.NextLocal
			}
		case there || e.Once == boot.LocalName:
			m.Profile, m.Next = e.Once, config.NextAlways
		default:
			lost = append(lost, fmt.Sprintf("machine %s: there is no profile %q to boot one time", e.ID, e.Once))
		}
	}
	return &out, lost
}

// Booted notes that a machine has started what it was to boot: a profile for
// one time is over. changed is false when that makes no difference to it.
func (st *State) Booted(cfg *config.Config, id config.MachineID) (changed bool) {
	e := st.Entry(id)
	var next config.Next
	if m, declared := cfg.Machine(id); declared {
		next = m.Next
	}
	if set, ok := e.Set["next"]; ok {
		next = config.Next(set)
	}
	switch {
	case e.Once != "":
		e.Once = ""
	case next == config.NextOnce && !e.Booted:
		e.Booted = true
	default:
		return false
	}
	st.Put(e)
	return true
}
