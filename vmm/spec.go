// Package vmm runs one QEMU machine: Spec says what it is, Args turns that into
// QEMU's arguments without touching anything, Start runs it and hands back a
// Machine with its console, its monitor (QMP) and, at the end, the reason why
// it ended. It gets network taps as open files and knows nothing of bridges.
package vmm

import (
	"bytes"
	"fmt"
	"net"
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

// ROMNone is the ROM of a NIC that has none: firmware must drive it by itself.
const ROMNone = "none"

// NIC is one network card, connected to a tap.
type NIC struct {
	Model     string           // QEMU's device name; empty: virtio-net-pci
	MAC       net.HardwareAddr // six bytes, unicast, never empty
	ROM       string           // option ROM; empty: QEMU's own iPXE; ROMNone; or a file
	BootIndex int              // order among boot devices from 1; 0: not a boot device
	Pcap      string           // file that gets a capture of all its packets; empty: none
}

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
	NICs      []NIC  // each takes the tap at the same place in Options.Taps

	// Direct boot. QEMU loads Kernel itself and the firmware runs it before
	// any boot device. With iPXE as the kernel (ipxe.lkrn) the initrd is the
	// script that it runs.
	Kernel     string // file; empty: the firmware looks for a boot device
	Initrd     string // file; empty: none, or InitrdData
	InitrdData []byte // instead of Initrd, without a file
	Append     string // kernel command line

	OnPanic PanicPolicy
	Extra   []string // more arguments for QEMU, after all others
}

// The descriptors that a QEMU process inherits, in this order. Those that a
// machine does not need are left out, and the later ones move up.
type layout struct {
	console, qmp       int
	varsRead, varsEdit int // both ways to open the variable store; 0 with BIOS
	initrd             int // 0 without InitrdData
	taps               []int
	count              int // all of them
}

const firstFD = 3 // what os/exec makes of ExtraFiles[0]

func (s *Spec) layout() layout {
	next := firstFD
	take := func() int { next++; return next - 1 }
	l := layout{console: take(), qmp: take()}
	if s.UEFI != (UEFI{}) {
		l.varsRead, l.varsEdit = take(), take()
	}
	if len(s.InitrdData) > 0 {
		l.initrd = take()
	}
	for range s.NICs {
		l.taps = append(l.taps, take())
	}
	l.count = next - firstFD
	return l
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
	if l.varsEdit != 0 {
		machine += ",pflash0=code,pflash1=vars"
	}
	add("-machine", machine, "-accel", string(s.accel()), "-cpu", s.cpu())
	add("-smp", strconv.Itoa(max(s.CPUs, 1)), "-m", strconv.Itoa(s.memory()))
	add("-display", "none")

	if l.varsEdit != 0 {
		add("-blockdev", "node-name=code,driver=file,read-only=on,filename="+optValue(s.UEFI.Code))
		// QEMU looks in the set for a descriptor opened the way it
		// wants: to read first, then to write.
		add("-add-fd", fmt.Sprintf("set=1,fd=%d", l.varsRead))
		add("-add-fd", fmt.Sprintf("set=1,fd=%d", l.varsEdit))
		add("-blockdev", "node-name=vars,driver=file,filename=/dev/fdset/1")
	}
	if s.UEFI.SMM {
		add("-global", "driver=cfi.pflash01,property=secure,value=on")
	}
	if s.NoPXE {
		add("-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=n")
		add("-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n")
	}

	add("-chardev", fmt.Sprintf("socket,id=console,fd=%d", l.console), "-serial", "chardev:console")
	add("-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", l.qmp), "-mon", "chardev=qmp,mode=control")

	// Newer OVMF has no network without a source of randomness.
	add("-device", "virtio-rng-pci")
	// Reboots stay reboots: chainloading needs them.
	add("-device", s.pvpanic())
	if s.OnPanic == PanicPauses {
		add("-action", "panic=pause")
	} else {
		add("-action", "panic=exit-failure")
	}

	for i, nic := range s.NICs {
		add("-netdev", fmt.Sprintf("tap,id=net%d,fd=%d", i, l.taps[i]))
		if nic.Pcap != "" {
			add("-object", fmt.Sprintf("filter-dump,id=pcap%d,netdev=net%d,file=%s", i, i, optValue(nic.Pcap)))
		}
		add("-device", nic.device(i))
	}

	if s.Kernel != "" {
		add("-kernel", s.Kernel)
	}
	switch {
	case l.initrd != 0:
		add("-initrd", fdPath(l.initrd))
	case s.Initrd != "":
		add("-initrd", s.Initrd)
	}
	if s.Append != "" {
		add("-append", s.Append)
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
	case s.Machine != "":
		return s.Machine
	case s.Arch == ArchARM64:
		return "virt"
	}
	return "q35"
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
	// own: a tenth of the time that the kernel takes to boot.
	return "max,svm=off"
}

func (s *Spec) memory() int {
	if s.MemoryMiB == 0 {
		return 1024
	}
	return s.MemoryMiB
}

func (n *NIC) device(i int) string {
	model := n.Model
	if model == "" {
		model = "virtio-net-pci"
	}
	d := fmt.Sprintf("%s,id=nic%d,netdev=net%d,mac=%s", model, i, i, n.MAC)
	switch n.ROM {
	case "":
	case ROMNone:
		d += ",romfile="
	default:
		d += ",romfile=" + optValue(n.ROM)
	}
	if n.BootIndex != 0 {
		d += ",bootindex=" + strconv.Itoa(n.BootIndex)
	}
	return d
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
	return s.checkStrings()
}

func (s *Spec) checkNIC(i int) error {
	nic := s.NICs[i]
	switch {
	case len(nic.MAC) != 6:
		return fmt.Errorf("it needs a MAC address of six bytes, not %d", len(nic.MAC))
	case nic.MAC[0]&1 != 0:
		return fmt.Errorf("%s is a group address: make the first byte even", nic.MAC)
	case bytes.Equal(nic.MAC, make([]byte, 6)):
		return fmt.Errorf("%s is no address: choose one such as 52:54:00:12:34:56", nic.MAC)
	case nic.BootIndex < 0:
		return fmt.Errorf("boot index %d: use 1 or more, 0 for a NIC that is not booted from", nic.BootIndex)
	}
	for j, other := range s.NICs[:i] {
		if bytes.Equal(nic.MAC, other.MAC) {
			return fmt.Errorf("%s is the MAC address of NIC %d already", nic.MAC, j)
		}
		if nic.BootIndex != 0 && nic.BootIndex == other.BootIndex {
			return fmt.Errorf("boot index %d is that of NIC %d already", nic.BootIndex, j)
		}
	}
	return nil
}

func (s *Spec) checkStrings() error {
	fields := []string{s.Name, s.Machine, s.UEFI.Code, s.UEFI.Vars, s.CPU, s.Kernel, s.Initrd, s.Append}
	for _, nic := range s.NICs {
		fields = append(fields, nic.Model, nic.ROM, nic.Pcap)
	}
	for _, v := range append(fields, s.Extra...) {
		if strings.ContainsRune(v, 0) {
			return fmt.Errorf("%q holds a NUL byte, which no program can be given", v)
		}
	}
	for _, v := range s.Extra {
		switch v {
		case "-daemonize", "--daemonize":
			return fmt.Errorf("%s takes QEMU out of our hands: leave it out", v)
		case "-no-reboot", "--no-reboot":
			return fmt.Errorf("%s ends the machine where a boot program restarts it: leave it out", v)
		}
	}
	return nil
}

// optValue escapes a value for QEMU's comma-separated options.
func optValue(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// fdPath names an inherited descriptor as a file of QEMU's own.
func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

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
