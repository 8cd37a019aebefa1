package vmm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	historySize  = 64 << 10 // bytes of raw output kept
	historyLines = 4096     // lines of text kept
	backlogSize  = 1 << 20  // bytes that an attached writer may be behind

	inputDeadline  = 5 * time.Second
	detachPatience = time.Second
)

// ErrConsoleEnded says that a console has no more output: its machine is gone.
var ErrConsoleEnded = errors.New("the console has ended")

// Console is a machine's serial port. What the guest writes is always read at
// once, whoever looks on, so that no guest waits for its console. All methods
// may be called at the same time.
type Console struct {
	conn Terminal
	done chan struct{} // closed when the output has ended

	mu       sync.Mutex
	history  []byte // the newest output, at most historySize
	lines    []string
	dropped  int // lines that are no longer kept
	split    splitter
	ended    bool
	attached map[*attachment]struct{}
	watchers map[int]func(string)
	prompt   func(string) // is shown the unfinished line after each read; nil: nobody
	nextID   int
	changed  chan struct{} // closed and replaced whenever output comes
}

// Terminal is what a console is read from and written to: a connection, or the
// master of a pseudo terminal.
type Terminal interface {
	io.ReadWriteCloser
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// NewConsole is the console of something that is no Machine, such as a
// container. It reads conn until that fails, which includes a read deadline, and
// closes it then.
func NewConsole(conn Terminal) *Console {
	c := newConsole(conn)
	go c.run()
	return c
}

func newConsole(conn Terminal) *Console {
	return &Console{
		conn:     conn,
		done:     make(chan struct{}),
		attached: map[*attachment]struct{}{},
		watchers: map[int]func(string){},
		changed:  make(chan struct{}),
	}
}

// run reads the output until it ends. A read error is an end too: QEMU's
// death may come as one.
func (c *Console) run() {
	buf := make([]byte, 32<<10)
	for {
		n, err := c.conn.Read(buf)
		if n > 0 {
			c.feed(buf[:n])
		}
		if err != nil {
			break
		}
	}
	c.finish()
	c.conn.Close()
}

func (c *Console) feed(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.history = append(c.history, p...)
	// Twice the size before it is cut, so that bytes are moved rarely.
	if len(c.history) > 2*historySize {
		c.history = append(c.history[:0], c.history[len(c.history)-historySize:]...)
	}
	for a := range c.attached {
		a.push(p)
	}
	c.split.feed(p, c.line)
	if c.prompt != nil {
		c.prompt(c.split.partial())
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *Console) line(s string) {
	if len(c.lines) == 2*historyLines {
		c.lines = slices.Delete(c.lines, 0, historyLines)
		c.dropped += historyLines
	}
	c.lines = append(c.lines, s)
	for _, watch := range c.watchers {
		watch(s)
	}
}

// finish ends the console. A last line without its end counts as a line.
func (c *Console) finish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.split.endIfAny(c.line)
	c.ended = true
	close(c.changed)
	close(c.done)
}

// Done is closed when the console's output has ended.
func (c *Console) Done() <-chan struct{} { return c.done }

// Write sends input to the guest. It fails when the guest leaves its input
// unread for seconds.
func (c *Console) Write(p []byte) (int, error) {
	if err := c.conn.SetWriteDeadline(time.Now().Add(inputDeadline)); err != nil {
		return 0, ErrConsoleEnded
	}
	n, err := c.conn.Write(p)
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return n, errors.New("the guest does not read its console")
	}
	return n, ErrConsoleEnded
}

// Tail returns the last n lines of text that are not blank, oldest first,
// without escape sequences; a line that has not ended yet is the last of them.
func (c *Console) Tail(n int) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var tail []string
	add := func(line string) {
		if line = strings.TrimRight(line, " \t"); line != "" && len(tail) < n {
			tail = append(tail, line)
		}
	}
	add(c.split.partial())
	for _, line := range slices.Backward(c.lines) {
		if len(tail) >= n {
			break
		}
		add(line)
	}
	slices.Reverse(tail)
	return tail
}

// Watch calls fn with each line of text from now on, until cancel is called.
// Lines come one at a time and in order; fn must be quick and must not call
// the Console.
func (c *Console) Watch(fn func(line string)) (cancel func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	id := c.nextID
	c.nextID++
	c.watchers[id] = fn
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.watchers, id)
	}
}

// Expect waits until a line of text matches re. Lines that came before count,
// as far as they are kept, and so does a line that has not ended, such as a
// prompt. The error is that of ctx, or ErrConsoleEnded.
func (c *Console) Expect(ctx context.Context, re *regexp.Regexp) error {
	for seen := 0; ; {
		c.mu.Lock()
		changed, ended := c.changed, c.ended
		fresh := slices.Clone(c.lines[min(max(0, seen-c.dropped), len(c.lines)):])
		seen = c.dropped + len(c.lines)
		partial := c.split.partial()
		c.mu.Unlock()

		if partial != "" {
			fresh = append(fresh, partial)
		}
		if slices.ContainsFunc(fresh, re.MatchString) {
			return nil
		}
		if ended {
			return fmt.Errorf("%w before a line matched %s", ErrConsoleEnded, re)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// attachment is a writer that sees a console.
type attachment struct {
	w    io.Writer
	done chan struct{} // closed when nothing more will be written
	wake chan struct{} // has room for one

	mu      sync.Mutex
	backlog []byte
	lost    int
	closed  bool // nothing more will come
}

// History is how many bytes of the past Attach would begin with now.
func (c *Console) History() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return min(len(c.history), historySize)
}

// Attach writes all output to w, first what is kept of the past, then what
// comes, until detach is called or w fails. A writer that is too slow misses
// some of it and is told so in its place; the guest never waits for it. detach
// lets w have what came before, unless that takes more than a moment.
func (c *Console) Attach(w io.Writer) (detach func()) {
	a := &attachment{w: w, done: make(chan struct{}), wake: make(chan struct{}, 1)}
	c.mu.Lock()
	a.push(c.history[max(0, len(c.history)-historySize):])
	c.attached[a] = struct{}{}
	c.mu.Unlock()
	remove := func() {
		c.mu.Lock()
		delete(c.attached, a)
		c.mu.Unlock()
	}
	go func() {
		a.run()
		remove()
	}()
	return func() {
		remove()
		a.close()
		select {
		case <-a.done:
		case <-time.After(detachPatience):
		}
	}
}

func (a *attachment) push(p []byte) {
	a.mu.Lock()
	if over := len(a.backlog) + len(p) - backlogSize; over > 0 {
		cut := min(over, len(a.backlog))
		a.lost += over
		a.backlog = a.backlog[cut:]
		p = p[over-cut:]
	}
	a.backlog = append(a.backlog, p...)
	a.mu.Unlock()
	a.signal()
}

func (a *attachment) close() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.signal()
}

func (a *attachment) signal() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

func (a *attachment) run() {
	defer close(a.done)
	for range a.wake {
		a.mu.Lock()
		p, lost, closed := a.backlog, a.lost, a.closed
		a.backlog, a.lost = nil, 0
		a.mu.Unlock()
		if lost > 0 {
			p = slices.Concat(fmt.Appendf(nil, "\r\n[%d bytes of output left out]\r\n", lost), p)
		}
		if len(p) > 0 {
			if _, err := a.w.Write(p); err != nil {
				return
			}
		}
		if closed {
			return
		}
	}
}
