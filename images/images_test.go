package images

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"
)

// sample is a set of three files with its manifest.
func sample(t *testing.T) fstest.MapFS {
	t.Helper()
	fsys := fstest.MapFS{}
	var list []Image
	for _, i := range []Image{
		{Name: KernelName, Kind: Kernel, Origin: "module v1", Licence: "GPL-2.0-only"},
		{Name: InitrdName, Kind: Initrd, Origin: "module v2", Licence: "BSD-3-Clause"},
		{Name: UndionlyName, Kind: NBP, Origin: "package 3", Licence: "GPL-2.0-or-later"},
	} {
		content := []byte("content of " + i.Name)
		sum := sha256.Sum256(content)
		i.Size, i.SHA256 = int64(len(content)), hex.EncodeToString(sum[:])
		fsys[i.Name] = &fstest.MapFile{Data: content}
		list = append(list, i)
	}
	text, err := json.Marshal(manifest{Schema: ManifestSchema, Images: list})
	if err != nil {
		t.Fatal(err)
	}
	fsys[ManifestName] = &fstest.MapFile{Data: text}
	return fsys
}

func open(t *testing.T, fsys fs.FS) *Set {
	t.Helper()
	s, err := Open(fsys)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func extract(t *testing.T, s *Set, dir string) *Extracted {
	t.Helper()
	e, err := s.Extract(dir)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestOpen(t *testing.T) {
	s := open(t, sample(t))
	var names []string
	for _, i := range s.List() {
		names = append(names, i.Name)
	}
	if want := []string{KernelName, InitrdName, UndionlyName}; !slices.Equal(names, want) {
		t.Errorf("listed %q, want %q", names, want)
	}
	if i, ok := s.Find(UndionlyName); !ok || i.Kind != NBP || i.Origin != "package 3" {
		t.Errorf("found %+v, %v", i, ok)
	}
	if _, ok := s.Find("nothing"); ok {
		t.Error("found something under an unknown name")
	}
	s.List()[0].Name = "changed"
	if s.List()[0].Name == "changed" {
		t.Error("the catalogue can be changed from outside")
	}
}

func TestOpenErrors(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func(fstest.MapFS)
		want  string
	}{
		"no manifest":     {func(f fstest.MapFS) { delete(f, ManifestName) }, "run `make`"},
		"no JSON":         {func(f fstest.MapFS) { f[ManifestName].Data = []byte("x") }, "manifest.json: invalid character"},
		"another schema":  {func(f fstest.MapFS) { f[ManifestName].Data = []byte(`{"schema":9}`) }, "has schema 9, not 1"},
		"missing file":    {func(f fstest.MapFS) { delete(f, KernelName) }, `names "vmlinuz", which is not there`},
		"truncated file":  {func(f fstest.MapFS) { f[KernelName].Data = []byte("x") }, "vmlinuz has 1 bytes and should have 18"},
		"name with slash": {func(f fstest.MapFS) { rename(f, "vmlinuz", "../vmlinuz") }, `names "../vmlinuz"`},
		"no digest":       {func(f fstest.MapFS) { rename(f, `"sha256":"`, `"sha256":"../`) }, "is no SHA-256"},
	} {
		t.Run(name, func(t *testing.T) {
			fsys := sample(t)
			tt.spoil(fsys)
			if _, err := Open(fsys); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got the error %v, want %q", err, tt.want)
			}
		})
	}
	fsys := sample(t)
	delete(fsys, ManifestName)
	if _, err := Open(fsys); !errors.Is(err, ErrNoAssets) {
		t.Errorf("got %v, want ErrNoAssets", err)
	}
}

func rename(f fstest.MapFS, from, to string) {
	f[ManifestName].Data = bytes.Replace(f[ManifestName].Data, []byte(from), []byte(to), 1)
}

func TestExtract(t *testing.T) {
	s, dir := open(t, sample(t)), t.TempDir()
	e := extract(t, s, dir)
	for _, i := range s.List() {
		content, err := os.ReadFile(e.Path(i.Name))
		if err != nil || string(content) != "content of "+i.Name {
			t.Errorf("%s holds %q, %v", i.Name, content, err)
		}
		if filepath.Base(e.Path(i.Name)) != i.Name {
			t.Errorf("%s is in a file of another name, %s", i.Name, e.Path(i.Name))
		}
	}
	if e.Path("nothing") != "" {
		t.Error("an unknown name has a path")
	}

	kernel := e.Path(KernelName)
	before, err := os.Stat(kernel)
	if err != nil {
		t.Fatal(err)
	}
	extract(t, s, dir)
	if after, err := os.Stat(kernel); err != nil || !os.SameFile(before, after) {
		t.Error("what was there was written again")
	}
	if err := os.WriteFile(kernel, []byte("content of vmlinux"), 0o644); err != nil {
		t.Fatal(err)
	}
	extract(t, s, dir)
	if content, err := os.ReadFile(kernel); err != nil || string(content) != "content of vmlinuz" {
		t.Errorf("a damaged file was not replaced: %q, %v", content, err)
	}
}

func TestExtractTogether(t *testing.T) {
	s, dir := open(t, sample(t)), t.TempDir()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if _, err := s.Extract(dir); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if left, _ := filepath.Glob(filepath.Join(dir, "*", ".*")); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

func TestExtractTidiesUp(t *testing.T) {
	s, dir := open(t, sample(t)), t.TempDir()
	old, recent := filepath.Join(dir, strings.Repeat("ab", 32)), filepath.Join(dir, strings.Repeat("cd", 32))
	foreign := filepath.Join(dir, "photos")
	kernel, _ := s.Find(KernelName)
	half := filepath.Join(dir, kernel.SHA256, ".new-1")
	for _, p := range []string{filepath.Join(old, "vmlinuz"), filepath.Join(recent, "vmlinuz"), filepath.Join(foreign, "x"), half} {
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	long := time.Now().Add(-2 * unused)
	for _, p := range []string{old, foreign, half} {
		if err := os.Chtimes(p, long, long); err != nil {
			t.Fatal(err)
		}
	}
	extract(t, s, dir)
	for p, want := range map[string]bool{old: false, half: false, recent: true, foreign: true} {
		if _, err := os.Stat(p); (err == nil) != want {
			t.Errorf("%s: %v", p, err)
		}
	}
}

func TestExtractErrors(t *testing.T) {
	t.Run("other contents than the manifest says", func(t *testing.T) {
		fsys, dir := sample(t), t.TempDir()
		fsys[InitrdName].Data[0] ^= 1
		_, err := open(t, fsys).Extract(dir)
		if err == nil || !strings.Contains(err.Error(), "extract initramfs.cpio.zst: contents have SHA-256") {
			t.Errorf("got the error %v", err)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "*", ".*")); left != nil {
			t.Errorf("left behind: %v", left)
		}
	})
	t.Run("a file in the way", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(dir, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := open(t, sample(t)).Extract(dir); !errors.Is(err, unix.ENOTDIR) {
			t.Errorf("got the error %v", err)
		}
	})
	t.Run("full disk", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("needs root to mount a small file system")
		}
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
			t.Skip("cannot mount:", err)
		}
		defer unix.Unmount(dir, unix.MNT_DETACH)
		noise := make([]byte, 1<<20)
		_, _ = rand.NewChaCha8([32]byte{}).Read(noise)
		sum := sha256.Sum256(noise)
		fsys := fstest.MapFS{"big": {Data: noise}}
		text, err := json.Marshal(manifest{ManifestSchema, []Image{{Name: "big", Size: 1 << 20, SHA256: hex.EncodeToString(sum[:])}}})
		if err != nil {
			t.Fatal(err)
		}
		fsys[ManifestName] = &fstest.MapFile{Data: text}
		_, err = open(t, fsys).Extract(dir)
		if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "free some space below "+dir) {
			t.Errorf("got the error %v", err)
		}
		files, _ := filepath.Glob(filepath.Join(dir, "*", "*"))
		hidden, _ := filepath.Glob(filepath.Join(dir, "*", ".*"))
		if files != nil || hidden != nil {
			t.Errorf("left on the full disk: %v %v", files, hidden)
		}
	})
}

func TestFS(t *testing.T) {
	e := extract(t, open(t, sample(t)), t.TempDir())
	fsys := e.FS()
	f, err := fsys.Open(UndionlyName)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, ok := f.(io.ReadSeeker); !ok {
		t.Error("a boot program cannot be read from the middle")
	}
	content, err := io.ReadAll(f)
	if err != nil || string(content) != "content of "+UndionlyName {
		t.Errorf("got %q, %v", content, err)
	}
	for _, name := range []string{KernelName, InitrdName, "nothing", ".", "..", "../" + UndionlyName, "/" + UndionlyName, ""} {
		if f, err := fsys.Open(name); err == nil {
			f.Close()
			t.Errorf("%q can be opened", name)
		}
	}
	if err := os.Remove(e.Path(UndionlyName)); err != nil {
		t.Fatal(err)
	}
	if _, err := fsys.Open(UndionlyName); err == nil || !strings.Contains(err.Error(), "start ecboot again") {
		t.Errorf("got the error %v", err)
	}
}

// The images that this very test binary carries, if it does.
func TestDefault(t *testing.T) {
	s, err := Default()
	if errors.Is(err, ErrNoAssets) {
		t.Skip("needs the images: make assets")
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{KernelName, InitrdName, UndionlyName, SNPOnlyName, IPXEEFIName, IPXELinuxName} {
		if i, ok := s.Find(name); !ok || i.Origin == "" || i.Licence == "" {
			t.Errorf("%s is described as %+v, %v", name, i, ok)
		}
	}
	e := extract(t, s, t.TempDir())
	for name, magic := range map[string]struct {
		offset int
		text   string
	}{
		KernelName:  {0x202, "HdrS"},
		InitrdName:  {0, "\x28\xb5\x2f\xfd"},
		SNPOnlyName: {0, "MZ"},
	} {
		content, err := os.ReadFile(e.Path(name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(content[magic.offset:], []byte(magic.text)) {
			t.Errorf("%s does not look like one", name)
		}
	}
}
