package tftpd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// wire is a sending without a network: what it sends is kept, and time passes
// when the test says so.
type wire struct {
	t    *testing.T
	x    sending
	now  time.Time
	sent [][]byte // packets since the last look
}

func newWire(t *testing.T, size int, terms terms) *wire {
	s := &Server{}
	s.cfg.Who = func(netip.Addr) string { return "" }
	s.slots = newSlots()
	data := bytes.NewReader(pattern(size))
	tr := &transfer{s: s, client: netip.MustParseAddrPort("192.0.2.1:2000"), name: "f", file: data, size: int64(size), terms: terms}
	s.slots.admit(tr)
	w := &wire{t: t, now: time.Unix(1000, 0)}
	w.x = sending{t: tr, send: func(p []byte, stride int) error {
		for len(p) > 0 {
			n := min(stride, len(p))
			w.sent = append(w.sent, bytes.Clone(p[:n]))
			p = p[n:]
		}
		return nil
	}}
	if err := w.x.begin(w.now); err != nil {
		t.Fatal(err)
	}
	return w
}

// look returns what was sent since the last look, in short: the opcode's letter
// and the block numbers.
func (w *wire) look() string {
	var words []string
	for _, p := range w.sent {
		switch binary.BigEndian.Uint16(p) {
		case opOptionAck:
			words = append(words, "OACK")
		case opData:
			words = append(words, fmt.Sprint(binary.BigEndian.Uint16(p[2:])))
		}
	}
	w.sent = nil
	return strings.Join(words, " ")
}

func (w *wire) expect(want string) {
	w.t.Helper()
	if got := w.look(); got != want {
		w.t.Fatalf("sent %q, want %q", got, want)
	}
}

func (w *wire) ack(block int) (done bool) {
	w.t.Helper()
	done, err := w.x.receive(binary.BigEndian.AppendUint16([]byte{0, opAck}, uint16(block)), w.now)
	if err != nil {
		w.t.Fatal(err)
	}
	return done
}

// pass lets time pass, as the loop would see it.
func (w *wire) pass(d time.Duration) error {
	for end := w.now.Add(d); ; {
		if w.x.deadline.After(end) {
			w.now = end
			return nil
		}
		w.now = w.x.deadline
		if err := w.x.late(w.now); err != nil {
			return err
		}
	}
}

var windowOf4 = terms{block: 512, window: 4, accepted: []option{{"windowsize", "4"}}}

func TestWindow(t *testing.T) {
	w := newWire(t, 5000, windowOf4) // 10 blocks
	w.expect("OACK")
	w.ack(0)
	w.expect("1 2 3 4")
	w.ack(4)
	w.expect("5 6 7 8")
	w.ack(8)
	w.expect("9 10")
	if !w.ack(10) {
		t.Error("not done")
	}
	if w.x.t.acked != 5000 {
		t.Errorf("%d bytes acknowledged", w.x.t.acked)
	}
}

func TestLossInAWindowResumesAfterTheAcknowledgedBlock(t *testing.T) {
	w := newWire(t, 5000, windowOf4)
	w.ack(0)
	w.expect("OACK 1 2 3 4")
	w.ack(2) // 3 was lost
	w.expect("3 4 5 6")
	w.ack(6)
	w.expect("7 8 9 10")
	w.ack(9) // 10 was lost
	w.expect("10")
	if !w.ack(10) {
		t.Error("not done")
	}
}

func TestLossOfTheFirstBlockOfAWindow(t *testing.T) {
	w := newWire(t, 5000, windowOf4)
	w.ack(0)
	w.ack(4)
	w.expect("OACK 1 2 3 4 5 6 7 8")
	w.ack(4) // 5 was lost: the client says at each later one what it has
	w.ack(4)
	w.ack(4)
	w.expect("")
	w.pass(hurry)
	w.expect("5 6 7 8")
	w.ack(4) // and what it said before still arrives
	w.pass(hurry)
	w.expect("")
	w.pass(ackTimeout)
	w.expect("5 6 7 8")
}

// TestNoSorcerersApprentice has a client that acknowledges everything twice.
func TestNoSorcerersApprentice(t *testing.T) {
	for _, terms := range []terms{{block: 512, window: 1}, windowOf4} {
		w := newWire(t, 512*400, terms)
		w.ack(0)
		for last := 0; ; {
			n := len(w.sent)
			w.sent = nil
			if last > 0 && n > terms.window {
				t.Fatalf("window %d: %d packets after the acknowledgement of %d", terms.window, n, last)
			}
			last = min(last+terms.window, 401)
			if w.ack(last) {
				break
			}
			w.ack(last)
			w.now = w.now.Add(time.Millisecond)
		}
	}
}

func TestStaleAcknowledgementsAreIgnored(t *testing.T) {
	w := newWire(t, 5000, windowOf4)
	w.ack(4) // before the options are agreed on
	w.expect("OACK")
	w.ack(0)
	w.ack(4)
	w.expect("1 2 3 4 5 6 7 8")
	for _, block := range []int{0, 3, 9, 65535, 40000} {
		w.ack(block)
	}
	w.expect("")
	for _, p := range []string{"", "\x00", "\x00\x04\x00", "\x00\x03\x00\x08data", "\x00\x06blksize\x00", "\xff\xff\x00\x08"} {
		if done, err := w.x.receive([]byte(p), w.now); done || err != nil {
			t.Errorf("%q: %v, %v", p, done, err)
		}
	}
	w.expect("")
}

func TestWindowNumbersWrap(t *testing.T) {
	const block, window = 8, 64
	size := 200_000*block + 5
	w := newWire(t, size, terms{block: block, window: window})
	var got []byte
	for done := false; !done; {
		var last uint16
		for _, p := range w.sent {
			last = binary.BigEndian.Uint16(p[2:])
			got = append(got, p[4:]...)
		}
		w.sent = nil
		done = w.ack(int(last))
	}
	if !bytes.Equal(got, pattern(size)) {
		t.Errorf("got %d bytes of %d, or others", len(got), size)
	}
}

// FuzzClient has clients that acknowledge what they like, when they like: none
// is ever sent more than a window for a packet of its own.
func FuzzClient(f *testing.F) {
	f.Add(uint8(4), []byte{0, 4, 8, 10})
	f.Add(uint8(1), []byte{0, 1, 1, 2, 2, 3, 200, 3})
	f.Add(uint8(64), []byte{0, 10, 10, 10, 250, 10, 20})
	f.Fuzz(func(t *testing.T, window uint8, script []byte) {
		w := newWire(t, 5000, terms{block: 64, window: max(int(window%65), 1), accepted: []option{{"blksize", "64"}}})
		for _, b := range script {
			w.sent = nil
			if b >= 200 { // silence, in steps of 5 ms
				w.now = w.now.Add(time.Duration(b-200) * 5 * time.Millisecond)
				if !w.x.deadline.After(w.now) && w.x.late(w.now) != nil {
					return
				}
			} else if w.ack(int(b)) {
				if w.x.t.acked != 5000 {
					t.Errorf("done after %d bytes", w.x.t.acked)
				}
				return
			}
			if len(w.sent) > w.x.t.terms.window {
				t.Fatalf("%d packets at once, the window is %d", len(w.sent), w.x.t.terms.window)
			}
		}
	})
}

func TestSilence(t *testing.T) {
	for _, tt := range []struct {
		name  string
		terms terms
		want  time.Duration
		count int
	}{
		{"by our own pauses", terms{block: 512, window: 1}, 15800 * time.Millisecond, 20},
		{"as the client asked", terms{block: 512, window: 1, timeout: 6 * time.Second}, 18 * time.Second, 3},
	} {
		w := newWire(t, 5000, tt.terms)
		begin := w.now
		err := w.pass(time.Hour)
		if !errors.Is(err, os.ErrDeadlineExceeded) || w.now.Sub(begin) != tt.want || len(w.sent) != tt.count {
			t.Errorf("%s: %v after %s and %d packets", tt.name, err, w.now.Sub(begin), len(w.sent))
		}
	}
}

func TestFileThatBreaks(t *testing.T) {
	w := newWire(t, 5000, windowOf4)
	w.x.t.file = broken{}
	if _, err := w.x.receive([]byte{0, opAck, 0, 0}, w.now); !errors.Is(err, errBroken) {
		t.Errorf("got %v", err)
	}
}

var errBroken = errors.New("input/output error")

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errBroken }
