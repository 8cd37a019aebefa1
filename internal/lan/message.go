package lan

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What golang.org/x/sys lacks of linux/netlink.h, rtnetlink.h and if_addr.h.
const (
	attributeType  = 0x3fff // the part of an attribute's type that is no flag
	rtaNexthopID   = 30
	ifaProto       = 11
	protoLinkLocal = 3 // IFAPROT_KERNEL_LL
)

// message is a route or an address in the kernel's own words (rtnetlink(7)): a
// fixed head and attributes. Kept whole, it comes back with all that it had,
// also what this program knows nothing of.
type message []byte

// The sizes of the heads.
const (
	addressHead = unix.SizeofIfAddrmsg
	routeHead   = unix.SizeofRtMsg
)

// attr is one attribute (struct rtattr): a length, a type and a value, padded to
// four bytes.
type attr struct {
	kind  uint16 // with flags
	value []byte
}

func parseAttrs(b []byte) (out []attr, err error) {
	for len(b) >= unix.SizeofRtAttr {
		size := int(nl.NativeEndian().Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			return nil, fmt.Errorf("an attribute of %d bytes among %d", size, len(b))
		}
		out = append(out, attr{nl.NativeEndian().Uint16(b[2:]), b[unix.SizeofRtAttr:size]})
		b = b[min(len(b), (size+3)&^3):]
	}
	return out, nil
}

// attribute is the value of an attribute, nil when it is not there.
func attribute(attrs []attr, kind uint16) []byte {
	for _, a := range attrs {
		if a.kind&attributeType == kind {
			return a.value
		}
	}
	return nil
}

// attrs parses what follows the head.
func (m message) attrs(head int) ([]attr, error) {
	if len(m) < head {
		return nil, errors.New("a message of the kernel is cut short")
	}
	return parseAttrs(m[head:])
}

// edit returns the message with each attribute replaced by what change returns
// for it, left out where that is nil.
func (m message) edit(head int, change func(kind uint16, value []byte) []byte) (message, error) {
	attrs, err := m.attrs(head)
	if err != nil {
		return nil, err
	}
	out := append(message(nil), m[:head]...)
	for _, a := range attrs {
		if value := change(a.kind&attributeType, a.value); value != nil {
			out = append(out, nl.NewRtAttr(int(a.kind), value).Serialize()...)
		}
	}
	return out, nil
}

// dump asks for all messages of a kind.
func dump(request, reply int) ([]message, error) {
	req := nl.NewNetlinkRequest(request, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	replies, err := settled(func() ([][]byte, error) { return req.Execute(unix.NETLINK_ROUTE, uint16(reply)) })
	if err != nil {
		return nil, err
	}
	out := make([]message, len(replies))
	for i, r := range replies {
		out[i] = r
	}
	return out, nil
}

// send asks the kernel to do something with a message.
func (m message) send(request, flags int) error {
	req := nl.NewNetlinkRequest(request, flags|unix.NLM_F_ACK)
	req.AddRawData(m)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// hops walks the next hops of a multipath route (struct rtnexthop, then
// attributes of its own); index points into the value.
func hops(value []byte, visit func(flags *byte, index []byte)) error {
	for len(value) >= unix.SizeofRtNexthop {
		size := int(nl.NativeEndian().Uint16(value))
		if size < unix.SizeofRtNexthop || size > len(value) {
			return fmt.Errorf("a next hop of %d bytes", size)
		}
		visit(&value[2], value[4:8])
		value = value[min(len(value), (size+3)&^3):]
	}
	return nil
}
