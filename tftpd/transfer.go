package tftpd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/internal/timeline"
)

// A block that is not acknowledged is sent again in rounds, for 16 s in all.
// First soon and often: acknowledgements that come twice are not answered
// twice, so that impatience costs a packet and never doubles the traffic. Then
// with growing pauses, for a machine that is busy. Then silence for longer than
// the 5 s after which most clients speak up: atftp answers a repeated block
// once, and if that is lost, only when nothing more comes.
const (
	ackTimeout = 100 * time.Millisecond
	rounds     = 2
	quickTries = 6 // of each round
	tries      = rounds * (quickTries + len(pauses))
)

var pauses = [...]time.Duration{200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond, 5500 * time.Millisecond}

// pauseBefore is waited, beyond ackTimeout, before the attempt-th repetition.
func pauseBefore(attempt int) time.Duration {
	if i := attempt%(quickTries+len(pauses)) - quickTries; i >= 0 {
		return pauses[i]
	}
	return 0
}

var (
	errStopping = errors.New("the server is shutting down")
	errEvicted  = errors.New("the client never answered, and others were waiting")
)

// transfer is a file on its way to a client.
type transfer struct {
	s       *Server
	client  netip.AddrPort
	packet  string // the request as it came
	request request
	slot    *slot
	ctx     context.Context // done when the transfer must end, with the cause
	end     context.CancelCauseFunc

	machine string
	name    string
	file    io.Reader
	size    int64
	terms   terms

	heard bool      // from the client, since the request
	begun bool      // the client has taken the options, if it asked for any
	acked int64     // bytes that the client has
	sent  bool      // the last block is under way
	told  time.Time // of the last Progress

	src  io.Reader // from which pin/tftp reads
	read int64     // bytes that it has
}

// serve is the life of a transfer.
func (s *Server) serve(t *transfer) {
	log := s.cfg.Logger.With("client", t.client.Addr(), "machine", t.machine)
	file, size, err := open(s.cfg.Files(t.client.Addr()), t.name)
	if err != nil {
		if optional(err) {
			s.count.probed.Add(1)
		} else {
			s.count.notFound.Warn(log, "TFTP file not served", "error", err)
			t.record(timeline.Fail, err.Error())
		}
		s.refuse(t.client, codeNotFound, "file not found: "+t.name)
		return
	}
	defer file.Close()
	t.file, t.size = file, size
	t.terms = t.request.negotiate(size, limits{block: maxBlock(s.cfg.MTU), window: s.slots.window()})

	taken := false
	if len(t.terms.accepted) == 0 {
		taken, err = s.lockstep.serve(t)
	}
	if !taken {
		err = s.loops[s.count.requests.Load()%uint64(len(s.loops))].serve(t)
	}
	s.count.bytes.Add(uint64(t.acked))
	switch outcomeOf(err, t.begun, t.sent, t.acked) {
	case done:
		s.count.completed.Add(1)
		t.record(timeline.End, t.name)
	case declined:
		s.count.declined.Add(1)
		log.Debug("TFTP transfer declined by the client", "name", t.name, "error", err)
	case failed:
		err = explain(err)
		s.count.failed.Warn(log, "TFTP transfer failed", "name", t.name, "bytes", t.acked, "of", size, "error", err)
		t.record(timeline.Fail, fmt.Sprintf("%s: %s after %d of %d bytes", t.name, err, t.acked, size))
	}
}

// optional reports whether an error of Files is of a file that boot programs ask
// for in case it is there.
func optional(err error) bool {
	var o interface{ Optional() bool }
	return errors.As(err, &o) && o.Optional()
}

// open opens a file and finds its size in bytes. Its errors name the file.
func open(fsys fs.FS, name string) (fs.File, int64, error) {
	if fsys == nil {
		return nil, 0, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	f, err := fsys.Open(name)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file", name)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// patience is how long an acknowledgement is waited for at the attempt-th
// time, counted from 0; attempts, how often.
func (t *transfer) patience(attempt int) time.Duration {
	if t.terms.timeout > 0 {
		return t.terms.timeout
	}
	return ackTimeout + pauseBefore(attempt)
}

func (t *transfer) attempts() int {
	if t.terms.timeout > 0 {
		return max(3, int(17*time.Second/t.terms.timeout))
	}
	return tries
}

// answered is called when something has come from the client's port since its
// request: it is no invented address.
func (t *transfer) answered() {
	if !t.heard {
		t.heard = true
		t.s.slots.answered(t)
	}
}

// progressPause is the least time between two Progress events of a transfer.
const progressPause = 100 * time.Millisecond

// progress tells how many bytes the client has, and whether the rest is under
// way. The first time is when the options are agreed on: a client that wanted
// to know the size only has gone by then.
func (t *transfer) progress(acked int64, sent bool) {
	t.acked, t.sent = acked, sent
	now := time.Now()
	switch {
	case !t.begun:
		t.begun = true
		t.told = now
		t.record(timeline.Begin, t.name)
	case now.Sub(t.told) >= progressPause:
		t.told = now
		t.record(timeline.Progress, t.name)
	}
}

func (t *transfer) record(phase timeline.Phase, detail string) {
	e := timeline.Event{Machine: t.machine, Stage: timeline.TFTP, Phase: phase, Detail: detail, Bytes: t.acked}
	if !t.terms.netascii {
		e.Total = t.size
	}
	t.s.cfg.Timeline.Record(e)
}

// outcome is what became of a transfer.
type outcome uint8

const (
	done     outcome = iota
	declined         // the client did not want it, which is its right
	failed
)

// outcomeOf tells failures from what only looks like one: ROMs ask for the
// size and then refuse the options (ERROR 8, or 0) before any data, or just
// leave; a client that sent its request twice gets two answers and takes one
// (ERROR 5); and many leave without acknowledging the last block, or their last
// acknowledgement is lost.
func outcomeOf(err error, begun, sent bool, acked int64) outcome {
	var said clientError
	gone := errors.Is(err, unix.ECONNREFUSED)
	switch {
	case err == nil:
		return done
	case errors.Is(err, errEvicted):
		return declined
	case errors.As(err, &said):
		if said.code == codeUnknownTID || !begun && (said.code == codeOptionRefused || said.code == codeUndefined) {
			return declined
		}
	case (isTimeout(err) || gone || errors.Is(err, errStopping)) && sent && acked > 0:
		return done
	case gone && !begun:
		return declined
	}
	return failed
}

// clientError is an ERROR packet from the client.
type clientError struct {
	code    uint16
	message string
}

func (e clientError) Error() string {
	return fmt.Sprintf("the client ended it with error %d %q", e.code, e.message)
}

func isTimeout(err error) bool {
	var netErr net.Error
	return errors.As(err, &netErr) && netErr.Timeout()
}

// explain puts a transfer's error in the words of people.
func explain(err error) error {
	switch {
	case isTimeout(err):
		return errors.New("the client stopped answering")
	case errors.Is(err, unix.ECONNREFUSED):
		return errors.New("the client closed its port")
	}
	return err
}
