package initramfs

import (
	"bufio"
	"go/build"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The commands of an image must be compiled from what ecboot itself was tested
// with, as far as both use it.
func TestModuleVersions(t *testing.T) {
	ours := requirements(t, "../go.mod")
	for path, version := range requirements(t, "module/go.mod.txt") {
		if want, ok := ours[path]; ok && want != version && pinned(path) {
			t.Errorf("module/go.mod.txt has %s %s, go.mod has %s; run module/update.sh", path, version, want)
		}
	}
}

// pinned are the modules whose versions update.sh takes from go.mod.
func pinned(path string) bool {
	script, err := os.ReadFile("module/update.sh")
	return err == nil && strings.Contains(string(script), path)
}

func requirements(t *testing.T, name string) map[string]string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	versions := map[string]string{}
	for s := bufio.NewScanner(f); s.Scan(); {
		if field := strings.Fields(strings.TrimPrefix(s.Text(), "require ")); len(field) >= 2 && strings.HasPrefix(field[1], "v") {
			versions[field[0]] = field[1]
		}
	}
	if len(versions) == 0 {
		t.Fatalf("no requirements in %s", name)
	}
	return versions
}

func TestResolve(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, ".mkuimage.yaml"), `commands:
  core: [github.com/u-root/u-root/cmds/core/*]
  two: [github.com/u-root/u-root/cmds/core/ls, github.com/u-root/u-root/cmds/exp/tac]
`, 0o644)
	for _, name := range []string{"core/init", "core/ls", "core/cat", "exp/tac", "exp/ls"} {
		write(t, filepath.Join(dir, "cmds", name, "main.go"), "package main\n", 0o644)
	}
	write(t, filepath.Join(dir, "cmds/core/bind/main.go"), "//go:build plan9\n\npackage main\n", 0o644)
	write(t, filepath.Join(dir, "cmds/core/lib/lib.go"), "package lib\n", 0o644)
	target := build.Default
	target.GOOS = "linux"
	s := source{dir: dir, target: target}

	for _, tt := range []struct{ names, want string }{
		{"ls", "core/init core/ls"},
		{"tac", "core/init exp/tac"},
		{"exp/ls", "core/init exp/ls"},
		{"core", "core/cat core/init core/ls"},
		{"core -cat", "core/init core/ls"},
		{"two -ls cat", "core/cat core/init exp/tac"},
		{"github.com/u-root/u-root/cmds/exp/tac", "core/init exp/tac"},
		{"exp/*", "core/init exp/ls exp/tac"},
		{"-init ls", "core/ls"},
		{"nothing", `error: u-root has no command or template "nothing" for Linux`},
		{"bind", `error: u-root has no command or template "bind" for Linux`},
		{"lib", `error: u-root has no command or template "lib" for Linux`},
		{"[", `error: command "["`},
	} {
		var got string
		packages, err := s.resolve(strings.Fields(tt.names))
		if err != nil {
			got, _, _ = strings.Cut("error: "+err.Error(), ";")
			got, _, _ = strings.Cut(got, ": syntax")
		} else {
			if !slices.IsSorted(packages) {
				t.Errorf("%s: not sorted: %q", tt.names, packages)
			}
			for i, p := range packages {
				packages[i] = strings.TrimPrefix(p, urootModule+"/cmds/")
			}
			got = strings.Join(packages, " ")
		}
		if got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.names, got, tt.want)
		}
	}
}

func TestGuestSourcesImportNothingOfOurs(t *testing.T) {
	sources, err := guestSources()
	if err != nil {
		t.Fatal(err)
	}
	if len(sources) < 3 {
		t.Errorf("only %d files of the guest program are embedded", len(sources))
	}
	for name, content := range sources {
		if strings.HasSuffix(name, "_test.go") || strings.Contains(string(content), "every-channel/ecboot") {
			t.Errorf("%s cannot be compiled elsewhere", name)
		}
	}
}

func TestExplainGo(t *testing.T) {
	err := explainGo("go list", "go: downloading example.org/a v1.0.0\nb.go:3:2: example.org/a@v1.0.0: Get \"https://proxy.example/a\": dial tcp: no route\nc.go:3:2: example.org/b@v1.0.0: Get \"https://proxy.example/b\": dial tcp: no route\n")
	if got := err.Error(); !strings.Contains(got, "connect this machine to a network") || !strings.HasSuffix(got, `go list: b.go:3:2: example.org/a@v1.0.0: Get "https://proxy.example/a": dial tcp: no route`) {
		t.Error(got)
	}
	if err := explainGo("go build", "a.go:1:1: expected 'package'\nb.go:1:1: too"); err.Error() != "go build: a.go:1:1: expected 'package'\nb.go:1:1: too" {
		t.Error(err)
	}
}
