package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/every-channel/ecboot/images"
)

// What a user can get wrong, and what must be said.
func TestWrongInput(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	mistakes := write("mistakes.toml", "[segment.private]\naddress = \"10.77.0.1\"\nlease_time = \"soon\"\n\n[guest]\nmemory = 5\ncolour = \"red\"\n\n[[machine]]\nmac = \"nope\"\n")
	notCPIO := write("not.cpio", "hello")
	someEFI := write("some.efi", "MZ")
	tests := []struct {
		name string
		args []string
		code int
		want []string
	}{
		{"no such verb", []string{"fly"}, 2, []string{`unknown command "fly": 'ecboot --help' lists`}},
		{"misspelt verb", []string{"gest"}, 2, []string{`unknown command "gest": did you mean guest? 'ecboot --help'`}},
		{"no such verb of guests", []string{"guest", "lisst"}, 2, []string{`unknown command "lisst": did you mean list? 'ecboot guest --help'`}},
		{"no such shell", []string{"completion", "fis"}, 2, []string{`unknown command "fis": did you mean fish? 'ecboot completion --help'`}},
		{"no guest to show", []string{"guest", "show"}, 2, []string{"'ecboot guest show' takes GUEST: see 'ecboot guest show --help'"}},
		{"two guests to show", []string{"guest", "show", "a", "b"}, 2, []string{`'ecboot guest show' takes GUEST, not ["a" "b"]: see`}},
		{"no number of lines", []string{"guest", "log", "a", "-n", "all"}, 2, []string{`"-n, --lines" flag: want a whole number: see 'ecboot guest log --help'`}},
		{"no name", []string{"guest", "show", ""}, 2, []string{"argument 1 of 'ecboot guest show' is empty: it takes GUEST"}},
		{"no verb", []string{"guest", ""}, 2, []string{`unknown command "": 'ecboot guest --help'`}},
		{"kernel without a name", []string{"boot", ""}, 2, []string{"argument 1 of 'ecboot boot' is empty"}},
		{"initrd without a name", []string{"boot", someEFI, ""}, 2, []string{"argument 2 of 'ecboot boot' is empty"}},
		{"configuration without a name", []string{"config", "show", "--config", ""}, 2, []string{"--config is given and empty"}},
		{"segment without a name", []string{"serve", "--segment", ""}, 2, []string{`no segment ""`}},
		{"no such flag", []string{"run", "--fly"}, 2, []string{"--fly", "ecboot run --help"}},
		{"firmware", []string{"run", "--firmware", "coreboot"}, 2, []string{"--firmware coreboot: want bios or uefi or uefi-ia32"}},
		{"everything at once", []string{"run", "--accel", "magic", "--until", "dinner", "--count", "0"}, 2, []string{"--accel magic", "--until dinner", "--count 0"}},
		{"regexp", []string{"run", "--until", "console:("}, 2, []string{"missing closing )"}},
		{"memory", []string{"run", "--memory", "much"}, 2, []string{"--memory"}},
		{"group MAC", []string{"run", "--mac", "01:00:00:00:00:01"}, 2, []string{"group address"}},
		{"nothing to boot from", []string{"run", "--rom", "none"}, 2, []string{"--firmware uefi"}},
		{"iPXE as the kernel of UEFI", []string{"run", "--firmware", "uefi", "--first-stage", "ipxe"}, 2, []string{"BIOS only"}},
		{"PXE of a BIOS", []string{"run", "--first-stage", "pxe"}, 2, []string{"--firmware uefi"}},
		{"Secure Boot with BIOS", []string{"run", "--secure-boot"}, 2, []string{"--firmware uefi"}},
		{"Secure Boot and a ROM", []string{"run", "--secure-boot", "--firmware", "uefi"}, 2, []string{"--first-stage pxe or http"}},
		{"ARM64 with BIOS", []string{"run", "--arch", "arm64", "--firmware", "bios"}, 2, []string{"UEFI only"}},
		{"ARM64 without a kernel for it", []string{"run", "--arch", "arm64"}, 2, []string{"a kernel of its own"}},
		{"unknown profile", []string{"run", "rescue"}, 2, []string{`no profile "rescue"`, "default"}},
		{"two profiles", []string{"run", "a", "b"}, 2, []string{"one profile at a time"}},
		{"unknown bridge", []string{"run", "--bridge", "br99"}, 5, []string{"br99", "ip link add br99 type bridge"}},
		{"no bridge", []string{"run", "--bridge", "lo"}, 5, []string{"lo is no bridge"}},
		{"no kernel", []string{"boot"}, 2, []string{"which kernel"}},
		{"missing kernel", []string{"boot", "/no/such/kernel"}, 2, []string{"/no/such/kernel"}},
		{"kernel is a directory", []string{"boot", dir}, 2, []string{"is a directory"}},
		{"no kernel at all", []string{"boot", notCPIO}, 2, []string{"not.cpio is no kernel"}},
		{"missing initrd", []string{"boot", someEFI, "/no/such/initrd"}, 2, []string{"/no/such/initrd"}},
		{"address", []string{"serve", "--address", "here"}, 2, []string{"10.77.0.1/24"}},
		{"serve takes nothing", []string{"serve", "now"}, 2, []string{`'ecboot serve' takes no arguments, not ["now"]`}},
		{"no such configuration", []string{"run", "--config", "/no/such.toml"}, 2, []string{"/no/such.toml", "config init"}},
		{"five mistakes", []string{"config", "check", mistakes}, 2, []string{"mistakes.toml:2:", "mistakes.toml:3:", "mistakes.toml:6:", "mistakes.toml:7:", "mistakes.toml:10:"}},
		{"config init does not overwrite", []string{"config", "init", mistakes}, 2, []string{"exists already"}},
		{"config init nowhere", []string{"config", "init", "/no/such/dir/x"}, 1, []string{"/no/such/dir/x"}},
		{"no archive", []string{"initramfs", "ls", notCPIO}, 1, []string{"not.cpio"}},
		{"missing archive", []string{"initramfs", "ls", "/no/such"}, 1, []string{"/no/such"}},
		{"file without a place", []string{"initramfs", "build", "--file", "x"}, 2, []string{"PATH"}},
		{"archive nowhere", []string{"initramfs", "build", "-o", "/no/such/dir/x"}, 2, []string{`--output "/no/such/dir/x": want a file in a directory that is there`}},
		{"compression", []string{"initramfs", "build", "--compression", "zip"}, 1, []string{"zip"}},
		{"segment", []string{"serve", "--segment", "office"}, 2, []string{`no segment "office"`, "private"}},
		{"segment and bridge", []string{"serve", "--segment", "private", "--bridge", "br0"}, 2, []string{"one of the two"}},
		{"mode", []string{"serve", "--mode", "relay"}, 2, []string{"want server or proxy"}},
		{"private proxy", []string{"serve", "--mode", "proxy"}, 2, []string{"--bridge"}},
		{"output of a boot", []string{"run", "-o", "xml"}, 2, []string{"want text or json"}},
		{"output", []string{"lease", "list", "-o", "xml"}, 2, []string{"want text or json"}},
		{"lease of what", []string{"lease", "list", "x"}, 2, []string{`"x"`}},
		{"doctor's output", []string{"doctor", "-o", "xml"}, 2, []string{"want text or json"}},
		{"version of what", []string{"version", "x"}, 2, []string{`"x"`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := ecboot(t, tt.args...)
			r.want(t, tt.code, tt.want...)
			if r.stdout != "" {
				t.Errorf("standard output is for answers, but it has\n%s", r.stdout)
			}
		})
	}
}

func TestAnswers(t *testing.T) {
	if _, err := images.Default(); err != nil {
		t.Skip(err)
	}
	file := filepath.Join(t.TempDir(), "ecboot.toml")
	someEFI := filepath.Join(t.TempDir(), "some.efi")
	if err := os.WriteFile(someEFI, []byte("MZ"), 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		args []string
		want []string
	}{
		{"help", []string{"--help"}, []string{"Exit codes", "doctor"}},
		{"version", []string{"version"}, []string{"ecboot"}},
		{"images", []string{"image", "list"}, []string{"vmlinuz", "GPL-2.0-only", "undionly.kpxe"}},
		{"images for programs", []string{"image", "list", "-o", "json"}, []string{`"schema": 1`, `"sha256"`}},
		{"config init", []string{"config", "init", file}, []string{"wrote"}},
		{"config check", []string{"config", "check", file}, []string{"no mistakes"}},
		{"config show", []string{"config", "show"}, []string{"[segment.private]", `"10.77.0.1/24"`}},
		{"reference", []string{"config", "show", "--reference"}, []string{"lease_time"}},
		{"options", []string{"config", "show", "--options"}, []string{"42 ntp-servers"}},
		{"machines", []string{"machine", "list", "-o", "json"}, []string{`"machines"`}},
		{"leases", []string{"lease", "list", "-o", "json"}, []string{`"leases"`}},
		{"completion", []string{"completion", "bash"}, []string{"__ecboot"}},
		{"dry run", []string{"run", "--accel", "tcg", "--dry-run", "--", "-device", "intel-hda"}, []string{"qemu-system-x86_64", "-accel tcg", "-device intel-hda"}},
		{"dry run of iPXE as the kernel", []string{"run", "--accel", "tcg", "--first-stage", "ipxe", "--dry-run"}, []string{"-kernel /var/cache/ecboot/images/", "/ipxe.lkrn"}},
		{"dry run of a kernel", []string{"boot", someEFI, "--accel", "tcg", "--dry-run"}, []string{"qemu-system-x86_64"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { ecboot(t, tt.args...).want(t, 0, tt.want...) })
	}
}

func TestUpDryRun(t *testing.T) {
	if _, err := images.Default(); err != nil {
		t.Skip(err)
	}
	file := filepath.Join(t.TempDir(), "ecboot.toml")
	run := func(guests string) result {
		t.Helper()
		if err := os.WriteFile(file, []byte("[guest]\naccel = \"tcg\"\n"+guests), 0o644); err != nil {
			t.Fatal(err)
		}
		return ecboot(t, "up", "--dry-run", "--config", file)
	}
	run("").want(t, 0, "no guests: tables such as [guest.db] declare them")
	run("[guest.db]\nbackend = \"microvm\"\n").want(t, 0, "# db\nqemu-system-x86_64 ")
	// What is missing is told by its key, and the command nevertheless.
	run("[guest.db]\nbackend = \"qemu\"\nboot = \"disk\"\n[[guest.db.disk]]\nbase = \"/no/base\"\n[[guest.db.disk]]\npath = \"/no/cd\"\niso = true\n[[guest.db.share]]\nsource = \"/no/dir\"\ntarget = \"dir\"\n[[guest.db.nic]]\nmacvtap = \"nowhere\"\n").want(t, exitEnvironment,
		"# db\nqemu-system-x86_64 ", "guest.db.disk[0].base: stat /no/base: no such file", "\nguest.db.disk[1].path: stat /no/cd: no such", "\nguest.db.share[0].source: stat /no/dir: no such", "guest.db.nic[0].macvtap: there is no link nowhere: 'ip link'")
}
