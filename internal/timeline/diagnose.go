package timeline

import "strings"

// Diagnosis says how far a boot came and what most likely stopped it.
type Diagnosis struct {
	Stage Stage  // the last stage that was reached
	Cause string // one sentence, with the next step
}

// Restarts is how often a machine may restart on its way: firmware does so after
// it has changed its settings. One that restarts more often gets nowhere.
const Restarts = 3

// Diagnose explains a boot that did not become ready, from its steps and the
// last lines of its console.
func Diagnose(steps []Step, console []string) Diagnosis {
	d := Diagnosis{Stage: Start}
	reached := map[Stage]bool{}
	starts := 0
	for _, s := range steps {
		if s.Stage == Firmware {
			if starts++; starts > 1 {
				continue // a restart: the stage before it is what matters
			}
		}
		reached[s.Stage] = true
		if s.Stage != Exit {
			d.Stage = s.Stage
		}
	}
	if cause := fromConsole(console); cause != "" {
		d.Cause = cause
		return d
	}
	if starts > Restarts {
		d.Cause = "the machine restarts again and again after this stage: what it starts then crashes, as with too little memory"
		return d
	}
	if s, ok := lastTransfer(steps); ok {
		d.Stage, d.Cause = s.Stage, brokenTransfer(s)
		return d
	}
	if why := refusedOffer(steps); why != "" && strings.HasSuffix(string(d.Stage), ".offer") {
		d.Cause = "the server offers it nothing to boot: " + why
		return d
	}
	for _, c := range causes {
		if reached[c.after] {
			d.Cause = c.cause
			return d
		}
	}
	d.Cause = "the machine gave no sign of life: look at QEMU's own message, or try --accel tcg"
	return d
}

// consoleCauses are sentences of kernels and firmware that explain themselves
// only to those who have met them before.
var consoleCauses = []struct{ text, cause string }{
	{"Out of memory and no killable processes", "the guest has too little memory for its initrd: raise --memory"},
	{"Initramfs unpacking failed: write error", "the guest has too little memory to unpack its initrd: raise --memory"},
	{"Initramfs unpacking failed", "the kernel cannot unpack the initrd: its compression may not be built in, or the file is damaged"},
	{"not enough memory to load", "the guest has too little memory for the kernel: raise --memory"},
	{"VFS: Unable to mount root fs", "the kernel found no root: the initrd did not arrive, has no /init, or root= is wrong"},
	{"No working init found", "the initrd has no program that the kernel can run as init: check its architecture"},
	{"Attempted to kill init", "the first program in the initrd ended: see the console lines above the panic"},
	{"Kernel panic - not syncing", "the kernel panicked: see the console lines above"},
	{"bad shim signature", "Secure Boot: shim does not trust the kernel's signature, if it has one: boot a kernel of shim's distribution"},
	{"Security Violation", "Secure Boot refused a program without a valid signature: use firmware without Secure Boot"},
	{"Access Denied", "the firmware refused to run the boot program, as Secure Boot does with unsigned ones: give the profile secure_boot = true"},
	{"set_screen_info() failed", "memtest86+ needs a screen when a UEFI runs it: add one (-- -vga std)"},
	{"No space left on device", "the guest has too little memory to unpack its initrd: raise --memory"},
	{"No bootable device", "the firmware found nothing to boot: does the NIC have a boot ROM (--rom default), or does the firmware boot from the network?"},
}

// notReported begins what our guest program says when it cannot report.
const notReported = "ecboot: not reported: "

func fromConsole(lines []string) string {
	for _, line := range lines {
		if why, ok := strings.CutPrefix(line, notReported); ok {
			return "the system runs but could not report: " + why
		}
	}
	all := strings.Join(lines, "\n")
	for _, c := range consoleCauses {
		if strings.Contains(all, c.text) {
			return c.cause
		}
	}
	return ""
}

// lastTransfer finds a transfer that stopped the boot: nothing came after it.
func lastTransfer(steps []Step) (Step, bool) {
	for i := len(steps) - 1; i >= 0; i-- {
		s := steps[i]
		if s.Stage == Exit {
			continue
		}
		return s, s.Failed || s.Unfinished
	}
	return Step{}, false
}

// refusedOffer says why a machine was given no boot file, where that is told:
// once, however often it asks.
func refusedOffer(steps []Step) (why string) {
	for _, s := range steps {
		if s.Failed && strings.HasSuffix(string(s.Stage), ".offer") {
			_, why, _ = strings.Cut(s.Detail, "no boot file: ")
		}
	}
	return why
}

func brokenTransfer(s Step) string {
	if s.Failed {
		return "the " + string(s.Stage) + " stage failed: " + s.Detail
	}
	return "the transfer of " + s.Detail + " began and never ended: packets are lost, or the machine stopped while it loaded"
}

// causes holds, from the last stage to the first, what it means that nothing
// came after it.
var causes = []struct {
	after Stage
	cause string
}{
	{Userland, "the system reported, then did not do what --until waits for"},
	{Linux, "the kernel runs but its userland did not report: a foreign initrd never does (use --until console:REGEX), ours needs a network driver for this NIC"},
	{Initrd, "kernel and initrd arrived and the kernel printed nothing: check console= on its command line, its architecture, and the memory"},
	{Kernel, "the kernel arrived but no initrd was asked for: iPXE could not start it, or the memory ran out"},
	{Script, "iPXE took its script and fetched no kernel: see its message on the console"},
	{DHCP("ipxe", "ack"), "iPXE has an address but did not fetch its script: is TCP port 80 of the server reachable from the segment?"},
	{DHCP("ipxe", "offer"), "iPXE did not take the offer: another DHCP server on the segment may have answered first"},
	{DHCP("ipxe", "discover"), "iPXE asked and was not answered: the pool may be empty or the machine unknown, see the log"},
	{TFTP, "the boot program arrived and did not ask for an address: it does not run here; try another (nbp = \"ipxe.efi\")"},
	{HTTPBoot, "the boot program arrived and did not ask for an address: it does not run here; try another (nbp = \"ipxe.efi\")"},
	{DHCP("firmware", "ack"), "the firmware has an address but fetched no boot program: is UDP port 69 of the server reachable from the segment?"},
	{DHCP("firmware", "offer"), "the firmware did not take the offer: another DHCP server may have answered first, or a filter drops bridged traffic (see ecboot doctor)"},
	{DHCP("firmware", "discover"), "the firmware asked and was not answered: the pool may be empty or the machine unknown, see the log"},
	{Firmware, "the firmware never asked for an address: this NIC model may have no boot ROM, or a filter eats bridged DHCP (see ecboot doctor)"},
	{Start, "the machine printed nothing and sent nothing: it may only need more time (--timeout) or another --accel"},
}
