package vmm

import (
	"slices"
	"strconv"
)

const firstFD = 3 // what os/exec makes of ExtraFiles[0]

// layout names the files that a QEMU process inherits, in the order of their
// descriptors. What a machine does not need is left out, and the later ones
// move up.
type layout []string

// edit is the descriptor of the same file that can be written to. QEMU looks in
// a set for a descriptor opened the way it wants: to read first, then to write.
const edit = "-edit"

func nth(what string, i int) string { return what + strconv.Itoa(i) }

func (s *Spec) layout() layout {
	l := layout{"console", "qmp"}
	add := func(names ...string) { l = append(l, names...) }
	if s.UEFI != (UEFI{}) {
		add("vars", "vars"+edit)
	}
	if len(s.InitrdData) > 0 {
		add("initrd")
	}
	for i := range s.Disks {
		for _, n := range s.Disks[i].nodes(i) {
			add(n.name)
			if !n.readOnly {
				add(n.name + edit)
			}
		}
	}
	if s.TPM != "" {
		add("tpm")
	}
	for i, share := range s.Shares {
		if share.driver() == ShareVirtiofs {
			add(nth("share", i))
		}
	}
	for i, nic := range s.NICs {
		if !nic.User {
			add(nth("tap", i))
		}
		if nic.vhost {
			add(nth("vhost", i))
		}
	}
	for _, f := range s.openFiles() {
		add(f.name)
	}
	return l
}

// openFile is a file that QEMU would open itself if it had the right to.
type openFile struct {
	name, path string
	create     bool // QEMU writes to it
}

// openFiles are those that an unprivileged QEMU is handed.
func (s *Spec) openFiles() (files []openFile) {
	if !s.handed {
		return nil
	}
	add := func(name, path string) {
		if path != "" {
			files = append(files, openFile{name: name, path: path})
		}
	}
	add("code", s.UEFI.Code)
	add("kernel", s.Kernel)
	if len(s.InitrdData) == 0 {
		add("initrd", s.Initrd)
	}
	for i, share := range s.Shares {
		if share.driver() == Share9P {
			add(nth("share", i), share.Path)
		}
	}
	for i, nic := range s.NICs {
		if nic.ROM != ROMNone && !s.microvm() {
			add(nth("rom", i), nic.ROM)
		}
		if nic.Pcap != "" {
			files = append(files, openFile{name: nth("pcap", i), path: nic.Pcap, create: true})
		}
	}
	return files
}

// fd is the number of an inherited descriptor, 0 if there is none of the name.
func (l layout) fd(name string) int {
	if i := slices.Index(l, name); i >= 0 {
		return firstFD + i
	}
	return 0
}

// file is how QEMU names a file that it may have inherited.
func (l layout) file(name, path string) string {
	if fd := l.fd(name); fd != 0 {
		return fdPath(fd)
	}
	return path
}

// set returns the arguments that make a set of a file's descriptors, and the
// name under which QEMU opens it. The number of the set is that of its first
// descriptor.
func (l layout) set(name string) (args []string, path string) {
	set := strconv.Itoa(l.fd(name))
	for _, fd := range []int{l.fd(name), l.fd(name + edit)} {
		if fd != 0 {
			args = append(args, "-add-fd", "set="+set+",fd="+strconv.Itoa(fd))
		}
	}
	return args, "/dev/fdset/" + set
}

// fdPath names an inherited descriptor as a file of QEMU's own.
func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
