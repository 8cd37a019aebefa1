package dhcpd

import (
	"sync/atomic"
	"time"
)

// logPause is the time between two log lines about the same nuisance.
const logPause = time.Minute

// nuisance is something that the network does to us, perhaps for ever: every
// time is counted, and once a minute one is worth a line in the log.
type nuisance struct {
	count atomic.Uint64
	quiet atomic.Int64 // until when, in Unix nanoseconds
}

// note counts one more and says whether to log it.
func (n *nuisance) note(now time.Time) (count uint64, say bool) {
	count = n.count.Add(1)
	quiet := n.quiet.Load()
	say = now.UnixNano() >= quiet && n.quiet.CompareAndSwap(quiet, now.Add(logPause).UnixNano())
	return count, say
}
