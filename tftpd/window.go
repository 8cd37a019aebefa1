package tftpd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/pin/tftp/v3/netascii"
	"golang.org/x/sys/unix"
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

var (
	errHurry = errors.New("an acknowledgement said nothing new")
	// Kernels before 6.11 cannot where the device leaves checksums to them.
	errSegment = errors.New("the kernel cannot cut packets for this device")
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

// sender sends one file in windows (RFC 7440), from a socket of its own. A
// window of one block is the lock step of RFC 1350.
type sender struct {
	t       *transfer
	conn    *net.UDPConn
	segment bool // the kernel cuts what is written into packets
	buf     []byte
}

// sendWindows serves what pin/tftp cannot: windows, timeouts of the client's
// choice, blocks below 512 bytes.
func (s *Server) sendWindows(t *transfer) error {
	d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.cfg.Addr, 0)), Control: s.prepare}
	c, err := d.DialContext(t.ctx, "udp4", t.client.String())
	if err != nil {
		return err
	}
	defer c.Close()
	w := sender{t: t, conn: c.(*net.UDPConn), buf: make([]byte, maxRequest)}
	unblock := context.AfterFunc(t.ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer unblock()
	err = w.send()
	if ctxErr := context.Cause(t.ctx); err != nil && ctxErr != nil {
		err = ctxErr
	}
	if said := (clientError{}); err != nil && !errors.As(err, &said) && !isTimeout(err) {
		c.SetDeadline(time.Time{})
		c.Write(errorPacket(codeUndefined, err.Error()))
	}
	return err
}

func (w *sender) send() error {
	t, terms := w.t, w.t.terms
	if len(terms.accepted) > 0 {
		if err := w.offer(terms.packet()); err != nil {
			return err
		}
	}
	var src io.Reader = bufio.NewReaderSize(t.file, min(terms.window*terms.block, maxBurst))
	if terms.netascii {
		src = netascii.ToReader(src)
	}
	b := newBlocks(src, terms.block, 2*terms.window)
	w.segment = terms.window > 1 && w.setSegment(b.stride) == nil
	for attempt, hurried := 0, false; ; {
		if err := b.fill(terms.window); err != nil {
			return err
		}
		sent := min(terms.window, b.held)
		t.progress(int64(b.acked)*int64(terms.block), b.last != 0 && sent == b.held)
		if err := w.write(b, sent); err != nil {
			return err
		}
		// Read on while the client takes these.
		if err := b.fill(2 * terms.window); err != nil {
			return err
		}
		// In lock step nothing is gained by haste.
		n, err := w.await(b, sent, t.patience(attempt), terms.window > 1 && !hurried)
		switch {
		case b.done():
			t.progress(int64(b.acked-1)*int64(terms.block)+int64(b.last-4), true)
			return nil
		case n > 0:
			attempt, hurried = 0, false
			t.s.count.Resent.Add(uint64(sent - n))
			continue
		case err == errHurry:
			hurried = true
		case isTimeout(err) && attempt+1 < t.attempts():
			attempt, hurried = attempt+1, false
		default:
			return err
		}
		t.s.count.Resent.Add(uint64(sent))
	}
}

// offer sends the OACK until it is acknowledged, as block 0 is.
func (w *sender) offer(oack []byte) error {
	for attempt := 0; ; attempt++ {
		if err := w.writeOne(oack); err != nil {
			return err
		}
		deadline := time.Now().Add(w.t.patience(attempt))
		number, err := w.receive(deadline)
		for err == nil && number != 0 {
			number, err = w.receive(deadline)
		}
		if err == nil || !isTimeout(err) || attempt+1 == w.t.attempts() {
			return err
		}
	}
}

// await returns how many of the sent blocks were acknowledged, or errHurry if
// haste is allowed and called for.
func (w *sender) await(b *blocks, sent int, patience time.Duration, haste bool) (int, error) {
	deadline, cause := time.Now().Add(patience), error(nil)
	for {
		number, err := w.receive(deadline)
		if err != nil {
			if cause != nil && isTimeout(err) {
				err = cause
			}
			return 0, err
		}
		n, ok := b.ack(number, sent)
		if n > 0 {
			return n, nil
		}
		if ok && haste && cause == nil {
			deadline, cause = time.Now().Add(hurry), errHurry
		}
	}
}

// receive returns the number of the next acknowledgement.
func (w *sender) receive(deadline time.Time) (uint16, error) {
	w.conn.SetReadDeadline(deadline)
	if err := context.Cause(w.t.ctx); err != nil {
		return 0, err // its deadline may have been overwritten just now
	}
	for {
		n, err := w.conn.Read(w.buf)
		if err != nil {
			return 0, err
		}
		p := w.buf[:n]
		if n < 4 {
			continue
		}
		switch code := binary.BigEndian.Uint16(p[2:]); binary.BigEndian.Uint16(p) {
		case opAck:
			w.t.answered()
			return code, nil
		case opError:
			message, _, _ := bytes.Cut(p[4:], []byte{0})
			return 0, clientError{code, string(message)}
		}
	}
}

// write sends the first n blocks.
func (w *sender) write(b *blocks, n int) error {
	for skip := 0; skip < n; {
		p, count := b.burst(skip, n-skip)
		skip += count
		if w.segment {
			err := w.writeOne(p)
			if !errors.Is(err, errSegment) {
				if err != nil {
					return err
				}
				continue
			}
			w.segment = false
			w.setSegment(0)
		}
		for len(p) > 0 {
			one := p[:min(b.stride, len(p))]
			if err := w.writeOne(one); err != nil {
				return err
			}
			p = p[len(one):]
		}
	}
	return nil
}

// writeOne makes one system call. What could not leave counts as lost on the
// way, unless nothing would ever leave.
func (w *sender) writeOne(p []byte) error {
	_, err := w.conn.Write(p)
	switch {
	case err == nil:
		return nil
	case w.t.ctx.Err() != nil, errors.Is(err, unix.ECONNREFUSED):
		return err
	case w.segment && (errors.Is(err, unix.EIO) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EMSGSIZE)):
		return errSegment
	}
	return nil
}

// setSegment makes the kernel cut what is written into packets of size bytes,
// headers apart; 0 ends that.
func (w *sender) setSegment(size int) error {
	raw, err := w.conn.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size)
	}); cerr != nil {
		return cerr
	}
	return err
}
