package dhcpd

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Route is one classless static route (RFC 3442).
type Route struct {
	To  netip.Prefix
	Via netip.Addr
}

// headerLen is everything before the options: the BOOTP fields and the cookie.
const headerLen = 240

// Sizes of a DHCP message as option 57 counts them, with the IP and UDP headers
// (RFC 2132 §9.10). What is longer than a frame would come in fragments, which
// UEFI firmware ignores.
const (
	minMessage = 576
	maxMessage = 1500
)

// The values of option 52 (RFC 2132 §9.3): which fields hold options.
const (
	overloadFile  = 1
	overloadSname = 2
)

// decode reads a request, with the options in the fields sname and file that
// option 52 tells of.
func decode(b []byte) (*dhcpv4.DHCPv4, error) {
	req, err := dhcpv4.FromBytes(b)
	if err != nil {
		return nil, err
	}
	var overload byte
	if v := req.Options[dhcpv4.OptionOptionOverload.Code()]; len(v) == 1 {
		overload = v[0]
	}
	// In this order RFC 3396 §5 puts the parts of long options together.
	if overload&overloadFile != 0 {
		err = req.Options.FromBytes(b[108:236])
		req.BootFileName = ""
	}
	if overload&overloadSname != 0 && err == nil {
		err = req.Options.FromBytes(b[44:108])
		req.ServerHostName = ""
	}
	if err != nil {
		return nil, fmt.Errorf("in the overloaded fields: %w", err)
	}
	return req, nil
}

// maxReply is how many bytes the reply to a client may have.
func (q *query) maxReply() int {
	size := minMessage
	if b := q.Options.Get(dhcpv4.OptionMaximumDHCPMessageSize); len(b) == 2 {
		size = min(max(size, int(b[0])<<8|int(b[1])), maxMessage)
	}
	return size - ipv4HeaderLen - udpHeaderLen
}

// keepFirst are options in the order in which they are worth their room: without
// the first ones there is no exchange, then no network, then no boot. What a
// client asks for comes next, in its order, and then the rest.
var keepFirst = []dhcpv4.OptionCode{
	dhcpv4.OptionDHCPMessageType, dhcpv4.OptionServerIdentifier, dhcpv4.OptionRelayAgentInformation, dhcpv4.OptionIPAddressLeaseTime,
	dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionClassIdentifier, dhcpv4.OptionVendorSpecificInformation,
	dhcpv4.OptionBootfileName, dhcpv4.OptionTFTPServerName, dhcpv4.GenericOptionCode(175), dhcpv4.OptionClientIdentifier,
	dhcpv4.OptionClientMachineIdentifier, dhcpv4.OptionSubnetSelection, dhcpv4.OptionDomainNameServer, dhcpv4.OptionClasslessStaticRoute,
}

// fit makes a packet no longer than max. What has no room among the options goes
// into the fields sname and file if they are empty, and what has none there
// either is left out: the least important first. It returns the codes of these.
func fit(p *dhcpv4.DHCPv4, asked []byte, max int) (dropped []uint8) {
	room := max - headerLen - 1 // the end option
	need := 0
	for _, b := range p.Options {
		need += optionLen(b)
	}
	if need <= room {
		return nil
	}
	// By importance, into the first field with room.
	const overloadLen = 3
	fields := []*field{{room: room - overloadLen}}
	// The codec writes the last byte of each as zero.
	if p.BootFileName == "" {
		fields = append(fields, &field{bit: overloadFile, room: maxFile - 1})
	}
	if p.ServerHostName == "" {
		fields = append(fields, &field{bit: overloadSname, room: maxSname - 1})
	}
	var overload byte
	for _, code := range byImportance(p.Options, asked) {
		b := p.Options[code]
		i := slices.IndexFunc(fields, func(f *field) bool { return optionLen(b) <= f.room })
		if i < 0 {
			dropped = append(dropped, code)
			delete(p.Options, code)
			continue
		}
		f := fields[i]
		f.room -= optionLen(b)
		if f.bit != 0 {
			overload |= f.bit
			f.options = appendOption(f.options, code, b)
			delete(p.Options, code)
		}
	}
	for _, f := range fields {
		switch text := string(f.options) + "\xff"; {
		case len(f.options) == 0:
		case f.bit == overloadFile:
			p.BootFileName = text
		case f.bit == overloadSname:
			p.ServerHostName = text
		}
	}
	if overload != 0 {
		set(p, dhcpv4.OptionOptionOverload, []byte{overload})
	}
	return dropped
}

// fit makes the reply of a decision as short as its client wants it.
func (h *Handler) fit(d *Decision, q *query) {
	if d.Reply == nil {
		return
	}
	dropped := fit(d.Reply.Packet, q.Options.Get(dhcpv4.OptionParameterRequestList), q.maxReply())
	if len(dropped) == 0 {
		return
	}
	if n, say := h.cut.Note(q.now); say && d.Warn == "" {
		d.Warn = fmt.Sprintf("the reply to %s leaves out the options %d: it takes %d bytes at most (so far %d replies)", q.mac, dropped, q.maxReply(), n)
	}
}

// field is a part of a packet that holds options.
type field struct {
	bit     byte // in option 52; 0 for the options field itself
	room    int
	options []byte // encoded; not of the options field itself
}

// byImportance returns the codes of options, the most important first.
func byImportance(o dhcpv4.Options, asked []byte) []uint8 {
	rank := func(code uint8) int {
		if i := slices.IndexFunc(keepFirst, func(c dhcpv4.OptionCode) bool { return c.Code() == code }); i >= 0 {
			return i
		}
		if i := slices.Index(asked, code); i >= 0 {
			return len(keepFirst) + i
		}
		return len(keepFirst) + 256
	}
	codes := make([]uint8, 0, len(o))
	for code := range o {
		codes = append(codes, code)
	}
	slices.SortFunc(codes, func(a, b uint8) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b)) })
	return codes
}

// optionLen is how many bytes an option takes; one of more than 255 is written
// in parts (RFC 3396).
func optionLen(b []byte) int { return len(b) + 2*max(1, (len(b)+maxOption-1)/maxOption) }

// appendOption appends an option of at most 255 bytes.
func appendOption(b []byte, code uint8, value []byte) []byte {
	return append(append(b, code, uint8(len(value))), value...)
}

// own puts the configured options in place of what would be sent otherwise: the
// network's, then the machine's. They are sent to everybody, asked for or not, but
// for vendors' own options, which are for operating systems only.
// Boot file and server are for firmware only: an iPXE that was loaded by them
// still gets its script.
func (h *Handler) own(p *dhcpv4.DHCPv4, q *query) {
	for _, list := range [][]boot.Option{h.cfg.Options, q.machine.Options} {
		for _, o := range list {
			code := dhcpv4.GenericOptionCode(o.Code)
			switch code.Code() {
			case dhcpv4.OptionVendorSpecificInformation.Code(), 175:
				// Another vendor's: in a boot program's offer they steer
				// the boot (PXE 2.1 §2.2, iPXE), which is ours.
				if q.client.Kind != boot.KindOS {
					continue
				}
			case dhcpv4.OptionBootfileName.Code():
				if q.client.Kind == boot.KindIPXE {
					continue
				}
				p.BootFileName = ""
				if len(o.Data) <= maxFile {
					p.BootFileName = string(o.Data)
				}
			case dhcpv4.OptionTFTPServerName.Code():
				if q.client.Kind == boot.KindIPXE {
					continue
				}
				// Most firmware reads this field and not the option.
				if a, err := netip.ParseAddr(string(o.Data)); err == nil && a.Is4() {
					p.ServerIPAddr = a.AsSlice()
				}
			}
			set(p, code, o.Data)
		}
	}
}

// checkOptions says what is wrong with the parts of a network that become
// options, if anything.
func (c Network) checkOptions() error {
	for _, name := range c.Search {
		if _, err := boot.DomainList([]string{name}); err != nil {
			return fmt.Errorf("search domain %w such as lab.example", err)
		}
	}
	for _, r := range c.Routes {
		if !r.To.Addr().Is4() || !r.Via.Is4() {
			return fmt.Errorf("the route %s via %s: DHCP tells of IPv4 routes only", r.To, r.Via)
		}
	}
	for _, o := range c.Options {
		switch o.Code {
		case 0, 255, dhcpv4.OptionDHCPMessageType.Code(), dhcpv4.OptionServerIdentifier.Code(), dhcpv4.OptionIPAddressLeaseTime.Code(),
			dhcpv4.OptionOptionOverload.Code(), dhcpv4.OptionRelayAgentInformation.Code():
			return fmt.Errorf("the DHCP option %d cannot be set: the protocol needs it", o.Code)
		}
	}
	return nil
}

// encodeRoutes makes option 121. A client that understands it ignores option 3,
// so the default route is in it too (RFC 3442).
func encodeRoutes(routes []Route, router netip.Addr) []byte {
	if len(routes) == 0 {
		return nil
	}
	var list dhcpv4.Routes
	add := func(to netip.Prefix, via netip.Addr) {
		to = to.Masked()
		list = append(list, &dhcpv4.Route{
			Dest:   &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), 32)},
			Router: via.AsSlice(),
		})
	}
	for _, r := range routes {
		add(r.To, r.Via)
	}
	if all := netip.MustParsePrefix("0.0.0.0/0"); router.IsValid() && !slices.ContainsFunc(routes, func(r Route) bool { return r.To.Bits() == 0 }) {
		add(all, router)
	}
	return list.ToBytes()
}
