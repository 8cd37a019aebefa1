package lan

import (
	"encoding/json"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// FuzzNote reads notes as a disk may give them back, and does all with them that
// comes before a request to the kernel.
func FuzzNote(f *testing.F) {
	address := append(make([]byte, addressHead), nl.NewRtAttr(unix.IFA_LOCAL, []byte{10, 0, 0, 1}).Serialize()...)
	address = append(address, nl.NewRtAttr(unix.IFA_LABEL, []byte("eth0:old\x00")).Serialize()...)
	address = append(address, nl.NewRtAttr(unix.IFA_CACHEINFO, make([]byte, 16)).Serialize()...)
	route := append(make([]byte, routeHead), nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(4)).Serialize()...)
	route = append(route, nl.NewRtAttr(unix.RTA_MULTIPATH, []byte{8, 0, 0, 0, 4, 0, 0, 0}).Serialize()...)
	route = append(route, nl.NewRtAttr(unix.RTA_CACHEINFO, make([]byte, 32)).Serialize()...)
	seed, err := json.Marshal(note{Boot: "id", Made: []change{
		{Op: opMove, Link: "eth0", On: "br0", Saved: &belongings{Index: 4, Addresses: []message{address}, Routes: []message{route}}},
		{Op: opNAT, Link: "br0", NAT: newNAT("lab", "br0", private, []string{"eth0"})},
	}, Open: &opened{Config: Config{Parent: "eth0", Address: private}, Link: "br0"}, Owner: process{1, 2}, Held: []process{{3, 4}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte(`{"made":[{"op":"move","saved":{"addresses":["AAAA"],"routes":["AAAA",""]}}]}`))
	f.Add([]byte(`{"made":[{"op":"move"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var n note
		if json.Unmarshal(b, &n) != nil {
			return
		}
		for _, c := range n.Made {
			if c.NAT != nil && c.NAT.Net.IsValid() {
				c.NAT.table()
			}
			c.affects()
			c.upper(1)
			if c.whole() {
				_ = c.String()
			}
			if c.Saved == nil {
				continue
			}
			c.Saved.age("no such link")
			for _, m := range c.Saved.Addresses {
				m.addressIndex()
				m.address()
				m.isKernelLinkLocal()
				_, _ = m.on(7, "br0")
			}
			for _, m := range c.Saved.Routes {
				m.destination()
				m.defaultGateway()
				_, _ = m.routeIsOver(4)
				_, _ = m.standIn().route(4, 7)
			}
		}
	})
}
