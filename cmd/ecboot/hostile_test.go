package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/nettest"
)

// mostAttacked is the memory in bytes that the servers may have while strangers
// do what they can.
const mostAttacked = 160 << 20

// A machine that the configuration names boots while a station on its network
// makes up machines to take all addresses, lies in its name, poses as a relay,
// and holds transfers of all kinds half open.
func TestBootsUnderAttack(t *testing.T) {
	needGuests(t)
	t.Parallel()
	const bridge = "hostile"
	nettest.Bridge(t, bridge, "10.82.0.1/24")
	attacker := nettest.NewHost(t, "attacker")
	nettest.Connect(t, bridge, attacker, "eth0")
	attacker.Run(t, "ip", "addr", "add", "10.82.0.66/24", "dev", "eth0")

	dir := t.TempDir()
	file := filepath.Join(dir, "ecboot.toml")
	victim := boot.MAC{0x52, 0x54, 0, 0x82, 0, 1}
	text := fmt.Sprintf("[segment.lan]\nbridge = %q\nunknown = \"boot\"\npool = \"10.82.0.100-10.82.0.131\"\n[server]\nstate_dir = %q\n[[machine]]\nmac = %q\n", bridge, dir, victim)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	s := start(t, "serve", "--config", file)
	s.until(t, "serving")

	var flood net.PacketConn
	attacker.Do(t, func() {
		var err error
		if flood, err = (&net.ListenConfig{Control: onEth0}).ListenPacket(t.Context(), "udp4", ":68"); err != nil {
			t.Error(err)
		}
		holdOpen(t, "udp4", "10.82.0.1:69", "\x00\x01undionly.kpxe\x00octet\x00windowsize\x0064\x00")
		holdOpen(t, "tcp4", "10.82.0.1:80", "GET / HTTP/1.1\r\nHost: x\r\n") // and never the end
	})
	if t.Failed() {
		return
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		floodDHCP(flood, victim, stop)
	}()
	defer func() { <-ended; flood.Close() }()
	defer close(stop)
	s.untilUserland(t, map[boot.MAC]func(){victim: startGuest(t, bridge, victim, guestOptions{})})
	if rss := residentMemory(t, s.cmd.Process.Pid); rss > mostAttacked {
		t.Errorf("the servers hold %d bytes of memory, more than %d", rss, mostAttacked)
	}
}

// holdOpen begins more transfers than one station should have, and ends none.
func holdOpen(t *testing.T, network, server, request string) {
	t.Helper()
	for range 600 {
		conn, err := net.DialTimeout(network, server, time.Second)
		if err != nil {
			continue // refused, as it may be
		}
		t.Cleanup(func() { conn.Close() })
		conn.Write([]byte(request))
	}
}

// floodDHCP sends what nobody should, a thousand packets a second, until stop.
func floodDHCP(conn net.PacketConn, victim boot.MAC, stop <-chan struct{}) {
	everybody := &net.UDPAddr{IP: net.IPv4bcast, Port: 67}
	random := rand.New(rand.NewPCG(1, 2))
	pace := time.NewTicker(10 * time.Millisecond)
	defer pace.Stop()
	for n := 0; n < 120_000; {
		select {
		case <-stop:
			return
		case <-pace.C:
		}
		for range 10 {
			conn.WriteTo(hostilePacket(random, victim), everybody)
			n++
		}
	}
}

// hostilePacket is one of several lies.
func hostilePacket(random *rand.Rand, victim boot.MAC) []byte {
	stranger := boot.MAC{2, 0, byte(random.Uint32()), byte(random.Uint32()), byte(random.Uint32()), byte(random.Uint32())}
	address := net.IPv4(10, 82, 0, byte(100+random.IntN(32)))
	server := dhcpv4.OptServerIdentifier(net.IPv4(10, 82, 0, 1))
	p, err := dhcpv4.New(dhcpv4.WithHwAddr(stranger.HardwareAddr()), dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover))
	if err != nil {
		return nil
	}
	switch random.IntN(8) {
	case 0: // takes whatever address
		p.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeRequest))
		p.UpdateOption(dhcpv4.OptRequestedIPAddress(address))
		p.UpdateOption(server)
	case 1: // gives back what the victim may have
		p.ClientHWAddr, p.ClientIPAddr = victim.HardwareAddr(), address
		p.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeRelease))
		p.UpdateOption(server)
	case 2: // calls it taken
		p.ClientHWAddr = victim.HardwareAddr()
		p.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeDecline))
		p.UpdateOption(dhcpv4.OptRequestedIPAddress(address))
		p.UpdateOption(server)
	case 3: // poses as a relay
		p.GatewayIPAddr = net.IPv4(10, 99, 0, byte(random.Uint32()))
	case 4: // is no packet
		b := p.ToBytes()
		return b[:random.IntN(len(b))]
	case 5: // says more than there is
		b := p.ToBytes()
		return append(b[:len(b)-1], 12, 255, 'x')
	}
	return p.ToBytes()
}

// residentMemory of a process in bytes.
func residentMemory(t *testing.T, pid int) int64 {
	t.Helper()
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(statm))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// onEth0 ties a socket to the attacker's NIC and lets it broadcast.
func onEth0(_, _ string, c syscall.RawConn) (err error) {
	cerr := c.Control(func(fd uintptr) {
		if err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1); err == nil {
			err = unix.BindToDevice(int(fd), "eth0")
		}
	})
	if cerr != nil {
		return cerr
	}
	return err
}
