package nspawn

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// kind is what a root is made of.
type kind string

const (
	directory kind = "directory"
	squashfs  kind = "squashfs image"
	tarball   kind = "tar archive"
)

// kindOf looks into a root: names say little.
func kindOf(path string) (kind, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("root: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("root: %w", err)
	}
	if st.IsDir() {
		return directory, nil
	}
	head := make([]byte, 512)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("root: %w", err)
	}
	head = head[:n]
	switch {
	case bytes.HasPrefix(head, []byte("hsqs")):
		return squashfs, nil
	case compressionOf(head) != "", len(head) == 512 && bytes.HasPrefix(head[257:], []byte("ustar")):
		return tarball, nil
	}
	return "", fmt.Errorf("root %s is neither a directory nor a squashfs image nor a tar archive", path)
}

// root is a container's root before it is mounted.
type root struct {
	kind    kind
	path    string // of the image or directory: for a tar archive, where it is unpacked
	state   string // directory for changes; empty: none
	overlay bool   // changes go elsewhere
	locks   []*os.File
}

// open makes sure that there is a root, that nobody else writes to it, and that
// an archive is unpacked.
func (s *Spec) open(unpack func(archive string) (string, error)) (r root, err error) {
	r.path, r.state = s.Root, s.State
	if r.kind, err = kindOf(s.Root); err != nil {
		return r, err
	}
	r.overlay = r.kind != directory || s.Ephemeral || s.State != ""
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	switch r.kind {
	case directory:
		if err := r.lock(r.path, !r.overlay, "stop that one, or make both ephemeral or give each a state"); err != nil {
			return r, err
		}
	case tarball:
		if r.path, err = unpack(s.Root); err != nil {
			return r, fmt.Errorf("root %s: %w", s.Root, err)
		}
	}
	if r.state == "" {
		return r, nil
	}
	for _, dir := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(r.state, dir), 0o755); err != nil {
			return r, fmt.Errorf("state: %w", err)
		}
	}
	return r, r.lock(r.state, true, "stop that one, or give this one another state")
}

// lock keeps a directory from others that lock it too, and says what to do
// instead. The kernel frees it with this process.
func (r *root) lock(dir string, exclusive bool, instead string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	how := unix.LOCK_SH
	if exclusive {
		how = unix.LOCK_EX
	}
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			what := "another container uses it"
			if !exclusive {
				what = "another container changes it in place"
			}
			return fmt.Errorf("%s: %s: %s", dir, what, instead)
		}
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	r.locks = append(r.locks, f)
	return nil
}

func (r *root) close() {
	for _, f := range r.locks {
		f.Close()
	}
}

// mount puts the root where nspawn will find it. It must run in a mount namespace
// of its own, which ends what it makes.
func (r *root) mount() error {
	// What the host unmounts goes here too, or it would stay busy; what is
	// mounted here stays here.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("separate the mounts from the host's: %w", err)
	}
	if err := unix.Mount("", "/sys", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("make /sys read-only: %w", err)
	}
	if err := os.MkdirAll(base, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", base, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", base, err)
	}
	if err := os.Mkdir(stage, 0o755); err != nil {
		return err
	}
	if !r.overlay {
		return bind(r.path, "root")
	}
	var err error
	if r.kind == squashfs {
		err = mountSquashfs(r.path, stage+"/lower")
	} else {
		err = bind(r.path, "lower")
	}
	if err != nil {
		return err
	}
	return r.mountOverlay()
}

// mountOverlay names its directories by where they are bound to: in the options
// of an overlay, commas and colons of a path would have a meaning.
func (r *root) mountOverlay() error {
	if r.state != "" {
		if err := bind(r.state, "changes"); err != nil {
			return err
		}
	} else {
		for _, dir := range []string{"upper", "work"} {
			if err := os.MkdirAll(stage+"/changes/"+dir, 0o755); err != nil {
				return err
			}
		}
	}
	if err := os.Mkdir(stage+"/root", 0o755); err != nil {
		return err
	}
	options := "lowerdir=" + stage + "/lower,upperdir=" + stage + "/changes/upper,workdir=" + stage + "/changes/work"
	err := unix.Mount("overlay", stage+"/root", "overlay", 0, options)
	switch {
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("mount an overlay: %w: this kernel has none: 'modprobe overlay'", err)
	case errors.Is(err, unix.EINVAL) && r.state != "":
		return fmt.Errorf("mount an overlay with its changes in %s: %w: that file system cannot hold them; use one such as ext4 or xfs", r.state, err)
	case err != nil:
		return fmt.Errorf("mount an overlay: %w", err)
	}
	return nil
}

// bind shows a directory, with what is mounted in it, as one of stage.
func bind(dir, name string) error {
	target := stage + "/" + name
	if err := os.Mkdir(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(dir, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", dir, err)
	}
	return nil
}

// mountSquashfs mounts an image through a loop device, which ends with the mount.
func mountSquashfs(image, target string) error {
	if err := os.Mkdir(target, 0o755); err != nil {
		return err
	}
	loop, err := attachLoop(image)
	if err != nil {
		return fmt.Errorf("loop device for %s: %w", image, err)
	}
	defer loop.Close()
	err = unix.Mount(loop.Name(), target, "squashfs", unix.MS_RDONLY|unix.MS_NODEV, "")
	switch {
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("mount %s: %w: this kernel has no squashfs: 'modprobe squashfs', or use a tar archive", image, err)
	case err != nil:
		return fmt.Errorf("mount %s: %w", image, err)
	}
	return nil
}

const loopTries = 64 // others may take the device that is free

func attachLoop(image string) (*os.File, error) {
	backing, err := os.Open(image)
	if err != nil {
		return nil, err
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: 'modprobe loop', or use a tar archive", err)
	}
	if err != nil {
		return nil, err
	}
	defer control.Close()
	config := unix.LoopConfig{Fd: uint32(backing.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR}}
	for range loopTries {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, err
		}
		loop, err := os.Open("/dev/loop" + strconv.Itoa(number))
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, err
		}
	}
	return nil, errors.New("all that are free are taken at once by others")
}
