package dhcpd

import (
	"errors"
	"net/netip"
	"sync"
)

// maxWaiting bounds what waits for the disk. Beyond it requests stay in the
// socket, and what has no room there is lost, as on a network that is too busy.
const maxWaiting = 4096

var errEnded = errors.New("the DHCP server has ended")

// pending is a decision whose lease is not durable yet; done learns what became
// of it, if it is not nil.
type pending struct {
	Decision
	done chan<- error
}

// outbox holds decisions back until their leases are durable. While one group
// of them is written and synced, the next one gathers: the busier the server,
// the more leases share a sync, and nobody waits for a timer.
type outbox struct {
	mu      sync.Mutex
	change  *sync.Cond
	waiting []pending
	closed  bool
}

func newOutbox() *outbox {
	o := &outbox{}
	o.change = sync.NewCond(&o.mu)
	return o
}

// put adds a decision; false means that nobody takes it any more.
func (o *outbox) put(p pending) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return false
	}
	o.waiting = append(o.waiting, p)
	o.change.Broadcast()
	return true
}

// take waits for decisions and returns all there are, in their order; none mean
// that the outbox is closed. The group before lends its memory to those that
// come next.
func (o *outbox) take(before []pending) []pending {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.waiting) == 0 && !o.closed {
		o.change.Wait()
	}
	return o.swap(before)
}

// rest is take without the wait.
func (o *outbox) rest() []pending {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.swap(nil)
}

func (o *outbox) swap(before []pending) []pending {
	group := o.waiting
	clear(before)
	o.waiting = before[:0]
	o.change.Broadcast()
	return group
}

// awaitRoom waits until a whole batch has room.
func (o *outbox) awaitRoom() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.waiting) > maxWaiting-maxBatch {
		o.change.Wait()
	}
}

// close lets take return what is left, and then nothing.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.change.Broadcast()
}

// commit makes the leases of the outbox durable, group by group, and sends what
// was promised with them, until the outbox is closed.
func (s *Server) commit() {
	out := s.newSender()
	gather := pace{pause: commitPause}
	var group []pending
	for {
		gather.wait()
		if group = s.outbox.take(group); len(group) == 0 {
			return
		}
		for _, d := range s.store(group) {
			out.add(d)
		}
		out.flush()
	}
}

// store makes the leases of a group durable and returns the decisions whose
// replies may leave now. If it fails, everything that was decided in the
// meantime is taken back too, because it was built on what is not true.
func (s *Server) store(group []pending) []Decision {
	leases := make([]Lease, len(group))
	for i, p := range group {
		leases[i] = *p.Commit
	}
	err := s.cfg.Store.Append(leases)
	if err != nil {
		s.deciding.Lock()
		group = append(group, s.outbox.rest()...)
		s.networks.undo(group)
		s.deciding.Unlock()
		if n, say := s.storeFailed.Note(s.cfg.Now()); say {
			s.cfg.Logger.Error("leases cannot be stored, so none are given", "error", err, "so far", n)
		}
	}
	var replies []Decision
	for _, p := range group {
		if p.done != nil {
			p.done <- err
		}
		if err == nil && p.Reply != nil {
			replies = append(replies, p.Decision)
		}
	}
	return replies
}

// Release ends the lease of an address, durably, as if its client had given it
// back. The client learns of it when it renews. It waits for a server that is
// not running yet.
func (s *Server) Release(a netip.Addr) error {
	done := make(chan error, 1)
	s.deciding.Lock()
	d, err := s.networks.free(a, s.cfg.Now())
	if err == nil && !s.outbox.put(pending{d, done}) {
		err = errEnded
	}
	s.deciding.Unlock()
	if err != nil {
		return err
	}
	return <-done
}
