package timeline

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func at(ms int, s Stage, p Phase, detail string, bytes int64) Event {
	return Event{At: t0.Add(time.Duration(ms) * time.Millisecond), Machine: "m", Stage: s, Phase: p, Detail: detail, Bytes: bytes}
}

func TestNilRecorderDropsEverything(t *testing.T) {
	var r *Recorder
	r.Record(Event{Machine: "m", Stage: Start})
	r.Watch(func(Event) { t.Error("a nil recorder passed an event on") })()
	if r.Events("m") != nil || r.Machines() != nil {
		t.Error("a nil recorder knows something")
	}
}

func TestRecorderStoresAndPassesOn(t *testing.T) {
	r := New()
	var seen []Stage
	cancel := r.Watch(func(e Event) { seen = append(seen, e.Stage) })
	r.Record(at(0, Start, Point, "", 0))
	r.Record(at(1, Kernel, Progress, "vmlinuz", 10))
	cancel()
	r.Record(at(2, Userland, Point, "", 0))
	if want := []Stage{Start, Kernel}; !cmp.Equal(seen, want) {
		t.Errorf("the watcher saw %v, want %v", seen, want)
	}
	if got := r.Events("m"); len(got) != 2 || got[1].Stage != Userland {
		t.Errorf("stored %v, want start and userland without the progress", got)
	}
}

func TestRecorderIsBounded(t *testing.T) {
	r := New()
	for i := range maxMachines + 10 {
		r.Record(Event{At: t0.Add(time.Duration(i) * time.Second), Machine: fmt.Sprint(i), Stage: Start})
	}
	if n := len(r.Machines()); n != maxMachines {
		t.Errorf("%d machines are stored, want %d", n, maxMachines)
	}
	if r.Events("0") != nil {
		t.Error("the machine that was silent longest is still stored")
	}
	for i := range 10 * maxEvents {
		r.Record(at(i, DHCP("os", "discover"), Point, "", 0))
	}
	events := r.Events("m")
	if len(events) > maxEvents {
		t.Errorf("%d events of one machine are stored, want at most %d", len(events), maxEvents)
	}
	if last := events[len(events)-1].At; !last.Equal(t0.Add((10*maxEvents - 1) * time.Millisecond)) {
		t.Errorf("the newest event is of %v", last)
	}
	for i := range 2 * maxTotal {
		r.Record(Event{At: t0, Machine: fmt.Sprint(i % 2048), Stage: Start})
	}
	stored := 0
	for _, m := range r.Machines() {
		stored += len(r.Events(m))
	}
	if stored > maxTotal || stored != r.total {
		t.Errorf("%d events are stored, %d counted", stored, r.total)
	}
}

func TestSteps(t *testing.T) {
	got := Steps(t0, []Event{
		at(-5, Exit, Point, "of the boot before", 0),
		at(0, Start, Point, "", 0),
		at(100, TFTP, Begin, "undionly.kpxe", 0),
		at(350, TFTP, End, "undionly.kpxe", 70000),
		at(400, Kernel, Begin, "vmlinuz", 0),
		at(410, Initrd, Begin, "initrd", 0),
		at(500, Kernel, End, "vmlinuz", 16e6),
		at(600, Initrd, Fail, "no such file", 0),
	})
	want := []Step{
		{Stage: Start},
		{Stage: TFTP, AtMS: 100, DurationMS: 250, Bytes: 70000, Detail: "undionly.kpxe"},
		{Stage: Kernel, AtMS: 400, DurationMS: 100, Bytes: 16e6, Detail: "vmlinuz"},
		{Stage: Initrd, AtMS: 410, Detail: "initrd", Unfinished: true},
		{Stage: Initrd, AtMS: 600, Detail: "no such file", Failed: true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestWaterfall(t *testing.T) {
	var b strings.Builder
	Waterfall(&b, []Step{
		{Stage: Start},
		{Stage: Kernel, AtMS: 1000, DurationMS: 500, Bytes: 16e6, Detail: "vmlinuz"},
		{Stage: Userland, AtMS: 2000},
	}, 2*time.Second)
	want := `   0.00 s  start              █
   1.00 s  kernel                             ████████          vmlinuz 16.0 MB in 0.50 s
   2.00 s  userland                                          █
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestDiagnose(t *testing.T) {
	tests := []struct {
		name    string
		steps   []Step
		console []string
		stage   Stage
		cause   string // a part of it
	}{
		{name: "nothing at all", stage: Start, cause: "no sign of life"},
		{name: "only switched on", steps: []Step{{Stage: Start}}, stage: Start, cause: "printed nothing"},
		{name: "no DHCP", steps: []Step{{Stage: Start}, {Stage: Firmware}}, stage: Firmware, cause: "never asked for an address"},
		{name: "unanswered", steps: []Step{{Stage: DHCP("firmware", "discover")}}, stage: "firmware.discover", cause: "was not answered"},
		{name: "offer not taken", steps: []Step{{Stage: DHCP("ipxe", "discover")}, {Stage: DHCP("ipxe", "offer")}}, stage: "ipxe.offer", cause: "another DHCP server"},
		{name: "nothing for it", steps: []Step{{Stage: DHCP("firmware", "offer"), Failed: true, Detail: "10.77.0.50, no boot file: no boot program for uefi-ia32"}, {Stage: DHCP("firmware", "offer")}},
			stage: "firmware.offer", cause: "nothing to boot: no boot program for uefi-ia32"},
		{name: "unsigned kernel", steps: []Step{{Stage: TFTP}}, console: []string{"error: bad shim signature."}, stage: TFTP, cause: "does not trust the kernel's signature"},
		{name: "kernel missing", steps: []Step{{Stage: Script}, {Stage: Kernel, Failed: true, Detail: "/k: no such file"}}, stage: Kernel, cause: "/k: no such file"},
		{name: "stuck in a transfer", steps: []Step{{Stage: TFTP, Unfinished: true, Detail: "snponly.efi"}, {Stage: Exit}}, stage: TFTP, cause: "snponly.efi began and never ended"},
		{name: "a transfer that failed and was repeated", steps: []Step{{Stage: Kernel, Failed: true}, {Stage: Kernel}, {Stage: Linux}}, stage: Linux, cause: "did not report"},
		{name: "restarts for ever", steps: []Step{{Stage: Firmware}, {Stage: Kernel}, {Stage: Firmware}, {Stage: Kernel}, {Stage: Firmware}, {Stage: Kernel}, {Stage: Firmware}}, stage: Kernel, cause: "again and again"},
		{name: "no driver", steps: []Step{{Stage: Linux}}, console: []string{"ecboot: userland after 3.21s", "ecboot: not reported: no network interface", "$ "}, stage: Linux, cause: "could not report: no network interface"},
		{name: "panic", steps: []Step{{Stage: Linux}, {Stage: Panic}}, console: []string{"VFS: Unable to mount root fs on unknown-block(0,0)", "Kernel panic - not syncing"}, stage: Panic, cause: "initrd did not arrive"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := Diagnose(tt.steps, tt.console)
			if d.Stage != tt.stage || !strings.Contains(d.Cause, tt.cause) {
				t.Errorf("got %q at %s, want %q at %s", d.Cause, d.Stage, tt.cause, tt.stage)
			}
		})
	}
}
