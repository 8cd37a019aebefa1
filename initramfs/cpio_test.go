package initramfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// rawRecord is a newc record as a hostile or foreign writer may make it.
func rawRecord(name string, mode uint32, content string) string {
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		1, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
	return padded(head+name+"\x00") + padded(content)
}

func padded(s string) string { return s + strings.Repeat("\x00", int(pad4(int64(len(s))))-len(s)) }

func archiveOf(records ...string) string {
	return strings.Join(records, "") + rawRecord(trailer, 0, "")
}

func TestScan(t *testing.T) {
	a := archiveOf(rawRecord("a", modeFile|0o644, "12345"))
	b := archiveOf(rawRecord("dir", modeDir|0o755, ""), rawRecord("dir/b", modeLink|0o777, "../a"))
	zeros := strings.Repeat("\x00", 512)
	z := func(c Compression, s string) string { return string(compressed(t, c, []byte(s))) }
	for _, tt := range []struct {
		name, in string
		want     []string // the last may be an error
	}{
		{"empty", "", nil},
		{"zeros", zeros, nil},
		{"one", a, []string{"a"}},
		{"without a trailer", rawRecord("a", modeFile, "1234"), []string{"a"}},
		{"without the last padding", strings.TrimRight(rawRecord("a", modeFile, "12345"), "\x00"), []string{"a"}},
		{"two with zeros between", a + zeros + b + zeros, []string{"a", "dir", "dir/b"}},
		{"gzip", z(Gzip, a), []string{"a"}},
		{"zstd", z(Zstd, a+b), []string{"a", "dir", "dir/b"}},
		{"microcode, then zstd", a + zeros + z(Zstd, b), []string{"a", "dir", "dir/b"}},
		{"compressed members one after the other", z(Zstd, a) + z(Gzip, b) + z(Zstd, a) + zeros + b,
			[]string{"a", "dir", "dir/b", "a", "dir", "dir/b"}},
		{"crc format", strings.Replace(a, "070701", "070702", 1), []string{"a"}},
		{"old format", "070707" + a, []string{"error: an old cpio format (odc); the kernel reads only newc"}},
		{"text", "hello, world", []string{"error: neither a cpio archive nor a compressed one"}},
		{"short", "0707", []string{"error: neither a cpio archive nor a compressed one"}},
		{"xz", "\xfd7zXZ\x00rest", []string{"error: compressed by xz; unpack it, or use zstd or gzip"}},
		{"text in zstd", z(Zstd, "hello, world"), []string{"error: something other than a cpio archive in the compressed data"}},
		{"truncated header", a[:60], []string{"error: record 0: unexpected EOF"}},
		{"truncated name", a[:111], []string{"error: record 1: unexpected EOF"}},
		{"truncated content", a[:114], []string{"a", "error: a: unexpected EOF"}},
		{"truncated zstd", z(Zstd, a)[:20], []string{"error: unexpected EOF"}},
		{"nothing but zstd's magic number", zstdMagic, []string{"error: unexpected EOF"}},
		{"nothing but gzip's magic number", gzipMagic + "\x08\x00", []string{"error: unexpected EOF"}},
		{"huge name", strings.Replace(a, "00000002", "ffffffff", 1), []string{"error: record 0: a file name of 4294967295 bytes"}},
		{"no name", strings.Replace(a, "00000002", "00000000", 1), []string{"error: record 0: a file name of 0 bytes"}},
		{"name without end", strings.Replace(a, "a\x00", "aa", 1), []string{"error: record 1: a file name without an end"}},
		{"huge link", strings.Replace(rawRecord("l", modeLink, "1234"), "00000004", "7fffffff", 1),
			[]string{"error: record 0: a symbolic link of 2147483647 bytes"}},
		{"no number", strings.Replace(a, "00000002", "0000+002", 1), []string{"error: record 0: not a cpio header"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			err := scan(strings.NewReader(tt.in), func(_ header, name string, data io.Reader) error {
				got = append(got, name)
				_, err := io.Copy(io.Discard, data)
				return err
			})
			if err != nil {
				got = append(got, "error: "+err.Error())
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

func TestScanReadsWhatIsLeft(t *testing.T) {
	in := archiveOf(rawRecord("a", modeFile, strings.Repeat("x", 99)), rawRecord("b", modeFile, "y"))
	var got []string
	err := scan(strings.NewReader(in), func(_ header, name string, data io.Reader) error {
		got = append(got, name)
		_, err := io.ReadFull(data, make([]byte, 1)) // and no more
		return err
	})
	if err != nil || !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestScanStopsAtTheVisitorsError(t *testing.T) {
	want := errors.New("stop")
	err := scan(strings.NewReader(archiveOf(rawRecord("a", modeFile, ""))), func(header, string, io.Reader) error { return want })
	if !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
}

// Frames in each of the header forms of RFC 8878 must be measured exactly.
func TestZstdFrameEnds(t *testing.T) {
	content := archiveOf(rawRecord("a", modeFile, strings.Repeat("0123456789abcdef", 40000)))
	for _, size := range []int{len(content), 0} {
		frame := compressed(t, Zstd, []byte(content)[:size])
		for _, tail := range []string{"", "\x00\x00\x00\x00", content} {
			err := scan(io.MultiReader(bytes.NewReader(frame), strings.NewReader(tail)),
				func(_ header, _ string, _ io.Reader) error { return nil })
			if err != nil {
				t.Errorf("frame of %d bytes with %d behind: %v", size, len(tail), err)
			}
		}
	}
	for descriptor, want := range map[byte]int64{0x00: 6, 0x20: 6, 0x04: 6, 0x60: 7, 0xa4: 9, 0xe3: 17, 0x40: 8, 0xc1: 15} {
		if got := zstdHeaderLen(descriptor); got != want {
			t.Errorf("header with descriptor %#x has %d bytes, want %d", descriptor, got, want)
		}
	}
}

func TestListMissing(t *testing.T) {
	if _, err := List(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func FuzzScan(f *testing.F) {
	a := archiveOf(rawRecord("a", modeFile|0o644, "12345"), rawRecord("l", modeLink|0o777, "target"))
	f.Add([]byte(a))
	f.Add([]byte(a + "\x00\x00\x00\x00" + a))
	for _, c := range []Compression{Gzip, Zstd} {
		var b bytes.Buffer
		z, err := c.writer(&b, 1)
		if err != nil {
			f.Fatal(err)
		}
		if _, err := io.WriteString(z, a); err != nil {
			f.Fatal(err)
		}
		if err := z.Close(); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
		f.Add(append([]byte(a), b.Bytes()...))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		files := 0
		// Compressed data may hold much; the fuzzer needs no more than this.
		enough := errors.New("enough")
		err := scan(bytes.NewReader(in), func(h header, name string, data io.Reader) error {
			if files++; files > 1000 {
				return enough
			}
			e, err := h.entry(name, data)
			if err != nil {
				return err
			}
			if len(e.Name) > maxName || len(e.Target) > maxName {
				t.Errorf("a name of %d bytes, a target of %d", len(e.Name), len(e.Target))
			}
			return nil
		})
		_ = err
	})
}
