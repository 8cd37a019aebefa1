package lan

import (
	"bytes"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/internal/nettest"
)

// veth makes a pair of links in the test's namespace, both up.
func veth(t *testing.T, name, peer string) {
	t.Helper()
	la := netlink.NewLinkAttrs()
	la.Name = name
	link := &netlink.Veth{LinkAttrs: la, PeerName: peer}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netlink.LinkDel(link) })
	for _, name := range []string{name, peer} {
		if err := setUp(name); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWakeReachesTheMachineBothWays(t *testing.T) {
	nettest.NeedRoot(t)
	veth(t, "eth0", "nic")
	addr, _ := netlink.ParseAddr("10.78.0.1/24")
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		t.Fatal(err)
	}
	nic, err := net.InterfaceByName("nic")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := packet.Listen(nic, packet.Raw, unix.ETH_P_ALL, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()

	mac := [6]byte{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	if err := Wake("eth0", mac); err != nil {
		t.Fatal(err)
	}
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	frame, udp := false, false
	for buf := make([]byte, 2048); !frame || !udp; {
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			t.Fatalf("frame %v, UDP %v: %v", frame, udp, err)
		}
		b := buf[:n]
		if !bytes.HasSuffix(b, magicPacket(mac)) || !bytes.HasPrefix(b, bytes.Repeat([]byte{0xff}, 6)) {
			continue
		}
		switch {
		case b[12] == 0x08 && b[13] == 0x42:
			frame = true
		case b[12] == 0x08 && b[13] == 0x00 && b[14+22] == 0 && b[14+23] == wakePort:
			udp = true
		}
	}
}

func TestWakeNamesTheLinkThatIsNotThere(t *testing.T) {
	if err := Wake("eth9", [6]byte{}); err == nil || !strings.Contains(err.Error(), "through eth9: there is no such link") {
		t.Error("no error")
	}
}
