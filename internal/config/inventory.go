package config

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/every-channel/ecboot/internal/boot"
)

// Inventory returns what is known on a segment in the terms of package boot. An
// address is reserved on the one segment that has it, whichever asks.
// File.Path holds a Source: besides paths it can be an embedded image or, for
// a profile with an Initramfs, Built(name), which the caller turns into paths.
// File names are unique in a profile and safe in URLs, iPXE scripts and kernel
// command lines. Whether strangers are answered at all is Segment.Policy.
func (c *Config) Inventory(seg Segment) *boot.Inventory {
	inv := &boot.Inventory{
		Machines: make(map[boot.MAC]boot.Machine, len(c.Machines)),
		ByUUID:   map[string]boot.Machine{},
		ByName:   map[string]boot.Machine{},
		Profiles: make(map[string]boot.Profile, len(c.Profiles)),
		NBPs:     map[boot.Platform]string{},
		Files:    map[string]string{},
		Declared: DefaultProfile,
	}
	if seg.Policy() == PolicyBoot {
		inv.Default = DefaultProfile
	}
	for _, m := range c.Machines {
		bm := boot.Machine{
			MAC: m.MAC, UUID: m.UUID, Name: m.Name, Profile: m.Profile, NBP: program(inv, m.NBP),
			Chainload: m.Chainload, Tags: m.Tags, Options: Options(m.Options),
		}
		if m.Next == NextLocal {
			bm.Profile = boot.LocalName
		}
		if m.Address.IsValid() {
			bm.Addr = m.Address.String()
		}
		switch {
		case m.MAC != boot.MAC{}:
			inv.Machines[m.MAC] = bm
		case m.UUID != "":
			inv.ByUUID[m.UUID] = bm
		case m.Name != "":
			inv.ByName[strings.ToLower(m.Name)] = bm
		}
	}
	for _, r := range c.Rules {
		prefix, _ := hex.DecodeString(strings.ReplaceAll(r.MAC, ":", ""))
		inv.Rules = append(inv.Rules, boot.Rule{
			MACPrefix: prefix, Platform: r.Arch, Vendor: r.Vendor, UUID: r.UUID, Tags: r.Tags,
			Profile: r.Profile, NBP: program(inv, r.NBP),
		})
	}
	for platform, path := range c.Server.NBP {
		inv.NBPs[platform] = program(inv, path)
	}
	for name, p := range c.Profiles {
		inv.Profiles[name] = p.boot()
	}
	return inv
}

// program returns the name under which a boot program is served, and notes
// where its file is.
func program(inv *boot.Inventory, p string) string {
	if !filepath.IsAbs(p) {
		return p // one of ours, or none
	}
	// Two programs may have the same name in different directories.
	name := filepath.Base(p)
	for n := 2; inv.Files[name] != "" && inv.Files[name] != p; n++ {
		name = fmt.Sprintf("%d-%s", n, filepath.Base(p))
	}
	inv.Files[name] = p
	return name
}

// Options returns options that were checked in the form of package boot,
// ordered by code.
func Options(texts map[string]string) []boot.Option {
	var list []boot.Option
	for name, value := range texts {
		if o, err := boot.ParseOption(name, value); err == nil {
			list = append(list, o)
		}
	}
	slices.SortFunc(list, func(a, b boot.Option) int { return cmp.Compare(a.Code, b.Code) })
	return list
}

func (p Profile) boot() boot.Profile {
	bp := boot.Profile{Name: p.Name, Cmdline: p.Cmdline, Script: p.Script, SecureBoot: p.SecureBoot, Tree: p.Tree, Programs: p.Programs}
	names := fileNames{}
	if p.EFI != "" {
		bp.EFI = names.file(Source(p.EFI))
		bp.Programs = map[boot.Platform]string{p.EFIPlatform: ProgramPath(p.Name, bp.EFI.Name)}
	}
	if p.Kernel == "" {
		return bp
	}
	bp.Kernel = names.file(p.Kernel)
	for _, initrd := range p.Initrds {
		bp.Initrds = append(bp.Initrds, names.file(initrd))
	}
	if p.Initramfs != nil {
		bp.Initrds = append(bp.Initrds, names.file(Built(p.Name)))
	}
	return bp
}

// ProgramPath is where firmware finds a file of a profile by TFTP, and by HTTP
// behind a slash.
func ProgramPath(profile, file string) string { return "profile/" + profile + "/" + file }

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
