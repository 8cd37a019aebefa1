//go:build !amd64

package vmm

// tscKHz is not known.
func tscKHz() int { return 0 }
