package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/every-channel/ecboot/internal/timeline"
)

// reportSchema is raised when a field changes its meaning or goes away; new
// fields do not raise it.
const reportSchema = 1

// The outcomes of a boot.
const (
	outcomeReady   = "ready"
	outcomeFailed  = "failed"
	outcomeTimeout = "timeout"
)

// report is what 'run -o json' prints: one document, also when the boot failed.
type report struct {
	Schema    int    `json:"schema"`
	Outcome   string `json:"outcome"`
	Firmware  string `json:"firmware"`
	Accel     string `json:"accel"`
	AccelNote string `json:"accel_note,omitempty"` // why not KVM
	guestReport
	// Guests holds all guests when there are several; the fields above are
	// then those of the one that fared worst.
	Guests []guestReport `json:"guests,omitempty"`
}

// guestReport is the boot of one guest.
type guestReport struct {
	MAC     string          `json:"mac"`
	Address string          `json:"address,omitempty"`
	Outcome string          `json:"-"`
	Stages  []timeline.Step `json:"stages"`
	TotalMS int64           `json:"total_ms"` // from QEMU's start to the outcome
	Failure *failure        `json:"failure,omitempty"`
}

// failure says what a person needs to know about a boot that did not get there.
type failure struct {
	Stage   timeline.Stage `json:"stage"`
	Cause   string         `json:"cause"`
	Exit    string         `json:"exit,omitempty"` // how QEMU ended, if it did
	Console []string       `json:"console"`        // the last lines
	Command string         `json:"command"`        // QEMU's
}

func (r report) writeJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// writeText draws each guest's waterfall and explains what failed.
func (r report) writeText(w io.Writer) {
	guests := r.Guests
	if guests == nil {
		guests = []guestReport{r.guestReport}
	}
	for _, g := range guests {
		fmt.Fprintln(w)
		if len(guests) > 1 {
			fmt.Fprintf(w, "%s %s: %s\n", g.MAC, g.Address, g.Outcome)
		}
		timeline.Waterfall(w, g.Stages, time.Duration(g.TotalMS)*time.Millisecond)
		if g.Failure != nil {
			g.Failure.writeText(w)
		}
	}
	fmt.Fprintf(w, "\n%s after %.2f s (%s, %s)\n", r.Outcome, float64(r.TotalMS)/1000, r.Firmware, r.Accel)
}

func (f *failure) writeText(w io.Writer) {
	fmt.Fprintf(w, "\nstopped at: %s\n", f.Stage)
	fmt.Fprintf(w, "likely cause: %s\n", f.Cause)
	if f.Exit != "" {
		fmt.Fprintf(w, "QEMU: %s\n", f.Exit)
	}
	if len(f.Console) == 0 {
		fmt.Fprintln(w, "the console printed nothing")
	} else {
		fmt.Fprintln(w, "the last lines of its console:")
		for _, line := range f.Console {
			fmt.Fprintln(w, "  | "+line)
		}
	}
	fmt.Fprintf(w, "QEMU's command:\n  %s\n", f.Command)
}
