package dhcpd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// receiveBuffer is what the kernel keeps of a rack that comes back from a power
// cut, all machines asking at once: thousands of requests.
const receiveBuffer = 8 << 20

var broadcastMAC = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// listenUDP opens a server's port on one interface. It is not bound to the
// server's address: such a socket gets no broadcast, and so no DISCOVER.
func listenUDP(ifname string, port int) (*ipv4.PacketConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) {
			err = unix.BindToDevice(int(fd), ifname)
			// Less than we ask for is no reason not to serve.
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
		}); cerr != nil {
			return cerr
		}
		return err
	}}
	conn, err := lc.ListenPacket(context.Background(), "udp4", fmt.Sprintf(":%d", port))
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("UDP port %d on %s is taken: another DHCP server runs here; 'ss -lunp sport = :%[1]d' shows it", port, ifname)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return nil, fmt.Errorf("UDP port %d on %s: %w: run as root", port, ifname, err)
	case err != nil:
		return nil, fmt.Errorf("UDP port %d on %s: %w", port, ifname, err)
	}
	return ipv4.NewPacketConn(conn), nil
}

// listenRaw opens the socket for frames to clients without an address. The
// kernel writes the Ethernet header, so a bridge that changes its MAC with its
// ports is no trouble. The filter keeps received packets away.
func listenRaw(link *net.Interface) (*packet.Conn, error) {
	nothing, err := bpf.Assemble([]bpf.Instruction{bpf.RetConstant{Val: 0}})
	if err != nil {
		return nil, err
	}
	raw, err := packet.Listen(link, packet.Datagram, unix.ETH_P_IP, &packet.Config{Filter: nothing})
	if err != nil {
		return nil, fmt.Errorf("packet socket on %s: %w: DHCP needs root or CAP_NET_RAW", link.Name, err)
	}
	return raw, nil
}

// sender sends replies, those of a batch with one system call where it can. Each
// goroutine that sends has its own.
type sender struct {
	s       *Server
	control []byte         // names the source of datagrams
	msgs    []ipv4.Message // datagrams that wait for flush
	told    []Decision     // what they are, in the same order
}

func (s *Server) newSender() *sender {
	// An interface that others own may have several addresses, and clients
	// compare the source with option 54.
	cm := ipv4.ControlMessage{Src: s.cfg.Server.Addr().AsSlice(), IfIndex: s.ifindex}
	return &sender{s: s, control: cm.Marshal()}
}

// add sends a reply, or leaves it for the next flush.
func (o *sender) add(d Decision) {
	b := d.Reply.Packet.ToBytes()
	switch d.Reply.Way {
	case ToRelay:
		o.datagram(d, b, serverPort)
	case ToClient:
		o.datagram(d, b, clientPort)
	case ToHardware:
		o.frame(d, b, d.Reply.Packet.ClientHWAddr)
	case ToAll:
		o.frame(d, b, broadcastMAC)
	}
}

func (o *sender) datagram(d Decision, b []byte, port int) {
	to := &net.UDPAddr{IP: d.Reply.To.AsSlice(), Port: port}
	o.msgs = append(o.msgs, ipv4.Message{Buffers: [][]byte{b}, OOB: o.control, Addr: to})
	o.told = append(o.told, d)
}

func (o *sender) frame(d Decision, b []byte, hw net.HardwareAddr) {
	from, to := netip.AddrPortFrom(o.s.cfg.Server.Addr(), serverPort), netip.AddrPortFrom(d.Reply.To, clientPort)
	_, err := o.s.raw.WriteTo(datagram(from, to, b), &packet.Addr{HardwareAddr: hw})
	o.sent(d, err)
}

// flush sends the datagrams that wait.
func (o *sender) flush() {
	for i := 0; i < len(o.msgs); {
		n, err := o.s.udp.WriteBatch(o.msgs[i:], 0)
		for ; n > 0; n-- {
			o.sent(o.told[i], nil)
			i++
		}
		if err != nil {
			o.sent(o.told[i], err)
			i++
		}
	}
	clear(o.msgs)
	clear(o.told)
	o.msgs, o.told = o.msgs[:0], o.told[:0]
}

// sent notes what became of a reply.
func (o *sender) sent(d Decision, err error) {
	now := o.s.cfg.Now()
	if err != nil {
		if n, say := o.s.sendFailed.Note(now); say {
			o.s.cfg.Logger.Warn("a DHCP reply could not be sent", "to", d.Told.Machine, "error", err, "so far", n)
		}
		return
	}
	d.Told.At = now
	o.s.record(d.Told)
}
