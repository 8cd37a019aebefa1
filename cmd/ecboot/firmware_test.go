package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/every-channel/ecboot/initramfs"
	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/nettest"
	"github.com/every-channel/ecboot/internal/timeline"
	"github.com/every-channel/ecboot/vmm"
)

// Where Debian's packages put what the tests boot. The packages of the
// installer exist for every architecture on any.
const (
	installer      = "/usr/lib/debian-installer/images/12/"
	installerAMD64 = installer + "amd64/text/debian-installer/amd64/"
	installerARM64 = installer + "arm64/text/debian-installer/arm64/"
	installerI386  = installer + "i386/text/debian-installer/i386/"
	memtest        = "/boot/memtest86+x64"
	debian13       = "testdata/debian13/usr/lib/"
)

// firmwareBoot is one real machine with what it is to boot.
type firmwareBoot struct {
	firmware, mode, boots, result string // its row of the table

	needs   []string                  // files and programs
	config  func(t *testing.T) string // of profile "test", and what it needs besides
	args    []string
	console string           // expression that its console shows at last; empty: it reports
	stages  []timeline.Stage // on the way
}

// fixed is a configuration that needs nothing done.
func fixed(text string) func(*testing.T) string { return func(*testing.T) string { return text } }

var firmwareBoots = []firmwareBoot{
	{
		firmware: "UEFI x64", mode: "HTTP Boot: `snponly.efi` by HTTP, HTTP", boots: "ecboot's own system", result: "userland",
		config: fixed("[profile.test]\n"),
		args:   []string{"--firmware", "uefi", "--first-stage", "http"},
		stages: []timeline.Stage{"firmware.ack", timeline.HTTPBoot, "ipxe.ack", timeline.Script, timeline.Kernel, timeline.Userland},
	},
	{
		firmware: "UEFI IA32", mode: "PXE: a given GRUB by TFTP, TFTP", boots: "ecboot's own system, 64 bits", result: "userland",
		needs: []string{installerI386 + "grubia32.efi"},
		config: fixed(`[profile.test]
[server]
nbp = {uefi-ia32 = "` + installerI386 + `grubia32.efi"}
`),
		args:   []string{"--firmware", "uefi-ia32", "--first-stage", "pxe"},
		stages: []timeline.Stage{"firmware.ack", timeline.TFTP, timeline.Linux, timeline.Userland},
	},
	{
		firmware: "UEFI ARM64", mode: "PXE: a given iPXE by TFTP, HTTP", boots: "u-root", result: "userland",
		needs:  []string{"qemu-system-aarch64", debian13 + "ipxe/ipxe-arm64.efi"},
		config: arm64System,
		args:   []string{"--arch", "arm64", "--first-stage", "pxe"},
		stages: []timeline.Stage{"firmware.ack", timeline.TFTP, "ipxe.ack", timeline.Script, timeline.Kernel, timeline.Userland},
	},
	{
		firmware: "UEFI ARM64", mode: "HTTP Boot: a given iPXE by HTTP, HTTP", boots: "u-root", result: "userland",
		needs:  []string{"qemu-system-aarch64", debian13 + "ipxe/ipxe-arm64.efi"},
		config: arm64System,
		args:   []string{"--arch", "arm64", "--first-stage", "http"},
		stages: []timeline.Stage{"firmware.ack", timeline.HTTPBoot, "ipxe.ack", timeline.Script, timeline.Kernel, timeline.Userland},
	},
	{
		firmware: "UEFI x64, Secure Boot", mode: "PXE: shim and GRUB by TFTP, TFTP", boots: "Debian 12's kernel, u-root", result: "userland",
		needs:   []string{installerAMD64 + "linux", "/usr/lib/shim/shimx64.efi.signed", "/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed"},
		config:  fixed(signedSystem),
		args:    []string{"--firmware", "uefi", "--secure-boot", "--first-stage", "pxe", "--append", "loglevel=7"},
		console: "ecboot: userland after", // that kernel has its network drivers in modules
		stages:  []timeline.Stage{"firmware.ack", timeline.TFTP, timeline.TFTP, timeline.TFTP, timeline.Linux},
	},
	{
		firmware: "UEFI x64, Secure Boot", mode: "HTTP Boot: shim and Debian 13's GRUB by HTTP, HTTP", boots: "Debian 12's kernel, u-root", result: "userland",
		needs: []string{installerAMD64 + "linux", "/usr/lib/shim/shimx64.efi.signed", debian13 + "grub/x86_64-efi-signed/grubnetx64.efi.signed"},
		config: func(t *testing.T) string {
			return signedSystem + fmt.Sprintf("[server]\ngrub = {uefi-x64 = %q}\n", absolute(t, debian13+"grub/x86_64-efi-signed/grubnetx64.efi.signed"))
		},
		args:    []string{"--firmware", "uefi", "--secure-boot", "--first-stage", "http"},
		console: "ecboot: userland after",
		stages:  []timeline.Stage{"firmware.ack", timeline.HTTPBoot, timeline.HTTPBoot, timeline.HTTPBoot, timeline.Kernel, timeline.Initrd, timeline.Linux},
	},
	{
		firmware: "UEFI x64, Secure Boot", mode: "PXE: shim and GRUB by TFTP, TFTP", boots: "an unsigned kernel", result: "refused: bad shim signature",
		needs:   []string{"/usr/lib/shim/shimx64.efi.signed", "/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed"},
		config:  fixed("[profile.test]\nsecure_boot = true\n"),
		args:    []string{"--firmware", "uefi", "--secure-boot", "--first-stage", "pxe"},
		console: "bad shim signature",
		stages:  []timeline.Stage{"firmware.ack", timeline.TFTP, timeline.TFTP, timeline.TFTP},
	},
	{
		firmware: "UEFI x64, Secure Boot", mode: "PXE: `snponly.efi` by TFTP", boots: "a profile without secure_boot", result: "refused: Access Denied",
		config:  fixed("[profile.test]\n"),
		args:    []string{"--firmware", "uefi", "--secure-boot", "--first-stage", "pxe"},
		console: "Access Denied",
		stages:  []timeline.Stage{"firmware.ack", timeline.TFTP},
	},
	{
		firmware: "UEFI ARM64, Secure Boot", mode: "PXE: shim and GRUB by TFTP, TFTP", boots: "Debian 12's kernel, u-root", result: "userland",
		needs: []string{"qemu-system-aarch64", installerARM64 + "linux", installerARM64 + "bootnetaa64.efi"},
		config: func(t *testing.T) string {
			return arm64Profile(t, installerARM64+"linux") + "secure_boot = true\n"
		},
		args:    []string{"--arch", "arm64", "--secure-boot", "--first-stage", "pxe"},
		console: "ecboot: userland after",
		stages:  []timeline.Stage{"firmware.ack", timeline.TFTP, timeline.TFTP, timeline.TFTP, timeline.Linux},
	},
	{
		firmware: "BIOS", mode: "the tree's `pxelinux.0` by TFTP, TFTP", boots: "Debian 12's installer, its tree as it is", result: "its menu",
		needs:   []string{installerAMD64 + "pxelinux.0"},
		config:  fixed(installerTree),
		console: "Debian GNU/Linux installer menu",
		stages:  []timeline.Stage{"ipxe.ack", timeline.TFTP},
	},
	{
		firmware: "UEFI x64", mode: "PXE: the tree's shim and GRUB by TFTP, TFTP", boots: "Debian 12's installer, its tree as it is", result: "its menu",
		needs:   []string{installerAMD64 + "bootnetx64.efi"},
		config:  fixed(installerTree),
		args:    []string{"--firmware", "uefi", "--first-stage", "pxe"},
		console: "Advanced options",
		stages:  []timeline.Stage{"firmware.ack", timeline.TFTP, timeline.TFTP},
	},
	{
		firmware: "BIOS", mode: "QEMU's iPXE ROM, HTTP", boots: "Debian 12's installer", result: "its first screen",
		needs: []string{installerAMD64 + "linux"},
		config: fixed(`[profile.test]
kernel = "` + installerAMD64 + `linux"
initrds = ["` + installerAMD64 + `initrd.gz"]
cmdline = "console=ttyS0"
`),
		console: "Select a language",
		stages:  []timeline.Stage{"ipxe.ack", timeline.Script, timeline.Kernel, timeline.Initrd, timeline.Linux},
	},
	{
		firmware: "BIOS", mode: "QEMU's iPXE ROM, HTTP", boots: "a tree with a `netboot.ipxe`, as NixOS makes it", result: "its init",
		config:  scriptedTree,
		console: "Run /init as init process",
		stages:  []timeline.Stage{"ipxe.ack", timeline.Script, timeline.Linux},
	},
	{
		firmware: "BIOS", mode: "QEMU's iPXE ROM, HTTP", boots: "memtest86+", result: "its screen",
		needs:   []string{memtest + ".bin"},
		config:  fixed("[profile.test]\nkernel = \"" + memtest + ".bin\"\ncmdline = \"console=ttyS0,115200\"\n"),
		console: "Memtest86",
		stages:  []timeline.Stage{"ipxe.ack", timeline.Script, timeline.Kernel},
	},
	{
		firmware: "UEFI x64", mode: "PXE: `snponly.efi` by TFTP, HTTP", boots: "memtest86+", result: "its screen",
		needs:   []string{memtest + ".efi"},
		config:  fixed("[profile.test]\nkernel = \"" + memtest + ".efi\"\ncmdline = \"console=ttyS0,115200\"\n"),
		args:    []string{"--firmware", "uefi", "--first-stage", "pxe", "--", "-vga", "std"},
		console: "Memtest86",
		stages:  []timeline.Stage{"firmware.ack", timeline.TFTP, "ipxe.ack", timeline.Script, timeline.Kernel},
	},
}

// signedSystem is a kernel that Debian has signed, with our initramfs. GRUB does
// not find out that it is in QEMU.
const signedSystem = `[profile.test]
kernel = "` + installerAMD64 + `linux"
initrds = ["embedded:initramfs"]
cmdline = "console=ttyS0 no_timer_check"
secure_boot = true
`

const installerTree = `[profile.test]
tree = "` + installer + `amd64/text"
programs = {bios = "pxelinux.0", uefi-x64 = "debian-installer/amd64/bootnetx64.efi"}
`

// scriptedTree is a kernel and an initrd beside a script that names them.
func scriptedTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	script := "#!ipxe\nkernel bzImage initrd=initrd console=ttyS0\ninitrd initrd\nboot\n"
	if err := os.WriteFile(filepath.Join(dir, "netboot.ipxe"), []byte(script), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, asset := range map[string]string{"bzImage": "vmlinuz", "initrd": "initramfs.cpio.zst"} {
		data, err := os.ReadFile("../../images/assets/" + asset)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), data, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return fmt.Sprintf("[profile.test]\ntree = %q\nprograms = {bios = \"netboot.ipxe\"}\n", dir)
}

// Firmware of every kind, real boot programs, and systems and trees that others
// made, each to where its row says.
func TestFirmware(t *testing.T) {
	for _, b := range firmwareBoots {
		t.Run(b.firmware+" "+b.mode+" "+b.boots, func(t *testing.T) {
			compat(t, compatRow{"boots", b.firmware, b.mode, b.boots, b.result})
			needGuests(t)
			needFiles(t, b.needs...)
			t.Parallel()
			file := filepath.Join(t.TempDir(), "ecboot.toml")
			if err := os.WriteFile(file, []byte(b.config(t)), 0o644); err != nil {
				t.Fatal(err)
			}
			until := "ready"
			if b.console != "" {
				until = "console:" + b.console
			}
			args := append([]string{"run", "test", "-o", "json", "--config", file, "--accel", "tcg", "--timeout", "8m", "--until", until}, b.args...)
			r := ecboot(t, args...)
			r.want(t, 0)
			var doc report
			if err := json.Unmarshal([]byte(r.stdout), &doc); err != nil {
				t.Fatalf("%v in\n%s\n%s", err, r.stdout, r.stderr)
			}
			wantStages(t, doc.Stages, b.stages...)
			for _, s := range doc.Stages {
				if s.Failed {
					t.Errorf("%s failed: %s", s.Stage, s.Detail)
				}
			}
		})
	}
}

// needFiles skips the test when a file, or a program that has no slash in its
// name, is missing.
func needFiles(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if filepath.Base(name) == name {
			nettest.Need(t, name)
		} else if _, err := os.Stat(name); err != nil {
			t.Skipf("needs %s: run make deps-test", name)
		}
	}
}

func absolute(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// arm64Profile is a profile of a kernel with a u-root of its architecture.
func arm64Profile(t *testing.T, kernel string) string {
	t.Helper()
	return fmt.Sprintf("[profile.test]\nkernel = %q\ninitrds = [%q]\ncmdline = \"console=ttyAMA0\"\n", kernel, arm64Initramfs(t))
}

// arm64System is gokrazy's kernel, which has its drivers built in, and an iPXE
// that Debian 12 does not have.
func arm64System(t *testing.T) string {
	t.Helper()
	return arm64Profile(t, arm64Kernel(t)) +
		fmt.Sprintf("[server]\nnbp = {uefi-arm64 = %q}\n", absolute(t, debian13+"ipxe/ipxe-arm64.efi"))
}

func arm64Kernel(t *testing.T) string {
	t.Helper()
	const module = "github.com/gokrazy/kernel.arm64"
	out, err := exec.Command("go", "mod", "download", "-json", module).Output()
	var download struct{ Dir string }
	if err != nil || json.Unmarshal(out, &download) != nil {
		t.Skipf("needs the module %s: %v\n%s", module, err, out)
	}
	return filepath.Join(download.Dir, "vmlinuz")
}

// arm64Initramfs builds a small u-root once.
func arm64Initramfs(t *testing.T) string {
	t.Helper()
	arm64Build.Lock()
	defer arm64Build.Unlock()
	spec := initramfs.Spec{Arch: "arm64", Commands: []string{"gosh", "ls"}}
	img, err := initramfs.Build(t.Context(), spec, initramfs.Options{CacheDir: initramfsCache()})
	if err != nil {
		t.Fatal(err)
	}
	return img.Path
}

var arm64Build sync.Mutex

// U-Boot asks as a UEFI, because it runs EFI programs.
func TestFirmwareUBoot(t *testing.T) {
	const uboot, grub = "/usr/lib/u-boot/qemu_arm64/u-boot.bin", installerARM64 + "grubaa64.efi"
	compat(t, compatRow{"boots", "U-Boot ARM64", "its EFI: a given GRUB by TFTP, TFTP", "u-root", "userland"})
	needGuests(t)
	needFiles(t, "qemu-system-aarch64", uboot, grub)
	t.Parallel()
	nettest.Bridge(t, "uboot", "10.80.0.1/24")
	dir := t.TempDir()
	file := filepath.Join(dir, "ecboot.toml")
	text := strings.Replace(arm64Profile(t, arm64Kernel(t)), "profile.test", "profile.default", 1) + fmt.Sprintf(`
[segment.lan]
bridge = "uboot"
unknown = "boot"
allow_other_dhcp = true

[server]
state_dir = %q
nbp = {uefi-arm64 = %q}
`, dir, grub)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	s := start(t, "serve", "--config", file)
	s.until(t, "serving")
	// Debian's build has this address compiled in; Linux asks the card for its
	// own, which must be the same for the boot to be one machine's.
	mac := boot.MAC{0x52, 0x52, 0x52, 0x52, 0x52, 0x52}
	stop := startMachine(t, "uboot", mac, vmm.Spec{
		Arch: vmm.ArchARM64, NICs: []vmm.NIC{{MAC: mac.HardwareAddr(), ROM: vmm.ROMNone}}, Extra: []string{"-bios", uboot},
	})
	var steps []timeline.Step
	for _, stage := range s.untilUserland(t, map[boot.MAC]func(){mac: stop})[mac] {
		steps = append(steps, timeline.Step{Stage: stage})
	}
	wantStages(t, steps, "firmware.ack", timeline.TFTP, timeline.TFTP, timeline.TFTP, timeline.Userland)
}

// An EFI program that the firmware runs by itself shows on the screen, and
// nowhere else, that it runs: memtest86+ has a blue one.
func TestFirmwareRunsAProgram(t *testing.T) {
	compat(t, compatRow{"boots", "UEFI x64", "PXE: the program itself by TFTP", "memtest86+", "its screen"})
	needGuests(t)
	needFiles(t, memtest+".efi")
	t.Parallel()
	dir := t.TempDir()
	file, socket, dump := filepath.Join(dir, "ecboot.toml"), filepath.Join(dir, "qmp"), filepath.Join(dir, "screen")
	if err := os.WriteFile(file, []byte("[profile.test]\nefi = \""+memtest+".efi\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := start(t, "run", "test", "--config", file, "--accel", "tcg", "--firmware", "uefi", "--first-stage", "pxe", "--until", "poweroff", "--timeout", "8m",
		"--", "-vga", "std", "-qmp", "unix:"+socket+",server=on,wait=off")
	s.until(t, "memtest86-x64.efi")
	monitor, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer monitor.Close()
	answers := json.NewDecoder(monitor)
	ask := func(command string) {
		t.Helper()
		fmt.Fprintln(monitor, command)
		for {
			var answer struct{ Return, Error json.RawMessage }
			if err := answers.Decode(&answer); err != nil || answer.Error != nil {
				t.Fatalf("%s: %v %s", command, err, answer.Error)
			}
			if answer.Return != nil {
				return
			}
		}
	}
	ask(`{"execute": "qmp_capabilities"}`)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	for {
		ask(fmt.Sprintf(`{"execute": "screendump", "arguments": {"filename": %q}}`, dump))
		picture, err := os.ReadFile(dump)
		if err != nil {
			t.Fatal(err)
		}
		// Three bytes for each pixel, after a header (netpbm's ppm).
		if blue := bytes.Count(picture, []byte{0, 0, 0xaa}); blue > len(picture)/3/2 {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal("the screen of memtest86+ does not appear")
		case <-time.After(500 * time.Millisecond): // nothing tells of a picture
		}
	}
}
