package vmm

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

//go:generate sh -c "as --64 -o probe.o probe.S && objcopy -O binary -j .text probe.o probe.bin && rm probe.o"
//go:embed probe.bin
var probeCode []byte

const (
	// A processor needs a tenth of a second for the test guest and QEMU
	// about as long to start. What takes ten seconds is no processor, or a
	// machine so busy that KVM would be of little use.
	probeTimeout = 10 * time.Second
	probePassed  = 33 // QEMU's exit code when the test guest came to its end
	probeFailed  = 35 // when it calculated wrongly
)

// probeSteps are what the test guest is at after the letters that it has
// printed.
var probeSteps = []string{
	"before its first instruction",
	"in real mode",
	"while it entered long mode",
	"at vector instructions",
	"in a loop of 20 million turns, which a processor does in a moment",
	"while it waited for a timer interrupt",
	"at its end",
}

// ResolveAccel decides how machines run. KVM is used only after a test guest
// has run with it, because a KVM that can be opened may still be unable to run
// anything; the outcome is kept in cacheDir (empty: nowhere) for as long as the
// host runs. why says in a sentence why auto chose as it did, and is empty for
// kvm and tcg. It is an error to want a KVM that does not work.
func ResolveAccel(ctx context.Context, want Accel, cacheDir string) (accel Accel, why string, err error) {
	switch want {
	case AccelTCG:
		return AccelTCG, "", nil
	case AccelKVM, AccelAuto:
	default:
		return "", "", fmt.Errorf("accelerator %q: use auto, kvm or tcg", want)
	}
	qemu, err := findQEMU("", ArchAMD64)
	if err != nil {
		return "", "", err
	}
	p := prober{device: "/dev/kvm", qemu: qemu, cacheDir: cacheDir}
	trouble, err := p.trouble(ctx)
	switch {
	case err != nil:
		return "", "", err
	case trouble == "" && want == AccelAuto:
		return AccelKVM, "KVM ran its test guest", nil
	case trouble == "":
		return AccelKVM, "", nil
	case want == AccelKVM:
		return "", "", errors.New(trouble + "; use --accel auto or tcg, which are slower and work")
	}
	return AccelTCG, trouble, nil
}

// prober finds out whether KVM works.
type prober struct {
	device   string
	qemu     string
	cacheDir string
}

// trouble says what is wrong with KVM, or nothing. The error is that of a
// cancelled ctx, or of a QEMU that cannot be run.
func (p *prober) trouble(ctx context.Context) (string, error) {
	dev, err := os.OpenFile(p.device, os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "there is no " + p.device + ": the host has no KVM, or its module is not loaded (modprobe kvm_intel or kvm_amd)", nil
	case errors.Is(err, fs.ErrPermission):
		return "no right to open " + p.device + ": become a member of the group kvm, or root", nil
	case err != nil:
		return "KVM cannot be opened: " + err.Error(), nil
	}
	dev.Close()

	key, err := p.key()
	if err != nil {
		return "", err
	}
	if v, ok := p.recall(key); ok {
		return v, nil
	}
	trouble, err := runProbe(ctx, p.qemu, "-machine", "q35", "-accel", "kvm", "-cpu", "host")
	if err != nil {
		return "", err
	}
	if trouble != "" {
		trouble = "KVM is present but its test guest died: " + trouble
	}
	p.remember(verdict{key, trouble})
	return trouble, nil
}

// probeKey is everything on which the outcome depends.
type probeKey struct {
	Boot     string // of the host
	QEMU     string
	Modified time.Time // of QEMU
	Device   string    // the node of KVM, which its module makes anew
	Guest    int       // size of the test guest
}

// verdict is the file in the cache.
type verdict struct {
	Key     probeKey
	Trouble string // empty when KVM works
}

func (p *prober) key() (probeKey, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return probeKey{}, err
	}
	qemu, err := os.Stat(p.qemu)
	if err != nil {
		return probeKey{}, err
	}
	key := probeKey{Boot: strings.TrimSpace(string(boot)), QEMU: p.qemu, Modified: qemu.ModTime().UTC(), Guest: len(probeCode)}
	if dev, err := os.Stat(p.device); err == nil {
		if st, ok := dev.Sys().(*syscall.Stat_t); ok {
			key.Device = fmt.Sprintf("%d.%d.%d.%d", st.Rdev, st.Ino, st.Ctim.Sec, st.Ctim.Nsec)
		}
	}
	return key, nil
}

func (p *prober) file() string { return filepath.Join(p.cacheDir, "kvm.json") }

func (p *prober) recall(key probeKey) (trouble string, ok bool) {
	if p.cacheDir == "" {
		return "", false
	}
	data, err := os.ReadFile(p.file())
	if err != nil {
		return "", false
	}
	var v verdict
	if json.Unmarshal(data, &v) != nil || v.Key != key {
		return "", false
	}
	return v.Trouble, true
}

// remember keeps the outcome if it can: without it the next start takes a
// moment longer.
func (p *prober) remember(v verdict) {
	if p.cacheDir == "" {
		return
	}
	data, err := json.Marshal(v)
	if err != nil || os.MkdirAll(p.cacheDir, 0o755) != nil {
		return
	}
	f, err := os.CreateTemp(p.cacheDir, ".kvm-*")
	if err != nil {
		return
	}
	defer os.Remove(f.Name())
	_, err = f.Write(append(data, '\n'))
	if errors.Join(err, f.Close()) == nil {
		_ = os.Rename(f.Name(), p.file())
	}
}

// rom is the test guest as a BIOS image: the code, and at the reset vector, 16
// bytes before the end, a jump to it.
func rom(code []byte) []byte {
	image := make([]byte, 64<<10)
	copy(image, code)
	copy(image[0xfff0:], []byte{0xe9, 0x0d, 0x00}) // jmp 0, relative to 0xfff3
	return image
}

// runProbe runs the test guest on the machine that args describe and says what
// went wrong with it, or nothing.
func runProbe(ctx context.Context, qemu string, args ...string) (trouble string, err error) {
	image, err := memoryFile("probe", rom(probeCode))
	if err != nil {
		return "", err
	}
	defer image.Close()
	theirs, ours, err := socketpair()
	if err != nil {
		return "", err
	}
	defer ours.Close()

	argv := append([]string{qemu, "-nodefaults", "-no-user-config", "-display", "none", "-m", "64"}, args...)
	argv = append(argv, "-bios", fdPath(firstFD),
		"-chardev", fmt.Sprintf("socket,id=steps,fd=%d", firstFD+1), "-device", "isa-debugcon,iobase=0xe9,chardev=steps",
		"-device", "isa-debug-exit,iobase=0xf4,iosize=4")
	stuck := make(chan struct{})
	proc, err := startProcess(launch{argv: argv, files: []*os.File{image, theirs}, watch: &internalError{seen: stuck}})
	theirs.Close()
	if err != nil {
		return "", err
	}
	steps := make(chan []byte, 1)
	go func() { steps <- readAll(ours) }()
	limit := time.NewTimer(probeTimeout)
	defer limit.Stop()
	hung := false
	select {
	case <-proc.done:
	case <-stuck: // QEMU only pauses the guest
	case <-limit.C:
		hung = true
	case <-ctx.Done():
	}
	proc.kill()
	<-proc.done
	_ = ours.SetReadDeadline(time.Now().Add(drainTimeout))
	at := probeSteps[min(len(<-steps), len(probeSteps)-1)]

	switch code := proc.cmd.ProcessState.ExitCode(); {
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case hung:
		return "it hung " + at, nil
	case code == probePassed:
		return "", nil
	case code == probeFailed:
		return "it calculated wrongly " + at, nil
	}
	for line := range strings.Lines(proc.stderr.String()) {
		if line = strings.TrimPrefix(strings.TrimSpace(line), filepath.Base(qemu)+": "); !strings.HasPrefix(line, "warning: ") {
			return line + " (" + at + ")", nil
		}
	}
	return proc.cmd.ProcessState.String() + " " + at, nil
}

func readAll(conn net.Conn) []byte {
	b, _ := io.ReadAll(io.LimitReader(conn, 64)) // QEMU's death may come as an error
	return b
}

// internalError watches what QEMU prints for the message with which it pauses
// a guest that KVM cannot run.
type internalError struct {
	seen chan struct{}
	once sync.Once
	line []byte
}

func (w *internalError) Write(p []byte) (int, error) {
	w.line = append(w.line, p...)
	if bytes.Contains(w.line, []byte("KVM internal error")) {
		w.once.Do(func() { close(w.seen) })
	}
	if over := len(w.line) - 4096; over > 0 {
		w.line = w.line[over:]
	}
	return len(p), nil
}
