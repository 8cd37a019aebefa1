package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/internal/durable"
)

// storeSchema is raised when a field changes its meaning.
const storeSchema = 1

const algorithm = "sha256-v1"

// MACStore is the file that keeps assigned addresses. A missing one has none.
type MACStore struct{ Path string }

// StoreIn is the store of a state directory.
func StoreIn(stateDir string) MACStore { return MACStore{filepath.Join(stateDir, "macs.json")} }

// stored is its contents.
type stored struct {
	Schema    int                 `json:"schema"`
	Algorithm string              `json:"algorithm"` // of what is assigned next
	MACs      map[string]boot.MAC `json:"macs"`      // by guest, and by NAME/NUMBER for its further network cards
}

// Load reads the file.
func (s MACStore) Load() (map[string]boot.MAC, error) {
	data, err := os.ReadFile(s.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]boot.MAC{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("MAC addresses: %w", err)
	}
	macs, err := parseStored(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.Path, err)
	}
	return macs, nil
}

// parseStored refuses what it does not understand whole: to assign anew what a
// damaged file has lost would move guests.
func parseStored(data []byte) (map[string]boot.MAC, error) {
	var st stored
	if err := json.Unmarshal(data, &st); err != nil {
		return nil, damaged(err)
	}
	if st.Schema != storeSchema || st.Algorithm != algorithm {
		return nil, fmt.Errorf("has schema %d and algorithm %q, and this ecboot knows %d and %q: it is of another version", st.Schema, st.Algorithm, storeSchema, algorithm)
	}
	owner := map[boot.MAC]string{}
	for _, name := range slices.Sorted(maps.Keys(st.MACs)) {
		m := st.MACs[name]
		if err := checkAssignable(name); err != nil {
			return nil, damaged(fmt.Errorf("%q %w", name, err))
		}
		if err := checkMAC(m); err != nil {
			return nil, damaged(fmt.Errorf("%s of %s %w", m, name, err))
		}
		if other, twice := owner[m]; twice {
			return nil, damaged(fmt.Errorf("both %s and %s have %v", other, name, m))
		}
		owner[m] = name
	}
	if st.MACs == nil {
		st.MACs = map[string]boot.MAC{}
	}
	return st.MACs, nil
}

func damaged(err error) error {
	return fmt.Errorf("is damaged: %w; bring back a copy, or move it away and give the guests their addresses with 'ecboot guest import'", err)
}

func checkMAC(m boot.MAC) error {
	switch {
	case m[0]&1 != 0:
		return errors.New("is a group address, which no single machine can have")
	case m == boot.MAC{}:
		return errors.New("is no machine's address")
	}
	return nil
}

// Save replaces the file.
func (s MACStore) Save(macs map[string]boot.MAC) error {
	if err := durable.WriteJSON(s.Path, stored{storeSchema, algorithm, macs}, 0o644); err != nil {
		return fmt.Errorf("MAC addresses: %w", err)
	}
	return nil
}

// Update changes the file by change, whole or, when change fails, not at all. All
// processes take turns.
func (s MACStore) Update(change func(map[string]boot.MAC) (map[string]boot.MAC, error)) error {
	unlock, err := durable.Lock(s.Path)
	if err != nil {
		return fmt.Errorf("MAC addresses: %w", err)
	}
	defer unlock()
	before, err := s.Load()
	if err != nil {
		return err
	}
	after, err := change(maps.Clone(before))
	if err != nil || maps.Equal(before, after) {
		return err
	}
	return s.Save(after)
}

// Assign is the function Assign with what the store has, and keeps what is new.
func (s MACStore) Assign(c *config.Config) error {
	return s.Update(func(persisted map[string]boot.MAC) (map[string]boot.MAC, error) { return Assign(c, persisted) })
}
