package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
)

// SocketName is the socket's name in the directory of its process.
const SocketName = "control.sock"

// Server answers on a Unix socket.
type Server struct {
	listener net.Listener
	http     *http.Server
	ready    chan struct{}
}

// Listen makes the socket, for its owner alone; Share lets others in.
func Listen(path string, b Backend) (*Server, error) {
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return &Server{
		listener: l,
		http:     &http.Server{Handler: handler(b), ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10},
		ready:    make(chan struct{}),
	}, nil
}

// Share lets the members of a group use the socket: they may do everything.
func (s *Server) Share(gid int) error {
	path := s.listener.Addr().String()
	if err := errors.Join(os.Chown(path, -1, gid), os.Chmod(path, 0o660)); err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	return nil
}

// String names the server.
func (s *Server) String() string { return "control on " + s.listener.Addr().String() }

// Ready is closed when the server answers.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run serves until ctx is done, then removes the socket.
func (s *Server) Run(ctx context.Context) error {
	defer s.listener.Close()
	stop := context.AfterFunc(ctx, func() { s.http.Close() })
	defer stop()
	// What clients wait for ends with the server, consoles included.
	s.http.BaseContext = func(net.Listener) context.Context { return ctx }
	close(s.ready)
	if err := s.http.Serve(s.listener); ctx.Err() == nil {
		return err
	}
	return nil
}

func handler(b Backend) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		answerJSON(w, b.Status())
	})
	mux.HandleFunc("POST /v1/reload", func(w http.ResponseWriter, r *http.Request) { answer(w, b.Reload()) })
	mux.HandleFunc("DELETE /v1/leases/{segment}/{address}", func(w http.ResponseWriter, r *http.Request) {
		a, err := netip.ParseAddr(r.PathValue("address"))
		if err == nil {
			err = b.Release(r.PathValue("segment"), a)
		}
		answer(w, err)
	})
	mux.HandleFunc("POST /v1/wake/{mac}", func(w http.ResponseWriter, r *http.Request) {
		mac, err := boot.ParseMAC(r.PathValue("mac"))
		if err == nil {
			err = b.Wake(r.URL.Query().Get("segment"), mac)
		}
		answer(w, err)
	})
	guestRoutes(mux, b.Guests)
	return mux
}

// ErrNotFound is the error of a Backend that has nothing of that name.
var ErrNotFound = errors.New("not found")

func answer(w http.ResponseWriter, err error) {
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	f, status := failure{Error: err.Error()}, http.StatusConflict
	for reason, is := range reasons {
		if errors.Is(err, is) {
			f.Reason = reason
		}
	}
	if errors.Is(err, ErrNotFound) {
		status = http.StatusNotFound
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(f)
}
