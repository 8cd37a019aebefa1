package dhcpd

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"golang.org/x/sys/unix"
)

// A lease file is text: a line that says what it is, then a line per change,
// the last one of an address being the one that counts:
//
//	ecboot leases 1
//	cd15d951 10.77.0.50 52:54:00:00:00:0a bound 2026-01-02T04:04:05Z
//
// The first word is the CRC-32C of the others. A change is added with one write
// and is durable before anybody is told. So a crash leaves at most a last line
// that is incomplete and was promised to nobody: it is cut off. Anything else
// that does not check is damage, and is left for a human to look at.
const journalHeader = "ecboot leases 1\n"

// compactAbove is how many more lines than addresses a file may have before it
// is written anew: about two megabytes.
const compactAbove = 32768

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// FileStore is a LeaseStore in a file, which it locks.
type FileStore struct {
	path string
	log  *slog.Logger

	mu    sync.Mutex
	file  *os.File
	size  int64 // of the part of the file that is known to be good
	dirty bool  // there may be more behind it, from a write that went wrong
	named bool  // that the file has the name is durable
	lines int   // records in the file
	limit int   // lines at which to compact
	slack int   // compactAbove
	last  map[netip.Addr]Lease
	// While a new file is written, changes gather here as well.
	compacting bool
	since      []byte
	sinceLines int
	background sync.WaitGroup
}

// OpenFileStore opens the lease file, or makes a new one in a directory that
// must exist, and locks it until Close. Errors of the content name the file and
// the line. A nil logger says nothing.
func OpenFileStore(path string, log *slog.Logger) (*FileStore, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	file, err := openLocked(path)
	if err != nil {
		return nil, err
	}
	// A kill in the middle of a compaction leaves this one.
	os.Remove(path + ".new")
	s := &FileStore{path: path, log: log, file: file, slack: compactAbove, last: map[netip.Addr]Lease{}}
	if err := s.load(); err != nil {
		s.file.Close()
		return nil, err
	}
	return s, nil
}

// openLocked opens and locks the file that has this name. Whoever compacts
// replaces the file, so a lock counts only while the name is still the same
// file's.
func openLocked(path string) (*os.File, error) {
	for {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return nil, fmt.Errorf("lease file: %w", err)
		}
		if err := lock(file); err != nil {
			file.Close()
			return nil, err
		}
		mine, err1 := file.Stat()
		named, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(mine, named) {
			return file, nil
		}
		file.Close()
		if err := errors.Join(err1, err2); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("lease file: %w", err)
		}
	}
}

func lock(file *os.File) error {
	err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("lease file %s is in use by another ecboot: stop that one, or give this one another state directory", file.Name())
	}
	if err != nil {
		return fmt.Errorf("lock lease file %s: %w", file.Name(), err)
	}
	return nil
}

func (s *FileStore) load() error {
	data, err := os.ReadFile(s.path)
	if err != nil {
		return fmt.Errorf("lease file: %w", err)
	}
	leases, good, err := parseJournal(data)
	if err != nil {
		return fmt.Errorf("%s:%w", s.path, err)
	}
	for _, l := range leases {
		s.last[l.Addr] = l
	}
	s.size, s.lines = int64(good), len(leases)
	s.limit = len(s.last) + s.slack
	if torn := len(data) - good; torn > 0 {
		s.dirty = true
		s.log.Warn("cut off an incomplete last line, as a crash leaves it; nobody was told of it", "file", s.path, "line", len(leases)+2, "bytes", torn)
	}
	if good > 0 && !s.dirty && s.lines == len(s.last) {
		return nil
	}
	if err := s.compact(); err != nil {
		if good == 0 {
			return err
		}
		s.log.Warn("the lease file could not be compacted", "error", err)
	}
	return nil
}

// ReadLeases reads the last state of each address from a lease file, sorted by
// address, also while a server has it open. A missing file is an error that is
// fs.ErrNotExist.
func ReadLeases(path string) ([]Lease, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("lease file: %w", err)
	}
	leases, _, err := parseJournal(data)
	if err != nil {
		return nil, fmt.Errorf("%s:%w", path, err)
	}
	last := map[netip.Addr]Lease{}
	for _, l := range leases {
		last[l.Addr] = l
	}
	return sortedLeases(last), nil
}

// Leases implements LeaseStore.
func (s *FileStore) Leases() []Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sortedLeases(s.last)
}

// Append implements LeaseStore: one write and one sync, whatever the number of
// changes.
func (s *FileStore) Append(batch []Lease) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.append(batch); err != nil {
		s.dirty = true
		return fmt.Errorf("lease file: %w", err)
	}
	for _, l := range batch {
		s.last[l.Addr] = l
	}
	if s.lines > s.limit && !s.compacting {
		s.compacting = true
		leases := slices.Collect(maps.Values(s.last))
		s.background.Go(func() { s.compactBehind(leases) })
	}
	return nil
}

func (s *FileStore) append(batch []Lease) error {
	if s.dirty {
		if err := s.file.Truncate(s.size); err != nil {
			return err
		}
		s.dirty = false
	}
	if !s.named {
		if err := syncDir(filepath.Dir(s.path)); err != nil {
			return err
		}
		s.named = true
	}
	b := make([]byte, 0, len(batch)*recordSize)
	for _, l := range batch {
		b = appendRecord(b, l)
	}
	if err := write(s.file, b, s.size); err != nil {
		return err
	}
	s.size += int64(len(b))
	s.lines += len(batch)
	if s.compacting {
		s.since = append(s.since, b...)
		s.sinceLines += len(batch)
	}
	return nil
}

// write makes bytes of a file durable. Its size counts as data for fdatasync;
// the time of the change does not matter.
func write(file *os.File, b []byte, at int64) error {
	if _, err := file.WriteAt(b, at); err != nil {
		return err
	}
	return unix.Fdatasync(int(file.Fd()))
}

// compact replaces the file by one with a line per address.
func (s *FileStore) compact() error {
	file, size, err := s.writeAnew(sortedLeases(s.last))
	if err != nil {
		return err
	}
	return s.replace(file, size, len(s.last))
}

// compactBehind is compact while the server goes on: the leases of one moment
// are written to a new file, then what changed since, and only that keeps Append
// waiting. The changes are stored already: if there is no room for the new file,
// there may be later.
func (s *FileStore) compactBehind(leases []Lease) {
	file, size, err := s.writeAnew(leases)
	s.mu.Lock()
	defer s.mu.Unlock()
	since, lines := s.since, s.sinceLines
	s.compacting, s.since, s.sinceLines = false, nil, 0
	if err == nil {
		if err = write(file, since, size); err != nil {
			file.Close()
			os.Remove(file.Name())
		}
	}
	if err == nil {
		err = s.replace(file, size+int64(len(since)), len(leases)+lines)
	}
	if err != nil {
		s.limit = 2 * s.lines
		s.log.Warn("the lease file could not be compacted", "error", err)
	}
}

// writeAnew writes a file of these leases that has not its name yet.
func (s *FileStore) writeAnew(leases []Lease) (file *os.File, size int64, err error) {
	b := append(make([]byte, 0, len(journalHeader)+len(leases)*recordSize), journalHeader...)
	for _, l := range leases {
		b = appendRecord(b, l)
	}
	file, err = os.OpenFile(s.path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return nil, 0, err
	}
	// Locked before it has the name, so that nobody finds it unlocked.
	err = lock(file)
	if err == nil {
		err = write(file, b, 0)
	}
	if err != nil {
		file.Close()
		os.Remove(file.Name())
		return nil, 0, err
	}
	return file, int64(len(b)), nil
}

// replace gives the new file the name.
func (s *FileStore) replace(file *os.File, size int64, lines int) error {
	if err := os.Rename(file.Name(), s.path); err != nil {
		file.Close()
		os.Remove(file.Name())
		return err
	}
	s.file.Close()
	s.file, s.size, s.dirty, s.named = file, size, false, false
	s.lines, s.limit = lines, len(s.last)+s.slack
	return nil
}

// syncDir makes a rename durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Close unlocks the file. All changes are on disk already.
func (s *FileStore) Close() error {
	s.background.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.file.Close()
}

// recordSize is what a line has at most.
const recordSize = len("cd15d951 255.255.255.255 52:54:00:00:00:0a declined 2026-01-02T04:04:05Z\n")

// appendRecord appends the line of one change.
func appendRecord(b []byte, l Lease) []byte {
	start := len(b)
	b = append(b, "00000000 "...)
	b = l.Addr.AppendTo(b)
	b = append(b, ' ')
	b = append(b, l.MAC.String()...)
	b = append(b, ' ')
	b = append(b, l.State...)
	b = append(b, ' ')
	b = l.Expires.UTC().AppendFormat(b, time.RFC3339)
	sum := crc32.Checksum(b[start+len("00000000 "):], castagnoli)
	hex.Encode(b[start:], binary.BigEndian.AppendUint32(nil, sum))
	return append(b, '\n')
}

// parseRecord is the inverse of appendRecord, and accepts nothing else.
func parseRecord(line []byte) (Lease, error) {
	_, text, _ := strings.Cut(string(line), " ")
	words := strings.Split(text, " ")
	if len(words) != 4 {
		return Lease{}, errors.New("is no record of a lease")
	}
	var l Lease
	var err error
	if l.Addr, err = netip.ParseAddr(words[0]); err != nil || !l.Addr.Is4() {
		return Lease{}, fmt.Errorf("%q is no IPv4 address", words[0])
	}
	if l.MAC, err = boot.ParseMAC(words[1]); err != nil {
		return Lease{}, err
	}
	switch l.State = State(words[2]); l.State {
	case Bound, Released, Declined, Conflict:
	default:
		return Lease{}, fmt.Errorf("%q is no state of a lease", words[2])
	}
	if l.Expires, err = time.Parse(time.RFC3339, words[3]); err != nil {
		return Lease{}, fmt.Errorf("%q is no time", words[3])
	}
	l.Expires = l.Expires.UTC()
	if !bytes.Equal(appendRecord(nil, l), append(bytes.Clone(line), '\n')) {
		return Lease{}, errors.New("does not match its checksum")
	}
	return l, nil
}

// parseJournal reads a lease file; good is the length of the part that is
// complete. The last line may be incomplete. Anything else wrong is an error
// that begins with the line's number.
func parseJournal(data []byte) (leases []Lease, good int, err error) {
	if len(data) < len(journalHeader) && strings.HasPrefix(journalHeader, string(data)) {
		return nil, 0, nil // it was being made
	}
	if !bytes.HasPrefix(data, []byte(journalHeader)) {
		return nil, 0, fmt.Errorf("1: this is no lease file of ecboot: it begins with %.20q; move it away to start anew", data)
	}
	good = len(journalHeader)
	for line := 2; good < len(data); line++ {
		end := bytes.IndexByte(data[good:], '\n')
		if end < 0 {
			return leases, good, nil
		}
		l, err := parseRecord(data[good : good+end])
		if err != nil {
			if good+end+1 == len(data) {
				return leases, good, nil
			}
			return nil, 0, fmt.Errorf("%d: the line %w: the file is damaged; take the line out, or move the file away to forget all leases", line, err)
		}
		leases = append(leases, l)
		good += end + 1
	}
	return leases, good, nil
}
