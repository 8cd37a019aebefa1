package lan

import (
	"fmt"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/every-channel/ecboot/internal/nettest"
)

// Links that come and go meanwhile, as those of guests do, spoil no look at the
// network.
func TestReadHostWhileItChanges(t *testing.T) {
	nettest.NeedRoot(t)
	bridge := func(name string) netlink.Link {
		la := netlink.NewLinkAttrs()
		la.Name = name
		return &netlink.Bridge{LinkAttrs: la}
	}
	for i := range 100 { // more than the kernel tells in one message
		link := bridge(fmt.Sprintf("many%d", i))
		if err := netlink.LinkAdd(link); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = netlink.LinkDel(link) })
	}
	over := make(chan struct{})
	var busy sync.WaitGroup
	busy.Go(func() {
		for {
			select {
			case <-over:
				return
			default:
			}
			link := bridge("fleeting")
			_ = netlink.LinkAdd(link)
			_ = netlink.LinkDel(link)
		}
	})
	for range 30 {
		if _, err := readHost(); err != nil {
			t.Error(err)
			break
		}
	}
	close(over)
	busy.Wait()
}
