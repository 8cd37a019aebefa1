package tftpd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/internal/nettest"
	"github.com/every-channel/ecboot/internal/timeline"
)

func TestMain(m *testing.M) { nettest.Main(m) }

var loopback = netip.MustParseAddr("127.0.0.1")

// server is a running Server and what it said.
type server struct {
	*Server
	events *eventLog
	log    *logBuffer
	stop   func() // ends Run and waits for it
}

// eventLog collects events; arrived wakes those who wait for one.
type eventLog struct {
	mu      sync.Mutex
	arrived *sync.Cond
	events  []timeline.Event
}

func (l *eventLog) all() []timeline.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]timeline.Event(nil), l.events...)
}

// await returns the first event of a phase.
func (l *eventLog) await(phase timeline.Phase) timeline.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		for _, e := range l.events {
			if e.Phase == phase {
				return e
			}
		}
		l.arrived.Wait()
	}
}

// phases returns the events but Progress, in words.
func (l *eventLog) phases() string {
	var words []string
	for _, e := range l.all() {
		if e.Phase != timeline.Progress {
			words = append(words, [...]string{"point", "begin", "progress", "end", "fail"}[e.Phase])
		}
	}
	return strings.Join(words, " ")
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs a server until the end of the test. Its log holds what is worth a
// line to a user.
func start(t testing.TB, cfg Config) *server {
	t.Helper()
	nettest.NeedRoot(t)
	events := &eventLog{}
	events.arrived = sync.NewCond(&events.mu)
	rec := timeline.New()
	rec.Watch(func(e timeline.Event) {
		events.mu.Lock()
		defer events.mu.Unlock()
		events.events = append(events.events, e)
		events.arrived.Broadcast()
	})
	log := &logBuffer{}
	cfg.Timeline = rec
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.Ready()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return &server{Server: s, events: events, log: log, stop: stop}
}

// pattern is n bytes that differ from block to block.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8 ^ i>>16)
	}
	return b
}

func files() fs.FS {
	return fstest.MapFS{
		"snponly.efi":  {Data: pattern(5000)},
		"boot/grubx64": {Data: pattern(512)},
		"empty":        {},
	}
}

// only gives the same files to every client.
func only(fsys fs.FS) func(netip.Addr) fs.FS { return func(netip.Addr) fs.FS { return fsys } }

// client is a TFTP client that does only what it is told.
type client struct {
	t      testing.TB
	conn   *net.UDPConn
	server *net.UDPAddr // the transfer's own address once it has answered
}

func dial(t testing.TB, at netip.Addr) *client {
	t.Helper()
	return dialFrom(t, netip.IPv4Unspecified(), at)
}

func dialFrom(t testing.TB, from, at netip.Addr) *client {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: from.AsSlice()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &client{t: t, conn: conn, server: net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, DefaultPort))}
}

func (c *client) send(p []byte) {
	c.t.Helper()
	if _, err := c.conn.WriteToUDP(p, c.server); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) request(opcode uint16, words ...string) {
	c.t.Helper()
	c.send(append(binary.BigEndian.AppendUint16(nil, opcode), strings.Join(words, "\x00")+"\x00"...))
}

func (c *client) ack(block uint16) {
	c.t.Helper()
	c.send(binary.BigEndian.AppendUint16([]byte{0, 4}, block))
}

// receive returns the next packet; the deadline is for servers that are broken.
func (c *client) receive() []byte {
	c.t.Helper()
	c.conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	buf := make([]byte, 1<<16)
	for {
		n, from, err := c.conn.ReadFromUDP(buf)
		if err != nil {
			c.t.Fatal(err)
		}
		// Our port may have been another transfer's a moment ago, and its
		// client may still write to it.
		if from.IP.Equal(c.server.IP) {
			c.server = from
			return buf[:n]
		}
	}
}

// fetch acknowledges each block until the last, and returns what came.
func (c *client) fetch(blksize int) []byte {
	c.t.Helper()
	return c.fetchWindows(blksize, 1)
}

func (c *client) fetchWindows(blksize, window int) []byte {
	c.t.Helper()
	var got []byte
	for want := uint16(1); ; {
		p := c.receive()
		if len(p) < 4 || p[1] != 3 {
			c.t.Fatalf("got packet %q, want DATA", p)
		}
		block := binary.BigEndian.Uint16(p[2:])
		if block == want {
			got = append(got, p[4:]...)
			want++
		}
		last := block == want-1 && len(p) < 4+blksize
		if last || int(block)%window == 0 {
			c.ack(block)
		}
		if last {
			return got
		}
	}
}

func parseOACK(t testing.TB, p []byte) map[string]string {
	t.Helper()
	if len(p) < 2 || p[1] != 6 {
		t.Fatalf("got packet %q, want OACK", p)
	}
	words := strings.Split(strings.TrimSuffix(string(p[2:]), "\x00"), "\x00")
	got := map[string]string{}
	for i := 0; i+1 < len(words); i += 2 {
		got[words[i]] = words[i+1]
	}
	return got
}

func TestCleanName(t *testing.T) {
	tests := []struct{ requested, want string }{ // want "" means refused
		{"snponly.efi", "snponly.efi"},
		{"/snponly.efi", "snponly.efi"},
		{"//snponly.efi", "snponly.efi"},
		{"./snponly.efi", "snponly.efi"},
		{"/./boot//./grubx64", "boot/grubx64"},
		{`\boot\grubx64`, "boot/grubx64"},
		{`.\snponly.efi`, "snponly.efi"},
		{"snponly.efi\xff", "snponly.efi"},
		{"snponly.efi\xff\xffjunk", "snponly.efi"},
		{"...", "..."},
		{"a..b", "a..b"},
		{"ümlaut.efi", "ümlaut.efi"},
		{"", ""},
		{"/", ""},
		{".", ""},
		{"\xff", ""},
		{"..", ""},
		{"../etc/passwd", ""},
		{"boot/../../etc/passwd", ""},
		{"boot/..", ""},
		{`..\etc\passwd`, ""},
		{`boot\..\..\etc`, ""},
		{"/..//../etc", ""},
		{"a\nb", ""},
		{"a\x7fb", ""},
		{"\xc3\x28", ""}, // not UTF-8
	}
	for _, tt := range tests {
		got, err := cleanName(tt.requested)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%q: got %q, %v, want %q", tt.requested, got, err, tt.want)
		}
	}
}

func FuzzCleanName(f *testing.F) {
	for _, s := range []string{"snponly.efi", "/a//b", `..\..\x`, "a/../b", "x\xff\xff", ".", "\x00", "a\\/..\\/b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, requested string) {
		name, err := cleanName(requested)
		if err != nil {
			return
		}
		if !fs.ValidPath(name) || name == "." {
			t.Errorf("%q became %q", requested, name)
		}
		if again, err := cleanName(name); again != name || err != nil {
			t.Errorf("%q became %q, then %q, %v", requested, name, again, err)
		}
	})
}

func TestMaxBlock(t *testing.T) {
	for mtu, want := range map[int]int{1500: 1468, 9000: 8968, 65536: 65464, 576: 544, 500: 513} {
		if got := maxBlock(mtu); got != want {
			t.Errorf("MTU %d: got %d, want %d", mtu, got, want)
		}
	}
}

func TestOutcome(t *testing.T) {
	timeout := fmt.Errorf("read: %w", os.ErrDeadlineExceeded)
	gone := fmt.Errorf("read: %w", unix.ECONNREFUSED)
	said := func(code uint16) error { return clientError{code, "words"} }
	tests := []struct {
		name  string
		err   error
		begun bool
		sent  bool
		acked int64
		want  outcome
	}{
		{"all well", nil, true, true, 5000, done},
		{"size probe", said(8), false, false, 0, declined},
		{"size probe of an old ROM", said(0), false, false, 0, declined},
		{"size probe of a ROM that says nothing", gone, false, false, 0, declined},
		{"disk full for that size", said(3), false, false, 0, failed},
		{"asked twice, no options", said(5), true, false, 0, declined},
		{"aborted", said(0), true, false, 3072, failed},
		{"options refused late", said(8), true, false, 3072, failed},
		{"silent from the start", timeout, false, false, 0, failed},
		{"silent after the only block", timeout, true, true, 0, failed},
		{"silent in between", timeout, true, false, 3072, failed},
		{"gone in between", gone, true, false, 3072, failed},
		{"last acknowledgement lost", timeout, true, true, 3072, done},
		{"gone without the last acknowledgement", gone, true, true, 3072, done},
		{"file broken", errors.New("input/output error"), true, false, 3072, failed},
		{"shut down", errStopping, true, false, 3072, failed},
		{"shut down before the last acknowledgement", errStopping, true, true, 3072, done},
		{"made room", errEvicted, false, false, 0, declined},
	}
	for _, tt := range tests {
		if got := outcomeOf(tt.err, tt.begun, tt.sent, tt.acked); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
}

// TestEachEngine fetches through pin/tftp, which has the requests without
// options, and through the loop.
func TestEachEngine(t *testing.T) {
	tests := []struct {
		name string
		mtu  int
		opts []string
		want map[string]string // nil: DATA comes at once
	}{
		{name: "no options"},
		{name: "only unknown ones", opts: []string{"multicast", "", "utimeout", "5000"}},
		{name: "iPXE", opts: []string{"blksize", "1432", "tsize", "0"}, want: map[string]string{"tsize": "5000", "blksize": "1432"}},
		{name: "EDK2", opts: []string{"tsize", "0", "blksize", "1468", "windowsize", "4"}, want: map[string]string{"tsize": "5000", "blksize": "1468", "windowsize": "4"}},
		{name: "jumbo frames", mtu: 9000, opts: []string{"blksize", "65464"}, want: map[string]string{"blksize": "8968"}},
		{name: "tiny blocks in a window", opts: []string{"blksize", "8", "windowsize", "100"}, want: map[string]string{"blksize": "8", "windowsize": "64"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			mtu := tt.mtu
			if mtu == 0 {
				mtu = 1500
			}
			s := start(t, Config{Addr: loopback, Files: only(files()), MTU: mtu})
			c := dial(t, loopback)
			c.request(1, append([]string{"snponly.efi", "octet"}, tt.opts...)...)
			blksize, window := 512, 1
			if tt.want != nil {
				got := parseOACK(t, c.receive())
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Fatal(diff)
				}
				fmt.Sscan(got["blksize"], &blksize)
				fmt.Sscan(got["windowsize"], &window)
				c.ack(0)
			}
			if got := c.fetchWindows(blksize, window); !bytes.Equal(got, pattern(5000)) {
				t.Errorf("got %d bytes that differ", len(got))
			}
			s.events.await(timeline.End)
			s.stop()
			if got := s.events.phases(); got != "begin end" {
				t.Errorf("events %q", got)
			}
			if c := s.Counters(); c.Completed != 1 || c.Bytes != 5000 || c.Active != 0 {
				t.Errorf("counters %+v", c)
			}
		})
	}
}

func TestNetascii(t *testing.T) {
	text := fstest.MapFS{"grub.cfg": {Data: []byte("menu\nx\ry\r\n" + strings.Repeat("line\n", 300))}}
	want := "menu\r\nx\r\x00y\r\x00\r\n" + strings.Repeat("line\r\n", 300)
	start(t, Config{Addr: loopback, Files: only(text)})
	for _, opts := range [][]string{nil, {"blksize", "1000", "tsize", "0", "windowsize", "2"}} {
		c := dial(t, loopback)
		c.request(1, append([]string{"grub.cfg", "NetASCII"}, opts...)...)
		blksize, window := 512, 1
		if opts != nil {
			blksize, window = 1000, 2
			// The size of what will be sent is not known.
			if diff := cmp.Diff(map[string]string{"blksize": "1000", "windowsize": "2"}, parseOACK(t, c.receive())); diff != "" {
				t.Error(diff)
			}
			c.ack(0)
		}
		if got := string(c.fetchWindows(blksize, window)); got != want {
			t.Errorf("%v: got %q", opts, got)
		}
	}
}

func TestRefusals(t *testing.T) {
	const read, write = 1, 2
	s := start(t, Config{Addr: loopback, Files: only(files())})
	tests := []struct {
		opcode uint16
		name   string
		code   byte
	}{
		{read, "../etc/passwd", 2},
		{read, `..\..\etc\passwd`, 2},
		{read, "/boot/../../etc/passwd", 2},
		{read, "", 2},
		{read, "none.efi", 1},
		{read, "/etc/passwd", 1},
		{read, "boot", 1}, // a directory
		{write, "snponly.efi", 2},
		{write, "new", 2},
		{write, "../new", 2},
	}
	for _, tt := range tests {
		c := dial(t, loopback)
		c.request(tt.opcode, tt.name, "octet", "tsize", "0")
		p := c.receive()
		if len(p) < 5 || p[1] != 5 || p[3] != tt.code || p[len(p)-1] != 0 {
			t.Errorf("request %d for %q: got %q, want ERROR %d", tt.opcode, tt.name, p, tt.code)
		}
	}
	s.stop()
	for _, e := range s.events.all() {
		if e.Phase != timeline.Fail || e.Machine != "127.0.0.1" || e.Stage != timeline.TFTP {
			t.Errorf("event %+v", e)
		}
	}
}

func TestEachClientHasItsFiles(t *testing.T) {
	views := map[netip.Addr]fs.FS{
		netip.MustParseAddr("127.0.0.2"): fstest.MapFS{"grub.cfg": {Data: []byte("first")}},
		netip.MustParseAddr("127.0.0.3"): fstest.MapFS{"grub.cfg": {Data: []byte("second")}},
	}
	start(t, Config{Addr: loopback, Files: func(a netip.Addr) fs.FS { return views[a] }})
	for addr, want := range map[string]string{"127.0.0.2": "\x00\x03\x00\x01first", "127.0.0.3": "\x00\x03\x00\x01second", "127.0.0.4": "\x00\x05\x00\x01file not found: grub.cfg\x00"} {
		c := dialFrom(t, netip.MustParseAddr(addr), loopback)
		c.request(1, "grub.cfg", "octet")
		if got := string(c.receive()); got != want {
			t.Errorf("%s: got %q, want %q", addr, got, want)
		}
		c.ack(1)
	}
}

func TestSizeProbeIsNoError(t *testing.T) {
	s := start(t, Config{Addr: loopback, Files: only(files())})
	for _, code := range []byte{8, 0} {
		c := dial(t, loopback)
		c.request(1, "snponly.efi", "octet", "tsize", "0", "blksize", "1468")
		if got := parseOACK(t, c.receive())["tsize"]; got != "5000" {
			t.Errorf("tsize %s", got)
		}
		c.send(errorPacket(uint16(code), "User aborted the transfer"))
	}
	s.stop()
	if s.log.String() != "" || s.events.phases() != "" {
		t.Errorf("a size probe left the log %q and the events %q", s.log, s.events.phases())
	}
}

func TestTimelineOfATransfer(t *testing.T) {
	const mac = "52:54:00:12:34:56"
	s := start(t, Config{Addr: loopback, Files: only(files()), Who: func(a netip.Addr) string {
		if a == loopback {
			return mac
		}
		return ""
	}})
	c := dial(t, loopback)
	c.request(1, "/snponly.efi", "octet")
	c.fetch(512)
	s.stop()
	got := s.events.all()
	for i := range got {
		got[i].At = time.Time{}
	}
	event := timeline.Event{Machine: mac, Stage: timeline.TFTP, Phase: timeline.Begin, Detail: "snponly.efi", Total: 5000}
	want := []timeline.Event{event, event}
	want[1].Phase, want[1].Bytes = timeline.End, 5000
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if s.log.String() != "" {
		t.Errorf("log: %s", s.log)
	}
}

func TestSmallFiles(t *testing.T) {
	start(t, Config{Addr: loopback, Files: only(files())})
	for name, size := range map[string]int{"empty": 0, "boot/grubx64": 512} {
		c := dial(t, loopback)
		c.request(1, name, "octet")
		if got := c.fetch(512); !bytes.Equal(got, pattern(size)) {
			t.Errorf("%s: got %d bytes, want %d", name, len(got), size)
		}
	}
}

func TestLostPacketsAreSentAgain(t *testing.T) {
	s := start(t, Config{Addr: loopback, Files: only(files())})
	c := dial(t, loopback)
	c.request(1, "snponly.efi", "octet", "blksize", "4096")
	oack := c.receive()
	if again := c.receive(); !bytes.Equal(again, oack) {
		t.Fatalf("got %q, want the OACK again", again)
	}
	c.ack(0)
	first := c.receive()
	for first[1] == 6 { // an OACK that was under way
		first = c.receive()
	}
	if again := c.receive(); !bytes.Equal(again, first) {
		t.Fatalf("got %q, want block 1 again", again[:4])
	}
	// Acknowledging twice must not make the server send twice from then on.
	c.ack(1)
	c.ack(1)
	c.finish(first[4:])
	s.stop()
	if got := s.events.phases(); got != "begin end" {
		t.Errorf("events %q", got)
	}
}

// finish takes block 2, the last, and compares both with the file.
func (c *client) finish(first []byte) {
	c.t.Helper()
	for {
		p := c.receive()
		if p[3] == 1 { // sent before the acknowledgement came
			continue
		}
		c.ack(2)
		if got := append(bytes.Clone(first), p[4:]...); !bytes.Equal(got, pattern(5000)) {
			c.t.Errorf("got %d bytes that differ", len(got))
		}
		return
	}
}

func TestLastAcknowledgementMayBeMissing(t *testing.T) {
	s := start(t, Config{Addr: loopback, Files: only(files())})
	c := dial(t, loopback)
	c.request(1, "snponly.efi", "octet", "blksize", "4096")
	c.receive()
	c.ack(0)
	for p := c.receive(); p[1] != 3; p = c.receive() {
	}
	c.ack(1)
	for p := c.receive(); p[3] != 2; p = c.receive() {
	}
	s.stop()
	if got := s.events.phases(); got != "begin end" || s.log.String() != "" {
		t.Errorf("events %q, log %q", got, s.log)
	}
}

func TestShutdownEndsTransfers(t *testing.T) {
	s := start(t, Config{Addr: loopback, Files: only(fstest.MapFS{"large": {Data: make([]byte, 16<<20)}})})
	c := dial(t, loopback)
	c.request(1, "large", "octet")
	p := c.receive()
	go s.stop()
	for p[1] == 3 {
		c.ack(binary.BigEndian.Uint16(p[2:]))
		p = c.receive()
	}
	if p[1] != 5 || !strings.Contains(string(p), "shutting down") {
		t.Errorf("got %q, want ERROR", p)
	}
	if fail := s.events.await(timeline.Fail); !strings.Contains(fail.Detail, "large: the server is shutting down after") {
		t.Errorf("detail %q", fail.Detail)
	}
}

func TestClientThatGivesUp(t *testing.T) {
	s := start(t, Config{Addr: loopback, Files: only(files())})
	c := dial(t, loopback)
	c.request(1, "snponly.efi", "octet")
	c.receive()
	c.send(errorPacket(3, "disk full"))
	fail := s.events.await(timeline.Fail)
	if want := `snponly.efi: the client ended it with error 3 "disk full" after 0 of 5000 bytes`; fail.Detail != want {
		t.Errorf("got  %s\nwant %s", fail.Detail, want)
	}
}

func TestConfigErrors(t *testing.T) {
	nettest.NeedRoot(t)
	holder, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1069})
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	tests := []struct {
		name string
		cfg  Config
		want string
	}{
		{"no address", Config{Files: only(files())}, "give the IPv4 address"},
		{"IPv6", Config{Addr: netip.MustParseAddr("fd00::1"), Files: only(files())}, "give the IPv4 address"},
		{"any address", Config{Addr: netip.IPv4Unspecified(), Files: only(files())}, "give the IPv4 address"},
		{"port taken", Config{Addr: loopback, Port: 1069, Files: only(files())}, "UDP port 1069 of 127.0.0.1: another program holds it; 'ss -ulpn sport = :1069'"},
		{"no such interface", Config{Addr: loopback, Interface: "nolink0", Files: only(files())}, "nolink0: no such network interface"},
		{"no such interface, MTU given", Config{Addr: loopback, Interface: "nolink0", MTU: 1500, Files: only(files())}, "no such device"},
		{"foreign address", Config{Addr: netip.MustParseAddr("192.0.2.1"), Files: only(files())}, "no network interface has that address"},
		{"foreign address, MTU given", Config{Addr: netip.MustParseAddr("192.0.2.1"), MTU: 1500, Files: only(files())}, "this machine does not have that address"},
	}
	for _, tt := range tests {
		if _, err := New(tt.cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

// FuzzRequest sends packets to a running server, then asks it for a file: what
// strangers send must not stop it.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		"", "\x00", "\x00\x01", "\x00\x01snponly.efi\x00octet\x00", "\x00\x01a\x00octet", "\x00\x01\x00\x00",
		"\x00\x01snponly.efi\x00netascii\x00blksize\x0065464\x00tsize\x000\x00", "\x00\x01snponly.efi\x00octet\x00tsize\x00",
		"\x00\x02x\x00octet\x00", "\x00\x03\x00\x01data", "\x00\x04\x00\x01", "\x00\x05\x00\x08no\x00", "\x00\x06blksize\x00512\x00",
		"\x00\x01../../etc/passwd\x00octet\x00", "\xff\xff\xff\xff",
	} {
		f.Add([]byte(s))
	}
	// All workers share one network: each serves on an address of its own.
	pid := os.Getpid()
	addr := netip.AddrFrom4([4]byte{127, 64 | byte(pid>>16), byte(pid >> 8), byte(pid)})
	start(f, Config{Addr: addr, MTU: 1500, Files: only(files())})
	// The stranger wants none of the transfers that it may have begun; left
	// alone, they would soon be as many as the server allows.
	stranger, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 9)})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { stranger.Close() })
	go func() {
		buf := make([]byte, 1<<16)
		for {
			_, from, err := stranger.ReadFromUDP(buf)
			if err != nil {
				return
			}
			stranger.WriteToUDP(errorPacket(codeUndefined, "no"), from)
		}
	}()
	f.Fuzz(func(t *testing.T, packet []byte) {
		if len(packet) > 60000 {
			return
		}
		if _, err := stranger.WriteToUDPAddrPort(packet, netip.AddrPortFrom(addr, DefaultPort)); err != nil {
			t.Fatal(err)
		}
		c := dial(t, addr)
		c.request(1, "boot/grubx64", "octet")
		if got := c.fetch(512); !bytes.Equal(got, pattern(512)) {
			t.Errorf("got %d bytes", len(got))
		}
	})
}
