// Package initramfs builds Linux initramfs archives out of u-root commands,
// ecboot's guest program, layers and single files. The same Spec gives the same
// bytes on every machine with the same Go release, and is built only once: the
// archives are kept in a cache that is addressed by what they are made of.
//
// Commands are compiled by the go command on the machine, in a module of its own
// with pinned versions that the package carries; so a build works from the bare
// ecboot binary, and needs a network only until Go's module cache has u-root.
package initramfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Spec says what goes into an archive. The zero value is an archive with only
// the guest program in it.
type Spec struct {
	// Arch is amd64, the default, or arm64.
	Arch string

	// Commands are u-root commands by name (ls, exp/tcpdump), by import path
	// (github.com/u-root/u-root/cmds/core/ls, globs allowed), or names of
	// u-root's templates (core, minimal, embedded, …). One that begins with
	// a minus sign takes out what another put in: "core", "-sshd".
	// u-root's init comes by itself with any other command.
	Commands []string

	// BuildTags are given to the Go compiler; nil is DefaultBuildTags.
	BuildTags []string

	// Layers are cpio archives (bare or compressed by gzip or zstd) and
	// directories, put over the commands in this order.
	Layers []string

	// Files are put over everything else: path in the archive → file,
	// symbolic link or directory on this machine.
	Files map[string]string

	// NoGuest leaves the guest program out, and with it the report to the
	// server and the ear for the power button. /init is u-root's then, unless a
	// layer or a file brings one.
	NoGuest bool

	// Compression of the archive; zstd when empty.
	Compression Compression

	// Level is the compression's own, 1 to 22 for zstd and 1 to 9 for gzip;
	// 0 is the default.
	Level int
}

// Options are where and how Build works.
type Options struct {
	CacheDir string       // required; made when missing
	Logger   *slog.Logger // nil discards

	// MaxEntries and MaxBytes bound the cache; what was used longest ago goes
	// first. 0 means 32 entries and 1 GiB.
	MaxEntries int
	MaxBytes   int64
}

// Image is a finished archive in the cache. It may be pruned by a later Build,
// so open or copy it soon.
type Image struct {
	Path   string
	SHA256 string // hexadecimal
	Size   int64  // bytes
	Cached bool   // nothing had to be built
	Took   time.Duration
}

// DefaultBuildTags returns the tags for commands that are small, and for a shell
// that leaves editing to the terminal: gosh's own line editor draws a line anew
// for every key, and its other one (goshliner) does not let Ctrl-C through to
// commands. An empty list, not nil, gives that editor with its history.
func DefaultBuildTags() []string { return []string{"goshsmall", "grpcnotrace"} }

// DefaultSpec is the system that ecboot carries inside: a shell and what one
// needs to look around on a machine that has just booted.
func DefaultSpec() Spec {
	return Spec{
		Commands: []string{
			"cat", "chmod", "cp", "date", "dd", "df", "dhclient", "dmesg", "echo", "find", "free",
			"gosh", "grep", "gzip", "head", "hexdump", "hostname", "id", "insmod", "ip", "kexec",
			"kill", "ln", "ls", "lsmod", "mkdir", "mknod", "mount", "mv", "netcat", "pci", "ping",
			"poweroff", "printenv", "ps", "pwd", "rm", "rmmod", "shasum", "shutdown", "sleep", "sort", "stty",
			"switch_root", "sync", "tail", "tar", "tee", "touch", "tr", "tty", "umount", "uname", "uptime",
			"wc", "wget", "which",
		},
	}
}

// Build makes the archive that spec describes, or finds it in the cache.
func Build(ctx context.Context, spec Spec, opts Options) (Image, error) {
	start := time.Now()
	log := cmp.Or(opts.Logger, slog.New(slog.DiscardHandler))
	if opts.CacheDir == "" {
		return Image{}, errors.New("initramfs: no cache directory given")
	}
	dir, err := filepath.Abs(opts.CacheDir) // the compilers run elsewhere
	if err != nil {
		return Image{}, err
	}
	opts.CacheDir = dir
	spec, err = spec.normal()
	if err != nil {
		return Image{}, err
	}
	b, err := newBuilder(ctx, spec, log)
	if err != nil {
		return Image{}, fmt.Errorf("initramfs: %w", err)
	}
	c, err := openCache(opts)
	if err != nil {
		return Image{}, err
	}
	img, ok := c.lookup(b.key, spec.Compression)
	if !ok {
		img, err = c.build(ctx, b)
		if err != nil {
			return Image{}, err
		}
	}
	img.Took = time.Since(start)
	return img, nil
}

// normal fills the defaults in and refuses what cannot be built.
func (s Spec) normal() (Spec, error) {
	s.Arch = cmp.Or(s.Arch, "amd64")
	if s.Arch != "amd64" && s.Arch != "arm64" {
		return s, fmt.Errorf("initramfs: architecture %q: want amd64 or arm64", s.Arch)
	}
	s.Compression = cmp.Or(s.Compression, Zstd)
	if err := s.Compression.check(s.Level); err != nil {
		return s, fmt.Errorf("initramfs: %w", err)
	}
	if s.BuildTags == nil {
		s.BuildTags = DefaultBuildTags()
	}
	files := make(map[string]string, len(s.Files))
	for dst, src := range s.Files {
		clean := path.Clean(strings.TrimLeft(dst, "/"))
		if clean == "." || clean == ".." || strings.HasPrefix(clean, "../") {
			return s, fmt.Errorf("initramfs: %q is not a path inside the archive", dst)
		}
		if _, twice := files[clean]; twice {
			return s, fmt.Errorf("initramfs: two files for /%s", clean)
		}
		abs, err := filepath.Abs(src)
		if err != nil {
			return s, err
		}
		files[clean] = abs
	}
	s.Files = files
	s.Layers = slices.Clone(s.Layers)
	for i, l := range s.Layers {
		abs, err := filepath.Abs(l)
		if err != nil {
			return s, err
		}
		s.Layers[i] = abs
	}
	for _, p := range append(slices.Clone(s.Layers), slices.Sorted(maps.Values(files))...) {
		if _, err := os.Lstat(p); err != nil {
			return s, fmt.Errorf("initramfs: %w", err)
		}
	}
	return s, nil
}
