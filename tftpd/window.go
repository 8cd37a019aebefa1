package tftpd

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"time"

	"github.com/pin/tftp/v3/netascii"
)

// A window leaves in one system call: the kernel takes it as one long datagram
// and cuts it into packets as late as it can (UDP_SEGMENT). These are its
// limits, and so the largest window.
const (
	maxBurst   = 65507 // bytes: the longest datagram
	maxPackets = 64    // UDP_MAX_SEGMENTS of the first kernels that had it
)

// hurry is waited after an acknowledgement that says nothing new before the
// window is sent again. In a window it means that the first block was lost
// (RFC 7440 §4); but it may also have come twice, and then the client's next
// one, which is under way, must not be answered twice: who answers each of
// two equal acknowledgements doubles everything that follows.
const hurry = 20 * time.Millisecond

// sending is one transfer in windows (RFC 7440) as a client's packets and the
// passing of time move it on; a window of one block is the lock step of
// RFC 1350. It knows no sockets and no clock.
type sending struct {
	t *transfer
	// send sends packets that lie one after another, each stride bytes long
	// but for the last. It fails when the client is known to be gone.
	send func(p []byte, stride int) error

	blocks   *blocks // nil until the options are agreed on
	sent     int     // blocks under way, from the first of blocks
	attempt  int     // how often the same was sent before
	hurried  bool    // and once more because the client repeated itself
	hasty    bool    // deadline is for that
	deadline time.Time
}

// begin sends the OACK, or the first blocks to who asked for nothing.
func (x *sending) begin(now time.Time) error {
	if len(x.t.terms.accepted) == 0 {
		x.open()
	}
	return x.repeat(now)
}

// open makes room for blocks; who only wants to know a size needs none.
func (x *sending) open() {
	terms := x.t.terms
	var src io.Reader = bufio.NewReaderSize(x.t.file, min(max(terms.window*terms.block, 16<<10), maxBurst))
	if terms.netascii {
		src = netascii.ToReader(src)
	}
	x.blocks = newBlocks(src, terms.block, 2*terms.window)
}

// receive takes a packet of the client's.
func (x *sending) receive(p []byte, now time.Time) (done bool, err error) {
	if len(p) < 4 {
		return false, nil
	}
	number := binary.BigEndian.Uint16(p[2:]) // or an error's code
	switch binary.BigEndian.Uint16(p) {
	case opAck:
		x.t.answered()
	case opError:
		message, _, _ := bytes.Cut(p[4:], []byte{0})
		return false, clientError{number, string(message)}
	default:
		return false, nil
	}
	if x.blocks == nil {
		if number != 0 {
			return false, nil
		}
		x.open()
		x.attempt = 0
		return false, x.repeat(now)
	}
	n, ok := x.blocks.ack(number, x.sent)
	switch {
	case x.blocks.done():
		x.t.progress(int64(x.blocks.acked-1)*int64(x.t.terms.block)+int64(x.blocks.last-4), true)
		return true, nil
	case n > 0:
		x.t.s.count.resent.Add(uint64(x.sent - n))
		x.attempt, x.hurried = 0, false
		return false, x.repeat(now)
	case ok && x.t.terms.window > 1 && !x.hurried:
		// In lock step nothing is gained by haste.
		x.hurried, x.hasty = true, true
		x.deadline = now.Add(hurry)
	}
	return false, nil
}

// late is called when the deadline has passed.
func (x *sending) late(now time.Time) error {
	if !x.hasty {
		x.hurried = false
		if x.attempt++; x.attempt == x.t.attempts() {
			return os.ErrDeadlineExceeded
		}
	}
	x.t.s.count.resent.Add(uint64(x.sent))
	return x.repeat(now)
}

// repeat sends what the client should have next.
func (x *sending) repeat(now time.Time) error {
	x.hasty, x.deadline = false, now.Add(x.t.patience(x.attempt))
	if x.blocks == nil {
		p := x.t.terms.packet()
		return x.send(p, len(p))
	}
	b, window := x.blocks, x.t.terms.window
	if err := b.fill(window); err != nil {
		return err
	}
	x.sent = min(window, b.held)
	x.t.progress(int64(b.acked)*int64(x.t.terms.block), b.last != 0 && x.sent == b.held)
	for skip := 0; skip < x.sent; {
		p, n := b.burst(skip, x.sent-skip)
		if err := x.send(p, b.stride); err != nil {
			return err
		}
		skip += n
	}
	// Read on while the client takes these.
	return b.fill(2 * window)
}
