package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/every-channel/ecboot/vmm"
)

// protocol is what a connection is upgraded to that becomes a console: bytes
// both ways.
const protocol = "ecboot-console"

// historyHeader is how many bytes of what a console sends are of the past.
const historyHeader = "Ecboot-History"

// stallTimeout is how long a client may leave the console's output unread before
// it is dropped.
const stallTimeout = 30 * time.Second

// failure is the answer to what cannot be done.
type failure struct {
	Error string `json:"error"`
}

// stopAnswer is the answer to a stop.
type stopAnswer struct {
	How string `json:"how"`
}

// server answers these, for ever: a keeper outlives the program that started it,
// and the next version must be able to talk to it.
func (k *keeper) server() *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", k.serveStatus)
	mux.HandleFunc("POST /v1/stop", k.serveStop)
	mux.HandleFunc("POST /v1/kill", func(w http.ResponseWriter, r *http.Request) {
		k.kill()
		answer(w, nil)
	})
	mux.HandleFunc("POST /v1/reset", k.withGuest(func(w http.ResponseWriter, r *http.Request) {
		answer(w, k.guest.Reset(r.Context()))
	}))
	mux.HandleFunc("GET /v1/screenshot", k.withGuest(k.serveScreenshot))
	mux.HandleFunc("GET /v1/log", k.withGuest(k.serveLog))
	mux.HandleFunc("GET /v1/events", k.serveEvents)
	mux.HandleFunc("GET /v1/console", k.withGuest(k.serveConsole))
	return &http.Server{
		Handler: http.MaxBytesHandler(mux, 4<<10), ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(k.log.Handler(), slog.LevelWarn),
	}
}

func answer(w http.ResponseWriter, err error) {
	switch {
	case err == nil:
		w.WriteHeader(http.StatusNoContent)
		return
	case errors.Is(err, ErrBusy):
		w.WriteHeader(http.StatusLocked)
	default:
		w.WriteHeader(http.StatusConflict)
	}
	json.NewEncoder(w).Encode(failure{err.Error()})
}

func answerJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

// withGuest is for what needs a guest that has started.
func (k *keeper) withGuest(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-k.started:
		default:
			answer(w, errors.New("it is starting"))
			return
		}
		if k.guest == nil {
			answer(w, errors.New("it does not start"))
			return
		}
		h(w, r)
	}
}

func (k *keeper) serveStatus(w http.ResponseWriter, r *http.Request) {
	st := Status{
		Schema: Schema, Name: k.plan.Name, Digest: k.plan.Digest, Backend: k.plan.Backend,
		Keeper: os.Getpid(), Since: k.began, State: "starting", Plan: k.plan,
	}
	k.mu.Lock()
	stopping := k.stopping
	st.Told = k.told
	k.mu.Unlock()
	select {
	case <-k.started:
		if k.guest != nil {
			st.PID, st.Command = k.guest.PID(), k.guest.Command()
		}
	default:
	}
	switch {
	case closed(k.done):
		st.State = StateEnded
	case stopping:
		st.State = StateStopping
	case st.PID != 0:
		st.State, st.Trouble = k.guest.State(r.Context()), k.guest.Trouble()
	}
	answerJSON(w, st)
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// serveStop goes on when the client has gone: to stop was asked for.
func (k *keeper) serveStop(w http.ResponseWriter, r *http.Request) {
	k.beginStop(false)
	select {
	case <-k.stopped:
		k.mu.Lock()
		how := k.how
		k.mu.Unlock()
		if how == "" {
			how = hadEnded
		}
		answerJSON(w, stopAnswer{how})
	case <-r.Context().Done():
	}
}

func (k *keeper) serveScreenshot(w http.ResponseWriter, r *http.Request) {
	png, err := k.guest.Screenshot(r.Context())
	if err != nil {
		answer(w, err)
		return
	}
	w.Header().Set("Content-Type", "image/png")
	w.Write(png)
}

func (k *keeper) serveLog(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.Atoi(r.URL.Query().Get("lines"))
	if err != nil || n < 0 {
		answer(w, errors.New("lines: use a number of lines, or 0 for all"))
		return
	}
	if n == 0 {
		n = math.MaxInt
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	for _, line := range k.guest.Console().Tail(n) {
		io.WriteString(w, line+"\n")
	}
}

func (k *keeper) serveEvents(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	out, flusher := json.NewEncoder(w), http.NewResponseController(w)
	for seen := 0; ; {
		fresh, all, changed := k.events.from(seen)
		seen = all
		_ = flusher.SetWriteDeadline(time.Now().Add(stallTimeout))
		for _, e := range fresh {
			if out.Encode(e) != nil {
				return
			}
		}
		if flusher.Flush() != nil || changed == nil {
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

// writerGoes is how long one waits who would write to a console: the one before
// may have gone without word of it having come here.
const writerGoes = 2 * time.Second

// serveConsole hands the connection over to the console: history first, then
// what comes. One client at a time may write.
func (k *keeper) serveConsole(w http.ResponseWriter, r *http.Request) {
	write := r.URL.Query().Get("write") != ""
	if !strings.EqualFold(r.Header.Get("Upgrade"), protocol) {
		answer(w, errors.New("a console needs Upgrade: "+protocol))
		return
	}
	if write {
		select {
		case k.writer <- struct{}{}:
			defer func() { <-k.writer }()
		case <-r.Context().Done():
			return
		case <-time.After(writerGoes):
			answer(w, ErrBusy)
			return
		}
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		answer(w, err)
		return
	}
	k.consoles.Add(1)
	defer k.consoles.Done()
	defer conn.Close()
	_ = conn.SetDeadline(time.Time{})
	out := &impatient{conn: conn}
	console := k.guest.Console()
	if _, err := fmt.Fprintf(out, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n%s: %d\r\n\r\n", protocol, historyHeader, console.History()); err != nil {
		return
	}
	detach := console.Attach(out)
	gone := make(chan struct{})
	var ending sync.WaitGroup
	ending.Go(func() {
		select {
		case <-console.Done():
			detach() // when the client has the last of it
		case <-gone:
			conn.Close()
			detach()
		}
		conn.Close()
	})
	input := io.Discard
	if write {
		input = lossy{console}
	}
	_, _ = io.Copy(input, buffered) // ends with the connection
	close(gone)
	ending.Wait()
}

// impatient closes a connection whose other end does not read. Of one that has
// gone there may still be input.
type impatient struct{ conn net.Conn }

func (i *impatient) Write(p []byte) (int, error) {
	_ = i.conn.SetWriteDeadline(time.Now().Add(stallTimeout))
	n, err := i.conn.Write(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		i.conn.Close()
	}
	return n, err
}

// lossy drops what the guest does not read, as a serial line does.
type lossy struct{ console *vmm.Console }

func (l lossy) Write(p []byte) (int, error) {
	if _, err := l.console.Write(p); errors.Is(err, vmm.ErrConsoleEnded) {
		return 0, err
	}
	return len(p), nil
}
