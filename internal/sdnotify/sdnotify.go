// Package sdnotify tells the service manager how this service does, in the
// protocol of sd_notify(3).
package sdnotify

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"
)

// Notifier speaks to the service manager. A nil one says nothing: there is none
// that listens.
type Notifier struct {
	socket   net.UnixAddr
	watchdog time.Duration // within which it wants to hear of us; 0: it does not
}

// The variables that the service manager passes.
const (
	socketVar      = "NOTIFY_SOCKET"
	watchdogVar    = "WATCHDOG_USEC"
	watchdogPIDVar = "WATCHDOG_PID" // whom it means; empty: anybody
)

// New takes what the service manager has passed out of the environment: what we
// start must not speak for us. It returns nil if nothing was passed.
func New() (*Notifier, error) {
	socket, watchdog, pid := os.Getenv(socketVar), os.Getenv(watchdogVar), os.Getenv(watchdogPIDVar)
	for _, name := range []string{socketVar, watchdogVar, watchdogPIDVar} {
		if err := os.Unsetenv(name); err != nil {
			return nil, err
		}
	}
	if socket == "" {
		return nil, nil
	}
	if socket[0] != '/' && socket[0] != '@' {
		return nil, fmt.Errorf("%s=%s: it is neither a path nor an abstract socket", socketVar, socket)
	}
	n := &Notifier{socket: net.UnixAddr{Name: socket, Net: "unixgram"}}
	if watchdog == "" || pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return n, nil
	}
	usec, err := strconv.ParseInt(watchdog, 10, 64)
	if err != nil || usec <= 0 || usec > int64(365*24*time.Hour/time.Microsecond) {
		return nil, fmt.Errorf("%s=%s: it is no number of microseconds", watchdogVar, watchdog)
	}
	n.watchdog = time.Duration(usec) * time.Microsecond
	return n, nil
}

// Ready says that the service does what it is there for.
func (n *Notifier) Ready() error { return n.send("READY=1") }

// Stopping says that the service ends in good order.
func (n *Notifier) Stopping() error { return n.send("STOPPING=1") }

// Watch tells the service manager that the service lives, twice as often as it
// wants to hear, while alive says so; alive may as well block when it does not.
// It returns when ctx is done, or at once if nobody wants to hear.
func (n *Notifier) Watch(ctx context.Context, alive func() bool) error {
	if n == nil || n.watchdog == 0 {
		return nil
	}
	tick := time.NewTicker(n.watchdog / 2)
	defer tick.Stop()
	for {
		if alive() {
			// One that is lost is no reason to end: the next may not be.
			_ = n.send("WATCHDOG=1")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// sendTimeout is for a service manager that is busy.
const sendTimeout = 5 * time.Second

func (n *Notifier) send(state string) error {
	if n == nil {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &n.socket)
	if err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	_ = conn.SetWriteDeadline(time.Now().Add(sendTimeout))
	_, err = conn.Write([]byte(state))
	if err = errors.Join(err, conn.Close()); err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	return nil
}
