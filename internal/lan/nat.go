package lan

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nat is the firewall table of a segment whose clients go out under the host's
// address.
type nat struct {
	Table  string       `json:"table"`
	Inside string       `json:"inside"` // the segment's link
	Net    netip.Prefix `json:"net"`
	// Outside are the links of the default routes. Forwarding is switched
	// on for them, so that answers come back, of other segments with NAT,
	// too; whatever else comes in there is not forwarded if it was not
	// before: those are Closed.
	Outside []string `json:"outside"`
	Closed  []string `json:"closed,omitempty"`
}

func newNAT(segment, inside string, net netip.Prefix, outside []string) *nat {
	return &nat{Table: "ecboot_" + segment, Inside: inside, Net: net, Outside: outside}
}

func (n *nat) table() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyIPv4, Name: n.Table}
}

// remember notes which of these links do not forward by themselves.
func (n *nat) remember(others settings, outside []string) {
	for _, name := range outside {
		if on, _ := others.original(forwarding(name)); on == "0" {
			n.Closed = append(n.Closed, name)
		}
	}
}

// forwarding is the key of the setting by which a link forwards what comes in.
func forwarding(link string) string { return "ipv4/conf/" + link + "/forwarding" }

// with is the table when more links lead out. Those that did stay: what goes on
// there is not cut off, and the default route may come back.
func (n *nat) with(outside []string, others settings) *nat {
	more := *n
	more.Outside = slices.Concat(n.Outside, outside)
	more.Closed = slices.Clip(n.Closed)
	more.remember(others, outside)
	return &more
}

// forget takes links out of the changes that let clients out there, since they are
// gone: what comes back has none of the settings that were made.
func (n *nat) forget(made []change, gone func(link string) bool) []change {
	made = slices.DeleteFunc(made, func(c change) bool {
		return c.Op == opSetting && slices.Contains(n.Outside, c.affects()) && gone(c.affects())
	})
	n.Outside, n.Closed = slices.DeleteFunc(n.Outside, gone), slices.DeleteFunc(n.Closed, gone)
	return made
}

// wayOut lets clients out where the default route has moved since, such as from a
// laptop's cable to its radio, and names the links. The caller holds the lock.
func (s *Segment) wayOut() (fresh []string, err error) {
	i := slices.IndexFunc(s.made, func(c change) bool { return c.Op == opNAT && c.NAT != nil })
	if i < 0 {
		return nil, nil
	}
	links, err := settled(netlink.LinkList)
	if err != nil {
		return nil, err
	}
	name := byIndex(links)
	now, err := exits(name)
	if err != nil {
		return nil, err
	}
	old, cfg := s.made[i].NAT, s.opened.Config
	s.made = old.forget(s.made, func(link string) bool {
		return !slices.ContainsFunc(links, func(l netlink.Link) bool { return l.Attrs().Name == link })
	})
	fresh = slices.DeleteFunc(now, func(link string) bool {
		return slices.Contains(old.Outside, link) || slices.Contains([]string{old.Inside, cfg.Uplink, s.opened.Parent}, link)
	})
	if len(fresh) == 0 {
		return nil, nil
	}
	others := othersSettings(s.note)
	s.made[i].NAT = old.with(fresh, others)
	if err = s.save(); err == nil {
		err = s.made[i].NAT.install()
	}
	if err != nil {
		s.made[i].NAT = old // and again the next time
		return nil, err
	}
	for _, link := range fresh {
		c := change{Op: opSetting, Key: forwarding(link), Value: "1"}
		if err := errors.Join(c.remember(others), s.add(c)); err != nil {
			return nil, err
		}
	}
	return fresh, nil
}

// install makes the table, in one transaction.
func (n *nat) install() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nat: %w", err)
	}
	// One of the same name can only be left from before.
	conn.AddTable(n.table())
	conn.DelTable(n.table())
	table := conn.AddTable(n.table())

	nat := conn.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	rule := func(chain *nftables.Chain, parts ...[]expr.Any) {
		r := &nftables.Rule{Table: table, Chain: chain}
		for _, p := range parts {
			r.Exprs = append(r.Exprs, p...)
		}
		conn.AddRule(r)
	}
	rule(nat, n.source(expr.CmpOpEq), link(expr.MetaKeyOIFNAME, expr.CmpOpNeq, n.Inside), []expr.Any{&expr.Masq{}})

	forward := conn.AddChain(&nftables.Chain{
		Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	drop := []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	accept := []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	inside := func(key expr.MetaKey) []expr.Any { return link(key, expr.CmpOpEq, n.Inside) }
	// From the segment only what answers can find their way back to; to it
	// only answers.
	rule(forward, inside(expr.MetaKeyIIFNAME), n.source(expr.CmpOpNeq), drop)
	rule(forward, inside(expr.MetaKeyIIFNAME), accept)
	rule(forward, inside(expr.MetaKeyOIFNAME), answers(), accept)
	rule(forward, inside(expr.MetaKeyOIFNAME), drop)
	for _, name := range n.Closed {
		rule(forward, link(expr.MetaKeyIIFNAME, expr.CmpOpEq, name), unmasked(), drop)
	}
	if err := conn.Flush(); err != nil {
		return needAdmin("nat: table "+n.Table+" (nf_tables with nat and masq)", err)
	}
	return nil
}

func (n *nat) remove() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nat: %w", err)
	}
	conn.DelTable(n.table())
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return needAdmin("nat: remove table "+n.Table, err)
	}
	return nil
}

// source matches the network that a packet comes from.
func (n *nat) source(op expr.CmpOp) []expr.Any {
	mask := netip.PrefixFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), n.Net.Bits()).Masked().Addr()
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask.AsSlice(), Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: 1, Data: n.Net.Masked().Addr().AsSlice()},
	}
}

// link matches the link that a packet comes in by or goes out by.
func link(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	value := make([]byte, unix.IFNAMSIZ)
	copy(value, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: value}}
}

// answers matches what belongs to a connection that exists.
func answers() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED),
			Xor:  make([]byte, 4),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// unmasked matches what belongs to no connection that goes out under another
// address than its own (IPS_SRC_NAT of the kernel's nf_conntrack_common.h).
func unmasked() []expr.Any {
	const sourceNAT = 1 << 4
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(sourceNAT), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)},
	}
}

// strictChains names the chains of other tables that drop what is forwarded
// unless they know it, as Docker's do.
func strictChains() (names []string) {
	conn, err := nftables.New()
	if err != nil {
		return nil
	}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return nil
	}
	for _, c := range chains {
		if c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward && c.Type == nftables.ChainTypeFilter && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
			names = append(names, "chain "+c.Table.Name+" "+c.Name)
		}
	}
	return names
}
