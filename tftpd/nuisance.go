package tftpd

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Counters are what a server has done since it began.
type Counters struct {
	Requests  uint64 // that came, of any kind
	Completed uint64 // transfers that the client has whole
	Declined  uint64 // transfers that the client did not want: size probes
	Failed    uint64
	Evicted   uint64 // transfers whose client never answered, ended for others
	Bytes     uint64 // that clients acknowledged
	Resent    uint64 // blocks sent more than once, those by pin/tftp apart

	NotFound  uint64 // requests for files that are not there
	Foreign   uint64 // requests from addresses that are not served
	Malformed uint64 // packets that are no request
	Refused   uint64 // writes, names and modes that are never served
	Busy      uint64 // requests beyond the number of transfers

	Active int // transfers now
}

// counters are Counters while they are counted.
type counters struct {
	Requests, Completed, Declined, Failed, Evicted, Bytes, Resent atomic.Uint64
	NotFound, Foreign, Malformed, Refused, Busy                   atomic.Uint64
}

// Counters returns a snapshot.
func (s *Server) Counters() Counters {
	c := &s.count
	return Counters{
		Requests: c.Requests.Load(), Completed: c.Completed.Load(), Declined: c.Declined.Load(), Failed: c.Failed.Load(),
		Evicted: c.Evicted.Load(), Bytes: c.Bytes.Load(), Resent: c.Resent.Load(),
		NotFound: c.NotFound.Load(), Foreign: c.Foreign.Load(), Malformed: c.Malformed.Load(), Refused: c.Refused.Load(), Busy: c.Busy.Load(),
		Active: s.slots.active(),
	}
}

// nuisance is something that anybody on the network can make happen, as often
// as they like.
type nuisance uint8

const (
	nuisanceForeign nuisance = iota
	nuisanceRefused
	nuisanceMissing
	nuisanceBroken
	nuisanceBusy
	nuisanceKinds
)

// nuisancePause is the least time between two log lines about one nuisance.
const nuisancePause = time.Minute

// nuisances keeps the log readable.
type nuisances struct {
	mu     sync.Mutex
	quiet  [nuisanceKinds]time.Time // until then
	unsaid [nuisanceKinds]int
}

func (n *nuisances) log(kind nuisance, log *slog.Logger, message string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	if now.Before(n.quiet[kind]) {
		n.unsaid[kind]++
		return
	}
	if n.unsaid[kind] > 0 {
		args = append(args, "unsaid", n.unsaid[kind])
	}
	n.quiet[kind], n.unsaid[kind] = now.Add(nuisancePause), 0
	log.Warn(message, args...)
}
