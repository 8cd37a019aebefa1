package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// guestRoutes adds what is done with guests; g may be nil.
func guestRoutes(mux *http.ServeMux, g Guests) {
	if g == nil {
		none := func(w http.ResponseWriter, r *http.Request) {
			answer(w, fmt.Errorf("guests: %w: this process serves networks only, 'ecboot up' runs guests", ErrNotFound))
		}
		mux.HandleFunc("/v1/guests", none)
		mux.HandleFunc("/v1/guests/", none)
		return
	}
	mux.HandleFunc("GET /v1/guests", func(w http.ResponseWriter, r *http.Request) {
		list := g.List()
		if list == nil {
			list = []Guest{}
		}
		answerJSON(w, guestList{Schema, list})
	})
	act := func(verb string, do func(ctx context.Context, name string) error) {
		mux.HandleFunc("POST /v1/guests/{name}/"+verb, func(w http.ResponseWriter, r *http.Request) {
			answer(w, do(r.Context(), r.PathValue("name")))
		})
	}
	act("start", g.Start)
	act("reset", g.Reset)
	end := func(verb string, do func(r *http.Request, name string) (string, error)) {
		mux.HandleFunc("POST /v1/guests/{name}/"+verb, func(w http.ResponseWriter, r *http.Request) {
			how, err := do(r, r.PathValue("name"))
			if err != nil {
				answer(w, err)
				return
			}
			answerJSON(w, ended{how})
		})
	}
	end("stop", func(r *http.Request, name string) (string, error) {
		return g.Stop(r.Context(), name, r.URL.Query().Get("firm") == "true")
	})
	end("restart", func(r *http.Request, name string) (string, error) { return g.Restart(r.Context(), name) })
	mux.HandleFunc("GET /v1/guests/{name}/log", func(w http.ResponseWriter, r *http.Request) {
		lines, err := strconv.Atoi(r.URL.Query().Get("lines"))
		if err != nil || lines < 0 {
			http.Error(w, `{"error":"lines: want a number, 0 for all"}`, http.StatusBadRequest)
			return
		}
		text, err := g.Log(r.Context(), r.PathValue("name"), lines)
		answerBytes(w, "application/octet-stream", text, err)
	})
	mux.HandleFunc("GET /v1/guests/{name}/screenshot", func(w http.ResponseWriter, r *http.Request) {
		png, err := g.Screenshot(r.Context(), r.PathValue("name"))
		answerBytes(w, "image/png", png, err)
	})
	mux.HandleFunc("GET /v1/guests/{name}/console", func(w http.ResponseWriter, r *http.Request) { serveConsole(w, r, g) })
}

func answerJSON(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(body)
}

func answerBytes(w http.ResponseWriter, kind string, body []byte, err error) {
	if err != nil {
		answer(w, err)
		return
	}
	w.Header().Set("Content-Type", kind)
	w.Write(body)
}

// serveConsole joins the client to a guest's console until one of them goes.
func serveConsole(w http.ResponseWriter, r *http.Request, g Guests) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), consoleProtocol) {
		w.Header().Set("Upgrade", consoleProtocol)
		w.WriteHeader(http.StatusUpgradeRequired)
		json.NewEncoder(w).Encode(failure{Error: "a console needs a connection that is upgraded to " + consoleProtocol})
		return
	}
	write := r.URL.Query().Get("write") == "true"
	// The request's own context ends with the connection, of which HTTP knows
	// nothing once it is ours.
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	guest, err := g.Console(ctx, r.PathValue("name"), write)
	if err != nil {
		answer(w, err)
		return
	}
	defer guest.Close()
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		answer(w, err)
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() {
		conn.Close()
		guest.Close()
	})()
	conn.SetDeadline(time.Time{})
	past := 0
	if h, ok := guest.(interface{ History() int }); ok {
		past = h.History()
	}
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n%s: %d\r\n\r\n", consoleProtocol, historyHeader, past); err != nil {
		return
	}
	typed := io.Discard
	if write {
		typed = guest
	}
	go func() {
		io.Copy(typed, buffered)
		cancel()
	}()
	io.Copy(conn, guest)
	// Of a client that has gone there may still be input, whose end ends this;
	// that of the guest does so at once.
	io.Copy(io.Discard, guest)
}
