package api

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
)

// Guests are the declared guests of a supervisor. All methods may be called at
// the same time. Those that take a name return an error that is ErrNotFound for
// one that is not declared.
type Guests interface {
	List() []Guest // in the order of the configuration
	Start(ctx context.Context, name string) error
	// Stop returns how the guest ended, in a few words: "power button",
	// "killed QEMU". Firm does not ask the guest. When ctx ends first, the guest
	// goes on stopping.
	Stop(ctx context.Context, name string, firm bool) (how string, err error)
	Restart(ctx context.Context, name string) (how string, err error) // how it ended before
	Reset(ctx context.Context, name string) error
	// Console returns what the guest has written lately and then what it
	// writes. There is any number of readers; one may write, and to a second
	// one the error is ErrBusy. What is returned may have a method
	// History() int, the number of bytes that are of the past.
	Console(ctx context.Context, name string, write bool) (io.ReadWriteCloser, error)
	Log(ctx context.Context, name string, lines int) ([]byte, error) // the last lines of the console; 0: all that are kept
	Screenshot(ctx context.Context, name string) (png []byte, err error)
}

// ErrBusy is the error for whoever would be the second to write to a console.
var ErrBusy = errors.New("another one writes to the console")

// States of a guest.
const (
	Stopped  = "stopped"
	Starting = "starting"
	Running  = "running"
	Stopping = "stopping"
	Waiting  = "waiting" // for NextStart, after a crash
	Failed   = "failed"  // it will not be tried again
)

// ByHand is why a guest is down that somebody has stopped.
const ByHand = "by hand"

// Guest is a declared guest and how it fares.
type Guest struct {
	Name      string     `json:"name"`
	Node      string     `json:"node,omitempty"`
	Backend   string     `json:"backend"` // qemu, microvm, container
	State     string     `json:"state"`   // of the constants above
	Profile   string     `json:"profile,omitempty"`
	PID       int        `json:"pid,omitempty"`    // of QEMU or the container's first process
	Keeper    int        `json:"keeper,omitempty"` // process id of what holds it
	Restarts  int        `json:"restarts"`         // in a row, since it was last told to start
	Since     time.Time  `json:"since,omitzero"`   // of the state
	NextStart time.Time  `json:"next_start,omitzero"`
	MACs      []boot.MAC `json:"macs"`
	Addresses []string   `json:"addresses"`
	LastExit  string     `json:"last_exit,omitempty"`
	Down      string     `json:"down,omitempty"` // why it is not to run, such as ByHand
	Drift     []string   `json:"drift"`          // what differs from the declaration, a sentence each
	Autostart bool       `json:"autostart"`
	Command   []string   `json:"command,omitempty"` // that runs it, program first
	Unit      string     `json:"unit,omitempty"`    // of systemd
	NICs      []NIC      `json:"nics"`
	Disks     []Disk     `json:"disks"`
	TPM       bool       `json:"tpm,omitempty"`
	VNC       string     `json:"vnc,omitempty"` // socket of its screen, while it runs
}

// NIC is one network card of a guest.
type NIC struct {
	Network string    `json:"network"` // "segment lan", "macvtap eth0", "macvlan eth0", "user"
	MAC     *boot.MAC `json:"mac,omitempty"`
	Address string    `json:"address,omitempty"`
	Link    string    `json:"link,omitempty"` // its name on the host, or in the container
}

// Disk is one disk of a guest.
type Disk struct {
	Path     string `json:"path"`
	Format   string `json:"format,omitempty"`
	Size     int64  `json:"size,omitempty"` // bytes, of one that is made
	Base     string `json:"base,omitempty"` // the image that it lies over
	ReadOnly bool   `json:"read_only,omitempty"`
	Lost     bool   `json:"lost_at_stop,omitempty"` // what is written is gone when the guest stops
}

// guestList is the answer to GET /v1/guests.
type guestList struct {
	Schema int     `json:"schema"`
	Guests []Guest `json:"guests"`
}

// ended is the answer to what ends a guest.
type ended struct {
	How string `json:"how"`
}

// consoleProtocol is what a connection is upgraded to: the console's bytes, both
// ways.
const consoleProtocol = "ecboot-console"

// historyHeader is how many of the bytes that a console sends first are of the
// past.
const historyHeader = "Ecboot-History"
