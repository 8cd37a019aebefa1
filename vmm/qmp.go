package vmm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxMessage     = 4 << 20 // bytes in one QMP message; the longest real ones are some 200 KB
	maxEvents      = 1024    // events kept for a consumer that is behind; the oldest go first
	commandTimeout = 10 * time.Second
)

// message is anything that QEMU sends on its monitor.
type message struct {
	Greeting *struct{}       `json:"QMP"`
	Return   json.RawMessage `json:"return"`
	Error    *qmpError       `json:"error"`
	ID       *uint64         `json:"id"`
	event
}

// event is an asynchronous message.
type event struct {
	Name string          `json:"event"`
	Data json.RawMessage `json:"data"`
}

// qmpError is how QEMU refuses a command.
type qmpError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *qmpError) Error() string { return e.Desc }

// parseMessage reads one line of the monitor. A message has one meaning:
// greeting, reply or event.
func parseMessage(line []byte) (*message, error) {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return nil, fmt.Errorf("not a QMP message: %.80q", line)
	}
	meanings := 0
	for _, has := range []bool{m.Greeting != nil, m.Return != nil, m.Error != nil, m.Name != ""} {
		if has {
			meanings++
		}
	}
	if meanings != 1 {
		return nil, fmt.Errorf("not a QMP message: %.80q", line)
	}
	return &m, nil
}

// qmp is the client's end of a monitor.
type qmp struct {
	conn  net.Conn
	ready chan struct{} // closed by the greeting
	done  chan struct{} // closed when nothing more will be read; err says why

	mu       sync.Mutex
	nextID   uint64
	pending  map[uint64]chan *message
	events   []event
	newEvent chan struct{}
	err      error

	writeMu sync.Mutex
}

// newQMP takes over the connection. The monitor takes commands after
// handshake.
func newQMP(conn net.Conn) *qmp {
	q := &qmp{
		conn:     conn,
		ready:    make(chan struct{}),
		done:     make(chan struct{}),
		pending:  map[uint64]chan *message{},
		newEvent: make(chan struct{}, 1),
	}
	go q.read()
	return q
}

func (q *qmp) read() {
	lines := bufio.NewScanner(q.conn)
	lines.Buffer(make([]byte, 0, 4096), maxMessage)
	greeted := false
	var err error
	for err == nil && lines.Scan() {
		if len(lines.Bytes()) == 0 {
			continue
		}
		var m *message
		if m, err = parseMessage(lines.Bytes()); err != nil {
			break
		}
		switch {
		case m.Greeting != nil:
			if !greeted {
				greeted = true
				close(q.ready)
			}
		case m.Name != "":
			q.push(m.event)
		case m.ID != nil:
			q.reply(m)
		default:
			err = fmt.Errorf("QEMU could not read a command: %w", errorOf(m))
		}
	}
	if err == nil {
		err = lines.Err()
	}
	if err == nil || errors.Is(err, net.ErrClosed) {
		err = io.EOF
	}
	q.mu.Lock()
	q.err = err
	q.mu.Unlock()
	close(q.done)
	q.conn.Close()
}

func errorOf(m *message) error {
	if m.Error == nil {
		return errors.New("a reply without an id")
	}
	return m.Error
}

// reply hands a reply to who waits for it, if anybody still does.
func (q *qmp) reply(m *message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if ch := q.pending[*m.ID]; ch != nil {
		delete(q.pending, *m.ID)
		ch <- m
	}
}

// push queues an event. The reader never waits for the consumer, because the
// consumer may be waiting for a reply.
func (q *qmp) push(e event) {
	q.mu.Lock()
	if len(q.events) == maxEvents {
		q.events = q.events[1:]
	}
	q.events = append(q.events, e)
	q.mu.Unlock()
	select {
	case q.newEvent <- struct{}{}:
	default:
	}
}

// next waits for an event; ok is false when there will be no more.
func (q *qmp) next() (e event, ok bool) {
	for {
		q.mu.Lock()
		if len(q.events) > 0 {
			e, q.events = q.events[0], q.events[1:]
			q.mu.Unlock()
			return e, true
		}
		q.mu.Unlock()
		select {
		case <-q.newEvent:
		case <-q.done:
			q.mu.Lock()
			empty := len(q.events) == 0
			q.mu.Unlock()
			if empty {
				return event{}, false
			}
		}
	}
}

// handshake waits for the greeting and leaves negotiation mode.
func (q *qmp) handshake(ctx context.Context) error {
	select {
	case <-q.ready:
		return q.execute(ctx, "qmp_capabilities", nil, nil)
	case <-q.done:
		return q.failure()
	case <-ctx.Done():
		return fmt.Errorf("QEMU's monitor does not greet: %w", context.Cause(ctx))
	}
}

func (q *qmp) failure() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if errors.Is(q.err, io.EOF) {
		return errors.New("QEMU closed its monitor")
	}
	return q.err
}

// execute runs a command and reads what it returns into result, unless that
// is nil. A command without an answer fails after commandTimeout, or earlier
// if ctx says so.
func (q *qmp) execute(ctx context.Context, command string, args, result any) error {
	return q.send(ctx, command, args, result, nil)
}

// send is execute with a file that goes with the command, unless that is nil.
func (q *qmp) send(ctx context.Context, command string, args, result any, file *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()

	answer := make(chan *message, 1)
	q.mu.Lock()
	q.nextID++
	id := q.nextID
	q.pending[id] = answer
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		delete(q.pending, id)
		q.mu.Unlock()
	}()

	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err != nil {
		return fmt.Errorf("QMP %s: %w", command, err)
	}
	if err := q.write(ctx, append(line, '\n'), file); err != nil {
		return fmt.Errorf("QMP %s: %w", command, err)
	}

	var m *message
	select {
	case m = <-answer:
	case <-ctx.Done():
		return fmt.Errorf("QMP %s: no answer: %w", command, context.Cause(ctx))
	case <-q.done:
		// The answer may have been the last thing that came.
		select {
		case m = <-answer:
		default:
			return fmt.Errorf("QMP %s: %w", command, q.failure())
		}
	}
	if m.Error != nil {
		return fmt.Errorf("QMP %s: %w", command, m.Error)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, result); err != nil {
		return fmt.Errorf("QMP %s: the answer is not as expected: %w", command, err)
	}
	return nil
}

func (q *qmp) write(ctx context.Context, line []byte, file *os.File) error {
	q.writeMu.Lock()
	defer q.writeMu.Unlock()
	deadline, _ := ctx.Deadline()
	if err := q.conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	if file == nil {
		_, err := q.conn.Write(line)
		return err
	}
	conn, ok := q.conn.(*net.UnixConn)
	if !ok {
		return errors.New("files go through Unix sockets only")
	}
	// The file goes with the first byte, and the rest as far as there is room.
	n, _, err := conn.WriteMsgUnix(line, unix.UnixRights(int(file.Fd())), nil)
	if err == nil && n < len(line) {
		_, err = conn.Write(line[n:])
	}
	return err
}
