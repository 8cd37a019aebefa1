package vmm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}`

// monitor is QEMU's end of a monitor, played by a test.
type monitor struct {
	t     *testing.T
	conn  net.Conn
	lines *bufio.Scanner
}

type request struct {
	Execute   string
	Arguments json.RawMessage
	ID        json.RawMessage
}

func newMonitor(t *testing.T) (*qmp, *monitor) {
	ours, theirs := net.Pipe()
	t.Cleanup(func() {
		ours.Close()
		theirs.Close()
	})
	return newQMP(ours), &monitor{t: t, conn: theirs, lines: bufio.NewScanner(theirs)}
}

func (m *monitor) send(format string, args ...any) {
	if _, err := fmt.Fprintf(m.conn, format+"\r\n", args...); err != nil {
		m.t.Error(err)
	}
}

func (m *monitor) receive() (r request) {
	if !m.lines.Scan() {
		m.t.Error("the client has gone")
		return r
	}
	if err := json.Unmarshal(m.lines.Bytes(), &r); err != nil {
		m.t.Error(err)
	}
	return r
}

func TestQMPHandshake(t *testing.T) {
	q, m := newMonitor(t)
	go func() {
		m.send(greeting)
		r := m.receive()
		if r.Execute != "qmp_capabilities" || r.Arguments != nil {
			t.Errorf("first command %+v", r)
		}
		m.send(`{"return": {}, "id": %s}`, r.ID)
	}()
	if err := q.handshake(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestQMPHandshakeFails(t *testing.T) {
	for _, tt := range []struct {
		name string
		play func(*monitor)
		want string
	}{
		{"closes", func(m *monitor) { m.conn.Close() }, "QEMU closed its monitor"},
		{"no QMP", func(m *monitor) { m.send("SSH-2.0-OpenSSH_9.2") }, "not a QMP message"},
		{"refuses", func(m *monitor) {
			m.send(greeting)
			m.send(`{"id": %s, "error": {"class": "CommandNotFound", "desc": "not today"}}`, m.receive().ID)
		}, "QMP qmp_capabilities: not today"},
	} {
		q, m := newMonitor(t)
		go tt.play(m)
		if err := q.handshake(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", tt.name, err, tt.want)
		}
	}
	q, _ := newMonitor(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := q.handshake(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// Replies go to who asked, in whatever order they come and with whatever
// events between them, also when nobody takes the events.
func TestQMPMatchesReplies(t *testing.T) {
	q, m := newMonitor(t)
	go func() {
		a, b := m.receive(), m.receive()
		for i := range 3 * maxEvents {
			m.send(`{"event": "E%d", "timestamp": {"seconds": 1, "microseconds": 2}}`, i)
		}
		for _, r := range []request{b, a} {
			m.send(`{"return": %q, "id": %s}`, r.Execute, r.ID)
		}
		m.conn.Close()
	}()
	errs := make(chan error, 2)
	for _, name := range []string{"one", "two"} {
		go func() {
			var got string
			err := q.execute(t.Context(), name, map[string]int{"a": 1}, &got)
			if err == nil && got != name {
				err = fmt.Errorf("%s got the answer of %s", name, got)
			}
			errs <- err
		}()
	}
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	var events []string
	for e, ok := q.next(); ok; e, ok = q.next() {
		events = append(events, e.Name)
	}
	if len(events) != maxEvents || events[len(events)-1] != fmt.Sprintf("E%d", 3*maxEvents-1) {
		t.Errorf("%d events, the last is %s; want the newest %d", len(events), events[len(events)-1], maxEvents)
	}
}

func TestQMPLateReplyIsIgnored(t *testing.T) {
	q, m := newMonitor(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		late := m.receive()
		cancel()
		next := m.receive()
		m.send(`{"return": "late", "id": %s}`, late.ID)
		m.send(`{"return": "next", "id": %s}`, next.ID)
	}()
	if err := q.execute(ctx, "slow", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	var got string
	if err := q.execute(t.Context(), "quick", nil, &got); err != nil || got != "next" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestQMPErrors(t *testing.T) {
	q, m := newMonitor(t)
	go func() {
		m.send(`{"return": 1, "id": %s}`, m.receive().ID)
		m.receive()
		m.send(`{"error": {"class": "GenericError", "desc": "Invalid JSON syntax"}}`)
	}()
	var text string
	if err := q.execute(t.Context(), "number", nil, &text); err == nil || !strings.Contains(err.Error(), "not as expected") {
		t.Errorf("a number as text: %v", err)
	}
	if err := q.execute(t.Context(), "x", func() {}, nil); err == nil {
		t.Error("a func was sent")
	}
	if err := q.execute(t.Context(), "garbled", nil, nil); err == nil || !strings.Contains(err.Error(), "Invalid JSON syntax") {
		t.Errorf("an error without id: %v", err)
	}
	if err := q.execute(t.Context(), "after", nil, nil); err == nil {
		t.Error("a dead monitor answers")
	}
	if len(q.pending) != 0 {
		t.Errorf("%d commands are still waited for", len(q.pending))
	}
}

func TestQMPRefusesEndlessMessages(t *testing.T) {
	q, m := newMonitor(t)
	go func() {
		junk := strings.Repeat("a", 1<<16)
		var err error
		for err == nil {
			_, err = m.conn.Write([]byte(junk))
		}
	}()
	<-q.done
	if err := q.failure(); !errors.Is(err, bufio.ErrTooLong) {
		t.Errorf("error %v", err)
	}
}

func TestParseMessage(t *testing.T) {
	for _, tt := range []struct {
		line string
		ok   bool
	}{
		{greeting, true},
		{`{"return": {}, "id": 1}`, true},
		{`{"return": null, "id": 1}`, true},
		{`{"return": {}}`, true},
		{`{"error": {"class": "GenericError", "desc": "x"}, "id": 1}`, true},
		{`{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}`, true},
		{`{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}`, true},
		{`{}`, false},
		{`null`, false},
		{`[]`, false},
		{`{"return": {}, "event": "STOP"}`, false},
		{`{"return": {}, "id": -1}`, false},
		{`{"return": {}, "id": "a"}`, false},
		{`{"event": 1}`, false},
		{`{"return"`, false},
	} {
		if _, err := parseMessage([]byte(tt.line)); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.line, err)
		}
	}
}

func FuzzParseMessage(f *testing.F) {
	f.Add([]byte(greeting))
	f.Add([]byte(`{"return": {"status": "running"}, "id": 1}`))
	f.Add([]byte(`{"error": {"class": "GenericError", "desc": "x"}, "id": 18446744073709551615}`))
	f.Add([]byte(`{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}`))
	f.Add([]byte(`{"event": "", "return": null, "QMP": null}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := parseMessage(line)
		if (m == nil) == (err == nil) {
			t.Fatalf("%v and %v", m, err)
		}
		if m != nil && m.Greeting == nil && m.Name == "" && m.Return == nil && m.Error == nil {
			t.Fatal("a message without a meaning")
		}
	})
}
