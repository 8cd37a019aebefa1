package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/every-channel/ecboot/images"
	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/timeline"
	"github.com/every-channel/ecboot/vmm"
)

// consoleTail is how many lines of the console a failure shows.
const consoleTail = 12

// consoleSearched is how many of its last lines are searched for a cause.
const consoleSearched = 200

// booter boots guests on a stack that serves, and watches them.
type booter struct {
	options  guestOptions
	stack    *stack
	segment  *segment
	files    *bootFiles
	httpPort uint16
	stdout   io.Writer
	stderr   io.Writer
	live     *live
	attached bool // the user has been at the console
}

// guest is one machine of a run.
type guest struct {
	mac     boot.MAC
	spec    vmm.Spec
	machine *vmm.Machine
	start   time.Time
}

// boot starts all guests, waits until each has reached what it is to reach, and
// stops them.
func (b *booter) boot(ctx context.Context) (report, error) {
	accel, why, err := b.options.accel(ctx)
	if err != nil {
		return report{}, err
	}
	doc := report{Schema: reportSchema, Firmware: b.options.Firmware, Accel: string(accel), AccelNote: why}
	if why != "" {
		fmt.Fprintf(b.stderr, "%s: %s\n", accel, why)
	}
	guests := make([]*guest, 0, b.options.Count)
	for i, mac := range b.options.macs() {
		spec, err := guestSpec(b.options, accel, i, mac, b.files.ipxe, scriptURL(b.segment.Address.Addr(), b.httpPort, mac))
		if err != nil {
			return doc, err
		}
		guests = append(guests, &guest{mac: mac, spec: spec})
	}

	var label func(string) string
	if len(guests) > 1 {
		label = func(machine string) string { return machine }
	}
	b.live = newLive(b.stderr, time.Now(), b.stack.timeline, label, 0, nil)
	defer b.live.stop()
	results := make([]guestReport, len(guests))
	errs := make([]error, len(guests))
	var all sync.WaitGroup
	for i, g := range guests {
		all.Go(func() { results[i], errs[i] = b.bootGuest(ctx, g) })
	}
	all.Wait()
	b.live.stop() // that we end the guests is no news
	for _, g := range guests {
		all.Go(func() { b.stop(g) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return doc, err
	}
	doc.guestReport = worst(results)
	doc.Outcome = doc.guestReport.Outcome
	if len(results) > 1 {
		doc.Guests = results
	}
	return doc, nil
}

// worst is the report that decides the outcome of a run.
func worst(list []guestReport) guestReport {
	rank := map[string]int{outcomeReady: 0, outcomeTimeout: 1, outcomeFailed: 2}
	w := list[0]
	for _, g := range list[1:] {
		if rank[g.Outcome] > rank[w.Outcome] || rank[g.Outcome] == rank[w.Outcome] && g.TotalMS > w.TotalMS {
			w = g
		}
	}
	return w
}

// scriptURL is where a machine finds its iPXE script.
func scriptURL(server netip.Addr, port uint16, mac boot.MAC) string {
	return httpURL(server, port, boot.ScriptPath(mac))
}

// ipxeScript is what iPXE runs when QEMU starts it as a kernel. It names the
// configurator: ifconf alone would also wait for IPv6.
const ipxeScript = "#!ipxe\nifconf -c dhcp && chain %s || shell\n"

// guestSpec describes guest number i for QEMU.
func guestSpec(o guestOptions, accel vmm.Accel, i int, mac boot.MAC, ipxe, scriptURL string) (vmm.Spec, error) {
	nic := vmm.NIC{Model: o.NIC, MAC: mac.HardwareAddr(), BootIndex: 1, Pcap: numbered(o.PCAP, i)}
	spec := vmm.Spec{
		Name: guestName(i), Arch: o.Arch, Machine: o.machineType(), CPUs: o.CPUs, MemoryMiB: o.Memory.MiB(),
		Accel: accel, Extra: o.Extra,
	}
	if o.ROM == "none" {
		nic.ROM = vmm.ROMNone
	}
	switch o.FirstStage {
	case stageIPXE:
		nic.ROM, nic.BootIndex = vmm.ROMNone, 0
		spec.Kernel, spec.InitrdData = ipxe, fmt.Appendf(nil, ipxeScript, scriptURL)
	case stagePXE, stageHTTP:
		nic.ROM, spec.NoPXE = vmm.ROMNone, o.FirstStage == stageHTTP
	}
	if o.Firmware != "bios" {
		wanted := vmm.Wanted{Arch: o.Arch, Machine: spec.Machine, SecureBoot: o.SecureBoot}
		if o.Firmware == "uefi-ia32" {
			wanted.Arch = vmm.Arch386
		}
		uefi, err := vmm.FindUEFI(wanted)
		if err != nil {
			return spec, withCode(exitEnvironment, err)
		}
		spec.UEFI = uefi
	}
	spec.NICs = []vmm.NIC{nic}
	return spec, nil
}

// numbered puts a guest's number into a file name, for all but the first.
func numbered(file string, i int) string {
	if file == "" || i == 0 {
		return file
	}
	ext := filepath.Ext(file)
	return fmt.Sprintf("%s-%d%s", strings.TrimSuffix(file, ext), i+1, ext)
}

// bootGuest takes one guest from its start to the outcome and leaves it running.
func (b *booter) bootGuest(ctx context.Context, g *guest) (_ guestReport, err error) {
	tap, err := b.segment.lan.Tap(g.mac)
	if err != nil {
		return guestReport{}, withCode(exitEnvironment, err)
	}
	reported, broken, cancel := b.watch(g.mac)
	defer cancel()
	g.start = time.Now()
	g.machine, err = vmm.Start(ctx, g.spec, vmm.Options{
		Taps: []*os.File{tap.File}, Timeline: b.stack.timeline, Machine: g.mac.String(),
		SkipBanner: !b.options.Banner,
	})
	tap.File.Close() // QEMU has it now, and the tap goes with QEMU
	if err != nil {
		return guestReport{}, withCode(exitEnvironment, err)
	}
	limit, cancelLimit := context.WithTimeout(ctx, b.options.Timeout)
	defer cancelLimit()
	outcome := b.await(limit, g, reported, broken)
	if ctx.Err() != nil {
		return guestReport{}, errors.New("interrupted")
	}
	result := b.describe(g, outcome)
	if b.options.Attach && outcome == outcomeReady {
		return result, b.attach(ctx, g, result)
	}
	return result, nil
}

// watch tells when a machine has reported and when its boot has broken.
func (b *booter) watch(mac boot.MAC) (reported, broken <-chan struct{}, cancel func()) {
	machine := mac.String()
	r, f := make(chan struct{}), make(chan struct{})
	var onceR, onceF sync.Once
	starts := 0
	cancel = b.stack.timeline.Watch(func(e timeline.Event) {
		switch {
		case e.Machine != machine:
		case e.Stage == timeline.Userland:
			onceR.Do(func() { close(r) })
		case e.Stage == timeline.Firmware:
			if starts++; starts > timeline.Restarts {
				onceF.Do(func() { close(f) })
			}
		case e.Stage == timeline.Panic, e.Phase == timeline.Fail && fatal[e.Stage]:
			onceF.Do(func() { close(f) })
		}
	})
	return r, f, cancel
}

// fatal are the stages that iPXE does not try again: it stops at its shell.
// Firmware repeats a TFTP transfer that broke.
var fatal = map[timeline.Stage]bool{timeline.Script: true, timeline.Kernel: true, timeline.Initrd: true, timeline.Linux: true}

// await waits for what the guest is to do and returns the outcome.
func (b *booter) await(ctx context.Context, g *guest, reported, broken <-chan struct{}) string {
	matched := make(chan struct{})
	switch until := b.options.Until; until.kind {
	case untilConsole:
		go func() {
			if g.machine.Console().Expect(ctx, until.console) == nil {
				close(matched)
			}
		}()
		reported = matched
	case untilPoweroff:
		reported = nil
	}
	select {
	case <-reported:
		return outcomeReady
	case <-broken:
		return outcomeFailed
	case <-g.machine.Done():
		if b.options.Until.kind == untilPoweroff && g.machine.Exit().Reason == vmm.GuestShutdown {
			return outcomeReady
		}
		return outcomeFailed
	case <-ctx.Done():
		return outcomeTimeout
	}
}

// describe reports on a guest as it is now.
func (b *booter) describe(g *guest, outcome string) guestReport {
	total := time.Since(g.start)
	steps := timeline.Steps(g.start, b.stack.timeline.Events(g.mac.String()))
	r := guestReport{MAC: g.mac.String(), Outcome: outcome, Stages: steps, TotalMS: total.Milliseconds()}
	if addr, ok := b.segment.addressOf(g.mac); ok {
		r.Address = addr.String()
	}
	if outcome == outcomeReady {
		return r
	}
	console := g.machine.Console().Tail(consoleSearched)
	d := timeline.Diagnose(steps, console)
	console = console[max(0, len(console)-consoleTail):]
	r.Failure = &failure{Stage: d.Stage, Cause: d.Cause, Console: console, Command: vmm.ShellQuote(g.machine.Command())}
	select {
	case <-g.machine.Done():
		r.Failure.Exit = g.machine.Exit().String()
	default:
	}
	return r
}

// attach shows the boot and gives the console to the user, until the escape
// key or the guest's end.
func (b *booter) attach(ctx context.Context, g *guest, result guestReport) error {
	b.attached = true
	b.live.stop()
	fmt.Fprintln(b.stderr)
	timeline.Waterfall(b.stderr, result.Stages, time.Duration(result.TotalMS)*time.Millisecond)
	fmt.Fprintf(b.stderr, "\nthis is the guest's console; %s leaves it and ends the guest\n\n", escapeKeyName)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		<-g.machine.Done()
		cancel()
	}()
	restore, err := rawTerminal(os.Stdin)
	if err != nil {
		return err
	}
	detach := g.machine.Console().Attach(&fromUserland{w: b.stdout})
	defer detach()
	err = typeInto(ctx, os.Stdin, g.machine.Console())
	restore()
	fmt.Fprintln(b.stderr)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// fromUserland leaves out of the console what came before the booted system: the
// firmware and iPXE clear the screen, and the timeline has told their story.
type fromUserland struct {
	w      io.Writer
	before []byte
	begun  bool
}

func (f *fromUserland) Write(p []byte) (int, error) {
	if f.begun {
		return f.w.Write(p)
	}
	f.before = append(f.before, p...)
	if at := bytes.Index(f.before, []byte(userlandMarker)); at >= 0 {
		f.begun = true
		if _, err := f.w.Write(f.before[at:]); err != nil {
			return 0, err
		}
		f.before = nil
	}
	return len(p), nil
}

// userlandMarker begins the line that the guest program prints first.
const userlandMarker = "ecboot: userland after"

// stop ends a guest that has not ended by itself. What it booted lives in its
// memory, so there is nothing that it could lose, unless QEMU was given more:
// then it is asked to shut down first.
func (b *booter) stop(g *guest) {
	if g.machine == nil {
		return // it never started
	}
	if len(b.options.Extra) > 0 {
		g.machine.Stop(context.Background())
		return
	}
	g.machine.Kill()
	<-g.machine.Done()
}

// dryRun prints the QEMU command of every guest. The descriptors that it names
// are opened by run: the console, the monitor, the UEFI variables, the tap.
func dryRun(ctx context.Context, w io.Writer, o guestOptions, server netip.Addr, port uint16) error {
	accel, _, err := o.accel(ctx)
	if err != nil {
		return err
	}
	var ipxe string
	if o.FirstStage == "ipxe" {
		extracted, err := extractImages()
		if err != nil {
			return err
		}
		ipxe = extracted.Path(images.IPXELinuxName)
	}
	for i, mac := range o.macs() {
		spec, err := guestSpec(o, accel, i, mac, ipxe, scriptURL(server, port, mac))
		if err != nil {
			return err
		}
		argv, err := spec.Command("")
		if err != nil {
			return withCode(exitUsage, err)
		}
		if _, err := fmt.Fprintln(w, vmm.ShellQuote(argv)); err != nil {
			return err
		}
	}
	return nil
}
