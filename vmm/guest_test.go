package vmm

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/timeline"
)

// guest is a machine that runs testdata/guest.
type guest struct {
	*Machine
	t      *testing.T
	events *timeline.Recorder
	said   int // commands so far
}

// buildInit builds the guests' program once.
var buildInit = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "vmm-guest-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "init"), "./testdata/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	return os.ReadFile(filepath.Join(dir, "init"))
})

// initrd is an archive with the guests' program and modules.
func initrd(t *testing.T, modules ...string) []byte {
	t.Helper()
	program, err := buildInit()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	entry := func(name string, mode, rdev int, content []byte) {
		// The cpio format "newc" of the kernel's buffer-format.rst.
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00", 0, mode, 0, 0, 1, 0, len(content), 0, 0, rdev>>8, rdev&0xff, len(name)+1, 0, name)
		b.Write(make([]byte, -b.Len()&3))
		b.Write(content)
		b.Write(make([]byte, -b.Len()&3))
	}
	entry("dev", 0o040755, 0, nil)
	entry("dev/console", 0o020600, 5<<8|1, nil)
	entry("modules", 0o040755, 0, nil)
	for i, m := range modules {
		content, err := os.ReadFile(m)
		if err != nil {
			t.Fatal(err)
		}
		entry(fmt.Sprintf("modules/%02d-%s", i, filepath.Base(m)), 0o100644, 0, content)
	}
	entry("init", 0o100755, 0, program)
	entry("TRAILER!!!", 0, 0, nil)
	return b.Bytes()
}

// boot starts a machine up to the prompt of its init, with the kernel that the
// module pins unless spec names another.
func boot(t *testing.T, spec Spec, opts Options) *guest {
	t.Helper()
	if spec.Kernel == "" {
		spec.Kernel = kernel(t)
	}
	if spec.InitrdData == nil {
		spec.InitrdData = initrd(t)
	}
	if spec.MemoryMiB == 0 {
		spec.MemoryMiB = 256
	}
	spec.Append = "console=ttyS0 panic=-1"
	m, events := start(t, spec, opts)
	expect(t, m, "^guest is ready$")
	return &guest{Machine: m, t: t, events: events}
}

// do has the guest run a command and returns the outcome, "ok …" or "error …".
func (g *guest) do(words ...string) string {
	g.t.Helper()
	g.tell(words...)
	prefix := fmt.Sprintf("#%d ", g.said)
	expect(g.t, g.Machine, fmt.Sprintf("^##%d$", g.said)) // the answer's line is whole then
	lines := g.Console().Tail(1000)
	i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, prefix) })
	return strings.TrimSpace(strings.TrimPrefix(lines[i], prefix))
}

// tell does not wait for the outcome.
func (g *guest) tell(words ...string) {
	g.t.Helper()
	g.said++
	if _, err := g.Console().Write([]byte(strings.Join(words, "|") + "\n")); err != nil {
		g.t.Fatal(err)
	}
}

func (g *guest) want(outcome string, words ...string) {
	g.t.Helper()
	if got := g.do(words...); got != outcome {
		g.t.Errorf("%q: %s; want %s", words, got, outcome)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("it needs root")
	}
}

// The quick machine has its devices, and its power button ends it.
func TestMicroVM(t *testing.T) {
	t.Parallel()
	needQEMUImg(t)
	d := Disk{Path: filepath.Join(t.TempDir(), "disk"), Size: 16 << 20}
	ensure(t, d)
	g := boot(t, Spec{Machine: "microvm", Disks: []Disk{d}, NICs: []NIC{{MAC: mac1, User: true, Model: "virtio-net-pci"}}}, Options{Grace: time.Minute})
	g.want("ok", "put", "/dev/vda", "x", "1")
	g.want(`ok "xxxxxxxxxxxxxxxx"`, "get", "/dev/vda")
	g.want(`ok "52:54:00:00:00:01\n"`, "read", "/sys/class/net/eth0/address")
	if got := g.do("read", "/proc/mounts"); !strings.Contains(got, "proc /proc proc") {
		t.Errorf("mounts %s", got)
	}
	g.want(`ok "virtio_rng.0\n"`, "read", "/sys/class/misc/hw_random/rng_current")
	g.tell("button")
	expect(t, g.Machine, "^listening to [1-9]")
	if how := g.Stop(t.Context()); how != StoppedPowerOff {
		t.Errorf("stopped by %q", how)
	}
	if e := g.Exit(); e.Reason != GuestShutdown {
		t.Errorf("exit %+v", e)
	}
	if got := stages(g.events); !slices.Equal(got, []timeline.Stage{timeline.Start, timeline.Linux, timeline.Exit}) || g.events.Events(mac0)[0].Detail != "microvm, tcg" {
		t.Errorf("events %+v", g.events.Events(mac0))
	}
}
