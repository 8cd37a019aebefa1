package durable

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
)

func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// TestWriteJSON wants the whole file, its mode, and nothing beside it, also after
// one who was killed.
func TestWriteJSON(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.json")
	if err := os.WriteFile(path+".new", []byte("a long half of what somebody was about to write"), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []os.FileMode{0o600, 0o644} {
		if err := WriteJSON(path, map[string]int{"a": 1}, mode); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil || st.Mode() != mode {
			t.Errorf("%v, %v, want mode %v", st.Mode(), err, mode)
		}
		if data, err := os.ReadFile(path); err != nil || string(data) != "{\n  \"a\": 1\n}\n" {
			t.Errorf("%q, %v", data, err)
		}
	}
	if got := files(t, dir); !slices.Equal(got, []string{"a.json"}) {
		t.Errorf("left %q", got)
	}
}

// TestWriteJSONFails wants what was there before, and nothing beside it.
func TestWriteJSONFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.json")
	if err := os.Mkdir(path, 0o755); err != nil { // which no file replaces
		t.Fatal(err)
	}
	if err := WriteJSON(path, 1, 0o644); err == nil {
		t.Error("a directory was replaced")
	}
	if err := WriteJSON(path, func() {}, 0o644); err == nil {
		t.Error("a function was written")
	}
	if got := files(t, dir); !slices.Equal(got, []string{"a.json"}) {
		t.Errorf("left %q", got)
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "count")
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			unlock, err := Lock(path)
			if err != nil {
				t.Error(err)
				return
			}
			defer unlock()
			data, _ := os.ReadFile(path)
			n, _ := strconv.Atoi(string(data))
			if err := os.WriteFile(path, []byte(strconv.Itoa(n+1)), 0o644); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if data, err := os.ReadFile(path); err != nil || string(data) != "20" {
		t.Errorf("counted to %s, %v", data, err)
	}
}
