package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/every-channel/ecboot/internal/api"
)

func TestCompletion(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "ecboot.toml")
	text := "[segment.lan]\nbridge = \"br0\"\naddress = \"10.78.0.1/24\"\n[segment.lab]\nbridge = \"br1\"\naddress = \"10.79.0.1/24\"\n[server]\nstate_dir = \"" + dir + "\"\n" +
		"[profile.rescue]\n[[machine]]\nname = \"node1\"\n[[machine]]\nmac = \"02:00:00:00:00:07\"\n" +
		"[guest.db]\nbackend = \"microvm\"\n[guest.web]\nbackend = \"microvm\"\nnode_name = \"www\"\n[[guest.web.nic]]\nsegment = \"lab\"\n"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	check := func(name, want string, args ...string) {
		t.Helper()
		r := ecboot(t, append([]string{"__complete", "--config", file}, args...)...)
		lines := strings.Split(r.stdout, "\n")
		if got := strings.Join(lines[:max(0, len(lines)-2)], " "); r.code != 0 || got != want {
			t.Errorf("%s: got %q, want %q\n%s", name, got, want, r.stderr)
		}
	}
	for _, verb := range []string{"show", "start", "stop", "restart", "reset", "console", "log", "screenshot", "exec-args", "edit"} {
		check("guest "+verb, "db web", "guest", verb, "")
	}
	check("a second guest", "web", "guest", "stop", "db", "")
	check("no second guest", "", "guest", "console", "db", "")
	check("behind a flag", "db web", "guest", "stop", "--now", "")
	check("profiles", "default rescue", "run", "")
	check("forms of output", "text json", "guest", "list", "-o", "")
	check("forms of a boot's output", "text json", "run", "-o", "")
	check("firmware", "bios uefi uefi-ia32", "run", "--firmware", "")
	check("compression", "zstd gzip none", "initramfs", "build", "--compression", "")
	check("who has leases", "02:00:00:00:00:07 node1 www", "lease", "show", "")
	check("segments", "lab lan", "run", "--segment", "")
	check("segments of serve", "lab lan", "serve", "--segment", "")
	check("segments to wake on", "lab lan", "machine", "wake", "node1", "--segment", "")
	check("machines", "02:00:00:00:00:07 node1 www", "machine", "show", "")
	check("no second machine", "", "machine", "show", "node1", "")
	check("a machine's next profile", "default rescue", "machine", "next", "node1", "")
	check("its keys", "name= address= profile= next= nbp= chainload= tags= option.", "machine", "set", "node1", "prof")
	check("a configuration with mistakes", "", "guest", "show", "--config", os.DevNull+"/x", "")

	for _, shell := range []string{"bash", "zsh", "fish"} {
		r := ecboot(t, "completion", shell)
		r.want(t, 0, "__complete")
		if path, err := exec.LookPath(shell); err == nil {
			cmd := exec.Command(path, "-n")
			cmd.Stdin = strings.NewReader(r.stdout)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", shell, err, out)
			}
		}
	}

	// Those that run count more than those that a file declares.
	f := &fakeUp{guests: []api.Guest{{Name: "other"}}}
	listenFake(t, f, "users")
	check("guests of 'ecboot up'", "other", "guest", "show", "")
	check("what is edited is the file", "db web", "guest", "exec-args", "")
}
