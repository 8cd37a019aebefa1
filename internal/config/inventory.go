package config

import (
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"github.com/every-channel/ecboot/internal/boot"
)

// Inventory returns the machines and profiles in the terms of package boot.
// File.Path holds a Source: besides paths it can be an embedded image or, for
// a profile with an Initramfs, Built(name), which the caller turns into paths.
// File names are unique in a profile and safe in URLs, iPXE scripts and kernel
// command lines. Whether strangers are answered at all is Segment.Policy.
func (c *Config) Inventory() *boot.Inventory {
	inv := &boot.Inventory{
		Machines: make(map[boot.MAC]boot.Machine, len(c.Machines)),
		Profiles: make(map[string]boot.Profile, len(c.Profiles)),
	}
	if c.Segment.Policy() == PolicyBoot {
		inv.Default = DefaultProfile
	}
	for _, m := range c.Machines {
		bm := boot.Machine{MAC: m.MAC, Name: m.Name, Profile: m.Profile, NBP: m.NBP, Chainload: m.Chainload}
		if m.Profile == "" {
			bm.Profile = DefaultProfile
		}
		if m.Address.IsValid() {
			bm.Addr = m.Address.String()
		}
		inv.Machines[m.MAC] = bm
	}
	for name, p := range c.Profiles {
		inv.Profiles[name] = p.boot()
	}
	return inv
}

func (p Profile) boot() boot.Profile {
	bp := boot.Profile{Name: p.Name, Cmdline: p.Cmdline, Script: p.Script}
	if p.ScriptFile != "" {
		return bp
	}
	names := fileNames{}
	bp.Kernel = names.file(p.Kernel)
	for _, initrd := range p.Initrds {
		bp.Initrds = append(bp.Initrds, names.file(initrd))
	}
	if p.Initramfs != nil {
		bp.Initrds = append(bp.Initrds, names.file(Built(p.Name)))
	}
	return bp
}

// fileNames is the names that a profile has used up.
type fileNames map[string]bool

func (taken fileNames) file(s Source) boot.File {
	base := filepath.Base(string(s))
	if name, ok := s.Embedded(); ok {
		base = name
	} else if profile, ok := s.Built(); ok {
		base = profile + ".cpio"
	}
	base = strings.Map(func(c rune) rune {
		if c < 0x80 && (isLetterOrDigit(byte(c)) || strings.ContainsRune("._-", c)) {
			return c
		}
		return '-'
	}, base)
	// The number goes before the extension, so that .efi stays .efi.
	stem, ext := strings.TrimSuffix(base, path.Ext(base)), path.Ext(base)
	name := base
	for n := 2; taken[name]; n++ {
		name = fmt.Sprintf("%s-%d%s", stem, n, ext)
	}
	taken[name] = true
	return boot.File{Name: name, Path: string(s)}
}
