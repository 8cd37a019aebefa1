package fleet

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
)

func parseConfig(t testing.TB) *config.Config {
	t.Helper()
	cfg, err := config.Parse("f", []byte(`
[profile.rescue]
[[machine]]
mac = "525400000001"
name = "one"
next = "once"
[[machine]]
mac = "525400000002"
address = "10.77.0.9"
`))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestApply(t *testing.T) {
	cfg := parseConfig(t)
	st := State{Schema: schema, Machines: []Entry{
		{ID: "52:54:00:00:00:01", Set: map[string]string{"profile": "rescue", "tags": "a,b"}, Booted: true},
		{ID: "52:54:00:00:00:02", Once: "rescue"},
		{ID: "52:54:00:00:00:03", Set: map[string]string{"name": "three", "address": "10.77.0.9", "profile": "gone", "option.42": "10.77.0.2"}},
		{ID: "four", Once: "gone"},
	}}
	got, lost := st.Apply(cfg)
	want := []config.Machine{
		{MAC: boot.MAC{0x52, 0x54, 0, 0, 0, 1}, Name: "one", Profile: "rescue", Next: config.NextLocal, Tags: []string{"a", "b"}},
		{MAC: boot.MAC{0x52, 0x54, 0, 0, 0, 2}, Address: cfg.Machines[1].Address, Profile: "rescue", Next: config.NextAlways},
		{MAC: boot.MAC{0x52, 0x54, 0, 0, 0, 3}, Name: "three", Next: config.NextAlways, Options: map[string]string{"42": "10.77.0.2"}},
		{Name: "four", Next: config.NextAlways},
	}
	if !reflect.DeepEqual(got.Machines, want) {
		t.Errorf("got  %+v\nwant %+v", got.Machines, want)
	}
	if len(lost) != 3 || !strings.Contains(lost[0], "10.77.0.9 is another machine's") || !strings.Contains(lost[1], `no profile "gone"`) || !strings.Contains(lost[2], "boot one time") {
		t.Errorf("lost: %q", lost)
	}
	if cfg.Machines[0].Profile != "" {
		t.Error("the file's configuration was changed")
	}
}

// TestApplyToGuest says something of a machine that is a guest.
func TestApplyToGuest(t *testing.T) {
	cfg, err := config.Parse("ecboot.toml", []byte(`
[profile.rescue]
[guest.web]
backend = "qemu"
node_name = "web"
[[guest.web.nic]]
segment = "private"
mac = "02:01:27:00:00:01"
`))
	if err != nil {
		t.Fatal(err)
	}
	st := State{Schema: schema, Machines: []Entry{{ID: "02:01:27:00:00:01", Set: map[string]string{"profile": "rescue"}}}}
	got, lost := st.Apply(cfg)
	want := []config.Machine{{MAC: boot.MAC{2, 1, 0x27, 0, 0, 1}, Name: "web", Profile: "rescue", Next: config.NextAlways}}
	if len(lost) != 0 || !reflect.DeepEqual(got.Machines, want) {
		t.Errorf("got %+v, lost %q", got.Machines, lost)
	}
}

func TestBootsOnce(t *testing.T) {
	cfg := parseConfig(t)
	st := State{Schema: schema}
	next := func(id string) string {
		mid, err := config.ParseMachineID(id)
		if err != nil {
			t.Fatal(err)
		}
		cfg, _ := st.Apply(cfg)
		m, ok := cfg.Machine(mid)
		if !ok {
			return "unknown"
		}
		return string(m.Next) + " " + m.Profile
	}
	booted := func(id string) bool {
		mid, _ := config.ParseMachineID(id)
		return st.Booted(cfg, mid)
	}
	const once, always = "52:54:00:00:00:01", "52:54:00:00:00:02"
	if got := next(once); got != "once " {
		t.Errorf("before: %q", got)
	}
	if !booted(once) || booted(once) {
		t.Error("the first boot alone should count")
	}
	if got := next(once); got != "local " {
		t.Errorf("after its boot: %q", got)
	}
	if booted(always) || booted("52:54:00:00:00:09") {
		t.Error("a machine that boots always changed")
	}
	st.Put(Entry{ID: always, Once: "rescue"})
	if got := next(always); got != "always rescue" {
		t.Errorf("one time: %q", got)
	}
	if !booted(always) || next(always) != "always " || len(st.Machines) != 1 {
		t.Errorf("one time is over: %q %+v", next(always), st)
	}
}

func TestStore(t *testing.T) {
	s := Store{Path: filepath.Join(t.TempDir(), "state", "machines.json")}
	if st, err := s.Load(); err != nil || len(st.Machines) != 0 {
		t.Fatalf("no file: %+v, %v", st, err)
	}
	put := func(e Entry) func(*State) error {
		return func(st *State) error { st.Put(e); return nil }
	}
	for _, id := range []string{"b", "a", "c"} {
		if err := s.Update(put(Entry{ID: id, Once: "x"})); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Update(put(Entry{ID: "b"})); err != nil {
		t.Fatal(err)
	}
	failed := errors.New("no")
	if err := s.Update(func(st *State) error { st.Put(Entry{ID: "d", Once: "x"}); return failed }); err != failed {
		t.Errorf("error %v", err)
	}
	st, err := s.Load()
	if err != nil || len(st.Machines) != 2 || st.Machines[0].ID != "a" || st.Machines[1].ID != "c" {
		t.Errorf("%+v, %v", st, err)
	}
	for _, text := range []string{"{", `{"schema": 9}`, `{"schema": 1, "machines": [{"machine": "a.b"}]}`} {
		if err := os.WriteFile(s.Path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Load(); err == nil || !strings.Contains(err.Error(), s.Path) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"schema": 1, "machines": [{"machine": "a", "set": {"tags": "x"}, "once": "rescue", "booted": true}]}`))
	f.Add([]byte(`{"schema": 1, "machines": [{"machine": "52:54:00:00:00:02", "set": {"address": "10.77.0.1"}}]}`))
	cfg := parseConfig(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		st, err := parse("f", data)
		if err != nil {
			return
		}
		applied, _ := st.Apply(cfg)
		if err := applied.Check(); err != nil {
			t.Errorf("what was applied does not fit: %v", err)
		}
	})
}
