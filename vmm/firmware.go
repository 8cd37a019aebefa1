package vmm

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Wanted is a UEFI to look for. The zero value is a UEFI without Secure Boot for
// a q35.
type Wanted struct {
	Arch       string // ArchAMD64, which empty means, Arch386 or ArchARM64
	Machine    string // QEMU's machine type; empty: q35, or virt
	SecureBoot bool   // enforcing, with Microsoft's keys
}

// targets are the architectures in the words of the descriptors.
var targets = map[string]string{ArchAMD64: "x86_64", Arch386: "i386", ArchARM64: "aarch64"}

// normal fills in what is left out, and takes away the machine's options.
func (w Wanted) normal() Wanted {
	w.Machine, _, _ = strings.Cut(w.Machine, ",")
	if w.Arch == "" {
		w.Arch = ArchAMD64
	}
	if w.Machine == "" {
		w.Machine = "q35"
		if w.Arch == ArchARM64 {
			w.Machine = "virt"
		}
	}
	return w
}

// descriptor is a firmware descriptor: QEMU's docs/interop/firmware.json, as
// far as choosing a UEFI needs it.
type descriptor struct {
	Interfaces []string `json:"interface-types"`
	Mapping    struct {
		Device     string    `json:"device"`
		Mode       string    `json:"mode"` // since QEMU 6.0; absent means split
		Executable flashFile `json:"executable"`
		Vars       flashFile `json:"nvram-template"`
	} `json:"mapping"`
	Targets []struct {
		Architecture string   `json:"architecture"`
		Machines     []string `json:"machines"` // globs of full names, pc-q35-*
	} `json:"targets"`
	Features []string `json:"features"`
}

type flashFile struct {
	Filename string `json:"filename"`
	Format   string `json:"format"`
}

// parseDescriptor reads one descriptor. One that is well formed but of no use
// here is no error.
func parseDescriptor(data []byte) (*descriptor, error) {
	var d descriptor
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, err
	}
	return &d, nil
}

// fits tells whether the descriptor is of a UEFI like the wanted one that QEMU
// runs from two raw flash images. One without Secure Boot has no keys, whatever
// its name: it is in setup mode.
func (d *descriptor) fits(w Wanted) bool {
	if !slices.Contains(d.Interfaces, "uefi") || d.Mapping.Device != "flash" {
		return false
	}
	if d.Mapping.Mode != "" && d.Mapping.Mode != "split" {
		return false
	}
	for _, f := range []flashFile{d.Mapping.Executable, d.Mapping.Vars} {
		if f.Filename == "" || f.Format != "raw" {
			return false
		}
	}
	if slices.Contains(d.Features, "enrolled-keys") != w.SecureBoot {
		return false
	}
	for _, t := range d.Targets {
		if t.Architecture == targets[w.Arch] && slices.ContainsFunc(t.Machines, func(glob string) bool { return machineMatches(glob, w.Machine) }) {
			return true
		}
	}
	return false
}

// smm tells whether the UEFI needs system management mode.
func (d *descriptor) smm() bool { return slices.Contains(d.Features, "requires-smm") }

// machineMatches compares a glob of full machine names with a machine type
// that may be an alias: q35 is the newest pc-q35-N.
func machineMatches(glob, machine string) bool {
	switch machine {
	case "q35":
		return strings.HasPrefix(glob, "pc-q35-")
	case "pc":
		return strings.HasPrefix(glob, "pc-i440fx-")
	case "virt":
		return strings.HasPrefix(glob, "virt-")
	}
	ok, err := path.Match(glob, machine)
	return err == nil && ok
}

// Where firmware is found. A descriptor hides those of the same name in later
// directories, and an empty one hides them without taking their place.
var (
	descriptorDirs = []string{"/etc/qemu/firmware", "/usr/local/share/qemu/firmware", "/usr/share/qemu/firmware"}

	// For systems without descriptors.
	knownUEFI = map[Wanted][]UEFI{
		{Arch: ArchAMD64}: {
			{Code: "/usr/share/OVMF/OVMF_CODE_4M.fd", Vars: "/usr/share/OVMF/OVMF_VARS_4M.fd"},                   // Debian, Ubuntu
			{Code: "/usr/share/OVMF/OVMF_CODE.fd", Vars: "/usr/share/OVMF/OVMF_VARS.fd"},                         // older Debian, Fedora
			{Code: "/usr/share/edk2/x64/OVMF_CODE.4m.fd", Vars: "/usr/share/edk2/x64/OVMF_VARS.4m.fd"},           // Arch
			{Code: "/usr/share/edk2/ovmf/OVMF_CODE.fd", Vars: "/usr/share/edk2/ovmf/OVMF_VARS.fd"},               // Fedora, RHEL
			{Code: "/usr/share/qemu/ovmf-x86_64-code.bin", Vars: "/usr/share/qemu/ovmf-x86_64-vars.bin"},         // openSUSE
			{Code: "/usr/share/edk2-ovmf/OVMF_CODE.fd", Vars: "/usr/share/edk2-ovmf/OVMF_VARS.fd"},               // Gentoo
			{Code: "/usr/share/qemu/edk2-x86_64-code.fd", Vars: "/usr/share/qemu/edk2-i386-vars.fd"},             // QEMU's own build
			{Code: "/run/libvirt/nix-ovmf/OVMF_CODE.fd", Vars: "/run/libvirt/nix-ovmf/OVMF_VARS.fd"},             // NixOS
			{Code: "/usr/local/share/qemu/edk2-x86_64-code.fd", Vars: "/usr/local/share/qemu/edk2-i386-vars.fd"}, // QEMU from source
		},
		{Arch: ArchAMD64, SecureBoot: true}: {
			{Code: "/usr/share/OVMF/OVMF_CODE_4M.ms.fd", Vars: "/usr/share/OVMF/OVMF_VARS_4M.ms.fd", SMM: true}, // Debian, Ubuntu
		},
		{Arch: Arch386}: {
			{Code: "/usr/share/OVMF/OVMF32_CODE_4M.secboot.fd", Vars: "/usr/share/OVMF/OVMF32_VARS_4M.fd", SMM: true}, // Debian, Ubuntu
		},
		{Arch: ArchARM64}: {
			{Code: "/usr/share/AAVMF/AAVMF_CODE.fd", Vars: "/usr/share/AAVMF/AAVMF_VARS.fd"},         // Debian, Ubuntu
			{Code: "/usr/share/qemu/edk2-aarch64-code.fd", Vars: "/usr/share/qemu/edk2-arm-vars.fd"}, // QEMU's own build
		},
	}

	uefiPackages = map[string]string{ArchAMD64: "ovmf", Arch386: "ovmf-ia32", ArchARM64: "qemu-efi-aarch64"}
)

// FindUEFI finds a UEFI: by QEMU's firmware descriptors, else among the paths
// that distributions use. One that a machine has to be built around comes last.
func FindUEFI(w Wanted) (UEFI, error) { return findUEFI("/", w) }

// findUEFI looks below root, which is / outside of tests.
func findUEFI(root string, w Wanted) (UEFI, error) {
	w = w.normal()
	exists := func(u UEFI) bool {
		for _, name := range []string{u.Code, u.Vars} {
			if st, err := os.Stat(filepath.Join(root, name)); err != nil || !st.Mode().IsRegular() {
				return false
			}
		}
		return true
	}
	var found []UEFI
	var broken []string
	for _, name := range descriptorFiles(root) {
		data, err := os.ReadFile(name)
		if err != nil || len(data) == 0 {
			continue
		}
		d, err := parseDescriptor(data)
		if err != nil {
			broken = append(broken, fmt.Sprintf("%s is broken: %v", name, err))
			continue
		}
		u := UEFI{Code: d.Mapping.Executable.Filename, Vars: d.Mapping.Vars.Filename, SMM: d.smm()}
		if d.fits(w) && exists(u) {
			found = append(found, u)
		}
	}
	// The table's images are for these machines.
	if strings.HasPrefix(w.Machine, "q35") || strings.HasPrefix(w.Machine, "pc") || strings.HasPrefix(w.Machine, "virt") {
		for _, u := range knownUEFI[Wanted{Arch: w.Arch, SecureBoot: w.SecureBoot}] {
			if exists(u) {
				found = append(found, u)
			}
		}
	}
	guarded := false
	if !strings.HasPrefix(w.Machine, "q35") && !strings.HasPrefix(w.Machine, "pc-q35-") {
		there := len(found)
		found = slices.DeleteFunc(found, func(u UEFI) bool { return u.SMM })
		guarded = len(found) < there
	}
	if i := slices.IndexFunc(found, func(u UEFI) bool { return !u.SMM }); i >= 0 {
		return found[i], nil
	}
	if len(found) > 0 {
		return found[0], nil
	}
	what := "UEFI firmware"
	if w.SecureBoot {
		what += " with Secure Boot"
	}
	if guarded {
		return UEFI{}, fmt.Errorf("the %s that is here needs a machine q35, which can keep its variables from the guest, and not %s", what, w.Machine)
	}
	msg := fmt.Sprintf("no %s for an %s machine %s: install the package %s (apt-get install %[4]s)", what, w.Arch, w.Machine, uefiPackages[w.Arch])
	if w.Arch == ArchAMD64 && !w.SecureBoot {
		msg += ", or boot with BIOS"
	}
	for _, b := range broken {
		msg += "; " + b
	}
	return UEFI{}, errors.New(msg)
}

// descriptorFiles lists the descriptors in the order of their names, which is
// the order of preference.
func descriptorFiles(root string) []string {
	byName := map[string]string{}
	var names []string
	for _, dir := range descriptorDirs {
		files, _ := filepath.Glob(filepath.Join(root, dir, "*.json"))
		for _, f := range files {
			base := filepath.Base(f)
			if byName[base] == "" {
				byName[base] = f
				names = append(names, base)
			}
		}
	}
	slices.Sort(names)
	for i, n := range names {
		names[i] = byName[n]
	}
	return names
}
