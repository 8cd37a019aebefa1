package httpboot

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/nettest"
	"github.com/every-channel/ecboot/internal/timeline"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// eventLog collects events; arrived wakes those who wait for one.
type eventLog struct {
	mu      sync.Mutex
	arrived *sync.Cond
	events  []timeline.Event
}

func newEventLog() (*eventLog, *timeline.Recorder) {
	l := &eventLog{}
	l.arrived = sync.NewCond(&l.mu)
	rec := timeline.New()
	rec.Watch(func(e timeline.Event) {
		l.mu.Lock()
		defer l.mu.Unlock()
		e.At = time.Time{}
		l.events = append(l.events, e)
		l.arrived.Broadcast()
	})
	return l, rec
}

// take returns what happened since the last call, without Progress.
func (l *eventLog) take() []timeline.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	var got []timeline.Event
	for _, e := range l.events {
		if e.Phase != timeline.Progress {
			got = append(got, e)
		}
	}
	l.events = nil
	return got
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

// ended waits for the end of the only transfer, which its client does not wait
// for, and takes it.
func (l *eventLog) ended() timeline.Event {
	end := l.await(timeline.End)
	l.take()
	return end
}

// pattern is n bytes that differ from block to block.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8 ^ i>>16)
	}
	return b
}

const (
	kernelSize = 1_500_000
	initrdSize = 5_000_000
	nbpSize    = 173_792
)

// inventory is one profile with files, one with a script, one whose kernel is
// missing, one whose kernel is a directory, and machines.
func inventory(t testing.TB) *boot.Inventory {
	t.Helper()
	dir := t.TempDir()
	file := func(name string, size int) boot.File {
		path := filepath.Join(dir, name+".on-disk")
		if err := os.WriteFile(path, pattern(size), 0o644); err != nil {
			t.Fatal(err)
		}
		mtime := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
		if err := os.Chtimes(path, mtime, mtime); err != nil {
			t.Fatal(err)
		}
		return boot.File{Name: name, Path: path}
	}
	def := boot.Profile{Name: "default", Kernel: file("vmlinuz", kernelSize), Initrds: []boot.File{file("initramfs.zst", initrdSize)}, Cmdline: "quiet"}
	return &boot.Inventory{
		Machines: map[boot.MAC]boot.Machine{
			mac: {MAC: mac, Name: "node1"},
			{2}: {MAC: boot.MAC{2}, Profile: "own"},
			{3}: {MAC: boot.MAC{3}, Profile: "none"},
		},
		Profiles: map[string]boot.Profile{
			"default": def,
			"own":     {Name: "own", Script: "#!ipxe\nsanboot\n"},
			"missing": {Name: "missing", Kernel: boot.File{Name: "vmlinuz", Path: filepath.Join(dir, "gone")}},
			"folder":  {Name: "folder", Kernel: boot.File{Name: "vmlinuz", Path: dir}},
		},
		Default: "default",
	}
}

func nbps() fs.FS {
	return fstest.MapFS{
		"snponly.efi":      {Data: pattern(nbpSize)},
		"shim/grubx64.efi": {Data: pattern(1000)},
		"grub/grub.cfg":    {Data: pattern(1000)},
	}
}

func files(netip.Addr) fs.FS { return nbps() }

const clientMAC = "52:54:00:ab:cd:ef"

// handler is a server without a socket; httptest's clients are 192.0.2.1.
func handler(t testing.TB) (*Server, *eventLog) {
	t.Helper()
	inv := inventory(t)
	events, rec := newEventLog()
	return newServer(Config{
		Addr:      addr,
		Inventory: func() *boot.Inventory { return inv },
		Files:     files,
		Who: func(a netip.Addr) string {
			if a == netip.MustParseAddr("192.0.2.1") {
				return clientMAC
			}
			return ""
		},
		Timeline: rec,
	}), events
}

// request reads a request as it is on the wire.
func request(t testing.TB, method, target string, header ...string) *http.Request {
	t.Helper()
	head := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: x\r\n%s\r\n", method, target, strings.Join(append(header, ""), "\r\n"))
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head)))
	if err != nil {
		t.Fatalf("%s %s: %v", method, target, err)
	}
	r.RemoteAddr = "192.0.2.1:1234"
	return r
}

func do(h http.Handler, r *http.Request) *http.Response {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec.Result()
}

func TestPaths(t *testing.T) {
	s, _ := handler(t)
	const script, kernel, initrd, nbp = "/ipxe/52:54:00:12:34:56", "/profile/default/vmlinuz", "/profile/default/initramfs.zst", "/nbp/snponly.efi"
	tests := []struct {
		method, target string
		status         int
	}{
		{"GET", "/", 200},
		{"GET", "//", 200},
		{"HEAD", "/", 200},
		{"POST", "/", 405},
		{"GET", script, 200},
		{"GET", "/ipxe/52-54-00-12-34-56", 200},
		{"GET", "/ipxe/525400123456", 200},
		{"HEAD", script, 200},
		{"GET", "//ipxe//52:54:00:12:34:56", 200},
		{"GET", "/ipxe/52%3A54%3A00%3A12%3A34%3A56", 200},
		{"GET", "/ipxe/unknown", 400},
		{"GET", "/ipxe/", 404},
		{"GET", "/ipxe", 404},
		{"GET", script + "/more", 404},
		{"PUT", script, 405},
		{"GET", kernel, 200},
		{"GET", initrd, 200},
		{"GET", kernel + "?x=y", 200},
		{"GET", "http://elsewhere" + kernel, 200},
		{"GET", "/./profile/./default//vmlinuz", 200},
		{"DELETE", kernel, 405},
		{"OPTIONS", "*", 400},
		{"GET", "/profile/default/", 404},
		{"GET", "/profile/default/none", 404},
		{"GET", "/profile/none/vmlinuz", 404},
		{"GET", "/profile/missing/vmlinuz", 404},
		{"GET", "/profile/folder/vmlinuz", 500},
		{"GET", "/profile/own/", 404},
		{"GET", "/profile/default/vmlinuz.on-disk", 404},
		{"GET", "/profile/default/../default/vmlinuz", 400},
		{"GET", "/profile/default/%2e%2e/default/vmlinuz", 400},
		{"GET", "/profile/default/..%2f..%2f..%2fetc%2fpasswd", 400},
		{"GET", `/profile/default/..\..\etc\passwd`, 404},
		{"GET", "/profile/default/%2fetc%2fpasswd", 404},
		{"GET", "/profile/default/vmlinuz%00", 400},
		{"GET", "/profile/default/vmlinuz%0a", 400},
		{"GET", "/profile/default/%ff", 400},
		{"GET", "/../../etc/passwd", 400},
		{"GET", "/etc/passwd", 404},
		{"GET", nbp, 200},
		{"GET", "//nbp/snponly.efi", 200},
		{"GET", "/nbp//snponly.efi", 200},
		{"GET", "/nbp/./snponly.efi", 200},
		{"GET", "/nbp/shim//grubx64.efi", 200},
		{"GET", "/nbp/shim", 404},
		{"GET", "/nbp/none.efi", 404},
		{"GET", "/nbp/../nbp/snponly.efi", 400},
		{"GET", "/nbp", 404},
		{"GET", "//snponly.efi", 200},
		{"GET", "/grub/grub.cfg", 200},
		{"HEAD", "/grub/grub.cfg", 200},
		{"GET", "/grub/none.cfg", 404},
		{"PUT", "/grub/grub.cfg", 405},
		{"GET", "/phone-home/52:54:00:12:34:56", 405},
		{"POST", "/phone-home/nobody", 400},
		{"POST", "/failed/52:54:00:12:34:56", 405},
		{"GET", "/failed/52:54:00:12:34:56?stage=kernel", 200},
		{"GET", "/failed/52:54:00:12:34:56?stage=nbp", 200},
		{"GET", "/failed/52:54:00:12:34:56?stage=other", 400},
	}
	for _, tt := range tests {
		res := do(s, request(t, tt.method, tt.target))
		if res.StatusCode != tt.status {
			t.Errorf("%s %s: got %d, want %d", tt.method, tt.target, res.StatusCode, tt.status)
		}
		if res.StatusCode == 405 && res.Header.Get("Allow") == "" {
			t.Errorf("%s %s: no Allow", tt.method, tt.target)
		}
	}
}

// TestStrangersAreRefused asks from another network.
func TestStrangersAreRefused(t *testing.T) {
	var log bytes.Buffer
	events, rec := newEventLog()
	s := newServer(Config{Addr: addr, Files: files, Timeline: rec, Logger: slog.New(slog.NewTextHandler(&log, nil)),
		Allow: netip.MustParsePrefix("10.77.0.0/24").Contains})
	for _, tt := range []struct {
		from, method, target string
		status               int
	}{
		{"10.77.0.50:1", "GET", "/nbp/snponly.efi", 200},
		{"[::ffff:10.77.0.50]:1", "GET", "/nbp/snponly.efi", 200},
		{"192.0.2.1:1", "GET", "/nbp/snponly.efi", 403},
		{"192.0.2.1:1", "HEAD", "/", 403},
		{"192.0.2.1:1", "POST", "/phone-home/52:54:00:12:34:56", 403},
		{"[fe80::1%eth0]:1", "GET", "/", 403},
		{"", "GET", "/", 403},
	} {
		events.take()
		r := request(t, tt.method, tt.target)
		r.RemoteAddr = tt.from
		if res := do(s, r); res.StatusCode != tt.status || res.ContentLength <= 0 {
			t.Errorf("%s: status %d with %d bytes, want %d", tt.from, res.StatusCode, res.ContentLength, tt.status)
		}
		if got := events.take(); tt.status == 403 && got != nil {
			t.Errorf("%s: %+v", tt.from, got)
		}
	}
	if n, lines := s.Counters().Foreign, strings.Count(log.String(), "\n"); n != 5 || lines != 1 {
		t.Errorf("%d refused, want 5; %d lines:\n%s", n, lines, &log)
	}
}

func FuzzPath(f *testing.F) {
	for _, s := range []string{"/", "//nbp/snponly.efi", "/profile/default/%2e%2e/x", "/ipxe/52:54:00:12:34:56", "/nbp/..%5c", "/failed/525400123456?stage=initrd&errno=2d0c613b", "*", "http://x//"} {
		f.Add("GET", s)
	}
	s, _ := handler(f)
	served := map[int]bool{kernelSize: true, initrdSize: true, nbpSize: true, 1000: true}
	f.Fuzz(func(t *testing.T, method, target string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(method + " " + target + " HTTP/1.1\r\nHost: x\r\n\r\n")))
		if err != nil {
			return
		}
		r.RemoteAddr = "192.0.2.1:1234"
		res := do(s, r)
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.HasPrefix(res.Header.Get("Content-Type"), "text/plain")
		switch {
		case res.StatusCode >= 300 && res.StatusCode < 400:
			t.Errorf("%s %s: redirected with %d", method, target, res.StatusCode)
		case res.StatusCode == 200 && !text && r.Method == "GET" && !served[len(body)]:
			t.Errorf("%s %s: %d bytes of what is not ours to serve", method, target, len(body))
		}
	})
}

func TestScriptAnswer(t *testing.T) {
	s, events := handler(t)
	script := func(m boot.MAC) *http.Request { return request(t, "GET", boot.ScriptPath(m)) }
	tests := []struct {
		mac   boot.MAC
		body  string // a part of it
		event timeline.Event
	}{
		{mac, "kernel http://10.77.0.1/profile/default/vmlinuz quiet initrd=initramfs.zst BOOTIF=01-52-54-00-12-34-56 ecboot.url=http://10.77.0.1/phone-home/52:54:00:12:34:56 ${qemu} || goto failed", timeline.Event{Detail: "default"}},
		{boot.MAC{9}, "kernel http://10.77.0.1/profile/default/vmlinuz", timeline.Event{Detail: "default"}},
		{boot.MAC{2}, "#!ipxe\nsanboot\n", timeline.Event{Detail: "own"}},
		{boot.MAC{3}, "no profile for 03:00:00:00:00:00", timeline.Event{Phase: timeline.Fail, Detail: "no profile for 03:00:00:00:00:00"}},
	}
	for _, tt := range tests {
		res := do(s, script(tt.mac))
		body, _ := io.ReadAll(res.Body)
		if !strings.Contains(string(body), tt.body) {
			t.Errorf("%s: got %s", tt.mac, body)
		}
		if got := res.Header.Get("Content-Length"); got != fmt.Sprint(len(body)) {
			t.Errorf("%s: Content-Length %s of %d", tt.mac, got, len(body))
		}
		if got := res.Header.Get("Content-Type"); got != "text/plain; charset=utf-8" {
			t.Errorf("%s: %s", tt.mac, got)
		}
		tt.event.Machine, tt.event.Stage, tt.event.Bytes = tt.mac.String(), timeline.Script, int64(len(body))
		if diff := cmp.Diff([]timeline.Event{tt.event}, events.take()); diff != "" {
			t.Error(diff)
		}
	}
	do(s, request(t, "HEAD", boot.ScriptPath(mac)))
	if got := events.take(); got != nil {
		t.Errorf("HEAD recorded %+v", got)
	}
}

func TestTransfers(t *testing.T) {
	s, events := handler(t)
	// The first to ask learns no digest, and does not wait for one.
	if tag := do(s, request(t, "HEAD", "/profile/default/vmlinuz")).Header.Get("ETag"); tag != "" {
		t.Errorf("the file was digested while a client waited: %s", tag)
	}
	s.digests.digestAll()
	etag := `"` + sum(pattern(kernelSize)) + `"`
	if tag := do(s, request(t, "HEAD", "/profile/default/vmlinuz")).Header.Get("ETag"); tag != etag {
		t.Errorf("ETag %s, want %s", tag, etag)
	}
	transfer := func(stage timeline.Stage, name string, n int64) []timeline.Event {
		e := timeline.Event{Machine: clientMAC, Stage: stage, Phase: timeline.Begin, Detail: name, Total: n}
		end := e
		end.Phase, end.Bytes = timeline.End, n
		return []timeline.Event{e, end}
	}
	tests := []struct {
		name   string
		req    *http.Request
		status int
		length int64  // Content-Length; -1: not looked at
		body   []byte // nil: not looked at
		kind   string
		events []timeline.Event
	}{
		{"kernel", request(t, "GET", "/profile/default/vmlinuz"), 200, kernelSize, pattern(kernelSize), "application/octet-stream", transfer(timeline.Kernel, "vmlinuz", kernelSize)},
		{"initrd", request(t, "GET", "/profile/default/initramfs.zst"), 200, initrdSize, pattern(initrdSize), "application/octet-stream", transfer(timeline.Initrd, "initramfs.zst", initrdSize)},
		{"boot program", request(t, "GET", "/nbp/snponly.efi"), 200, nbpSize, pattern(nbpSize), "application/efi", transfer(timeline.HTTPBoot, "snponly.efi", nbpSize)},
		{"HEAD", request(t, "HEAD", "/nbp/snponly.efi"), 200, nbpSize, []byte{}, "application/efi", nil},
		{"rest of a file", request(t, "GET", "/profile/default/vmlinuz", "Range: bytes=1000000-"), 206, 500_000, pattern(kernelSize)[1_000_000:], "application/octet-stream", transfer(timeline.Kernel, "vmlinuz", 500_000)},
		{"rest of the file it knows", request(t, "GET", "/profile/default/vmlinuz", "Range: bytes=1000000-", "If-Range: "+etag), 206, 500_000, nil, "application/octet-stream", transfer(timeline.Kernel, "vmlinuz", 500_000)},
		{"rest of another file", request(t, "GET", "/profile/default/vmlinuz", "Range: bytes=1000000-", `If-Range: "old"`), 200, kernelSize, nil, "application/octet-stream", transfer(timeline.Kernel, "vmlinuz", kernelSize)},
		{"unchanged", request(t, "GET", "/profile/default/vmlinuz", "If-None-Match: "+etag), 304, -1, []byte{}, "", nil},
		{"beyond the end", request(t, "GET", "/profile/default/vmlinuz", "Range: bytes=9999999-"), 416, -1, nil, "text/plain; charset=utf-8", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			res := do(s, tt.req)
			body, _ := io.ReadAll(res.Body)
			if res.StatusCode != tt.status {
				t.Errorf("status %d, want %d", res.StatusCode, tt.status)
			}
			if tt.length >= 0 && res.ContentLength != tt.length {
				t.Errorf("Content-Length %d, want %d", res.ContentLength, tt.length)
			}
			if tt.body != nil && !bytes.Equal(body, tt.body) {
				t.Errorf("body of %d bytes differs, want %d", len(body), len(tt.body))
			}
			if got := res.Header.Get("Content-Type"); got != tt.kind {
				t.Errorf("Content-Type %q, want %q", got, tt.kind)
			}
			if diff := cmp.Diff(tt.events, events.take()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func FuzzRange(f *testing.F) {
	for _, s := range [][2]string{{"bytes=0-9", ""}, {"bytes=-1", ""}, {"bytes=1000-", `"x"`}, {"bytes=0-0,2-3,-5", ""}, {"bytes=9999999-", ""}, {"bytes=5-1", ""}, {"bytes=18446744073709551615-", ""}, {"lines=1-2", "Sat, 01 Jan 2000 00:00:00 GMT"}} {
		f.Add(s[0], s[1])
	}
	s, _ := handler(f)
	want := pattern(nbpSize)
	f.Fuzz(func(t *testing.T, ranges, ifRange string) {
		r := request(t, "GET", "/nbp/snponly.efi")
		r.Header.Set("Range", ranges)
		r.Header.Set("If-Range", ifRange)
		res := do(s, r)
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		if n, _ := strconv.Atoi(res.Header.Get("Content-Length")); n != len(body) && res.StatusCode != 416 { // net/http adds that one's
			t.Errorf("%q: Content-Length %d of %d", ranges, n, len(body))
		}
		var from, to, size int
		switch n, _ := fmt.Sscanf(res.Header.Get("Content-Range"), "bytes %d-%d/%d", &from, &to, &size); {
		case res.StatusCode == 200 && bytes.Equal(body, want):
		case res.StatusCode == 206 && n == 3 && size == len(want) && bytes.Equal(body, want[from:to+1]):
		case res.StatusCode == 206 && strings.HasPrefix(res.Header.Get("Content-Type"), "multipart/byteranges"):
		case res.StatusCode == 416:
		default:
			t.Errorf("%q, if %q: status %d with %d bytes, %v", ranges, ifRange, res.StatusCode, len(body), res.Header)
		}
	})
}

func TestTwoRangesAreOneTransfer(t *testing.T) {
	s, events := handler(t)
	res := do(s, request(t, "GET", "/profile/default/vmlinuz", "Range: bytes=0-9,100-109"))
	body, _ := io.ReadAll(res.Body)
	got := events.take()
	if res.StatusCode != 206 || len(got) != 2 || got[1].Phase != timeline.End || got[1].Bytes != int64(len(body)) || got[1].Total != got[1].Bytes {
		t.Errorf("status %d, %d bytes, events %+v", res.StatusCode, len(body), got)
	}
}

func TestMissingFilesAreOnTheTimeline(t *testing.T) {
	s, events := handler(t)
	tests := []struct{ target, want string }{
		{"/profile/missing/vmlinuz", "gone: no such file or directory"},
		{"/profile/folder/vmlinuz", "is not a file"},
		{"/nbp/none.efi", "none.efi: file does not exist"},
	}
	for _, tt := range tests {
		res := do(s, request(t, "GET", tt.target))
		body, _ := io.ReadAll(res.Body)
		if strings.Contains(string(body), os.TempDir()) {
			t.Errorf("%s tells strangers where files are: %s", tt.target, body)
		}
		got := events.take()
		if len(got) != 1 || got[0].Phase != timeline.Fail || got[0].Machine != clientMAC || !strings.Contains(got[0].Detail, tt.want) {
			t.Errorf("%s: %+v", tt.target, got)
		}
	}
}

// socket stands for net/http's ResponseWriter on a TCP connection.
type socket struct {
	*httptest.ResponseRecorder
	files     int // ReadFrom calls with a file, which end in sendfile
	deadlines int
	failAfter int // ReadFrom calls; 0: never
}

func (s *socket) ReadFrom(src io.Reader) (int64, error) {
	if lr, ok := src.(*io.LimitedReader); ok {
		if _, ok := lr.R.(*os.File); ok {
			s.files++
		}
	}
	if s.failAfter > 0 && s.files > s.failAfter {
		return 0, os.ErrDeadlineExceeded
	}
	return io.Copy(s.ResponseRecorder, src)
}

func (s *socket) SetWriteDeadline(time.Time) error {
	s.deadlines++
	return nil
}

func TestFilesReachTheSocketAsFiles(t *testing.T) {
	s, events := handler(t)
	const chunks = 3 // of 256 kB, 1 MB and what is left
	w := &socket{ResponseRecorder: httptest.NewRecorder()}
	s.ServeHTTP(w, request(t, "GET", "/profile/default/vmlinuz"))
	if w.files != chunks || w.deadlines != chunks || w.Body.Len() != kernelSize {
		t.Errorf("%d chunks as files and %d deadlines, want %d; %d bytes", w.files, w.deadlines, chunks, w.Body.Len())
	}
	events.take()

	w = &socket{ResponseRecorder: httptest.NewRecorder(), failAfter: 2}
	s.ServeHTTP(w, request(t, "GET", "/profile/default/vmlinuz"))
	got := events.take()
	if len(got) != 2 || got[1].Phase != timeline.Fail || got[1].Detail != "vmlinuz ended after 1310720 of 1500000 bytes: i/o timeout" {
		t.Errorf("%+v", got)
	}
}

func TestChunksGrowForQuickClients(t *testing.T) {
	for _, tt := range []struct {
		size int64
		took time.Duration
		want int64
	}{
		{minChunk, time.Millisecond, 4 * minChunk},
		{maxChunk, time.Millisecond, maxChunk},
		{4 * minChunk, progressPause, 4 * minChunk},
		{maxChunk, 2 * time.Second, minChunk},
		{minChunk, 20 * time.Second, minChunk},
	} {
		if got := nextChunk(tt.size, tt.took); got != tt.want {
			t.Errorf("%d bytes in %s: then %d, want %d", tt.size, tt.took, got, tt.want)
		}
	}
}

func TestPhoneHome(t *testing.T) {
	s, events := handler(t)
	tests := []struct {
		body   string
		status int
	}{
		{`{"stage":"userland","uptime_ms":1234}`, 204},
		{" {\n\"uptime_ms\" : 1234, \"stage\" : \"userland\" }\n ", 204},
		{``, 400},
		{`{}`, 400},
		{`[]`, 400},
		{`{"stage":"userland"}`, 400},
		{`{"stage":"userland","uptime_ms":null}`, 400},
		{`{"stage":"userland","uptime_ms":"1234"}`, 400},
		{`{"stage":"userland","uptime_ms":1.5}`, 400},
		{`{"stage":"userland","uptime_ms":-1}`, 400},
		{`{"stage":"userland","uptime_ms":9223372036854775807}`, 400},
		{`{"stage":"userland","uptime_ms":99999999999999999999}`, 400},
		{`{"stage":"kernel","uptime_ms":1}`, 400},
		{`{"stage":"userland","uptime_ms":1,"more":1}`, 400},
		{`{"stage":"userland","uptime_ms":1}{}`, 400},
		{`{"stage":"userland","uptime_ms":1} x`, 400},
		{`{"stage":"userland","uptime_ms":1}` + strings.Repeat(" ", maxReport), 400},
		{`{"stage":"` + strings.Repeat("x", maxReport) + `","uptime_ms":1}`, 400},
	}
	for _, tt := range tests {
		r := httptest.NewRequest("POST", "/phone-home/52-54-00-12-34-56", strings.NewReader(tt.body))
		res := do(s, r)
		body, _ := io.ReadAll(res.Body)
		if res.StatusCode != tt.status {
			t.Errorf("%.60q: got %d, want %d", tt.body, res.StatusCode, tt.status)
		}
		var want []timeline.Event
		if tt.status == 204 {
			want = []timeline.Event{{Machine: mac.String(), Stage: timeline.Userland, Uptime: 1234 * time.Millisecond}}
		} else if !strings.Contains(string(body), `want {"stage":"userland","uptime_ms":1234}`) {
			t.Errorf("%.60q: answer %q does not say what is right", tt.body, body)
		}
		if diff := cmp.Diff(want, events.take()); diff != "" {
			t.Errorf("%.60q: %s", tt.body, diff)
		}
	}
}

func FuzzPhoneHome(f *testing.F) {
	for _, s := range []string{`{"stage":"userland","uptime_ms":1234}`, `{"uptime_ms":1e3}`, `{}{}`, `[`, `null`, `{"STAGE":"userland","uptime_ms":0}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		uptime, err := parseReport(bytes.NewReader(body))
		if err == nil && (uptime < 0 || uptime > maxUptime) {
			t.Errorf("%q: uptime %s", body, uptime)
		}
	})
}

func TestIPXEReportsFailure(t *testing.T) {
	s, events := handler(t)
	do(s, request(t, "GET", "/failed/52:54:00:12:34:56?stage=initrd&errno=2d0c613b"))
	do(s, request(t, "GET", "/failed/52:54:00:12:34:56?stage=linux&errno="))
	want := []timeline.Event{
		{Machine: mac.String(), Stage: timeline.Initrd, Phase: timeline.Fail, Detail: "iPXE could not go on: see https://ipxe.org/2d0c613b"},
		{Machine: mac.String(), Stage: timeline.Linux, Phase: timeline.Fail, Detail: "iPXE could not go on"},
	}
	if diff := cmp.Diff(want, events.take()); diff != "" {
		t.Error(diff)
	}
}

func TestIndex(t *testing.T) {
	s, _ := handler(t)
	body, _ := io.ReadAll(do(s, request(t, "GET", "/")).Body)
	for _, want := range []string{
		"This is ecboot",
		"Profiles (default: default)",
		"http://10.77.0.1/profile/default/vmlinuz\n",
		"http://10.77.0.1/profile/default/initramfs.zst\n",
		"http://10.77.0.1/ipxe/52:54:00:12:34:56  52:54:00:12:34:56  node1  default\n",
		"http://10.77.0.1/ipxe/03:00:00:00:00:00  03:00:00:00:00:00  -  -\n",
	} {
		if !strings.Contains(string(body), want) {
			t.Errorf("%q is missing:\n%s", want, body)
		}
	}
	if body, _ := io.ReadAll(do(newServer(Config{Addr: addr}), request(t, "GET", "/")).Body); !strings.Contains(string(body), "Profiles (default: -)") {
		t.Errorf("without an inventory: %s", body)
	}
}

func TestURL(t *testing.T) {
	for want, cfg := range map[string]Config{
		"http://10.77.0.1/x":      {Addr: addr},
		"http://10.77.0.1:8080/x": {Addr: addr, Port: 8080},
		"http://[fd00::1]/x":      {Addr: netip.MustParseAddr("fd00::1"), Port: 80},
	} {
		if got := newServer(cfg).url("/x"); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
