package vmm

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/every-channel/ecboot/internal/timeline"
)

// Options is what Start needs beside the machine itself.
type Options struct {
	QEMU     string             // program; empty: DefaultQEMU of the architecture
	Taps     []*os.File         // one for each of Spec.NICs that needs one; the caller may close them when Start returns
	Machine  string             // who the machine is in the timeline: a MAC address
	Timeline *timeline.Recorder // nil: nothing is recorded
	Log      *slog.Logger       // nil: silent
	// SkipBanner presses a key when iPXE offers its command line, which it
	// otherwise does for two seconds in each boot and each chainload.
	SkipBanner bool
	Grace      time.Duration // how long Stop waits for each of two requests to the guest; 0: 10 s
	// Credential is who QEMU runs as; nil: as this process. It is handed
	// open files, so it needs no right to any.
	Credential *Credential
	// ScreenGroup is whose members may connect to Spec.VNC, beside this
	// process's user; 0: nobody.
	ScreenGroup int
	Cgroup      string // directory of the cgroup (v2) that QEMU and its helpers start in; empty: this process's
}

// Credential is a user in numbers.
type Credential struct {
	UID, GID uint32
	Groups   []uint32 // more groups
}

const (
	startTimeout = time.Minute // for QEMU's monitor to answer, on a machine that others keep busy
	defaultGrace = 10 * time.Second
	quitTimeout  = 5 * time.Second
	// drainTimeout is how long the console and the monitor may outlive
	// QEMU, if a process that QEMU started holds them.
	drainTimeout = 2 * time.Second
	// panicTimeout is how long a kernel that panics may print before its
	// machine ends.
	panicTimeout = 3 * time.Second
)

// Machine is a QEMU process, from Start to its end.
type Machine struct {
	opts    Options
	spec    Spec
	argv    []string
	proc    *process
	console *Console
	qmp     *qmp
	vnc     *screen // nil without a screen
	helpers []*helper
	done    chan struct{}

	mu       sync.Mutex
	firmware bool   // it has given a sign of life since the last reset, or there is none
	linux    bool   // a kernel runs since the last reset
	panicked bool   // the kernel has given up
	panic    string // and said this
	shutdown string // the reason in QEMU's SHUTDOWN event
	broken   string // why the machine cannot go on
	full     string // image for which the host has no room; empty: there is room
	pauses   int    // for want of room
	killed   bool   // by Kill
	resets   int
	exit     Exit // valid once done is closed

	complaint string // of a helper that ended early; valid once done is closed
}

// Start runs the machine and returns when its CPUs run. ctx is for starting
// only: a machine that has started runs until it ends, is stopped or killed,
// or this process dies, by whatever cause.
func Start(ctx context.Context, spec Spec, opts Options) (*Machine, error) {
	if n := spec.taps(); len(opts.Taps) != n {
		return nil, fmt.Errorf("%d taps for %d NICs: each NIC needs one", len(opts.Taps), n)
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Grace == 0 {
		opts.Grace = defaultGrace
	}
	qemu, err := findQEMU(opts.QEMU, spec.Arch)
	if err != nil {
		return nil, err
	}
	if spec, err = spec.resolve(opts); err != nil {
		return nil, err
	}
	argv, err := spec.Command(qemu)
	if err != nil {
		return nil, err
	}
	if c := opts.Credential; c != nil && spec.accel() == AccelKVM {
		if opts.Credential, err = c.withKVM("/dev/kvm"); err != nil {
			return nil, err
		}
	}
	m := &Machine{opts: opts, spec: spec, argv: argv, done: make(chan struct{}), firmware: spec.microvm()}
	if err := m.launch(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := m.begin(ctx); err != nil {
		m.Kill()
		<-m.done
		return nil, m.explain(ctx, err)
	}
	return m, nil
}

// explain says why the machine did not start: err, or what says more.
func (m *Machine) explain(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		if m.complaint != "" {
			return fmt.Errorf("QEMU does not start: %s", m.complaint)
		}
		if stderr := m.exit.Stderr; stderr != "" {
			return fmt.Errorf("QEMU does not start: %s", m.nameImages(stderr))
		}
	}
	return fmt.Errorf("QEMU does not start: %w", err)
}

// nameImages puts the paths of images where QEMU knows descriptors only.
func (m *Machine) nameImages(text string) string {
	l := m.spec.layout()
	name := func(descriptor, path string) {
		if fd := l.fd(descriptor); fd != 0 && path != "" {
			text = regexp.MustCompile(fmt.Sprintf(`/dev/fdset/%d\b`, fd)).ReplaceAllLiteralString(text, path)
		}
	}
	name("vars", m.spec.VarsFile)
	for i := range m.spec.Disks {
		for _, n := range m.spec.Disks[i].nodes(i) {
			name(n.name, n.path)
		}
	}
	return text
}

// launch starts the process and everything that listens to it.
func (m *Machine) launch(ctx context.Context) error {
	s, err := m.supply(ctx)
	defer s.close()
	if err != nil {
		s.abandon()
		return err
	}
	l := m.spec.layout()
	s.addTaps(m.spec.NICs, m.opts.Taps)
	files, err := s.inOrder(l)
	if err != nil {
		s.abandon()
		return err
	}
	began := time.Now()
	m.proc, err = startProcess(launch{argv: m.argv, files: files, credential: m.opts.Credential, cgroup: m.opts.Cgroup})
	if err != nil {
		s.abandon()
		return err
	}
	m.helpers = s.helpers
	for _, h := range m.helpers {
		go m.watchHelper(h)
	}
	m.record(timeline.Event{At: began, Stage: timeline.Start, Detail: m.describe()})
	m.console = newConsole(s.console)
	m.console.watchers[-1] = m.onLine
	if m.opts.SkipBanner {
		m.console.prompt = m.skipBanner()
	}
	m.qmp = newQMP(s.qmp)
	events := make(chan struct{})
	go m.console.run()
	go func() {
		defer close(events)
		for e, ok := m.qmp.next(); ok; e, ok = m.qmp.next() {
			m.onEvent(e)
		}
	}()
	if m.vnc = s.vnc; m.vnc != nil {
		go m.vnc.serve(m.qmp)
	}
	go m.supervise(events)
	return nil
}

// begin negotiates with the monitor and lets the CPUs run.
func (m *Machine) begin(ctx context.Context) error {
	if err := m.qmp.handshake(ctx); err != nil {
		return err
	}
	return m.qmp.execute(ctx, "cont", nil, nil)
}

func (m *Machine) describe() string {
	firmware := ", BIOS, "
	switch {
	case m.spec.UEFI != (UEFI{}):
		firmware = ", UEFI, "
	case m.spec.microvm():
		firmware = ", "
	}
	return m.spec.machineType() + firmware + string(m.spec.accel())
}

// supervise waits for QEMU's end and for the last of what it said.
func (m *Machine) supervise(events <-chan struct{}) {
	<-m.proc.done
	for _, h := range m.helpers {
		// One that ended well has seen QEMU's end, maybe before we did.
		if said := h.complaint(); said != "" && !h.proc.cmd.ProcessState.Success() {
			m.complaint = cmp.Or(m.complaint, said)
		}
		h.proc.kill()
		<-h.proc.done
	}
	if m.vnc != nil {
		m.vnc.close()
	}
	// What is still in the sockets is read before their end shows; only a
	// process that inherited them could keep them open.
	deadline := time.Now().Add(drainTimeout)
	_ = m.console.conn.SetReadDeadline(deadline)
	_ = m.qmp.conn.SetReadDeadline(deadline)
	<-m.console.done
	<-events
	m.mu.Lock()
	m.exit = m.judge()
	exit := m.exit
	m.mu.Unlock()
	m.record(timeline.Event{Stage: timeline.Exit, Detail: exit.String()})
	m.opts.Log.Info("machine ended", "machine", m.opts.Machine, "exit", exit.String())
	close(m.done)
}

// kernelPanic is how Linux begins and ends its last words. A user who prints
// an old log should not end the machine, so only the start of a line counts.
var (
	linuxVersion = regexp.MustCompile(`Linux version (\S+)`)
	kernelPanic  = regexp.MustCompile(`^(?:\[ *\d+\.\d+\](?:\[[^\]]*\])? )?(---\[ end )?Kernel panic - not syncing(?:: (.*))?`)
)

// firmwareSign tells firmware that starts anew from the last line of the system
// that asked for the reset.
var firmwareSign = regexp.MustCompile(`SeaBIOS|BdsDxe|UEFI|iPXE`)

// onLine looks at each line of the console. It runs within the Console, which
// it must not call.
func (m *Machine) onLine(line string) {
	var events []timeline.Event
	m.mu.Lock()
	if !m.firmware && strings.TrimSpace(line) != "" && (m.resets == 0 || firmwareSign.MatchString(line)) {
		m.firmware = true
		events = append(events, timeline.Event{Stage: timeline.Firmware, Detail: strings.TrimSpace(line)})
	}
	if v := linuxVersion.FindStringSubmatch(line); v != nil && !m.linux {
		m.linux = true
		events = append(events, timeline.Event{Stage: timeline.Linux, Detail: v[1]})
	}
	m.mu.Unlock()
	for _, e := range events {
		m.record(e)
	}
	if p := kernelPanic.FindStringSubmatch(line); p != nil {
		m.onPanic(p[2])
		if p[1] != "" {
			go m.applyPanicPolicy()
		}
	}
}

// skipBanner returns what looks at unfinished lines for iPXE's banner and
// answers each once. Any key but Ctrl-B means no.
func (m *Machine) skipBanner() func(string) {
	answered := false
	return func(line string) {
		offered := strings.HasSuffix(line, "Press Ctrl-B for the iPXE command line...")
		if offered && !answered {
			go func() { _, _ = m.console.Write([]byte(" ")) }() // unheard, it is offered for its two seconds
		}
		answered = offered
	}
}

// onPanic notes, once, that the kernel has given up.
func (m *Machine) onPanic(why string) {
	m.mu.Lock()
	first := !m.panicked
	if first {
		m.panicked, m.panic = true, why
	}
	m.mu.Unlock()
	if !first {
		return
	}
	m.record(timeline.Event{Stage: timeline.Panic, Detail: why})
	time.AfterFunc(panicTimeout, m.applyPanicPolicy)
}

// applyPanicPolicy does what QEMU does by itself when the guest has a driver
// for pvpanic, as few do.
func (m *Machine) applyPanicPolicy() {
	if m.spec.OnPanic == PanicPauses {
		_ = m.qmp.execute(context.Background(), "stop", nil, nil) // it fails when QEMU has ended
		return
	}
	if m.quit() != nil {
		m.proc.kill()
	}
}

// onEvent acts on what QEMU says.
func (m *Machine) onEvent(e event) {
	var data struct {
		Guest  bool   `json:"guest"`
		Reason string `json:"reason"`
		// Of BLOCK_IO_ERROR:
		NoSpace bool   `json:"nospace"`
		Action  string `json:"action"`
		Node    string `json:"node-name"`
	}
	_ = json.Unmarshal(e.Data, &data) // an event without these is handled by its name
	switch e.Name {
	case "RESET":
		m.mu.Lock()
		m.resets++
		m.firmware, m.linux = m.spec.microvm(), false
		m.mu.Unlock()
		m.opts.Log.Info("machine was reset", "machine", m.opts.Machine, "by", data.Reason)
	case "SHUTDOWN":
		m.mu.Lock()
		m.shutdown = data.Reason
		m.mu.Unlock()
	case "GUEST_PANICKED":
		m.onPanic("reported through pvpanic")
	case "BLOCK_IO_ERROR":
		if data.NoSpace && data.Action == "stop" {
			m.onFull(data.Node)
		}
	case "STOP":
		m.onStop()
	}
}

// onStop finds out why the CPUs stand still: that somebody paused them and
// that they cannot go on is the same event.
func (m *Machine) onStop() {
	status, err := m.Status(context.Background())
	if err != nil {
		return // QEMU has ended, which says more
	}
	m.mu.Lock()
	full := m.full
	m.mu.Unlock()
	if status == "internal-error" || status == "io-error" && full == "" {
		m.fail("the guest stands still with " + status)
	}
}

// fail ends a machine that cannot go on.
func (m *Machine) fail(why string) {
	m.mu.Lock()
	m.broken = cmp.Or(m.broken, why)
	m.mu.Unlock()
	m.proc.kill()
}

// quit asks QEMU, and not the guest, to end.
func (m *Machine) quit() error {
	return m.qmp.execute(context.Background(), "quit", nil, nil)
}

func (m *Machine) record(e timeline.Event) {
	e.Machine = m.opts.Machine
	m.opts.Timeline.Record(e)
}

// Console is the machine's serial port.
func (m *Machine) Console() *Console { return m.console }

// Command is the command that runs, program first.
func (m *Machine) Command() []string { return slices.Clone(m.argv) }

// PID is the process id of QEMU.
func (m *Machine) PID() int { return m.proc.cmd.Process.Pid }

// Execute runs a command on QEMU's monitor (QMP). args is marshalled to its
// arguments and may be nil; what it returns is unmarshalled into result unless
// that is nil. A command that gets no answer fails after 10 seconds.
func (m *Machine) Execute(ctx context.Context, command string, args, result any) error {
	return m.qmp.execute(ctx, command, args, result)
}

// Status is QEMU's run state: running, paused, guest-panicked, …; shutdown from
// the moment on in which it begins to end.
func (m *Machine) Status(ctx context.Context) (string, error) {
	if m.ending() {
		return "shutdown", nil // it closes its images, and answers nobody
	}
	var status struct {
		Status string `json:"status"`
	}
	err := m.qmp.execute(ctx, "query-status", nil, &status)
	return status.Status, err
}

func (m *Machine) ending() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.shutdown != ""
}

// Reset restarts the guest as its reset button does, at once.
func (m *Machine) Reset(ctx context.Context) error {
	return m.qmp.execute(ctx, "system_reset", nil, nil)
}

// Done is closed when QEMU has ended and all it said has been read.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Exit waits for the machine's end and tells how it came.
func (m *Machine) Exit() Exit {
	<-m.done
	return m.exit
}

// Kill ends QEMU at once. It does not wait: see Done.
func (m *Machine) Kill() {
	m.mu.Lock()
	m.killed = true
	m.mu.Unlock()
	m.proc.kill()
}

// How is what it took to stop a machine.
type How string

// From gentle to rough.
const (
	StoppedItself   How = "it had ended already"
	StoppedPowerOff How = "power button"
	StoppedSecond   How = "power button, pressed again"
	StoppedQuit     How = "told QEMU to quit"
	StoppedKill     How = "killed QEMU"
)

// Stop ends the machine: it presses the power button, once more if that does
// not help within Options.Grace, then ends QEMU. It returns when QEMU is gone
// and says which of these did it. When ctx is done the guest is not waited for
// any longer.
func (m *Machine) Stop(ctx context.Context) How {
	select {
	case <-m.done:
		return StoppedItself
	default:
	}
	if m.ending() && m.wait(context.Background(), quitTimeout) {
		return StoppedItself
	}
	if m.listens(ctx) {
		for _, how := range []How{StoppedPowerOff, StoppedSecond} {
			if m.qmp.execute(ctx, "system_powerdown", nil, nil) != nil {
				break
			}
			if m.wait(ctx, m.opts.Grace) {
				return how
			}
		}
	}
	if m.quit() == nil && m.wait(context.Background(), quitTimeout) {
		return StoppedQuit
	}
	m.Kill()
	<-m.done
	return StoppedKill
}

// listens reports whether the guest may feel its power button: its CPUs run
// and its kernel has not given up.
func (m *Machine) listens(ctx context.Context) bool {
	m.mu.Lock()
	panicked := m.panicked
	m.mu.Unlock()
	if panicked {
		return false
	}
	status, err := m.Status(ctx)
	return err == nil && status == "running"
}

// wait reports whether the machine ends in time.
func (m *Machine) wait(ctx context.Context, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-m.done:
		return true
	case <-ctx.Done():
	case <-timer.C:
	}
	return false
}

// Reason is why a machine ended.
type Reason string

// The reasons.
const (
	GuestShutdown Reason = "guest-shutdown" // the guest switched itself off
	GuestReset    Reason = "guest-reset"    // the guest restarted and QEMU was told to end then
	GuestPanic    Reason = "guest-panic"    // its kernel gave up
	Quit          Reason = "quit"           // QEMU was told to
	Killed        Reason = "killed"         // by a signal, ours or another's
	Failed        Reason = "failed"         // QEMU could not go on
)

// Exit is how a machine ended.
type Exit struct {
	Reason Reason
	Detail string         // in words; may be empty
	Code   int            // QEMU's exit code, -1 if a signal ended it
	Signal syscall.Signal // that ended QEMU; 0 if none did
	Stderr string         // the end of QEMU's own messages
	Resets int            // how often the machine was reset while it ran
}

// String is the reason with its detail.
func (e Exit) String() string {
	if e.Detail == "" {
		return string(e.Reason)
	}
	return string(e.Reason) + ": " + e.Detail
}

// judge finds the reason. What the guest did counts before how QEMU ended,
// because we end QEMU ourselves when the guest cannot go on. m.mu is held.
func (m *Machine) judge() Exit {
	state := m.proc.cmd.ProcessState
	e := Exit{Code: state.ExitCode(), Stderr: m.proc.stderr.String(), Resets: m.resets}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		e.Signal = ws.Signal()
	}
	outside := e.Signal == syscall.SIGKILL || e.Signal == syscall.SIGTERM || e.Signal == syscall.SIGINT || e.Signal == syscall.SIGHUP
	switch {
	case m.broken != "":
		e.Reason, e.Detail = Failed, m.broken
		if line := firstLine(e.Stderr); line != "" {
			e.Detail += ": " + line
		}
	case m.panicked:
		e.Reason, e.Detail = GuestPanic, m.panic
	case m.shutdown == "guest-shutdown", m.shutdown == "guest-reset", m.shutdown == "guest-panic":
		e.Reason = Reason(m.shutdown)
	case m.shutdown == "host-qmp-quit":
		e.Reason = Quit
	case m.killed:
		e.Reason = Killed
	case m.shutdown == "host-signal":
		e.Reason, e.Detail = Killed, "a signal told QEMU to end"
	case outside:
		e.Reason, e.Detail = Killed, "by signal "+e.Signal.String()
	case e.Signal != 0:
		e.Reason, e.Detail = Failed, strings.TrimSuffix("QEMU crashed with "+e.Signal.String()+": "+lastLine(e.Stderr), ": ")
	case e.Code == 0:
		e.Reason = Quit
	default:
		e.Reason, e.Detail = Failed, strings.TrimSuffix(fmt.Sprintf("QEMU's exit code is %d: %s", e.Code, lastLine(e.Stderr)), ": ")
	}
	return e
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

func lastLine(s string) string { return s[strings.LastIndexByte(s, '\n')+1:] }
