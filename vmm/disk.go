package vmm

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// The formats of disk images.
const (
	FormatQCOW2 = "qcow2"
	FormatRaw   = "raw"
)

// The ways in which a disk is connected.
const (
	BusVirtio = "virtio"
	BusSCSI   = "scsi"
	BusIDE    = "ide"
)

// Disk is a disk or a CD. The image must exist when the machine starts:
// EnsureDisk makes it. When the disk of the host that holds it is full, the
// guest is paused in the middle of its write and goes on, none the wiser, once
// there is room again: see Machine.Trouble.
type Disk struct {
	Path      string // image, or with FormatRaw a block device; may be empty if ephemeral with a base
	Format    string // FormatQCOW2, which empty means but for a CD, or FormatRaw
	Size      int64  // bytes, of an image that EnsureDisk makes; 0: as large as Base
	Base      string // image that is never written to, below what the guest writes; empty: none
	Ephemeral bool   // what the guest writes is lost when the machine ends; Base, else Path, is what it starts from
	ReadOnly  bool
	CDROM     bool   // Path is an ISO image
	Bus       string // BusVirtio, BusSCSI or BusIDE; empty: virtio, for a CD what the machine has
	BootIndex int    // order among boot devices, NICs too, from 1; 0: not a boot device
	Serial    string // that the guest reads, at most 20 bytes; empty: none

	// Start finds out.
	baseFormat string
	device     bool // Path is a block device
	baseDevice bool // Base is one
}

func (d *Disk) format() string {
	switch {
	case d.Format != "":
		return d.Format
	case d.CDROM:
		return FormatRaw
	}
	return FormatQCOW2
}

func (d *Disk) bus(s *Spec) string {
	switch {
	case d.Bus != "":
		return d.Bus
	case !d.CDROM:
		return BusVirtio
	case s.Arch == ArchARM64 || s.microvm():
		return BusSCSI
	}
	return BusIDE
}

func (d *Disk) readOnly() bool { return d.ReadOnly || d.CDROM }

// node is one image of the chain that makes a disk.
type node struct {
	name     string // of its descriptor and, in QEMU, of the block node
	path     string // empty: made by Start and on no path
	format   string
	readOnly bool
	device   bool // path is a block device, for which QEMU has another driver
}

// nodes are the disk's images: what the guest writes to, then what lies below.
func (d *Disk) nodes(i int) []node {
	id := nth("disk", i)
	base := node{name: id + "-base", path: d.Base, format: d.baseFormat, readOnly: true, device: d.baseDevice}
	if base.format == "" {
		base.format = FormatRaw
		if strings.HasSuffix(d.Base, ".qcow2") {
			base.format = FormatQCOW2
		}
	}
	top := node{name: id, path: d.Path, format: d.format(), readOnly: d.readOnly(), device: d.device}
	if d.Ephemeral {
		if d.Base == "" {
			base.path, base.format, base.device = d.Path, d.format(), d.device
		}
		return []node{{name: id, format: FormatQCOW2}, base}
	}
	if d.Base != "" {
		return []node{top, base}
	}
	return []node{top}
}

// diskArgs describe each image of each disk to QEMU, so that it opens nothing
// that an image names in its header.
func (s *Spec) diskArgs(l layout) (args []string) {
	scsi := false
	for i := range s.Disks {
		d := &s.Disks[i]
		nodes := d.nodes(i)
		for j := len(nodes) - 1; j >= 0; j-- {
			below := ""
			if j+1 < len(nodes) {
				below = nodes[j+1].name
			}
			args = append(args, nodes[j].args(l, below)...)
		}
		if d.bus(s) == BusSCSI && !scsi {
			scsi = true
			args = append(args, "-device", s.virtio("virtio-scsi")+",id=scsi")
		}
		args = append(args, "-device", s.diskDevice(i))
	}
	return args
}

// args declare the image on top of the node below.
func (n *node) args(l layout, below string) []string {
	args, file := l.set(n.name)
	// What the guest discards is given back to the host. Caching is QEMU's
	// default: the host's page cache, flushed when the guest flushes.
	type common struct {
		Driver   string `json:"driver"`
		Node     string `json:"node-name"`
		ReadOnly bool   `json:"read-only"`
		Discard  string `json:"discard"`
	}
	driver := "file"
	if n.device {
		driver = "host_device"
	}
	fileNode := struct {
		common
		Filename string `json:"filename"`
	}{common{driver, n.name + "-file", n.readOnly, "unmap"}, file}
	formatNode := struct {
		common
		File string `json:"file"`
		// In qcow2, null keeps QEMU from what the header names.
		Backing json.RawMessage `json:"backing,omitempty"`
	}{common: common{n.format, n.name, n.readOnly, "unmap"}, File: fileNode.Node}
	if n.format == FormatQCOW2 {
		formatNode.Backing, _ = json.Marshal(nonEmpty(below))
	}
	for _, v := range []any{fileNode, formatNode} {
		text, _ := json.Marshal(v) // strings and booleans always can be
		args = append(args, "-blockdev", string(text))
	}
	return args
}

// nonEmpty returns nil for an empty string.
func nonEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func (s *Spec) diskDevice(i int) string {
	d := &s.Disks[i]
	var dev string
	switch d.bus(s) {
	case BusSCSI:
		dev = "scsi-hd,bus=scsi.0"
		if d.CDROM {
			dev = "scsi-cd,bus=scsi.0"
		}
	case BusIDE:
		dev = "ide-hd"
		if d.CDROM {
			dev = "ide-cd"
		}
		dev += s.idePlace(i)
	default:
		dev = s.virtio("virtio-blk")
	}
	id := nth("disk", i)
	dev += ",id=" + id + "-dev,drive=" + id
	if !d.readOnly() {
		// A full disk of the host is the host's trouble: the guest waits.
		// Other errors are those of a broken disk, which it should see.
		dev += ",werror=enospc,rerror=report"
	}
	if d.Serial != "" {
		dev += ",serial=" + optValue(d.Serial)
	}
	if d.BootIndex != 0 {
		dev += fmt.Sprintf(",bootindex=%d", d.BootIndex)
	}
	return dev
}

// idePlaces are how many devices the buses of a machine's IDE have, and how many
// there are on each; 0 where that is not known.
func (s *Spec) idePlaces() (all, each int) {
	switch name := s.machineType(); {
	case name == "q35" || strings.HasPrefix(name, "pc-q35-"):
		return 6, 1
	case name == "pc" || strings.HasPrefix(name, "pc-i440fx-"):
		return 4, 2
	}
	return 0, 0
}

// idePlace is where a disk is on IDE. QEMU by itself tries the first bus only.
func (s *Spec) idePlace(i int) string {
	all, each := s.idePlaces()
	if all == 0 {
		return ""
	}
	place := s.ideBefore(i)
	return fmt.Sprintf(",bus=ide.%d,unit=%d", place/each, place%each)
}

// ideFull reports whether IDE has no place for a disk.
func (s *Spec) ideFull(i int) bool {
	all, _ := s.idePlaces()
	return all > 0 && s.ideBefore(i) >= all
}

// ideBefore counts the disks before one that are on IDE.
func (s *Spec) ideBefore(i int) (n int) {
	for j := range s.Disks[:i] {
		if s.Disks[j].bus(s) == BusIDE {
			n++
		}
	}
	return n
}

// check finds what no machine can have.
func (d *Disk) check() error {
	switch {
	case d.Path == "" && !(d.Ephemeral && d.Base != ""):
		return fmt.Errorf("it needs the path of its image")
	case d.Format != "" && d.Format != FormatQCOW2 && d.Format != FormatRaw:
		return fmt.Errorf("format %q: use qcow2 or raw", d.Format)
	case d.Size < 0:
		return fmt.Errorf("%d bytes: use a positive size", d.Size)
	case d.CDROM && (d.Base != "" || d.Ephemeral || d.Size != 0):
		return fmt.Errorf("a CD is what it is: it has neither size nor base and nothing ephemeral")
	case d.ReadOnly && d.Ephemeral:
		return fmt.Errorf("it is read-only, so there is nothing ephemeral: leave one out")
	case d.ReadOnly && d.Base != "":
		return fmt.Errorf("it is read-only, so there is nothing above its base: make the base the disk")
	case d.Base != "" && d.format() == FormatRaw && !d.Ephemeral:
		return fmt.Errorf("a raw image has no base: use qcow2")
	}
	return nil
}

func (s *Spec) checkDisk(i int) error {
	d := &s.Disks[i]
	if err := d.check(); err != nil {
		return err
	}
	switch bus := d.bus(s); {
	case bus != BusVirtio && bus != BusSCSI && bus != BusIDE:
		return fmt.Errorf("bus %q: use virtio, scsi or ide", d.Bus)
	case d.CDROM && bus == BusVirtio:
		return fmt.Errorf("a CD is on the bus ide or scsi, not virtio")
	case bus == BusIDE && (s.Arch == ArchARM64 || s.microvm()):
		return fmt.Errorf("a machine %s has no bus ide: use virtio or scsi", s.machineType())
	case bus == BusIDE && d.ReadOnly && !d.CDROM:
		return fmt.Errorf("a disk on the bus ide cannot be read-only: use virtio or scsi")
	case bus == BusIDE && s.ideFull(i):
		return fmt.Errorf("a machine %s has no more room on the bus ide: use virtio or scsi", s.machineType())
	case d.BootIndex < 0:
		return fmt.Errorf("boot index %d: use 1 or more, 0 for a disk that is not booted from", d.BootIndex)
	case len(d.Serial) > 20:
		return fmt.Errorf("serial %q is longer than 20 bytes", d.Serial)
	}
	for j := range s.Disks[:i] {
		other := &s.Disks[j]
		switch {
		case d.Path != "" && d.Path == other.Path && !(d.keepsPath() && other.keepsPath()):
			return fmt.Errorf("%s is disk %d already", d.Path, j)
		case d.BootIndex != 0 && d.BootIndex == other.BootIndex:
			return fmt.Errorf("boot index %d is that of disk %d already", d.BootIndex, j)
		}
	}
	for j, nic := range s.NICs {
		if d.BootIndex != 0 && d.BootIndex == nic.BootIndex {
			return fmt.Errorf("boot index %d is that of NIC %d already", d.BootIndex, j)
		}
	}
	return nil
}

// keepsPath tells whether the image at Path stays as it is.
func (d *Disk) keepsPath() bool { return d.readOnly() || d.Ephemeral }

// retryFull is how often it is tried whether a full disk has room again.
const retryFull = 5 * time.Second

// onFull notes that the guest was paused because the host had no room for what
// it wrote.
func (m *Machine) onFull(disk string) {
	path := disk
	for i := range m.spec.Disks {
		if nth("disk", i) == disk {
			path = cmp.Or(m.spec.Disks[i].Path, scratchDir)
		}
	}
	m.mu.Lock()
	first := m.full == ""
	m.full = path
	m.pauses++
	m.mu.Unlock()
	if first {
		m.opts.Log.Error("machine is paused: the host's disk is full", "machine", m.opts.Machine, "image", path)
		go m.awaitRoom()
	}
}

// awaitRoom lets the guest try again until it gets on.
func (m *Machine) awaitRoom() {
	for !m.wait(context.Background(), retryFull) {
		m.mu.Lock()
		pauses := m.pauses
		m.mu.Unlock()
		status, err := m.Status(context.Background())
		if err == nil && status == "io-error" {
			err = m.qmp.execute(context.Background(), "cont", nil, nil)
		}
		if err != nil {
			continue // it has ended, or is busy
		}
		if status != "io-error" && m.gotOn(pauses) {
			m.opts.Log.Info("machine goes on: there is room again", "machine", m.opts.Machine)
			return
		}
	}
}

// gotOn ends the trouble, unless it has come back since so many pauses.
func (m *Machine) gotOn(pauses int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pauses != pauses {
		return false
	}
	m.full = ""
	return true
}

// Trouble says why a machine that has not ended stands still, or nothing.
func (m *Machine) Trouble() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.full == "" {
		return ""
	}
	return "the host's disk is full: the guest waits for room to write to " + m.full
}
