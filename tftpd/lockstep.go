package tftpd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pin/tftp/v3"
	"golang.org/x/net/bpf"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// maxLockstep transfers are given to pin/tftp at once, which cannot be told to
// give one up: of more, the oldest that never answered must be able to go.
const maxLockstep = 256

// takeTimeout is how long pin/tftp may need to take a request.
const takeTimeout = time.Second

// lockstep is pin/tftp, the engine for transfers without options: RFC 1350 as
// it was. It takes requests from a *net.UDPConn only, and answers where they
// come from. So it has a socket to which nothing but the loopback device leads,
// and a request that we have read and judged is sent there once more with the
// client's address as its source.
type lockstep struct {
	addr   netip.Addr
	server *tftp.Server
	conn   *net.UDPConn
	raw    *ipv4.RawConn
	free   chan struct{} // one per transfer that may begin

	mu      sync.Mutex
	waiting map[string]*handover // by what it is called in the request
	next    uint64
}

// handover is a transfer that pin/tftp is to take.
type handover struct {
	t     *transfer
	ended chan error
}

// newLockstep fails without the right to send raw packets.
func newLockstep(cfg Config, stop <-chan struct{}) (*lockstep, error) {
	rc, err := net.ListenPacket(fmt.Sprint("ip4:", unix.IPPROTO_RAW), cfg.Addr.String())
	if err != nil {
		return nil, err
	}
	raw, err := ipv4.NewRawConn(rc)
	if err != nil {
		rc.Close()
		return nil, err
	}
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(cfg.Addr, 0)))
	if err == nil {
		err = errors.Join(
			// pin/tftp turns this on too, but late: a request that is here by then
			// would be answered from any address.
			ipv4.NewPacketConn(conn).SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true),
			ipv4.NewPacketConn(conn).SetBPF(onlyLoopback()))
	}
	if err != nil {
		rc.Close()
		return nil, err
	}
	l := &lockstep{addr: cfg.Addr, conn: conn, raw: raw, free: make(chan struct{}, maxLockstep), waiting: map[string]*handover{}}
	l.server = tftp.NewServer(l.read, nil)
	l.server.SetTimeout(ackTimeout)
	l.server.SetRetries(tries)
	l.server.SetBackoff(func(attempt int) time.Duration {
		select {
		case <-time.After(pauseBefore(attempt)):
		case <-stop: // pin/tftp would sleep through it
		}
		return 0
	})
	return l, nil
}

// run serves until close.
func (l *lockstep) run() { l.server.Serve(l.conn) }

// close waits for the transfers, two seconds at most once stop is closed.
func (l *lockstep) close() {
	l.server.Shutdown()
	l.conn.Close()
	l.raw.Close()
}

// serve returns when the transfer has ended, or at once if it was not taken.
func (l *lockstep) serve(t *transfer) (taken bool, err error) {
	if l == nil {
		return false, nil
	}
	select {
	case l.free <- struct{}{}:
		defer func() { <-l.free }()
	default:
		return false, nil
	}
	t.src = bufio.NewReaderSize(t.file, 16<<10)
	h := &handover{t: t, ended: make(chan error, 1)}
	l.mu.Lock()
	l.next++
	ticket := strconv.FormatUint(l.next, 10)
	l.waiting[ticket] = h
	l.mu.Unlock()

	if l.send(t, ticket) == nil {
		timer := time.NewTimer(takeTimeout)
		defer timer.Stop()
		select {
		case err := <-h.ended:
			return true, err
		case <-timer.C:
		}
	}
	if l.take(ticket) == nil {
		return true, <-h.ended
	}
	return false, nil
}

// send asks pin/tftp for the ticket instead of the file, in the client's name.
func (l *lockstep) send(t *transfer, ticket string) error {
	mode := "octet"
	if t.terms.netascii {
		mode = "netascii"
	}
	payload := ticket + "\x00" + mode + "\x00"

	const udpHeader, request = 8, 2
	size := udpHeader + request + len(payload)
	p := binary.BigEndian.AppendUint16(nil, t.client.Port())
	p = binary.BigEndian.AppendUint16(p, l.conn.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	p = binary.BigEndian.AppendUint16(p, uint16(size))
	p = binary.BigEndian.AppendUint16(p, 0) // no checksum: it stays in this machine
	p = binary.BigEndian.AppendUint16(p, opRead)
	p = append(p, payload...)
	return l.raw.WriteTo(&ipv4.Header{
		Version: 4, Len: ipv4.HeaderLen, TotalLen: ipv4.HeaderLen + size, TTL: 1,
		Protocol: unix.IPPROTO_UDP, Src: t.client.Addr().AsSlice(), Dst: l.addr.AsSlice(),
	}, p, nil)
}

func (l *lockstep) take(ticket string) *handover {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.waiting[ticket]
	delete(l.waiting, ticket)
	return h
}

// onlyLoopback is a filter for what the loopback device, always number 1, has
// received. To bind a socket to that device would not do: what is sent to an
// address of this machine counts as received where that address is.
func onlyLoopback() []bpf.RawInstruction {
	filter, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtInterfaceIndex},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 1, SkipFalse: 1},
		bpf.RetConstant{Val: 1 << 16},
		bpf.RetConstant{},
	})
	if err != nil {
		panic(err)
	}
	return filter
}

// read is called by pin/tftp in a goroutine of its own.
func (l *lockstep) read(ticket string, w io.ReaderFrom) error {
	h := l.take(ticket)
	if h == nil {
		return errors.New("nobody asked for that any more")
	}
	_, err := w.ReadFrom(h.t)
	if err == nil {
		h.t.acked = h.t.read
	}
	h.ended <- fromPin(err)
	return nil
}

// Read gives pin/tftp the next block, now that the client has those before it.
func (t *transfer) Read(p []byte) (int, error) {
	if t.ctx.Err() != nil {
		return 0, context.Cause(t.ctx)
	}
	if t.begun {
		t.answered()
	}
	// Not for the rest of a block; netascii reads as it likes.
	if t.read%int64(t.terms.block) == 0 || t.terms.netascii {
		t.progress(t.read, false)
	}
	n, err := t.src.Read(p)
	t.read += int64(n)
	t.sent = err == io.EOF
	return n, err
}

// fromPin takes an ERROR packet of the client out of the words of pin/tftp,
// which keeps it nowhere else.
func fromPin(err error) error {
	if err == nil {
		return nil
	}
	var block int
	var said clientError
	if n, _ := fmt.Sscanf(err.Error(), "sending block %d: code=%d, error:", &block, &said.code); n != 2 {
		return err
	}
	_, said.message, _ = strings.Cut(err.Error(), "error: ")
	said.message = strings.TrimRight(said.message, "\x00")
	return said
}
