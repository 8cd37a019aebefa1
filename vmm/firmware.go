package vmm

import (
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// descriptor is a firmware descriptor: QEMU's docs/interop/firmware.json, as
// far as choosing a UEFI for x86_64 needs it.
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

// plainUEFI tells whether the descriptor is of a UEFI that runs on the machine
// type as it is: two raw flash images, and none of what a machine has to be
// built around (SMM, encrypted memory) or what refuses our boot programs.
func (d *descriptor) plainUEFI(machine string) bool {
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
	for _, feature := range d.Features {
		switch feature {
		case "requires-smm", "secure-boot", "enrolled-keys":
			return false
		}
	}
	for _, t := range d.Targets {
		if t.Architecture == "x86_64" && slices.ContainsFunc(t.Machines, func(glob string) bool { return machineMatches(glob, machine) }) {
			return true
		}
	}
	return false
}

// machineMatches compares a glob of full machine names with a machine type
// that may be an alias: q35 is the newest pc-q35-N.
func machineMatches(glob, machine string) bool {
	switch machine {
	case "q35":
		return strings.HasPrefix(glob, "pc-q35-")
	case "pc":
		return strings.HasPrefix(glob, "pc-i440fx-")
	}
	ok, err := path.Match(glob, machine)
	return err == nil && ok
}

// Where firmware is found. A descriptor hides those of the same name in later
// directories, and an empty one hides them without taking their place.
var (
	descriptorDirs = []string{"/etc/qemu/firmware", "/usr/local/share/qemu/firmware", "/usr/share/qemu/firmware"}

	// For systems without descriptors.
	knownUEFI = []UEFI{
		{"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"},                   // Debian, Ubuntu
		{"/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"},                         // older Debian, Fedora
		{"/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"},           // Arch
		{"/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"},               // Fedora, RHEL
		{"/usr/share/qemu/ovmf-x86_64-code.bin", "/usr/share/qemu/ovmf-x86_64-vars.bin"},         // openSUSE
		{"/usr/share/edk2-ovmf/OVMF_CODE.fd", "/usr/share/edk2-ovmf/OVMF_VARS.fd"},               // Gentoo
		{"/usr/share/qemu/edk2-x86_64-code.fd", "/usr/share/qemu/edk2-i386-vars.fd"},             // QEMU's own build
		{"/run/libvirt/nix-ovmf/OVMF_CODE.fd", "/run/libvirt/nix-ovmf/OVMF_VARS.fd"},             // NixOS
		{"/usr/local/share/qemu/edk2-x86_64-code.fd", "/usr/local/share/qemu/edk2-i386-vars.fd"}, // QEMU from source
	}
)

// FindUEFI finds a UEFI without Secure Boot for a machine type (empty: q35):
// by QEMU's firmware descriptors, else among the paths that distributions use.
func FindUEFI(machine string) (UEFI, error) {
	return findUEFI("/", machine)
}

// findUEFI looks below root, which is / outside of tests.
func findUEFI(root, machine string) (UEFI, error) {
	machine, _, _ = strings.Cut(machine, ",")
	if machine == "" {
		machine = "q35"
	}
	exists := func(u UEFI) bool {
		for _, name := range []string{u.Code, u.Vars} {
			if st, err := os.Stat(filepath.Join(root, name)); err != nil || !st.Mode().IsRegular() {
				return false
			}
		}
		return true
	}
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
		u := UEFI{Code: d.Mapping.Executable.Filename, Vars: d.Mapping.Vars.Filename}
		if d.plainUEFI(machine) && exists(u) {
			return u, nil
		}
	}
	// The table's images are for PCs.
	if strings.HasPrefix(machine, "q35") || strings.HasPrefix(machine, "pc") {
		for _, u := range knownUEFI {
			if exists(u) {
				return u, nil
			}
		}
	}
	msg := "no UEFI firmware for machine " + machine + ": install the package ovmf (apt-get install ovmf), or boot with BIOS"
	for _, b := range broken {
		msg += "; " + b
	}
	return UEFI{}, fmt.Errorf("%s", msg)
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
