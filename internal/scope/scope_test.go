package scope

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// asLarge is set for a process of this test that is to hold much memory and to
// have several threads.
const asLarge = "ECBOOT_TEST_LARGE"

func TestMain(m *testing.M) {
	if os.Getenv(asLarge) == "" {
		os.Exit(m.Run())
	}
	large := make([]byte, 512<<20)
	for i := 0; i < len(large); i += os.Getpagesize() {
		large[i] = 1
	}
	for range 8 {
		go func() {
			runtime.LockOSThread()
			select {}
		}()
	}
	fmt.Print("x")
	time.Sleep(time.Minute) // it is killed before
	runtime.KeepAlive(large)
}

func TestUnitName(t *testing.T) {
	for name, want := range map[string]string{
		"web":        "ecboot-web.scope",
		"web-1.lan":  "ecboot-web-1.lan.scope",
		".hidden":    `ecboot-\x2ehidden.scope`,
		"a b/c\\d@é": `ecboot-a\x20b\x2fc\x5cd\x40\xc3\xa9.scope`,
	} {
		if got := UnitName(name); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
}

// TestUnitNameIsSystemds compares with systemd's own program, which escapes
// dashes, too.
func TestUnitNameIsSystemds(t *testing.T) {
	program, err := exec.LookPath("systemd-escape")
	if err != nil {
		t.Skip("needs systemd-escape")
	}
	for _, name := range []string{"web_1", "a b", ".x", "x.y:z", `q"'$\`, "ö"} {
		out, err := exec.Command(program, "--", name).Output()
		if got, want := escape(name), strings.TrimSpace(string(out)); err != nil || got != want {
			t.Errorf("%q: %s, systemd-escape says %s, %v", name, got, want, err)
		}
	}
}

func TestWrongGuests(t *testing.T) {
	for _, g := range []Guest{
		{},
		{Name: strings.Repeat("é", 80)}, // escaped, it is four times as long
		{Name: "x", Limits: Limits{Memory: -1}},
		{Name: "x", Limits: Limits{Tasks: -1}},
		{Name: "x", Limits: Limits{IOWeight: 10001}},
	} {
		if _, err := (Host{}).Join(t.Context(), g, os.Getpid()); err == nil {
			t.Errorf("%+v is taken", g)
		}
	}
	if err := (Host{}).Remove(t.Context(), ""); err == nil {
		t.Error("all guests are removed")
	}
}

const (
	unifiedInfo = "36 25 0:30 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
	hybridInfo  = `31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
42 31 0:38 / /mnt/again rw,relatime - cgroup2 cgroup2 rw
`
)

func TestPlan(t *testing.T) {
	for _, tt := range []struct {
		name, mountinfo, controllers string // controllers of v2
		limits                       Limits
		want                         string
	}{
		{"cgroup v2", unifiedInfo, "cpu io memory pids", Limits{}, `
			mkdir /sys/fs/cgroup/ecboot
			mkdir /sys/fs/cgroup/ecboot/web
			/sys/fs/cgroup/ecboot/web/cgroup.procs = 7
			mkdir /sys/fs/cgroup/ecboot/web/guest`},
		{"cgroup v2 with limits", unifiedInfo, "cpu io memory pids", Limits{CPUPercent: 150, Memory: 1 << 30, Tasks: 99, IOWeight: 50}, `
			mkdir /sys/fs/cgroup/ecboot
			/sys/fs/cgroup/cgroup.subtree_control = +cpu +memory +pids +io
			/sys/fs/cgroup/ecboot/cgroup.subtree_control = +cpu +memory +pids +io
			mkdir /sys/fs/cgroup/ecboot/web
			/sys/fs/cgroup/ecboot/web/cpu.max = 150000 100000
			/sys/fs/cgroup/ecboot/web/memory.max = 1073741824
			/sys/fs/cgroup/ecboot/web/pids.max = 99
			/sys/fs/cgroup/ecboot/web/io.weight = 50
			/sys/fs/cgroup/ecboot/web/cgroup.procs = 7
			mkdir /sys/fs/cgroup/ecboot/web/guest`},
		{"both: v1 has the controllers", hybridInfo, "", Limits{CPUPercent: 50, Memory: 4096}, `
			mkdir /sys/fs/cgroup/cpu,cpuacct/ecboot
			mkdir /sys/fs/cgroup/cpu,cpuacct/ecboot/web
			mkdir /sys/fs/cgroup/memory/ecboot
			mkdir /sys/fs/cgroup/memory/ecboot/web
			mkdir /sys/fs/cgroup/unified/ecboot
			mkdir /sys/fs/cgroup/unified/ecboot/web
			/sys/fs/cgroup/cpu,cpuacct/ecboot/web/cpu.cfs_period_us = 100000
			/sys/fs/cgroup/cpu,cpuacct/ecboot/web/cpu.cfs_quota_us = 50000
			/sys/fs/cgroup/memory/ecboot/web/memory.limit_in_bytes = 4096
			/sys/fs/cgroup/cpu,cpuacct/ecboot/web/cgroup.procs = 7
			/sys/fs/cgroup/memory/ecboot/web/cgroup.procs = 7
			/sys/fs/cgroup/unified/ecboot/web/cgroup.procs = 7
			mkdir /sys/fs/cgroup/unified/ecboot/web/guest`},
		{"no cgroups", "", "", Limits{}, ``},
		{"no cgroups, and a limit", "", "", Limits{Memory: 1}, `error: limit memory: this host cannot enforce it: no control group has the controller memory; leave it out`},
		{"a controller is missing", unifiedInfo, "cpu memory", Limits{Tasks: 5}, `error: limit tasks: this host cannot enforce it: no control group has the controller pids; leave it out`},
		{"v1 does not weigh IO", strings.ReplaceAll(hybridInfo, "memory", "io"), "", Limits{IOWeight: 5}, `error: limit io_weight: this host cannot enforce it: no control group has the controller io; leave it out`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			all := parseHierarchies(tt.mountinfo)
			for i := range all {
				if all[i].unified {
					all[i].controllers = strings.Fields(tt.controllers)
				}
			}
			steps, err := Guest{Name: "web", Limits: tt.limits}.plan(all, 7)
			var got []string
			for _, s := range steps {
				if s.value == "" {
					got = append(got, "mkdir "+s.path)
				} else {
					got = append(got, s.path+" = "+s.value)
				}
			}
			if err != nil {
				got = append(got, "error: "+err.Error())
			}
			want := strings.ReplaceAll(strings.TrimSpace(tt.want), "\t", "")
			if diff := cmp.Diff(want, strings.Join(got, "\n")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestCheckSaysWhatJoinWould, on this host.
func TestCheckSaysWhatJoinWould(t *testing.T) {
	needCgroups(t)
	h, name := Host{}, fmt.Sprintf("check %d", os.Getpid())
	t.Cleanup(func() { h.Remove(context.Background(), name) }) // those of the test have ended then
	for _, l := range []Limits{{}, {CPUPercent: 50}, {Memory: 1 << 30}, {Tasks: 50}, {IOWeight: 50}, {IOWeight: 10001}} {
		g := Guest{Name: name, Limits: l}
		want := ""
		if _, err := h.Join(t.Context(), g, sleeper(t).Process.Pid); err != nil {
			want = err.Error()
		}
		got := ""
		if err := h.Check(g); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%+v: %q, and Join says %q", l, got, want)
		}
		if err := h.Remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
}

// TestForesee has files in the place of cgroups.
func TestForesee(t *testing.T) {
	const control = "cgroup.subtree_control"
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"that of all processes", map[string]string{"cgroup.procs": "1\n2\n", control: ""}, ""},
		{"one without processes", map[string]string{"cgroup.type": "domain\n", "cgroup.procs": "", control: ""}, ""},
		{"one with processes", map[string]string{"cgroup.type": "domain\n", "cgroup.procs": "0\n", control: "cpu\n"}, "DIR/cgroup.subtree_control: device or resource busy: processes are in DIR itself, so its controllers cannot be passed on: leave out the limits, or let systemd run"},
		{"one that has passed them on", map[string]string{"cgroup.type": "domain threaded\n", "cgroup.procs": "1\n", control: "cpu memory pids\n"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range tt.files {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			all := []hierarchy{{dir: dir, unified: true, controllers: []string{"cpu", "memory"}}}
			got := ""
			if err := (Guest{Name: "web", Limits: Limits{CPUPercent: 50, Memory: 1 << 30}}).foresee(all); err != nil {
				got = strings.ReplaceAll(err.Error(), dir, "DIR")
			}
			if tt.want == "" && got != "" || !strings.HasSuffix(got, tt.want) {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

func TestForeseeWhatIsReadOnly(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount")
	}
	dir := t.TempDir()
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // and its mounts end with it
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = unix.Mount("tmpfs", dir, "tmpfs", unix.MS_RDONLY, "")
		}
		if err == nil {
			g := Guest{Name: "web", Limits: Limits{Memory: 1 << 30}}
			err = g.foresee([]hierarchy{{dir: dir, unified: true, controllers: []string{"memory"}}})
		}
		failed <- err
	}()
	if err, want := <-failed, "control group: mkdir "+dir+"/ecboot: read-only file system"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

// sleeper is a process that does nothing until the test ends.
func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe() // so it ends with this process, whatever happens
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	return cmd
}

func needCgroups(t *testing.T) []hierarchy {
	t.Helper()
	all, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	if (Guest{Name: "x"}).unified(all) == "" {
		t.Skip("needs cgroup v2")
	}
	for _, h := range all {
		if err := (step{path: filepath.Join(h.dir, "ecboot-test")}).take(); err != nil {
			t.Skip("needs root, and control groups that can be written: ", err)
		}
		os.Remove(filepath.Join(h.dir, "ecboot-test"))
	}
	return all
}

// place is where /proc says that a process is.
func place(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestCgroupsComeAndGo(t *testing.T) {
	all := needCgroups(t)
	h, g := Host{}, Guest{Name: fmt.Sprintf("test %d", os.Getpid())}
	t.Cleanup(func() { h.Remove(context.Background(), g.Name) }) // that of the test has ended then
	keeper := sleeper(t)
	s, err := h.Join(t.Context(), g, keeper.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if s.Cgroup != filepath.Join(g.unified(all), inner) || s.Unit != "" {
		t.Errorf("scope %+v", s)
	}
	want := "0::/ecboot/" + escape(g.Name) + "\n"
	if got := place(t, keeper.Process.Pid); !strings.Contains(got, want) {
		t.Errorf("the keeper is in\n%s, want %s", got, want)
	}
	// The guest has its own, and cgroups in it; and starts when the keeper is
	// a member of the one around it.
	guest := sleeper(t)
	deep := filepath.Join(s.Cgroup, "payload")
	for _, s := range []step{{path: deep}, {filepath.Join(deep, "cgroup.procs"), fmt.Sprint(guest.Process.Pid)}} {
		if err := s.take(); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Sweep(); err != nil {
		t.Error(err)
	}
	if got := place(t, keeper.Process.Pid); !strings.Contains(got, want) {
		t.Errorf("after Sweep, the keeper is in\n%s", got)
	}
	// The keeper is killed, and what it has started stays.
	keeper.Process.Kill()
	keeper.Wait()
	if err := h.Remove(t.Context(), g.Name); err != nil {
		t.Error(err)
	}
	if err := guest.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("what was left of the guest: %v", err)
	}
	noneLeft(t, all, g)
	if err := h.Remove(t.Context(), g.Name); err != nil {
		t.Errorf("removing it again: %v", err)
	}
}

// A process with several threads and much memory takes a while to end, in which
// it is in no list and its cgroup is busy.
func TestRemoveWaitsForAProcessThatEnds(t *testing.T) {
	all := needCgroups(t)
	h, g := Host{}, Guest{Name: fmt.Sprintf("test-large-%d", os.Getpid())}
	t.Cleanup(func() { h.Remove(context.Background(), g.Name) })
	for range 3 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), asLarge+"=1")
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.Join(t.Context(), g, cmd.Process.Pid); err != nil {
			t.Error(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil { // it has all of it then
			t.Error(err)
		}
		if err := h.Remove(t.Context(), g.Name); err != nil {
			t.Error(err)
		}
		cmd.Process.Kill()
		cmd.Wait()
	}
	noneLeft(t, all, g)
}

func noneLeft(t *testing.T, all []hierarchy, g Guest) {
	t.Helper()
	if dirs := groups(all, g.Name); len(dirs) > 0 {
		t.Errorf("left: %q", dirs)
	}
	for _, h := range all {
		// The guests of other tests come and go: for a moment it is empty.
		empty := func() bool {
			st, err := os.Stat(filepath.Join(h.dir, top))
			return err == nil && st.Sys().(*syscall.Stat_t).Nlink == 2 // itself, and no cgroup within
		}
		for until := time.Now().Add(patience); empty(); time.Sleep(pause) {
			if time.Now().After(until) {
				t.Errorf("left, and empty: %s", filepath.Join(h.dir, top))
				break
			}
		}
	}
}

// Guests start while others end, and while what is empty is swept.
func TestGuestsComeAndGoAtOnce(t *testing.T) {
	all := needCgroups(t)
	var h Host
	var guests sync.WaitGroup
	for i := range 4 {
		guests.Go(func() {
			g := Guest{Name: fmt.Sprintf("test-many-%d-%d", i, os.Getpid())}
			defer h.Remove(context.Background(), g.Name)
			for range 50 {
				keeper := sleeper(t)
				_, err := h.Join(t.Context(), g, keeper.Process.Pid)
				keeper.Process.Kill()
				keeper.Wait()
				if err = errors.Join(err, h.Remove(t.Context(), g.Name), h.Sweep()); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	guests.Wait()
	noneLeft(t, all, Guest{Name: "none"})
}

func TestFailedJoinLeavesNothing(t *testing.T) {
	all := needCgroups(t)
	gone := sleeper(t)
	gone.Process.Kill()
	gone.Wait()
	g := Guest{Name: fmt.Sprintf("test-gone-%d", os.Getpid())}
	if _, err := (Host{}).Join(t.Context(), g, gone.Process.Pid); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("error %v", err)
	}
	noneLeft(t, all, g)
}

// Its keeper has joined, and nothing of the guest runs yet.
func TestSweepLeavesAGuestThatStarts(t *testing.T) {
	needCgroups(t)
	h, g := Host{}, Guest{Name: fmt.Sprintf("test-starts-%d", os.Getpid())}
	t.Cleanup(func() { h.Remove(context.Background(), g.Name) }) // that of the test has ended then
	s, err := h.Join(t.Context(), g, sleeper(t).Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Sweep(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(s.Cgroup); err != nil {
		t.Error(err)
	}
}

func TestSweepRemovesWhatIsEmpty(t *testing.T) {
	all := needCgroups(t)
	h, g := Host{}, Guest{Name: fmt.Sprintf("test-sweep-%d", os.Getpid())}
	keeper := sleeper(t)
	if _, err := h.Join(t.Context(), g, keeper.Process.Pid); err != nil {
		t.Fatal(err)
	}
	keeper.Process.Kill()
	keeper.Wait()
	if err := h.Sweep(); err != nil {
		t.Error(err)
	}
	noneLeft(t, all, g)
}

func TestSecondKeeperIsRefused(t *testing.T) {
	needCgroups(t)
	h, g := Host{}, Guest{Name: fmt.Sprintf("test-twice-%d", os.Getpid())}
	t.Cleanup(func() { h.Remove(context.Background(), g.Name) }) // that of the test has ended then
	first, second := sleeper(t), sleeper(t)
	if _, err := h.Join(t.Context(), g, first.Process.Pid); err != nil {
		t.Fatal(err)
	}
	before := place(t, second.Process.Pid)
	ctx, cancel := contextThatIsOver(t)
	defer cancel()
	_, err := h.Join(ctx, g, second.Process.Pid)
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("processes %d are in", first.Process.Pid)) {
		t.Errorf("error %v", err)
	}
	if after := place(t, second.Process.Pid); after != before {
		t.Errorf("the second keeper is in\n%s", after)
	}
}

func TestLimitsHold(t *testing.T) {
	all := needCgroups(t)
	for _, tt := range []struct {
		name, script string // which goes on only if it is not limited
		limits       Limits
	}{
		{"tasks", "sleep 60 >/dev/null 2>&1 & sleep 60 >/dev/null 2>&1 &", Limits{Tasks: 2}},
		// tail keeps the whole of its last line, and this one is too long.
		{"memory", "head -c 100M /dev/zero | tail -n 1 >/dev/null", Limits{Memory: 32 << 20, CPUPercent: 200}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, g := Host{}, Guest{Name: fmt.Sprintf("test-%s-%d", tt.name, os.Getpid()), Limits: tt.limits}
			if _, err := g.plan(all, 0); err != nil {
				t.Skip("needs a kernel with the controllers: ", err)
			}
			t.Cleanup(func() { h.Remove(context.Background(), g.Name) }) // that of the test has ended then
			cmd := exec.Command("sh", "-c", "read -r joined\n"+tt.script+"\ntest $? = 0 && echo not limited")
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			cmd.Stdout = &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			_, err = h.Join(t.Context(), g, cmd.Process.Pid)
			fmt.Fprintln(in)
			in.Close()
			cmd.Wait() // how it ends is up to the shell
			if err != nil || out.Len() > 0 {
				t.Errorf("%s%v", &out, err)
			}
			if err := h.Remove(t.Context(), g.Name); err != nil {
				t.Error(err)
			}
			noneLeft(t, all, g)
		})
	}
}

func TestParseHierarchiesOfThisHost(t *testing.T) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range parseHierarchies(string(b)) {
		if _, err := os.Stat(filepath.Join(h.dir, "cgroup.procs")); err != nil && !os.IsPermission(err) {
			t.Errorf("%+v: %v", h, err)
		}
	}
}

func FuzzParseHierarchies(f *testing.F) {
	f.Add(unifiedInfo)
	f.Add(hybridInfo)
	f.Add(" - cgroup2 x rw\n1 2 3 4 5 - cgroup")
	f.Fuzz(func(t *testing.T, info string) {
		for _, h := range parseHierarchies(info) {
			if h.dir == "" {
				t.Errorf("%+v is nowhere", h)
			}
		}
	})
}
