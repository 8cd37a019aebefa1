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
	i := moveOf(s.made)
	if i < 0 {
		return nil
	}
	s.stop = make(chan struct{})
	if err := followNIC(s.made[i].Link, s.stop, s.moveAgain); err != nil {
		return err
	}
	s.moveAgain() // what came while nobody looked
	return nil
}

// unfollow ends follow. The caller holds the lock.
func (s *Segment) unfollow() {
	if s.stop != nil {
		close(s.stop)
		s.stop = nil
	}
}

// moveAgain moves what the NIC has got since, and notes it.
func (s *Segment) moveAgain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop != nil {
		moveAgain(s.made, s.save)
	}
}

// moveOf is the index of the change by which addresses moved, or -1.
func moveOf(made []change) int {
	return slices.IndexFunc(made, func(c change) bool { return c.Op == opMove && c.Saved != nil })
}

// moveAgain moves what the NIC has got since the move among the changes, once
// save has noted it. What fails is tried again with the next renewal: until then
// the addresses that have moved before do their work.
func moveAgain(made []change, save func() error) {
	i := moveOf(made)
	if i < 0 {
		return
	}
	rename(made)
	c := &made[i]
	b, err := belongingsOf(c.Link)
	if err != nil || len(b.Addresses) == 0 {
		return
	}
	// What was written down before must not seem as old as the first of it.
	c.Saved = c.Saved.age(c.On)
	c.Saved.merge(b)
	if save() == nil {
		_ = b.relocate(c.Link, c.On, func() {})
	}
}

// followNIC calls again after each change of a NIC's addresses until stop is
// closed. One that is gone has none.
func followNIC(name string, stop <-chan struct{}, again func()) error {
	nic, err := netlink.LinkByName(name)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	updates, end, err := addressUpdates()
	if err != nil {
		return fmt.Errorf("watch the addresses of %s: %w", name, err)
	}
	go func() {
		var settled <-chan time.Time
		for {
			select {
			case <-stop:
				end()
				return
			case u, ok := <-updates:
				if !ok { // more came at once than a socket holds
					end()
					updates, end = nil, func() {}
				}
				if !ok || u.NewAddr && u.LinkIndex == nic.Attrs().Index {
					settled = time.After(followAfter)
				}
			case <-settled:
				settled = nil
				if updates == nil {
					var err error
					if updates, end, err = addressUpdates(); err != nil {
						settled = time.After(followAfter)
					}
				}
				again()
			}
		}
	}()
	return nil
}

// addressUpdates are the changes of all links' addresses, until end is called or
// some were lost.
func addressUpdates() (updates chan netlink.AddrUpdate, end func(), err error) {
	updates, done := make(chan netlink.AddrUpdate), make(chan struct{})
	if err := netlink.AddrSubscribe(updates, done); err != nil {
		return nil, func() {}, err
	}
	return updates, func() {
		close(done)
		// The subscription ends with its next update only.
		go func() {
			for range updates {
			}
		}()
	}, nil
}
