package config

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
)

// Backend is what a declared guest runs in.
type Backend string

// The backends.
const (
	BackendQEMU      Backend = "qemu"      // a virtual machine with firmware
	BackendMicroVM   Backend = "microvm"   // one without: QEMU's microvm, which boots a kernel
	BackendContainer Backend = "container" // systemd-nspawn
)

// What a guest boots first.
const (
	BootNetwork = "network"
	BootDisk    = "disk"   // the disks in their order, then the network
	BootDirect  = "direct" // the kernel of the profile, without firmware's help
)

// When a guest is started again that has ended by itself.
const (
	RestartOnFailure = "on-failure" // after a crash, and never after its own poweroff
	RestartAlways    = "always"
	RestartNever     = "never"
)

// Graphics of a guest.
const (
	GraphicsNone = "none"
	GraphicsVNC  = "vnc" // on a Unix socket
)

// DeclaredGuest is one [guest.NAME]: a virtual machine or a container that
// "ecboot up" keeps. What its backend does not have is zero.
type DeclaredGuest struct {
	Name    string // as CheckName wants it
	Node    string // host name; Load fills in "HOST-NAME" where the file says none
	Backend Backend

	// Guest is the defaults of [guest], overlaid with the guest's own keys. Its
	// NIC is the model of network cards that name none; Timeout is 0.
	Guest
	BaseMAC  boot.MAC `json:",omitzero"` // in the place of Config.BaseMAC; zero: that
	CPU      string   // QEMU's CPU model; empty: the host's with KVM, else all that emulation has
	TPM      bool
	Graphics string // one of the constants Graphics…

	Autostart    bool
	Order        int           // lower is started earlier
	Delay        time.Duration // waited after its start before the next is started
	Restart      string        // one of the constants Restart…
	RestartDelay time.Duration // before the first restart; doubles with each in a row
	RestartMax   time.Duration // up to this
	StopTimeout  time.Duration // after which a stop is no longer graceful

	Boot     string // one of the constants Boot…; empty for containers
	Profile  string // empty: DefaultProfile
	ChainURL string // what iPXE loads in place of a profile; empty: none

	Limits Limits
	Extra  []string // arguments for QEMU or systemd-nspawn, behind all others
	User   string   // who QEMU runs as; empty: ecboot-guest if there is such a user, else nobody

	Root       string // absolute path of a container's directory, tar or squashfs image
	Ephemeral  bool   // what a container changes is lost with it
	State      string // absolute path of a directory that keeps the changes to an image; empty: none are kept
	StopSignal string // by which a container's init powers off; empty: systemd's
	UIDBase    uint32 // the host's user id of a container's root; 0: the same

	NICs   []GuestNIC
	Disks  []GuestDisk
	Shares []GuestShare
	ZFS    []GuestZFS // in the order of the file
}

// VM reports whether the guest is a virtual machine.
func (g DeclaredGuest) VM() bool { return g.Backend != BackendContainer }

// Limits is what a guest may use of the host; zero: as much as there is.
type Limits struct {
	CPU      int // in percent of one processor
	Memory   Size
	Tasks    int // processes and threads
	IOWeight int // 1 to 10000; others have 100
}

// GuestNIC is a network card of a guest's. One of Segment, Macvtap, Macvlan and
// User is set.
type GuestNIC struct {
	Segment string // name of the segment that it is on
	Macvtap string // link of the host that carries it, of a virtual machine
	Macvlan string // the same of a container
	User    bool   // QEMU's user network: out, and nobody in

	MAC     boot.MAC   // zero: assigned, see package guest
	Address netip.Addr // reserved on the segment; zero: one out of the pool
	Model   string     // QEMU device; empty but for BackendQEMU
	Name    string     // of the link in a container, or of a virtual machine's on the host; empty: derived
	ROM     string     // "default" or "none"; empty but for BackendQEMU
	Boot    int        // place in the boot order, from 1; 0: behind those that have one, in the order of the file
}

// GuestDisk is a disk of a virtual machine.
type GuestDisk struct {
	Path      string // absolute; empty: see DiskPath
	Format    string // "qcow2" or "raw"
	Size      Size   // of one that is made, because it is missing; 0: that of Base, or it is never made
	Base      string // absolute path of an image under it, which is never written to; empty: none
	Ephemeral bool   // what is written is lost when the guest ends
	ReadOnly  bool
	ISO       bool   // a CD
	Bus       string // "virtio", "scsi" or "ide"
}

// writes reports whether the file at Path changes.
func (d GuestDisk) writes() bool { return !d.ReadOnly && !d.ISO && !d.Ephemeral }

// DiskPath is where the guest's i-th disk is, from 0.
func (g DeclaredGuest) DiskPath(stateDir string, i int) string {
	if d := g.Disks[i]; d.Path != "" {
		return d.Path
	}
	return filepath.Join(stateDir, "guests", g.Name, fmt.Sprintf("disk%d.%s", i, g.Disks[i].Format))
}

// GuestShare is a directory of the host's that a guest sees.
type GuestShare struct {
	Source   string // absolute path on the host
	Target   string // mount tag of a virtual machine, absolute path in a container
	ReadOnly bool
	Driver   string // "virtiofs" or "9p"; empty: the first that works; containers have none
}

// GuestZFS is a dataset that a guest sees, see package zfs.
type GuestZFS struct {
	Guest          string // absolute path in the guest
	Pool, Dataset  string
	HostMountpoint string // empty: zfs decides
}

// HostBridge is the bridge of the host on which "ecboot up" serves a segment
// that is private.
func (s Segment) HostBridge() string { return "ec-" + s.Name }

// DeclaredGuest finds the guest called name.
func (c *Config) DeclaredGuest(name string) (*DeclaredGuest, bool) {
	i := slices.IndexFunc(c.Guests, func(g DeclaredGuest) bool { return g.Name == name })
	if i < 0 {
		return nil, false
	}
	return &c.Guests[i], true
}

// GuestWith finds the guest that has a network card of this address.
func (c *Config) GuestWith(mac boot.MAC) (*DeclaredGuest, bool) {
	i := slices.IndexFunc(c.Guests, func(g DeclaredGuest) bool {
		return mac != (boot.MAC{}) && slices.ContainsFunc(g.NICs, func(n GuestNIC) bool { return n.MAC == mac })
	})
	if i < 0 {
		return nil, false
	}
	return &c.Guests[i], true
}

// maxGuestName leaves room in the paths of Unix sockets, which have 108 bytes.
const maxGuestName = 48

// CheckName says why a guest cannot be called s: the name becomes a part of
// units, paths and host names.
func CheckName(s string) error {
	switch {
	case !isBare(s) || !isLetterOrDigit(s[0]):
		return errors.New("is not the name of a guest: letters, digits, - and _ are, a letter or digit first")
	case len(s) > maxGuestName:
		return fmt.Errorf("is longer than the %d bytes that the name of a guest can have", maxGuestName)
	}
	return nil
}

// newGuest is a guest of which the file says nothing.
func newGuest(name string, defaults Guest) DeclaredGuest {
	defaults.Timeout = 0 // nobody waits for a guest that is kept
	return DeclaredGuest{
		Name: name, Guest: defaults, Graphics: GraphicsNone, Boot: BootNetwork,
		Restart: RestartOnFailure, RestartDelay: 5 * time.Second, RestartMax: 5 * time.Minute, StopTimeout: time.Minute,
	}
}

// nodeName is the default of a guest's host name, one label.
func nodeName(host, guest string) string {
	host, _, _ = strings.Cut(host, ".")
	return host + "-" + strings.ReplaceAll(guest, "_", "-")
}
