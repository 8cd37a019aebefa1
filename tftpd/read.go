package tftpd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"github.com/pin/tftp/v3"

	"github.com/every-channel/ecboot/internal/timeline"
)

// Error codes of RFC 1350 §5 and RFC 2347.
const (
	codeUndefined     = 0
	codeAccess        = 2
	codeUnknownTID    = 5
	codeOptionRefused = 8
)

var (
	errName     = errors.New("access violation: no such name is ever served")
	errReadOnly = errors.New("access violation: this server is read-only")
	errStopping = errors.New("the server is shutting down")
	errBusy     = errors.New("too many transfers, try again later")
)

// cleanName turns a requested name into one for fs.FS, or refuses it. Clients
// write the same file in many ways: from the root, with the backslashes of a
// Windows NBP, with doubled slashes where a prefix was put in front, and with
// 0xff after it where a ROM took the end mark of the DHCP options for text.
func cleanName(requested string) (string, error) {
	name, _, _ := strings.Cut(requested, "\xff")
	var elems []string
	for elem := range strings.SplitSeq(strings.ReplaceAll(name, `\`, "/"), "/") {
		if elem != "" && elem != "." {
			elems = append(elems, elem)
		}
	}
	name = strings.Join(elems, "/")
	if name == "" || !fs.ValidPath(name) || strings.ContainsFunc(name, unicode.IsControl) {
		return "", errName
	}
	return name, nil
}

// read serves one read request; pin/tftp calls it in a goroutine of its own and
// sends what it returns as an error with code 1, file not found.
func (s *Server) read(requested string, w io.ReaderFrom) error {
	peer := w.(tftp.OutgoingTransfer).RemoteAddr()
	from := peer.AddrPort().Addr().Unmap()
	t := &transfer{s: s, machine: s.machine(from)}
	log := s.cfg.Logger.With("client", from, "machine", t.machine)

	if s.active.Add(1) > maxTransfers {
		s.active.Add(-1)
		log.Warn("TFTP read refused: too many transfers", "limit", maxTransfers)
		return errBusy
	}
	defer s.active.Add(-1)

	name, err := cleanName(requested)
	if err != nil {
		log.Warn("TFTP read refused", "name", requested)
		t.record(timeline.Fail, fmt.Sprintf("%q: %s", requested, err))
		s.sendError(w, peer, codeAccess, err)
		return err
	}
	t.name = name
	f, size, err := open(s.cfg.Files(from), name)
	if err != nil {
		log.Info("TFTP file not served", "error", err)
		t.record(timeline.Fail, err.Error())
		return errors.New("file not found: " + name)
	}
	defer f.Close()
	t.file, t.total = f, size
	// What the client wrote as its tsize must not come back as ours.
	w.(tftp.OutgoingTransfer).SetSize(size)

	sent, err := w.ReadFrom(t)
	switch outcomeOf(err, t) {
	case done:
		t.bytes = sent
		t.record(timeline.End, name)
	case declined:
		log.Debug("TFTP transfer declined by the client", "name", name, "error", err)
	case failed:
		err = explain(err)
		log.Warn("TFTP transfer failed", "name", name, "bytes", t.bytes, "of", size, "error", err)
		t.record(timeline.Fail, fmt.Sprintf("%s: %s after %d of %d bytes", name, err, t.bytes, size))
	}
	return nil
}

// write refuses: this server only reads.
func (s *Server) write(requested string, r io.WriterTo) error {
	peer := r.(tftp.IncomingTransfer).RemoteAddr()
	s.cfg.Logger.Warn("TFTP write refused", "client", peer.IP, "name", requested)
	s.sendError(r, peer, codeAccess, errReadOnly)
	return errReadOnly
}

// sendError answers with a code that pin/tftp, which knows only 1, cannot send.
// A client acts on the first answer and then no longer listens, so that the
// one that pin/tftp sends after it says nothing new to nobody.
func (s *Server) sendError(request any, peer net.UDPAddr, code uint16, why error) {
	local := s.cfg.Addr.AsSlice()
	if info, ok := request.(tftp.RequestPacketInfo); ok && info.LocalIP() != nil {
		local = info.LocalIP()
	}
	d := net.Dialer{LocalAddr: &net.UDPAddr{IP: local}, Control: s.prepare}
	conn, err := d.DialContext(context.Background(), "udp4", peer.String())
	if err != nil {
		return // pin/tftp's own answer must do
	}
	defer conn.Close()
	conn.Write(errorPacket(code, why.Error()))
}

// errorPacket is an ERROR packet (RFC 1350 §5).
func errorPacket(code uint16, message string) []byte {
	p := binary.BigEndian.AppendUint16(nil, 5)
	p = binary.BigEndian.AppendUint16(p, code)
	p = append(p, message...)
	return append(p, 0)
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

// machine names who asks for the timeline.
func (s *Server) machine(from netip.Addr) string {
	if mac := s.cfg.Who(from); mac != "" {
		return mac
	}
	return from.String()
}

// progressPause is the least time between two Progress events of a transfer.
const progressPause = 100 * time.Millisecond

// transfer is the file of one read request as pin/tftp reads it, block by
// block as they are acknowledged.
type transfer struct {
	s       *Server
	machine string
	name    string
	file    io.Reader
	total   int64

	bytes  int64
	block  int // bytes per block, once the first was asked for
	blocks int // that were asked for; all but the last are acknowledged
	eof    bool
	told   time.Time // of the last Progress
}

func (t *transfer) Read(p []byte) (int, error) {
	select {
	case <-t.s.stop:
		return 0, errStopping
	default:
	}
	now := time.Now()
	switch {
	case t.blocks == 0:
		// Only now: a client that asked for the size alone has gone by here.
		t.block, t.told = len(p), now
		t.record(timeline.Begin, t.name)
	case now.Sub(t.told) >= progressPause:
		t.told = now
		t.record(timeline.Progress, t.name)
	}
	if len(p) == t.block {
		t.blocks++
	}
	n, err := t.file.Read(p)
	t.bytes += int64(n)
	t.eof = t.eof || err == io.EOF
	return n, err
}

func (t *transfer) record(phase timeline.Phase, detail string) {
	t.s.cfg.Timeline.Record(timeline.Event{
		Machine: t.machine,
		Stage:   timeline.TFTP,
		Phase:   phase,
		Detail:  detail,
		Bytes:   t.bytes,
		Total:   t.total,
	})
}

// outcome is what became of a transfer.
type outcome uint8

const (
	done     outcome = iota
	declined         // the client did not want it, which is its right
	failed
)

// outcomeOf tells failures from what only looks like one: ROMs ask for the
// size and then refuse the options (ERROR 8, or 0) before any data; a client
// that sent its request twice gets two answers and takes one (ERROR 5); and
// many leave without acknowledging the last block, or their last
// acknowledgement is lost.
func outcomeOf(err error, t *transfer) outcome {
	if err == nil {
		return done
	}
	if block, code, ok := clientError(err); ok {
		if code == codeUnknownTID || block == 0 && (code == codeOptionRefused || code == codeUndefined) {
			return declined
		}
		return failed
	}
	if isTimeout(err) && t.eof && t.blocks > 1 {
		return done
	}
	return failed
}

// clientError takes an ERROR packet of the client out of the words of
// pin/tftp, which keeps it nowhere else. Block 0 stands for the options.
func clientError(err error) (block, code uint16, ok bool) {
	n, _ := fmt.Sscanf(err.Error(), "sending block %d: code=%d, error:", &block, &code)
	return block, code, n == 2
}

func isTimeout(err error) bool {
	var netErr net.Error
	return errors.As(err, &netErr) && netErr.Timeout()
}

// explain puts a transfer's error in the words of people.
func explain(err error) error {
	if isTimeout(err) {
		return errors.New("the client stopped answering")
	}
	if _, code, ok := clientError(err); ok {
		_, message, _ := strings.Cut(err.Error(), "error: ")
		return fmt.Errorf("the client ended it with error %d %q", code, strings.TrimRight(message, "\x00"))
	}
	return err
}
