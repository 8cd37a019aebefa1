package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/every-channel/ecboot/initramfs"
	"github.com/every-channel/ecboot/internal/nettest"
	"github.com/every-channel/ecboot/internal/systemdtest"
)

// TestServiceOfSystemd installs ecboot where a real systemd runs, upgrades it
// under a guest, and shuts the host down.
func TestServiceOfSystemd(t *testing.T) {
	nettest.Need(t, "systemd-nspawn", "busybox")
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip(err)
	}
	root := filepath.Join(t.TempDir(), "guest")
	for name, text := range map[string]string{
		"bin/busybox": string(busybox), "etc/os-release": "ID=test\n", "usr/.": "", "dev/.": "", "proc/.": "", "sys/.": "", "run/.": "", "tmp/.": "", "var/.": "",
		"sbin/init": "#!/bin/busybox sh\ntrap '/bin/busybox touch /var/stopped; /bin/busybox poweroff -f' USR2\nwhile :; do /bin/busybox sleep 0.1; done\n",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if text == "" {
			continue
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	console := underSystemd(t, fmt.Sprintf(`
[guest.one]
backend = "container"
root = %q
autostart = true
stop_signal = "SIGUSR2"
`, root), `
until ecboot guest list | grep running; do sleep 0.1; done
before=$(cat /sys/fs/cgroup/unified/ecboot.slice/ecboot-one.scope/cgroup.procs /sys/fs/cgroup/ecboot.slice/ecboot-one.scope/cgroup.procs || :)
systemctl restart ecboot
systemctl reload ecboot
until ecboot guest list | grep running; do sleep 0.1; done
systemctl is-active ecboot ecboot-one.scope
after=$(cat /sys/fs/cgroup/unified/ecboot.slice/ecboot-one.scope/cgroup.procs /sys/fs/cgroup/ecboot.slice/ecboot-one.scope/cgroup.procs || :)
test -n "$before" && test "$before" = "$after" && echo the same: keeper
`, root)
	if !strings.Contains(console, "]: the same: keeper") {
		t.Error("the guest has not outlived the supervisor")
	}
	if _, err := os.Stat(filepath.Join(root, "var/stopped")); err != nil {
		t.Error("when the host went down, the guest was not stopped by its own init")
	}
	if t.Failed() {
		t.Log(console)
	}
}

// underSystemd installs ecboot where a real systemd runs, starts it as a service,
// runs a script and shuts the host down. Files named in binds are there, too.
func underSystemd(t *testing.T, config, script string, binds ...string) (console string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return systemdtest.Run(t, fmt.Sprintf(`
export %[1]s=1
%[2]s install
systemd-sysusers
systemd-tmpfiles --create
mkdir -p /etc/ecboot /etc/systemd/system/ecboot.service.d
cat >/etc/ecboot/ecboot.toml <<'end'
%[3]s
end
# A busy machine may be late by much of WatchdogSec.
printf '[Service]\nEnvironment=%[1]s=1\nWatchdogSec=10\nRestartSec=100ms\n' >/etc/systemd/system/ecboot.service.d/test.conf
systemctl daemon-reload
systemctl enable --now ecboot
%[4]s`, mainVar, self, config, script), append(binds, self)...)
}

// TestMachineUnderSystemd runs a virtual machine where a real systemd is, with its
// limits, and has the supervisor stopped, killed and hang meanwhile.
func TestMachineUnderSystemd(t *testing.T) {
	needGuests(t)
	nettest.Need(t, "systemd-nspawn", "busybox")
	systemdtest.NeedControllers(t, "cpu", "memory", "pids")
	state := t.TempDir()
	console := underSystemd(t, fmt.Sprintf(`
[server]
state_dir = %q
[segment.lab]
[profile.button]
kernel = "embedded:kernel"
initrds = [%q]
cmdline = "console=ttyS0"
[guest.scoped]
backend = "microvm"
accel = "tcg"
memory = "256M"
profile = "button"
autostart = true
[[guest.scoped.nic]]
segment = "lab"
[guest.scoped.limits]
cpu = "150%%"
memory = "600M"
tasks = 200
`, state, buttonInitrd(t, state)), fmt.Sprintf(`
scope=ecboot-scoped.scope
json() { ecboot guest show scoped -o json | sed -n "s/^ *\"$1\": //p" | tr -d '",'; }
until_running() { until test "$(json state)" = running; do sleep 0.1; done; }
listens() { test "$(grep -c 'heeds its button' %[1]s/guests/scoped/console.log)" = "$1"; }
unit() { systemctl show --value --property "$1" "$2"; }
until listens 1; do sleep 1; done

test "$(unit Slice $scope)" = ecboot.slice
test "$(unit MemoryMax $scope)" = $((600 << 20))
test "$(unit CPUQuotaPerSecUSec $scope)" = 1.500000s
test "$(unit TasksMax $scope)" = 200
qemu=$(json pid)
readlink /proc/$qemu/exe | grep qemu-system
cat /proc/$qemu/cgroup
test "$(grep -c /ecboot.slice/$scope /proc/$qemu/cgroup)" -ge 2
test "$(stat -c %%U /proc/$qemu)" = ecboot-guest
test "$(sed -n 's/^CapEff:\t0*//p' /proc/$qemu/status)" = ""

lives() {
	until_running
	test "$(json pid)" = $qemu
	systemctl is-active ecboot $scope
	test "$(json drift)" = '[]'
	test "$(ip -o link show master ec-lab | grep -c LOWER_UP)" = 1
	listens 1
}
lives
systemctl restart ecboot
lives

restarts() { until test "$(unit NRestarts ecboot)" -ge "$1" && systemctl is-active ecboot; do sleep 1; done; }
systemctl kill --signal KILL ecboot
restarts 1
lives

kill -STOP $(unit MainPID ecboot)
restarts 2
lives
journalctl --unit ecboot --grep 'Watchdog timeout'

systemctl stop ecboot
systemctl is-active $scope
test -d /proc/$qemu
systemctl start ecboot
lives

stays_down() {
	until test "$(json state)" = stopped; do sleep 0.1; done
	systemctl restart ecboot
	test "$(json state)" = stopped
	ecboot guest start scoped
	until listens $1; do sleep 1; done
}
systemctl stop $scope
stays_down 2
systemctl stop ecboot
systemctl stop ecboot.slice
until ! ip link show ec-lab; do sleep 0.1; done
systemctl start ecboot
stays_down 3
echo all is: well
`, state), state)
	if !strings.Contains(console, "]: all is: well") {
		t.Fatal(console)
	}
	log, err := os.ReadFile(filepath.Join(state, "guests/scoped/console.log"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(log), "the button is pressed"); n != 3 { // at last by the shutdown
		t.Errorf("the guest's button was pressed %d times, want 3:\n%s", n, log)
	}
	if !regexp.MustCompile(`all is: well(?s:.*)Stopped .*ecboot\.service(?s:.*)Stopping .*ecboot-scoped\.scope`).MatchString(console) {
		t.Errorf("the supervisor does not end before its guest:\n%s", console)
	}
}

// buttonInitrd makes a system that switches itself off when somebody presses the
// power button.
func buttonInitrd(t *testing.T, dir string) string {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip(err)
	}
	layer := t.TempDir()
	for name, content := range map[string][]byte{
		"busybox": busybox,
		"init": []byte(`#!/busybox sh
/busybox mount -t devtmpfs dev /dev
echo the guest heeds its button
/busybox head -c 1 /dev/input/event0 >/dev/null
echo the button is pressed
/busybox poweroff -f
`),
	} {
		if err := os.WriteFile(filepath.Join(layer, name), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	img, err := initramfs.Build(t.Context(), initramfs.Spec{NoGuest: true, Layers: []string{layer}}, initramfs.Options{CacheDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return img.Path
}
