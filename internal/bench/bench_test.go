package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/every-channel/ecboot/internal/nettest"
	"github.com/every-channel/ecboot/internal/sim"
)

func TestMain(m *testing.M) {
	nettest.Main(m, nettest.Program{Name: "load", Main: loadMain}, nettest.Program{Name: "tftpload", Main: tftpLoadMain}, sim.Program())
}

// rounds is how often each contender runs; the median counts.
func rounds(b *testing.B) int {
	s := os.Getenv("ROUNDS")
	if s == "" {
		return 3
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		b.Fatalf("ROUNDS=%s is not a number of rounds", s)
	}
	return n
}

// report prints one figure; a smaller one is better.
func report(name string, ours, peer float64, unit, peerName string, want float64) {
	fmt.Printf("bench %s ours=%.2f%s peer=%.2f%s ratio=%.2f want<=%.2f (peer: %s)\n",
		name, ours, unit, peer, unit, ours/peer, want, peerName)
}

// reportRate prints one figure of which a larger one is better.
func reportRate(name string, ours, peer float64, unit, peerName string, want float64) {
	fmt.Printf("bench %s ours=%.2f%s peer=%.2f%s ratio=%.2f want>=%.2f (peer: %s)\n",
		name, ours, unit, peer, unit, ours/peer, want, peerName)
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// repoFile finds a file of the checkout, which make has built.
func repoFile(b *testing.B, path string) string {
	b.Helper()
	abs, err := filepath.Abs(filepath.Join("../..", path))
	if err == nil {
		_, err = os.Stat(abs)
	}
	if err != nil {
		b.Fatalf("%v: run make first", err)
	}
	return abs
}
