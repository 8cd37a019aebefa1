package main

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/every-channel/ecboot/internal/nettest"
)

// tree lists the files below a directory, directories with a slash.
func tree(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			path += "/"
		}
		list = append(list, strings.TrimPrefix(path, dir))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestInstall(t *testing.T) {
	root := t.TempDir()
	install := func(code int, args ...string) result {
		t.Helper()
		r := ecboot(t, append([]string{"install", "--root", root}, args...)...)
		r.want(t, code)
		return r
	}
	read := func(path string) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	write := func(path, text string) {
		t.Helper()
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const (
		service = "/usr/local/lib/systemd/system/ecboot.service"
		slice   = "/usr/local/lib/systemd/system/ecboot.slice"
		enabled = "/etc/systemd/system/multi-user.target.wants/ecboot.service"
		record  = "/usr/local/share/ecboot/installed.json"
	)

	install(0, "--dry-run")
	if got := tree(t, root); len(got) != 1 {
		t.Errorf("a dry run has written %q", got)
	}
	write("/usr/local/bin/other", "") // what was there stays
	before := tree(t, root)
	r := install(0)
	if !strings.Contains(r.stdout, "written "+service) || !strings.Contains(r.stdout, "systemctl --root="+root+" enable ecboot") {
		t.Errorf("it says\n%s", r.stdout)
	}
	if !strings.Contains(read(service), "\nExecStart=/usr/local/bin/ecboot up") {
		t.Errorf("%s:\n%s", service, read(service))
	}
	out, err := exec.Command(filepath.Join(root, "/usr/local/bin/ecboot"), "-test.run", "^$").CombinedOutput()
	if err != nil {
		t.Errorf("the program that it has installed: %v\n%s", err, out)
	}
	for shell, path := range map[string]string{
		"bash": "bash-completion/completions/ecboot", "zsh": "zsh/site-functions/_ecboot", "fish": "fish/vendor_completions.d/ecboot.fish",
	} {
		if _, err := exec.LookPath(shell); err != nil {
			continue
		}
		if out, err := exec.Command(shell, "-n", filepath.Join(root, "/usr/local/share", path)).CombinedOutput(); err != nil {
			t.Errorf("%s does not understand its completion: %v\n%s", shell, err, out)
		}
	}

	var again installation
	if err := json.Unmarshal([]byte(install(0, "-o", "json").stdout), &again); err != nil {
		t.Fatal(err)
	}
	for _, f := range again.Files {
		if f.Action != actionUnchanged {
			t.Errorf("the second time, %s is %s", f.Path, f.Action)
		}
	}

	// One is an older version's, and one somebody has changed: neither is
	// touched.
	old := "[Unit]\nDescription=old\n"
	write(service, old)
	var rec installed
	if err := json.Unmarshal([]byte(read(record)), &rec); err != nil {
		t.Fatal(err)
	}
	rec.Files[service] = []string{digest([]byte(old))}
	b, err := json.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	write(record, string(b))
	write(slice, "[Slice]\nMemoryMax=1G\n")
	r = install(1)
	if !strings.Contains(r.stderr, slice+" is not as 'ecboot install' has written it") || strings.Contains(r.stderr, service) {
		t.Errorf("it says\n%s", r.stderr)
	}
	if read(service) != old {
		t.Errorf("all or nothing: %s is replaced", service)
	}
	if r := install(0, "--force"); !strings.Contains(r.stdout, "written "+service) || !strings.Contains(r.stdout, "written "+slice) {
		t.Errorf("with --force it says\n%s", r.stdout)
	}

	write(slice, "[Slice]\nMemoryMax=1G\n")
	write(enabled, "")
	if r := install(1, "--uninstall"); !strings.Contains(r.stderr, "systemctl disable --now ecboot") {
		t.Errorf("it says\n%s", r.stderr)
	}
	if err := os.RemoveAll(filepath.Join(root, "etc")); err != nil {
		t.Fatal(err)
	}
	if r := install(0, "--uninstall"); !strings.Contains(r.stdout, "kept "+slice) || !strings.Contains(r.stdout, "removed "+service) {
		t.Errorf("it says\n%s", r.stdout)
	}
	if read(slice) != "[Slice]\nMemoryMax=1G\n" {
		t.Error("what somebody has changed is not as it was")
	}
	install(0, "--uninstall", "--force")
	if after := tree(t, root); !slices.Equal(after, before) {
		t.Errorf("left:\n%q, before\n%q", after, before)
	}
	install(1, "--uninstall")
}

// An installation that was killed has left the file that it was writing.
func TestUninstallRemovesWhatIsNotWhole(t *testing.T) {
	root := t.TempDir()
	before := tree(t, root)
	ecboot(t, "install", "--root", root).want(t, 0)
	for _, path := range []string{"bin/ecboot", "share/ecboot/installed.json"} {
		if err := os.WriteFile(filepath.Join(root, "usr/local", path+".ecboot-new"), []byte("half"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ecboot(t, "install", "--root", root, "--uninstall").want(t, 0)
	if after := tree(t, root); !slices.Equal(after, before) {
		t.Errorf("left: %q, before %q", after, before)
	}
}

func TestInstallStaysBelowItsRoot(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "usr/local"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(root, "usr/local/lib")); err != nil {
		t.Fatal(err)
	}
	ecboot(t, "install", "--root", root).want(t, 1, "escapes")
	if got := tree(t, outside); len(got) != 1 {
		t.Errorf("outside it has written %q", got)
	}
}

func TestInstallBesideAPackage(t *testing.T) {
	root := t.TempDir()
	ecboot(t, "install", "--root", root, "--prefix", "/usr").want(t, 0)
	ecboot(t, "install", "--root", root).want(t, 1, "/usr/lib/systemd/system/ecboot.service is there, as of a package", "--prefix /usr")
}

// Where systemd does not look for units, whoever enables them must say where they
// are.
func TestInstallWhereSystemdDoesNotLook(t *testing.T) {
	nettest.Need(t, "systemctl")
	root := t.TempDir()
	r := ecboot(t, "install", "--root", root, "--prefix", "/opt/ecboot")
	r.want(t, 0)
	_, next, _ := strings.Cut(r.stdout, "Next:\n")
	if out, err := exec.Command("sh", "-c", next).CombinedOutput(); err != nil {
		t.Fatalf("%s%v\n%s", next, err, out)
	}
	const units = "/opt/ecboot/lib/systemd/system/"
	for link, want := range map[string]string{
		"ecboot.service": units + "ecboot.service", "ecboot.slice": units + "ecboot.slice", "multi-user.target.wants/ecboot.service": units + "ecboot.service",
	} {
		if to, err := os.Readlink(filepath.Join(root, "etc/systemd/system", link)); to != want {
			t.Errorf("%s leads to %q, %v, want %s", link, to, err, want)
		}
	}
}

func TestInstallWrongly(t *testing.T) {
	ecboot(t, "install", "--root", "/no/such").want(t, 2, "--root")
	ecboot(t, "install", "--root", t.TempDir(), "--prefix", "usr").want(t, 2, "--prefix usr: give an absolute path")
	ecboot(t, "install", "now").want(t, 2, `"now"`)
}
