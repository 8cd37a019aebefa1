package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/every-channel/ecboot/internal/config"
)

// TestGuestComplaints wants the place of what only others than config know,
// beside what config knows.
func TestGuestComplaints(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ecboot.toml")
	if err := os.WriteFile(path, []byte(`[guest.web]
backend = "qemu"
memory = "1M"
boot = "direct"
extra = ["-device", "virtio-balloon-pci", "-daemonize", "-m"]
[guest.web.zfs."/persist"]
pool = "tank"
dataset = "safe/web"
host_mountpoint = "/srv/a"
[guest.web.zfs.logs]
pool = "tank"
[guest.dns]
backend = "container"
root = "/r"
extra = ["--boot", "--drop-capability=CAP_SYS_TIME"]
[guest.dns.zfs."/persist"]
pool = "tank"
dataset = "safe/dns"
host_mountpoint = "/srv/a"
`), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := loadConfig(path)
	var problems config.Problems
	if !errors.As(err, &problems) {
		t.Fatalf("got %v", err)
	}
	want := []string{
		":3:10: guest.web.memory: \"1M\" is less than 64M",
		":5:43: guest.web.extra[2]: -daemonize: ",
		":5:57: guest.web.extra[3]: -m: use memory",
		":9:19: guest.web.zfs.\"/persist\".host_mountpoint: /srv/a has tank/safe/dns already, of guest dns",
		":10:16: guest.web.zfs.logs.dataset: is missing",
		":10:16: guest.web.zfs.logs: \"logs\" is not an absolute, clean path; write \"/logs\"",
		":15:10: guest.dns.extra[0]: extra argument \"--boot\" contradicts",
	}
	if len(problems) != len(want) {
		t.Fatalf("got %d problems:\n%v", len(problems), err)
	}
	for i, p := range problems {
		if !strings.HasPrefix(p.String(), path+want[i]) {
			t.Errorf("got  %v\nwant %s", p, want[i])
		}
	}
}

// A [[machine]] may say more of a guest, but not give it another name, also where
// the guest's address is an assigned one.
func TestMachineThatIsAGuest(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "ecboot.toml")
	const assigned = "02:01:27:5b:95:9e"
	if err := os.WriteFile(filepath.Join(dir, "macs.json"), []byte(`{"schema": 1, "algorithm": "sha256-v1", "macs": {"alpha": "`+assigned+`"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, machine, want string }{
		{"another name", "name = \"web\"", path + ":9:15: guest.alpha.nic[0]: its assigned address " + assigned + " is machine[0]'s too, in line 5; " +
			"give each one of its own; a [[machine]] that is this guest has its node_name as name"},
		{"its own name", "name = \"Node1\"", ""},
		{"no name", "profile = \"local\"", ""},
	} {
		text := "[server]\nstate_dir = \"" + dir + "\"\n[[machine]]\n" + tt.machine + "\nmac = \"" + assigned + "\"\n" +
			"[guest.alpha]\nnode_name = \"node1\"\nbackend = \"microvm\"\n[[guest.alpha.nic]]\nsegment = \"private\"\n"
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		got := ""
		if _, err := loadConfig(path); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s: got  %s\nwant %s", tt.name, got, tt.want)
		}
	}
}
