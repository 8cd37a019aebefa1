package guest

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
)

var base = boot.MAC{0x02, 0x01, 0x27}

func mac(t testing.TB, s string) boot.MAC {
	t.Helper()
	m, err := boot.ParseMAC(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func always(base boot.MAC) func(string) boot.MAC {
	return func(string) boot.MAC { return base }
}

// TestVectors has what people's guests are called by today.
func TestVectors(t *testing.T) {
	for _, tt := range []struct {
		names string
		want  map[string]string
	}{
		{"alpha beta gamma", map[string]string{"alpha": "02:01:27:5b:95:9e", "beta": "02:01:27:39:48:e9", "gamma": "02:01:27:a1:f0:c0"}},
		{"vm4673", map[string]string{"vm4673": "02:01:27:23:c1:ea"}},
		{"vm4673 vm1975", map[string]string{"vm1975": "02:01:27:23:c1:ea", "vm4673": "02:01:27:23:c1:eb"}},
	} {
		got, err := AssignMACs(always(base), strings.Fields(tt.names), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range tt.want {
			if got[name].String() != want {
				t.Errorf("%s: %s has %v, want %s", tt.names, name, got[name], want)
			}
		}
		if len(got) != len(tt.want) {
			t.Errorf("%s: %v", tt.names, got)
		}
	}
}

func TestAssignMACs(t *testing.T) {
	alpha, free := mac(t, "02:01:27:5b:95:9e"), mac(t, "02:01:27:5b:95:9f")
	got, err := AssignMACs(always(mac(t, "52:ec:b0:ff:ff:ff")), []string{"alpha"}, nil, nil)
	if err != nil || got["alpha"].String() != "02:ec:b0:5b:95:9e" {
		t.Errorf("another base: %v, %v", got, err)
	}
	if got, err = AssignMACs(always(base), []string{"alpha"}, []boot.MAC{alpha}, nil); err != nil || got["alpha"] != free {
		t.Errorf("a reserved address was given out: %v, %v", got, err)
	}
	// One that was removed may come back.
	if got, err = AssignMACs(always(base), []string{"alpha"}, nil, map[string]boot.MAC{"gone": alpha}); err != nil || got["alpha"] != free {
		t.Errorf("another guest's address was given out: %v, %v", got, err)
	}
	// The newcomer that sorts before it does not move it.
	persisted := map[string]boot.MAC{"vm4673": mac(t, "02:01:27:23:c1:ea")}
	if got, err = AssignMACs(always(base), []string{"vm4673", "vm1975"}, nil, persisted); err != nil || got["vm4673"] != persisted["vm4673"] || got["vm1975"].String() != "02:01:27:23:c1:eb" {
		t.Errorf("beside a newcomer: %v, %v", got, err)
	}
	// From the end the search goes on at the beginning.
	last, err := sha256v1(base, "x", func(m boot.MAC) bool { return m[3] != 0 })
	if err != nil || last.String() != "02:01:27:00:00:00" {
		t.Errorf("behind the last: %v, %v", last, err)
	}
	if _, err = sha256v1(base, "x", func(boot.MAC) bool { return true }); err == nil {
		t.Error("a taken address was given out")
	}
	for name, tt := range map[string]struct {
		reserved  []boot.MAC
		persisted map[string]boot.MAC
	}{
		"reserved twice":         {reserved: []boot.MAC{free, free}},
		"persisted and reserved": {reserved: []boot.MAC{free}, persisted: map[string]boot.MAC{"alpha": free}},
		"persisted twice":        {persisted: map[string]boot.MAC{"a": free, "alpha": free}},
	} {
		if got, err := AssignMACs(always(base), []string{"alpha"}, tt.reserved, tt.persisted); err == nil || !strings.Contains(err.Error(), free.String()) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func parse(t testing.TB, text string) *config.Config {
	t.Helper()
	c, err := config.Parse("ecboot.toml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func guestText(names ...string) string {
	var b strings.Builder
	for _, name := range names {
		fmt.Fprintf(&b, "[guest.%s]\nbackend = \"microvm\"\n[[guest.%[1]s.nic]]\nsegment = \"private\"\n", name)
	}
	return b.String()
}

// TestGuestsStay adds, removes and renames guests, and looks at those that
// were there before.
func TestGuestsStay(t *testing.T) {
	store := MACStore{filepath.Join(t.TempDir(), "state", "macs.json")}
	known := map[string]boot.MAC{}
	for _, names := range []string{"vm4673", "vm1975 vm4673", "alpha vm1975", "alpha vm4673 renamed", "renamed vm1975"} {
		c := parse(t, guestText(strings.Fields(names)...))
		if err := store.Assign(c); err != nil {
			t.Fatal(err)
		}
		for _, g := range c.Guests {
			got := g.NICs[0].MAC
			if before, was := known[g.Name]; was && got != before {
				t.Errorf("%s: %s moved from %v to %v", names, g.Name, before, got)
			}
			for other, m := range known {
				if m == got && other != g.Name {
					t.Errorf("%s: %s has the address of %s", names, g.Name, other)
				}
			}
			known[g.Name] = got
		}
	}
	if got, err := store.Load(); err != nil || !maps.Equal(got, known) {
		t.Errorf("kept %v, want %v; %v", got, known, err)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(store.Path), "*"))
	if want := []string{store.Path, store.Path + ".lock"}; err != nil || !slices.Equal(left, want) {
		t.Errorf("left %v, want %v", left, want)
	}
}

func TestAssignCards(t *testing.T) {
	c := parse(t, `
[guest.alpha]
backend = "qemu"
[[guest.alpha.nic]]
segment = "private"
mac = "02:01:27:39:48:e9"
[[guest.alpha.nic]]
segment = "private"
[[guest.alpha.nic]]
user = true
[guest.beta]
backend = "qemu"
[[guest.beta.nic]]
segment = "private"
[[machine]]
mac = "02:01:27:39:48:ea"
`)
	before := c.Guests[0].NICs
	known, err := Assign(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	third, err := AssignMACs(always(base), []string{"alpha/2"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"02:01:27:39:48:e9", "02:01:27:5b:95:9e", third["alpha/2"].String()}
	for i, nic := range c.Guests[0].NICs {
		if nic.MAC.String() != want[i] {
			t.Errorf("card %d has %v, want %s", i, nic.MAC, want[i])
		}
	}
	// Its own is written for alpha, and the next for a machine.
	if got := c.Guests[1].NICs[0].MAC.String(); got != "02:01:27:39:48:eb" {
		t.Errorf("beta has %s", got)
	}
	if len(known) != 3 || before[1].MAC != (boot.MAC{}) {
		t.Errorf("known %v; the caller's slice has %v", known, before)
	}
	// A guest may have a base of its own.
	c = parse(t, "[guest]\nbase_mac = \"02:02:02:00:00:00\"\n"+guestText("alpha")+"[guest.beta]\nbackend = \"qemu\"\nbase_mac = \"02:aa:bb:00:00:00\"\n[[guest.beta.nic]]\nsegment = \"private\"\n[[guest.beta.nic]]\nuser = true\n")
	if _, err := Assign(c, nil); err != nil || c.Guests[0].NICs[0].MAC.String() != "02:02:02:5b:95:9e" ||
		c.Guests[1].NICs[0].MAC.String() != "02:aa:bb:39:48:e9" || !strings.HasPrefix(c.Guests[1].NICs[1].MAC.String(), "02:aa:bb:") {
		t.Errorf("%v, %+v", err, c.Guests)
	}
	// One that is named as a guest is the guest, and takes no address from it.
	c = parse(t, "[guest.alpha]\nbackend = \"qemu\"\nnode_name = \"a\"\n[[guest.alpha.nic]]\nsegment = \"private\"\n[[machine]]\nmac = \"02:01:27:5b:95:9e\"\nname = \"A\"\n")
	if _, err := Assign(c, nil); err != nil || c.Guests[0].NICs[0].MAC != c.Machines[0].MAC {
		t.Errorf("%v, %+v", err, c.Guests[0].NICs)
	}
	// A [[machine]] with an assigned address speaks of the guest.
	c = parse(t, guestText("alpha")+"[[machine]]\nmac = \"02:01:27:5b:95:9e\"\n")
	if _, err := Assign(c, known); err != nil {
		t.Error(err)
	}
	c = parse(t, guestText("alpha")+"[[guest.alpha.nic]]\nsegment = \"private\"\nmac = \"02:01:27:5b:95:9e\"\n")
	if _, err := Assign(c, known); err == nil || c.Guests[0].NICs[0].MAC != (boot.MAC{}) {
		t.Errorf("one address for two cards: %v, %+v", err, c.Guests[0].NICs)
	}
}

func TestStoreRefusesDamage(t *testing.T) {
	store := MACStore{filepath.Join(t.TempDir(), "macs.json")}
	for name, text := range map[string]string{
		"half":            `{"schema": 1, "algorithm": "sha256-v1", "macs": {"web": "02:`,
		"newer":           `{"schema": 2, "algorithm": "sha256-v1", "macs": {}}`,
		"other algorithm": `{"schema": 1, "algorithm": "sha256-v2", "macs": {}}`,
		"name":            `{"schema": 1, "algorithm": "sha256-v1", "macs": {"../web": "02:00:00:00:00:01"}}`,
		"number":          `{"schema": 1, "algorithm": "sha256-v1", "macs": {"web/": "02:00:00:00:00:01"}}`,
		"group":           `{"schema": 1, "algorithm": "sha256-v1", "macs": {"web": "03:00:00:00:00:01"}}`,
		"twice":           `{"schema": 1, "algorithm": "sha256-v1", "macs": {"web": "02:00:00:00:00:01", "db": "02:00:00:00:00:01"}}`,
		"empty":           ``,
	} {
		if err := os.WriteFile(store.Path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := store.Assign(parse(t, guestText("web"))); err == nil || !strings.Contains(err.Error(), store.Path) {
			t.Errorf("%s: %v", name, err)
		}
		if after, err := os.ReadFile(store.Path); err != nil || string(after) != text {
			t.Errorf("%s: was changed to %q, %v", name, after, err)
		}
	}
}

// TestStoreTakesTurns lets many processes' worth of updates run at once.
func TestStoreTakesTurns(t *testing.T) {
	store := MACStore{filepath.Join(t.TempDir(), "macs.json")}
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			if err := store.Assign(parse(t, guestText(fmt.Sprintf("g%d", i)))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got, err := store.Load(); err != nil || len(got) != 16 {
		t.Errorf("kept %v, %v", got, err)
	}
}

func TestParseMACs(t *testing.T) {
	want := map[string]boot.MAC{"web": mac(t, "02:01:27:00:00:01"), "db_2/1": mac(t, "02:01:27:00:00:02")}
	for name, text := range map[string]string{
		"JSON":     "{\"web\": \"02:01:27:00:00:01\",\n \"db_2/1\": \"02-01-27-00-00-02\"}\n",
		"TOML":     "# real ones\n[macs]\nweb = \"02:01:27:00:00:01\" # it\n\"db_2/1\" = '02:01:27:00:00:02'\n",
		"INI":      "[macs]\r\nweb=02:01:27:00:00:01\r\ndb_2/1 = 020127000002\r\n",
		"columns":  "web\t02:01:27:00:00:01\n\n  db_2/1   02:01:27:00:00:02",
		"one line": "web 0201.2700.0001\ndb_2/1 02:01:27:00:00:02\n",
	} {
		if got, err := ParseMACs(strings.NewReader(text)); err != nil || !maps.Equal(got, want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for _, tt := range []struct{ name, text, want string }{
		{"nothing", "# web\n", "names no guest"},
		{"all at once", "a/b = \"02:01:27:00:00:01\"\nweb = 5\nx y z\ndb 01:00:5e:00:00:01\na 020127000001\nb 020127000001\na 020127000002\n",
			`line 1: "a/b" is neither a guest's name nor NAME/NUMBER
line 2: web: "5" is not an Ethernet address such as 02:01:27:a1:f0:c0
line 3: "x y z" is not the name of a guest and its address, such as web = "02:01:27:a1:f0:c0"
line 4: db: 01:00:5e:00:00:01 is a group address, which no single machine can have
line 6: b: 02:01:27:00:00:01 is the address of a, too, in line 5
line 7: a is named in line 5 already`},
		{"JSON twice", "{\"a\": \"020127000001\",\n\"a\": \"020127000002\"}", "line 2: a is named in line 1 already"},
		{"JSON number", `{"a": 5}`, "line 1: a is 5, and not an address in quotes"},
		{"half of JSON", `{"a": "020127000001"`, "line 1: is not JSON"},
		{"JSON and more", `{"a": "020127000001"} x`, "line 1: more follows"},
		{"nested JSON", `{"a": {"b": "020127000001"}}`, "line 1: a is {"},
		{"large", strings.Repeat("#\n", maxImport), "has more than 1048576 bytes"},
	} {
		if got, err := ParseMACs(strings.NewReader(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, %v\nwant %s", tt.name, got, err, tt.want)
		}
	}
}

func TestImport(t *testing.T) {
	store := MACStore{filepath.Join(t.TempDir(), "macs.json")}
	text := guestText("web", "db") + "[guest.fixed]\nbackend = \"qemu\"\n[[guest.fixed.nic]]\nsegment = \"private\"\nmac = \"02:01:27:00:00:0f\"\n" +
		"[[machine]]\nmac = \"02:01:27:00:00:0e\"\nname = \"node1\"\n"
	c := parse(t, text)
	one, two := mac(t, "02:01:27:00:00:01"), mac(t, "02:01:27:00:00:02")
	done, err := store.Import(c, map[string]boot.MAC{"web": one, "db": two, "later": mac(t, "02:01:27:00:00:03")}, false)
	if want := (Imported{Added: []string{"db", "later", "web"}, Undeclared: []string{"later"}}); err != nil || !reflect.DeepEqual(done, want) {
		t.Fatalf("%+v, %v", done, err)
	}
	if err := store.Assign(c); err != nil || c.Guests[0].NICs[0].MAC != one || c.Guests[1].NICs[0].MAC != two {
		t.Errorf("%+v, %v", c.Guests, err)
	}
	before, err := store.Load()
	if err != nil {
		t.Fatal(err)
	}
	c = parse(t, text)
	_, err = store.Import(c, map[string]boot.MAC{"web": two, "new": mac(t, "02:01:27:00:00:03"), "fixed": mac(t, "02:01:27:00:00:0d"),
		"b": mac(t, "02:01:27:00:00:0e"), "c": mac(t, "02:01:27:00:00:0f")}, false)
	want := `fixed is not assigned an address: the configuration writes those of its network cards
web has 02:01:27:00:00:01 already, not 02:01:27:00:00:02: use --replace to give it the new one
02:01:27:00:00:03 is the address of both later and new
02:01:27:00:00:02 is the address of both db and web
02:01:27:00:00:0f of c is written for a network card in the configuration
02:01:27:00:00:0e of b is the address of the [[machine]] node1 in the configuration`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	if after, err := store.Load(); err != nil || !maps.Equal(after, before) {
		t.Errorf("half of it was applied: %v, %v", after, err)
	}
	// What the configuration says anyway is no conflict, whichever came first.
	fixed := map[string]boot.MAC{"fixed": mac(t, "02:01:27:00:00:0f")}
	for _, declared := range []*config.Config{c, config.Default(), c} {
		if _, err := store.Import(declared, fixed, false); err != nil {
			t.Error(err)
		}
	}
	done, err = store.Import(c, fixed, false)
	if want := (Imported{Unchanged: []string{"fixed"}}); err != nil || !reflect.DeepEqual(done, want) {
		t.Errorf("%+v, %v", done, err)
	}
	// Two exchange theirs.
	c = parse(t, guestText("web", "db"))
	done, err = store.Import(c, map[string]boot.MAC{"web": two, "db": one}, true)
	if want := (Imported{Replaced: []string{"db", "web"}}); err != nil || !reflect.DeepEqual(done, want) {
		t.Errorf("%+v, %v", done, err)
	}
	done, err = store.Import(c, map[string]boot.MAC{"web": two}, false)
	if want := (Imported{Unchanged: []string{"web"}}); err != nil || !reflect.DeepEqual(done, want) {
		t.Errorf("%+v, %v", done, err)
	}
}

func FuzzParseMACs(f *testing.F) {
	for _, seed := range []string{
		`{"web": "02:01:27:00:00:01", "db": "02-01-27-00-00-02"}`, "web = \"02:01:27:00:00:01\"\n", "web 020127000001 # x\n[a]\n",
		"{\"a\": [{", "\"\\\"\" = 'x'", "a/1 0201.2700.0001\r\n=\n", "{}{}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		macs, err := ParseMACs(strings.NewReader(string(data)))
		if err != nil {
			if macs != nil {
				t.Errorf("half of it was read: %v beside %v", macs, err)
			}
			return
		}
		// What is read can be kept and is read the same.
		store := MACStore{filepath.Join(t.TempDir(), "macs.json")}
		if _, err := store.Import(config.Default(), macs, false); err != nil {
			t.Fatal(err)
		}
		if got, err := store.Load(); err != nil || !maps.Equal(got, macs) {
			t.Errorf("kept %v, want %v; %v", got, macs, err)
		}
	})
}
