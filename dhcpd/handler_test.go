package dhcpd

import (
	"net/netip"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func testConfig() Config {
	inv := &boot.Inventory{Profiles: map[string]boot.Profile{"default": {Name: "default"}}, Default: "default"}
	return Config{
		Server:        netip.MustParsePrefix("10.77.0.1/24"),
		Pool:          Pool{Range: Range{netip.MustParseAddr("10.77.0.50"), netip.MustParseAddr("10.77.0.250")}},
		Inventory:     func() *boot.Inventory { return inv },
		AnswerUnknown: true,
		Authoritative: true,
		Now:           func() time.Time { return t0 },
	}
}
