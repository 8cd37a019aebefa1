package main

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
)

// guestOptions is all that the command line and the configuration say of the
// guests to run.
type guestOptions struct {
	config.Guest
	FirstStage string // rom or ipxe
	Chainload  bool
	Banner     bool // leave iPXE the two seconds in which it waits for Ctrl-B
	Count      int
	MAC        boot.MAC
	Until      condition
	PCAP       string
	Extra      []string // arguments for QEMU
	Attach     bool     // sit down at the console once the guest is ready
}

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
	firmware, nic, rom, firstStage, accel, machine string
	memory, appendix, until, mac                   string
	pcap, output                                   string
	cpus, count                                    int
	timeout                                        time.Duration
	dryRun, chainload, banner                      bool
	segment                                        segmentFlags
}

func (f *guestFlags) register(cmd *cobra.Command) {
	d := config.Default().Guest
	fs := cmd.Flags()
	fs.StringVar(&f.firmware, "firmware", d.Firmware, "`bios|uefi`")
	fs.StringVar(&f.machine, "machine", d.Machine, "QEMU machine `TYPE`, q35 or pc")
	fs.StringVar(&f.nic, "nic", d.NIC, "QEMU network device `MODEL`, such as e1000")
	fs.StringVar(&f.rom, "rom", d.ROM, "the NIC's boot ROM: `default|none`; none leaves UEFI to its own PXE")
	fs.StringVar(&f.firstStage, "first-stage", "rom", "`rom|ipxe`; ipxe starts iPXE as the kernel, faster, BIOS only")
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
	fs.StringVarP(&f.output, "output", "o", "text", "`text|json`: what is printed on standard output")
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
		{"firmware", &o.Firmware, f.firmware}, {"machine", &o.Machine, f.machine}, {"nic", &o.NIC, f.nic},
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
	oneOf("firmware", o.Firmware, "bios", "uefi")
	oneOf("rom", o.ROM, "default", "none")
	oneOf("accel", o.Accel, "auto", "kvm", "tcg")
	oneOf("first-stage", o.FirstStage, "rom", "ipxe")
	oneOf("output", f.output, "text", "json")
	if o.FirstStage == "ipxe" && o.Firmware == "uefi" {
		bad(errors.New("--first-stage ipxe starts guests with BIOS only: leave it out, or use --firmware bios"))
	}
	if o.FirstStage == "rom" && o.Firmware == "bios" && o.ROM == "none" {
		bad(errors.New("--rom none leaves a BIOS guest nothing to boot from: use --firmware uefi, or --first-stage ipxe"))
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
