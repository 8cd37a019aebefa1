package vmm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// supplies are the files that a QEMU inherits, by their names in the layout,
// and our ends of those that are connections.
type supplies struct {
	files        map[string]*os.File
	taps         map[string]*os.File // the caller's, who closes them
	console, qmp net.Conn
	vnc          *screen
	helpers      []*helper
}

// close closes what QEMU was to inherit: it has it now, or never will.
func (s *supplies) close() {
	for _, f := range s.files {
		f.Close()
	}
}

// abandon closes our ends, too, and ends the helpers.
func (s *supplies) abandon() {
	for _, h := range s.helpers {
		h.proc.kill()
		<-h.proc.done
	}
	if s.vnc != nil {
		s.vnc.close()
	}
	for _, c := range []net.Conn{s.console, s.qmp} {
		if c != nil {
			c.Close()
		}
	}
}

// inOrder are the files as the layout has them.
func (s *supplies) inOrder(l layout) ([]*os.File, error) {
	files := make([]*os.File, len(l))
	for i, name := range l {
		if files[i] = s.files[name]; files[i] == nil {
			files[i] = s.taps[name]
		}
		if files[i] == nil {
			return nil, fmt.Errorf("there is no file for QEMU's %s", name)
		}
	}
	return files, nil
}

// supply makes and opens all that QEMU inherits but its taps. What it has made
// so far comes with an error.
func (m *Machine) supply(ctx context.Context) (*supplies, error) {
	s := &supplies{files: map[string]*os.File{}, taps: map[string]*os.File{}}
	for name, end := range map[string]*net.Conn{"console": &s.console, "qmp": &s.qmp} {
		f, conn, err := socketpair()
		if err != nil {
			return s, err
		}
		s.files[name], *end = f, conn
	}
	if m.spec.UEFI != (UEFI{}) {
		if err := s.addVars(m.spec.UEFI.Vars, m.spec.VarsFile); err != nil {
			return s, err
		}
	}
	if len(m.spec.InitrdData) > 0 {
		initrd, err := memoryFile("initrd", m.spec.InitrdData)
		if err != nil {
			return s, err
		}
		s.files["initrd"] = initrd
	}
	for i := range m.spec.Disks {
		if err := s.addDisk(ctx, &m.spec.Disks[i], i); err != nil {
			return s, fmt.Errorf("disk %d: %w", i, err)
		}
	}
	for _, f := range m.spec.openFiles() {
		file, err := f.open(m.opts.Credential)
		if err != nil {
			return s, err
		}
		s.files[f.name] = file
	}
	for i, nic := range m.spec.NICs {
		if nic.vhost {
			f, err := os.OpenFile("/dev/vhost-net", os.O_RDWR, 0)
			if err != nil {
				return s, err
			}
			s.files[nth("vhost", i)] = f
		}
	}
	return s, s.beside(m.spec, m.opts)
}

// beside starts what serves the machine beside QEMU.
func (s *supplies) beside(spec Spec, opts Options) (err error) {
	if spec.VNC != "" {
		if s.vnc, err = listen(spec.VNC, opts.ScreenGroup); err != nil {
			return err
		}
	}
	if spec.TPM != "" {
		if err := s.startTPM(spec.TPM, opts); err != nil {
			return err
		}
	}
	for i := range spec.Shares {
		share := &spec.Shares[i]
		if st, err := os.Stat(share.Path); err != nil {
			return fmt.Errorf("share %d: %w", i, err)
		} else if !st.IsDir() {
			return fmt.Errorf("share %d: %s is no directory", i, share.Path)
		}
		if share.driver() != ShareVirtiofs {
			continue
		}
		if err := s.startVirtiofsd(share, nth("share", i), opts); err != nil {
			return fmt.Errorf("share %d: %w", i, err)
		}
	}
	return nil
}

// addVars opens a machine's variable store, which is made of the template if
// need be.
func (s *supplies) addVars(template, path string) error {
	content, err := os.ReadFile(template)
	if err != nil {
		return fmt.Errorf("template of the UEFI variables: %w", err)
	}
	if path == "" {
		vars, err := memoryFile("uefi-vars", content)
		if err != nil {
			return err
		}
		s.files["vars"+edit] = vars
		s.files["vars"], err = os.Open(fdPath(int(vars.Fd())))
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		_, err := publish(path, func(f *os.File) error { _, err := f.Write(content); return err })
		if err != nil {
			return fmt.Errorf("UEFI variables: %w", err)
		}
	}
	if err := s.open("vars", path, false); err != nil {
		return fmt.Errorf("UEFI variables: %w", err)
	}
	// QEMU lets machines share flash.
	if err := claim(s.files["vars"+edit], path); err != nil {
		return fmt.Errorf("UEFI variables: %w", err)
	}
	st, err := s.files["vars"].Stat()
	if err == nil && st.Size() != int64(len(content)) {
		err = fmt.Errorf("UEFI variables: %s has %d bytes and is for another firmware, whose variables take %d: move it away, and a new one is made", path, st.Size(), len(content))
	}
	return err
}

// claim makes a file or directory this machine's until all have closed it who
// inherit it.
func claim(f *os.File, path string) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%s is in use by another machine", path)
	}
	return err
}

// open opens an image to be read and, unless it is read-only, to be written to.
// The kernel keeps a block device that is written to for who has it so: then it
// is neither mounted nor part of a volume, nor another machine's.
func (s *supplies) open(name, path string, readOnly bool) (err error) {
	if s.files[name], err = openImage(path, os.O_RDONLY); err != nil || readOnly {
		return err
	}
	flags := os.O_RDWR
	if isDevice(path) {
		flags |= unix.O_EXCL
	}
	s.files[name+edit], err = openImage(path, flags)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s is in use: it is mounted, or part of a volume, or another machine's; 'lsblk %[1]s' tells", path)
	}
	return err
}

// addDisk opens the images of a disk.
func (s *supplies) addDisk(ctx context.Context, d *Disk, i int) error {
	if d.Path != "" && !(d.Ephemeral && d.Base != "") {
		if err := d.verify(); err != nil {
			return err
		}
	}
	for _, n := range d.nodes(i) {
		if n.path == "" {
			continue
		}
		if err := s.open(n.name, n.path, n.readOnly); err != nil {
			return err
		}
	}
	if !d.Ephemeral {
		return nil
	}
	below := d.nodes(i)[1]
	im, err := inspect(below.path)
	if err != nil {
		return err
	}
	f, err := scratch(d.Path)
	if err != nil {
		return err
	}
	name := nth("disk", i)
	s.files[name+edit] = f
	if err := formatQCOW2(ctx, f, max(im.size, d.Size), "", ""); err != nil {
		return err
	}
	s.files[name], err = os.Open(fdPath(int(f.Fd())))
	return err
}

// scratchDir is for what is large and goes again.
const scratchDir = "/var/tmp"

// scratch makes a file without a name, beside path if that is not empty.
func scratch(path string) (*os.File, error) {
	dir := scratchDir
	if path != "" {
		dir = filepath.Dir(path)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	f, name, err := newFile(dir)
	if name != "" {
		os.Remove(name)
	}
	return f, err
}

// addTaps adds the taps.
func (s *supplies) addTaps(nics []NIC, taps []*os.File) {
	next := 0
	for i, nic := range nics {
		if !nic.User {
			s.taps[nth("tap", i)] = taps[next]
			next++
		}
	}
}

// connected returns both ends of a connection, as files to pass on.
func connected() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "theirs"), os.NewFile(uintptr(fds[1]), "ours"), nil
}

// socketpair returns one end as a file to pass on and one to use.
func socketpair() (*os.File, net.Conn, error) {
	theirs, ours, err := connected()
	if err != nil {
		return nil, nil, err
	}
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return theirs, conn, nil
}

// memoryFile returns a file that exists nowhere but in memory.
func memoryFile(name string, data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memory for %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(data); err != nil {
		f.Close()
		return nil, fmt.Errorf("memory for %s: %w", name, err)
	}
	return f, nil
}
