package initramfs

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Compression names how an archive is compressed.
type Compression string

// The compressions that Build writes. Linux reads each of them when it was
// configured to (CONFIG_RD_ZSTD, CONFIG_RD_GZIP).
const (
	Zstd Compression = "zstd"
	Gzip Compression = "gzip"
	None Compression = "none"
)

// zstdWindow is what the kernel must allocate to unpack the archive. Larger
// ones do not make a u-root image smaller.
const zstdWindow = 8 << 20

// defaultZstdLevel is the library's best: unpacking costs the same at every
// level, and each byte less is one that need not cross the network.
const defaultZstdLevel = 19

func (c Compression) check(level int) error {
	most := map[Compression]int{Zstd: 22, Gzip: 9, None: 0}
	limit, ok := most[c]
	switch {
	case !ok:
		return fmt.Errorf("compression %q: want zstd, gzip or none", string(c))
	case level < 0 || level > limit:
		return fmt.Errorf("compression level %d: %s has 0 to %d", level, c, limit)
	}
	return nil
}

// suffix is what the name of an archive ends in.
func (c Compression) suffix() string {
	switch c {
	case Zstd:
		return ".cpio.zst"
	case Gzip:
		return ".cpio.gz"
	}
	return ".cpio"
}

// writer returns a compressor whose output depends on nothing but its input.
func (c Compression) writer(w io.Writer, level int) (io.WriteCloser, error) {
	switch c {
	case Zstd:
		if level == 0 {
			level = defaultZstdLevel
		}
		return zstd.NewWriter(w,
			zstd.WithEncoderConcurrency(1), // blocks are cut by timing otherwise
			zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level)),
			zstd.WithWindowSize(zstdWindow))
	case Gzip:
		if level == 0 {
			level = gzip.BestCompression
		}
		return gzip.NewWriterLevel(w, level)
	}
	return nopCloser{w}, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// foreign are the compressions that Linux knows and this package does not.
var foreign = []struct{ magic, name string }{
	{"\xfd7zXZ\x00", "xz"},
	{"BZh", "bzip2"},
	{"\x5d\x00\x00", "lzma"},
	{"\x02\x21\x4c\x18", "lz4"},
	{"\x89LZO\x00", "lzo"},
}

const (
	gzipMagic = "\x1f\x8b"
	zstdMagic = "\x28\xb5\x2f\xfd"
)

// decompress returns a reader of the compressed member that r is at. After all
// of it was read, finish moves r behind the member's last byte.
func decompress(r *bufio.Reader) (member io.Reader, finish func() error, err error) {
	magic, err := r.Peek(6)
	if err != nil && len(magic) < 4 {
		return nil, nil, errors.New("neither a cpio archive nor a compressed one")
	}
	switch s := string(magic); {
	case s[:2] == gzipMagic:
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, nil, err
		}
		z.Multistream(false)
		return z, z.Close, nil
	case s[:4] == zstdMagic:
		frame := &zstdFrame{r: r}
		d, err := zstd.NewReader(frame, zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, nil, err
		}
		return d, func() error {
			d.Close()
			_, err := io.Copy(io.Discard, frame) // an error if the frame is not whole
			return err
		}, nil
	default:
		for _, f := range foreign {
			if len(s) >= len(f.magic) && s[:len(f.magic)] == f.magic {
				return nil, nil, fmt.Errorf("compressed by %s; unpack it, or use zstd or gzip", f.name)
			}
		}
		return nil, nil, errors.New("neither a cpio archive nor a compressed one")
	}
}

// maxZstdWindow is the largest that the kernel unpacks (ZSTD_WINDOWSIZE_MAX).
const maxZstdWindow = 128 << 20

// zstdFrame reads exactly one frame (RFC 8878 section 3.1.1) from r. The decoder
// reads ahead, but what follows a frame may be another archive.
type zstdFrame struct {
	r        *bufio.Reader
	unit     int64 // bytes left of the header, block or checksum at hand
	started  bool
	checksum bool
	last     bool // no more blocks
	done     bool
}

func (f *zstdFrame) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for f.unit == 0 {
		if f.done {
			return 0, io.EOF
		}
		if err := f.next(); err != nil {
			return 0, err
		}
	}
	n, err := f.r.Read(p[:min(int64(len(p)), f.unit)])
	f.unit -= int64(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// next measures the unit that follows.
func (f *zstdFrame) next() error {
	switch {
	case !f.started:
		head, err := f.r.Peek(5)
		if err != nil {
			return io.ErrUnexpectedEOF
		}
		f.started = true
		descriptor := head[4]
		f.checksum = descriptor&4 != 0
		f.unit = zstdHeaderLen(descriptor)
	case !f.last:
		head, err := f.r.Peek(3)
		if err != nil {
			return io.ErrUnexpectedEOF
		}
		h := uint32(head[0]) | uint32(binary.LittleEndian.Uint16(head[1:]))<<8
		f.last = h&1 != 0
		f.unit = 3
		const repeated = 1 // a block of one byte, repeated
		if h>>1&3 == repeated {
			f.unit++
		} else {
			f.unit += int64(h >> 3)
		}
	default:
		f.done = true
		if f.checksum {
			f.unit = 4
		}
	}
	return nil
}

// zstdHeaderLen is the length of a frame header, magic number included.
func zstdHeaderLen(descriptor byte) int64 {
	n := int64(5)
	singleSegment := descriptor&0x20 != 0
	if !singleSegment {
		n++ // window descriptor
	}
	n += []int64{0, 1, 2, 4}[descriptor&3]    // dictionary id
	n += []int64{0, 2, 4, 8}[descriptor>>6&3] // content size
	if singleSegment && descriptor>>6 == 0 {
		n++
	}
	return n
}
