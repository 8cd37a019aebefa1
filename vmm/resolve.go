package vmm

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// resolve settles what depends on this host. The Spec that it is called on, and
// its parts, stay as they are.
func (s Spec) resolve(opts Options) (Spec, error) {
	s.handed = opts.Credential != nil
	s.NICs, s.Shares, s.Disks = slices.Clone(s.NICs), slices.Clone(s.Shares), slices.Clone(s.Disks)
	if s.microvm() && s.accel() == AccelTCG {
		// There is no clock that a kernel could measure its counter with,
		// and without a counter it has no time.
		s.tscKHz = tscKHz()
	}
	for i := range s.NICs {
		s.NICs[i].vhost = s.mayHaveVhost(i) && opens("/dev/vhost-net")
	}
	for i := range s.Shares {
		share := &s.Shares[i]
		if share.Driver != "" {
			continue
		}
		share.Driver = Share9P
		if findVirtiofsd() != "" && os.Geteuid() == 0 { // it changes to the users of the files
			share.Driver = ShareVirtiofs
		}
	}
	for i := range s.Disks {
		d := &s.Disks[i]
		d.device = isDevice(d.Path)
		if d.Base == "" {
			continue
		}
		base, err := inspectBase(d.Base)
		if err != nil {
			return s, fmt.Errorf("disk %d: %w", i, err)
		}
		d.baseFormat, d.baseDevice = base.format, isDevice(d.Base)
	}
	return s, nil
}

// mayHaveVhost tells whether the host's kernel could move a NIC's packets. They
// pass by what captures them, and it pays with KVM only.
func (s *Spec) mayHaveVhost(i int) bool {
	nic := &s.NICs[i]
	return s.accel() == AccelKVM && !nic.User && nic.Pcap == "" && strings.HasPrefix(nic.model(s), "virtio-net")
}

func opens(device string) bool {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// open returns the file as one that every user may open again through its
// descriptor: a copy in memory if need be.
func (f *openFile) open(user *Credential) (*os.File, error) {
	if f.create {
		file, err := os.Create(f.path)
		if err == nil {
			err = file.Chown(int(user.UID), int(user.GID))
		}
		return file, err
	}
	st, err := os.Stat(f.path)
	if err != nil {
		return nil, err
	}
	if st.IsDir() {
		return os.OpenFile(f.path, unix.O_PATH|unix.O_DIRECTORY, 0)
	}
	file, err := os.Open(f.path)
	if err != nil || st.Mode().Perm()&0o004 != 0 {
		return file, err
	}
	defer file.Close()
	content, err := memoryFile(f.name, nil)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(content, file); err != nil {
		content.Close()
		return nil, fmt.Errorf("%s: %w", f.path, err)
	}
	return content, nil
}

// withKVM is the user with the group that may open KVM's device.
func (c Credential) withKVM(device string) (*Credential, error) {
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: device, Err: err}
	}
	switch {
	case c.UID == 0, st.Mode&0o006 == 0o006, st.Uid == c.UID && st.Mode&0o600 == 0o600:
	case st.Gid == 0, st.Mode&0o060 != 0o060: // root's group opens far more
		return nil, fmt.Errorf("user %d may not open %s, nor may a group of its own: chgrp kvm %[2]s && chmod 660 %[2]s", c.UID, device)
	case c.GID != st.Gid && !slices.Contains(c.Groups, st.Gid):
		c.Groups = append(slices.Clone(c.Groups), st.Gid)
	}
	return &c, nil
}
