package scope

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/every-channel/ecboot/internal/systemdtest"
)

func contextThatIsOver(t *testing.T) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), time.Millisecond)
}

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=%s</listen><auth>EXTERNAL</auth>
<policy context="default"><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy></busconfig>`

// startBus runs a real bus for the length of a test, which is the system's then.
func startBus(t *testing.T) (address string) {
	t.Helper()
	program, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("needs dbus-daemon: run make deps-test")
	}
	dir := t.TempDir()
	conf := filepath.Join(dir, "conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, busConfig, filepath.Join(dir, "bus")), 0o644); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread() // the bus ends with it
	cmd := exec.Command(program, "--config-file="+conf, "--nofork", "--nopidfile", "--nosyslog", "--print-address")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	address, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	address = strings.TrimSpace(address)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
	return address
}

// manager stands in for systemd: it moves processes to cgroups as systemd does,
// sets no limits, and notes what it was told.
type manager struct {
	t    *testing.T
	conn *dbus.Conn
	dir  string // of the slice

	mu     sync.Mutex
	calls  []string
	failed bool   // units that have ended are in this state
	result string // of the next job
}

type transient struct {
	Name  string
	Value dbus.Variant
}

type auxiliary struct {
	Name       string
	Properties []transient
}

func startManager(t *testing.T, all []hierarchy, with ...func(*manager)) *manager {
	t.Helper()
	conn, err := dbus.Connect(startBus(t))
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(h hierarchy) bool { return h.unified })
	m := &manager{t: t, conn: conn, dir: filepath.Join(all[i].dir, fmt.Sprintf("ecboottest%d.slice", os.Getpid())), result: "done"}
	for _, change := range with {
		change(m)
	}
	if err := os.Mkdir(m.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		if err := removeTree(m.dir); err != nil {
			t.Error(err)
		}
	})
	if err := conn.Export(m, "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"); err != nil {
		t.Fatal(err)
	}
	if err := conn.ExportSubtree(properties{m}, "/org/freedesktop/systemd1/unit", "org.freedesktop.DBus.Properties"); err != nil {
		t.Fatal(err)
	}
	if r, err := conn.RequestName("org.freedesktop.systemd1", dbus.NameFlagDoNotQueue); err != nil || r != dbus.RequestNameReplyPrimaryOwner {
		t.Fatal(r, err)
	}
	return m
}

func (m *manager) note(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls = append(m.calls, fmt.Sprintf(format, args...))
}

func (m *manager) told() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	calls := m.calls
	m.calls = nil
	return calls
}

// StartTransientUnit has systemd's signature: (ssa(sv)a(sa(sv))) → o.
func (m *manager) StartTransientUnit(name, mode string, list []transient, _ []auxiliary) (dbus.ObjectPath, *dbus.Error) {
	m.note("start %s %s", name, mode)
	dir := filepath.Join(m.dir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", dbus.MakeFailedError(err)
	}
	for _, p := range list {
		m.note("%s %s", p.Name, p.Value)
		if p.Name != "PIDs" {
			continue
		}
		for _, pid := range p.Value.Value().([]uint32) {
			if err := (step{filepath.Join(dir, "cgroup.procs"), fmt.Sprint(pid)}).take(); err != nil {
				return "", dbus.MakeFailedError(err)
			}
		}
	}
	job := dbus.ObjectPath("/org/freedesktop/systemd1/job/12")
	return job, m.finish(job, name)
}

func (m *manager) finish(job dbus.ObjectPath, unit string) *dbus.Error {
	if err := m.conn.Emit("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager.JobRemoved", uint32(12), job, unit, m.result); err != nil {
		return dbus.MakeFailedError(err)
	}
	return nil
}

func (m *manager) KillUnit(name, who string, signal int32) *dbus.Error {
	m.note("kill %s %s %d", name, who, signal)
	if err := kill(filepath.Join(m.dir, name)); err != nil {
		return dbus.MakeFailedError(err)
	}
	return nil
}

func (m *manager) ResetFailedUnit(name string) *dbus.Error {
	m.note("reset %s", name)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failed = false
	return nil
}

// properties are those of units.
type properties struct{ m *manager }

func (p properties) Get(msg dbus.Message, _, name string) (dbus.Variant, *dbus.Error) {
	m := p.m
	if name != "ActiveState" {
		return dbus.Variant{}, dbus.MakeFailedError(errors.New("no such property"))
	}
	path, _ := msg.Headers[dbus.FieldPath].Value().(dbus.ObjectPath)
	dirs, _ := filepath.Glob(filepath.Join(m.dir, "*.scope"))
	for _, dir := range dirs {
		if !strings.HasSuffix(string(path), escapeLabel(filepath.Base(dir))) {
			continue
		}
		if len(members(dir)) > 0 {
			return dbus.MakeVariant("active"), nil
		}
		_ = removeTree(dir)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed {
		return dbus.MakeVariant("failed"), nil
	}
	return dbus.MakeVariant("inactive"), nil
}

// escapeLabel is sd_bus_path_encode(3)'s.
func escapeLabel(s string) string {
	var out strings.Builder
	for _, c := range []byte(s) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' {
			out.WriteByte(c)
		} else {
			fmt.Fprintf(&out, "_%02x", c)
		}
	}
	return out.String()
}

func TestSystemdMakesAScope(t *testing.T) {
	all := needCgroups(t)
	m := startManager(t, all, func(m *manager) { m.failed = true }) // as one of that name before
	h := Host{systemd: true}
	g := Guest{Name: "web-1", StopTimeout: time.Minute}
	keeper := sleeper(t)
	s, err := h.Join(t.Context(), g, keeper.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(m.dir, "ecboot-web-1.scope")
	if s.Unit != "ecboot-web-1.scope" || s.Cgroup != filepath.Join(dir, inner) {
		t.Errorf("scope %+v", s)
	}
	if _, err := os.Stat(s.Cgroup); err != nil {
		t.Error(err)
	}
	want := []string{
		"reset ecboot-web-1.scope",
		"start ecboot-web-1.scope fail",
		`Description "Guest web-1 of ecboot"`,
		`Slice "ecboot.slice"`,
		fmt.Sprintf("PIDs @au [%d]", keeper.Process.Pid),
		"Delegate true",
		`CollectMode "inactive-or-failed"`,
		"KillSignal 28",
		`Before ["ecboot.service"]`,
		`After ["local-fs.target", "remote-fs.target", "zfs-mount.service", "network.target"]`,
		"TimeoutStopUSec @t 75000000",
	}
	if diff := cmp.Diff(want, m.told()); diff != "" {
		t.Error(diff)
	}

	ctx, cancel := contextThatIsOver(t)
	defer cancel()
	if _, err := h.Join(ctx, g, sleeper(t).Process.Pid); err == nil {
		t.Error("a second keeper joins")
	}
	if told := m.told(); len(told) > 0 {
		t.Errorf("for a second keeper, systemd was told %q", told)
	}

	if err := h.Remove(t.Context(), g.Name); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"kill ecboot-web-1.scope all 9"}, m.told()); diff != "" {
		t.Error(diff)
	}
	if err := keeper.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("what was left: %v", err)
	}
	if err := h.Remove(t.Context(), g.Name); err != nil || len(m.told()) > 0 {
		t.Errorf("removing it again: %v", err)
	}
}

func TestSystemdIsToldTheLimits(t *testing.T) {
	var got []string
	for _, p := range (Guest{Name: "x", Limits: Limits{CPUPercent: 150, Memory: 1 << 31, Tasks: 512, IOWeight: 50}}).properties(1) {
		if strings.HasPrefix(p.Value.String(), "@t") {
			got = append(got, p.Name+" "+p.Value.String())
		}
	}
	want := []string{"CPUQuotaPerSecUSec @t 1500000", "MemoryMax @t 2147483648", "TasksMax @t 512", "IOWeight @t 50"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestSystemdCannotEnforceALimit: the stand-in overlooks limits, as systemd does
// with those that no controller serves.
func TestSystemdCannotEnforceALimit(t *testing.T) {
	all := needCgroups(t)
	for _, h := range all {
		if h.unified && slices.Contains(h.controllers, "memory") {
			t.Skip("needs a host whose cgroup v2 has no memory controller")
		}
	}
	startManager(t, all)
	keeper := sleeper(t)
	_, err := Host{systemd: true}.Join(t.Context(), Guest{Name: "web", Limits: Limits{Memory: 1 << 30}}, keeper.Process.Pid)
	if err == nil || !strings.HasPrefix(err.Error(), "limit memory: this host cannot enforce it") {
		t.Errorf("error %v", err)
	}
	keeper.Process.Kill()
	keeper.Wait()
}

func TestSystemdRefuses(t *testing.T) {
	startManager(t, needCgroups(t), func(m *manager) { m.result = "canceled" })
	keeper := sleeper(t)
	_, err := Host{systemd: true}.Join(t.Context(), Guest{Name: "web"}, keeper.Process.Pid)
	if err == nil || !strings.Contains(err.Error(), "the job is canceled: 'journalctl -u ecboot-web.scope'") {
		t.Errorf("error %v", err)
	}
	keeper.Process.Kill()
	keeper.Wait()
}

func TestThereIsNoBus(t *testing.T) {
	if Here().systemd {
		t.Skip("needs a host without systemd")
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+filepath.Join(t.TempDir(), "none"))
	_, err := Host{systemd: true}.Join(t.Context(), Guest{Name: "web"}, os.Getpid())
	if err == nil || !strings.Contains(err.Error(), "speak to systemd") {
		t.Errorf("error %v", err)
	}
}

// TestContainerOfSystemd runs TestRealSystemd where systemd is.
func TestContainerOfSystemd(t *testing.T) {
	if Here().systemd {
		t.Skip("needs a host without systemd; with it, TestRealSystemd does the same")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	console := systemdtest.Run(t, self+" -test.v -test.run '^TestRealSystemd$'\n", self)
	if !strings.Contains(console, "--- PASS: TestRealSystemd") {
		t.Error(console)
	}
	for line := range strings.Lines(console) {
		if strings.Contains(line, "without ") {
			t.Log(strings.TrimSpace(line))
		}
	}
}

// TestRealSystemd is for a host, or a container, that systemd runs.
func TestRealSystemd(t *testing.T) {
	h := Here()
	if !h.systemd || os.Geteuid() != 0 {
		t.Skip("needs systemd as the first process, and root")
	}
	show := func(unit, property string) string {
		t.Helper()
		out, err := exec.Command("systemctl", "show", "--value", "--property", property, unit).Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	g := Guest{Name: fmt.Sprintf("test-%d.é", os.Getpid()), StopTimeout: time.Minute}
	unit := UnitName(g.Name)
	t.Cleanup(func() { h.Remove(context.Background(), g.Name) }) // that of the test has ended then

	// A keeper that stops when it is told to, beside what does not mind.
	keeper, bystander := exec.Command("sh", "-c", `trap "echo stops; exit" WINCH; echo began; while :; do sleep 0.1; done`), sleeper(t)
	out, err := keeper.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := keeper.Start(); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewScanner(out)
	said.Scan()
	s, err := h.Join(t.Context(), g, keeper.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if s.Unit != unit {
		t.Errorf("unit %s", s.Unit)
	}
	if err := (step{filepath.Join(s.Cgroup, "cgroup.procs"), fmt.Sprint(bystander.Process.Pid)}).take(); err != nil {
		t.Fatal(err)
	}
	for property, want := range map[string]string{
		"ActiveState": "active", "Slice": Slice, "Delegate": "yes", "KillSignal": "28", "TimeoutStopUSec": "1min 15s",
		"Description": "Guest " + g.Name + " of ecboot", "Before": "ecboot.service shutdown.target", "CollectMode": "inactive-or-failed",
	} {
		got := strings.Fields(show(unit, property))
		if property == "Before" {
			slices.Sort(got)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s is %s, want %s", property, got, want)
		}
	}
	stopped := exec.Command("systemctl", "stop", unit)
	if err := stopped.Start(); err != nil {
		t.Fatal(err)
	}
	if said.Scan(); said.Text() != "stops" {
		t.Errorf("told to stop, the keeper says %q, %v", said.Text(), said.Err())
	}
	if err := keeper.Wait(); err != nil {
		t.Error(err)
	}
	// The other one is there still; what is left of a guest is ended.
	if err := h.Remove(t.Context(), g.Name); err != nil {
		t.Error(err)
	}
	if err := bystander.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("what was left: %v", err)
	}
	stopped.Wait()
	if state := show(unit, "LoadState"); state != "not-found" {
		t.Errorf("the unit is %s", state)
	}
	if _, err := os.Stat(filepath.Dir(s.Cgroup)); err == nil {
		t.Errorf("%s is left", s.Cgroup)
	}

	// At once, under the same name, with what limits this kernel has.
	hierarchies, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		limits        Limits
		file, want    string // of cgroup v2
		old, oldWants string // of v1
	}{
		{Limits{CPUPercent: 150}, "cpu.max", "150000 100000", "cpu.cfs_quota_us", "150000"},
		{Limits{Memory: 64 << 20}, "memory.max", "67108864", "memory.limit_in_bytes", "67108864"},
		{Limits{Tasks: 10}, "pids.max", "10", "pids.max", "10"},
		{Limits{IOWeight: 50}, "io.weight", "default 50", "", ""},
	} {
		g.Limits = tt.limits
		member := sleeper(t)
		if _, err := h.Join(t.Context(), g, member.Process.Pid); err != nil {
			if !strings.Contains(err.Error(), "this host cannot enforce it") {
				t.Error(err)
			}
			t.Logf("without %s: %v", tt.file, err)
		} else {
			var got []string
			for _, h := range hierarchies {
				file, want := tt.file, tt.want
				if !h.unified {
					file, want = tt.old, tt.oldWants
				}
				if b, err := os.ReadFile(filepath.Join(h.dir, Slice, unit, file)); err == nil {
					got = append(got, strings.TrimSpace(string(b)))
					if got[0] != want {
						t.Errorf("%s is %q, want %q", file, got[0], want)
					}
				}
			}
			if len(got) != 1 {
				t.Errorf("%s is %q", tt.file, got)
			}
		}
		if err := h.Remove(t.Context(), g.Name); err != nil {
			t.Error(err)
		}
	}
}
