package initramfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// layersOnly is a spec that needs no compiler: a layer with an /init.
func layersOnly(t *testing.T) Spec {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "init"), "#!/bin/sh\n", 0o755)
	return Spec{NoGuest: true, Layers: []string{dir}}
}

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func mustBuild(t *testing.T, spec Spec, opts Options) Image {
	t.Helper()
	img, err := Build(t.Context(), spec, opts)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func listed(t *testing.T, path string) map[string]Entry {
	t.Helper()
	entries, err := List(path)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]Entry{}
	for _, e := range entries {
		m[e.Name] = e
	}
	return m
}

// A real build, twice in different places: this is what reproducible means.
func TestBuildCommands(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles u-root commands")
	}
	needGo(t)
	spec := Spec{Commands: []string{"ls", "gosh"}}
	a := mustBuild(t, spec, Options{CacheDir: t.TempDir()})
	again := Options{CacheDir: filepath.Join(t.TempDir(), "elsewhere")}
	t.Chdir(t.TempDir())
	b := mustBuild(t, spec, again)
	if a.SHA256 != b.SHA256 {
		t.Errorf("two builds of one spec differ: %s and %s", a.Path, b.Path)
	}
	c := mustBuild(t, spec, again)
	if !c.Cached || c.Path != b.Path {
		t.Errorf("the second build of a spec gave %+v, want %s out of the cache", c, b.Path)
	}
	files := listed(t, b.Path)
	for name, target := range map[string]string{"bbin/ls": "bb", "bbin/init": "bb", "bin/sh": "../bbin/gosh"} {
		if files[name].Target != target {
			t.Errorf("/%s is a link to %q, want %q", name, files[name].Target, target)
		}
	}
	for _, name := range []string{"init", "bbin/bb"} {
		if f := files[name]; f.Mode != 0o755 || f.Size < 1<<20 {
			t.Errorf("/%s is %v with %d bytes, want a program", name, f.Mode, f.Size)
		}
	}
	left, err := os.ReadDir(again.CacheDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		if e.Name() != "lock" && e.Name() != filepath.Base(b.Path) {
			t.Errorf("left in the cache: %s", e.Name())
		}
	}
}

func needGo(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("needs the program go")
	}
}

func TestBuildIsReproducible(t *testing.T) {
	for _, comp := range []Compression{Zstd, Gzip, None} {
		t.Run(string(comp), func(t *testing.T) {
			var sums []string
			for i := range 2 {
				spec := layersOnly(t)
				spec.Compression = comp
				// Times, and the order in which files came to be, must not show.
				for j := range 20 {
					name := filepath.Join(spec.Layers[0], fmt.Sprint("f", (j*7+i*3)%20))
					write(t, name, strings.Repeat(filepath.Base(name), 1000), 0o644)
					if err := os.Chtimes(name, time.Unix(int64(i), 0), time.Unix(int64(i), 0)); err != nil {
						t.Fatal(err)
					}
				}
				img := mustBuild(t, spec, Options{CacheDir: t.TempDir()})
				sums = append(sums, img.SHA256)
				for _, e := range listed(t, img.Path) {
					if e.MTime.Unix() != 0 {
						t.Errorf("%s has the time %v", e.Name, e.MTime)
					}
				}
			}
			if sums[0] != sums[1] {
				t.Error("two builds of the same content differ")
			}
		})
	}
}

func TestBuildOrderOfPrecedence(t *testing.T) {
	spec := layersOnly(t)
	second, third := t.TempDir(), t.TempDir()
	write(t, filepath.Join(spec.Layers[0], "etc/both"), "first", 0o600)
	write(t, filepath.Join(spec.Layers[0], "was-dir/file"), "gone", 0o644)
	write(t, filepath.Join(second, "etc/both"), "second!", 0o640)
	write(t, filepath.Join(second, "was-dir"), "a file now", 0o644)
	if err := os.Symlink("../init", filepath.Join(second, "etc/link")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(third, "dir/deep/file"), "x", 0o755)
	spec.Layers = append(spec.Layers, second)
	spec.Files = map[string]string{
		"/opt/tree":   filepath.Join(third, "dir"),
		"etc/hosts":   filepath.Join(third, "dir/deep/file"),
		"a/b/c/alone": filepath.Join(third, "dir/deep/file"),
	}
	files := listed(t, mustBuild(t, spec, Options{CacheDir: t.TempDir()}).Path)
	for name, want := range map[string]Entry{
		"init":               {Mode: 0o755, Size: 10},
		"etc/both":           {Mode: 0o640, Size: 7},
		"was-dir":            {Mode: 0o644, Size: 10},
		"etc/link":           {Mode: fs.ModeSymlink | 0o777, Size: 7, Target: "../init"},
		"opt":                {Mode: fs.ModeDir | 0o755},
		"opt/tree/deep/file": {Mode: 0o755, Size: 1},
		"etc/hosts":          {Mode: 0o755, Size: 1},
		"a/b/c":              {Mode: fs.ModeDir | 0o755},
		"a/b/c/alone":        {Mode: 0o755, Size: 1},
		"dev/console":        {Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Major: 5, Minor: 1},
		"tmp":                {Mode: fs.ModeDir | fs.ModeSticky | 0o777},
	} {
		got, ok := files[name]
		if !ok {
			t.Errorf("/%s is missing", name)
			continue
		}
		want.Name, want.MTime = name, time.Unix(0, 0).UTC()
		if got != want {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
	if _, ok := files["was-dir/file"]; ok {
		t.Error("a directory that became a file kept its content")
	}
}

func TestBuildNamesEveryParentFirst(t *testing.T) {
	spec := layersOnly(t)
	write(t, filepath.Join(spec.Layers[0], "x/y/z"), "", 0o644)
	write(t, filepath.Join(spec.Layers[0], "x-y"), "", 0o644)
	entries, err := List(mustBuild(t, spec, Options{CacheDir: t.TempDir()}).Path)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{".": true}
	for _, e := range entries {
		if !seen[filepath.Dir(e.Name)] {
			t.Errorf("%s comes before its directory", e.Name)
		}
		if seen[e.Name] {
			t.Errorf("%s comes twice", e.Name)
		}
		seen[e.Name] = true
	}
}

// An archive made by cpio, with owners, a device and hard links, as a layer.
func TestArchiveLayer(t *testing.T) {
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("needs the program cpio")
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "one"), "content", 0o755)
	for _, name := range []string{"two", "three"} {
		if err := os.Link(filepath.Join(dir, "one"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("cpio", "-o", "-H", "newc", "--quiet", "-R", "7:9")
	cmd.Dir = dir
	cmd.Stdin = strings.NewReader(".\none\ntwo\nthree\n")
	archive, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(t.TempDir(), "layer.cpio")
	write(t, plain, string(archive), 0o644)
	for _, comp := range []Compression{None, Gzip, Zstd} {
		t.Run(string(comp), func(t *testing.T) {
			layer := filepath.Join(t.TempDir(), "layer")
			write(t, layer, string(compressed(t, comp, archive)), 0o644)
			spec := layersOnly(t)
			spec.Layers = append(spec.Layers, layer)
			files := listed(t, mustBuild(t, spec, Options{CacheDir: t.TempDir()}).Path)
			for _, name := range []string{"one", "two", "three"} {
				if e := files[name]; e.Size != 7 || e.UID != 7 || e.GID != 9 || e.Mode != 0o755 {
					t.Errorf("%s is %+v, want the 7 bytes of user 7, group 9", name, e)
				}
			}
		})
	}
}

func compressed(t *testing.T, comp Compression, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := comp.writer(&b, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestCache(t *testing.T) {
	spec := layersOnly(t)
	opts := Options{CacheDir: t.TempDir()}
	first := mustBuild(t, spec, opts)
	if first.Cached {
		t.Error("the first build came out of an empty cache")
	}
	if img := mustBuild(t, spec, opts); !img.Cached || img.Path != first.Path || img.SHA256 != first.SHA256 || img.Size != first.Size {
		t.Errorf("the second build gave %+v, want %+v out of the cache", img, first)
	}

	t.Run("content of a layer", func(t *testing.T) {
		path := filepath.Join(spec.Layers[0], "init")
		write(t, path, "#!/bin/SH\n", 0o755) // same length
		if img := mustBuild(t, spec, opts); img.Cached || img.SHA256 == first.SHA256 {
			t.Error("a change was not noticed")
		}
		write(t, path, "#!/bin/sh\n", 0o755)
		if img := mustBuild(t, spec, opts); !img.Cached || img.SHA256 != first.SHA256 {
			t.Error("the first state was not found again")
		}
	})
	t.Run("mode of a file", func(t *testing.T) {
		path := filepath.Join(spec.Layers[0], "init")
		if err := os.Chmod(path, 0o711); err != nil {
			t.Fatal(err)
		}
		defer os.Chmod(path, 0o755)
		if img := mustBuild(t, spec, opts); img.Cached {
			t.Error("a change was not noticed")
		}
	})
	for name, damage := range map[string]func(path string) error{
		"truncated": func(p string) error { return os.Truncate(p, 10) },
		"emptied":   func(p string) error { return os.Truncate(p, 0) },
		"one bit": func(p string) error {
			content, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			content[len(content)/2] ^= 1
			return os.WriteFile(p, content, 0o644)
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := damage(first.Path); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			img := mustBuild(t, spec, Options{CacheDir: opts.CacheDir, Logger: slog.New(slog.NewTextHandler(&log, nil))})
			if img.Cached || img.SHA256 != first.SHA256 {
				t.Errorf("got %+v, want a new build of %s", img, first.SHA256)
			}
			if !strings.Contains(log.String(), "damaged") {
				t.Errorf("nothing was said about the damage: %s", &log)
			}
		})
	}
	t.Run("work of a killed build", func(t *testing.T) {
		stale := filepath.Join(opts.CacheDir, "work-123")
		write(t, filepath.Join(stale, "image"), "half", 0o644)
		other := layersOnly(t)
		other.Compression = None
		mustBuild(t, other, opts)
		if _, err := os.Stat(stale); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", stale, err)
		}
	})
}

func TestCacheLimits(t *testing.T) {
	opts := Options{CacheDir: t.TempDir(), MaxEntries: 2}
	spec := layersOnly(t)
	var paths []string
	for i, comp := range []Compression{Zstd, Gzip, None} {
		spec.Compression = comp
		img := mustBuild(t, spec, opts)
		// As if an hour had passed between the builds.
		used := time.Now().Add(time.Duration(i-3) * time.Hour)
		if err := os.Chtimes(img.Path, used, used); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, img.Path)
	}
	exists := func(p string) bool { _, err := os.Stat(p); return err == nil }
	if got := []bool{exists(paths[0]), exists(paths[1]), exists(paths[2])}; !slices.Equal(got, []bool{false, true, true}) {
		t.Errorf("kept %v of three archives, want the newest two", got)
	}
	opts.MaxBytes = 1
	spec.Level, spec.Compression = 1, Gzip
	last := mustBuild(t, spec, opts)
	left, _ := filepath.Glob(filepath.Join(opts.CacheDir, "*.cpio*"))
	if !slices.Equal(left, []string{last.Path}) {
		t.Errorf("kept %v, want the one that was just built and nothing else", left)
	}
}

func TestConcurrentBuilds(t *testing.T) {
	spec := layersOnly(t)
	opts := Options{CacheDir: t.TempDir()}
	type result struct {
		img Image
		err error
	}
	results := make(chan result)
	for range 4 {
		go func() {
			img, err := Build(context.Background(), spec, opts)
			results <- result{img, err}
		}()
	}
	built := 0
	for range 4 {
		r := <-results
		if r.err != nil {
			t.Error(r.err)
		}
		if !r.img.Cached {
			built++
		}
	}
	if built != 1 {
		t.Errorf("%d of four builds at once did the work, want 1", built)
	}
}

func TestBuildWaitsForTheLock(t *testing.T) {
	opts := Options{CacheDir: t.TempDir()}
	c, err := openCache(opts)
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := c.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	opts.Logger = slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
		if strings.Contains(string(p), "waiting") {
			cancel()
		}
		return len(p), nil
	}), nil))
	if _, err := Build(ctx, layersOnly(t), opts); !errors.Is(err, context.Canceled) {
		t.Errorf("a build behind another one gave %v after its context was cancelled", err)
	}
	unlock()
	mustBuild(t, layersOnly(t), Options{CacheDir: opts.CacheDir})
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a small file system")
	}
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=256k"); err != nil {
		t.Skip("cannot mount:", err)
	}
	defer unix.Unmount(small, unix.MNT_DETACH)
	spec := layersOnly(t)
	noise := make([]byte, 1<<20)
	r := rand.NewChaCha8([32]byte{})
	_, _ = r.Read(noise)
	write(t, filepath.Join(spec.Layers[0], "noise"), string(noise), 0o644)
	_, err := Build(t.Context(), spec, Options{CacheDir: small})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "free some space below "+small) {
		t.Errorf("got the error %v", err)
	}
	left, _ := os.ReadDir(small)
	if len(left) != 1 || left[0].Name() != "lock" {
		t.Errorf("left on the full disk: %v", left)
	}
}

func TestBuildErrors(t *testing.T) {
	good := layersOnly(t)
	socketDir := t.TempDir()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(socketDir, "s")}); err != nil {
		t.Fatal(err)
	}
	notCPIO := filepath.Join(t.TempDir(), "file")
	write(t, notCPIO, "no archive", 0o644)
	linkDir := t.TempDir()
	if err := os.Symlink("/elsewhere", filepath.Join(linkDir, "bin")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		spec Spec
		want string
	}{
		{"architecture", Spec{Arch: "sparc"}, `architecture "sparc": want amd64 or arm64`},
		{"compression", Spec{Compression: "lzma"}, `compression "lzma": want zstd, gzip or none`},
		{"level", Spec{Compression: Gzip, Level: 10}, "compression level 10: gzip has 0 to 9"},
		{"level of none", Spec{Compression: None, Level: 1}, "compression level 1: none has 0 to 0"},
		{"no such layer", Spec{NoGuest: true, Layers: []string{"/does/not/exist"}}, "/does/not/exist: no such file"},
		{"no such file", Spec{NoGuest: true, Files: map[string]string{"a": "/does/not/exist"}}, "/does/not/exist: no such file"},
		{"outside", Spec{NoGuest: true, Files: map[string]string{"../a": notCPIO}}, `"../a" is not a path inside the archive`},
		{"twice", Spec{NoGuest: true, Files: map[string]string{"a": notCPIO, "/a": notCPIO}}, "two files for /a"},
		{"no init", Spec{NoGuest: true}, "nothing to run as /init"},
		{"layer of another kind", Spec{NoGuest: true, Layers: []string{notCPIO}}, "file: neither a cpio archive nor a compressed one"},
		{"device as layer", Spec{NoGuest: true, Layers: []string{"/dev/null"}}, "a layer is a cpio archive or a directory"},
		{"socket", Spec{NoGuest: true, Layers: []string{good.Layers[0], socketDir}}, "sockets cannot be in an initramfs"},
		{"below a link", Spec{NoGuest: true, Layers: []string{good.Layers[0], linkDir}, Files: map[string]string{"bin/x": notCPIO}},
			"/bin/x cannot lie in /bin, which is not a directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			_, err := Build(t.Context(), tt.spec, Options{CacheDir: dir})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got the error %v, want %q", err, tt.want)
			}
			for _, left := range []string{"work-*", "*.cpio*"} {
				if found, _ := filepath.Glob(filepath.Join(dir, left)); found != nil {
					t.Errorf("left behind: %v", found)
				}
			}
		})
	}
	if _, err := Build(t.Context(), good, Options{}); err == nil {
		t.Error("a build without a cache directory gave no error")
	}
}

func TestMissingGo(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := Build(t.Context(), DefaultSpec(), Options{CacheDir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "install Go") {
		t.Errorf("got the error %v", err)
	}
	// What compiles nothing needs no compiler.
	mustBuild(t, layersOnly(t), Options{CacheDir: t.TempDir()})
}

func TestNoNetwork(t *testing.T) {
	needGo(t)
	t.Setenv("GOMODCACHE", t.TempDir())
	t.Setenv("GOPROXY", "off")
	dir := t.TempDir()
	_, err := Build(t.Context(), Spec{NoGuest: true, Commands: []string{"ls"}}, Options{CacheDir: dir})
	if err == nil || !strings.Contains(err.Error(), "connect this machine to a network") {
		t.Errorf("got the error %v", err)
	}
	if found, _ := filepath.Glob(filepath.Join(dir, "work-*")); found != nil {
		t.Errorf("left behind: %v", found)
	}
}

func TestCancel(t *testing.T) {
	needGo(t)
	ctx, cancel := context.WithCancel(t.Context())
	dir := t.TempDir()
	log := slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
		cancel() // the first thing said is that a compiler starts
		return len(p), nil
	}), &slog.HandlerOptions{Level: slog.LevelDebug}))
	if _, err := Build(ctx, Spec{}, Options{CacheDir: dir, Logger: log}); !errors.Is(err, context.Canceled) {
		t.Errorf("got the error %v", err)
	}
	if found, _ := filepath.Glob(filepath.Join(dir, "work-*")); found != nil {
		t.Errorf("left behind: %v", found)
	}
}
