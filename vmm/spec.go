// Package vmm runs one QEMU machine: Spec says what it is, Args turns that into
// QEMU's arguments without touching anything, Start runs it and hands back a
// Machine with its console, its monitor (QMP) and, at the end, the reason why
// it ended. It gets network taps as open files and knows nothing of bridges.
package vmm

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// The processors that a machine can have, in Go's words.
const (
	ArchAMD64 = "amd64"
	ArchARM64 = "arm64"
	Arch386   = "386" // an amd64 machine whose firmware has 32 bits
)

// DefaultQEMU is the program that is run for an architecture when Options name
// no other.
func DefaultQEMU(arch string) string {
	if arch == ArchARM64 {
		return "qemu-system-aarch64"
	}
	return "qemu-system-x86_64"
}

// Accel is what executes the guest's instructions.
type Accel string

// The accelerators. AccelAuto is a wish that ResolveAccel turns into one of
// the others; a Spec cannot have it.
const (
	AccelAuto Accel = "auto"
	AccelKVM  Accel = "kvm"
	AccelTCG  Accel = "tcg" // QEMU's own translator: works everywhere, slowly
)

// PanicPolicy is what happens when the guest's kernel panics.
type PanicPolicy uint8

// The policies.
const (
	PanicExits  PanicPolicy = iota // the machine ends, Exit.Reason is GuestPanic
	PanicPauses                    // the machine stops where it is and can be looked at through QMP
)

// UEFI names the two halves of a UEFI firmware in flash, as FindUEFI returns
// them. The zero value means BIOS.
type UEFI struct {
	Code string // executable image, used in place and read-only
	Vars string // template of the variable store; every machine gets a copy of its own
	SMM  bool   // it guards its variables by system management mode
}

// Spec is a machine before it exists. The zero value is a q35 with BIOS, one
// CPU, 1 GiB and no network, run by TCG.
type Spec struct {
	Name      string // as shown in process lists and by QMP; empty: none
	Arch      string // ArchAMD64, which empty means, or ArchARM64
	Machine   string // QEMU's machine type, with options after a comma if need be; empty: q35, or virt
	UEFI      UEFI   // zero: BIOS
	NoPXE     bool   // UEFI does without PXE, so that it boots by HTTP
	CPU       string // QEMU's CPU model; empty: host with KVM, with TCG what runs fastest
	CPUs      int    // 0: 1
	MemoryMiB int    // 0: 1024
	Accel     Accel  // empty: AccelTCG
	NICs      []NIC  // those not of QEMU's user network take the next of Options.Taps
	Disks     []Disk
	Shares    []Share

	// Direct boot. QEMU loads Kernel itself and the firmware runs it before
	// any boot device. With iPXE as the kernel (ipxe.lkrn) the initrd is the
	// script that it runs.
	Kernel     string // file; empty: the firmware looks for a boot device
	Initrd     string // file; empty: none, or InitrdData
	InitrdData []byte // instead of Initrd, without a file
	Append     string // kernel command line

	VarsFile string // the variable store of a UEFI, made from UEFI.Vars if missing; empty: in memory, for this run
	TPM      string // directory for the state of a TPM 2.0, made if missing; empty: no TPM
	VNC      string // Unix socket, made anew, that shows the machine's screen; empty: no screen
	Sandbox  bool   // QEMU may not start programs, gain rights or change its priority

	OnPanic PanicPolicy
	Extra   []string // more arguments for QEMU, after all others

	tscKHz int  // frequency of the processor's counter, told the kernel; 0: it finds out
	handed bool // QEMU is handed files that it would otherwise open; Start decides
}

// Args returns the arguments of QEMU for the machine, without the program's
// name. It is an error if the Spec contradicts itself; whether files exist is
// found out by Start.
func (s Spec) Args() ([]string, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	l := s.layout()
	var args []string
	add := func(a ...string) { args = append(args, a...) }

	// Nothing that is not asked for: no default devices, no configuration
	// of the user's.
	add("-nodefaults", "-no-user-config")
	if s.Name != "" {
		add("-name", "guest="+optValue(s.Name))
	}

	machine := s.machine()
	if s.Arch != ArchARM64 {
		// This is what makes SeaBIOS, and iPXE through it, talk on the
		// serial port.
		machine += ",graphics=off"
	}
	if s.UEFI.SMM {
		machine += ",smm=on"
	}
	if s.UEFI != (UEFI{}) {
		machine += ",pflash0=code,pflash1=vars"
	}
	if s.sharedMemory() {
		machine += ",memory-backend=ram"
		add("-object", fmt.Sprintf("memory-backend-memfd,id=ram,size=%dM,share=on", s.memory()))
	}
	add("-machine", machine, "-accel", string(s.accel()), "-cpu", s.cpu())
	add("-smp", strconv.Itoa(max(s.CPUs, 1)), "-m", strconv.Itoa(s.memory()))
	add(s.display()...)
	if s.Sandbox {
		add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	}

	if s.UEFI != (UEFI{}) {
		set, vars := l.set("vars")
		add("-blockdev", "node-name=code,driver=file,read-only=on,filename="+optValue(l.file("code", s.UEFI.Code)))
		add(set...)
		add("-blockdev", "node-name=vars,driver=file,filename="+vars)
	}
	if s.UEFI.SMM {
		add("-global", "driver=cfi.pflash01,property=secure,value=on")
	}
	if s.NoPXE {
		add("-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=n")
		add("-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n")
	}

	add("-chardev", fmt.Sprintf("socket,id=console,fd=%d", l.fd("console")), "-serial", "chardev:console")
	add("-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", l.fd("qmp")), "-mon", "chardev=qmp,mode=control")

	// Newer OVMF has no network without a source of randomness.
	add("-device", s.virtio("virtio-rng"))
	// Reboots stay reboots: chainloading needs them.
	add("-device", s.pvpanic())
	if s.OnPanic == PanicPauses {
		add("-action", "panic=pause")
	} else {
		add("-action", "panic=exit-failure")
	}
	// NICs first: guests name them by their place on the bus, which must not
	// depend on what else there is.
	add(s.nicArgs(l)...)
	add(s.diskArgs(l)...)
	add(s.shareArgs(l)...)
	add(s.tpmArgs(l)...)
	add(s.screenDevices()...)

	if s.Kernel != "" {
		add("-kernel", l.file("kernel", s.Kernel))
	}
	if s.Initrd != "" || len(s.InitrdData) > 0 {
		add("-initrd", l.file("initrd", s.Initrd))
	}
	if line := s.append(); line != "" {
		add("-append", line)
	}

	add("-S") // until somebody listens
	return append(args, s.Extra...), nil
}

// Command is the whole command line that Start runs, program first; an empty
// qemu means DefaultQEMU of the architecture. The descriptors that it names are those of Start.
func (s Spec) Command(qemu string) ([]string, error) {
	args, err := s.Args()
	if err != nil {
		return nil, err
	}
	if qemu == "" {
		qemu = DefaultQEMU(s.Arch)
	}
	return append([]string{qemu}, args...), nil
}

func (s *Spec) machine() string {
	switch {
	case s.Machine == microvm:
		// Without ACPI it has no power button, and its kernel would have
		// to be told of its devices on the command line.
		return microvm + ",acpi=on"
	case s.Arch == ArchARM64 && (s.Machine == "" || s.Machine == virt) && s.CPUs > 8:
		return virt + ",gic-version=max" // the oldest, which it has otherwise, knows eight
	case s.Machine != "":
		return s.Machine
	case s.Arch == ArchARM64:
		return virt
	}
	return "q35"
}

// machineType is the machine without its options.
func (s *Spec) machineType() string {
	name, _, _ := strings.Cut(s.machine(), ",")
	return name
}

// virt is the machine of ARM64.
const virt = "virt"

// microvm is the machine without firmware and PCI, which starts the quickest:
// its devices are on virtio-mmio.
const microvm = "microvm"

func (s *Spec) microvm() bool { return s.machineType() == microvm }

// virtio is the name of a device of that kind for the machine's bus.
func (s *Spec) virtio(kind string) string {
	if s.microvm() {
		return kind + "-device"
	}
	return kind + "-pci"
}

// pvpanic is the device by which a kernel tells that it panics.
func (s *Spec) pvpanic() string {
	if s.Arch == ArchARM64 {
		return "pvpanic-pci"
	}
	return "pvpanic"
}

func (s *Spec) accel() Accel {
	if s.Accel == "" {
		return AccelTCG
	}
	return s.Accel
}

func (s *Spec) cpu() string {
	switch {
	case s.CPU != "":
		return s.CPU
	case s.accel() == AccelKVM:
		return "host"
	case s.Arch == ArchARM64:
		return "cortex-a57" // max signs pointers, which takes TCG very long
	}
	// Without AMD's virtualization, for which Linux sets up a KVM of its
	// own: a tenth of the time that the kernel takes to boot. And without
	// paging in five levels, whose addresses are wider than QEMU's CPUID says:
	// Linux takes its own for a mistake and shows "xxx" for mounted paths.
	return "max,svm=off,la57=off"
}

// append is the kernel's command line.
func (s *Spec) append() string {
	words := s.Append
	if words != "" && s.accel() == AccelTCG && s.Arch != ArchARM64 && !s.microvm() {
		// On a host that is busy, the ticks of the timer come too late for
		// Linux's check of it, which panics. A microvm has no such timer.
		words += " no_timer_check"
	}
	if s.tscKHz != 0 {
		words = fmt.Sprintf("%s tsc_early_khz=%d", words, s.tscKHz)
	}
	return strings.TrimSpace(words)
}

func (s *Spec) memory() int {
	if s.MemoryMiB == 0 {
		return 1024
	}
	return s.MemoryMiB
}

func (s *Spec) check() error {
	switch s.accel() {
	case AccelKVM, AccelTCG:
	case AccelAuto:
		return fmt.Errorf("accelerator auto: resolve it before the machine is built")
	default:
		return fmt.Errorf("accelerator %q: use kvm or tcg", s.Accel)
	}
	model, _, _ := strings.Cut(s.CPU, ",")
	switch {
	case s.Arch != "" && s.Arch != ArchAMD64 && s.Arch != ArchARM64:
		return fmt.Errorf("architecture %q: use amd64 or arm64", s.Arch)
	case s.Arch == ArchARM64 && s.UEFI == UEFI{} && s.Kernel == "" && !slices.Contains(s.Extra, "-bios"):
		return fmt.Errorf("an arm64 machine has no BIOS: name a UEFI")
	case s.NoPXE && s.UEFI == UEFI{}:
		return fmt.Errorf("no PXE without a UEFI: a BIOS knows nothing else")
	case model == "host" && s.accel() != AccelKVM:
		return fmt.Errorf("CPU host needs KVM: use max with %s", s.accel())
	case s.CPUs < 0:
		return fmt.Errorf("%d CPUs: use 1 or more", s.CPUs)
	case s.MemoryMiB < 0:
		return fmt.Errorf("%d MiB of memory: use a positive number", s.MemoryMiB)
	case s.UEFI.Code == "" && s.UEFI.Vars != "":
		return fmt.Errorf("UEFI variables %s without firmware code: name both, or neither for BIOS", s.UEFI.Vars)
	case s.UEFI.Code != "" && s.UEFI.Vars == "":
		return fmt.Errorf("UEFI firmware %s without a template of its variables: name both", s.UEFI.Code)
	case s.microvm() && s.UEFI != (UEFI{}):
		return fmt.Errorf("a microvm has no UEFI: it boots a kernel directly")
	case s.microvm() && s.Kernel == "":
		return fmt.Errorf("a microvm looks for no boot device: name a kernel")
	case s.microvm() && s.TPM != "":
		return fmt.Errorf("a microvm has no TPM: use another machine, or no TPM")
	case s.microvm() && s.VNC != "":
		return fmt.Errorf("a microvm has no screen: use another machine, or its console")
	case s.VarsFile != "" && s.UEFI == UEFI{}:
		return fmt.Errorf("a file for UEFI variables without a UEFI: leave %s out, or name a UEFI", s.VarsFile)
	case len(s.VNC) > maxSocketPath:
		return fmt.Errorf("%s is too long for a socket: use at most %d bytes", s.VNC, maxSocketPath)
	case s.Kernel == "" && s.Append != "":
		return fmt.Errorf("a kernel command line without a kernel: name a kernel to boot directly")
	case s.Kernel == "" && (s.Initrd != "" || len(s.InitrdData) > 0):
		return fmt.Errorf("an initrd without a kernel: name a kernel to boot directly")
	case s.Initrd != "" && len(s.InitrdData) > 0:
		return fmt.Errorf("initrd %s and initrd data: QEMU loads one, so join them or leave one out", s.Initrd)
	}
	for i := range s.NICs {
		if err := s.checkNIC(i); err != nil {
			return fmt.Errorf("NIC %d: %w", i, err)
		}
	}
	for i := range s.Disks {
		if err := s.checkDisk(i); err != nil {
			return fmt.Errorf("disk %d: %w", i, err)
		}
	}
	for i := range s.Shares {
		if err := s.checkShare(i); err != nil {
			return fmt.Errorf("share %d: %w", i, err)
		}
	}
	return s.checkStrings()
}

func (s *Spec) checkStrings() error {
	fields := []string{s.Name, s.Machine, s.UEFI.Code, s.UEFI.Vars, s.CPU, s.Kernel, s.Initrd, s.Append, s.VarsFile, s.TPM, s.VNC}
	for _, nic := range s.NICs {
		fields = append(fields, nic.Model, nic.ROM, nic.Pcap)
	}
	for _, d := range s.Disks {
		fields = append(fields, d.Path, d.Base, d.Serial)
	}
	for _, share := range s.Shares {
		fields = append(fields, share.Tag, share.Path)
	}
	for _, v := range append(fields, s.Extra...) {
		if strings.ContainsRune(v, 0) {
			return fmt.Errorf("%q holds a NUL byte, which no program can be given", v)
		}
	}
	// The rest of what is managed may be overridden by who starts a machine by
	// hand: see CheckExtra.
	for _, v := range s.Extra {
		if o := option(v); o == "daemonize" || o == "no-reboot" {
			return fmt.Errorf("%s: %s", v, managed[o])
		}
	}
	return nil
}

// optValue escapes a value for QEMU's comma-separated options.
func optValue(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// ShellQuote joins a command so that a POSIX shell reads the same words.
func ShellQuote(argv []string) string {
	quoted := make([]string, len(argv))
	for i, a := range argv {
		quoted[i] = shellWord(a)
	}
	return strings.Join(quoted, " ")
}

func shellWord(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_=,./:+@%", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
