package lan

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/every-channel/ecboot/internal/nettest"
)

// nic is a NIC with a cable in and the addresses.
func nic(addresses ...address) linkState {
	return linkState{kind: "device", mac: net.HardwareAddr{2, 0, 0, 0, 0, 9}, up: true, carrier: true, ipv6: true, addresses: addresses}
}

func with(l linkState, change func(*linkState)) linkState {
	change(&l)
	return l
}

func fixed(s string) address  { return address{netip.MustParsePrefix(s), false} }
func leased(s string) address { return address{netip.MustParsePrefix(s), true} }

// machine has two NICs, of which eth0 has the address and the default route, and
// one of each kind of link that is in the way.
func machine() host {
	return host{id: "id", exits: []string{"eth0"}, links: map[string]linkState{
		"lo":    {kind: "device", mac: net.HardwareAddr{0, 0, 0, 0, 0, 0}, up: true, loopback: true},
		"eth0":  nic(fixed("192.0.2.7/24"), fixed("2001:db8::7/64")),
		"eth1":  with(nic(), func(l *linkState) { l.up = false }),
		"eth2":  with(nic(), func(l *linkState) { l.carrier = false }),
		"dhcp0": nic(leased("192.0.2.8/24")),
		"nm0":   with(nic(leased("192.0.2.9/24")), func(l *linkState) { l.manager = "NetworkManager" }),
		"rule0": with(nic(fixed("192.0.2.10/24")), func(l *linkState) { l.ruled = true }),
		"wlan0": with(nic(), func(l *linkState) { l.wireless = true }),
		"tun0":  {kind: "tuntap", up: true},
		"br0":   with(nic(fixed("10.1.0.1/16")), func(l *linkState) { l.kind = "bridge" }),
		"br1":   with(nic(), func(l *linkState) { l.kind, l.up = "bridge", false }),
		"port0": with(nic(), func(l *linkState) { l.master = "br0" }),
		"bond0": with(nic(), func(l *linkState) { l.kind = "bond" }),
		"leg0":  with(nic(), func(l *linkState) { l.master = "bond0" }),
		"busy0": nic(),
		"mv0":   with(nic(), func(l *linkState) { l.kind, l.lower = "macvlan", "busy0" }),
		"tag0":  nic(),
		"tag.5": with(nic(), func(l *linkState) { l.kind, l.lower, l.vlan = "vlan", "tag0", 5 }),
	}}
}

func TestPlanSaysWhatIsInTheWay(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  Config
		want []string // in the obstacles
	}{
		{"both ways at once", Config{Parent: "eth0", Uplink: "eth0"}, []string{"never both"}},
		{"bridge and parent", Config{Parent: "eth0", Bridge: "br0"}, []string{"never both"}},
		{"VLAN of nothing", Config{Bridge: "br0", VLAN: 5}, []string{"vlan 5 of which NIC"}},
		{"VLAN out of range", Config{Uplink: "eth0", VLAN: 4095}, []string{"1 to 4094"}},
		{"private without address", Config{}, []string{"10.77.0.1/24"}},
		{"private with NAT", Config{Address: private, NAT: true}, []string{"nothing outside"}},

		{"no bridge", Config{Bridge: "eth0"}, []string{"no bridge but a device link"}},
		{"bridge is down", Config{Bridge: "br1", Address: private}, []string{"ip link set br1 up"}},
		{"impossible name", Config{Bridge: "a-name-that-is-too-long", Address: private}, []string{"1 to 15 bytes"}},
		{"name with a slash", Config{Bridge: "a/b", Address: private}, []string{"none of /"}},
		{"no address", Config{Bridge: "new0"}, []string{"no IPv4 address"}},
		{"another length", Config{Bridge: "br0", Address: netip.MustParsePrefix("10.1.0.1/24")}, []string{"another prefix length"}},

		{"no such uplink", Config{Uplink: "eth9"}, []string{"no NIC eth9", "eth0, eth1"}},
		{"loopback uplink", Config{Uplink: "lo", Address: private}, []string{"loopback"}},
		{"tun uplink", Config{Uplink: "tun0", Address: private}, []string{"without Ethernet"}},
		{"wireless uplink", Config{Uplink: "wlan0", Address: private}, []string{"wireless", "nat = true"}},
		{"bridge as uplink", Config{Uplink: "br0"}, []string{"is a bridge itself"}},
		{"macvlan as uplink", Config{Uplink: "mv0", Address: private}, []string{"macvlan of busy0"}},
		{"port of another bridge", Config{Bridge: "new0", Uplink: "port0", Address: private}, []string{"port of bridge br0 already"}},
		{"leg of a bond", Config{Uplink: "leg0", Address: private}, []string{"name bond0 as the uplink"}},
		{"uplink with macvlans", Config{Uplink: "busy0", Address: private}, []string{"carries mv0", `parent = "busy0"`}},

		{"no such parent", Config{Parent: "eth9"}, []string{"no NIC eth9"}},
		{"wireless parent", Config{Parent: "wlan0", Address: private}, []string{"wireless"}},
		{"port as parent", Config{Parent: "port0", Address: private}, []string{"cannot carry macvtaps", `bridge = "br0"`}},
		{"leg as parent", Config{Parent: "leg0", Address: private}, []string{"name bond0 as the parent"}},
		{"parent without address", Config{Parent: "eth0"}, []string{"guests never see the host", "192.0.2.7/24"}},
		{"parent's address, another length", Config{Parent: "eth0", Address: netip.MustParsePrefix("192.0.2.7/25")}, []string{"another prefix length"}},
		{"NAT out through the parent", Config{Parent: "eth0", Address: private, NAT: true}, []string{"no default route other than through eth0"}},

		{"VLAN of a port", Config{Uplink: "port0", VLAN: 5, Address: private}, []string{"takes its frames"}},
		{"NAT out through the segment", Config{Uplink: "eth0", NAT: true}, []string{"no default route other than"}},
		{"several at once", Config{Uplink: "wlan0", NAT: true, Bridge: "br0", Address: netip.MustParsePrefix("10.1.0.1/24")}, []string{"wireless", "another prefix length"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := strings.Join(plan(tt.cfg, machine()).obstacles, "\n")
			for _, want := range tt.want {
				if !strings.Contains(got, want) {
					t.Errorf("the obstacles lack %q: %q", want, got)
				}
			}
		})
	}
}

func TestPlanWarns(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"nothing", Config{Uplink: "eth0"}, ""},
		{"DHCP", Config{Uplink: "dhcp0"}, "by DHCP"},
		{"managed", Config{Uplink: "nm0"}, "configured by NetworkManager"},
		{"no cable", Config{Uplink: "eth2", Address: private}, "no carrier"},
		{"down will be brought up", Config{Uplink: "eth1", Address: private}, ""},
		{"Docker and a bridge", Config{Bridge: "br0"}, "bridge-nf-call-iptables=0"},
		{"Docker and NAT", Config{Bridge: "br0", NAT: true}, "chain filter FORWARD drops what it does not know: allow"},
		{"Docker and a parent", Config{Parent: "eth2", Address: private}, "no carrier"},
		{"rule", Config{Uplink: "rule0"}, "add the same rule for ecbr-rule0"},
		{"host unseen", Config{Parent: "eth0", Address: private}, "do not see this host at 192.0.2.7/24"},
		{"host moves", Config{Parent: "eth0", Address: netip.MustParsePrefix("192.0.2.7/24")}, ""},
		{"managed parent", Config{Parent: "nm0", Address: netip.MustParsePrefix("192.0.2.9/24")}, "configured by NetworkManager"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := machine()
			if strings.Contains(tt.name, "Docker") {
				h.strict, h.filtered = []string{"chain filter FORWARD"}, true
			}
			p := plan(tt.cfg, h)
			if err := p.err(); err != nil {
				t.Fatal(err)
			}
			got := strings.Join(p.warnings, "\n")
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestPlannedChanges(t *testing.T) {
	const mac = "02:00:00:00:00:09"
	for _, tt := range []struct {
		name    string
		cfg     Config
		link    string
		address string
		want    []change
	}{
		{"join", Config{Bridge: "br0"}, "br0", "10.1.0.1/16", nil},
		{"join with another address", Config{Bridge: "br0", Address: private}, "br0", "10.77.0.1/24", []change{
			{Op: opAddress, Link: "br0", Addr: private},
		}},
		{"make", Config{Bridge: "new0", Address: private}, "new0", "10.77.0.1/24", []change{
			{Op: opBridge, Link: "new0", MAC: stableMAC("id", "new0").String()},
			{Op: opUp, Link: "new0"},
			{Op: opAddress, Link: "new0", Addr: private},
		}},
		{"enslave the NIC with the address", Config{Name: "office", Uplink: "eth0"}, "ecbr-office", "192.0.2.7/24", []change{
			{Op: opBridge, Link: "ecbr-office", MAC: mac},
			{Op: opInherit, Link: "ecbr-office", On: "eth0"},
			{Op: opUp, Link: "ecbr-office"},
			{Op: opEnslave, Link: "eth0", On: "ecbr-office"},
			{Op: opMove, Link: "eth0", On: "ecbr-office"},
			{Op: opSetting, Key: "ipv6/conf/eth0/disable_ipv6", Value: "1"},
		}},
		{"enslave a free NIC that is down", Config{Bridge: "br0", Uplink: "eth1"}, "br0", "10.1.0.1/16", []change{
			{Op: opUp, Link: "eth1"},
			{Op: opEnslave, Link: "eth1", On: "br0"},
			{Op: opSetting, Key: "ipv6/conf/eth1/disable_ipv6", Value: "1"},
		}},
		{"port already", Config{Bridge: "br0", Uplink: "port0"}, "br0", "10.1.0.1/16", nil},
		{"VLAN", Config{Bridge: "new0", Uplink: "eth0", VLAN: 7, Address: private}, "new0", "10.77.0.1/24", []change{
			{Op: opVLAN, Link: "ec7-eth0", On: "eth0", VLAN: 7},
			{Op: opBridge, Link: "new0", MAC: mac},
			{Op: opUp, Link: "new0"},
			{Op: opUp, Link: "ec7-eth0"},
			{Op: opEnslave, Link: "ec7-eth0", On: "new0"},
			{Op: opSetting, Key: "ipv6/conf/ec7-eth0/disable_ipv6", Value: "1"},
			{Op: opAddress, Link: "new0", Addr: private},
		}},
		{"VLAN that is there", Config{Bridge: "br0", Uplink: "tag0", VLAN: 5}, "br0", "10.1.0.1/16", []change{
			{Op: opEnslave, Link: "tag.5", On: "br0"},
			{Op: opSetting, Key: "ipv6/conf/tag.5/disable_ipv6", Value: "1"},
		}},
		{"parent", Config{Parent: "eth0", Address: private}, "ecmv-eth0", "10.77.0.1/24", []change{
			{Op: opMacvlan, Link: "ecmv-eth0", On: "eth0", MAC: stableMAC("id", mac, "ecmv-eth0").String()},
			{Op: opSetting, Key: "ipv4/conf/eth0/arp_ignore", Value: "1"},
			{Op: opSetting, Key: "ipv4/conf/eth0/arp_announce", Value: "2"},
			{Op: opSetting, Key: "ipv4/conf/ecmv-eth0/arp_ignore", Value: "1"},
			{Op: opSetting, Key: "ipv4/conf/ecmv-eth0/arp_announce", Value: "2"},
			{Op: opSetting, Key: "ipv4/conf/ecmv-eth0/rp_filter", Value: "2"},
			{Op: opUp, Link: "ecmv-eth0"},
			{Op: opAddress, Link: "ecmv-eth0", Addr: private},
		}},
		{"parent's own address", Config{Parent: "eth0", Address: netip.MustParsePrefix("192.0.2.7/24")}, "ecmv-eth0", "192.0.2.7/24", []change{
			{Op: opMacvlan, Link: "ecmv-eth0", On: "eth0", MAC: stableMAC("id", mac, "ecmv-eth0").String()},
			{Op: opInherit, Link: "ecmv-eth0", On: "eth0"},
			{Op: opSetting, Key: "ipv4/conf/eth0/arp_ignore", Value: "1"},
			{Op: opSetting, Key: "ipv4/conf/eth0/arp_announce", Value: "2"},
			{Op: opSetting, Key: "ipv4/conf/ecmv-eth0/arp_ignore", Value: "1"},
			{Op: opSetting, Key: "ipv4/conf/ecmv-eth0/arp_announce", Value: "2"},
			{Op: opSetting, Key: "ipv4/conf/ecmv-eth0/rp_filter", Value: "2"},
			{Op: opUp, Link: "ecmv-eth0"},
			{Op: opMove, Link: "eth0", On: "ecmv-eth0"},
		}},
		{"NAT for a NIC of its own", Config{Parent: "eth2", Address: private, NAT: true}, "ecmv-eth2", "10.77.0.1/24", []change{
			{Op: opMacvlan, Link: "ecmv-eth2", On: "eth2", MAC: stableMAC("id", mac, "ecmv-eth2").String()},
			{Op: opSetting, Key: "ipv4/conf/eth2/arp_ignore", Value: "1"},
			{Op: opSetting, Key: "ipv4/conf/eth2/arp_announce", Value: "2"},
			{Op: opSetting, Key: "ipv4/conf/ecmv-eth2/arp_ignore", Value: "1"},
			{Op: opSetting, Key: "ipv4/conf/ecmv-eth2/arp_announce", Value: "2"},
			{Op: opSetting, Key: "ipv4/conf/ecmv-eth2/rp_filter", Value: "2"},
			{Op: opUp, Link: "ecmv-eth2"},
			{Op: opAddress, Link: "ecmv-eth2", Addr: private},
			{Op: opNAT, Link: "ecmv-eth2", NAT: &nat{Table: "ecboot_ecmv-eth2", Inside: "ecmv-eth2", Net: private.Masked(), Outside: []string{"eth0"}}},
			{Op: opSetting, Key: "ipv4/conf/ecmv-eth2/forwarding", Value: "1"},
			{Op: opSetting, Key: "ipv4/conf/eth0/forwarding", Value: "1"},
		}},
		{"NAT", Config{Name: "lab", Bridge: "br0", NAT: true}, "br0", "10.1.0.1/16", []change{
			{Op: opNAT, Link: "br0", NAT: &nat{Table: "ecboot_lab", Inside: "br0", Net: netip.MustParsePrefix("10.1.0.0/16"), Outside: []string{"eth0"}}},
			{Op: opSetting, Key: "ipv4/conf/br0/forwarding", Value: "1"},
			{Op: opSetting, Key: "ipv4/conf/eth0/forwarding", Value: "1"},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := plan(tt.cfg, machine())
			if err := p.err(); err != nil {
				t.Fatal(err)
			}
			if p.link != tt.link || p.address.String() != tt.address {
				t.Errorf("the servers are on %s at %s, want %s at %s", p.link, p.address, tt.link, tt.address)
			}
			if diff := cmp.Diff(tt.want, p.changes, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestLinkNamesFit(t *testing.T) {
	for _, name := range []string{"a", "office", "a-segment-of-long-name", "enp0s31f6np0"} {
		got := linkName("ecbr-", name)
		if err := checkLinkName(got); err != nil {
			t.Errorf("%q: %v", got, err)
		}
	}
	if linkName("ecbr-", "a-segment-of-long-name") == linkName("ecbr-", "a-segment-of-long-nam2") {
		t.Error("two long names become one")
	}
}

// The kernel of the tests has no VLANs, so this ends with the request to it.
func TestVLANRequest(t *testing.T) {
	c := change{Op: opVLAN, Link: "ec7-eth0", On: "eth0", VLAN: 7}
	vlan, ok := c.upper(42).(*netlink.Vlan)
	if !ok || vlan.VlanId != 7 || vlan.VlanProtocol != netlink.VLAN_PROTOCOL_8021Q || vlan.Name != "ec7-eth0" || vlan.ParentIndex != 42 {
		t.Errorf("got %#v", vlan)
	}
}

func TestVLANWithoutAKernelForIt(t *testing.T) {
	nettest.NeedRoot(t)
	veth(t, "nic0", "nic1")
	s, err := Open(Config{Uplink: "nic0", VLAN: 7, Address: private, NoteDir: t.TempDir()})
	if err == nil {
		// This kernel has them.
		defer s.Close()
		link, err := netlink.LinkByName("ec7-nic0")
		if vlan, ok := link.(*netlink.Vlan); !ok || vlan.VlanId != 7 || vlan.MasterIndex != s.servers().Attrs().Index {
			t.Errorf("the port is %+v, %v", link, err)
		}
		return
	}
	if !strings.Contains(err.Error(), "modprobe 8021q") {
		t.Errorf("got %v", err)
	}
	wantNoLink(t, "ecbr-nic0")
}
