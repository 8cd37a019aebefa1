package supervise

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"github.com/every-channel/ecboot/internal/durable"
)

// desired is who is to run, as far as that was not left to the declaration. It
// holds for one run of the host: when that starts anew, only what starts by
// itself does.
type desired struct {
	path string
	doc  desiredDoc
}

// desiredDoc is the file.
type desiredDoc struct {
	Schema int               `json:"schema"`
	Boot   string            `json:"boot_id"`
	Guests map[string]string `json:"guests"` // desiredUp or one of the down… constants
}

const (
	desiredSchema = 1
	desiredUp     = "started"
)

func loadDesired(path, boot string) (desired, error) {
	d := desired{path: path, doc: desiredDoc{desiredSchema, boot, map[string]string{}}}
	if path == "" {
		return d, nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil
	}
	if err != nil {
		return d, fmt.Errorf("who was stopped by hand: %w", err)
	}
	var doc desiredDoc
	if err := json.Unmarshal(data, &doc); err != nil || doc.Schema != desiredSchema {
		return d, fmt.Errorf("%s is not what this ecboot writes (%v): delete it, and guests start as they are declared", path, err)
	}
	if doc.Boot == boot && doc.Guests != nil {
		d.doc = doc
	}
	return d, nil
}

// down says why a guest is not to run; empty: it is.
func (d *desired) down(name string, autostart bool) string {
	switch v := d.doc.Guests[name]; {
	case v == desiredUp, v == "" && autostart:
		return ""
	case v == "":
		return downUnstarted
	default:
		return v
	}
}

// set notes why a guest is not to run; empty: it is. It reports whether that is
// news.
func (d *desired) set(name string, autostart bool, down string) (news bool) {
	before := d.doc.Guests[name]
	switch {
	case down == "" && autostart, down == downForgotten:
		delete(d.doc.Guests, name)
	case down == "":
		d.doc.Guests[name] = desiredUp
	case down == downByHand || down == downByItself:
		d.doc.Guests[name] = down
	}
	return d.doc.Guests[name] != before
}

// forgetOwn drops who switched itself off: that holds as long as a supervisor
// was meant to be there.
func (d *desired) forgetOwn() {
	maps.DeleteFunc(d.doc.Guests, func(_, v string) bool { return v == downByItself })
}

func (d *desired) forget(name string) { delete(d.doc.Guests, name) }

func (d desired) clone() desired {
	d.doc.Guests = maps.Clone(d.doc.Guests)
	return d
}

// save replaces the file as a whole.
func (d *desired) save() error {
	if d.path == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(d.path), 0o755); err != nil {
		return err
	}
	return durable.WriteJSON(d.path, d.doc, 0o600)
}
