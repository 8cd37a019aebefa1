package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/every-channel/ecboot/internal/boot"
)

// fakeGuests has one guest, "db", and a console that tells every reader what the
// writer types.
type fakeGuests struct {
	list    []Guest
	stopped chan struct{} // Stop begins
	gone    chan error    // why a Stop that waits gave up

	mu      sync.Mutex
	calls   []string
	readers map[net.Conn]bool
	writer  bool
}

func (f *fakeGuests) did(name, format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if name != "db" && name != "a/b c" {
		return fmt.Errorf("guest %q: %w", name, ErrNotFound)
	}
	f.calls = append(f.calls, name+": "+fmt.Sprintf(format, args...))
	return nil
}

func (f *fakeGuests) List() []Guest { return f.list }

func (f *fakeGuests) Start(_ context.Context, name string) error { return f.did(name, "start") }
func (f *fakeGuests) Reset(_ context.Context, name string) error {
	return errors.Join(f.did(name, "reset"), errors.New("a container has no reset button"))
}

func (f *fakeGuests) Stop(ctx context.Context, name string, firm bool) (string, error) {
	if err := f.did(name, "stop, firm: %t", firm); err != nil {
		return "", err
	}
	if firm {
		return "killed QEMU", nil
	}
	close(f.stopped)
	<-ctx.Done()
	f.gone <- ctx.Err()
	return "", ctx.Err()
}

func (f *fakeGuests) Restart(_ context.Context, name string) (string, error) {
	return "power button", f.did(name, "restart")
}

func (f *fakeGuests) Log(_ context.Context, name string, lines int) ([]byte, error) {
	return []byte("login: \xff\r\n"), f.did(name, "log %d", lines)
}

func (f *fakeGuests) Screenshot(_ context.Context, name string) ([]byte, error) {
	return []byte("\x89PNG"), f.did(name, "screenshot")
}

func (f *fakeGuests) Console(_ context.Context, name string, write bool) (io.ReadWriteCloser, error) {
	if err := f.did(name, "console, write: %t", write); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if write && f.writer {
		return nil, fmt.Errorf("guest %s: %w", name, ErrBusy)
	}
	f.writer = f.writer || write
	ours, theirs := net.Pipe()
	f.readers[ours] = true
	go func() {
		defer ours.Close()
		fmt.Fprint(ours, "history\n")
		typed := bufio.NewReader(ours)
		for {
			line, err := typed.ReadString('\n')
			f.mu.Lock()
			if err != nil {
				delete(f.readers, ours)
				f.writer = f.writer && !write
				f.mu.Unlock()
				return
			}
			for r := range f.readers {
				go io.WriteString(r, line)
			}
			f.mu.Unlock()
		}
	}()
	return pastConsole{theirs}, nil
}

type pastConsole struct{ net.Conn }

func (pastConsole) History() int { return len("history\n") }

func serveGuests(t *testing.T, f *fakeGuests) (c *Client, stop func()) {
	t.Helper()
	f.stopped, f.gone, f.readers = make(chan struct{}), make(chan error, 1), map[net.Conn]bool{}
	path := filepath.Join(t.TempDir(), SocketName)
	s, err := Listen(path, Backend{Status: func() Status { return Status{Schema: Schema} }, Guests: f})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return Connect(path), stop
}

func TestGuests(t *testing.T) {
	f := &fakeGuests{list: []Guest{{
		Name: "db", Node: "host-db", Backend: "qemu", State: Running, PID: 7, MACs: []boot.MAC{{2, 1, 0x27, 0x5b, 0x95, 0x9e}},
		Addresses: []string{"10.77.0.50"}, Drift: []string{"memory is 1G, declared is 2G"}, NICs: []NIC{}, Disks: []Disk{{Path: "/x", Lost: true}},
	}}}
	c, _ := serveGuests(t, f)
	ctx := t.Context()
	list, err := c.Guests(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(f.list, list); diff != "" {
		t.Error(diff)
	}

	if err := c.Start(ctx, "db"); err != nil {
		t.Error(err)
	}
	if err := c.Start(ctx, "a/b c"); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"web", "", ".", "..", "../status", "?", "a%2Fb"} {
		if err := c.Start(ctx, name); !errors.Is(err, ErrNotFound) {
			t.Errorf("start %q: %v", name, err)
		}
	}
	if how, err := c.Stop(ctx, "db", true); err != nil || how != "killed QEMU" {
		t.Errorf("stop: %q, %v", how, err)
	}
	if how, err := c.Restart(ctx, "db"); err != nil || how != "power button" {
		t.Errorf("restart: %q, %v", how, err)
	}
	if err := c.Reset(ctx, "db"); err == nil || err.Error() != "a container has no reset button" {
		t.Errorf("reset: %v", err)
	}
	if text, err := c.Log(ctx, "db", 5); err != nil || string(text) != "login: \xff\r\n" {
		t.Errorf("log: %q, %v", text, err)
	}
	if _, err := c.Log(ctx, "db", -5); err == nil {
		t.Error("a log of -5 lines")
	}
	if png, err := c.Screenshot(ctx, "db"); err != nil || string(png) != "\x89PNG" {
		t.Errorf("screenshot: %q, %v", png, err)
	}
	want := []string{"db: start", "a/b c: start", "db: stop, firm: true", "db: restart", "db: reset", "db: log 5", "db: screenshot"}
	if diff := cmp.Diff(want, f.calls); diff != "" {
		t.Error(diff)
	}
}

// A stop takes as long as the guest, and no longer than its client wants.
func TestCancelledClientCancels(t *testing.T) {
	f := &fakeGuests{}
	c, _ := serveGuests(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-f.stopped
		cancel()
	}()
	if _, err := c.Stop(ctx, "db", false); !errors.Is(err, context.Canceled) {
		t.Errorf("the client got %v", err)
	}
	if err := <-f.gone; !errors.Is(err, context.Canceled) {
		t.Errorf("the server got %v", err)
	}
}

func TestConsole(t *testing.T) {
	f := &fakeGuests{}
	c, stop := serveGuests(t, f)
	ctx := t.Context()
	open := func(ctx context.Context, write bool) (io.ReadWriteCloser, *bufio.Reader) {
		t.Helper()
		conn, err := c.Console(ctx, "db", write)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn, bufio.NewReader(conn)
	}
	line := func(r *bufio.Reader, want string) {
		t.Helper()
		if got, err := r.ReadString('\n'); err != nil || got != want+"\n" {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	one, oneReads := open(ctx, false)
	if past := one.(*Console).History; past != len("history\n") {
		t.Errorf("%d bytes are of the past", past)
	}
	ctxTwo, cancelTwo := context.WithCancel(ctx)
	_, twoReads := open(ctxTwo, false)
	writer, writerReads := open(ctx, true)
	for _, r := range []*bufio.Reader{oneReads, twoReads, writerReads} {
		line(r, "history")
	}
	if _, err := c.Console(ctx, "db", true); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "db") {
		t.Errorf("a second writer: %v", err)
	}
	if _, err := c.Console(ctx, "web", true); !errors.Is(err, ErrNotFound) {
		t.Errorf("no such guest: %v", err)
	}
	io.WriteString(one, "nobody hears a reader\n")
	io.WriteString(writer, "uname\n")
	for _, r := range []*bufio.Reader{oneReads, twoReads, writerReads} {
		line(r, "uname")
	}
	// Who goes is noticed: the writer's part is free again.
	cancelTwo()
	if _, err := twoReads.ReadByte(); err == nil {
		t.Error("a console outlives its context")
	}
	writer.Close()
	for {
		again, err := c.Console(ctx, "db", true)
		if err == nil {
			defer again.Close()
			break
		}
		if !errors.Is(err, ErrBusy) {
			t.Fatal(err)
		}
	}
	stop()
	io.Copy(io.Discard, oneReads) // ends with the server
}

// chatterbox is a console that shows something all the time.
type chatterbox struct {
	typed  chan string // has room
	closed chan struct{}
	once   sync.Once
}

func (c *chatterbox) Read(p []byte) (int, error) {
	select {
	case <-c.closed:
		return 0, io.EOF
	default:
		return len(p), nil
	}
}

func (c *chatterbox) Write(p []byte) (int, error) {
	select {
	case <-c.closed:
		return 0, net.ErrClosed
	default:
		c.typed <- string(p)
		return len(p), nil
	}
}

func (c *chatterbox) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

type chattyGuests struct {
	fakeGuests
	console *chatterbox
}

func (g *chattyGuests) Console(context.Context, string, bool) (io.ReadWriteCloser, error) {
	return g.console, nil
}

// Who types and goes at once is heard, although what the guest shows meanwhile
// finds nobody.
func TestConsoleHearsWhoGoes(t *testing.T) {
	path := filepath.Join(t.TempDir(), SocketName)
	g := &chattyGuests{}
	s, err := Listen(path, Backend{Guests: g})
	if err != nil {
		t.Fatal(err)
	}
	go s.Run(t.Context())
	c := Connect(path)
	for range 100 {
		g.console = &chatterbox{typed: make(chan string, 1), closed: make(chan struct{})}
		conn, err := c.Console(t.Context(), "db", true)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "poweroff\n"); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		<-g.console.closed
		select {
		case <-g.console.typed:
		default:
			t.Fatal("what was typed last is lost")
		}
	}
}

func TestNoGuests(t *testing.T) {
	path := filepath.Join(t.TempDir(), SocketName)
	s, err := Listen(path, Backend{})
	if err != nil {
		t.Fatal(err)
	}
	go s.Run(t.Context())
	c := Connect(path)
	if _, err := c.Guests(t.Context()); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "ecboot up") {
		t.Errorf("%v", err)
	}
	if err := c.Start(t.Context(), "db"); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "ecboot up") {
		t.Errorf("%v", err)
	}
}
