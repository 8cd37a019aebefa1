package main

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"

	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/internal/fleet"
)

// Whoever reloads last has read the file last, however many do so at once, and
// the guests are those of the same file.
func TestReloadsInTurn(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	var mu sync.Mutex
	version := 0
	var guests *config.Config
	r := &roster{
		log: slog.New(slog.DiscardHandler), file: &config.Config{}, store: fleet.Store{Path: filepath.Join(t.TempDir(), "machines.json")},
		read: func() (*config.Config, error) {
			mu.Lock()
			defer mu.Unlock()
			version++
			return &config.Config{Server: config.Server{OperatorGroup: fmt.Sprint(version)}}, nil
		},
		applied: func(cfg *config.Config, _ *bootFiles) {
			mu.Lock()
			defer mu.Unlock()
			guests = cfg
		},
	}
	for range 20 {
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				if err := r.reload(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if want := fmt.Sprint(version); r.file.Server.OperatorGroup != want || guests != r.file {
			t.Fatalf("in effect is the file that was read as number %s, with the guests of number %s, of %s", r.file.Server.OperatorGroup, guests.Server.OperatorGroup, want)
		}
	}
}
