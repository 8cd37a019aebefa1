package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/every-channel/ecboot/images"
	"github.com/every-channel/ecboot/initramfs"
	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/internal/netroot"
)

// bootFiles is all that will be served, as files of this machine.
type bootFiles struct {
	nbp     fs.FS
	ipxe    string                      // iPXE in the form of a kernel, for --first-stage ipxe
	sources map[config.Source]string    // where the files are that the configuration has notations for
	signed  map[string]string           // programs of Secure Boot, name to path
	shims   map[boot.Platform]boot.Shim // those of them that begin it
}

// prepare turns the sources that the configuration names into files: images of
// the binary are extracted, initramfs that are described are built.
func prepare(ctx context.Context, cfg *config.Config, log *slog.Logger) (*bootFiles, error) {
	extracted, err := extractImages()
	if err != nil {
		return nil, err
	}
	files := &bootFiles{nbp: extracted.FS(), ipxe: extracted.Path(images.IPXELinuxName), sources: map[config.Source]string{}}
	for _, p := range cfg.Inventory(config.Segment{}).Profiles {
		for _, f := range append([]boot.File{p.Kernel}, p.Initrds...) {
			s := config.Source(f.Path)
			if s == "" || files.sources[s] != "" {
				continue
			}
			path, err := sourcePath(ctx, cfg, extracted, s, log)
			if err == nil {
				err = readable(path)
			}
			if err != nil {
				return nil, fmt.Errorf("profile %s: %w", p.Name, err)
			}
			files.sources[s] = path
		}
		if p.SecureBoot && files.shims == nil {
			if err := files.findSigned(cfg, log); err != nil {
				return nil, fmt.Errorf("profile %s: %w", p.Name, withCode(exitEnvironment, err))
			}
		}
	}
	return files, nil
}

// findSigned finds the programs of Secure Boot. For platforms that have none
// here the machines say so when they ask.
func (f *bootFiles) findSigned(cfg *config.Config, log *slog.Logger) error {
	f.signed, f.shims = map[string]string{}, map[boot.Platform]boot.Shim{}
	var missing error
	for _, p := range netroot.SecurePlatforms() {
		chain, err := netroot.FindSigned(p, netroot.Signed{Shim: cfg.Server.Shim[p], GRUB: cfg.Server.GRUB[p]})
		if err != nil {
			missing = cmp.Or(missing, err)
			continue
		}
		grub, err := netroot.InspectGRUB(chain.GRUB)
		if err != nil {
			return err
		}
		isProxy := func(s config.Segment) bool { return s.Mode == config.ModeProxy }
		if slices.ContainsFunc(cfg.Segments, isProxy) && !grub.FollowsProxy() {
			log.Warn("this GRUB asks the DHCP server that gave the address for its files, not a proxy: name one of version 2.12 in [server]",
				"platform", p, "version", grub.Version, "grub", chain.GRUB)
		}
		maps.Copy(f.signed, chain.Programs(p))
		f.shims[p] = boot.Shim{Name: netroot.ShimName(p), HTTP: grub.HTTP}
	}
	if len(f.shims) == 0 {
		return missing
	}
	return nil
}

// inventory is a configuration's inventory with files in the place of sources.
func (f *bootFiles) inventory(cfg *config.Config, seg config.Segment) *boot.Inventory {
	inv := cfg.Inventory(seg)
	for name, p := range inv.Profiles {
		p.Kernel.Path = f.sources[config.Source(p.Kernel.Path)]
		for i := range p.Initrds {
			p.Initrds[i].Path = f.sources[config.Source(p.Initrds[i].Path)]
		}
		if p.SecureBoot {
			p.Signed = f.shims
		}
		inv.Profiles[name] = p
	}
	addGuests(inv, cfg.Guests)
	return inv
}

// extractImages makes the images of the binary files in the cache.
func extractImages() (*images.Extracted, error) {
	set, err := images.Default()
	if err != nil {
		return nil, withCode(exitEnvironment, err)
	}
	extracted, err := set.Extract(filepath.Join(userDirs().Cache, "images"))
	return extracted, withCode(exitEnvironment, err)
}

func sourcePath(ctx context.Context, cfg *config.Config, extracted *images.Extracted, s config.Source, log *slog.Logger) (string, error) {
	switch s {
	case config.EmbeddedKernel:
		return extracted.Path(images.KernelName), nil
	case config.EmbeddedInitramfs:
		return extracted.Path(images.InitrdName), nil
	}
	profile, ok := s.Built()
	if !ok {
		return string(s), nil
	}
	want := cfg.Profiles[profile].Initramfs
	spec := initramfs.DefaultSpec()
	if len(want.Commands) > 0 {
		spec.Commands = want.Commands
	}
	spec.Files = map[string]string{}
	for to, from := range want.Files {
		spec.Files[to] = string(from)
	}
	img, err := initramfs.Build(ctx, spec, initramfs.Options{CacheDir: initramfsCache(), Logger: log})
	return img.Path, err
}

func readable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return withCode(exitUsage, err)
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.IsDir() {
		return withCode(exitUsage, fmt.Errorf("%s is a directory, not a file to boot", path))
	}
	return nil
}

// checkKernel refuses what no boot program can start: iPXE takes a file that it
// does not know for raw machine code and runs it.
func checkKernel(path string) error {
	if err := readable(path); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, 0x206)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return err
	}
	head = head[:n]
	switch {
	case bytes.HasPrefix(head, []byte("MZ")), // EFI, and Linux with an EFI stub
		bytes.HasPrefix(head, []byte("\x7fELF")),
		n == 0x206 && string(head[0x202:]) == "HdrS": // Documentation/arch/x86/boot.rst
		return nil
	}
	return withCode(exitUsage, fmt.Errorf("%s is no kernel: it is neither a Linux image (bzImage) nor an EFI or ELF program", path))
}
