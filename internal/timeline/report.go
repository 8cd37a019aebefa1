package timeline

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// Step is a stage as reports show it: a transfer's beginning and end made one.
type Step struct {
	Stage      Stage  `json:"stage"`
	AtMS       int64  `json:"at_ms"` // since the start of the boot
	DurationMS int64  `json:"duration_ms,omitempty"`
	Bytes      int64  `json:"bytes,omitempty"`
	Detail     string `json:"detail,omitempty"`
	Failed     bool   `json:"failed,omitempty"`
	Unfinished bool   `json:"unfinished,omitempty"` // a transfer that began and has not ended
}

// Steps turns events into steps, in the order in which they began. Times count
// from start; what happened before it belongs to an earlier boot and is left
// out.
func Steps(start time.Time, events []Event) []Step {
	var steps []Step
	open := map[string]int{} // stage and detail of a transfer → its step
	for _, e := range events {
		if e.At.Before(start) {
			continue
		}
		key := string(e.Stage) + "\x00" + e.Detail
		at := e.At.Sub(start).Milliseconds()
		switch e.Phase {
		case Progress:
		case Begin:
			open[key] = len(steps)
			steps = append(steps, Step{Stage: e.Stage, AtMS: at, Bytes: e.Bytes, Detail: e.Detail, Unfinished: true})
		case End:
			if i, ok := open[key]; ok {
				delete(open, key)
				steps[i].Unfinished = false
				steps[i].DurationMS = at - steps[i].AtMS
				steps[i].Bytes = e.Bytes
				continue
			}
			fallthrough
		default:
			steps = append(steps, Step{Stage: e.Stage, AtMS: at, Bytes: e.Bytes, Detail: e.Detail, Failed: e.Phase == Fail})
		}
	}
	return steps
}

// waterfallWidth is that of the bars, in characters.
const waterfallWidth = 32

// Waterfall draws the steps of a boot that took total, one line each: when it
// began, its name, a bar of when it ran, and what it moved.
func Waterfall(w io.Writer, steps []Step, total time.Duration) {
	scale := float64(waterfallWidth) / float64(max(total.Milliseconds(), 1))
	for _, s := range steps {
		from := min(int(float64(s.AtMS)*scale), waterfallWidth-1)
		width := max(int(float64(s.DurationMS)*scale+0.5), 1)
		bar := strings.Repeat(" ", from) + strings.Repeat("█", min(width, waterfallWidth-from))
		line := fmt.Sprintf("%7.2f s  %-18s %s  %s", float64(s.AtMS)/1000, s.Stage, pad(bar, waterfallWidth), s.describe())
		fmt.Fprintln(w, strings.TrimRight(line, " "))
	}
}

// pad counts characters, where %-32s counts bytes in some and cells in none.
func pad(s string, n int) string {
	return s + strings.Repeat(" ", max(n-len([]rune(s)), 0))
}

func (s Step) describe() string {
	words := s.Detail
	switch {
	case s.Failed:
		words = "FAILED: " + words
	case s.Unfinished:
		words += ": not finished"
	case s.Bytes > 0:
		words = strings.TrimSpace(fmt.Sprintf("%s %s in %.2f s", words, FormatBytes(s.Bytes), float64(s.DurationMS)/1000))
	}
	return words
}

// FormatBytes prints a size in the decimal units that disks and links use.
func FormatBytes(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.1f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%d B", n)
}
