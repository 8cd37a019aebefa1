package dhcpd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/timeline"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// Way is how a reply must travel (RFC 2131 §4.1).
type Way uint8

const (
	// ToRelay: "If the giaddr field in a DHCP message from a client is
	// non-zero, the server sends any return messages to the DHCP server port
	// on the BOOTP relay agent whose address appears in giaddr", whatever the
	// broadcast flag says.
	ToRelay Way = iota
	// ToClient: giaddr is zero and ciaddr is not. The client has its address
	// and answers ARP, so the reply is an ordinary datagram to port 68.
	ToClient
	// ToHardware: giaddr, ciaddr and the broadcast flag are zero. The client
	// does not answer ARP for yiaddr yet, so the frame is made by hand: to
	// chaddr, the datagram in it to yiaddr.
	ToHardware
	// ToAll: giaddr and ciaddr are zero and the client set the broadcast flag
	// because it cannot take unicast before it is configured. A DHCPNAK
	// without giaddr goes this way always: the client's address is wrong.
	ToAll
)

// String names the way as RFC 2131 does.
func (w Way) String() string {
	return [...]string{"relay", "unicast to ciaddr", "unicast to chaddr", "broadcast"}[w]
}

// Reply is a packet and the way it goes.
type Reply struct {
	Packet *dhcpv4.DHCPv4
	Way    Way
	To     netip.Addr // the IPv4 destination: giaddr, ciaddr, yiaddr or 255.255.255.255
}

// Limits of the formats. The codec would cut longer names off silently.
const (
	maxFile   = 127 // the BOOTP file field, which ends with a null byte
	maxSname  = 63  // so does the field sname
	maxOption = 255
)

var everybody = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// grant makes the OFFER or ACK. yiaddr is invalid for the answer to an INFORM:
// it MUST NOT hold a lease time (RFC 2131 §4.3.5).
func (h *Handler) grant(d *Decision, q *query, mt dhcpv4.MessageType, yiaddr netip.Addr) {
	p := h.reply(q, mt)
	if yiaddr.IsValid() {
		p.YourIPAddr = yiaddr.AsSlice()
		// Clients would compute the same T1 and T2; old ones do not.
		setSeconds(p, dhcpv4.OptionIPAddressLeaseTime, q.lease)
		setSeconds(p, dhcpv4.OptionRenewTimeValue, q.lease/2)
		setSeconds(p, dhcpv4.OptionRebindingTimeValue, q.lease*7/8)
	}
	if mt == dhcpv4.MessageTypeAck {
		p.ClientIPAddr = q.ClientIPAddr // RFC 2131 table 3
	}
	h.network(p, q)
	file := h.next(q)
	h.bootfile(p, q, file)
	h.own(p, q)

	r := &Reply{Packet: p}
	relay, ciaddr := addr(q.GatewayIPAddr), addr(q.ClientIPAddr)
	switch {
	case !relay.IsUnspecified():
		r.Way, r.To = ToRelay, relay
	// A ciaddr that we have not checked could be anybody's: it counts when
	// it is the one we acknowledge, or an INFORM's, which is on our segment.
	case mt == dhcpv4.MessageTypeAck && !ciaddr.IsUnspecified() && (ciaddr == yiaddr || !yiaddr.IsValid()):
		r.Way, r.To = ToClient, ciaddr
	case q.IsBroadcast():
		r.Way, r.To = ToAll, everybody
	default:
		r.Way, r.To = ToHardware, yiaddr
	}
	d.Reply = r

	detail := ciaddr.String()
	if yiaddr.IsValid() {
		detail = yiaddr.String()
	}
	d.Told = q.event(messageName(mt), detail)
	h.explain(d, &d.Told, q, file)
}

// messageName is how the timeline calls a reply.
func messageName(mt dhcpv4.MessageType) string {
	if mt == dhcpv4.MessageTypeOffer {
		return "offer"
	}
	return "ack"
}

// explain adds to an event what the client boots next, or once per machine why
// there is nothing for it.
func (h *Handler) explain(d *Decision, e *timeline.Event, q *query, file boot.Bootfile) {
	var words string
	switch {
	case file.Via == boot.ViaTFTP:
		words = file.Path + " by TFTP"
	case file.Via == boot.ViaHTTP:
		words = file.Path + " by HTTP"
	case file.Why == "":
		return
	case q.profile.Local():
		words = file.Why
	default:
		if said, ok := h.refused.get(q.mac, q.now); ok && said == file.Why {
			return
		}
		h.refused.put(q.mac, file.Why, q.now)
		words = "no boot file: " + file.Why
		e.Phase = timeline.Fail
		if n, say := h.barren.Note(q.now); say {
			d.Warn = fmt.Sprintf("%s gets no boot file: %s (so far %d machines)", q.mac, file.Why, n)
		}
	}
	if e.Detail != "" {
		e.Detail += ", "
	}
	e.Detail += words
}

// refuse makes the NAK. RFC 2131 table 3 leaves it with nothing but 54, 56 and
// what is echoed.
func (h *Handler) refuse(d *Decision, q *query, a netip.Addr, why string) {
	p := h.reply(q, dhcpv4.MessageTypeNak)
	p.UpdateOption(dhcpv4.OptMessage(a.String() + " is " + why))
	d.Reply = &Reply{Packet: p, Way: ToAll, To: everybody}
	if relay := addr(q.GatewayIPAddr); !relay.IsUnspecified() {
		// The relay must broadcast it too: RFC 2131 §4.3.2, a MUST.
		p.SetBroadcast()
		d.Reply.Way, d.Reply.To = ToRelay, relay
	}
	d.Told = q.event("nak", a.String()+" is "+why)
}

// reply starts a packet with what every reply has.
func (h *Handler) reply(q *query, mt dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	p := &dhcpv4.DHCPv4{
		OpCode:        dhcpv4.OpcodeBootReply,
		HWType:        iana.HWTypeEthernet,
		TransactionID: q.TransactionID,
		Flags:         q.Flags,
		ClientIPAddr:  net.IPv4zero,
		YourIPAddr:    net.IPv4zero,
		ServerIPAddr:  net.IPv4zero,
		GatewayIPAddr: q.GatewayIPAddr,
		ClientHWAddr:  q.ClientHWAddr,
		Options:       dhcpv4.Options{},
	}
	p.UpdateOption(dhcpv4.OptMessageType(mt))
	p.UpdateOption(dhcpv4.OptServerIdentifier(h.cfg.Server.Addr().AsSlice()))
	// RFC 6842 §3, RFC 3046 §2.2, RFC 3011: MUST be echoed, NAKs included. PXE
	// clients want their UUID back (RFC 4578 §2.3). Nobody may fill our reply
	// with what the decoder put together from many options of one code.
	for _, code := range []dhcpv4.OptionCode{dhcpv4.OptionClientIdentifier, dhcpv4.OptionRelayAgentInformation, dhcpv4.OptionSubnetSelection, dhcpv4.OptionClientMachineIdentifier} {
		if b := q.Options.Get(code); len(b) > 0 && len(b) <= maxOption {
			set(p, code, b)
		}
	}
	return p
}

// network adds the parameters of the segment: always those without which a
// client cannot talk, the others when they are asked for.
func (h *Handler) network(p *dhcpv4.DHCPv4, q *query) {
	p.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(h.prefix.Bits(), 32)))
	if h.cfg.Router.IsValid() {
		set(p, dhcpv4.OptionRouter, h.cfg.Router.AsSlice())
	}
	setAddrs(p, dhcpv4.OptionDomainNameServer, h.cfg.DNS)
	if q.wants(dhcpv4.OptionBroadcastAddress) && h.prefix.Bits() < 31 {
		set(p, dhcpv4.OptionBroadcastAddress, broadcast(h.prefix).AsSlice())
	}
	if q.wants(dhcpv4.OptionHostName) {
		setString(p, dhcpv4.OptionHostName, q.machine.Name)
	}
	if q.wants(dhcpv4.OptionDomainName) {
		setString(p, dhcpv4.OptionDomainName, h.cfg.Domain)
	}
	if q.wants(dhcpv4.OptionNTPServers) {
		setAddrs(p, dhcpv4.OptionNTPServers, h.cfg.NTP)
	}
	if q.wants(dhcpv4.OptionDNSDomainSearchList) {
		setBytes(p, dhcpv4.OptionDNSDomainSearchList, h.search)
	}
	for _, code := range routeOptions {
		if q.wants(code) {
			setBytes(p, code, h.routes)
		}
	}
}

// routeOptions are the number of RFC 3442 and the one that Windows asked for
// before, with the same content.
var routeOptions = []dhcpv4.OptionCode{dhcpv4.OptionClasslessStaticRoute, dhcpv4.GenericOptionCode(249)}

// bootfile adds what the client boots next. It is given twice: some ROMs and
// U-Boot read only the BOOTP fields, others only options 66 and 67.
func (h *Handler) bootfile(p *dhcpv4.DHCPv4, q *query, file boot.Bootfile) {
	proxy := h.cfg.Mode == ModeProxy
	if q.client.Kind == boot.KindIPXE && !proxy {
		// no-pxedhcp, a uint8 inside iPXE's own options: there is no
		// proxyDHCP server to wait for.
		set(p, dhcpv4.GenericOptionCode(175), []byte{176, 1, 1})
	}
	if file.Via == boot.ViaNothing {
		return
	}
	p.ServerIPAddr = h.cfg.Server.Addr().AsSlice()
	name := h.location(file)
	if len(name) <= maxFile {
		p.BootFileName = name
	}
	setString(p, dhcpv4.OptionBootfileName, name)
	if q.client.Kind == boot.KindHTTP {
		// UEFI HTTP Boot takes only offers that say so (UEFI §24.7).
		setString(p, dhcpv4.OptionClassIdentifier, "HTTPClient")
		return
	}
	setString(p, dhcpv4.OptionTFTPServerName, h.cfg.Server.Addr().String())
	if q.client.Kind == boot.KindIPXE && !proxy {
		return
	}
	setString(p, dhcpv4.OptionClassIdentifier, "PXEClient")
	switch platform := q.client.Platform(); {
	case platform == boot.RaspberryPi:
		set(p, dhcpv4.OptionVendorSpecificInformation, []byte(raspberryPiMenu))
	case proxy && platform != boot.BIOS:
		// EDK2 drops a proxy's offer that has option 43 (edk2#6944). With
		// option 60 alone it asks again on port 4011.
	default:
		// Option 60 alone would send the client on to port 4011.
		// PXE_DISCOVERY_CONTROL 8 in option 43: skip the discovery and use
		// the boot file (PXE 2.1, table 2-1).
		set(p, dhcpv4.OptionVendorSpecificInformation, []byte{6, 1, 8, 255})
	}
}

// raspberryPiMenu is the boot menu (PXE 2.1, table 2-1: sub-options 6, 9 and 10)
// whose words a Raspberry Pi's boot ROM looks for; it boots from no server that
// does not say them.
const raspberryPiMenu = "\x06\x01\x03\x0a\x04\x00PXE\x09\x14\x00\x00\x11Raspberry Pi Boot\xff"

// location is the boot file's name as its client must read it.
func (h *Handler) location(file boot.Bootfile) string {
	if file.Via == boot.ViaHTTP {
		return h.cfg.url(file.Path)
	}
	return file.Path
}

// wants reports whether option 55 lists the option. Without 55 the client gets
// everything.
func (q *query) wants(code dhcpv4.OptionCode) bool {
	asked, ok := q.Options[dhcpv4.OptionParameterRequestList.Code()]
	return !ok || bytes.IndexByte(asked, code.Code()) >= 0
}

func set(p *dhcpv4.DHCPv4, code dhcpv4.OptionCode, value []byte) { p.Options[code.Code()] = value }

func setBytes(p *dhcpv4.DHCPv4, code dhcpv4.OptionCode, b []byte) {
	if len(b) > 0 {
		set(p, code, b)
	}
}

// setString leaves empty strings out: RFC 2132 wants at least one byte.
func setString(p *dhcpv4.DHCPv4, code dhcpv4.OptionCode, s string) {
	if s != "" {
		set(p, code, []byte(s))
	}
}

func setAddrs(p *dhcpv4.DHCPv4, code dhcpv4.OptionCode, list []netip.Addr) {
	var b []byte
	for _, a := range list {
		b = append(b, a.AsSlice()...)
	}
	if len(b) > 0 {
		set(p, code, b)
	}
}

func setSeconds(p *dhcpv4.DHCPv4, code dhcpv4.OptionCode, d time.Duration) {
	set(p, code, binary.BigEndian.AppendUint32(nil, uint32(d/time.Second)))
}
