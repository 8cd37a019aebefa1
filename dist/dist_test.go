package dist

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// install writes the files below a root, with a program that does nothing.
func install(t *testing.T, prefix string) (root string) {
	t.Helper()
	root = t.TempDir()
	files := append(Files(prefix), File{Program(prefix), "#!/bin/sh\n"}, File{"/bin/kill", "#!/bin/sh\n"})
	for _, f := range files {
		path := filepath.Join(root, f.Path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o644)
		if strings.HasPrefix(f.Content, "#!") {
			mode = 0o755
		}
		if err := os.WriteFile(path, []byte(f.Content), mode); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("needs %s: run make deps-test", name)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

// TestUnits has systemd read the units. It would run what their conditions say,
// but starts nothing.
func TestUnits(t *testing.T) {
	for _, prefix := range []string{"/usr", "/usr/local"} {
		t.Run(prefix, func(t *testing.T) {
			root := install(t, prefix)
			// The units that ours name, as far as systemd wants to see them.
			for _, name := range []string{"sysinit.target", "basic.target", "shutdown.target", "multi-user.target", "network-online.target", "system.slice", "-.slice", "local-fs.target", "remote-fs.target"} {
				path := filepath.Join(root, "usr/lib/systemd/system", name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte("[Unit]\nDescription=stand-in\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			out := run(t, "systemd-analyze", "verify", "--root="+root, "--man=no", "ecboot.service", "ecboot.slice")
			if out != "" {
				t.Errorf("systemd-analyze verify:\n%s", out)
			}
		})
	}
}

func TestUsers(t *testing.T) {
	root := install(t, Prefix)
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "systemd-sysusers", "--root="+root)
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(root, "etc", name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	passwd, group := read("passwd"), read("group")
	if strings.Count(passwd, "\n") != 1 || !strings.HasPrefix(passwd, "ecboot-guest:") {
		t.Errorf("passwd:\n%s", passwd)
	}
	for line := range strings.Lines(group) {
		name, members := line[:strings.Index(line, ":")], line[strings.LastIndex(line, ":")+1:]
		if want := map[string]string{"kvm": "ecboot-guest"}[name]; strings.TrimSpace(members) != want {
			t.Errorf("group %s has the members %q, want %q", name, members, want)
		}
	}
	if !strings.Contains("\n"+group, "\necboot:") {
		t.Errorf("group:\n%s", group)
	}
}

func TestDirectories(t *testing.T) {
	root := install(t, Prefix)
	run(t, "systemd-tmpfiles", "--root="+root, "--create", "ecboot.conf")
	for dir, want := range map[string]os.FileMode{"run/ecboot": 0o711, "var/lib/ecboot": 0o755, "var/cache/ecboot": 0o755} {
		st, err := os.Stat(filepath.Join(root, dir))
		if err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", dir, st.Mode(), err)
		}
	}
}
