package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	console := systemdtest.Run(t, fmt.Sprintf(`
export %[1]s=1
%[2]s install
systemd-sysusers
systemd-tmpfiles --create
mkdir -p /etc/ecboot /etc/systemd/system/ecboot.service.d
cat >/etc/ecboot/ecboot.toml <<'end'
[guest.one]
backend = "container"
root = %[3]q
autostart = true
stop_signal = "SIGUSR2"
end
printf '[Service]\nEnvironment=%[1]s=1\n' >/etc/systemd/system/ecboot.service.d/test.conf
systemctl daemon-reload
systemctl enable --now ecboot
until ecboot guest list | grep running; do sleep 0.1; done
before=$(cat /sys/fs/cgroup/unified/ecboot.slice/ecboot-one.scope/cgroup.procs /sys/fs/cgroup/ecboot.slice/ecboot-one.scope/cgroup.procs || :)
systemctl restart ecboot
systemctl reload ecboot
until ecboot guest list | grep running; do sleep 0.1; done
systemctl is-active ecboot ecboot-one.scope
after=$(cat /sys/fs/cgroup/unified/ecboot.slice/ecboot-one.scope/cgroup.procs /sys/fs/cgroup/ecboot.slice/ecboot-one.scope/cgroup.procs || :)
test -n "$before" && test "$before" = "$after" && echo the same: keeper
`, mainVar, self, root), self, root)
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
