package dhcpd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/mdlayher/ndp"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// AdvertiserConfig is what an Advertiser needs to know.
type AdvertiserConfig struct {
	Interface string
	// Only says which stations are answered; nil answers all. On a network
	// that others own it should be those just seen as iPXE
	// (Server.SeenIPXE).
	Only   func(boot.MAC) bool
	Logger *slog.Logger // nil says nothing
}

// Advertiser answers router solicitations (RFC 4861 §6.2.6) so that iPXE, which
// configures IPv6 beside IPv4 and waits for both, need not wait 13 seconds for
// a router that is not there. The answer says that there is none: router
// lifetime 0, no prefix, no DHCPv6. It goes to the station that asked only, so
// nobody becomes a router and nobody else learns of it.
//
// It needs a link-local address on the interface. A bridge without a port that
// is up has none, so the Advertiser follows the interface's addresses and
// answers whenever there is one.
type Advertiser struct {
	cfg   AdvertiserConfig
	link  *net.Interface
	addrs <-chan netlink.AddrUpdate
	quit  func() // ends the subscription to addrs
	ready chan struct{}
}

// NewAdvertiser subscribes to the addresses of the interface.
func NewAdvertiser(cfg AdvertiserConfig) (*Advertiser, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	link, err := net.InterfaceByName(cfg.Interface)
	if err != nil {
		return nil, fmt.Errorf("router advertisements on %s: no such network interface", cfg.Interface)
	}
	a := &Advertiser{cfg: cfg, link: link, ready: make(chan struct{})}
	if err := a.subscribe(); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *Advertiser) subscribe() error {
	addrs, done := make(chan netlink.AddrUpdate), make(chan struct{})
	if err := netlink.AddrSubscribe(addrs, done); err != nil {
		return fmt.Errorf("follow the addresses of %s: %w", a.link.Name, err)
	}
	a.addrs, a.quit = addrs, sync.OnceFunc(func() { close(done) })
	return nil
}

// unsubscribe ends the subscription, which may be about to pass an address on.
func (a *Advertiser) unsubscribe() {
	a.quit()
	for range a.addrs {
	}
}

// String names the advertiser.
func (a *Advertiser) String() string { return "router advertisements on " + a.link.Name }

// Ready is closed when solicitations are answered, or will be as soon as the
// interface has a link-local address.
func (a *Advertiser) Ready() <-chan struct{} { return a.ready }

// Run answers until ctx is done. Without IPv6 on the interface it says so once
// and waits.
func (a *Advertiser) Run(ctx context.Context) error {
	defer a.unsubscribe()
	close(a.ready)
	said := false
	for ctx.Err() == nil {
		conn, self, err := a.listen()
		if err == nil {
			if err := a.serve(ctx, conn, self); err != nil {
				return err
			}
			continue
		}
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("router advertisements on %s: %w: run as root", a.link.Name, err)
		}
		if !said && ipv6Disabled(a.link.Name) {
			a.cfg.Logger.Warn("IPv6 is disabled, so router solicitations are not answered and iPXE waits some 13 s longer", "interface", a.link.Name)
			said = true
		}
		if err := a.changed(ctx, func(netlink.AddrUpdate) bool { return true }); err != nil {
			return err
		}
	}
	return nil
}

// changed waits for a change of the interface's IPv6 addresses that matters, or
// the end of ctx.
func (a *Advertiser) changed(ctx context.Context, matters func(netlink.AddrUpdate) bool) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case u, ok := <-a.addrs:
			if !ok {
				// The kernel dropped changes faster than they were
				// read: what they were does not matter, but that.
				a.quit()
				return a.subscribe()
			}
			if u.LinkIndex == a.link.Index && u.LinkAddress.IP.To4() == nil && matters(u) {
				return nil
			}
		}
	}
}

// listen opens a socket on the link-local address. It fails while there is no
// such address, or duplicate address detection still runs for it.
func (a *Advertiser) listen() (*ndp.Conn, netip.Addr, error) {
	// For a minute package net may remember the number of another link, which
	// had this name before: by its number it finds the one that is meant.
	link := *a.link
	link.Name = strconv.Itoa(link.Index)
	conn, self, err := ndp.Listen(&link, ndp.LinkLocal)
	if err != nil {
		return nil, netip.Addr{}, err
	}
	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeRouterSolicitation)
	err = errors.Join(
		conn.SetICMPFilter(&filter),
		conn.SetControlMessage(ipv6.FlagHopLimit, true),
		conn.JoinGroup(netip.IPv6LinkLocalAllRouters()),
	)
	if err != nil {
		conn.Close()
		return nil, netip.Addr{}, err
	}
	return conn, self, nil
}

// serve answers until ctx is done or the address is taken away.
func (a *Advertiser) serve(ctx context.Context, conn *ndp.Conn, self netip.Addr) error {
	defer conn.Close()
	gone := make(chan error, 1)
	watch, stop := context.WithCancel(ctx)
	go func() {
		gone <- a.changed(watch, func(u netlink.AddrUpdate) bool {
			ip, _ := netip.AddrFromSlice(u.LinkAddress.IP)
			return !u.NewAddr && ip == self.WithZone("")
		})
		conn.SetReadDeadline(time.Unix(1, 0))
	}()
	for {
		m, cm, from, err := conn.ReadFrom()
		if err != nil {
			stop()
			return <-gone
		}
		// RFC 4861 §6.1.1: anything else comes from beyond the segment. A
		// station without an address could be answered by multicast only.
		rs, ok := m.(*ndp.RouterSolicitation)
		if !ok || cm == nil || cm.HopLimit != ndp.HopLimit || !from.IsLinkLocalUnicast() {
			continue
		}
		mac, ok := station(rs, from)
		if a.cfg.Only != nil && (!ok || !a.cfg.Only(mac)) {
			continue
		}
		// A station that has gone away since is no error of ours.
		_ = conn.WriteTo(noRouter(), nil, from)
	}
}

// noRouter is an advertisement that offers nothing. Our link-layer address is
// left out: nobody needs it to talk to a router that is none, and a bridge may
// have changed its own since.
func noRouter() ndp.Message { return &ndp.RouterAdvertisement{} }

// station finds out who solicits: from the option that says it, or else from
// the address if it is made of the MAC (RFC 4291 appendix A).
func station(rs *ndp.RouterSolicitation, from netip.Addr) (boot.MAC, bool) {
	for _, o := range rs.Options {
		if lla, ok := o.(*ndp.LinkLayerAddress); ok && lla.Direction == ndp.Source {
			return boot.MACFrom(lla.Addr)
		}
	}
	b := from.As16()
	if b[11] != 0xff || b[12] != 0xfe {
		return boot.MAC{}, false
	}
	return boot.MAC{b[8] ^ 2, b[9], b[10], b[13], b[14], b[15]}, true
}

// ipv6Disabled reports whether the interface can have no IPv6 address at all.
func ipv6Disabled(ifname string) bool {
	const dir = "/proc/sys/net/ipv6"
	b, err := os.ReadFile(dir + "/conf/" + ifname + "/disable_ipv6")
	if errors.Is(err, os.ErrNotExist) { // an interface that is gone has no setting either
		_, err = os.Stat(dir)
		return errors.Is(err, os.ErrNotExist)
	}
	return strings.TrimSpace(string(b)) == "1"
}
