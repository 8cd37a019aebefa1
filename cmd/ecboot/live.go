package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/every-channel/ecboot/internal/timeline"
)

// live prints a boot while it happens: a line per stage, and on a terminal a
// progress bar on the last line while something long is transferred.
type live struct {
	w      io.Writer
	tty    bool
	start  time.Time
	label  func(machine string) string // in front of each line; nil prints none
	width  int                         // of the labels; grows with them
	known  func(machine string) bool   // whose lines are all shown; nil: everybody's
	events chan timeline.Event
	done   chan struct{}

	bar     bool      // a progress bar stands on the last line
	budget  float64   // lines that strangers may still have
	counted time.Time // when budget was right
	hidden  int       // lines that they did not get
	said    time.Time // when hidden was told last
	stop    func()    // prints what is left and ends; may be called again
}

// newLive starts printing what r records, until stop. Times count from start.
// width is that of the widest label that is known already.
func newLive(w io.Writer, start time.Time, r *timeline.Recorder, label func(string) string, width int, known func(string) bool) *live {
	l := &live{w: w, tty: isTerminalWriter(w), start: start, label: label, width: width, known: known, counted: start, budget: strangersBurst, events: make(chan timeline.Event, 1024), done: make(chan struct{})}
	go func() {
		defer close(l.done)
		for e := range l.events {
			l.print(e)
		}
		l.clearBar()
	}()
	// The recorder's callers serve machines and must not wait for a slow
	// terminal: what finds no place is not shown. It is stored all the same.
	cancel := r.Watch(func(e timeline.Event) {
		select {
		case l.events <- e:
		default:
		}
	})
	l.stop = sync.OnceFunc(func() {
		cancel()
		close(l.events)
		<-l.done
	})
	return l
}

// past is how much older than the beginning an event is that another process
// has shown: of a guest that was taken over.
const past = time.Second

func (l *live) print(e timeline.Event) {
	if l.start.Sub(e.At) > past {
		return
	}
	switch e.Phase {
	case timeline.Begin:
		return
	case timeline.Progress:
		if l.tty && e.Total > 0 {
			l.drawBar(e)
		}
		return
	}
	if !l.show(e) {
		return
	}
	l.clearBar()
	words := e.Detail
	switch {
	case e.Phase == timeline.Fail:
		words = "FAILED: " + words
	case e.Bytes > 0:
		words = strings.TrimSpace(words + "  " + timeline.FormatBytes(e.Bytes))
	}
	fmt.Fprintln(l.w, strings.TrimRight(l.head(e)+"  "+words, " "))
}

// Strangers get so many lines, so that whoever makes up machines cannot fill a
// screen or a log with them.
const (
	strangersBurst = 500
	strangersRate  = 10 // per second
	hiddenPause    = time.Minute
)

// show reports whether an event is printed, and says now and then how many were
// not.
func (l *live) show(e timeline.Event) bool {
	if l.known == nil || l.known(e.Machine) {
		return true
	}
	l.budget = min(strangersBurst, l.budget+e.At.Sub(l.counted).Seconds()*strangersRate)
	l.counted = e.At
	if l.budget >= 1 {
		l.budget--
		return true
	}
	l.hidden++
	if e.At.Sub(l.said) >= hiddenPause {
		l.said = e.At
		l.clearBar()
		fmt.Fprintf(l.w, "%7.2f s  machines that are not declared ask so often that not all of it is shown (so far %d lines are not)\n", e.At.Sub(l.start).Seconds(), l.hidden)
	}
	return false
}

// barWidth fits a line without a label into 80 columns.
const barWidth = 20

// drawBar draws over what is on the last line. A longer one is cut off by the
// terminal (DECAWM), because of two lines only the second could be drawn over.
func (l *live) drawBar(e timeline.Event) {
	filled := int(barWidth * min(e.Bytes, e.Total) / e.Total)
	fmt.Fprintf(l.w, "\r\x1b[K\x1b[?7l%s  [%s%s] %s of %s  %s\x1b[?7h", l.head(e),
		strings.Repeat("#", filled), strings.Repeat(" ", barWidth-filled),
		timeline.FormatBytes(e.Bytes), timeline.FormatBytes(e.Total), e.Detail)
	l.bar = true
}

func (l *live) clearBar() {
	if l.bar {
		fmt.Fprint(l.w, "\r\x1b[K")
		l.bar = false
	}
}

func (l *live) head(e timeline.Event) string {
	label := ""
	if l.label != nil {
		label = l.label(e.Machine)
		l.width = max(l.width, len(label))
		label = fmt.Sprintf("%-*s  ", l.width, label)
	}
	return fmt.Sprintf("%7.2f s  %s%-16s", e.At.Sub(l.start).Seconds(), label, e.Stage)
}
