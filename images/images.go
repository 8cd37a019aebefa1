// Package images is what ecboot carries inside: a kernel and an initramfs to
// boot, and iPXE's network boot programs to get there. `make assets` collects
// them before the binary is built; a binary that was built without them says so.
package images

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

//go:embed all:assets
var assets embed.FS

// Kind says what an image is for.
type Kind string

// The kinds of images.
const (
	Kernel Kind = "kernel"
	Initrd Kind = "initrd"
	NBP    Kind = "nbp" // a network boot program, for TFTP and UEFI HTTP Boot
)

// The names of the images in the default set.
const (
	KernelName    = "vmlinuz"
	InitrdName    = "initramfs.cpio.zst"
	UndionlyName  = "undionly.kpxe" // iPXE on a BIOS, through the ROM's own driver
	SNPOnlyName   = "snponly.efi"   // iPXE on UEFI x64, through the firmware's driver
	IPXEEFIName   = "ipxe.efi"      // iPXE on UEFI x64 with drivers of its own
	IPXELinuxName = "ipxe.lkrn"     // iPXE in the form of a Linux kernel
)

// Image describes one file.
type Image struct {
	Name    string `json:"name"`
	Kind    Kind   `json:"kind"`
	Size    int64  `json:"size"` // bytes
	SHA256  string `json:"sha256"`
	Origin  string `json:"origin"`  // module or package, with its version
	Licence string `json:"licence"` // SPDX expression
}

// manifest is the file manifest.json.
type manifest struct {
	Schema int     `json:"schema"`
	Images []Image `json:"images"`
}

// The manifest of a set: its file name, and the version of its form.
const (
	ManifestName   = "manifest.json"
	ManifestSchema = 1
)

// ErrNoAssets is what Default returns in a binary without images.
var ErrNoAssets = errors.New("this ecboot was built without the images that it boots; run `make` in its source")

// Set is a catalogue of images with their contents.
type Set struct {
	fsys   fs.FS
	images []Image
}

// Default returns the images that are inside the binary, or ErrNoAssets.
func Default() (*Set, error) {
	sub, err := fs.Sub(assets, "assets")
	if err != nil {
		return nil, err
	}
	return Open(sub)
}

// Open reads the catalogue of a directory that has a manifest.json; contents are
// checked when they are extracted. Without a manifest it returns ErrNoAssets.
func Open(fsys fs.FS) (*Set, error) {
	text, err := fs.ReadFile(fsys, ManifestName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoAssets
	}
	if err != nil {
		return nil, err
	}
	var m manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, fmt.Errorf("images: %s: %w", ManifestName, err)
	}
	if m.Schema != ManifestSchema {
		return nil, fmt.Errorf("images: %s has schema %d, not %d; run `make` again", ManifestName, m.Schema, ManifestSchema)
	}
	for _, i := range m.Images {
		if sum, err := hex.DecodeString(i.SHA256); err != nil || len(sum) != sha256.Size {
			return nil, fmt.Errorf("images: %s: %q is no SHA-256", ManifestName, i.SHA256)
		}
		info, err := fs.Stat(fsys, i.Name)
		if err != nil || strings.Contains(i.Name, "/") {
			return nil, fmt.Errorf("images: %s names %q, which is not there; run `make` again", ManifestName, i.Name)
		}
		if info.Size() != i.Size {
			return nil, fmt.Errorf("images: %s has %d bytes and should have %d; run `make` again", i.Name, info.Size(), i.Size)
		}
	}
	return &Set{fsys: fsys, images: m.Images}, nil
}

// List returns the catalogue in the order of the manifest.
func (s *Set) List() []Image { return slices.Clone(s.images) }

// Find returns the image called name.
func (s *Set) Find(name string) (Image, bool) {
	i := slices.IndexFunc(s.images, func(i Image) bool { return i.Name == name })
	if i < 0 {
		return Image{}, false
	}
	return s.images[i], true
}
