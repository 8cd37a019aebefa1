package initramfs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"time"
)

// Entry is one file of an archive.
type Entry struct {
	Name   string // as it is in the archive
	Mode   fs.FileMode
	UID    int
	GID    int
	Size   int64 // bytes
	MTime  time.Time
	Target string // of a symbolic link
	Major  uint32 // of a device
	Minor  uint32
}

// List returns the files of the initramfs at path in their order. Like the
// kernel it takes several archives one after the other, each bare or compressed
// (gzip, zstd), with zero bytes between them.
func List(path string) ([]Entry, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var entries []Entry
	err = scan(f, func(h header, name string, data io.Reader) error {
		e, err := h.entry(name, data)
		entries = append(entries, e)
		return err
	})
	if err != nil {
		return entries, fmt.Errorf("%s: %w", path, err)
	}
	return entries, nil
}

// Limits that keep a hostile archive from filling memory or running for ever.
const (
	maxName     = 4096 // the kernel's PATH_MAX
	maxEntries  = 1 << 20
	maxUnpacked = 4 << 30 // bytes
)

const (
	newcMagic = "070701"
	crcMagic  = "070702"
	headerLen = 110
	trailer   = "TRAILER!!!"
)

// header is the fixed part of a newc record.
type header struct {
	ino, mode, uid, gid, nlink, mtime, size uint32
	major, minor, rmajor, rminor, nameLen   uint32
}

// scan calls visit for every file of an initramfs, without its trailers. data
// holds the file's size bytes; what visit leaves of it is skipped.
func scan(r io.Reader, visit func(h header, name string, data io.Reader) error) error {
	s := &scanner{visit: visit}
	br := bufio.NewReaderSize(r, 64<<10)
	for {
		if err := s.archives(br); err != nil {
			return err
		}
		if _, err := br.Peek(1); err == io.EOF {
			return nil
		}
		if err := s.compressed(br); err != nil {
			return err
		}
	}
}

type scanner struct {
	visit    func(h header, name string, data io.Reader) error
	entries  int
	unpacked int64
}

// compressed reads the compressed member at br.
func (s *scanner) compressed(br *bufio.Reader) (err error) {
	z, finish, err := decompress(br)
	if err != nil {
		return err
	}
	defer func() {
		if end := finish(); err == nil {
			err = end
		}
	}()
	inner := bufio.NewReaderSize(z, 64<<10)
	if err := s.archives(inner); err != nil {
		return err
	}
	if _, err := inner.Peek(1); err == nil {
		return errors.New("something other than a cpio archive in the compressed data")
	} else if err != io.EOF {
		return err
	}
	return nil
}

// archives reads cpio archives and zero bytes until something else begins.
func (s *scanner) archives(br *bufio.Reader) error {
	for {
		b, err := br.Peek(1)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if b[0] == 0 {
			if _, err := br.Discard(1); err != nil {
				return err
			}
			if err := s.count(1); err != nil {
				return err
			}
			continue
		}
		magic, _ := br.Peek(len(newcMagic))
		if m := string(magic); m != newcMagic && m != crcMagic {
			if m == "070707" {
				return errors.New("an old cpio format (odc); the kernel reads only newc")
			}
			return nil
		}
		if err := s.archive(br); err != nil {
			return err
		}
	}
}

// archive reads records up to the trailer or, like the kernel, the end.
func (s *scanner) archive(br *bufio.Reader) error {
	for {
		if _, err := br.Peek(1); err == io.EOF {
			return nil
		}
		h, name, err := s.record(br)
		if err != nil {
			return fmt.Errorf("record %d: %w", s.entries, err)
		}
		if name == trailer {
			return s.skip(br, pad4(int64(h.size)))
		}
		data := &io.LimitedReader{R: br, N: int64(h.size)}
		if err := s.visit(h, name, data); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := s.count(int64(h.size) - data.N); err != nil {
			return err
		}
		if err := s.skip(br, data.N+pad4(int64(h.size))-int64(h.size)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}

// record reads a header and the name behind it.
func (s *scanner) record(br *bufio.Reader) (header, string, error) {
	var raw [headerLen]byte
	if _, err := io.ReadFull(br, raw[:]); err != nil {
		return header{}, "", io.ErrUnexpectedEOF
	}
	h, err := parseHeader(raw[:])
	if err != nil {
		return h, "", err
	}
	if s.entries++; s.entries > maxEntries {
		return h, "", fmt.Errorf("more than %d files", maxEntries)
	}
	name := make([]byte, pad4(headerLen+int64(h.nameLen))-headerLen)
	if _, err := io.ReadFull(br, name); err != nil {
		return h, "", io.ErrUnexpectedEOF
	}
	if err := s.count(headerLen + int64(len(name))); err != nil {
		return h, "", err
	}
	name = name[:h.nameLen]
	if name[len(name)-1] != 0 {
		return h, "", errors.New("a file name without an end")
	}
	for i, c := range name {
		if c == 0 { // the kernel's idea of where a name ends
			name = name[:i]
			break
		}
	}
	return h, string(name), nil
}

func parseHeader(raw []byte) (header, error) {
	if m := string(raw[:6]); m != newcMagic && m != crcMagic {
		return header{}, errors.New("not a cpio header")
	}
	var h header
	for i, field := range []*uint32{&h.ino, &h.mode, &h.uid, &h.gid, &h.nlink, &h.mtime, &h.size,
		&h.major, &h.minor, &h.rmajor, &h.rminor, &h.nameLen} {
		v, err := strconv.ParseUint(string(raw[6+8*i:14+8*i]), 16, 32)
		if err != nil {
			return h, errors.New("not a cpio header")
		}
		*field = uint32(v)
	}
	if h.nameLen == 0 || h.nameLen > maxName {
		return h, fmt.Errorf("a file name of %d bytes", h.nameLen)
	}
	if h.mode&modeType == modeLink && h.size > maxName {
		return h, fmt.Errorf("a symbolic link of %d bytes", h.size)
	}
	return h, nil
}

func (s *scanner) count(n int64) error {
	if s.unpacked += n; s.unpacked > maxUnpacked {
		return fmt.Errorf("more than %d GiB unpacked", maxUnpacked>>30)
	}
	return nil
}

func (s *scanner) skip(br *bufio.Reader, n int64) error {
	if err := s.count(n); err != nil {
		return err
	}
	if m, err := io.CopyN(io.Discard, br, n); err != nil {
		if err == io.EOF && n-m < 4 {
			return nil // padding of the last record that was never written
		}
		return io.ErrUnexpectedEOF
	}
	return nil
}

func pad4(n int64) int64 { return (n + 3) &^ 3 }

// File types in a record's mode.
const (
	modeType   = 0o170000
	modeSocket = 0o140000
	modeLink   = 0o120000
	modeFile   = 0o100000
	modeBlock  = 0o060000
	modeDir    = 0o040000
	modeChar   = 0o020000
	modeFIFO   = 0o010000
)

// entry describes the record; of a symbolic link it reads the target.
func (h header) entry(name string, data io.Reader) (Entry, error) {
	e := Entry{
		Name:  name,
		Mode:  fs.FileMode(h.mode & 0o777),
		UID:   int(h.uid),
		GID:   int(h.gid),
		Size:  int64(h.size),
		MTime: time.Unix(int64(h.mtime), 0).UTC(),
		Major: h.rmajor,
		Minor: h.rminor,
	}
	for bit, mode := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if h.mode&bit != 0 {
			e.Mode |= mode
		}
	}
	switch h.mode & modeType {
	case modeDir:
		e.Mode |= fs.ModeDir
	case modeLink:
		e.Mode |= fs.ModeSymlink
		target, err := io.ReadAll(data)
		if err != nil {
			return e, err
		}
		if len(target) != int(h.size) {
			return e, io.ErrUnexpectedEOF
		}
		e.Target = string(target)
	case modeChar:
		e.Mode |= fs.ModeDevice | fs.ModeCharDevice
	case modeBlock:
		e.Mode |= fs.ModeDevice
	case modeFIFO:
		e.Mode |= fs.ModeNamedPipe
	case modeSocket:
		e.Mode |= fs.ModeSocket
	case modeFile:
	default:
		e.Mode |= fs.ModeIrregular
	}
	return e, nil
}
