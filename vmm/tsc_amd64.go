package vmm

import (
	"sync"
	"time"
)

// timestamp reads the processor's time stamp counter.
func timestamp() uint64

// tscKHz is the frequency of the time stamp counter, which is also that of a
// guest run by TCG.
var tscKHz = sync.OnceValue(func() int {
	at, ticks := time.Now(), timestamp()
	time.Sleep(20 * time.Millisecond) // reading both takes less than a microsecond: an error of 50 ppm
	ticks = timestamp() - ticks
	return int(float64(ticks) / (float64(time.Since(at)) / float64(time.Millisecond)))
})
