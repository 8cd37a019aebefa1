package lan

import (
	"fmt"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
)

// followAfter is how long a DHCP client has for the routes that it adds after an
// address.
const followAfter = time.Second

// follow keeps looking at a NIC whose addresses have moved. Whoever renews a
// lease there puts the address back on the NIC, where it is of no use; each time
// it moves again, with its new lifetime, before the old one has run out.
func (s *Segment) follow() error {
	i := slices.IndexFunc(s.made, func(c change) bool { return c.Op == opMove })
	if i < 0 {
		return nil
	}
	nic, err := netlink.LinkByName(s.made[i].Link)
	if err != nil {
		return fmt.Errorf("%s: %w", s.made[i].Link, err)
	}
	s.stop = make(chan struct{})
	updates := make(chan netlink.AddrUpdate)
	if err := netlink.AddrSubscribe(updates, s.stop); err != nil {
		return fmt.Errorf("watch the addresses of %s: %w", nic.Attrs().Name, err)
	}
	go s.followUpdates(nic.Attrs().Index, updates, s.stop)
	return nil
}

// unfollow ends follow. The caller holds the lock.
func (s *Segment) unfollow() {
	if s.stop != nil {
		close(s.stop)
		s.stop = nil
	}
}

func (s *Segment) followUpdates(nic int, updates <-chan netlink.AddrUpdate, stop <-chan struct{}) {
	var settled <-chan time.Time
	for {
		select {
		case <-stop:
			// The subscription ends with its next update only.
			go func() {
				for range updates {
				}
			}()
			return
		case u, ok := <-updates:
			if !ok {
				return
			}
			if u.NewAddr && u.LinkIndex == nic {
				settled = time.After(followAfter)
			}
		case <-settled:
			settled = nil
			s.moveAgain(stop)
		}
	}
}

// moveAgain moves what the NIC has got since, and notes it. What fails is tried
// again with the next renewal: until then the addresses that have moved before
// do their work.
func (s *Segment) moveAgain(stop <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-stop:
		return
	default:
	}
	i := slices.IndexFunc(s.made, func(c change) bool { return c.Op == opMove })
	c := &s.made[i]
	b, err := belongingsOf(c.Link)
	if err != nil || len(b.Addresses) == 0 {
		return
	}
	c.Saved.merge(b)
	if err := s.save(); err != nil {
		return
	}
	_ = b.relocate(c.Link, c.On, func() {})
}
