// Package bench measures ecboot beside its peers, in one run on one machine, and
// prints a line per figure: bench NAME ours=… peer=… ratio=… want…. It has only
// benchmarks; 'make bench' runs them.
package bench
