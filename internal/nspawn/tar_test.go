package nspawn

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"
)

var longAgo = time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)

// entry is a header with its content.
type entry struct {
	tar.Header
	content string
}

func file(name, content string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, content}
}

func link(kind byte, name, target string) entry {
	return entry{tar.Header{Typeflag: kind, Name: name, Linkname: target, Mode: 0o777}, ""}
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		e.Size, e.Format, e.ModTime = int64(len(e.content)), tar.FormatPAX, longAgo
		if e.Uid == 0 {
			// Without root, too.
			e.Uid, e.Gid = os.Geteuid(), os.Getegid()
		}
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Skip(err) // of the fuzzer's making
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func writeFile(t testing.TB, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "root")
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestUnpackKeepsWhatFilesAre(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to give files away")
	}
	path := writeFile(t, archive(t,
		entry{tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755}, ""},
		entry{tar.Header{Typeflag: tar.TypeDir, Name: "./tmp/", Mode: 0o1777}, ""},
		entry{tar.Header{Typeflag: tar.TypeReg, Name: "./bin/su", Mode: 0o4755, Uid: 7, Gid: 8, PAXRecords: map[string]string{
			"SCHILY.xattr.user.note": "hi", "SCHILY.xattr.trusted.overlay.opaque": "y",
			"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}}, "elf"},
		link(tar.TypeLink, "bin/sudo", "./bin/su"),
		link(tar.TypeSymlink, "lib", "/usr/lib"),
		entry{tar.Header{Typeflag: tar.TypeFifo, Name: "run/initctl", Mode: 0o600}, ""},
		entry{tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3}, ""},
		file("/etc/motd", "first"), file("etc/motd", "second"),
	))
	dir, err := Unpack(t.Context(), path, filepath.Join(t.TempDir(), "cache"))
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) (st unix.Stat_t) {
		if err := unix.Lstat(filepath.Join(dir, name), &st); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		return st
	}
	su := at("bin/su")
	if su.Mode != unix.S_IFREG|0o4755 || su.Uid != 7 || su.Gid != 8 || su.Mtim.Sec != longAgo.Unix() || su.Ino != at("bin/sudo").Ino {
		t.Errorf("bin/su %+v", su)
	}
	if tmp := at("tmp"); tmp.Mode != unix.S_IFDIR|0o1777 || tmp.Mtim.Sec != longAgo.Unix() {
		t.Errorf("tmp %+v", tmp)
	}
	if at("run/initctl").Mode != unix.S_IFIFO|0o600 {
		t.Error("the fifo is something else")
	}
	if to, err := os.Readlink(filepath.Join(dir, "lib")); to != "/usr/lib" {
		t.Errorf("lib leads to %q, %v", to, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "etc/motd")); string(b) != "second" {
		t.Errorf("etc/motd is %q, %v", b, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "dev/null")); err == nil {
		t.Error("there is a device")
	}
	buf := make([]byte, 64)
	for name, want := range map[string]int{"user.note": 2, "security.capability": 20, "trusted.overlay.opaque": 0} {
		n, err := unix.Lgetxattr(filepath.Join(dir, "bin/su"), name, buf)
		if max(n, 0) != want && !errors.Is(err, unix.ENOTSUP) {
			t.Errorf("attribute %s has %d bytes, want %d: %v", name, n, want, err)
		}
	}
}

// hostile are archives that try to write outside, each with words of the error.
var hostile = []struct {
	name    string
	entries []entry
	want    string
}{
	{"up", []entry{file("../evil", "x")}, "leads upwards"},
	{"up and down", []entry{file("a/../../evil", "x")}, "leads upwards"},
	{"up at the end", []entry{{tar.Header{Typeflag: tar.TypeDir, Name: "a/..", Mode: 0o755}, ""}}, "leads upwards"},
	{"through a link", []entry{link(tar.TypeSymlink, "a", ".."), file("a/evil", "x")}, "escapes"},
	{"through an absolute link", []entry{link(tar.TypeSymlink, "a", "/"), file("a/evil", "x")}, "escapes"},
	{"through two links", []entry{link(tar.TypeSymlink, "a", "."), link(tar.TypeSymlink, "a/b", ".."), file("b/evil", "x")}, "escapes"},
	{"hard link outside", []entry{link(tar.TypeLink, "passwd", "../outside")}, "leads upwards"},
	{"hard link through a link", []entry{link(tar.TypeSymlink, "a", ".."), link(tar.TypeLink, "b", "a/outside")}, "escapes"},
	{"directory below a link", []entry{link(tar.TypeSymlink, "a", ".."), file("a/b/evil", "x")}, "escapes"},
	{"fifo through a link", []entry{link(tar.TypeSymlink, "a", ".."), {tar.Header{Typeflag: tar.TypeFifo, Name: "a/evil"}, ""}}, "escapes"},
	{"link as root", []entry{link(tar.TypeSymlink, ".", "..")}, "must be a directory"},
}

func TestUnpackStaysInside(t *testing.T) {
	for _, test := range hostile {
		t.Run(test.name, func(t *testing.T) {
			err := unpackHostile(t, archive(t, test.entries...))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
}

// unpackHostile unpacks an archive and looks whether anything beside its
// directory has changed.
func unpackHostile(t *testing.T, archive []byte) error {
	t.Helper()
	top := t.TempDir()
	outside := filepath.Join(top, "outside")
	if err := os.WriteFile(outside, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	unpacking := unpackInto(t.Context(), bytes.NewReader(archive), filepath.Join(top, "in"))
	var st unix.Stat_t
	if err := unix.Lstat(outside, &st); err != nil || st.Mode != unix.S_IFREG|0o600 || st.Nlink != 1 {
		t.Errorf("the file beside it: %+v, %v", st, err)
	}
	if b, _ := os.ReadFile(outside); string(b) != "untouched" {
		t.Errorf("the file beside it holds %q", b)
	}
	if entries, err := os.ReadDir(top); err != nil || len(entries) > 2 {
		t.Errorf("beside it lie %v, %v", entries, err)
	}
	return unpacking
}

func FuzzUnpackStaysInside(f *testing.F) {
	for _, test := range hostile {
		e := append(append([]entry{}, test.entries...), make([]entry, 2)...)
		f.Add(e[0].Typeflag, e[0].Name, e[0].Linkname, e[1].Typeflag, e[1].Name, e[1].Linkname, e[2].Typeflag, e[2].Name, e[2].Linkname)
	}
	f.Fuzz(func(t *testing.T, kind0 byte, name0, to0 string, kind1 byte, name1, to1 string, kind2 byte, name2, to2 string) {
		_ = unpackHostile(t, archive(t, link(kind0, name0, to0), link(kind1, name1, to1), link(kind2, name2, to2)))
	})
}

func FuzzEntryPath(f *testing.F) {
	for _, name := range []string{"./etc/passwd", "/etc", "..", "a/../b", ".", "", "//", "a//b/", "a\x00b", "..."} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		got, err := entryPath(name)
		if err == nil && !filepath.IsLocal(got) {
			t.Errorf("%q becomes %q, which leads outside", name, got)
		}
	})
}

func TestUnpackOnce(t *testing.T) {
	plain := archive(t, file("etc/os-release", "ID=test\n"))
	archives := map[string][]byte{"plain": plain}
	for name, compress := range map[string]func(io.Writer) (io.WriteCloser, error){
		"gzip": func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil },
		"zstd": func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) },
		"xz":   func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) },
	} {
		var b bytes.Buffer
		w, err := compress(&b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		archives[name] = b.Bytes()
	}
	for name, content := range archives {
		t.Run(name, func(t *testing.T) {
			path, cache := writeFile(t, content), filepath.Join(t.TempDir(), "cache")
			if k, err := kindOf(path); k != tarball {
				t.Fatalf("it is a %s, %v", k, err)
			}
			// What a killed process has left goes.
			left := filepath.Join(cache, "abc"+partSuffix)
			if err := os.MkdirAll(filepath.Join(left, "sub"), 0o755); err != nil {
				t.Fatal(err)
			}
			dir, err := Unpack(t.Context(), path, cache)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(filepath.Join(dir, "etc/os-release")); string(b) != "ID=test\n" {
				t.Errorf("it holds %q, %v", b, err)
			}
			if _, err := os.Stat(left); err == nil {
				t.Error("a directory that is not whole is still there")
			}
			mark := filepath.Join(dir, "mark")
			if err := os.WriteFile(mark, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			if again, err := Unpack(t.Context(), path, cache); again != dir || err != nil {
				t.Errorf("again: %s, %v", again, err)
			}
			if _, err := os.Stat(mark); err != nil {
				t.Error("it was unpacked twice")
			}
		})
	}
}

func TestUnpackHalf(t *testing.T) {
	whole := archive(t, file("a", strings.Repeat("x", 5000)))
	cache := t.TempDir()
	if _, err := Unpack(t.Context(), writeFile(t, whole[:2000]), cache); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("half an archive: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Unpack(ctx, writeFile(t, whole), cache); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if entries, _ := os.ReadDir(cache); len(entries) != 1 || entries[0].Name() != "lock" {
		t.Errorf("the cache holds %v", entries)
	}
}

func TestRootIsNothing(t *testing.T) {
	for _, content := range []string{"", "#!/bin/sh\n"} {
		if _, err := kindOf(writeFile(t, []byte(content))); err == nil || !strings.Contains(err.Error(), "neither a directory") {
			t.Errorf("%q: %v", content, err)
		}
	}
	if _, err := kindOf(filepath.Join(t.TempDir(), "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
