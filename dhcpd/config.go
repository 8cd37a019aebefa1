package dhcpd

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/timeline"
)

// DefaultLeaseTime is how long an address is leased unless Config says
// otherwise.
const DefaultLeaseTime = time.Hour

// scarceLeaseTime is enough to boot even over a slow network.
const scarceLeaseTime = 10 * time.Minute

// Network is one IP network and what its machines are given. The zero Network
// has no addresses to give and knows no machine.
type Network struct {
	Mode      Mode
	Pool      Pool // zero: only machines with a reserved address get one
	LeaseTime time.Duration
	// BootLeaseTime is for boot programs: firmware and iPXE. What they boot
	// asks again and gets LeaseTime; a system that does not ask must be up and
	// answer probes by then. 0 means LeaseTime as long as a quarter of the
	// pool is free, and then at most ten minutes. Reserved addresses have
	// LeaseTime always.
	BootLeaseTime time.Duration

	Router netip.Addr // option 3; zero: none
	DNS    []netip.Addr
	NTP    []netip.Addr
	Domain string
	Search []string // domains in which names are looked up
	Routes []Route
	// Options are sent as they are, in place of what ecboot would say with
	// the same codes; a machine's own come before them.
	Options []boot.Option

	// Inventory returns what is known of machines; it is called for every
	// request and must return the same pointer until something changes. nil
	// means that nothing is known, and nothing boots.
	Inventory func() *boot.Inventory
	// AnswerUnknown serves machines that are not in the inventory too. Leave
	// it false on a network that others own.
	AnswerUnknown bool
	// Authoritative says that no other DHCP server gives out addresses of
	// this segment: a client that asks for an address it cannot have is told
	// so at once (DHCPNAK) even if nothing is known of it, instead of waiting
	// until it gives up.
	Authoritative bool
}

// Config is what a Server needs to know. Interface (for the sockets only) and
// Server are required; the zero value of everything else is useful.
type Config struct {
	Interface string       // the segment's link, such as ecbr0
	Server    netip.Prefix // the server's own IPv4 address there, with the prefix length
	HTTPPort  uint16       // of the HTTP server at Server's address; 0 means 80

	Network          // of Interface
	Relayed []Subnet // networks from which relay agents pass requests on
	// ProbeTime is how long an address of Interface's network is probed
	// before it is offered to a client that never had it; 0 means not at
	// all, for networks on which nobody else can be. See DefaultProbeTime.
	ProbeTime time.Duration

	// OnOther is told once of each DHCP server that gives out addresses
	// beside this one, in ModeServer. It must not wait. nil: only the log is.
	OnOther func(Other)

	Store    LeaseStore // nil: leases end with the process
	Timeline *timeline.Recorder
	Logger   *slog.Logger
	Now      func() time.Time // nil: time.Now
}

// withDefaults checks the parts that a Handler uses and fills in the rest.
func (c Config) withDefaults() (Config, error) {
	if !c.Server.Addr().Is4() {
		return c, fmt.Errorf("DHCP server address %s: give an IPv4 address with its prefix length, such as 10.77.0.1/24", c.Server)
	}
	var err error
	if c.Network, err = c.Network.withDefaults(c.Server); err != nil {
		return c, err
	}
	if c.Relayed, err = c.relayed(); err != nil {
		return c, err
	}
	if c.Store == nil {
		c.Store = NewMemoryStore()
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c, nil
}

// relayed checks the networks behind relays and fills in their defaults. They
// must not overlap: an address says whose matter a request is.
func (c Config) relayed() ([]Subnet, error) {
	prefixes := []netip.Prefix{c.Server}
	var list []Subnet
	for _, s := range c.Relayed {
		if !s.Relay.Addr().Is4() {
			return nil, fmt.Errorf("relay address %s: give an IPv4 address with its prefix length, such as 10.78.0.1/24", s.Relay)
		}
		for _, p := range prefixes {
			if p.Overlaps(s.Relay) {
				return nil, fmt.Errorf("the network %s behind a relay overlaps with %s", s.Relay.Masked(), p.Masked())
			}
		}
		prefixes = append(prefixes, s.Relay)
		var err error
		if s.Network, err = s.Network.withDefaults(s.Relay); err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, nil
}

// withDefaults checks what a network of this prefix gives and fills in the rest.
func (c Network) withDefaults(prefix netip.Prefix) (Network, error) {
	if err := c.Pool.check(prefix); err != nil {
		return c, err
	}
	for _, d := range []time.Duration{c.LeaseTime, c.BootLeaseTime} {
		if d < 0 || d/time.Second >= 1<<32-1 {
			return c, fmt.Errorf("lease time %s: option 51 holds at most 2^32-2 seconds", d)
		}
	}
	if err := c.checkOptions(); err != nil {
		return c, err
	}
	if c.LeaseTime == 0 {
		c.LeaseTime = DefaultLeaseTime
	}
	if c.Inventory == nil {
		empty := &boot.Inventory{}
		c.Inventory = func() *boot.Inventory { return empty }
	}
	return c, nil
}

// url returns the URL of an absolute path on our HTTP server. The host is an
// address: UEFI HTTP Boot resolves no names without a DNS server.
func (c *Config) url(path string) string {
	host := c.Server.Addr().String()
	if c.HTTPPort != 0 && c.HTTPPort != 80 {
		host += ":" + strconv.Itoa(int(c.HTTPPort))
	}
	return "http://" + host + path
}
