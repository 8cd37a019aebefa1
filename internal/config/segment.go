package config

import "fmt"

// SetAddress changes the servers' address and prefix, written 10.77.0.1/24, and
// with it the pool, which becomes the one that a file gets that names no other.
func (s *Segment) SetAddress(text string) error {
	address, err := serverAddress.parse(text)
	if err != nil {
		return fmt.Errorf("%q %w: write %s", text, err, serverAddress.want)
	}
	s.Address, s.Pool, s.Exclude = address, derivePool(address), nil
	return nil
}
