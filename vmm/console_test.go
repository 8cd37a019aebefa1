package vmm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
)

func TestSplitter(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		want     []string
		partial  string
	}{
		{"lines", "one\ntwo\r\nthree", []string{"one", "two"}, "three"},
		{"carriage returns before the end", "one\r\r\ntwo\n", []string{"one", "two"}, ""},
		{"SeaBIOS", "\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS (version 1.16.2)\r\n", []string{"SeaBIOS (version 1.16.2)"}, ""},
		{"colours", "\x1b[0;1miPXE 1.0.0\x1b[0m -- \x1b[0;36mhttp://ipxe.org\r\n\x1b[0m", []string{"iPXE 1.0.0 -- http://ipxe.org"}, ""},
		{"progress overwrites", "10%\r20%\r30%", nil, "30%"},
		{"a new place is a new line", "\x1b[2J\x1b[01;01HBdsDxe: loading\x1b[05;01HPress ESC", []string{"BdsDxe: loading"}, "Press ESC"},
		{"the place where it is", "\x1b[10;15H│ \x07 GNU/Li\x1b[10;23H\x1b[10;24Hnux\x1b[11;15H├", []string{"│  GNU/Linux"}, "├"},
		{"another place of the same row", "\x1b[10;15Hone\x1b[10;30Htwo\x1b[10;18Hthree", []string{"one", "two"}, "three"},
		{"no place", "\x1b[?;99999999999999999999Hone\x1b[;Htwo", []string{"one"}, "two"},
		{"backspace", "Ctrl-B...\b \b\b \b\b \bnet0", nil, "Ctrl-Bnet0"},
		{"backspace at the start", "\b\bx", nil, "x"},
		{"prompt", "login: ", nil, "login: "},
		{"line editor redraws its prompt", "$ l\r\x1b[K$ ls\r\x1b[J$ ls", nil, "$ ls"},
		{"erasing up to the cursor is a new screen", "old\x1b[2Jnew", []string{"old"}, "new"},
		{"column", "old\x1b[Gnew", nil, "new"},
		{"forward", "a\x1b[Cb", nil, "a b"},
		{"character set", "\x1b(Ba\x1b)0b\n", []string{"ab"}, ""},
		{"title", "\x1b]0;title\aa\x1b]0;title\x1b\\b\n", []string{"ab"}, ""},
		{"title without an end", "\x1b]0;title\nnext\n", []string{"", "next"}, ""},
		{"sequence cut off by an end of line", "a\x1b[12\nb\n", []string{"a", "b"}, ""},
		{"sequence within a sequence", "\x1b[1\x1b[0ma\n", []string{"a"}, ""},
		{"control characters", "a\x00\x07\x7fb\tc\n", []string{"ab\tc"}, ""},
		{"UTF-8", "grün\n", []string{"grün"}, ""},
		{"no UTF-8", "a\xffb\n", []string{"a\uFFFDb"}, ""},
		{"blank", "\n\n", []string{"", ""}, ""},
		{"too long", strings.Repeat("x", maxLine+1), []string{strings.Repeat("x", maxLine)}, "x"},
	} {
		for _, size := range []int{1, 2, 3, len(tt.in)} {
			var s splitter
			var got []string
			for chunk := range slices.Chunk([]byte(tt.in), size) {
				s.feed(chunk, func(l string) { got = append(got, l) })
			}
			if !slices.Equal(got, tt.want) || s.partial() != tt.partial {
				t.Errorf("%s, %d at a time: %q and %q; want %q and %q", tt.name, size, got, s.partial(), tt.want, tt.partial)
			}
		}
	}
}

func FuzzSplitter(f *testing.F) {
	for _, s := range []string{
		"\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS (version 1.16.2-debian-1.16.2-1)\r\nBooting from Hard Disk...\r\n",
		"Press Ctrl-B for the iPXE command line...\b \b\b \bnet0: 52:54:00:12:34:56\r\n",
		"\x1b[04;01H\x1b[1m\x1b[37m\x1b[40mmap\x1b[0m\x1b[37m\x1b[40m: No mapping found.\r\n",
		"\x1b]0;title\x1b\\ \x1b(B\x1b[12;999999999999999999999999999999999999999C\xff\xc3",
	} {
		f.Add([]byte(s), 1)
	}
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		if size <= 0 || len(in) == 0 {
			return
		}
		var whole, pieces splitter
		var a, b []string
		whole.feed(in, func(l string) { a = append(a, l) })
		for chunk := range slices.Chunk(in, size) {
			pieces.feed(chunk, func(l string) { b = append(b, l) })
		}
		if !slices.Equal(a, b) || whole.partial() != pieces.partial() {
			t.Fatalf("whole %q, in pieces %q", a, b)
		}
		for _, l := range append(a, whole.partial()) {
			if strings.ContainsFunc(l, func(r rune) bool { return r < ' ' && r != '\t' }) || len(l) > 3*maxLine {
				t.Fatalf("line %q", l)
			}
		}
	})
}

// newTestConsole returns a console and the guest's end of it.
func newTestConsole(t *testing.T) (*Console, net.Conn) {
	ours, guest := net.Pipe()
	c := newConsole(ours)
	go c.run()
	t.Cleanup(func() {
		guest.Close()
		<-c.Done()
	})
	return c, guest
}

func say(t *testing.T, guest net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(guest, text); err != nil {
		t.Fatal(err)
	}
}

func TestConsoleExpect(t *testing.T) {
	c, guest := newTestConsole(t)
	say(t, guest, "first\nsecond\nlogin: ")
	for _, re := range []string{"first", "^second$", "^login: $"} {
		if err := c.Expect(t.Context(), regexp.MustCompile(re)); err != nil {
			t.Errorf("%s: %v", re, err)
		}
	}
	found := make(chan error)
	go func() { found <- c.Expect(t.Context(), regexp.MustCompile("^welcome$")) }()
	for i := range 3 * historyLines {
		say(t, guest, fmt.Sprintf("line %d\n", i))
	}
	say(t, guest, "welcome\n")
	if err := <-found; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Expect(ctx, regexp.MustCompile("never")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	say(t, guest, "last words")
	guest.Close()
	if err := c.Expect(t.Context(), regexp.MustCompile("never")); !errors.Is(err, ErrConsoleEnded) {
		t.Errorf("ended: %v", err)
	}
	if err := c.Expect(t.Context(), regexp.MustCompile("last words")); err != nil {
		t.Errorf("after the end: %v", err)
	}
}

func TestConsoleTailAndWatch(t *testing.T) {
	c, guest := newTestConsole(t)
	var seen []string
	stop := c.Watch(func(l string) { seen = append(seen, l) })
	say(t, guest, "one\n\n   \ntwo  \nthr")
	expectPartial(t, c, "thr")
	stop()
	say(t, guest, "ee\nfour")
	expectPartial(t, c, "four")
	if want := []string{"one", "", "   ", "two  "}; !slices.Equal(seen, want) {
		t.Errorf("watched %q; want %q", seen, want)
	}
	for n, want := range [][]string{nil, {"four"}, {"three", "four"}, {"two", "three", "four"}, {"one", "two", "three", "four"}, {"one", "two", "three", "four"}} {
		if got := c.Tail(n); !slices.Equal(got, want) {
			t.Errorf("tail of %d: %q; want %q", n, got, want)
		}
	}
}

func expectPartial(t *testing.T, c *Console, text string) {
	t.Helper()
	if err := c.Expect(t.Context(), regexp.MustCompile("^"+text+"$")); err != nil {
		t.Fatal(err)
	}
}

func TestConsoleKeepsTheEnd(t *testing.T) {
	c, guest := newTestConsole(t)
	line := strings.Repeat("x", 1023) + "\n"
	for range 5 * historySize / len(line) {
		say(t, guest, line)
	}
	say(t, guest, "end")
	expectPartial(t, c, "end")
	var got bytes.Buffer
	c.Attach(&got)()
	if got.Len() != historySize || !strings.HasSuffix(got.String(), "x\nend") {
		t.Errorf("%d bytes are replayed; want %d", got.Len(), historySize)
	}
	if len(c.history) > 2*historySize {
		t.Errorf("%d bytes are kept", len(c.history))
	}
	if tail := c.Tail(100_000); len(tail) > 2*historyLines+1 {
		t.Errorf("%d lines are kept", len(tail))
	}
}

func TestConsoleAttach(t *testing.T) {
	c, guest := newTestConsole(t)
	say(t, guest, "before ")
	expectPartial(t, c, "before ")
	r, w := io.Pipe()
	detach := c.Attach(w)
	buf := make([]byte, 64)
	n, _ := r.Read(buf)
	if string(buf[:n]) != "before " {
		t.Errorf("replayed %q", buf[:n])
	}
	say(t, guest, "\x1b[1mlive")
	n, _ = r.Read(buf)
	if string(buf[:n]) != "\x1b[1mlive" {
		t.Errorf("live %q", buf[:n])
	}
	detach()
	detach()
	say(t, guest, "after")
	expectPartial(t, c, "before liveafter")
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.attached) != 0 {
		t.Errorf("%d writers are attached", len(c.attached))
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestConsoleForgetsABrokenWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, guest := newTestConsole(t)
		detach := c.Attach(brokenWriter{})
		say(t, guest, "x")
		synctest.Wait()
		c.mu.Lock()
		if len(c.attached) != 0 {
			t.Errorf("%d writers are attached", len(c.attached))
		}
		c.mu.Unlock()
		detach()
		guest.Close()
	})
}

// A writer that never returns costs nobody anything but itself.
func TestConsoleSlowWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, guest := newTestConsole(t)
		r, w := io.Pipe()
		detach := c.Attach(w)
		line := strings.Repeat("x", 1023) + "\n"
		say(t, guest, "start\n")
		synctest.Wait() // the writer now hangs with this
		for range 3 * backlogSize / len(line) {
			say(t, guest, line)
		}
		say(t, guest, "end\n")
		expectPartial(t, c, "end")

		all := make(chan string)
		go func() {
			b, _ := io.ReadAll(r)
			all <- string(b)
		}()
		detach()
		w.Close()
		got := <-all
		if !strings.HasPrefix(got, "start\n\r\n[") || !strings.Contains(got, " bytes of output left out]\r\n") || !strings.HasSuffix(got, "x\nend\n") {
			t.Errorf("got %d bytes: %.80q … %q", len(got), got, got[max(0, len(got)-20):])
		}
		if len(got) > backlogSize+100 {
			t.Errorf("%d bytes were kept for it", len(got))
		}
		guest.Close()
	})
}

func TestConsoleDetachDoesNotWaitForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, guest := newTestConsole(t)
		r, w := io.Pipe()
		detach := c.Attach(w)
		say(t, guest, "nobody reads this")
		synctest.Wait()
		detach()
		r.Close()
		guest.Close()
	})
}

func TestConsoleWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, guest := newTestConsole(t)
		go func() {
			if n, err := c.Write([]byte("ls\r")); n != 3 || err != nil {
				t.Errorf("%d, %v", n, err)
			}
		}()
		buf := make([]byte, 16)
		if n, _ := guest.Read(buf); string(buf[:n]) != "ls\r" {
			t.Errorf("the guest reads %q", buf[:n])
		}
		if _, err := c.Write([]byte("x")); err == nil || err.Error() != "the guest does not read its console" {
			t.Errorf("a deaf guest: %v", err)
		}
		guest.Close()
		<-c.Done()
		if _, err := c.Write([]byte("x")); !errors.Is(err, ErrConsoleEnded) {
			t.Errorf("a dead guest: %v", err)
		}
	})
}
