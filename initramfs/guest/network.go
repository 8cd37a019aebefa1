//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nic is what the choice of a network interface depends on.
type nic struct {
	name    string
	mac     net.HardwareAddr
	carrier bool
}

// choose returns the index of the NIC to configure: the one that the machine
// booted from, or else the first with a carrier. A boot NIC without a carrier
// is worth waiting for, so others are not taken in its place; ok is false then.
func choose(nics []nic, bootIF net.HardwareAddr) (i int, ok bool) {
	if bootIF != nil {
		for i, n := range nics {
			if bytes.Equal(n.mac, bootIF) {
				return i, n.carrier
			}
		}
	}
	for i, n := range nics {
		if n.carrier {
			return i, true
		}
	}
	return 0, false
}

// configure brings up one NIC with the address, routes, name servers and
// host name that a DHCP server gives.
func configure(ctx context.Context, bootIF net.HardwareAddr) error {
	link, err := waitForLink(ctx, bootIF)
	if err != nil {
		return err
	}
	name := link.Attrs().Name
	ack, err := lease(ctx, name, link.Attrs().HardwareAddr)
	if err != nil {
		return fmt.Errorf("no DHCP answer on %s: %w", name, err)
	}
	if err := apply(link, ack); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// loopbackUp is what a system without any other network needs as well.
func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	return nil
}

// waitForLink brings every Ethernet NIC up and returns the chosen one as soon as
// it has a carrier.
func waitForLink(ctx context.Context, bootIF net.HardwareAddr) (netlink.Link, error) {
	// Subscribed before the first look, so that no change falls between.
	updates := make(chan netlink.LinkUpdate, 16)
	done := make(chan struct{})
	defer close(done)
	if err := netlink.LinkSubscribe(updates, done); err != nil {
		return nil, fmt.Errorf("watch links: %w", err)
	}
	links, err := ethernetLinks()
	if err != nil {
		return nil, err
	}
	if len(links) == 0 {
		return nil, errors.New("no network interface; is there a driver for it in this kernel?")
	}
	for _, l := range links {
		if err := netlink.LinkSetUp(l); err != nil {
			return nil, fmt.Errorf("%s: set up: %w", l.Attrs().Name, err)
		}
	}
	for {
		if links, err = ethernetLinks(); err != nil {
			return nil, err
		}
		nics := make([]nic, len(links))
		for i, l := range links {
			a := l.Attrs()
			// IFF_RUNNING says the same up to a second later.
			nics[i] = nic{a.Name, a.HardwareAddr, a.RawFlags&unix.IFF_LOWER_UP != 0}
		}
		if i, ok := choose(nics, bootIF); ok {
			return links[i], nil
		}
		select {
		case <-updates:
		case <-ctx.Done():
			return nil, fmt.Errorf("no carrier on %s", names(nics))
		}
	}
}

func ethernetLinks() ([]netlink.Link, error) {
	all, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var links []netlink.Link
	for _, l := range all {
		if _, physical := l.(*netlink.Device); physical && l.Attrs().EncapType == "ether" {
			links = append(links, l)
		}
	}
	return links, nil
}

func names(nics []nic) string {
	list := make([]string, len(nics))
	for i, n := range nics {
		list[i] = n.name
	}
	return strings.Join(list, ", ")
}

// A NIC often loses the first packet after its link came up, so the first wait
// for an answer is short. The client doubles it each time, so that eight of them
// outlast reportBudget.
const (
	firstWait = 250 * time.Millisecond
	waits     = 8
)

// lease does the four-way exchange of RFC 2131.
func lease(ctx context.Context, ifname string, mac net.HardwareAddr) (*dhcpv4.DHCPv4, error) {
	client, err := nclient4.New(ifname, nclient4.WithHWAddr(mac), nclient4.WithTimeout(firstWait), nclient4.WithRetry(waits))
	if err != nil {
		return nil, err
	}
	defer client.Close()
	l, err := client.Request(ctx, dhcpv4.WithRequestedOptions(
		dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer,
		dhcpv4.OptionHostName, dhcpv4.OptionDomainName, dhcpv4.OptionInterfaceMTU))
	if err != nil {
		return nil, err
	}
	return l.ACK, nil
}

// apply makes the interface what the ACK says.
func apply(link netlink.Link, ack *dhcpv4.DHCPv4) error {
	mask := ack.SubnetMask()
	if mask == nil {
		mask = ack.YourIPAddr.DefaultMask()
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: ack.YourIPAddr, Mask: mask}}
	if err := netlink.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("set address %s: %w", addr, err)
	}
	if mtu, err := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, ack.Options); err == nil && mtu >= 576 {
		if err := netlink.LinkSetMTU(link, int(mtu)); err != nil {
			return fmt.Errorf("set MTU %d: %w", mtu, err)
		}
	}
	if routers := ack.Router(); len(routers) > 0 {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: routers[0]}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("set default route by %s: %w", routers[0], err)
		}
	}
	if conf := resolvConf(ack); conf != "" {
		if err := os.WriteFile("/etc/resolv.conf", []byte(conf), 0o644); err != nil {
			return err
		}
	}
	if host := ack.HostName(); host != "" {
		if err := unix.Sethostname([]byte(host)); err != nil {
			return fmt.Errorf("set host name %q: %w", host, err)
		}
	}
	return nil
}

// resolvConf renders options 15 and 6; "" when the server named no name server.
func resolvConf(ack *dhcpv4.DHCPv4) string {
	var b strings.Builder
	if domain := ack.DomainName(); domain != "" {
		fmt.Fprintf(&b, "search %s\n", domain)
	}
	servers := ack.DNS()
	for _, ip := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", ip)
	}
	if len(servers) == 0 {
		return ""
	}
	return b.String()
}
