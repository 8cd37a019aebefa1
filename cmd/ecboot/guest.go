package main

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/vmm"
)

// guestOptions is all that the command line and the configuration say of the
// guests to run.
type guestOptions struct {
	config.Guest
	FirstStage string // of the constants stage…
	Chainload  bool
	Banner     bool // leave iPXE the two seconds in which it waits for Ctrl-B
	Count      int
	MAC        boot.MAC
	Until      condition
	PCAP       string
	Extra      []string // arguments for QEMU
	Attach     bool     // sit down at the console once the guest is ready
}

// What a guest begins its boot with.
const (
	stageROM  = "rom"  // the NIC's ROM or, for UEFI without one, the firmware
	stageIPXE = "ipxe" // iPXE as the kernel, with BIOS only
	stagePXE  = "pxe"  // the firmware's own PXE, with UEFI only
	stageHTTP = "http" // the firmware's own HTTP Boot, with UEFI only
)

// condition is what a boot waits for.
type condition struct {
	kind    string         // ready, poweroff or console
	console *regexp.Regexp // of kind console
}

const (
	untilReady    = "ready"
	untilPoweroff = "poweroff"
	untilConsole  = "console"
)

func parseCondition(s string) (condition, error) {
	if s == untilReady || s == untilPoweroff {
		return condition{kind: s}, nil
	}
	expr, ok := strings.CutPrefix(s, untilConsole+":")
	if !ok || expr == "" {
		return condition{}, fmt.Errorf("--until %s: want ready, poweroff or console:REGEX", s)
	}
	re, err := regexp.Compile(expr)
	if err != nil {
		return condition{}, fmt.Errorf("--until %s: %w", s, err)
	}
	return condition{untilConsole, re}, nil
}

// guestFlags are the flags that run and boot share, as they were typed.
type guestFlags struct {
	arch, firmware, nic, rom, firstStage, accel, machine string
	memory, appendix, until, mac                         string
	pcap, output                                         string
	cpus, count                                          int
	timeout                                              time.Duration
	dryRun, chainload, banner, secureBoot                bool
	segment                                              segmentFlags
}

func (f *guestFlags) register(cmd *cobra.Command) {
	d := config.Default().Guest
	fs := cmd.Flags()
	fs.StringVar(&f.arch, "arch", d.Arch, "`amd64|arm64`; arm64 has UEFI and a machine of its own")
	fs.StringVar(&f.firmware, "firmware", d.Firmware, "`bios|uefi|uefi-ia32`")
	fs.BoolVar(&f.secureBoot, "secure-boot", d.SecureBoot, "a UEFI with Microsoft's keys that runs nothing unsigned")
	fs.StringVar(&f.machine, "machine", d.Machine, "QEMU machine `TYPE`, q35 or pc")
	fs.StringVar(&f.nic, "nic", d.NIC, "QEMU network device `MODEL`, such as e1000")
	fs.StringVar(&f.rom, "rom", d.ROM, "the NIC's boot ROM: `default|none`; none leaves UEFI to its own PXE")
	fs.StringVar(&f.firstStage, "first-stage", stageROM, "`rom|ipxe|pxe|http`; ipxe starts iPXE as the kernel, faster, BIOS only; pxe and http are UEFI's own")
	fs.BoolVar(&f.chainload, "chainload", false, "load ecboot's own iPXE over TFTP even if the ROM's would do")
	fs.BoolVar(&f.banner, "ipxe-banner", false, "let iPXE wait two seconds for Ctrl-B; otherwise a key is pressed for it")
	fs.StringVar(&f.accel, "accel", d.Accel, "`auto|kvm|tcg`")
	fs.StringVar(&f.memory, "memory", d.Memory.String(), "`SIZE` of the guest, such as 512M or 2G")
	fs.IntVar(&f.cpus, "cpus", d.CPUs, "number of virtual `CPUS`")
	fs.StringVar(&f.appendix, "append", "", "`ARGS` added to the kernel command line")
	fs.DurationVar(&f.timeout, "timeout", d.Timeout, "give up after this `DURATION`")
	fs.StringVar(&f.until, "until", untilReady, "what to wait for: `ready|poweroff|console:REGEX`")
	fs.IntVar(&f.count, "count", 1, "`N` guests at once")
	fs.StringVar(&f.mac, "mac", "", "`MAC` of the first guest; the others count up from it")
	f.segment.register(cmd)
	fs.StringVar(&f.pcap, "pcap", "", "write the guest's packets to `FILE`")
	outputFlag(cmd, &f.output)
	fs.BoolVar(&f.dryRun, "dry-run", false, "print the QEMU command and do nothing")
}

// options lays the flags that were given over the configuration's values. All
// that is wrong is reported together.
func (f *guestFlags) options(cmd *cobra.Command, cfg *config.Config, seg config.Segment) (guestOptions, error) {
	o := guestOptions{Guest: cfg.Guest, FirstStage: f.firstStage, Chainload: f.chainload, Banner: f.banner, Count: f.count, PCAP: f.pcap}
	changed := cmd.Flags().Changed
	for _, s := range []struct {
		flag string
		to   *string
		from string
	}{
		{"arch", &o.Arch, f.arch}, {"firmware", &o.Firmware, f.firmware}, {"machine", &o.Machine, f.machine}, {"nic", &o.NIC, f.nic},
		{"rom", &o.ROM, f.rom}, {"accel", &o.Accel, f.accel},
	} {
		if changed(s.flag) {
			*s.to = s.from
		}
	}
	var errs []error
	bad := func(err error) { errs = append(errs, err) }
	oneOf := func(flag, value string, allowed ...string) {
		for _, a := range allowed {
			if value == a {
				return
			}
		}
		bad(fmt.Errorf("--%s %s: want %s", flag, value, strings.Join(allowed, " or ")))
	}
	oneOf("arch", o.Arch, vmm.ArchAMD64, vmm.ArchARM64)
	oneOf("firmware", o.Firmware, "bios", "uefi", "uefi-ia32")
	oneOf("rom", o.ROM, "default", "none")
	oneOf("accel", o.Accel, "auto", "kvm", "tcg")
	oneOf("first-stage", o.FirstStage, stageROM, stageIPXE, stagePXE, stageHTTP)
	if changed("secure-boot") {
		o.SecureBoot = f.secureBoot
	}
	if o.Arch == vmm.ArchARM64 && !changed("firmware") {
		o.Firmware = "uefi"
	}
	if err := o.checkFirmware(); err != nil {
		bad(err)
	}
	if changed("memory") {
		size, err := config.ParseSize(f.memory)
		if err != nil {
			bad(fmt.Errorf("--memory %w", err))
		}
		o.Memory = size
	}
	if changed("cpus") {
		o.CPUs = f.cpus
	}
	if o.CPUs < 1 {
		bad(fmt.Errorf("--cpus %d: want 1 or more", o.CPUs))
	}
	if o.Count < 1 || o.Count > 64 {
		bad(fmt.Errorf("--count %d: want 1 to 64", o.Count))
	}
	if changed("timeout") {
		o.Timeout = f.timeout
	}
	if o.Timeout <= 0 {
		bad(fmt.Errorf("--timeout %s: want a time to wait, such as 2m", o.Timeout))
	}
	o.Append = strings.TrimSpace(o.Append + " " + f.appendix)
	if strings.ContainsAny(o.Append, "\r\n") {
		bad(errors.New("--append: a kernel command line is one line"))
	}
	var err error
	if o.Until, err = parseCondition(f.until); err != nil {
		bad(err)
	}
	o.MAC = defaultMAC(seg)
	if f.mac != "" {
		if o.MAC, err = boot.ParseMAC(f.mac); err != nil {
			bad(fmt.Errorf("--mac: %w", err))
		} else if o.MAC[0]&1 != 0 {
			bad(fmt.Errorf("--mac %s is a group address: a guest needs one whose first byte is even", f.mac))
		}
	}
	// Everything behind -- is QEMU's.
	if at := cmd.ArgsLenAtDash(); at >= 0 {
		o.Extra = cmd.Flags().Args()[at:]
	}
	return o, withCode(exitUsage, errors.Join(errs...))
}

// checkFirmware says what of firmware, architecture and first stage does not go
// together.
func (o guestOptions) checkFirmware() error {
	bios := o.Firmware == "bios"
	switch {
	case o.Arch == vmm.ArchARM64 && o.Firmware != "uefi":
		return errors.New("--arch arm64 has UEFI only: leave out --firmware")
	case o.FirstStage == stageIPXE && !bios:
		return errors.New("--first-stage ipxe starts guests with BIOS only: leave it out, or use --firmware bios")
	case (o.FirstStage == stagePXE || o.FirstStage == stageHTTP) && bios:
		return fmt.Errorf("--first-stage %s is UEFI's own: use --firmware uefi, too", o.FirstStage)
	case o.FirstStage == stageROM && bios && o.ROM == "none":
		return errors.New("--rom none leaves a BIOS guest nothing to boot from: use --firmware uefi, or --first-stage ipxe")
	case o.SecureBoot && bios:
		return errors.New("--secure-boot is UEFI's: use --firmware uefi, too")
	case o.SecureBoot && o.FirstStage == stageROM && o.ROM != "none":
		return errors.New("--secure-boot does not run the NIC's ROM, which nobody has signed: use --first-stage pxe or http")
	}
	return nil
}

// machineType is QEMU's machine type; that of the configuration is for PCs.
func (o guestOptions) machineType() string {
	if o.Arch == vmm.ArchARM64 {
		return "virt"
	}
	return o.Machine
}

// accel decides what runs the guests, and says why if that is worth a word.
func (o guestOptions) accel(ctx context.Context) (accel vmm.Accel, why string, err error) {
	if o.Arch != runtime.GOARCH && o.Accel == string(vmm.AccelAuto) {
		return vmm.AccelTCG, "the guest's processor is not the host's", nil
	}
	accel, why, err = vmm.ResolveAccel(ctx, vmm.Accel(o.Accel), userDirs().Cache)
	return accel, why, withCode(exitEnvironment, err)
}

// defaultMAC is always the same on a private segment, where it meets no other.
// On a network that others use, each process has its own.
func defaultMAC(seg config.Segment) boot.MAC {
	m := boot.MAC{0x52, 0x54, 0x00, 0xec, 0xb0, 0x01}
	if !seg.Private() {
		host, _ := os.Hostname()
		h := fnv.New32a()
		fmt.Fprintf(h, "%s %d", host, os.Getpid())
		sum := h.Sum32()
		m[3], m[4], m[5] = byte(sum>>16), byte(sum>>8), byte(sum)
	}
	return m
}

// macs are the addresses of all guests of a run.
func (o guestOptions) macs() []boot.MAC {
	list := make([]boot.MAC, o.Count)
	m := o.MAC
	for i := range list {
		list[i] = m
		for b := 5; b >= 3; b-- {
			if m[b]++; m[b] != 0 {
				break
			}
		}
	}
	return list
}
