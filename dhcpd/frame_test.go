package dhcpd

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A correct header sums up to zero with its checksum, a UDP datagram together
// with its pseudo header.
func TestDatagram(t *testing.T) {
	for _, payload := range []string{"", "odd", "even"} {
		b := datagram(netip.MustParseAddrPort("10.77.0.1:67"), netip.MustParseAddrPort("10.77.0.50:68"), []byte(payload))
		want := []byte{
			0x45, 0, 0, byte(28 + len(payload)), 0, 0, 0, 0, 64, 17, b[10], b[11],
			10, 77, 0, 1, 10, 77, 0, 50,
			0, 67, 0, 68, 0, byte(8 + len(payload)), b[26], b[27],
		}
		if diff := cmp.Diff(append(want, payload...), b); diff != "" {
			t.Error(diff)
		}
		if c := checksum(0, b[:20]); c != 0 {
			t.Errorf("IP checksum is off by %#x", c)
		}
		pseudo := append([]byte{10, 77, 0, 1, 10, 77, 0, 50, 0, 17, 0, byte(8 + len(payload))}, b[20:]...)
		if c := checksum(0, pseudo); c != 0 {
			t.Errorf("UDP checksum is off by %#x", c)
		}
	}
}

// A sum that comes out as zero is sent as all ones: zero would mean that there
// is none (RFC 768).
func TestZeroChecksum(t *testing.T) {
	src, dst := netip.MustParseAddrPort("0.0.0.0:67"), netip.MustParseAddrPort("0.0.0.0:68")
	for hi := range 256 {
		for lo := range 256 {
			if b := datagram(src, dst, []byte{byte(hi), byte(lo)}); b[26] == 0 && b[27] == 0 {
				t.Fatalf("payload %02x%02x has no checksum", hi, lo)
			}
		}
	}
}
