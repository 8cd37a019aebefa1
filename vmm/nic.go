package vmm

import (
	"bytes"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// ROMNone is the ROM of a NIC that has none: firmware must drive it by itself.
const ROMNone = "none"

// NIC is one network card, connected to a tap or to QEMU's own network.
type NIC struct {
	User      bool             // QEMU's user network, which translates to the host's: takes no tap
	Model     string           // QEMU's device name; empty: virtio-net
	MAC       net.HardwareAddr // six bytes, unicast, never empty
	ROM       string           // option ROM; empty: QEMU's own iPXE; ROMNone; or a file
	BootIndex int              // order among boot devices, disks too, from 1; 0: not a boot device
	Pcap      string           // file that gets a capture of all its packets; empty: none

	vhost bool // the host's kernel moves the packets; Start finds out
}

// model is the device's name on the machine: one with virtio-mmio knows the
// cards of PCI under other names.
func (n *NIC) model(s *Spec) string {
	if n.Model == "" || strings.HasPrefix(n.Model, "virtio-net") && s.microvm() {
		return s.virtio("virtio-net")
	}
	return n.Model
}

// taps counts the NICs that take one.
func (s *Spec) taps() (n int) {
	for _, nic := range s.NICs {
		if !nic.User {
			n++
		}
	}
	return n
}

func (s *Spec) nicArgs(l layout) (args []string) {
	for i := range s.NICs {
		nic := &s.NICs[i]
		netdev := fmt.Sprintf("user,id=net%d", i)
		if !nic.User {
			netdev = fmt.Sprintf("tap,id=net%d,fd=%d", i, l.fd(nth("tap", i)))
		}
		if nic.vhost {
			netdev += fmt.Sprintf(",vhost=on,vhostfd=%d", l.fd(nth("vhost", i)))
		}
		args = append(args, "-netdev", netdev)
		if nic.Pcap != "" {
			args = append(args, "-object", fmt.Sprintf("filter-dump,id=pcap%d,netdev=net%[1]d,file=%s", i, optValue(l.file(nth("pcap", i), nic.Pcap))))
		}
		args = append(args, "-device", s.nicDevice(l, i))
	}
	return args
}

func (s *Spec) nicDevice(l layout, i int) string {
	nic := &s.NICs[i]
	d := fmt.Sprintf("%s,id=nic%d,netdev=net%[2]d,mac=%s", nic.model(s), i, nic.MAC)
	switch {
	case nic.ROM == "" || s.microvm(): // whose devices have none
	case nic.ROM == ROMNone:
		d += ",romfile="
	default:
		d += ",romfile=" + optValue(l.file(nth("rom", i), nic.ROM))
	}
	if nic.BootIndex != 0 {
		d += ",bootindex=" + strconv.Itoa(nic.BootIndex)
	}
	return d
}

func (s *Spec) checkNIC(i int) error {
	nic := s.NICs[i]
	switch {
	case len(nic.MAC) != 6:
		return fmt.Errorf("it needs a MAC address of six bytes, not %d", len(nic.MAC))
	case nic.MAC[0]&1 != 0:
		return fmt.Errorf("%s is a group address: make the first byte even", nic.MAC)
	case bytes.Equal(nic.MAC, make([]byte, 6)):
		return fmt.Errorf("%s is no address: choose one such as 52:54:00:12:34:56", nic.MAC)
	case nic.BootIndex < 0:
		return fmt.Errorf("boot index %d: use 1 or more, 0 for a NIC that is not booted from", nic.BootIndex)
	case s.microvm() && nic.Model != "" && !strings.HasPrefix(nic.Model, "virtio-net"):
		return fmt.Errorf("a microvm has no bus for %s: use virtio-net-device", nic.Model)
	case s.microvm() && nic.ROM != "" && nic.ROM != ROMNone:
		return fmt.Errorf("a microvm has no option ROMs: leave %s out", nic.ROM)
	}
	for j, other := range s.NICs[:i] {
		if bytes.Equal(nic.MAC, other.MAC) {
			return fmt.Errorf("%s is the MAC address of NIC %d already", nic.MAC, j)
		}
		if nic.BootIndex != 0 && nic.BootIndex == other.BootIndex {
			return fmt.Errorf("boot index %d is that of NIC %d already", nic.BootIndex, j)
		}
	}
	return nil
}
