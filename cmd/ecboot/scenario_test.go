package main

import (
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/api"
	"github.com/every-channel/ecboot/internal/nettest"
)

// typed sits down at a guest's console, types a line and waits for an answer.
func (s *started) typed(t *testing.T, guest, line, want string) {
	t.Helper()
	console, err := s.control().Console(t.Context(), guest, true)
	if err != nil {
		t.Fatal(err)
	}
	defer console.Close()
	tooLong := time.AfterFunc(2*time.Minute, func() { console.Close() })
	defer tooLong.Stop()
	if _, err := console.Write([]byte(line + "\n")); err != nil {
		t.Fatal(err)
	}
	var seen []byte
	buf := make([]byte, 4096)
	for {
		n, err := console.Read(buf)
		seen = append(seen, buf[:n]...)
		now := seen[min(console.History, len(seen)):]
		if strings.Contains(strings.ReplaceAll(string(now), line, ""), want) {
			return
		}
		if err != nil {
			t.Fatalf("%s does not answer %q with %q (%v):\n%s", guest, line, want, err, seen)
		}
	}
}

// logged waits until a guest's console has shown a text n times.
func (s *started) logged(t *testing.T, guest, text string, n int) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		log, err := s.control().Log(t.Context(), guest, 10000)
		if err == nil && strings.Count(string(log), text) >= n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v\nhas not shown %q %d times (%v):\n%s", s.guest(t, guest), text, n, err, log)
		}
	}
}

// atShell waits until a machine's n-th boot has come to its shell: what is typed
// before may be flushed.
func (s *started) atShell(t *testing.T, guest string, n int) {
	t.Helper()
	s.logged(t, guest, "\n$", n)
}

// busyboxRoot is a system for containers that gets its address by DHCP and has a
// shell on its console.
func busyboxRoot(t *testing.T) string {
	t.Helper()
	nettest.Need(t, "busybox", "systemd-nspawn")
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	program, err := elf.Open(busybox)
	if err != nil {
		t.Fatal(err)
	}
	libraries, err := program.ImportedLibraries()
	program.Close()
	if err != nil || len(libraries) > 0 {
		t.Skip("needs busybox-static: run make deps-test")
	}
	content, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"bin/busybox": string(content),
		"sbin/init": `#!/bin/busybox sh
/bin/busybox --install -s /bin
trap 'exit 0' USR2
ip link set host0 up && udhcpc -n -q -f -i host0 -s /bin/true
echo userland of a container
while read -r line; do eval "$line"; done
`,
		"etc/os-release": "ID=test\n",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// What the NixOS module ipxe-qemu describes: a machine that boots by a chain URL
// over an e1000, with a disk that stays and a second card on the LAN.
func TestUpBootVM(t *testing.T) {
	nettest.Need(t, "busybox", "qemu-img")
	for i, firmware := range []string{"bios", "uefi"} {
		t.Run(firmware, func(t *testing.T) {
			t.Parallel()
			vm := "bootvm-" + firmware // control groups are those of all hosts
			u := newUpHost(t, vm, fmt.Sprintf(`
[segment.boot]
dns = ["1.1.1.1"]
[guest.%[1]s]
backend = "qemu"
firmware = %[2]q
memory = "512M"
cpus = 2
autostart = true
restart = "always"
stop_timeout = "1s"
chain_url = "http://10.77.0.1:8080/netboot.ipxe"
[[guest.%[1]s.nic]]
segment = "boot"
model = "e1000"
[[guest.%[1]s.nic]]
macvtap = "eth0"
name = "ecqemu0"
[[guest.%[1]s.disk]]
size = "64M"
`, vm, firmware))
			lan := fmt.Sprintf("lan%d", i)
			nettest.Bridge(t, lan, "")
			nettest.Connect(t, lan, u.Host, "eth0")
			web := t.TempDir()
			for name, text := range map[string]string{"netboot.ipxe": "#!ipxe\nkernel vmlinuz initrd=initrd console=ttyS0\ninitrd initrd\nboot\n"} {
				if err := os.WriteFile(filepath.Join(web, name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			for name, asset := range map[string]string{"vmlinuz": "vmlinuz", "initrd": "initramfs.cpio.zst"} {
				path, err := filepath.Abs(filepath.Join("../../images/assets", asset))
				if err == nil {
					err = os.Symlink(path, filepath.Join(web, name))
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			httpd := u.Command(t.Context(), "busybox", "httpd", "-f", "-p", "8080", "-h", web)
			httpd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			if err := httpd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { httpd.Process.Kill(); httpd.Wait() })

			s := u.up(t)
			s.until(t, vm+" guest")
			s.atShell(t, vm, 1)
			u.Run(t, "ip", "link", "show", "ecqemu0")
			before := s.guest(t, vm)
			s.typed(t, vm, "echo it-is-kept | dd of=/dev/vda", "copied")
			if _, err := s.control().Restart(t.Context(), vm); err != nil {
				t.Fatal(err)
			}
			s.logged(t, vm, "ecboot: userland after", 2)
			s.typed(t, vm, "", "\n$")
			s.typed(t, vm, "dd if=/dev/vda bs=10 count=1", "it-is-kept")
			if after := s.guest(t, vm); after.PID == before.PID || !slices.Equal(after.MACs, before.MACs) {
				t.Errorf("before %+v\nafter %+v", before, after)
			}
			s.cmd.Process.Signal(syscall.SIGTERM)
			if code := s.end(t); code != 0 {
				t.Errorf("exit code %d", code)
			}
			u.wantNothing(t)
			if links := u.Run(t, "ip", "-o", "link"); strings.Contains(links, "ecqemu0") {
				t.Errorf("left:\n%s", links)
			}
		})
	}
}

// Five guests of all backends from one file, with a dataset that several of them
// share, live through whatever befalls them, their supervisor and their host.
func TestUpFiveGuests(t *testing.T) {
	t.Parallel()
	nettest.Need(t, "qemu-img", "zpool")
	root, base := busyboxRoot(t), busyboxRoot(t)
	text := fmt.Sprintf(`memory = "128M"
[segment.lan]
bridge = "br-lan"
address = "10.77.0.1/24"
allow_other_dhcp = true
[guest.five-vm]
backend = "qemu"
boot = "disk"
autostart = true
stop_timeout = "1s"
[[guest.five-vm.nic]]
segment = "lan"
[[guest.five-vm.disk]]
size = "64M"
[guest.five-m1]
backend = "microvm"
autostart = true
stop_timeout = "1s"
restart_delay = "1s"
[[guest.five-m1.nic]]
segment = "lan"
[[guest.five-m1.disk]]
path = "small/disk.qcow2"
size = "64M"
[guest.five-m2]
backend = "microvm"
autostart = true
stop_timeout = "1s"
[guest.five-m2.zfs."persist"]
pool = "tank"
dataset = "shared"
host_mountpoint = "/run/guests/m2"
[guest.five-c1]
backend = "container"
root = %[1]q
autostart = true
stop_signal = "SIGUSR2"
[[guest.five-c1.nic]]
segment = "lan"
[guest.five-c1.zfs."/persist"]
pool = "tank"
dataset = "shared"
host_mountpoint = "/run/guests/c1"
[guest.five-c2]
backend = "container"
root = %[2]q
ephemeral = true
autostart = true
order = 1
stop_signal = "SIGUSR2"
[[guest.five-c2.nic]]
segment = "lan"
[guest.five-c2.zfs."/persist"]
pool = "tank"
dataset = "shared"
host_mountpoint = "/run/guests/c2"
[guest.five-missing]
backend = "container"
root = "/nowhere/root.squashfs"
autostart = true
`, root, base)
	text = strings.ReplaceAll(text, `zfs."persist"`, `zfs."/persist"`)
	u := newUpHost(t, "five", text)
	u.startZFS(t)
	u.Run(t, "sh", "-c", "mkdir "+u.dir+"/small && mount -t tmpfs -o size=4m tmpfs "+u.dir+"/small")
	t.Cleanup(func() { u.Run(t, "umount", "-l", u.dir+"/small") })
	names := []string{"five-vm", "five-m1", "five-m2", "five-c1", "five-c2"}

	s := u.up(t)
	s.until(t, "five-missing guest")
	for _, name := range names {
		s.logged(t, name, "userland", 1)
	}
	for _, name := range []string{"five-vm", "five-m1", "five-m2"} {
		s.atShell(t, name, 1)
	}
	if g := s.guest(t, "five-missing"); g.State == api.Running || !strings.Contains(g.LastExit+strings.Join(g.Drift, ""), "/nowhere/root.squashfs") {
		t.Errorf("a guest without its image is %+v", g)
	}
	s.typed(t, "five-c1", "echo from c1 >/persist/file; echo written", "written")
	s.typed(t, "five-c2", "cat /persist/file", "from c1")
	before := s.pids(t, names)

	// A guest whose host has no room left waits, and says so.
	s.typed(t, "five-m1", "dd if=/dev/urandom of=/dev/vda bs=1048576 count=16 &", "")
	s.awaitGuest(t, "five-m1", func(g api.Guest) bool { return strings.Contains(strings.Join(g.Drift, " "), "disk.qcow2") })

	// The supervisor dies; the guests do not.
	s.cmd.Process.Kill()
	s.cmd.Wait()
	u.write(t, text+"\n[guest.five-late]\nbackend = \"container\"\nroot = \""+base+"\"\nephemeral = true\nautostart = true\nstop_signal = \"SIGUSR2\"\n")
	s = u.up(t)
	s.until(t, "five-late guest")
	if after := s.pids(t, names); !slices.Equal(before, after) {
		list, _ := s.control().Guests(t.Context())
		t.Fatalf("guests were %v, and are %v after their supervisor died:\n%+v", before, after, list)
	}

	// An added guest moves none of the others.
	macs := map[string]string{}
	for _, name := range names {
		macs[name] = fmt.Sprint(s.guest(t, name).MACs)
	}
	u.write(t, text+"\n[guest.five-aaa]\nbackend = \"container\"\nroot = \""+base+"\"\nephemeral = true\nautostart = true\nstop_signal = \"SIGUSR2\"\n[[guest.five-aaa.nic]]\nsegment = \"lan\"\n")
	s.cmd.Process.Signal(syscall.SIGHUP)
	s.until(t, "five-aaa guest")
	s.logged(t, "five-aaa", "userland", 1)
	if after := s.pids(t, names); !slices.Equal(before, after) {
		t.Errorf("guests were %v, and are %v after another was added", before, after)
	}

	// One ends by itself and stays down, one panics and comes back.
	s.typed(t, "five-c2", "exit 0", "")
	s.awaitGuest(t, "five-c2", func(g api.Guest) bool { return g.State == api.Stopped })
	s.typed(t, "five-m2", "echo c > /proc/sysrq-trigger", "panic")
	s.awaitGuest(t, "five-m2", func(g api.Guest) bool { return g.Restarts == 1 && g.State == api.Running })

	// The host loses all its processes and links, and keeps its disks.
	s.cmd.Process.Kill()
	s.cmd.Wait()
	for _, pid := range u.keepers() {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	s = u.up(t)
	s.until(t, "five-vm guest")
	for _, name := range names {
		s.awaitGuest(t, name, func(g api.Guest) bool { return g.State == api.Running || name == "five-c2" })
		if got := fmt.Sprint(s.guest(t, name).MACs); got != macs[name] {
			t.Errorf("%s had the addresses %s, and has %s now", name, macs[name], got)
		}
	}
	s.typed(t, "five-c1", "cat /persist/file", "from c1")

	// A dataset that nobody declares any more is unmounted, and is all there.
	mounted := func() string { return u.Run(t, "cat", "/proc/mounts") }
	if !strings.Contains(mounted(), " /run/guests/c2 ") {
		t.Errorf("mounts:\n%s", mounted())
	}
	u.write(t, strings.Replace(text, `[guest.five-c2.zfs."/persist"]
pool = "tank"
dataset = "shared"
host_mountpoint = "/run/guests/c2"
`, "", 1))
	s.cmd.Process.Signal(syscall.SIGHUP)
	s.until(t, "the configuration was read again")
	if strings.Contains(mounted(), " /run/guests/c2 ") || !strings.Contains(mounted(), " /run/guests/c1 ") {
		t.Errorf("mounts:\n%s", mounted())
	}
	s.cmd.Process.Signal(syscall.SIGTERM)
	if code := s.end(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	u.wantNothing(t)
}

// pids are the processes of guests, in the order of their names.
func (s *started) pids(t *testing.T, names []string) (pids []int) {
	t.Helper()
	for _, name := range names {
		pids = append(pids, s.guest(t, name).PID)
	}
	return pids
}

// startZFS gives the host a pool "tank" on a file, as long as the test runs.
func (u *upHost) startZFS(t *testing.T) {
	t.Helper()
	nettest.Need(t, "zfs-fuse")
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("needs /dev/fuse")
	}
	u.Run(t, "sh", "-c", "mkdir -p /run/lock && mount -t tmpfs tmpfs /var/lib/zfs")
	daemon := u.Command(t.Context(), "zfs-fuse", "--no-daemon", "--no-kstat-mount", "--pidfile", "/run/zfs-fuse.pid")
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { daemon.Process.Kill(); daemon.Wait() })
	u.Run(t, "sh", "-c", "i=0; until zpool list >/dev/null 2>&1; do i=$((i+1)); [ $i -lt 300 ] || exit 1; sleep 0.1; done")
	u.Run(t, "sh", "-c", "truncate -s 64M /run/tank.img && zpool create -m none tank /run/tank.img")
}
