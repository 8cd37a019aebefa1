package boot

import (
	"encoding/hex"
	"fmt"
	"net"
)

// MAC is a 48-bit Ethernet address. Unlike net.HardwareAddr it can be a map
// key, and it has one text form: lower case, separated by colons.
type MAC [6]byte

// ParseMAC reads the forms that people and programs write: 52:54:00:12:34:56,
// 52-54-00-12-34-56, 5254.0012.3456 and 525400123456, in either case.
func ParseMAC(s string) (MAC, error) {
	var m MAC
	if len(s) == 12 {
		if b, err := hex.DecodeString(s); err == nil {
			return MAC(b), nil
		}
	}
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != len(m) {
		return m, fmt.Errorf("%q is not an Ethernet address such as 52:54:00:12:34:56", s)
	}
	return MAC(hw), nil
}

// MACFrom takes the address out of hw, which must be six bytes long; ok is
// false for the addresses of other link types.
func MACFrom(hw net.HardwareAddr) (m MAC, ok bool) {
	if len(hw) != len(m) {
		return m, false
	}
	return MAC(hw), true
}

// String returns the canonical form, 52:54:00:12:34:56.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// HardwareAddr returns a copy in the form that package net uses.
func (m MAC) HardwareAddr() net.HardwareAddr { return append(net.HardwareAddr(nil), m[:]...) }

// MarshalText makes MACs strings in JSON and TOML.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText is ParseMAC for JSON and TOML.
func (m *MAC) UnmarshalText(text []byte) (err error) {
	*m, err = ParseMAC(string(text))
	return err
}
