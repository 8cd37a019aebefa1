package lan

import (
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/ndp"

	"github.com/every-channel/ecboot/internal/nettest"
)

// advertise sends one router advertisement from a host, of a prefix and of a
// default router.
func advertise(t *testing.T, router *nettest.Host, lifetime time.Duration) {
	t.Helper()
	router.Do(t, func() {
		link, err := net.InterfaceByName("lan0")
		if err != nil {
			t.Error(err)
			return
		}
		conn, _, err := ndp.Listen(link, ndp.LinkLocal)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		ra := &ndp.RouterAdvertisement{CurrentHopLimit: 64, RouterLifetime: 1800 * time.Second, Options: []ndp.Option{
			&ndp.PrefixInformation{
				PrefixLength: 64, OnLink: true, AutonomousAddressConfiguration: true,
				ValidLifetime: lifetime, PreferredLifetime: lifetime, Prefix: netip.MustParseAddr("2001:db8:99::"),
			},
			&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: link.HardwareAddr},
		}}
		if err := conn.WriteTo(ra, nil, netip.MustParseAddr("ff02::1").WithZone("lan0")); err != nil {
			t.Error(err)
		}
	})
}

func TestAutoconfiguredAddressesComeAlong(t *testing.T) {
	router := office(t)
	if err := writeSetting("ipv6/conf/nic0/accept_ra", "2"); err != nil {
		t.Fatal(err)
	}
	has := func(link, lifetime string) bool {
		return strings.Contains(run(t, "ip", "-6", "addr", "show", "dev", link, "to", "2001:db8:99::/64"), "valid_lft "+lifetime) &&
			strings.Contains(run(t, "ip", "-6", "route", "show", "default", "dev", link), "via fe80::")
	}
	advertise(t, router, 86400*time.Second)
	await(t, "autoconfiguration", func() bool { return has("nic0", "86") })

	s, err := Open(Config{Uplink: "nic0", NoteDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if !has(s.Interface(), "86") {
		t.Errorf("the bridge has %s", run(t, "ip", "-6", "addr", "show", "dev", s.Interface()))
	}
	run(t, "ping", "-6", "-c1", "-W5", "2001:db8:79::1")
	// The bridge goes on listening to the router.
	advertise(t, router, 172800*time.Second)
	await(t, "the new lifetime", func() bool { return has(s.Interface(), "172") })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if !has("nic0", "172") {
		t.Errorf("the NIC has %s", run(t, "ip", "-6", "addr", "show", "dev", "nic0"))
	}
	// The NIC, too, once it is on its own again.
	advertise(t, router, 259200*time.Second)
	await(t, "the lifetime after that", func() bool { return has("nic0", "259") })
	if have := run(t, "ip", "-6", "route", "show", "default", "dev", "nic0"); !strings.Contains(have, "proto ra") {
		t.Errorf("the NIC's default routes are %s", have)
	}
}

func TestWhatHasALifetimeAges(t *testing.T) {
	office(t)
	for _, args := range []string{
		"addr add 2001:db8:98::2/64 dev nic0 nodad valid_lft 300 preferred_lft 200",
		"-6 route add 2001:db8:97::/48 via 2001:db8:79::1 dev nic0 expires 300",
	} {
		run(t, "ip", strings.Fields(args)...)
	}
	b, err := belongingsOf("nic0")
	if err != nil {
		t.Fatal(err)
	}
	now := b.At
	for _, tt := range []struct {
		elapsed          time.Duration
		lifetime, expiry string // patterns of what ip prints; empty: gone
	}{
		{250 * time.Second, `valid_lft (4.|50)sec preferred_lft 0sec`, `expires (4.|50)sec`},
		{400 * time.Second, "", ""},
	} {
		run(t, "ip", "addr", "flush", "dev", "nic0", "to", "2001:db8:98::/64")
		run(t, "ip", "-6", "route", "flush", "2001:db8:97::/48")
		b.At = now.Add(-tt.elapsed)
		if err := b.age("nowhere").relocate("nowhere", "nic0", func() {}); err != nil {
			t.Fatal(err)
		}
		address := run(t, "ip", "-6", "addr", "show", "dev", "nic0", "to", "2001:db8:98::/64")
		route := run(t, "ip", "-6", "route", "show", "2001:db8:97::/48")
		if !regexp.MustCompile(tt.lifetime).MatchString(address) || !regexp.MustCompile(tt.expiry).MatchString(route) || tt.lifetime == "" && address+route != "" {
			t.Errorf("after %s: %s and %s", tt.elapsed, address, route)
		}
	}
}
