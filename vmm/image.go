package vmm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// image is what there is to know of a disk image from its first bytes.
type image struct {
	format  string
	size    int64  // that the guest sees
	backing string // image below it that a qcow2 names
}

const qcow2Magic = "QFI\xfb"

// readImage tells a qcow2 image, of which it reads the header (QEMU's
// docs/interop/qcow2.txt), from others, which are raw.
func readImage(r io.ReaderAt, size int64) (image, error) {
	var h [80]byte
	n, err := r.ReadAt(h[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return image{}, err
	}
	if !strings.HasPrefix(string(h[:n]), qcow2Magic) {
		return image{format: FormatRaw, size: size}, nil
	}
	be := binary.BigEndian
	version := be.Uint32(h[4:])
	if n < len(h) || version != 2 && version != 3 {
		return image{}, fmt.Errorf("its qcow2 header is broken, or of a version that is not known here")
	}
	im := image{format: FormatQCOW2, size: int64(be.Uint64(h[24:]))}
	if version == 3 && be.Uint64(h[72:])&(1<<2) != 0 {
		return image{}, fmt.Errorf("it keeps its data in another file: turn it into a plain image (qemu-img convert)")
	}
	if offset, length := int64(be.Uint64(h[8:])), be.Uint32(h[16:]); offset != 0 {
		if offset < 0 || length == 0 || length > 1023 {
			return image{}, fmt.Errorf("its qcow2 header is broken")
		}
		name := make([]byte, length)
		if _, err := r.ReadAt(name, offset); err != nil {
			return image{}, fmt.Errorf("its qcow2 header is broken: %w", err)
		}
		im.backing = string(name)
	}
	if im.size < 0 {
		return image{}, fmt.Errorf("its qcow2 header is broken")
	}
	return im, nil
}

// inspect looks at the image on a path, which may be a block device.
func inspect(path string) (image, error) {
	f, err := openImage(path, os.O_RDONLY)
	if err != nil {
		return image{}, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd) // of block devices, too
	if err != nil {
		return image{}, err
	}
	im, err := readImage(f, size)
	if err != nil {
		return im, fmt.Errorf("%s: %w", path, err)
	}
	return im, nil
}

// openImage opens a file or a block device, and waits for neither FIFO nor CD.
func openImage(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() && st.Mode().Type() != fs.ModeDevice {
		err = fmt.Errorf("%s is no disk image: it must be a file or a block device", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// isDevice reports whether a block device is on the path.
func isDevice(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().Type() == fs.ModeDevice
}

// inspectBase looks at an image that others lie upon. It must stand alone: what
// an image from elsewhere names in its header is not opened.
func inspectBase(path string) (image, error) {
	im, err := inspect(path)
	switch {
	case err != nil:
		return im, fmt.Errorf("base: %w", err)
	case im.backing != "":
		return im, fmt.Errorf("base %s lies upon %s itself: make one image of them (qemu-img convert)", path, im.backing)
	}
	return im, nil
}

// verify compares the image that is there with the one that is declared.
func (d *Disk) verify() error {
	im, err := inspect(d.Path)
	switch {
	case err != nil:
		return err
	case im.format != d.format():
		return fmt.Errorf("%s is %s and declared as %s: change the declaration, or move the file away", d.Path, im.format, d.format())
	case d.Ephemeral: // is what lies below
		if im.backing != "" {
			return fmt.Errorf("%s lies upon %s: name that as the base, or make one image of them (qemu-img convert)", d.Path, im.backing)
		}
		return nil
	case im.backing == "" && d.Base != "":
		return fmt.Errorf("%s stands alone and is declared to lie upon %s: leave the base out, or move the file away", d.Path, d.Base)
	case im.backing != "" && !sameFile(absolute(im.backing, d.Path), d.Base):
		base := d.Base
		if base == "" {
			base = "nothing"
		}
		return fmt.Errorf("%s lies upon %s and is declared to lie upon %s: name its base, or move the file away", d.Path, im.backing, base)
	}
	return nil
}

// absolute is the path of what an image at from names.
func absolute(name, from string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(filepath.Dir(from), name)
}

func sameFile(a, b string) bool {
	sa, errA := os.Stat(a)
	sb, errB := os.Stat(b)
	if errA != nil || errB != nil {
		return filepath.Clean(a) == filepath.Clean(b)
	}
	return os.SameFile(sa, sb)
}

// EnsureDisk makes the image of a disk if there is none. Whatever is there stays
// as it is, and is an error if it is not of the format and upon the base that are
// declared; its size does not matter. The image appears at once and whole: no
// death of this process or of the host leaves a part of one.
func EnsureDisk(ctx context.Context, d Disk) (made bool, err error) {
	if err := d.check(); err != nil {
		return false, err
	}
	var base image
	if d.Base != "" {
		if base, err = inspectBase(d.Base); err != nil {
			return false, err
		}
	}
	if d.Ephemeral && d.Base != "" {
		return false, nil // Start makes it, for one run
	}
	switch _, err := os.Lstat(d.Path); {
	case err == nil:
		return false, d.verify()
	case !errors.Is(err, fs.ErrNotExist):
		return false, err
	case d.readOnly():
		return false, fmt.Errorf("%s does not exist, and would hold nothing if it was made", d.Path)
	case d.Size == 0 && d.Base == "":
		return false, fmt.Errorf("%s does not exist: say how large it shall be, and it is made", d.Path)
	case d.Base != "" && d.Size != 0 && d.Size < base.size:
		return false, fmt.Errorf("%s of %d bytes is smaller than its base of %d: make it larger, or leave its size out", d.Path, d.Size, base.size)
	}
	if err := os.MkdirAll(filepath.Dir(d.Path), 0o755); err != nil {
		return false, err
	}
	made, err = publish(d.Path, func(f *os.File) error {
		if d.format() == FormatRaw {
			return f.Truncate(d.Size)
		}
		return formatQCOW2(ctx, f, max(d.Size, base.size), d.Base, base.format)
	})
	if err == nil && !made {
		err = d.verify() // somebody else was faster
	}
	return made, err
}

// formatQCOW2 makes an empty image out of an empty file. Without a base it has
// none, whatever it is laid upon later.
func formatQCOW2(ctx context.Context, f *os.File, size int64, base, baseFormat string) error {
	args := []string{"create", "-q", "-f", FormatQCOW2}
	if base != "" {
		abs, err := filepath.Abs(base)
		if err != nil {
			return err
		}
		args = append(args, "-b", abs, "-F", baseFormat)
	}
	cmd := exec.CommandContext(ctx, "qemu-img", append(args, "--", fdPath(firstFD), fmt.Sprint(size))...)
	cmd.ExtraFiles = []*os.File{f}
	out, err := cmd.CombinedOutput()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("qemu-img is not installed: install the package qemu-utils (apt-get install qemu-utils)")
	case err != nil && len(out) > 0:
		return fmt.Errorf("qemu-img: %s", lastLine(strings.TrimSpace(string(out))))
	case err != nil:
		return fmt.Errorf("qemu-img: %w", err)
	}
	return nil
}

// publish makes a file with what fill writes into it. It appears with its whole
// content, durable, or not at all, and never in the place of another: then made
// is false.
func publish(path string, fill func(*os.File) error) (made bool, err error) {
	dir := filepath.Dir(path)
	f, name, err := newFile(dir)
	if err != nil {
		return false, err
	}
	defer f.Close()
	if name != "" {
		defer os.Remove(name)
	}
	if err := fill(f); err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	if err := f.Sync(); err != nil {
		return false, err
	}
	err = unix.Linkat(unix.AT_FDCWD, fdPath(int(f.Fd())), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	switch {
	case errors.Is(err, fs.ErrExist):
		return false, nil
	case err != nil:
		return false, &fs.PathError{Op: "link", Path: path, Err: err}
	}
	d, err := os.Open(dir)
	if err != nil {
		return true, err
	}
	defer d.Close()
	return true, d.Sync()
}

// newFile makes a file in a directory, without a name where the file system can.
func newFile(dir string) (f *os.File, name string, err error) {
	f, err = os.OpenFile(dir, unix.O_TMPFILE|os.O_RDWR, 0o600)
	if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return f, "", err
	}
	if f, err = os.CreateTemp(dir, ".ecboot-*"); err != nil {
		return nil, "", err
	}
	return f, f.Name(), nil
}
