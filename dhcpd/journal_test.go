package dhcpd

import (
	"bufio"
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/google/go-cmp/cmp"
)

var (
	leaseA = Lease{Addr: ip("10.77.0.50"), MAC: macA, State: Bound, Expires: t0.Add(time.Hour)}
	leaseB = Lease{Addr: ip("10.77.0.52"), MAC: macB, State: Declined, Expires: t0.Add(time.Minute)}

	cmpLeases = cmp.Comparer(func(a, b Lease) bool { return a == b })
)

func openStore(t testing.TB, path string) *FileStore {
	t.Helper()
	s, err := OpenFileStore(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func appendLeases(t testing.TB, s LeaseStore, batch ...Lease) {
	t.Helper()
	if err := s.Append(batch); err != nil {
		t.Fatal(err)
	}
}

func TestStoreKeepsLeases(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases")
	s := openStore(t, path)
	earlier := leaseA
	earlier.MAC = macB
	appendLeases(t, s, earlier, leaseB)
	appendLeases(t, s, leaseA)
	want := []Lease{leaseA, leaseB}
	if diff := cmp.Diff(want, s.Leases(), cmpLeases); diff != "" {
		t.Error(diff)
	}
	if got, err := ReadLeases(path); err != nil || !cmp.Equal(want, got, cmpLeases) {
		t.Errorf("while it is open: %v, %v", got, err)
	}
	s.Close()
	if diff := cmp.Diff(want, openStore(t, path).Leases(), cmpLeases); diff != "" {
		t.Errorf("after a restart: %s", diff)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// Opening has compacted it, and this is what the documentation shows.
	wantText := "ecboot leases 1\n" +
		"cd15d951 10.77.0.50 52:54:00:00:00:0a bound 2026-01-02T04:04:05Z\n" +
		"d7b67363 10.77.0.52 52:54:00:00:00:0b declined 2026-01-02T03:05:05Z\n"
	if diff := cmp.Diff(wantText, string(text)); diff != "" {
		t.Error(diff)
	}
}

func TestStoreIsLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases")
	s := openStore(t, path)
	refused := func(when string) {
		t.Helper()
		if _, err := OpenFileStore(path, nil); err == nil || !strings.Contains(err.Error(), "in use by another ecboot") {
			t.Errorf("%s: got %v", when, err)
		}
	}
	refused("new")
	if err := s.compact(); err != nil {
		t.Fatal(err)
	}
	refused("compacted")
	s.Close()
	openStore(t, path)
}

// Whatever of the last write is missing, everything before it is there.
func TestTornTail(t *testing.T) {
	full := appendRecord(appendRecord([]byte(journalHeader), leaseA), leaseB)
	first := len(appendRecord([]byte(journalHeader), leaseA))
	dir := t.TempDir()
	for n := first; n < len(full); n++ {
		path := filepath.Join(dir, "leases")
		if err := os.WriteFile(path, full[:n], 0o644); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		s, err := OpenFileStore(path, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if diff := cmp.Diff([]Lease{leaseA}, s.Leases(), cmpLeases); diff != "" {
			t.Fatalf("%d bytes: %s", n, diff)
		}
		if said := strings.Contains(log.String(), "incomplete last line"); said != (n > first) {
			t.Errorf("%d bytes: said %q", n, log.String())
		}
		appendLeases(t, s, leaseB)
		s.Close()
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, full) {
			t.Fatalf("%d bytes: afterwards the file is %q, %v", n, got, err)
		}
	}
}

func TestDamageIsNotRepaired(t *testing.T) {
	good := string(appendRecord(appendRecord([]byte(journalHeader), leaseA), leaseB))
	tests := []struct {
		name, text, want string
	}{
		{"a changed byte", strings.Replace(good, "10.77.0.50", "10.77.0.51", 1), ":2: the line does not match its checksum"},
		{"a line in between", strings.Replace(good, "leases 1\n", "leases 1\n\n", 1), ":2: the line is no record"},
		{"zeros", strings.Replace(good, "10.77.0.50", strings.Repeat("\x00", 10), 1), ":2: the line"},
		{"another file", "127.0.0.1 localhost\n", ":1: this is no lease file"},
		{"another version", strings.Replace(good, "leases 1", "leases 2", 1), ":1: this is no lease file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "leases")
			if err := os.WriteFile(path, []byte(tt.text), 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := OpenFileStore(path, nil); err == nil || !strings.Contains(err.Error(), path+tt.want) {
				t.Errorf("got %v, want %s", err, tt.want)
			}
			if _, err := ReadLeases(path); err == nil || !strings.Contains(err.Error(), path+tt.want) {
				t.Errorf("reading: got %v, want %s", err, tt.want)
			}
			if got, _ := os.ReadFile(path); string(got) != tt.text {
				t.Errorf("the file was changed to %q", got)
			}
		})
	}
}

func TestReadLeasesOfNoFile(t *testing.T) {
	if _, err := ReadLeases(filepath.Join(t.TempDir(), "leases")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestCompactionWhileRunning(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases")
	s := openStore(t, path)
	s.limit = 10
	for range 10 {
		appendLeases(t, s, leaseA)
	}
	before, _ := os.Stat(path)
	appendLeases(t, s, leaseB)
	s.background.Wait()
	after, _ := os.Stat(path)
	if after.Size() >= before.Size() || s.lines != 2 {
		t.Errorf("%d bytes became %d, %d lines", before.Size(), after.Size(), s.lines)
	}
	appendLeases(t, s, leaseA)
	if got, err := ReadLeases(path); err != nil || !cmp.Equal([]Lease{leaseA, leaseB}, got, cmpLeases) {
		t.Errorf("got %v, %v", got, err)
	}
}

// What is appended while the file is compacted is in the new one too.
func TestAppendDuringCompaction(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases")
	s := openStore(t, path)
	appendLeases(t, s, leaseA)
	s.compacting = true
	snapshot := s.Leases()
	released := leaseA.released(t0)
	appendLeases(t, s, leaseB)
	appendLeases(t, s, released)
	s.compactBehind(snapshot)
	want := []Lease{released, leaseB}
	if got, err := ReadLeases(path); err != nil || !cmp.Equal(want, got, cmpLeases) || s.lines != 3 {
		t.Errorf("got %v, %v, %d lines", got, err, s.lines)
	}
	appendLeases(t, s, leaseA)
	s.Close()
	if diff := cmp.Diff([]Lease{leaseA, leaseB}, openStore(t, path).Leases(), cmpLeases); diff != "" {
		t.Error(diff)
	}
}

// A write that fails leaves nothing that the next one would trip over.
func TestFullDisk(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	path := filepath.Join(t.TempDir(), "leases")
	s := openStore(t, path)
	appendLeases(t, s, leaseA)

	good := s.file
	s.file = full
	if err := s.Append([]Lease{leaseB}); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("got %v", err)
	}
	if diff := cmp.Diff([]Lease{leaseA}, s.Leases(), cmpLeases); diff != "" {
		t.Error(diff)
	}
	s.file = good
	if _, err := good.WriteAt([]byte("half a rec"), s.size); err != nil {
		t.Fatal(err)
	}
	appendLeases(t, s, leaseB)
	if got, err := ReadLeases(path); err != nil || !cmp.Equal([]Lease{leaseA, leaseB}, got, cmpLeases) {
		t.Errorf("got %v, %v", got, err)
	}
}

// TestKilledServer kills a process that appends leases and says which are
// stored; all of these are there afterwards.
func TestKilledServer(t *testing.T) {
	if path := os.Getenv("ECBOOT_TEST_APPEND"); path != "" {
		s := openStore(t, path)
		for i := 0; ; i++ {
			l := leaseA
			l.Addr = ip("10.0.0.0")
			for range i%1000 + 1 {
				l.Addr = l.Addr.Next()
			}
			l.MAC = boot.MAC{2, byte(i >> 8), byte(i)}
			appendLeases(t, s, l)
			os.Stdout.Write(appendRecord(nil, l))
		}
	}
	path := filepath.Join(t.TempDir(), "leases")
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledServer$")
	cmd.Env = append(os.Environ(), "ECBOOT_TEST_APPEND="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	want := map[string]Lease{}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		l, err := parseRecord(lines.Bytes())
		if err != nil {
			t.Fatalf("%q: %v", lines.Text(), err)
		}
		want[l.Addr.String()] = l
		if len(want) == 200 {
			cmd.Process.Kill()
		}
	}
	cmd.Wait()
	got := map[string]Lease{}
	for _, l := range openStore(t, path).Leases() {
		got[l.Addr.String()] = l
	}
	if len(want) < 200 {
		t.Fatalf("only %d leases were stored", len(want))
	}
	for addr, l := range want {
		if got[addr] != l {
			t.Errorf("%s: got %v, want %v", addr, got[addr], l)
		}
	}
}

func FuzzJournal(f *testing.F) {
	good := appendRecord(appendRecord([]byte(journalHeader), leaseA), leaseB)
	f.Add(good)
	f.Add(good[:len(good)-7])
	f.Add(bytes.Replace(good, []byte("bound"), []byte("found"), 1))
	f.Add([]byte("ecboot"))
	f.Fuzz(func(t *testing.T, data []byte) {
		leases, n, err := parseJournal(data)
		if err != nil || n == 0 {
			return
		}
		again := []byte(journalHeader)
		for _, l := range leases {
			again = appendRecord(again, l)
		}
		if !bytes.Equal(again, data[:n]) {
			t.Errorf("%q was read as %q", data[:n], again)
		}
	})
}
