package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"
)

// cable is the DHCP socket of all machines. They ask with the broadcast flag,
// because the link's hardware address is not theirs.
type cable struct{ net.PacketConn }

func connect(link string) (*cable, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) {
			err = errors.Join(
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
				unix.BindToDevice(int(fd), link))
		})
		return errors.Join(cerr, err)
	}}
	conn, err := lc.ListenPacket(context.Background(), "udp4", ":68")
	if err != nil {
		return nil, fmt.Errorf("the machines' DHCP socket: %w", err)
	}
	return &cable{conn}, nil
}

type reply = *dhcpv4.DHCPv4

// receive hands each reply to its machine until the socket is closed.
func (c *cable) receive(machines []*machine) {
	buf := make([]byte, 2048)
	for {
		n, _, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		p, err := dhcpv4.FromBytes(buf[:n])
		if err != nil || p.OpCode != dhcpv4.OpcodeBootReply || len(p.ClientHWAddr) != 6 {
			continue
		}
		i := int(p.ClientHWAddr[4])<<8 | int(p.ClientHWAddr[5])
		if i >= len(machines) || !bytes.Equal(p.ClientHWAddr, machines[i].mac) {
			continue
		}
		select {
		case machines[i].dhcp <- p:
		default: // it has not looked at the last ones yet
		}
	}
}

// speaker is who does DHCP on a machine: what it says of itself, and for how
// long it waits before it repeats itself. Later waits are twice as long.
type speaker struct {
	options []dhcpv4.Modifier
	wait    time.Duration
}

var (
	// firmware is EDK2's PXE on x64.
	firmware = speaker{wait: 4 * time.Second, options: []dhcpv4.Modifier{
		dhcpv4.WithGeneric(dhcpv4.OptionClassIdentifier, []byte("PXEClient:Arch:00007:UNDI:003000")),
		dhcpv4.WithGeneric(dhcpv4.OptionClientSystemArchitectureType, []byte{0, 7}),
		dhcpv4.WithGeneric(dhcpv4.OptionClientNetworkInterfaceIdentifier, []byte{1, 3, 0}),
	}}
	// ipxe is iPXE's EFI build; its features are pxeext, HTTP, DNS and EFI.
	ipxe = speaker{wait: time.Second, options: append(firmware.options[:3:3],
		dhcpv4.WithGeneric(dhcpv4.OptionUserClassInformation, []byte("iPXE")),
		dhcpv4.WithGeneric(dhcpv4.GenericOptionCode(175), []byte{0x10, 1, 2, 0x13, 1, 1, 0x15, 1, 1, 0x24, 1, 1, 0xeb, 3, 1, 21, 1}))}
)

// offer is what DHCP has given a machine.
type offer struct {
	addr   netip.Prefix
	server netip.Addr // of TFTP
	file   string
}

// errRefused is a NAK: the address that was offered is gone to another machine.
var errRefused = errors.New("refused")

// lease gets an address. A machine that is refused the one that it was offered
// begins again at once, as EDK2 does.
func (m *machine) lease(ctx context.Context, who speaker) (o offer, err error) {
	for {
		if o, err = m.exchange(ctx, who); !errors.Is(err, errRefused) {
			return o, err
		}
		m.retried()
	}
}

// exchange is DISCOVER to ACK.
func (m *machine) exchange(ctx context.Context, who speaker) (o offer, err error) {
	discover, err := dhcpv4.NewDiscovery(m.mac, append(who.options, dhcpv4.WithBroadcast(true), m.uuid(),
		dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionTFTPServerName, dhcpv4.OptionBootfileName))...)
	if err != nil {
		return o, err
	}
	offered, err := m.ask(ctx, discover, dhcpv4.MessageTypeOffer, who.wait)
	if err != nil {
		return o, err
	}
	request, err := dhcpv4.NewRequestFromOffer(offered, append(who.options, dhcpv4.WithBroadcast(true), m.uuid())...)
	if err != nil {
		return o, err
	}
	ack, err := m.ask(ctx, request, dhcpv4.MessageTypeAck, who.wait)
	if err != nil {
		return o, err
	}
	addr, _ := netip.AddrFromSlice(ack.YourIPAddr.To4())
	bits, _ := ack.SubnetMask().Size()
	o.addr = netip.PrefixFrom(addr, bits)
	o.server, _ = netip.AddrFromSlice(ack.ServerIPAddr.To4())
	o.file = ack.BootFileNameOption()
	if o.file == "" {
		o.file = ack.BootFileName
	}
	o.file = strings.TrimRight(o.file, "\x00")
	if o.file == "" {
		return o, fmt.Errorf("%s is given, and no boot file", addr)
	}
	return o, nil
}

func (m *machine) uuid() dhcpv4.Modifier {
	return dhcpv4.WithGeneric(dhcpv4.OptionClientMachineIdentifier, append(make([]byte, 11), m.mac...))
}

// ask sends a request until its answer comes.
func (m *machine) ask(ctx context.Context, p *dhcpv4.DHCPv4, want dhcpv4.MessageType, wait time.Duration) (reply, error) {
	server := &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ServerPort}
	for {
		if _, err := m.cable.WriteTo(p.ToBytes(), server); err != nil {
			return nil, err
		}
		late := time.NewTimer(wait)
	answers:
		for {
			select {
			case r := <-m.dhcp:
				switch {
				case r.TransactionID != p.TransactionID:
				case r.MessageType() == want:
					late.Stop()
					return r, nil
				case r.MessageType() == dhcpv4.MessageTypeNak:
					return nil, errRefused
				}
			case <-late.C:
				break answers
			case <-ctx.Done():
				return nil, fmt.Errorf("no %s: %w", want, ctx.Err())
			}
		}
		m.retried()
		wait *= 2
	}
}
