package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/every-channel/ecboot/images"
	"github.com/every-channel/ecboot/internal/nettest"
	"github.com/every-channel/ecboot/internal/timeline"
)

// needGuests skips tests that boot machines where a part is missing.
func needGuests(t *testing.T) {
	t.Helper()
	nettest.NeedRoot(t)
	nettest.Need(t, "qemu-system-x86_64")
	if _, err := images.Default(); err != nil {
		t.Skip(err)
	}
}

// bootReport runs ecboot with -o json, wants it to succeed, and returns its
// document.
func bootReport(t *testing.T, args ...string) report {
	t.Helper()
	r := ecboot(t, append(args, "-o", "json")...)
	r.want(t, 0)
	var doc report
	if err := json.Unmarshal([]byte(r.stdout), &doc); err != nil {
		t.Fatalf("%v in\n%s\n%s", err, r.stdout, r.stderr)
	}
	if doc.Schema != reportSchema {
		t.Errorf("schema %d, want %d", doc.Schema, reportSchema)
	}
	return doc
}

// wantStages checks that the stages occur in this order, others between them.
func wantStages(t *testing.T, steps []timeline.Step, want ...timeline.Stage) {
	t.Helper()
	rest := want
	var got []timeline.Stage
	for _, s := range steps {
		got = append(got, s.Stage)
		if len(rest) > 0 && s.Stage == rest[0] {
			rest = rest[1:]
		}
	}
	if len(rest) > 0 {
		t.Errorf("no %q in its place among the stages %q", rest[0], got)
	}
}

// The table of the README: firmware × first stage, each a real boot through
// ecboot's own servers to userland.
func TestBoot(t *testing.T) {
	ipxe := []timeline.Stage{"ipxe.discover", "ipxe.offer", "ipxe.request", "ipxe.ack", timeline.Script,
		timeline.Kernel, timeline.Initrd, timeline.Linux, "os.ack", timeline.Userland}
	firmware := []timeline.Stage{"firmware.discover", "firmware.offer", "firmware.request", "firmware.ack", timeline.TFTP}
	chainload := []timeline.Stage{"ipxe.discover", "ipxe.offer", "ipxe.request", "ipxe.ack", timeline.TFTP}
	const bios, x64 = "BIOS", "UEFI x64"
	tests := []struct {
		firmware string
		mode     string
		args     []string
		want     []timeline.Stage
		nbp      string
	}{
		{bios, "virtio-net, QEMU's iPXE ROM, HTTP", []string{"--firmware", "bios"}, ipxe, ""},
		{bios, "e1000, QEMU's iPXE ROM, HTTP", []string{"--firmware", "bios", "--nic", "e1000"}, ipxe, ""},
		{bios, "e1000 in a `pc`, QEMU's iPXE ROM, HTTP", []string{"--firmware", "bios", "--machine", "pc", "--nic", "e1000"}, ipxe, ""},
		{bios, "iPXE as the kernel, HTTP", []string{"--firmware", "bios", "--first-stage", "ipxe"}, ipxe, ""},
		{bios, "iPXE ROM chainloads `undionly.kpxe` by TFTP, HTTP", []string{"--firmware", "bios", "--chainload"}, slices.Concat(chainload, ipxe), "undionly.kpxe"},
		{x64, "PXE: `snponly.efi` by TFTP, HTTP", []string{"--firmware", "uefi", "--rom", "none"}, slices.Concat(firmware, ipxe), "snponly.efi"},
		{x64, "QEMU's iPXE ROM, HTTP", []string{"--firmware", "uefi"}, ipxe, ""},
	}
	for _, tt := range tests {
		t.Run(tt.firmware+" "+tt.mode, func(t *testing.T) {
			compat(t, compatRow{"boots", tt.firmware, tt.mode, "ecboot's own system", "userland"})
			needGuests(t)
			t.Parallel()
			doc := bootReport(t, append([]string{"run", "--until", "ready"}, tt.args...)...)
			if doc.Outcome != outcomeReady {
				t.Errorf("outcome %q", doc.Outcome)
			}
			wantStages(t, doc.Stages, tt.want...)
			wantOneAddress(t, doc)
			for _, s := range doc.Stages {
				if s.Stage == timeline.TFTP && s.Detail != tt.nbp {
					t.Errorf("TFTP of %q, want %q", s.Detail, tt.nbp)
				}
			}
		})
	}
}

// wantOneAddress checks that firmware, iPXE and the operating system were given
// the same address.
func wantOneAddress(t *testing.T, doc report) {
	t.Helper()
	if doc.Address == "" {
		t.Error("the report has no address")
	}
	for _, s := range doc.Stages {
		if !strings.HasSuffix(string(s.Stage), ".ack") {
			continue
		}
		if address, _, _ := strings.Cut(s.Detail, ","); address != doc.Address {
			t.Errorf("%s is of %s, want %s", s.Stage, address, doc.Address)
		}
	}
}

// Linux that QEMU emulates panics on a busy host if it checks its timer; whether
// each iPXE knows that it is in QEMU shows on the kernel's command line.
func TestKernelInQEMUDoesNotCheckItsTimer(t *testing.T) {
	for _, args := range [][]string{{"--firmware", "bios"}, {"--firmware", "bios", "--chainload"}, {"--firmware", "uefi", "--rom", "none"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			needGuests(t)
			t.Parallel()
			doc := bootReport(t, append([]string{"run", "--append", "loglevel=7", "--until", "console:ommand line: .* no_timer_check"}, args...)...)
			if doc.Outcome != outcomeReady {
				t.Errorf("outcome %q", doc.Outcome)
			}
		})
	}
}

func TestTwoGuestsAtOnce(t *testing.T) {
	needGuests(t)
	t.Parallel()
	doc := bootReport(t, "run", "--count", "2", "--until", "ready")
	if len(doc.Guests) != 2 {
		t.Fatalf("%d guests are in the report, want 2", len(doc.Guests))
	}
	a, b := doc.Guests[0], doc.Guests[1]
	if a.MAC == b.MAC || a.Address == b.Address || a.Address == "" || b.Address == "" {
		t.Errorf("%s has %s and %s has %s", a.MAC, a.Address, b.MAC, b.Address)
	}
	for _, g := range doc.Guests {
		wantStages(t, g.Stages, timeline.Start, "ipxe.ack", timeline.Script, timeline.Kernel, timeline.Initrd, timeline.Userland)
	}
}
