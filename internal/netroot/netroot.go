// Package netroot says what one machine may fetch, as a file system: the boot
// programs, the netboot tree of its profile as others made it, shim and GRUB for
// Secure Boot with a grub.cfg written for this machine, and the files of the
// profiles. TFTP and HTTP serve the same view, so that a boot program finds by
// either what it asks for by names of its own.
package netroot

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/internal/boot"
)

// Config is what all machines have in common.
type Config struct {
	// Programs are the boot programs that ecboot carries; nil: none.
	Programs fs.FS
	// Signed are the files of Secure Boot, name to path.
	Signed map[string]string
	// Server is the address of the servers, for templates.
	Server netip.Addr
	// URL returns the URL of an absolute path on the HTTP server; nil: the
	// machine is not asked to report.
	URL func(path string) string
}

// Root has the views of all machines.
type Root struct{ cfg Config }

// New returns the root of a segment.
func New(cfg Config) *Root { return &Root{cfg} }

// View is what a client at an address may fetch. A client of which nothing is
// known has the boot programs and the files of the profiles.
func (r *Root) View(inv *boot.Inventory, c boot.Client, addr netip.Addr) fs.FS {
	v := &view{root: r, client: c, addr: addr, inventory: inv}
	v.machine, v.profile, _ = inv.Lookup(c)
	return v
}

// view is the file system of one client. It has no directories: a boot program
// asks for files by name.
type view struct {
	root      *Root
	client    boot.Client
	addr      netip.Addr
	inventory *boot.Inventory
	machine   boot.Machine
	profile   boot.Profile
}

// Open opens a file by the first of these that has it. A tree comes before our
// own programs: it is served as it is.
func (v *view) Open(name string) (fs.File, error) {
	missing := &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	switch {
	case !fs.ValidPath(name):
		missing.Err = fs.ErrInvalid
		return nil, missing
	case name == ".":
		return nil, missing
	}
	for _, open := range []func(string) (fs.File, error){v.artifact, v.tree, v.program, v.grubConfig} {
		f, err := open(name)
		if f != nil || err != nil {
			return f, err
		}
	}
	if v.isOptional(name) {
		return nil, optionalError{missing}
	}
	return nil, missing
}

// optionalError is of a file that a boot program asks for in case it is there:
// the servers do not take it for a failure.
type optionalError struct{ error }

func (e optionalError) Unwrap() error { return e.error }

// Optional is what the servers look for.
func (optionalError) Optional() bool { return true }

// isOptional knows what boot programs try. What a tree lacks was never there for
// others either, unless it is a program that we name.
func (v *view) isOptional(name string) bool {
	if v.profile.Tree != "" && !slices.Contains(slices.Collect(maps.Values(v.profile.Programs)), name) {
		return true
	}
	dir, base := path.Split(name)
	if path.Base(dir) == "pxelinux.cfg" {
		return true // a name for the UUID, the MAC and each prefix of the address; U-Boot does the same
	}
	for _, pattern := range []string{
		"revocations*.efi", "shim_certificate_*.efi", // shim
		"*.lst", "grub.cfg-*", // GRUB
		"autoexec.ipxe", // iPXE
		"dtb",           // U-Boot, for a board that has a device tree
	} {
		if ok, _ := path.Match(pattern, base); ok {
			return true
		}
	}
	return false
}

// artifact opens profile/NAME/FILE, where HTTP has it too. Only names that the
// profile lists are looked at, so that no path leads anywhere else.
func (v *view) artifact(name string) (fs.File, error) {
	elems := strings.Split(name, "/")
	if len(elems) != 3 || elems[0] != "profile" {
		return nil, nil
	}
	p := v.inventory.Profiles[elems[1]]
	files := append([]boot.File{p.Kernel, p.EFI}, p.Initrds...)
	i := slices.IndexFunc(files, func(f boot.File) bool { return f.Name == elems[2] })
	if i < 0 {
		return nil, nil
	}
	return openFile(files[i].Path)
}

// tree opens a file of the profile's tree. Links lead anywhere inside it and
// nowhere else.
func (v *view) tree(name string) (fs.File, error) {
	if v.profile.Tree == "" {
		return nil, nil
	}
	root, err := os.OpenRoot(v.profile.Tree)
	if err != nil {
		return nil, fmt.Errorf("tree of profile %s: %w", v.profile.Name, err)
	}
	defer root.Close()
	f, err := root.Open(name)
	if isMissing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("tree of profile %s: %w", v.profile.Name, err)
	}
	if info, err := f.Stat(); err != nil || info.IsDir() {
		f.Close()
		return nil, err
	}
	return f, nil
}

// program opens a boot program: one that the configuration names, or one of
// ours.
func (v *view) program(name string) (fs.File, error) {
	for _, files := range []map[string]string{v.inventory.Files, v.root.cfg.Signed} {
		if p := files[name]; p != "" {
			return openFile(p)
		}
	}
	if v.root.cfg.Programs == nil {
		return nil, nil
	}
	f, err := v.root.cfg.Programs.Open(name)
	if isMissing(err) {
		return nil, nil
	}
	return f, err
}

// grubConfig makes the grub.cfg of the machine. Where a GRUB looks for it is
// compiled into it, but the name is always this one.
func (v *view) grubConfig(name string) (fs.File, error) {
	if path.Base(name) != "grub.cfg" || v.profile.Kernel.Name == "" {
		return nil, nil
	}
	vars := boot.Vars{
		UUID: v.client.UUID, Name: v.machine.Name,
		Server: v.root.cfg.Server.String(), Profile: v.profile.Name,
	}
	if v.addr.IsValid() {
		vars.Address = v.addr.String()
	}
	var report string
	if v.client.MAC != (boot.MAC{}) {
		vars.MAC = v.client.MAC.String()
		if v.root.cfg.URL != nil {
			report = v.root.cfg.URL("/phone-home/" + vars.MAC)
		}
	}
	return newMemoryFile(path.Base(name), GRUBConfig(v.profile, vars, report)), nil
}

// openFile opens a file that the configuration names. That it is missing is a
// fault of the server's, not the client's, and not fs.ErrNotExist therefore.
func openFile(path string) (fs.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, errors.New(err.Error())
	}
	return f, nil
}

// isMissing reports whether a path leads to nothing: it is not there, or it goes
// on below a file.
func isMissing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)
}

// memoryFile is a file that was made for whom it is opened.
type memoryFile struct {
	*bytes.Reader
	name string
}

func newMemoryFile(name string, content []byte) *memoryFile {
	return &memoryFile{bytes.NewReader(content), name}
}

func (f *memoryFile) Stat() (fs.FileInfo, error) { return memoryInfo{f.name, f.Reader.Size()}, nil }
func (f *memoryFile) Close() error               { return nil }

// memoryInfo has no time: such a file is new whenever it is asked for.
type memoryInfo struct {
	name string
	size int64
}

func (i memoryInfo) Name() string       { return i.name }
func (i memoryInfo) Size() int64        { return i.size }
func (i memoryInfo) Mode() fs.FileMode  { return 0o444 }
func (i memoryInfo) ModTime() time.Time { return time.Time{} }
func (i memoryInfo) IsDir() bool        { return false }
func (i memoryInfo) Sys() any           { return nil }
