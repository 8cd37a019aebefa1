package lan

import (
	"cmp"
	"errors"
	"fmt"
)

// planInterface serves a link as it is, for the machines on its network.
func (p *planned) planInterface(cfg Config, h host) {
	name, l := p.planVLAN(cfg, h, cfg.Interface)
	if name == "" {
		return
	}
	p.link = name
	switch {
	case l.loopback, len(l.mac) != 6:
		p.cannot("interface %s is a %s link without Ethernet, on which no machine boots", name, kindOf(l))
		return
	case l.master != "":
		p.cannot("interface %s is a port of %s, which takes its frames: serve %[2]s", name, l.master)
		return
	case !l.up && cfg.VLAN == 0:
		p.cannot("interface %s is down: 'ip link set %[1]s up'", name)
		return
	}
	p.warnCarrier(name, l)
	if !p.address.IsValid() && len(l.ipv4()) == 0 {
		p.cannot("interface %s has no IPv4 address: give it one, or name the servers' in the segment's address", name)
		return
	}
	adds := p.chooseAddress(name, l.ipv4())
	if cfg.VLAN != 0 && !l.up {
		p.change(change{Op: opUp, Link: name})
	}
	if adds {
		p.change(change{Op: opAddress, Link: name, Addr: p.address})
	}
	if cfg.NAT {
		p.planNAT(cfg, h, name)
	}
	p.noPorts = fmt.Sprintf("%s is served as it is and has no ports for guests: write uplink = %q, which makes it a port of a bridge, or parent = %[2]q in place of interface", name, cmp.Or(cfg.Interface, name))
}

// errNoPorts is why a segment has no room for guests.
func (s *Segment) errNoPorts() error {
	if s.opened.NoPorts == "" {
		return nil
	}
	return errors.New(s.opened.NoPorts)
}
