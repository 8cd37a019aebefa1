package main

import (
	"bytes"
	"fmt"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/every-channel/ecboot/internal/api"
	"github.com/every-channel/ecboot/internal/nettest"
)

// bootDisk is a disk that boots, and says so on the serial port.
func bootDisk(t *testing.T) string {
	t.Helper()
	disk := make([]byte, 1<<20)
	copy(disk, "\xbe\x11\x7c\xac\x84\xc0\x74\x06\xba\xf8\x03\xee\xeb\xf5\xf4\xeb\xfdthe disk boots\r\n\x00")
	copy(disk[510:], "\x55\xaa")
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Every verb that asks 'ecboot up', on a guest that is real.
func TestVerbsOnARealGuest(t *testing.T) {
	t.Parallel()
	u := newUpHost(t, "verbs", fmt.Sprintf(`
[segment.lab]
[guest.a]
backend = "microvm"
memory = "256M"
autostart = true
stop_timeout = "2s"
[[guest.a.nic]]
segment = "lab"
[guest.screen]
backend = "qemu"
boot = "disk"
memory = "128M"
graphics = "vnc"
[[guest.screen.disk]]
size = "16M"
[guest.broken]
backend = "qemu"
boot = "disk"
[[guest.broken.disk]]
path = "/no/such.raw"
format = "raw"
read_only = true
[guest.chain]
backend = "qemu"
boot = "disk"
memory = "128M"
chain_url = "http://10.0.2.2/"
[[guest.chain.nic]]
user = true
[[guest.chain.disk]]
path = %q
format = "raw"
`, bootDisk(t)))
	s := u.up(t)
	s.until(t, "userland")
	verb := func(code int, line string, parts ...string) result {
		t.Helper()
		return u.commandWant(t, code, append([]string{"guest"}, strings.Fields(line)...), parts...)
	}
	verb(0, "list", "microvm  running", "10.77.0.")
	verb(0, "show a", "segment lab  02:01:27:", "qemu-system-x86_64 ")
	verb(0, "exec-args a", "-name guest=a", "-machine microvm")
	verb(1, "start screen broken", "screen: started", "broken: /no/such.raw does not exist")
	verb(1, "screenshot a -", "no screen: a microvm never has one")
	if _, err := png.Decode(bytes.NewReader([]byte(verb(0, "screenshot screen -").stdout))); err != nil {
		t.Errorf("the picture: %v", err)
	}
	verb(0, "start chain", "chain: started")
	s.logged(t, "chain", "the disk boots", 1)
	verb(0, "stop chain --now", "chain: stopped (killed)")
	verb(0, "stop screen --now", "screen: stopped (killed)")
	verb(0, "log a -n 0", "Linux version", "ecboot: userland after")

	// The shell reads what is typed, and the console ends with the guest.
	s.atShell(t, "a", 1)
	cmd := u.command(t, "guest", "console", "a")
	cmd.Stdin = strings.NewReader("echo $((40+2))\npoweroff\n")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "42\r\n") {
		t.Errorf("%v\n%s", err, out)
	}
	s.awaitGuest(t, "a", func(g api.Guest) bool { return g.State == api.Stopped })
	verb(0, "log a", "42")
	verb(1, "console a", "a is stopped")
	verb(0, "start a", "a: started")
	verb(0, "reset a", "a: reset")
	verb(0, "stop a", "a: stopped (")
	s.cmd.Process.Signal(syscall.SIGTERM)
	if code := s.end(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	u.wantNothing(t)
}

// A machine with the image that ecboot carries heeds its power button: programs
// end, disks are unmounted, and the machine switches itself off.
func TestUpPowerButton(t *testing.T) {
	t.Parallel()
	nettest.Need(t, "mke2fs", "dumpe2fs")
	guests := []string{"button-pc", "button-q35", "button-microvm"}
	text, disks := "[segment.lab]\n", t.TempDir()
	for i, machine := range []string{"backend = \"qemu\"\nmachine = \"pc\"", "backend = \"qemu\"\nmachine = \"q35\"", "backend = \"microvm\""} {
		disk := filepath.Join(disks, guests[i])
		if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", disk, "8M").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		text += fmt.Sprintf(`
[guest.%[1]s]
%[2]s
memory = "256M"
autostart = true
stop_timeout = "5m"
[[guest.%[1]s.nic]]
segment = "lab"
[[guest.%[1]s.disk]]
path = %[3]q
format = "raw"
`, guests[i], machine, disk)
	}
	u := newUpHost(t, "button", text)
	s := u.up(t)
	for _, g := range guests {
		s.atShell(t, g, 1)
		s.typed(t, g, "mkdir -p /mnt; mount -t ext4 /dev/vda /mnt; date >/mnt/kept; grep mnt /proc/mounts", "/dev/vda /mnt ext4 rw")
		s.typed(t, g, "tail -f /mnt/kept & echo $((40+2))", "42") // holds on to the disk
		s.typed(t, g, "kill -SIGTERM 1; echo $((50+4))", "54")    // is not for process 1
	}
	for _, g := range guests {
		u.commandWant(t, 0, []string{"guest", "stop", g}, g+": stopped (power button)\n")
		s.logged(t, g, "ecboot: power button", 1)
		out, err := exec.Command("dumpe2fs", "-h", filepath.Join(disks, g)).CombinedOutput()
		if err != nil || strings.Contains(string(out), "needs_recovery") {
			t.Errorf("the disk of %s was not unmounted (%v):\n%s", g, err, out)
		}
	}
	s.cmd.Process.Signal(syscall.SIGTERM)
	if code := s.end(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	u.wantNothing(t)
}
