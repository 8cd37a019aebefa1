package vmm

import (
	"fmt"
)

// The ways in which a directory is shared.
const (
	ShareVirtiofs = "virtiofs"
	Share9P       = "9p"
)

// Share is a directory of the host that the guest mounts by its tag:
//
//	mount -t virtiofs TAG /mnt
//	mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 TAG /mnt
//
// With virtiofs a helper beside QEMU, virtiofsd, serves it as root, shut into
// that directory: files keep their owners and modes. With 9p it is QEMU itself,
// with the rights of its user: run as nobody (Options.Credential), it reads what
// everybody may read, and writes where everybody may write.
type Share struct {
	Tag      string // at most 31 bytes
	Path     string // an existing directory
	Driver   string // ShareVirtiofs, Share9P; empty: virtiofs where virtiofsd is installed and can serve it
	ReadOnly bool   // with virtiofs, what is mounted below Path is not seen
}

// driver is the one that Start found out, or would like to.
func (s *Share) driver() string {
	if s.Driver == "" {
		return ShareVirtiofs
	}
	return s.Driver
}

// sharedMemory tells whether a process beside QEMU works in the guest's memory.
func (s *Spec) sharedMemory() bool {
	for i := range s.Shares {
		if s.Shares[i].driver() == ShareVirtiofs {
			return true
		}
	}
	return false
}

func (s *Spec) shareArgs(l layout) (args []string) {
	for i := range s.Shares {
		share := &s.Shares[i]
		id := nth("share", i)
		tag := optValue(share.Tag)
		if share.driver() == ShareVirtiofs {
			args = append(args, "-chardev", fmt.Sprintf("socket,id=%s,fd=%d", id, l.fd(id)),
				"-device", s.virtio("vhost-user-fs")+",chardev="+id+",tag="+tag)
			continue
		}
		fsdev := "local,id=" + id + ",path=" + optValue(l.file(id, share.Path)) + ",security_model=none,multidevs=remap"
		if share.ReadOnly {
			fsdev += ",readonly=on"
		}
		args = append(args, "-fsdev", fsdev, "-device", s.virtio("virtio-9p")+",fsdev="+id+",mount_tag="+tag)
	}
	return args
}

func (s *Spec) checkShare(i int) error {
	share := &s.Shares[i]
	switch {
	case share.Tag == "":
		return fmt.Errorf("it needs a tag by which the guest mounts it")
	case len(share.Tag) > 31:
		return fmt.Errorf("tag %q is longer than 31 bytes", share.Tag)
	case share.Path == "":
		return fmt.Errorf("it needs the path of a directory")
	case share.Driver != "" && share.Driver != ShareVirtiofs && share.Driver != Share9P:
		return fmt.Errorf("driver %q: use virtiofs or 9p", share.Driver)
	}
	for j, other := range s.Shares[:i] {
		if share.Tag == other.Tag {
			return fmt.Errorf("tag %q is that of share %d already", share.Tag, j)
		}
	}
	return nil
}
