package config

import (
	"debug/pe"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/every-channel/ecboot/internal/boot"
)

// maxScript is far more than a script needs and little enough to be rendered
// in memory for each request.
const maxScript = 1 << 20

// readFiles reads the scripts of the profiles and reports every file that
// cannot be read.
func (r *reader) readFiles(c *Config) {
	for name, p := range c.Profiles {
		section := join("profile", name)
		if p.EFI != "" && r.checkFile(section+".efi", p.EFI) {
			if platform, ok := efiPlatform(p.EFI); ok {
				p.EFIPlatform = platform
				c.Profiles[name] = p
			} else {
				r.problemAt(section+".efi", p.EFI+" is not an EFI program", "write the path of an .efi file")
			}
		}
		if p.Tree != "" {
			r.checkTree(section, p)
		}
		script, kernel, initrds, files := section+".script", section+".kernel", section+".initrds", section+".initramfs.files"
		if p.ScriptFile != "" {
			if text, ok := r.readScript(script, p.ScriptFile); ok {
				p.Script = text
				c.Profiles[name] = p
			}
			continue
		}
		if r.ok(kernel) && p.Kernel != "" {
			r.checkSource(kernel, p.Kernel)
		}
		if r.ok(initrds) {
			for i, initrd := range p.Initrds {
				r.checkSource(fmt.Sprintf("%s[%d]", initrds, i), initrd)
			}
		}
		if p.Initramfs != nil {
			for inside, outside := range p.Initramfs.Files {
				r.checkThere(join(files, inside), outside)
			}
		}
	}
}

// readPrograms checks the boot programs and certificates that are files.
func (r *reader) readPrograms(c *Config) {
	for key, programs := range map[string]map[boot.Platform]string{"server.nbp": c.Server.NBP, "server.shim": c.Server.Shim, "server.grub": c.Server.GRUB} {
		for platform, path := range programs {
			r.checkFile(join(key, string(platform)), path)
		}
	}
	for _, f := range []struct{ key, path string }{{"server.tls_certificate", c.Server.TLSCertificate}, {"server.tls_key", c.Server.TLSKey}} {
		if f.path != "" {
			r.checkFile(f.key, f.path)
		}
	}
	for i, m := range c.Machines {
		r.checkProgram(fmt.Sprintf("machine[%d].nbp", i), m.NBP)
	}
	for i, rule := range c.Rules {
		r.checkProgram(fmt.Sprintf("match[%d].nbp", i), rule.NBP)
	}
}

func (r *reader) checkProgram(key, path string) {
	if filepath.IsAbs(path) && r.ok(key) {
		r.checkFile(key, path)
	}
}

// checkTree reports a tree that is no directory, and programs that it lacks.
func (r *reader) checkTree(section string, p Profile) {
	key := section + ".tree"
	if !r.checkThere(key, p.Tree) {
		return
	}
	if info, err := os.Stat(p.Tree); err != nil || !info.IsDir() {
		r.problemAt(key, p.Tree+" is not a directory", "write the directory that holds what the programs ask for")
		return
	}
	root, err := os.OpenRoot(p.Tree)
	if err != nil {
		r.problemAt(key, fmt.Sprintf("%s cannot be read: %v", p.Tree, reason(err)), "")
		return
	}
	defer root.Close()
	for platform, program := range p.Programs {
		if _, err := root.Stat(program); err != nil {
			r.problemAt(join(section+".programs", string(platform)), fmt.Sprintf("%s has no %s that is inside of it: %v", p.Tree, program, reason(err)), "write the path of a file in the tree")
		}
	}
}

// efiPlatform reads what an EFI program runs on (PE/COFF specification §3.3.1).
func efiPlatform(path string) (boot.Platform, bool) {
	f, err := pe.Open(path)
	if err != nil {
		return "", false
	}
	defer f.Close()
	platform, ok := map[uint16]boot.Platform{
		pe.IMAGE_FILE_MACHINE_I386:        boot.UEFIIA32,
		pe.IMAGE_FILE_MACHINE_AMD64:       boot.UEFIX64,
		pe.IMAGE_FILE_MACHINE_ARMNT:       boot.UEFIARM32,
		0x1c2:                             boot.UEFIARM32, // Thumb, as EDK2 builds it
		pe.IMAGE_FILE_MACHINE_ARM64:       boot.UEFIARM64,
		pe.IMAGE_FILE_MACHINE_RISCV64:     boot.UEFIRISCV64,
		pe.IMAGE_FILE_MACHINE_LOONGARCH64: boot.UEFILoongArch64,
	}[f.Machine]
	return platform, ok
}

func (r *reader) checkSource(key string, s Source) {
	if _, embedded := s.Embedded(); !embedded {
		r.checkFile(key, string(s))
	}
}

const writePath = "write the path of a file, absolute or from the directory of this one"

// checkThere reports a path that leads nowhere. Directories and dangling
// links can be put into an archive as well as files.
func (r *reader) checkThere(key, path string) bool {
	_, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r.problemAt(key, "there is no file "+path, writePath)
		return false
	case err != nil:
		r.problemAt(key, fmt.Sprintf("%s cannot be looked at: %v", path, reason(err)), "")
		return false
	}
	return true
}

// checkFile reports a file that cannot be served. Only a regular file is
// opened: opening a pipe would wait for a writer.
func (r *reader) checkFile(key, path string) bool {
	if !r.checkThere(key, path) {
		return false
	}
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		r.problemAt(key, path+" is not a regular file", writePath)
		return false
	}
	f, err := os.Open(path)
	if err != nil {
		r.problemAt(key, fmt.Sprintf("%s cannot be read: %v", path, reason(err)), "make it readable for the user who runs ecboot")
		return false
	}
	f.Close()
	return true
}

// reason takes the path out of an error whose message names it anyway.
func reason(err error) error {
	var perr *fs.PathError
	if errors.As(err, &perr) {
		return perr.Err
	}
	return err
}

func (r *reader) readScript(key, path string) (text string, ok bool) {
	if !r.ok(key) || !r.checkFile(key, path) {
		return "", false
	}
	b, err := os.ReadFile(path)
	switch {
	case err != nil:
		r.problemAt(key, fmt.Sprintf("%s cannot be read: %v", path, reason(err)), "")
	case len(b) > maxScript:
		r.problemAt(key, fmt.Sprintf("%s has more than %d bytes", path, maxScript), "write the path of an iPXE script")
	case !strings.HasPrefix(string(b), "#!ipxe"):
		r.problemAt(key, path+" is not an iPXE script: its first line is not #!ipxe", "write the path of an iPXE script")
	default:
		return string(b), true
	}
	return "", false
}
