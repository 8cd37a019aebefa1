package config

import (
	"fmt"
	"slices"
)

// SetAddress changes the servers' address and prefix, written 10.77.0.1/24. On
// another network the pool becomes the one that a file gets that names no
// other, and nothing is excluded; on the same one both stay unless the address
// is now in the pool.
func (s *Segment) SetAddress(text string) error {
	address, err := serverAddress.parse(text)
	if err != nil {
		return fmt.Errorf("%q %w: write %s", text, err, serverAddress.want)
	}
	contains := func(r Range) bool { return r.Contains(address.Addr()) }
	if s.Address.IsValid() && address.Masked() != s.Address.Masked() {
		s.Exclude = nil
		s.Pool = nil
	}
	if s.Pool == nil || slices.ContainsFunc(s.Pool, contains) {
		s.Pool = []Range{derivePool(address)}
	}
	s.Address = address
	return nil
}
