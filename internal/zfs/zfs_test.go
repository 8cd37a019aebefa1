package zfs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const insideVar = "ECBOOT_ZFS_TEST_ROOT"

// TestMain runs the tests in a mount namespace of their own, under a root of
// their own: /guests, the daemon's socket and its list of pools are nobody
// else's, and all is gone with the last process.
func TestMain(m *testing.M) {
	if os.Geteuid() == 0 && os.Getenv(insideVar) == "" {
		fmt.Fprintln(os.Stderr, "own root:", isolate())
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// isolate returns only on error.
func isolate() error {
	wd, err := os.Getwd()
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	const root = "/run"
	entries, err := os.ReadDir("/")
	if err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for _, e := range entries {
		at := filepath.Join(root, e.Name())
		switch {
		case e.Name() == "run" || at == root+guestsDir:
		case e.Type() == os.ModeSymlink:
			to, _ := os.Readlink("/" + e.Name())
			err = os.Symlink(to, at)
		case e.IsDir():
			if err = os.Mkdir(at, 0o755); err == nil {
				err = unix.Mount("/"+e.Name(), at, "", unix.MS_BIND|unix.MS_REC, "")
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
	}
	for _, dir := range []string{"/run/lock", "/var/lib/zfs"} {
		if err := os.MkdirAll(root+"/run/lock", 0o755); err != nil {
			return err
		}
		if _, err := os.Stat(root + dir); err == nil {
			if err := unix.Mount("tmpfs", root+dir, "tmpfs", 0, ""); err != nil {
				return err
			}
		}
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	// The old root comes to lie over the new one, and is taken off it.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	// Mounts propagate, as under systemd, but not out of here.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return err
	}
	if err := os.Chdir(wd); err != nil {
		return err
	}
	return syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), insideVar+"=1"))
}

const hostDir = "/run/ecboot/zfs"

// pool is a real ZFS pool “tank” on a file, served by zfs-fuse.
type pool struct {
	t      *testing.T
	daemon *os.Process
}

func newPool(t *testing.T) *pool {
	t.Helper()
	if os.Getenv(insideVar) == "" {
		t.Skip("needs root for mounts")
	}
	exe := ""
	for _, name := range []string{"zfs-fuse", "/usr/sbin/zfs-fuse", "/sbin/zfs-fuse"} {
		if path, err := exec.LookPath(name); err == nil {
			exe = path
		}
	}
	if exe == "" {
		t.Skip("needs zfs-fuse: run make deps-test")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("needs /dev/fuse")
	}
	started, stop, gone := make(chan *os.Process), make(chan bool), make(chan bool)
	go func() {
		// The daemon dies with the thread that has started it, which is
		// this one's to the end.
		runtime.LockOSThread()
		cmd := exec.Command(exe, "--no-daemon", "--no-kstat-mount", "--pidfile", "/run/zfs-fuse.pid")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Error(err)
			close(started)
			close(gone)
			return
		}
		started <- cmd.Process
		<-stop
		cmd.Process.Kill()
		cmd.Wait()
		close(gone)
	}()
	p := &pool{t: t, daemon: <-started}
	if p.daemon == nil {
		t.FailNow()
	}
	t.Cleanup(func() {
		close(stop)
		<-gone
		p.unmountAll()
		for _, path := range []string{guestsDir, hostDir, "/run/disk", "/run/tank", "/run/zfs", "/var/lib/zfs/zpool.cache"} {
			if err := os.RemoveAll(path); err != nil {
				t.Error(err)
			}
		}
	})
	// It answers some milliseconds after its start, and tells nobody.
	for deadline := time.Now().Add(30 * time.Second); exec.Command(p.program("zpool"), "list").Run() != nil; {
		if time.Now().After(deadline) {
			t.Fatal("zfs-fuse does not answer")
		}
		time.Sleep(10 * time.Millisecond)
	}
	f, err := os.Create("/run/disk")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(64 << 20); err != nil {
		t.Fatal(err)
	}
	p.run("zpool", "create", "-m", "none", "tank", "/run/disk")
	return p
}

func (p *pool) program(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	return "/usr/sbin/" + name
}

func (p *pool) run(name string, args ...string) string {
	p.t.Helper()
	out, err := exec.Command(p.program(name), args...).CombinedOutput()
	if err != nil {
		p.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// mounted returns where datasets are mounted, as DATASET on PATH.
func (p *pool) mounted() (list []string) {
	p.t.Helper()
	all, err := readMounts()
	if err != nil {
		p.t.Fatal(err)
	}
	for _, m := range all {
		if m.fstype == "fuse.zfs" {
			list = append(list, m.source+" on "+m.path)
		}
	}
	slices.Sort(list)
	return list
}

// unmountAll is what a reboot of the host does to mounts.
func (p *pool) unmountAll() {
	for _, m := range p.mounted() {
		_, path, _ := strings.Cut(m, " on ")
		// Another may have taken this along.
		_ = unix.Unmount(path, unix.MNT_DETACH)
	}
}

func (p *pool) plan(entries ...Entry) Plan {
	p.t.Helper()
	plan, err := NewPlan(entries)
	if err != nil {
		p.t.Fatal(err)
	}
	return plan
}

// apply wants problems that contain these words, one each.
func (p *pool) apply(plan Plan, want ...string) {
	p.t.Helper()
	got, err := Host{Dir: hostDir}.Apply(p.t.Context(), plan)
	p.wantProblems("apply", got, err, want)
}

func (p *pool) check(plan Plan, want ...string) {
	p.t.Helper()
	got, err := Host{Dir: hostDir}.Check(p.t.Context(), plan)
	p.wantProblems("check", got, err, want)
}

func (p *pool) release(plan Plan, want ...string) {
	p.t.Helper()
	got, err := Host{Dir: hostDir}.Release(plan)
	p.wantProblems("release", got, err, want)
}

func (p *pool) wantProblems(what string, got []Problem, err error, want []string) {
	p.t.Helper()
	if err != nil {
		p.t.Fatalf("%s: %v", what, err)
	}
	if len(got) != len(want) {
		p.t.Fatalf("%s: got the problems %v, want %q", what, got, want)
	}
	for i := range want {
		if text := fmt.Sprint(got[i].Guests, " ", got[i].Text); !strings.Contains(text, want[i]) {
			p.t.Errorf("%s: got  %s\nwant %s", what, text, want[i])
		}
	}
}

func (p *pool) require(plan Plan, guest string, want string) {
	p.t.Helper()
	err := plan.Require(guest)
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		p.t.Errorf("require: got %v, want %q", err, want)
	}
}

func (p *pool) write(path string) {
	p.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(path), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

func (p *pool) wantFile(path string, want bool) {
	p.t.Helper()
	if _, err := os.Lstat(path); (err == nil) != want {
		p.t.Errorf("%s: %v, want it there: %v", path, err, want)
	}
}

func (p *pool) wantMounted(want ...string) {
	p.t.Helper()
	if got := p.mounted(); !slices.Equal(got, want) {
		p.t.Errorf("mounted is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestGuestsGetTheirDatasets(t *testing.T) {
	p := newPool(t)
	plan := p.plan(
		Entry{Guest: "db", Name: "/var", Pool: "tank", Dataset: "safe/guests/db var"},
		Entry{Guest: "db", Name: "/var/lib/data", Pool: "tank", Dataset: "safe/guests/db"},
		Entry{Guest: "db", Name: "/shared", Pool: "tank", Dataset: "shared"},
		Entry{Guest: "web", Name: "/shared/own", Pool: "tank", Dataset: "own"},
		Entry{Guest: "web", Name: "/shared", Pool: "tank", Dataset: "shared"},
		Entry{Guest: "web", Name: "/media", Pool: "tank", Dataset: "safe", HostMountpoint: "/run/media files"},
	)
	p.require(plan, "db", "guest db: zfs /shared: tank/shared is not mounted on /guests/db/shared")
	p.check(plan,
		"[db web] tank/shared does not exist", "[db] tank/safe/guests/db var does not exist", "[db] tank/safe/guests/db does not exist",
		"[web] tank/safe does not exist", "[web] tank/own does not exist",
		"[db] tank/shared is not mounted on /guests/db/shared", "[db] tank/safe/guests/db var is not",
		"[db] tank/safe/guests/db is not", "[web] tank/safe is not", "[web] tank/shared is not", "[web] tank/own is not")
	p.wantFile(guestsDir, false)

	p.apply(plan)
	all := []string{
		"tank/own on /guests/web/shared/own",
		"tank/safe on /run/media files",
		"tank/safe/guests/db on /guests/db/var/lib/data",
		"tank/safe/guests/db var on /guests/db/var",
		"tank/shared on /guests/db/shared",
		"tank/shared on /guests/web/shared",
	}
	p.wantMounted(all...)
	p.check(plan)
	p.require(plan, "db", "")
	p.require(plan, "web", "")
	if fi, _ := os.Stat(guestsDir); fi.Mode().Perm() != 0o700 {
		t.Errorf("%s has mode %v", guestsDir, fi.Mode())
	}
	p.write("/guests/db/shared/hello")
	p.wantFile("/guests/web/shared/hello", true)
	p.write("/guests/web/shared/own/secret")
	p.wantFile("/guests/db/shared/own/secret", false) // the mount of one guest only

	// Only what is missing is made.
	p.run("umount", "/guests/db/shared")
	p.check(plan, "[db] tank/shared is not mounted on /guests/db/shared")
	p.require(plan, "db", "tank/shared is not mounted")
	p.require(plan, "web", "")
	p.apply(plan)
	p.wantMounted(all...)
	p.apply(plan)
	p.wantMounted(all...)

	// After a reboot of the host.
	p.unmountAll()
	if err := os.RemoveAll(hostDir); err != nil {
		t.Fatal(err)
	}
	p.apply(plan)
	p.wantMounted(all...)
	p.wantFile("/guests/web/shared/hello", true)
	p.wantFile("/guests/web/shared/own/secret", true)

	// A dataset below one that ecboot has shown already.
	more := p.plan(
		Entry{Guest: "new", Name: "/below", Pool: "tank", Dataset: "own/below"},
		Entry{Guest: "new", Name: "/own", Pool: "tank", Dataset: "own"},
	)
	for range 2 {
		p.release(more)
		p.apply(more)
		p.wantMounted("tank/own on /guests/new/own", "tank/own/below on /guests/new/below")
		p.unmountAll()
	}
}

func TestRequireTakesNoPretence(t *testing.T) {
	p := newPool(t)
	plan := p.plan(Entry{Guest: "a", Name: "/x", Pool: "tank", Dataset: "a"})
	p.apply(plan)
	p.require(plan, "a", "")

	p.run("mount", "-t", "tmpfs", "tank/a", "/guests/a/x")
	p.require(plan, "a", "/guests/a/x has tank/a (tmpfs) mounted: unmount that with 'umount /guests/a/x'")
	p.check(plan, "[a] /guests/a/x has tank/a (tmpfs) mounted")
	p.apply(plan, "[a] /guests/a/x has tank/a (tmpfs) mounted")
	p.run("umount", "/guests/a/x")
	p.require(plan, "a", "")

	// The table of mounts still has the dataset's, which nobody reaches.
	p.run("mount", "-t", "tmpfs", "none", "/guests/a")
	p.require(plan, "a", "tank/a is not mounted on /guests/a/x")
	p.write("/guests/a/x/file")
	p.require(plan, "a", "tank/a is not mounted on /guests/a/x")
	p.run("umount", "/guests/a")

	// A directory of the right dataset is not the dataset.
	if err := os.Mkdir("/guests/a/x/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	p.run("mount", "--bind", "/guests/a/x/sub", "/guests/a/x")
	p.require(plan, "a", "/guests/a/x has /sub of tank/a (fuse.zfs) mounted")
	p.run("umount", "/guests/a/x")
	p.require(plan, "a", "")

	if err := p.daemon.Kill(); err != nil {
		t.Fatal(err)
	}
	// The kernel tells of its end by closing its files, a moment later.
	for deadline := time.Now().Add(30 * time.Second); plan.Require("a") == nil && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	p.require(plan, "a", "the daemon behind it has gone; start it again after 'umount /guests/a/x'")
}

func TestWhatIsInTheWayStays(t *testing.T) {
	p := newPool(t)
	plan := p.plan(
		Entry{Guest: "file", Name: "/x", Pool: "tank", Dataset: "a"},
		Entry{Guest: "fine", Name: "/x", Pool: "tank", Dataset: "a"},
		Entry{Guest: "full", Name: "/x", Pool: "tank", Dataset: "a"},
		Entry{Guest: "full", Name: "/x/in", Pool: "tank", Dataset: "b"},
		Entry{Guest: "link", Name: "/x", Pool: "tank", Dataset: "a"},
		Entry{Guest: "lost", Name: "/x", Pool: "rpool", Dataset: "a"},
	)
	p.write("/guests/full/x/precious")
	p.write("/guests/file/x")
	if err := errors.Join(os.Chmod(guestsDir, 0o755), os.MkdirAll("/guests/link", 0o755), os.MkdirAll("/run/elsewhere", 0o755), os.Symlink("/run/elsewhere", "/guests/link/x")); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"[lost] rpool/a: there is no pool rpool: 'zpool import rpool', or declare one that 'zpool list' shows",
		"[file] /guests/file/x is no directory: move it away",
		"[full] /guests/full/x is not empty, a mount would hide \"precious\": move what is in it",
		"[link] /guests/link/x goes through a symbolic link: declare the path that it leads to",
	}
	p.apply(plan, want...)
	p.wantMounted("tank/a on /guests/fine/x")
	p.wantFile("/guests/full/x/precious", true)
	p.wantFile("/guests/full/x/in", false) // made in a directory that is not the dataset
	for guest, words := range map[string]string{"fine": "", "file": "no directory", "full": "not mounted", "link": "symbolic link", "lost": "not mounted"} {
		p.require(plan, guest, words)
	}
	p.check(plan,
		want[0], want[1], want[2], "[full] tank/b is not mounted on /guests/full/x/in", want[3],
		"[lost] rpool/a is not mounted", "/guests has mode 0755, so users of the host reach set-uid programs")

	// Mended by hand, all but the pool.
	if err := errors.Join(os.Remove("/guests/full/x/precious"), os.Remove("/guests/file/x"), os.Remove("/guests/link/x"), os.Chmod(guestsDir, 0o700)); err != nil {
		t.Fatal(err)
	}
	p.apply(plan, want[0])
	p.check(plan, want[0], "[lost] rpool/a is not mounted")
}

// TestGuestCannotRedirect has a guest put a link where the host will mount.
func TestGuestCannotRedirect(t *testing.T) {
	p := newPool(t)
	outer := Entry{Guest: "a", Name: "/x", Pool: "tank", Dataset: "a"}
	p.apply(p.plan(outer))
	p.write("/run/precious/file")
	if err := os.Symlink("/run/precious", "/guests/a/x/in"); err != nil {
		t.Fatal(err)
	}
	p.apply(p.plan(outer, Entry{Guest: "a", Name: "/x/in/dir", Pool: "tank", Dataset: "b"}),
		"[a] /guests/a/x/in/dir goes through a symbolic link")
	// Nor does it help to be quick, between the look and the mount.
	if dir, err := openDir("/guests/a/x/in/dir"); err == nil || !strings.Contains(err.Error(), "/guests/a/x/in goes through a symbolic link") {
		t.Errorf("openDir: %v, %v", dir, err)
	}
	dir, err := openDir("/guests/a/x/held")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := errors.Join(os.Rename("/guests/a/x/held", "/guests/a/x/moved"), os.Symlink("/run/precious", "/guests/a/x/held"), graft("/guests/a/x", dir)); err != nil {
		t.Fatal(err)
	}
	p.wantMounted("tank/a on /guests/a/x", "tank/a on /guests/a/x/moved")
	p.run("umount", "/guests/a/x/moved")
	p.wantFile("/run/precious/file", true)
	p.wantFile("/run/precious/dir", false)
	p.wantMounted("tank/a on /guests/a/x")
}

func TestUsersDatasetsKeepTheirProperties(t *testing.T) {
	p := newPool(t)
	p.run("zfs", "create", "-o", "mountpoint=/run/data", "tank/data")
	p.run("zfs", "create", "-o", "mountpoint=/run/away", "-o", "canmount=noauto", "tank/away")
	p.run("zfs", "create", "-o", "mountpoint=legacy", "tank/legacy")
	p.run("zfs", "create", "tank/bare")
	p.run("zfs", "create", "tank/parent")
	p.run("zfs", "create", "tank/parent/child")
	p.write("/run/data/mine")
	properties := func() string { return p.run("zfs", "get", "-r", "-H", "-s", "local", "all", "tank/data") }
	before := properties()
	plan := p.plan(
		Entry{Guest: "a", Name: "/data", Pool: "tank", Dataset: "data"},
		Entry{Guest: "a", Name: "/away", Pool: "tank", Dataset: "away"},
		Entry{Guest: "a", Name: "/bare", Pool: "tank", Dataset: "bare"},
		Entry{Guest: "a", Name: "/below", Pool: "tank", Dataset: "data/below"},
		Entry{Guest: "a", Name: "/legacy", Pool: "tank", Dataset: "legacy"},
		Entry{Guest: "b", Name: "/parent", Pool: "tank", Dataset: "parent"},
	)
	p.apply(plan,
		"[a] tank/legacy: its mountpoint is set to legacy, and zfs-fuse needs a path: 'zfs inherit mountpoint tank/legacy' leaves it to ecboot",
		"[b] tank/parent has no mountpoint, and giving it one would mount tank/parent/child, too: 'zfs set canmount=noauto tank/parent/child' first")
	p.wantMounted("tank/away on /guests/a/away", "tank/bare on /guests/a/bare", "tank/data on /guests/a/data", "tank/data on /run/data", "tank/data/below on /guests/a/below")
	p.wantFile("/guests/a/data/mine", true)
	// What ecboot has made says so, and nothing else has changed.
	if got, want := properties(), "tank/data/below\tcanmount\tnoauto\tlocal"; !strings.Contains(got, want) || !slices.Equal(without(got, want), strings.Split(before, "\n")) {
		t.Errorf("properties were\n%s\nand are\n%s", before, got)
	}
	if got := p.run("zfs", "get", "-H", "-o", "value,source", "mountpoint", "tank/away"); got != "/run/away\tlocal" {
		t.Errorf("tank/away's mountpoint is now %s", got)
	}

	// What the user has mounted is the user's.
	p.release(Plan{})
	p.wantMounted("tank/data on /run/data")
}

func without(lines, line string) []string {
	return slices.DeleteFunc(strings.Split(lines, "\n"), func(l string) bool { return l == line })
}

func TestReleaseUnmountsWhatIsNoLongerDeclared(t *testing.T) {
	p := newPool(t)
	a := Entry{Guest: "a", Name: "/x", Pool: "tank", Dataset: "a"}
	inner := Entry{Guest: "b", Name: "/y/in", Pool: "tank", Dataset: "in"}
	b := Entry{Guest: "b", Name: "/y", Pool: "tank", Dataset: "b"}
	p.apply(p.plan(a, b, inner))
	p.write("/guests/b/y/file")
	p.check(p.plan(a),
		"[] tank/in is mounted on /guests/b/y/in, though no guest declares it any more",
		"[] tank/b is mounted on /guests/b/y, though")

	f, err := os.Open("/guests/b/y/file")
	if err != nil {
		t.Fatal(err)
	}
	p.release(p.plan(a), "[] tank/b on /guests/b/y is no longer declared but in use: 'fuser -vm /guests/b/y' tells by whom")
	p.wantMounted("tank/a on /guests/a/x", "tank/b on /guests/b/y")
	f.Close()
	p.release(p.plan(a))
	p.wantMounted("tank/a on /guests/a/x")
	p.release(p.plan(a))
	p.check(p.plan(a))

	// Another dataset on the same path, and the old one is as it was.
	b.Dataset = "other"
	p.release(p.plan(a, b))
	p.apply(p.plan(a, b))
	p.wantMounted("tank/a on /guests/a/x", "tank/other on /guests/b/y")
	b.Dataset, b.HostMountpoint = "b", "/run/y"
	p.release(p.plan(a, b))
	p.apply(p.plan(a, b))
	p.wantMounted("tank/a on /guests/a/x", "tank/b on /run/y")
	p.wantFile("/run/y/file", true)
	for _, name := range []string{"tank/a", "tank/b", "tank/in", "tank/other"} {
		p.run("zfs", "list", name)
	}
}

// TestKilledBetweenTwoSteps leaves what kill -9 leaves at the worst moment.
func TestKilledBetweenTwoSteps(t *testing.T) {
	p := newPool(t)
	plan := p.plan(Entry{Guest: "a", Name: "/x", Pool: "tank", Dataset: "deep/a"})
	h := Host{Dir: hostDir}
	if err := os.MkdirAll(hostDir, 0o700); err != nil {
		t.Fatal(err)
	}
	z, have, err := survey(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	if err := z.ensure(t.Context(), "tank/deep/a", have); err != nil {
		t.Fatal(err)
	}
	p.wantMounted()
	if _, _, err := h.show(t.Context(), z, "tank/deep/a", have["tank/deep/a"].mountpoint); err != nil {
		t.Fatal(err)
	}
	p.wantMounted("tank/deep/a on " + hostDir + "/tank%deep%a")
	p.release(plan)
	p.apply(plan)
	p.wantMounted("tank/deep/a on /guests/a/x")
	p.require(plan, "a", "")
	if left, _ := filepath.Glob(hostDir + "/*"); !slices.Equal(left, []string{hostDir + "/mounts.json"}) {
		t.Errorf("left behind: %v", left)
	}
}

// TestKernelMounts has a stand-in for the mount(8) of a kernel with ZFS.
func TestKernelMounts(t *testing.T) {
	p := newPool(t)
	p.run("zfs", "create", "-o", "mountpoint=/run/tank", "tank/own")
	p.run("zfs", "create", "tank/own/shared")
	bin := t.TempDir()
	const script = `#!/bin/sh
test "$1 $2 $3 $4" = "-t zfs -o zfsutil" && test ! -e "$5" || { echo "mount: unexpected $*" >&2; exit 32; }
case $5 in *locked) echo "mount: $5: encryption key not loaded" >&2; exit 32;; esac
exec /bin/mount --bind "/run/${5}" "$6"
`
	if err := os.WriteFile(bin+"/mount", []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	// The stand-in finds tank/own/shared at /run/tank/own/shared.
	if err := os.Symlink(".", "/run/tank/own"); err != nil {
		t.Fatal(err)
	}
	plan := p.plan(
		Entry{Guest: "a", Name: "/x", Pool: "tank", Dataset: "own/shared"},
		Entry{Guest: "b", Name: "/x", Pool: "tank", Dataset: "own/shared"},
		Entry{Guest: "c", Name: "/x", Pool: "tank", Dataset: "own/locked"},
	)
	got, err := Host{Dir: hostDir, kernel: true}.Apply(t.Context(), plan)
	p.wantProblems("apply", got, err, []string{"[c] mount -t zfs -o zfsutil tank/own/locked " + hostDir + "/tank%own%locked: mount: tank/own/locked: encryption key not loaded: 'zfs load-key tank/own/locked'"})
	p.wantMounted("tank/own on /run/tank", "tank/own/shared on /guests/a/x", "tank/own/shared on /guests/b/x", "tank/own/shared on /run/tank/shared")
	p.require(plan, "a", "")
	p.require(plan, "b", "")
	if left, _ := filepath.Glob(hostDir + "/*"); !slices.Equal(left, []string{hostDir + "/mounts.json"}) {
		t.Errorf("left behind: %v", left)
	}
	p.release(Plan{})
	p.wantMounted("tank/own on /run/tank", "tank/own/shared on /run/tank/shared")
}

func TestNothingDeclaredNeedsNoZFS(t *testing.T) {
	t.Setenv("PATH", "")
	h := Host{Dir: filepath.Join(t.TempDir(), "zfs")}
	for _, do := range []func() ([]Problem, error){
		func() ([]Problem, error) { return h.Apply(t.Context(), Plan{}) },
		func() ([]Problem, error) { return h.Check(t.Context(), Plan{}) },
		func() ([]Problem, error) { return h.Release(Plan{}) },
	} {
		if problems, err := do(); err != nil || len(problems) > 0 {
			t.Error(problems, err)
		}
	}
	if err := (Plan{}).Require("a"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(h.Dir); err == nil {
		t.Errorf("%s was made for nothing", h.Dir)
	}
}
