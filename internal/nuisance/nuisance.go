// Package nuisance counts what anybody on the network can do to a server, at
// will and for ever, and keeps it from filling the log.
package nuisance

import (
	"log/slog"
	"sync/atomic"
	"time"
)

// Pause is the time between two log lines about the same nuisance.
const Pause = time.Minute

// Counter is one nuisance. The zero Counter is ready; all methods may be called
// at the same time.
type Counter struct {
	total atomic.Uint64
	quiet atomic.Int64 // until when, in Unix nanoseconds
}

// Note counts one more and says whether it is worth a line in the log.
func (c *Counter) Note(now time.Time) (total uint64, say bool) {
	total = c.total.Add(1)
	quiet := c.quiet.Load()
	say = now.UnixNano() >= quiet && c.quiet.CompareAndSwap(quiet, now.Add(Pause).UnixNano())
	return total, say
}

// Warn counts one more and, if the last line is long enough ago, logs it with
// the total as "so far".
func (c *Counter) Warn(log *slog.Logger, message string, args ...any) {
	if total, say := c.Note(time.Now()); say {
		log.Warn(message, append(args, "so far", total)...)
	}
}

// Total is how often it has happened.
func (c *Counter) Total() uint64 { return c.total.Load() }
