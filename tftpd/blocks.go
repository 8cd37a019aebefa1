package tftpd

import (
	"encoding/binary"
	"io"
)

// blocks is a stretch of a file as packets: those that were sent and not
// acknowledged, and after them those that come next.
type blocks struct {
	src    io.Reader
	stride int    // bytes of a full packet
	buf    []byte // a ring of packets
	acked  uint64 // blocks that the client has; the ring begins after them
	held   int    // blocks in the ring
	last   int    // bytes of the last packet of the file, 0 before it is read
}

func newBlocks(src io.Reader, block, capacity int) *blocks {
	stride := 4 + block
	return &blocks{src: src, stride: stride, buf: make([]byte, capacity*stride)}
}

// fill reads until n blocks are held, or the file ends.
func (b *blocks) fill(n int) error {
	for b.held < n && b.last == 0 {
		i := b.acked + uint64(b.held)
		p := b.buf[b.at(i):][:b.stride]
		binary.BigEndian.PutUint16(p, opData)
		binary.BigEndian.PutUint16(p[2:], uint16(i+1)) // block numbers wrap
		m, err := io.ReadFull(b.src, p[4:])
		switch err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			b.last = 4 + m
		default:
			return err
		}
		b.held++
	}
	return nil
}

// at is where the i-th block of the file is in the ring.
func (b *blocks) at(i uint64) int {
	return int(i%uint64(len(b.buf)/b.stride)) * b.stride
}

// burst returns the packets that follow the first skip held ones, one after
// another: up to n, less at the end of the ring.
func (b *blocks) burst(skip, n int) (p []byte, count int) {
	from := b.at(b.acked + uint64(skip))
	count = min(n, b.held-skip, (len(b.buf)-from)/b.stride)
	size := count * b.stride
	if b.last != 0 && skip+count == b.held {
		size += b.last - b.stride
	}
	return b.buf[from:][:size], count
}

// ack drops the blocks up to the one with that number, which must be one of
// the first sent ones, and tells how many they were. Any other number is stale.
func (b *blocks) ack(number uint16, sent int) (n int, ok bool) {
	n = int(number - uint16(b.acked))
	if n > sent {
		return 0, false
	}
	b.acked += uint64(n)
	b.held -= n
	return n, true
}

// done reports whether the client has the whole file.
func (b *blocks) done() bool { return b.last != 0 && b.held == 0 }
