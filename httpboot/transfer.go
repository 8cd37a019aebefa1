package httpboot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/every-channel/ecboot/internal/timeline"
)

// A file goes out in chunks, each with progressTimeout to be taken: a client
// slower than about 9 kB/s is cut. Progress is told between chunks. For a quick
// client they grow, because each costs some work besides sendfile's.
const (
	minChunk      = 256 << 10 // bytes
	maxChunk      = 16 << 20
	progressPause = 100 * time.Millisecond
)

// nextChunk is the size of a chunk after one that took so long.
func nextChunk(size int64, took time.Duration) int64 {
	switch {
	case took < progressPause:
		return min(4*size, maxChunk)
	case took > 10*progressPause:
		return minChunk
	}
	return size
}

// transfer is the answer to a request for a file. As the ResponseWriter of
// http.ServeContent it counts what is moved and moves the write deadline along.
// It hands net/http's own ReadFrom the open file, chunk by chunk, so that the
// kernel does the copying (sendfile).
type transfer struct {
	http.ResponseWriter
	s       *Server
	r       *http.Request
	machine string
	stage   timeline.Stage
	name    string

	begun bool
	moved int64
	total int64 // 0 when unknown
	err   error // of the first write that went wrong
	told  time.Time
}

func (s *Server) transfer(w http.ResponseWriter, r *http.Request, stage timeline.Stage, name string) *transfer {
	return &transfer{ResponseWriter: w, s: s, r: r, machine: s.machine(clientOf(r)), stage: stage, name: name}
}

// serve sends the file, or the ranges of it that the client asks for, and
// records how it went. A HEAD, or an answer without content, is no transfer.
func (t *transfer) serve(info fs.FileInfo, content io.ReadSeeker) {
	h := t.Header()
	h.Set("Content-Type", contentType(t.name))
	if tag := t.s.digests.etag(info, content); tag != "" {
		h.Set("ETag", tag)
	}
	http.ServeContent(t, t.r, t.name, info.ModTime(), content)
	switch {
	case !t.begun:
	case t.err == nil && t.moved == t.total:
		t.record(timeline.End, t.name)
	default:
		if t.err == nil {
			t.err = errors.New("the file became shorter")
		}
		t.fail(fmt.Errorf("%s ended after %d of %d bytes: %w", t.name, t.moved, t.total, t.err))
	}
}

// refuse answers that a file cannot be had. The client learns that it is
// missing; why, and where it was looked for, is for the log and the timeline.
func (t *transfer) refuse(err error) {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrInvalid) {
		refuse(t.ResponseWriter, http.StatusNotFound, t.name+" is missing on the server")
	} else {
		refuse(t.ResponseWriter, http.StatusInternalServerError, t.name+" cannot be read on the server; its log says why")
	}
	t.fail(err)
}

func (t *transfer) fail(err error) {
	t.s.failed.Warn(t.s.cfg.Logger, "transfer failed", "machine", t.machine, "stage", t.stage, "error", err)
	if t.r.Method != http.MethodHead {
		t.record(timeline.Fail, err.Error())
	}
}

// efiType is what UEFI HTTP Boot runs as a program (UEFI 2.10 §24.7.3.1).
const efiType = "application/efi"

func contentType(name string) string {
	if strings.HasSuffix(strings.ToLower(name), ".efi") {
		return efiType
	}
	return "application/octet-stream"
}

// WriteHeader notes what is about to be moved.
func (t *transfer) WriteHeader(status int) {
	if t.r.Method == http.MethodGet && (status == http.StatusOK || status == http.StatusPartialContent) {
		t.begun, t.told = true, time.Now()
		t.total, _ = strconv.ParseInt(t.Header().Get("Content-Length"), 10, 64)
		t.record(timeline.Begin, t.name)
	}
	t.ResponseWriter.WriteHeader(status)
}

// ReadFrom moves what io.Copy brings, in chunks. For a file, src is an
// *io.LimitedReader around it, and must stay one for net to see the file.
func (t *transfer) ReadFrom(src io.Reader) (int64, error) {
	limited, ok := src.(*io.LimitedReader)
	if !ok {
		limited = &io.LimitedReader{R: src, N: math.MaxInt64}
	}
	var sum int64
	for size := int64(minChunk); limited.N > 0; {
		part := &io.LimitedReader{R: limited.R, N: min(size, limited.N)}
		begun := time.Now()
		t.moveDeadline()
		n, err := io.Copy(t.ResponseWriter, part)
		size = nextChunk(size, time.Since(begun))
		limited.N -= n
		sum += n
		t.count(n, err)
		if err != nil || part.N > 0 { // broken, or the source has ended
			return sum, err
		}
	}
	return sum, nil
}

// Write moves what is not copied: the error page of a range that cannot be.
func (t *transfer) Write(p []byte) (int, error) {
	t.moveDeadline()
	n, err := t.ResponseWriter.Write(p)
	t.count(int64(n), err)
	return n, err
}

// Unwrap is for http.ResponseController.
func (t *transfer) Unwrap() http.ResponseWriter { return t.ResponseWriter }

func (t *transfer) moveDeadline() {
	// Not every ResponseWriter has a connection below it.
	_ = http.NewResponseController(t.ResponseWriter).SetWriteDeadline(time.Now().Add(progressTimeout))
}

func (t *transfer) count(n int64, err error) {
	t.moved += n
	if t.err == nil {
		t.err = err
	}
	if now := time.Now(); t.begun && now.Sub(t.told) >= progressPause {
		t.told = now
		t.record(timeline.Progress, t.name)
	}
}

func (t *transfer) record(phase timeline.Phase, detail string) {
	t.s.cfg.Timeline.Record(timeline.Event{
		Machine: t.machine,
		Stage:   t.stage,
		Phase:   phase,
		Detail:  detail,
		Bytes:   t.moved,
		Total:   t.total,
	})
}
