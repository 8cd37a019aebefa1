package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
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

// show is what 'ecboot guest show' says of a guest.
func (u *upHost) show(t *testing.T, guest string) api.Guest {
	t.Helper()
	r := u.commandWant(t, 0, []string{"guest", "show", guest, "-o", "json"})
	var doc struct{ Guest api.Guest }
	if err := json.Unmarshal([]byte(r.stdout), &doc); err != nil {
		t.Fatalf("%v in %s", err, r.stdout)
	}
	return doc.Guest
}

// A guest has a TPM, which keeps what was written to it for as long as there is
// the guest, and ends with it.
func TestUpTPM(t *testing.T) {
	nettest.Need(t, "swtpm")
	kernel := cloudKernel(t)
	t.Parallel()
	u := newUpHost(t, "tpm", fmt.Sprintf(`memory = "256M"
[profile.tpm]
kernel = %q
initrds = [%q]
cmdline = "console=ttyS0 quiet"
[guest.with-tpm]
backend = "qemu"
boot = "direct"
profile = "tpm"
tpm = true
autostart = true
stop_timeout = "1s"
restart_delay = "1s"
`, kernel, guestInitrd(t)))
	s := u.up(t)
	s.until(t, "runs as process")
	s.logged(t, "with-tpm", "guest is ready", 1)
	g := u.show(t, "with-tpm")
	if !g.TPM {
		t.Errorf("%+v", g)
	}
	swtpm := childOf(t, g.Keeper, "swtpm")
	const done = "ok 8002000000130000000000"
	s.typed(t, "with-tpm", tpmDefine, done)
	s.typed(t, "with-tpm", tpmWrite, done)
	if _, err := s.control().Restart(t.Context(), "with-tpm"); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, swtpm)
	s.logged(t, "with-tpm", "guest is ready", 2)
	s.typed(t, "with-tpm", tpmRead, tpmKept)

	// It ends even with a keeper that has no time to see to it.
	g = u.show(t, "with-tpm")
	swtpm = childOf(t, g.Keeper, "swtpm")
	syscall.Kill(g.Keeper, syscall.SIGKILL)
	awaitEnd(t, swtpm)
	s.logged(t, "with-tpm", "guest is ready", 3)
	s.typed(t, "with-tpm", tpmRead, tpmKept)
	s.cmd.Process.Signal(syscall.SIGTERM)
	if code := s.end(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	u.wantNothing(t)
}

// Four bytes that a TPM keeps at the index 0x01500001 of its owner, who has no
// password: TPM 2.0 library, part 3.
const (
	tpmKept     = "6b657074"
	tpmOwner    = "40000001"
	tpmIndex    = "01500001"
	tpmPassword = "00000009" + "40000009" + "0000" + "00" + "0000"
)

var (
	tpmDefine = tpmCommand("0000012a", tpmOwner, tpmPassword, "0000", "000e", tpmIndex, "000b", "02060006", "0000", "0004")
	tpmWrite  = tpmCommand("00000137", tpmOwner, tpmIndex, tpmPassword, "0004", tpmKept, "0000")
	tpmRead   = tpmCommand("0000014e", tpmOwner, tpmIndex, tpmPassword, "0004", "0000")
)

// tpmCommand tells the tests' guest to give its TPM a command with sessions.
func tpmCommand(parts ...string) string {
	body := strings.Join(parts, "")
	return fmt.Sprintf("tpm|8002%08x%s", 6+len(body)/2, body)
}

// cloudKernel is a kernel of Debian's that is signed and knows TPM.
func cloudKernel(t *testing.T) (path string) {
	t.Helper()
	found, _ := filepath.Glob("../../vmm/testdata/linux/boot/vmlinuz-*")
	if len(found) == 0 {
		t.Skip("Debian's cloud kernel is missing: run make deps-test")
	}
	return absolute(t, found[0])
}

// guestInitrd is an initrd whose init does what it is told on the console.
func guestInitrd(t *testing.T) (path string) {
	t.Helper()
	nettest.Need(t, "cpio")
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "init"), "../../vmm/testdata/guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	pack := exec.Command("cpio", "-o", "-H", "newc", "--quiet", "-F", "initrd")
	pack.Dir, pack.Stdin = dir, strings.NewReader("init\n")
	if out, err := pack.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return filepath.Join(dir, "initrd")
}

// Members of the operators' group, and nobody else, see the screen of a guest as
// it is while it runs.
func TestUpScreen(t *testing.T) {
	t.Parallel()
	nettest.Need(t, "setpriv", "perl")
	u := newUpHost(t, "screen", `memory = "128M"
[guest.with-screen]
backend = "qemu"
graphics = "vnc"
chain_url = "http://10.0.2.2/"
autostart = true
[[guest.with-screen.nic]]
user = true
`)
	u.Run(t, "sh", "-c", "(cat /etc/group; echo ecboot:x:4242:) >/run/group && mount --bind /run/group /etc/group")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const bin = "/run/ecboot.test" // where users without rights may reach it
	u.Run(t, "cp", exe, bin)
	as := func(groups string, argv ...string) (stdout, stderr string) {
		cmd := u.Command(t.Context(), "setpriv", append([]string{"--reuid=games", "--regid=nogroup", groups, "--inh-caps=-all", "env", mainVar + "=1"}, argv...)...)
		var out, err strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &err
		_ = cmd.Run() // what it says tells
		return out.String(), err.String()
	}
	const operator, stranger = "--groups=ecboot", "--clear-groups"

	s := u.up(t)
	s.until(t, "runs as process")
	s.logged(t, "with-screen", "iPXE initialising devices", 1)
	socket := u.show(t, "with-screen").VNC
	greet := []string{"perl", "-MIO::Socket::UNIX", "-e", `my $s = IO::Socket::UNIX->new($ARGV[0]) or die "$!\n"; print scalar <$s>`, socket}
	if hello, said := as(operator, greet...); hello != "RFB 003.008\n" {
		t.Errorf("to an operator, %q greets %q %s", socket, hello, said)
	}
	if hello, said := as(stranger, greet...); hello != "" || said != "Permission denied\n" {
		t.Errorf("to a stranger, %q greets %q %s", socket, hello, said)
	}
	shot, said := as(operator, bin, "guest", "screenshot", "with-screen", "-")
	if picture, err := png.Decode(strings.NewReader(shot)); err != nil || picture.Bounds().Dx() < 640 {
		t.Errorf("the screenshot: %v %s", err, said)
	}
	for path, mode := range map[string]string{"/run/ecboot/guests": "711 root", filepath.Dir(socket): "710 ecboot", socket: "660 ecboot"} {
		if got := strings.TrimSpace(u.Run(t, "stat", "-c", "%a %G", path)); got != mode {
			t.Errorf("%s is %s, want %s", path, got, mode)
		}
	}
	if theirs := u.Run(t, "find", filepath.Dir(socket), "-type", "f", "-perm", "/077"); theirs != "" {
		t.Errorf("not root's alone:\n%s", theirs)
	}
	if _, err := s.control().Stop(t.Context(), "with-screen", true); err != nil {
		t.Fatal(err)
	}
	u.Run(t, "test", "!", "-e", socket)
	if g := u.show(t, "with-screen"); g.VNC != "" {
		t.Errorf("%+v", g)
	}
	s.cmd.Process.Signal(syscall.SIGTERM)
	if code := s.end(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	u.wantNothing(t)
}

// Firmware with Secure Boot runs what is signed, and counts its starts in
// variables that are the guest's for good.
func TestUpSecureBoot(t *testing.T) {
	t.Parallel()
	kernel := cloudKernel(t)
	needFiles(t, "/usr/lib/shim/shimx64.efi.signed", "/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed")
	u := newUpHost(t, "secure", fmt.Sprintf(`memory = "256M"
[segment.lab]
[profile.signed]
kernel = %q
initrds = [%q]
cmdline = "console=ttyS0 loglevel=7 no_timer_check"
secure_boot = true
[guest.with-secure-boot]
backend = "qemu"
firmware = "uefi"
secure_boot = true
profile = "signed"
autostart = true
stop_timeout = "1s"
[[guest.with-secure-boot.nic]]
segment = "lab"
`, kernel, guestInitrd(t)))
	starts := func() uint32 {
		t.Helper()
		vars, err := os.ReadFile(filepath.Join(u.dir, "guests/with-secure-boot/vars.fd"))
		if err != nil {
			t.Fatal(err)
		}
		return firmwareStarts(t, vars)
	}
	s := u.up(t)
	s.until(t, "runs as process")
	s.logged(t, "with-secure-boot", "Secure boot enabled", 1)
	s.logged(t, "with-secure-boot", "guest is ready", 1)
	before := starts()
	if _, err := s.control().Restart(t.Context(), "with-secure-boot"); err != nil {
		t.Fatal(err)
	}
	s.logged(t, "with-secure-boot", "BdsDxe: starting", 2)
	if after := starts(); after != before+1 {
		t.Errorf("the firmware counts %d starts after %d", after, before)
	}
	s.cmd.Process.Signal(syscall.SIGTERM)
	if code := s.end(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	u.wantNothing(t)
}

// firmwareStarts is the monotonic count of the UEFI specification (section 8.5.2),
// whose upper half EDK II counts up at each start, in the variable MTC.
func firmwareStarts(t *testing.T, vars []byte) (n uint32) {
	t.Helper()
	name := []byte("M\x00T\x00C\x00\x00\x00")
	for found := true; found; { // old values stay where they are, for a while
		if _, vars, found = bytes.Cut(vars, name); found && len(vars) >= 4 {
			n = max(n, binary.LittleEndian.Uint32(vars))
		}
	}
	if n == 0 {
		t.Fatal("the firmware counts nothing")
	}
	return n
}
