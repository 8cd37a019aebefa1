package zfs

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// recorded is a mount that ecboot has made, or was about to make.
type recorded struct {
	Dataset string `json:"dataset"`
	Path    string `json:"path"`
}

func (h Host) recordFile() string { return filepath.Join(h.Dir, "mounts.json") }

func (h Host) readRecord() (list []recorded, err error) {
	b, err := os.ReadFile(h.recordFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("%s, the record of mounts: %w: remove it, and unmount by hand what is no longer declared", h.recordFile(), err)
	}
	return list, nil
}

func (h Host) writeRecord(list []recorded) error {
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	tmp := h.recordFile() + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("record the mounts: %w", err)
	}
	return os.Rename(tmp, h.recordFile())
}

// remember records a mount before it is made.
func (h Host) remember(r recorded) error {
	list, err := h.readRecord()
	if err != nil || slices.Contains(list, r) {
		return err
	}
	return h.writeRecord(append(list, r))
}

func (h Host) forget(r recorded) error {
	list, err := h.readRecord()
	if err != nil {
		return err
	}
	return h.writeRecord(slices.DeleteFunc(list, func(have recorded) bool { return have == r }))
}
