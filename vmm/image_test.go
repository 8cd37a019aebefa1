package vmm

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func needQEMUImg(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("qemu-img is missing: install the package qemu-utils")
	}
}

func qemuImg(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %q: %v: %s", args, err, out)
	}
	return string(out)
}

func ensure(t *testing.T, d Disk) bool {
	t.Helper()
	made, err := EnsureDisk(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func TestEnsureDisk(t *testing.T) {
	needQEMUImg(t)
	dir := t.TempDir()
	base := filepath.Join(dir, "base, of:all.img")
	if err := os.WriteFile(base, make([]byte, 3<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		disk          Disk
		format        string
		size          int64
		backingFormat string
	}{
		{Disk{Path: "new/a, b:c.qcow2", Size: 1 << 30}, "qcow2", 1 << 30, ""},
		{Disk{Path: "raw", Format: FormatRaw, Size: 1 << 24}, "raw", 1 << 24, ""},
		{Disk{Path: "overlay", Base: base}, "qcow2", 3 << 20, "raw"},
		{Disk{Path: "larger", Base: base, Size: 1 << 30}, "qcow2", 1 << 30, "raw"},
	} {
		d := tt.disk
		d.Path = filepath.Join(dir, d.Path)
		if !ensure(t, d) {
			t.Errorf("%s is not made", d.Path)
		}
		before, err := os.ReadFile(d.Path)
		if err != nil {
			t.Fatal(err)
		}
		var info struct {
			Format        string `json:"format"`
			Size          int64  `json:"virtual-size"`
			Backing       string `json:"full-backing-filename"`
			BackingFormat string `json:"backing-filename-format"`
		}
		if err := json.Unmarshal([]byte(qemuImg(t, "info", "-f", tt.format, "--output=json", d.Path)), &info); err != nil {
			t.Fatal(err)
		}
		if info.Format != tt.format || info.Size != tt.size || info.Backing != d.Base || info.BackingFormat != tt.backingFormat {
			t.Errorf("%+v is made as %+v", d, info)
		}
		if im, err := inspect(d.Path); err != nil || im.format != tt.format || im.size != tt.size || im.backing != d.Base {
			t.Errorf("%+v is read as %+v, %v", d, im, err)
		}
		if d.Base == "" {
			d.Size *= 2
		}
		if ensure(t, d) {
			t.Errorf("%s is made again", d.Path)
		}
		if after, err := os.ReadFile(d.Path); err != nil || !bytes.Equal(before, after) {
			t.Errorf("%s has changed (%v)", d.Path, err)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	if len(left) > 0 || err != nil {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

func TestEnsureDiskRefuses(t *testing.T) {
	needQEMUImg(t)
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	qemuImg(t, "create", "-q", "-f", "qcow2", in("plain.qcow2"), "1M")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-b", "plain.qcow2", "-F", "qcow2", in("over.qcow2"))
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "data_file="+in("data"), in("external.qcow2"), "1M")
	for name, content := range map[string]string{"raw.img": "hello", "torn.qcow2": qcow2Magic + "\x00\x00\x00\x03"} {
		if err := os.WriteFile(in(name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("nowhere", in("dangling")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		disk Disk
		want string
	}{
		{Disk{Path: in("raw.img")}, "is raw and declared as qcow2"},
		{Disk{Path: in("plain.qcow2"), Format: FormatRaw}, "is qcow2 and declared as raw"},
		{Disk{Path: in("torn.qcow2")}, "header is broken"},
		{Disk{Path: in("external.qcow2")}, "its data in another file"},
		{Disk{Path: in("over.qcow2")}, "lies upon plain.qcow2 and is declared to lie upon nothing"},
		{Disk{Path: in("over.qcow2"), Base: in("raw.img")}, "lies upon plain.qcow2 and is declared to lie upon " + in("raw.img")},
		{Disk{Path: in("over.qcow2"), Ephemeral: true}, "lies upon plain.qcow2: name that as the base"},
		{Disk{Path: in("plain.qcow2"), Base: in("raw.img")}, "stands alone"},
		{Disk{Path: in("new"), Base: in("over.qcow2")}, "lies upon plain.qcow2 itself"},
		{Disk{Path: in("new"), Base: in("missing")}, "no such file"},
		{Disk{Path: in("new"), Base: in("plain.qcow2"), Size: 1000}, "smaller than its base"},
		{Disk{Path: in("new")}, "say how large"},
		{Disk{Path: in("new"), CDROM: true}, "does not exist"},
		{Disk{Path: in("dangling"), Size: 1}, "no such file"},
		{Disk{Path: dir}, "it must be a file or a block device"},
		{Disk{Path: in("new"), Format: "vdi"}, "use qcow2 or raw"},
	} {
		made, err := EnsureDisk(t.Context(), tt.disk)
		if made || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, %v; want an error with %q", tt.disk, made, err, tt.want)
		}
	}
	if ensure(t, Disk{Path: in("over.qcow2"), Base: in("plain.qcow2")}) {
		t.Error("an overlay that is there is made")
	}
	if _, err := os.Lstat(in("new")); err == nil {
		t.Error("a disk that was refused is made")
	}
}

// Of many who make a disk at the same time one does.
func TestEnsureDiskRace(t *testing.T) {
	d := Disk{Path: filepath.Join(t.TempDir(), "disk"), Format: FormatRaw, Size: 1 << 20}
	var wins int
	var mu sync.Mutex
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			made, err := EnsureDisk(t.Context(), d)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if made {
				wins++
			}
		})
	}
	all.Wait()
	if wins != 1 {
		t.Errorf("%d of 16 say that they made it", wins)
	}
}

func TestPublishNeverOverwrites(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	made, err := publish(path, func(f *os.File) error {
		return os.WriteFile(path, []byte("theirs"), 0o600) // in between
	})
	if made || err != nil {
		t.Errorf("%v, %v", made, err)
	}
	if got, _ := os.ReadFile(path); string(got) != "theirs" {
		t.Errorf("the file holds %q", got)
	}
}

func FuzzReadImage(f *testing.F) {
	f.Add([]byte("raw"))
	f.Add([]byte(qcow2Magic + "\x00\x00\x00\x03"))
	if _, err := exec.LookPath("qemu-img"); err == nil {
		path := filepath.Join(f.TempDir(), "image")
		qemuImg(f, "create", "-q", "-f", "qcow2", "-u", "-b", "/base", "-F", "raw", path, "1M")
		if data, err := os.ReadFile(path); err == nil {
			f.Add(data[:4096])
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		im, err := readImage(bytes.NewReader(data), int64(len(data)))
		if err == nil && (im.size < 0 || im.format != FormatRaw && im.format != FormatQCOW2) {
			t.Errorf("%+v", im)
		}
	})
}
