package main

import (
	"strings"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/timeline"
)

// Stages and details stand in columns, whatever the machines are called. A label
// that is wider than those that were known moves the lines after it.
func TestLiveColumns(t *testing.T) {
	var out strings.Builder
	start := time.Date(2026, 11, 26, 1, 0, 0, 0, time.UTC)
	l := &live{w: &out, start: start, width: len("build-2"), label: func(machine string) string { return machine }}
	for i, e := range []timeline.Event{
		{Machine: "a", Stage: timeline.Start, Detail: "microvm, tcg"},
		{Machine: "build-2", Stage: timeline.Kernel, Detail: "kernel", Bytes: 16_500_000},
		{Machine: "52:54:00:ec:b0:01", Stage: "ipxe.discover"},
		{Machine: "a", Stage: timeline.Linux, Detail: "7.1.2"},
		{Machine: "a", Stage: timeline.Exit, Phase: timeline.Fail, Detail: "panic"},
	} {
		e.At = start.Add(time.Duration(i) * time.Second)
		l.print(e)
	}
	want := `   0.00 s  a        start             microvm, tcg
   1.00 s  build-2  kernel            kernel  16.5 MB
   2.00 s  52:54:00:ec:b0:01  ipxe.discover
   3.00 s  a                  linux             7.1.2
   4.00 s  a                  exit              FAILED: panic
`
	if got := out.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// A bar is one line, which the next line takes the place of.
func TestLiveBar(t *testing.T) {
	var out strings.Builder
	start := time.Date(2026, 11, 26, 1, 0, 0, 0, time.UTC)
	l := &live{w: &out, tty: true, start: start}
	l.print(timeline.Event{At: start, Stage: timeline.Initrd, Phase: timeline.Progress, Bytes: 2_500_000, Total: 5_000_000, Detail: "initramfs"})
	bar := strings.TrimSuffix(strings.TrimPrefix(out.String(), "\r\x1b[K\x1b[?7l"), "\x1b[?7h")
	if want := "   0.00 s  initrd            [##########          ] 2.5 MB of 5.0 MB  initramfs"; bar != want {
		t.Errorf("got  %q\nwant %q", bar, want)
	}
	out.Reset()
	l.print(timeline.Event{At: start, Stage: timeline.Initrd, Detail: "initramfs", Bytes: 5_000_000})
	if got, want := out.String(), "\r\x1b[K   0.00 s  initrd            initramfs  5.0 MB\n"; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
