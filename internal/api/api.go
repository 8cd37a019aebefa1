// Package api is how a command line talks to servers that run: HTTP and JSON on
// a Unix socket in the directory of each process. Whoever may open the socket
// may do everything.
package api

import (
	"encoding/json"
	"net/netip"
	"strings"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/timeline"
)

// Schema is raised when a field changes its meaning; new fields do not raise it.
const Schema = 1

// Status is what a process serves and whom it has seen.
type Status struct {
	Schema   int       `json:"schema"`
	PID      int       `json:"pid"`
	Config   string    `json:"config,omitempty"` // absolute path of the file that it reads; empty: defaults
	Segments []Segment `json:"segments"`
	Machines []Machine `json:"machines"` // those that were seen, sorted by MAC
}

// Segment is a network that the process serves.
type Segment struct {
	Name      string            `json:"name"`
	Mode      string            `json:"mode"`
	Interface string            `json:"interface"`
	Address   netip.Prefix      `json:"address"`
	Counters  map[string]uint64 `json:"counters,omitempty"` // nuisances by name
}

// Machine is one that has asked for something.
type Machine struct {
	MAC      boot.MAC        `json:"mac"`
	Segment  string          `json:"segment"`
	Address  string          `json:"address,omitempty"`
	Platform string          `json:"platform,omitempty"` // of its firmware
	UUID     string          `json:"uuid,omitempty"`
	Steps    []timeline.Step `json:"steps"` // since it was last seen to begin a boot
	Seen     time.Time       `json:"seen"`  // of the last step
}

// Backend is what a server does for its clients. All may be called at the same
// time; only Guests may be nil, in a process that runs none.
type Backend struct {
	Status  func() Status
	Reload  func() error                                // reads the configuration again
	Release func(segment string, addr netip.Addr) error // frees a lease
	Wake    func(segment string, mac boot.MAC) error    // empty: on every segment
	Guests  Guests
}

// failure is the body of an answer that is not 2xx.
type failure struct {
	Error  string `json:"error"`
	Reason string `json:"reason,omitempty"` // of the keys of reasons
}

// reasons are the errors that clients tell apart.
var reasons = map[string]error{"not found": ErrNotFound, "busy": ErrBusy}

// remoteError is what the server said went wrong.
type remoteError struct {
	text   string
	reason error // nil: none of reasons
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.reason }

func decodeFailure(body []byte) error {
	var f failure
	if json.Unmarshal(body, &f) == nil && f.Error != "" {
		return &remoteError{f.Error, reasons[f.Reason]}
	}
	return &remoteError{strings.TrimSpace(string(body)), nil}
}
