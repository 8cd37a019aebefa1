// Command gen collects the files that package images embeds: the kernel out of
// its Go module, iPXE out of Debian's package, and an initramfs that it builds.
// `make assets` runs it in the root of the module.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/every-channel/ecboot/images"
	"github.com/every-channel/ecboot/initramfs"
)

const (
	kernelModule = "github.com/gokrazy/kernel.amd64"
	urootModule  = "github.com/u-root/u-root"
	ipxeDir      = "/usr/lib/ipxe"
)

func main() {
	out := flag.String("o", "images/assets", "directory to fill")
	cache := flag.String("cache", defaultCache(), "directory for built archives")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *out, *cache); err != nil {
		fmt.Fprintln(os.Stderr, "make assets:", err)
		os.Exit(1)
	}
}

func defaultCache() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = os.TempDir()
	}
	return filepath.Join(dir, "ecboot", "initramfs")
}

func run(ctx context.Context, out, cache string) error {
	var list []images.Image
	add := func(i images.Image, src string) error {
		content, err := os.ReadFile(src)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(content)
		i.Size, i.SHA256 = int64(len(content)), hex.EncodeToString(sum[:])
		list = append(list, i)
		return replace(filepath.Join(out, i.Name), content)
	}

	kernel, err := module(ctx, kernelModule)
	if err != nil {
		return err
	}
	vmlinuz := filepath.Join(kernel.Dir, "vmlinuz")
	release, err := linuxRelease(vmlinuz)
	if err != nil {
		return err
	}
	if err := add(images.Image{
		Name: images.KernelName, Kind: images.Kernel, Licence: "GPL-2.0-only",
		Origin: fmt.Sprintf("Linux %s, %s %s", release, kernel.Path, kernel.Version),
	}, vmlinuz); err != nil {
		return err
	}

	uroot, err := module(ctx, urootModule)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	img, err := initramfs.Build(ctx, initramfs.DefaultSpec(), initramfs.Options{CacheDir: cache, Logger: log})
	if err != nil {
		return err
	}
	if err := add(images.Image{
		Name: images.InitrdName, Kind: images.Initrd, Origin: "u-root, " + uroot.Path + " " + uroot.Version, Licence: "Apache-2.0 AND BSD-3-Clause AND MIT AND CC0-1.0",
	}, img.Path); err != nil {
		return err
	}

	ipxe := "iPXE, Debian package ipxe"
	if version, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${Version}", "ipxe").Output(); err == nil {
		ipxe += " " + string(version)
	}
	for _, name := range []string{images.UndionlyName, images.SNPOnlyName, images.IPXEEFIName, images.IPXELinuxName} {
		err := add(images.Image{Name: name, Kind: images.NBP, Origin: ipxe, Licence: "GPL-2.0-or-later"}, filepath.Join(ipxeDir, name))
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%w; install Debian's package ipxe: make deps", err)
		}
		if err != nil {
			return err
		}
	}
	// Last, because its time says that all of it is up to date.
	return writeManifest(out, list)
}

func writeManifest(out string, list []images.Image) error {
	text, err := json.MarshalIndent(map[string]any{"schema": images.ManifestSchema, "images": list}, "", "  ")
	if err != nil {
		return err
	}
	return replace(filepath.Join(out, images.ManifestName), append(text, '\n'))
}

// linuxRelease reads the release out of a bzImage, where the boot protocol says
// that it is (field kernel_version at 0x20e, Documentation/arch/x86/boot.rst).
func linuxRelease(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var at [2]byte
	if _, err := f.ReadAt(at[:], 0x20e); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	text := make([]byte, 64)
	if _, err := f.ReadAt(text, int64(binary.LittleEndian.Uint16(at[:]))+0x200); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	release, _, ok := strings.Cut(string(text), " ")
	if !ok {
		return "", fmt.Errorf("%s names no release", path)
	}
	return release, nil
}

type moduleInfo struct{ Path, Version, Dir string }

// module finds a module that go.mod pins, and loads it when it must.
func module(ctx context.Context, path string) (moduleInfo, error) {
	var m moduleInfo
	out, err := exec.CommandContext(ctx, "go", "mod", "download", "-json", path).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = errors.New(strings.TrimSpace(string(exit.Stderr) + string(out)))
		}
		return m, fmt.Errorf("go mod download %s: %w", path, err)
	}
	return m, json.Unmarshal(out, &m)
}

// replace writes a file whole or not at all.
func replace(path string, content []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, content, 0o644); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return os.Rename(tmp, path)
}
