package tftpd

import (
	"sync/atomic"

	"github.com/every-channel/ecboot/internal/nuisance"
)

// Counters are what a server has done since it began.
type Counters struct {
	Requests  uint64 // packets that came to the server's port
	Completed uint64 // transfers that the client has whole
	Declined  uint64 // transfers that the client did not want: size probes
	Failed    uint64
	Evicted   uint64 // transfers whose client never answered, ended for others
	Bytes     uint64 // that clients acknowledged
	Resent    uint64 // blocks sent more than once, pin/tftp's apart

	Probed    uint64 // requests for files that are asked for in case they are there
	NotFound  uint64 // requests for others that are not there
	Foreign   uint64 // requests from addresses that are not served
	Malformed uint64 // packets that are no request
	Refused   uint64 // writes, and names and modes that are never served
	Busy      uint64 // requests beyond the number of transfers

	Active int // transfers now
}

// counters are Counters while they are counted. Those that strangers can raise
// at will say so in the log, now and then.
type counters struct {
	requests, completed, declined, evicted, bytes, resent, probed, malformed atomic.Uint64
	failed, notFound, foreign, refused, busy                                 nuisance.Counter
}

// Counters returns the counters of this moment.
func (s *Server) Counters() Counters {
	c := &s.count
	return Counters{
		Requests: c.requests.Load(), Completed: c.completed.Load(), Declined: c.declined.Load(), Failed: c.failed.Total(),
		Evicted: c.evicted.Load(), Bytes: c.bytes.Load(), Resent: c.resent.Load(),
		Probed: c.probed.Load(), NotFound: c.notFound.Total(), Foreign: c.foreign.Total(), Malformed: c.malformed.Load(),
		Refused: c.refused.Total(), Busy: c.busy.Total(), Active: s.slots.active(),
	}
}
