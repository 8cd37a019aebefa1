package zfs

import (
	"errors"
	"path"
	"slices"
	"strings"
	"testing"
)

func TestPlanOrder(t *testing.T) {
	tests := []struct {
		name    string
		entries []Entry
		want    string
	}{
		{name: "nothing"},
		{
			name:    "the defaults",
			entries: []Entry{{Guest: "web", Name: "/persist", Pool: "tank", Dataset: "safe/web"}},
			want: `ensure tank/safe/web [web]
mount tank/safe/web on /guests/web/persist [web]`,
		},
		{
			name: "a dataset of several guests: guests bytewise, then entries",
			entries: []Entry{
				{Guest: "b", Name: "/x", Pool: "tank", Dataset: "shared"},
				{Guest: "a", Name: "/y", Pool: "tank", Dataset: "shared"},
				{Guest: "a", Name: "/own", Pool: "rpool", Dataset: "a"},
				{Guest: "B", Name: "/x", Pool: "tank", Dataset: "shared"},
				{Guest: "a", Name: "/x", Pool: "tank", Dataset: "shared"},
			},
			want: `ensure tank/shared [B a b]
ensure rpool/a [a]
mount tank/shared on /guests/B/x [B]
mount rpool/a on /guests/a/own [a]
mount tank/shared on /guests/a/x [a]
mount tank/shared on /guests/a/y [a]
mount tank/shared on /guests/b/x [b]`,
		},
		{
			name: "one path for two guests is one mount",
			entries: []Entry{
				{Guest: "a", Name: "media", Pool: "tank", Dataset: "media", HostMountpoint: "/srv/media", GuestMountpoint: "/media"},
				{Guest: "b", Name: "films", Pool: "tank", Dataset: "media", HostMountpoint: "/srv/media", GuestMountpoint: "/films"},
			},
			want: `ensure tank/media [a b]
mount tank/media on /srv/media [a b]`,
		},
		{
			name: "outer before inner, whatever their names",
			entries: []Entry{
				{Guest: "a", Name: "1", Pool: "tank", Dataset: "db", GuestMountpoint: "/var/lib/db"},
				{Guest: "a", Name: "2", Pool: "tank", Dataset: "var", GuestMountpoint: "/var"},
			},
			want: `ensure tank/db [a]
ensure tank/var [a]
mount tank/var on /guests/a/var [a]
mount tank/db on /guests/a/var/lib/db [a]`,
		},
		{
			name: "a mount within another guest's needs that one",
			entries: []Entry{
				{Guest: "a", Name: "/in", Pool: "tank", Dataset: "in", HostMountpoint: "/guests/z/out/in"},
				{Guest: "z", Name: "/out", Pool: "tank", Dataset: "out"},
			},
			want: `ensure tank/in [a]
ensure tank/out [a z]
mount tank/out on /guests/z/out [a z]
mount tank/in on /guests/z/out/in [a]`,
		},
		{
			name: "a path that only begins like another is not within it",
			entries: []Entry{
				{Guest: "a", Name: "/data", Pool: "tank", Dataset: "one"},
				{Guest: "a", Name: "/data-2", Pool: "tank", Dataset: "two"},
			},
			want: `ensure tank/one [a]
ensure tank/two [a]
mount tank/one on /guests/a/data [a]
mount tank/two on /guests/a/data-2 [a]`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := NewPlan(tt.entries)
			if err != nil {
				t.Fatal(err)
			}
			if got := describe(p); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
			slices.Reverse(tt.entries)
			if p, _ := NewPlan(tt.entries); describe(p) != tt.want {
				t.Errorf("in another order of the entries: got\n%s", describe(p))
			}
		})
	}
}

func describe(p Plan) string {
	var lines []string
	for _, s := range p.Steps {
		lines = append(lines, s.String()+" ["+strings.Join(s.Guests, " ")+"]")
	}
	return strings.Join(lines, "\n")
}

func TestSharesOfAGuest(t *testing.T) {
	p, err := NewPlan([]Entry{
		{Guest: "a", Name: "1", Pool: "tank", Dataset: "db", GuestMountpoint: "/var/lib/db"},
		{Guest: "a", Name: "2", Pool: "tank", Dataset: "var", GuestMountpoint: "/var"},
		{Guest: "a", Name: "twice", Pool: "tank", Dataset: "var", GuestMountpoint: "/var"},
		{Guest: "b", Name: "/x", Pool: "tank", Dataset: "var", HostMountpoint: "/srv/x"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []Share{
		{"2", "tank/var", "/guests/a/var", "/var"},
		{"1", "tank/db", "/guests/a/var/lib/db", "/var/lib/db"},
	}
	if got := p.Shares("a"); !slices.Equal(got, want) {
		t.Errorf("a gets %v, want %v", got, want)
	}
	if got := p.Shares("nobody"); got != nil {
		t.Errorf("a guest without entries gets %v", got)
	}
}

func TestMistakes(t *testing.T) {
	long := strings.Repeat("x", 251)
	deep := strings.TrimSuffix(strings.Repeat("d/", 50), "/")
	tests := []struct {
		name    string
		entries []Entry
		want    []string // one per mistake
	}{
		{
			name: "all at once, by guest",
			entries: []Entry{
				{Guest: "b", Name: "persist", Pool: "tank", Dataset: "b"},
				{Guest: "a", Name: "/x"},
			},
			want: []string{
				`guest a: zfs /x: pool: is missing; write the name of a pool, such as "tank"; 'zpool list' shows them`,
				`guest a: zfs /x: dataset: is missing; write a dataset below the pool, such as "safe/guests/web"`,
				`guest b: zfs persist: guest_mountpoint: "persist" is not an absolute, clean path; write "/persist"`,
			},
		},
		{
			name: "two datasets on one path",
			entries: []Entry{
				{Guest: "a", Name: "/x", Pool: "tank", Dataset: "one", HostMountpoint: "/srv/x"},
				{Guest: "b", Name: "/y", Pool: "tank", Dataset: "two", HostMountpoint: "/srv/x"},
			},
			want: []string{`guest b: zfs /y: host_mountpoint: /srv/x has tank/one already, of guest a: zfs /x; write another path for tank/two, or the same dataset for both`},
		},
		{
			name: "two of them at one place in the guest",
			entries: []Entry{
				{Guest: "a", Name: "/x", Pool: "tank", Dataset: "one"},
				{Guest: "a", Name: "x", Pool: "tank", Dataset: "one", HostMountpoint: "/srv/x", GuestMountpoint: "/x"},
			},
			want: []string{`guest a: zfs x: guest_mountpoint: the guest has /x already, of zfs /x; write another path`},
		},
		{"a pool with a dataset", []Entry{{"a", "/x", "tank/safe", "y", "", ""}}, []string{`guest a: zfs /x: pool: "tank/safe" is a dataset; write pool = "tank" and begin the dataset with "safe"`}},
		{"a pool that looks like an option", []Entry{{"a", "/x", "-tank", "y", "", ""}}, []string{`"-tank" does not begin with a letter`}},
		{"a pool with a bad character", []Entry{{"a", "/x", "tänk", "y", "", ""}}, []string{`pool: "tänk" has 'ä' in it; use letters, digits and any of - _ . :`}},
		{"a dataset from the root", []Entry{{"a", "/x", "tank", "/y/z", "", ""}}, []string{`dataset: "/y/z" has an empty part, or one that is "." or ".."; write "y/z"`}},
		{"a dataset that climbs out", []Entry{{"a", "/x", "tank", "../other", "", ""}}, []string{`write "other"`}},
		{"a dataset with an empty part", []Entry{{"a", "/x", "tank", "y//z/", "", ""}}, []string{`write "y/z"`}},
		{"a dataset that is nothing", []Entry{{"a", "/x", "tank", "..", "", ""}}, []string{`write "safe/guests/web"`}},
		{"a snapshot", []Entry{{"a", "/x", "tank", "y/z@now", "", ""}}, []string{`"z@now" is a snapshot or bookmark, which cannot be written to; write the dataset's name, such as "z", or that of a clone`}},
		{"a space at an end", []Entry{{"a", "/x", "tank", "y /z", "", ""}}, []string{`"y " has a space at an end; write "y"`}},
		{"a newline", []Entry{{"a", "/x", "tank", "y\nz", "", ""}}, []string{`has '\n' in it`}},
		{"too long a name", []Entry{{"a", "/x", "tank", long, "", ""}}, []string{`is 256 bytes long with its pool; write at most 255`}},
		{"too deep a name", []Entry{{"a", "/x", "tank", deep, "", ""}}, []string{`is 50 levels deep; write at most 49`}},
		{"the host's root", []Entry{{"a", "/x", "tank", "y", "/", ""}}, []string{`host_mountpoint: "/" is no directory of its own; write one below it, such as "/persist"`}},
		{"a path that climbs", []Entry{{"a", "/x", "tank", "y", "/guests/../etc", ""}}, []string{`host_mountpoint: "/guests/../etc" is not an absolute, clean path; write "/etc"`}},
		{"a guest's name that climbs", []Entry{{"..", "/x", "tank", "y", "", ""}}, []string{`host_mountpoint: "/guests/../x"`}},
		{"the guest's root", []Entry{{"a", "/", "tank", "y", "", ""}}, []string{`guest_mountpoint: "/" is no directory of its own`}},
		{"a tab in a path", []Entry{{"a", "/x\ty", "tank", "y", "/srv/x", ""}}, []string{`guest_mountpoint: "/x\ty" has control characters in it`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := NewPlan(tt.entries)
			var got Mistakes
			if !errors.As(err, &got) || len(got) != len(tt.want) {
				t.Fatalf("got %v, want %d mistakes", err, len(tt.want))
			}
			for i, want := range tt.want {
				if !strings.Contains(got[i].String(), want) {
					t.Errorf("got  %s\nwant %s", got[i], want)
				}
			}
			if len(p.Steps) > 0 {
				t.Errorf("steps in spite of mistakes: %v", p.Steps)
			}
		})
	}
}

func TestNamesThatZFSAllows(t *testing.T) {
	for _, name := range []string{"a", "9", "safe/guests/web", "with space/x", "a.b-c_d:e", "..a", strings.Repeat("x", 250)} {
		if what, _ := checkDataset("tank", name); what != "" {
			t.Errorf("%q: %s", name, what)
		}
	}
}

// FuzzPlan wants of every plan what carrying it out relies on.
func FuzzPlan(f *testing.F) {
	f.Add("a", "/x", "tank", "safe/a", "", "", "/x/y", "tank", "b", "")
	f.Add("a", "x", "tank", "a/../b", "/guests/a/..", "/", "/x", "-o", "a@b", "//")
	f.Add("..", "/x\n", "tank", "a b", "/srv/x", "/x", "/y", "tank", "a b", "/srv/x/y")
	f.Fuzz(func(t *testing.T, guest, name1, pool1, dataset1, host1, in1, name2, pool2, dataset2, host2 string) {
		p, err := NewPlan([]Entry{
			{guest, name1, pool1, dataset1, host1, in1},
			{guest, name2, pool2, dataset2, host2, ""},
		})
		if err != nil {
			if err.Error() == "" {
				t.Error("an error without words")
			}
			return
		}
		ensured, seen := map[string]bool{}, map[string]bool{}
		for _, s := range p.Steps {
			if path.Clean("/"+s.Dataset) != "/"+s.Dataset || !isLetter(s.Dataset[0]) || strings.ContainsAny(s.Dataset, "@#%\t\n") {
				t.Errorf("dataset %q", s.Dataset)
			}
			if s.Path == "" {
				if ensured[s.Dataset] {
					t.Errorf("%s twice", s)
				}
				ensured[s.Dataset] = true
				continue
			}
			if !ensured[s.Dataset] || seen[s.Path] || path.Clean(s.Path) != s.Path || s.Path[0] != '/' || s.Path == "/" {
				t.Errorf("%s: of %v", s, p.Steps)
			}
			for before := range seen {
				if strings.HasPrefix(before, s.Path+"/") {
					t.Errorf("%s hides %s", s, before)
				}
			}
			seen[s.Path] = true
		}
		for _, s := range p.Shares(guest) {
			if !seen[s.HostPath] {
				t.Errorf("%v is not mounted by %v", s, p.Steps)
			}
		}
	})
}

func TestMissingDatasets(t *testing.T) {
	have := map[string]dataset{
		"tank": {kind: "filesystem"}, "tank/safe": {kind: "filesystem"}, "tank/disk": {kind: "volume"},
	}
	tests := []struct{ name, want, wantErr string }{
		{name: "tank/safe"},
		{name: "tank/safe/guests/web", want: "tank/safe/guests tank/safe/guests/web"},
		{name: "rpool/x", wantErr: "rpool/x: there is no pool rpool: 'zpool import rpool', or declare one that 'zpool list' shows"},
		{name: "tank/disk", wantErr: "tank/disk: tank/disk is a volume, not a file system: declare another dataset"},
		{name: "tank/disk/x", wantErr: "tank/disk/x: tank/disk is a volume"},
	}
	for _, tt := range tests {
		got, err := missing(tt.name, have)
		if tt.wantErr != "" {
			if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
				t.Errorf("%s: got error %v, want %s", tt.name, err, tt.wantErr)
			}
		} else if err != nil || strings.Join(got, " ") != tt.want {
			t.Errorf("%s: got %q, %v, want %q", tt.name, got, err, tt.want)
		}
	}
}

func TestMountArgs(t *testing.T) {
	for mountpoint, want := range map[string]string{
		"none":   "-t zfs -o zfsutil tank/x /run/x",
		"/tank":  "-t zfs -o zfsutil tank/x /run/x",
		"legacy": "-t zfs tank/x /run/x",
	} {
		if got := strings.Join(mountArgs("tank/x", mountpoint, "/run/x"), " "); got != want {
			t.Errorf("mountpoint=%s: mount %s, want %s", mountpoint, got, want)
		}
	}
}

func TestParseMountinfo(t *testing.T) {
	const text = `22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
76 22 0:44 / /guests/a/my\040files rw,relatime shared:7 master:2 - zfs tank/safe/a rw,xattr,noacl
77 22 0:45 / /guests/b/x rw,relatime - fuse.zfs tank/b\040c rw,user_id=0
78 22 0:44 /sub /mnt rw - zfs tank/safe/a rw
79 22 0:50 /a\134040b /odd\011\012 rw - tmpfs none rw
`
	all, err := parseMountinfo([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := mounts{
		22: {"/", "/", "ext4", "/dev/vda"},
		76: {"/", "/guests/a/my files", "zfs", "tank/safe/a"},
		77: {"/", "/guests/b/x", "fuse.zfs", "tank/b c"},
		78: {"/sub", "/mnt", "zfs", "tank/safe/a"},
		79: {`/a\040b`, "/odd\t\n", "tmpfs", "none"},
	}
	for id, m := range want {
		if all[id] != m {
			t.Errorf("%d: got %+v, want %+v", id, all[id], m)
		}
	}
	if len(all) != len(want) {
		t.Errorf("got %d mounts, want %d", len(all), len(want))
	}
	if !all[76].holds("tank/safe/a") || !all[77].holds("tank/b c") || all[78].holds("tank/safe/a") || all[76].holds("tank/safe") {
		t.Error("whole datasets are not told from parts of them")
	}
}

func FuzzMountinfo(f *testing.F) {
	f.Add([]byte("76 22 0:44 / /guests/a rw,relatime shared:7 master:2 - zfs tank/a rw\n"))
	f.Add([]byte(`1 1 0:1 / /a\0 rw - x \777\ rw`))
	f.Add([]byte("1 - 2 3\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := parseMountinfo(b)
		if err == nil && len(all) > strings.Count(string(b), "\n")+1 {
			t.Errorf("%d mounts of %q", len(all), b)
		}
	})
}

// FuzzUnescape compares with how the kernel escapes (mangle in fs/seq_file.c).
func FuzzUnescape(f *testing.F) {
	f.Add(`a b\c`)
	f.Add("\t\n#\\040")
	f.Fuzz(func(t *testing.T, s string) {
		escaped := strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`, "#", `\043`).Replace(s)
		if got := unescape(escaped); got != s {
			t.Errorf("%q came back as %q", s, got)
		}
	})
}
