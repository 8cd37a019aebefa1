// Package config turns a TOML file into the final, typed Config. Every mistake
// of a file is reported at once, each with its line, column and key and with
// what to write instead. reference.toml is the manual of all keys; each key is
// declared once, in keys.go, for reading, showing and listing alike.
package config

import (
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
)

// Reference is the manual of the configuration file: every key with what it
// does, its default and an example. It is a valid file that says nothing but
// defaults.
//
//go:embed reference.toml
var Reference string

// Starter is a short file to begin with, all defaults.
//
//go:embed starter.toml
var Starter string

// Config is a whole configuration: what a file said, defaults where it said
// nothing.
type Config struct {
	Segments []Segment // in the order of the file; a private one when it declares none
	Server   Server
	Profiles map[string]Profile // by name; DefaultProfile is always there
	Machines []Machine          // in the order of the file
	Rules    []Rule             // in the order of the file
	Guest    Guest
	Guests   []DeclaredGuest // in the order of the file
	BaseMAC  boot.MAC        // whose second and third byte assigned MACs have
}

// Segment is a network that is served. At most one of Interface, Bridge and
// Parent is set; with none of them, nor Relay, it is private: a bridge in a
// network namespace of its own.
type Segment struct {
	Name      string
	Interface string       // an existing link, served as it is
	Bridge    string       // made if missing
	Uplink    string       // a NIC that becomes a port of Bridge
	Parent    string       // a NIC on which guests get macvtaps and the servers a macvlan
	VLAN      int          // 802.1Q tag on Interface, Uplink or Parent; 0: none
	Relay     netip.Prefix // of a segment behind a relay agent: the relay's address there; zero: none
	Via       string       // with Relay: the segment whose servers the relay asks; filled in when there is only one

	Mode           Mode
	Address        netip.Prefix // the servers' IPv4 address, not the network's, and the prefix length; zero: the one that the link has
	Pool           []Range      // addresses for machines that have none reserved
	Exclude        []Range      // addresses of the prefix that are never given out
	LeaseTime      time.Duration
	BootLeaseTime  time.Duration // of firmware and boot programs; 0: decided by how full the pool is
	Router         netip.Addr    // zero: no default route is announced
	DNS            []netip.Addr
	NTP            []netip.Addr
	Domain         string
	Search         []string
	Routes         []Route
	Options        map[string]string // by name or number, as boot.ParseOption reads them
	NAT            bool
	Unknown        Policy // PolicyAuto unless the file decides; Policy() says what it comes to
	AllowOtherDHCP bool
}

// Mode says what the servers do on a segment.
type Mode string

// The modes.
const (
	ModeServer Mode = "server" // addresses and boot files
	ModeProxy  Mode = "proxy"  // boot files beside another server's addresses
	ModeOff    Mode = "off"    // nothing
)

// Route is one route that machines are told.
type Route struct {
	To  netip.Prefix
	Via netip.Addr
}

// String returns "TO via VIA".
func (r Route) String() string { return r.To.String() + " via " + r.Via.String() }

// Private reports whether the segment is a network of ecboot's own that nobody
// else is on.
func (s Segment) Private() bool {
	return s.Interface == "" && s.Bridge == "" && s.Parent == "" && !s.Relay.IsValid()
}

// Prefix is the segment's network with an address in it; zero when only the
// link knows.
func (s Segment) Prefix() netip.Prefix {
	if s.Relay.IsValid() {
		return s.Relay
	}
	return s.Address
}

// Segment finds the segment called name.
func (c *Config) Segment(name string) (*Segment, bool) {
	i := slices.IndexFunc(c.Segments, func(s Segment) bool { return s.Name == name })
	if i < 0 {
		return nil, false
	}
	return &c.Segments[i], true
}

// Policy says what machines get that the configuration does not declare.
type Policy string

// The policies. PolicyAuto is never written in a file.
const (
	PolicyAuto    Policy = ""        // boot on a private segment, ignore on any other
	PolicyBoot    Policy = "boot"    // an address and the default profile
	PolicyAddress Policy = "address" // an address and no boot file
	PolicyIgnore  Policy = "ignore"  // no answer
)

// Policy decides PolicyAuto: on a segment of our own every machine is ours to
// boot, on a network that others use only those that were declared.
func (s Segment) Policy() Policy {
	switch {
	case s.Unknown != PolicyAuto:
		return s.Unknown
	case s.Private():
		return PolicyBoot
	}
	return PolicyIgnore
}

// Range is all addresses from First to Last, both included.
type Range struct{ First, Last netip.Addr }

// Contains reports whether a is in the range.
func (r Range) Contains(a netip.Addr) bool { return !a.Less(r.First) && !r.Last.Less(a) }

// String returns FIRST-LAST, or the address when there is only one.
func (r Range) String() string {
	switch {
	case !r.First.IsValid():
		return ""
	case r.First == r.Last:
		return r.First.String()
	}
	return r.First.String() + "-" + r.Last.String()
}

// Server is what the servers need beside their network.
type Server struct {
	StateDir       string // absolute; empty: where the user who runs ecboot keeps state
	HTTPPort       uint16
	HTTPSPort      uint16                   // 0: no HTTPS
	TLSCertificate string                   // absolute path of a PEM file; empty: one is made
	TLSKey         string                   // of TLSCertificate
	NBP            map[boot.Platform]string // absolute paths of boot programs, instead of those that ecboot carries
	Shim           map[boot.Platform]string // absolute paths of shims for Secure Boot, instead of those that are installed
	GRUB           map[boot.Platform]string // and of the GRUBs that they load
	OperatorGroup  string                   // whose members may use guests without being root
}

// DefaultProfile is the profile of machines that name none. A file that does
// not declare it gets the embedded system.
const DefaultProfile = "default"

// Profile is a system to boot: a kernel with initrds, an iPXE script, or
// programs that the firmware runs.
type Profile struct {
	Name       string
	Kernel     Source     // empty when there is a script
	Initrds    []Source   // in the order in which the kernel unpacks them
	Initramfs  *Initramfs // one more to build, unpacked last; nil: none
	Cmdline    string     // kernel command line without initrd=
	ScriptFile string     // absolute path; empty: none
	Script     string     // contents of ScriptFile, filled in by Load

	EFI         string                   // absolute path of a program for UEFI machines; empty: none
	EFIPlatform boot.Platform            // what EFI runs on, filled in by Load
	Tree        string                   // absolute path of a directory that is served as it is; empty: none
	Programs    map[boot.Platform]string // paths in Tree
	SecureBoot  bool
}

// Source says where a boot file comes from: an absolute path, or one of the
// notations Embedded… and Built.
type Source string

// The images that the binary carries.
const (
	EmbeddedKernel    Source = embeddedPrefix + "kernel"
	EmbeddedInitramfs Source = embeddedPrefix + "initramfs"
)

const (
	embeddedPrefix = "embedded:"
	builtPrefix    = "built:"
)

// Built is the source of the archive that Profile.Initramfs describes. It
// appears in an Inventory only.
func Built(profile string) Source { return Source(builtPrefix + profile) }

// Embedded returns the name of an embedded image, such as "kernel".
func (s Source) Embedded() (name string, ok bool) {
	return strings.CutPrefix(string(s), embeddedPrefix)
}

// Built returns the name of the profile whose initramfs is to be built.
func (s Source) Built() (profile string, ok bool) {
	return strings.CutPrefix(string(s), builtPrefix)
}

// Initramfs describes an archive to build from u-root commands.
type Initramfs struct {
	Commands []string          // u-root templates or Go package patterns; empty: those of the embedded image
	Files    map[string]string // absolute path in the archive to the file's path on this machine
}

// Machine is a machine that the configuration declares. It is known by its MAC,
// its UUID or, if it has neither, by its name.
type Machine struct {
	MAC       boot.MAC   // zero: not given
	UUID      string     // as boot.Client has it; empty: not given
	Name      string     // host name; may be empty
	Address   netip.Addr // reserved for it; zero: one out of the pool
	Profile   string     // empty: DefaultProfile
	Next      Next
	NBP       string // a boot program of package boot or an absolute path; empty: by platform
	Chainload bool   // give it our iPXE even if its own would do
	Tags      []string
	Options   map[string]string // as Segment.Options
}

// Next says what a machine boots from one time to the next.
type Next string

// The choices.
const (
	NextAlways Next = "always" // its profile
	NextOnce   Next = "once"   // its profile one time, then its local disk
	NextLocal  Next = "local"  // its local disk
)

// Rule says what machines boot that are alike; see boot.Rule.
type Rule struct {
	MAC     string // beginning of the MAC, such as "52:54:00"
	Arch    boot.Platform
	Vendor  string
	UUID    string
	Tags    []string
	Profile string
	NBP     string // as Machine.NBP
}

// Guest is the defaults of a virtual machine.
type Guest struct {
	Arch       string // "amd64" or "arm64", which has UEFI and a machine of its own
	Firmware   string // "bios", "uefi" or "uefi-ia32"
	SecureBoot bool   // UEFI with Microsoft's keys that runs nothing unsigned
	Machine    string // "q35" or "pc"; empty: a declared guest has no choice
	Memory     Size   // whole mebibytes
	CPUs       int
	NIC        string // QEMU device model
	ROM        string // "default" or "none"
	Accel      string // "auto", "kvm" or "tcg"
	Timeout    time.Duration
	Append     string // added to the kernel command line of the profile
}

// Default returns the configuration of an empty file.
func Default() *Config {
	private := NewSegment(PrivateSegment)
	private.Address = defaultAddress
	private.Pool = []Range{derivePool(defaultAddress)}
	return &Config{
		Segments: []Segment{private},
		Server:   Server{OperatorGroup: "ecboot", HTTPPort: 80},
		Profiles: map[string]Profile{DefaultProfile: {
			Name:    DefaultProfile,
			Kernel:  EmbeddedKernel,
			Initrds: []Source{EmbeddedInitramfs},
			Cmdline: defaultCmdline,
		}},
		Guest: Guest{
			Arch:     "amd64",
			Firmware: "bios",
			Machine:  "q35",
			Memory:   1 << 30,
			CPUs:     1,
			NIC:      "virtio-net-pci",
			ROM:      "default",
			Accel:    "auto",
			Timeout:  5 * time.Minute,
		},
		BaseMAC: boot.MAC{0x02, 0x01, 0x27},
	}
}

// PrivateSegment is the name of the segment of a file that declares none.
const PrivateSegment = "private"

var defaultAddress = netip.MustParsePrefix("10.77.0.1/24")

// NewSegment returns a private segment with all defaults but those that follow
// from an address.
func NewSegment(name string) Segment {
	return Segment{Name: name, Mode: ModeServer, LeaseTime: time.Hour}
}

// defaultCmdline shows the boot on the serial console, the one that guests
// have attached.
const defaultCmdline = "console=ttyS0"

// Find returns the file to load: the explicit one, else ./ecboot.toml, else
// /etc/ecboot/ecboot.toml. An empty path means that there is none and that
// defaults hold.
func Find(explicit string) (path string, err error) {
	if explicit != "" {
		if _, err := os.Stat(explicit); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return "", fmt.Errorf("there is no configuration file %s; 'ecboot config init' writes one to begin with", explicit)
			}
			return "", fmt.Errorf("configuration file: %w", err)
		}
		return explicit, nil
	}
	return findIn("ecboot.toml", "/etc/ecboot/ecboot.toml")
}

func findIn(candidates ...string) (string, error) {
	for _, path := range candidates {
		_, err := os.Stat(path)
		if err == nil {
			return path, nil
		}
		// Passing over a file that may well be there would silently boot
		// something else.
		if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("configuration file: %w", err)
		}
	}
	return "", nil
}

// Load reads a file and the iPXE scripts that it names, and checks that every
// file that it names can be read. Mistakes are returned as Problems, together
// with what checks have to complain about. An empty path gives Default.
func Load(path string, checks ...Check) (*Config, error) {
	if path == "" {
		return Default(), nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("configuration file: %w", err)
	}
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "localhost"
	}
	c, r := parse(path, data, host)
	if !r.broken {
		r.readFiles(c)
		r.readPrograms(c)
		r.complain(c, checks)
	}
	if err := r.err(); err != nil {
		return nil, err
	}
	return c, nil
}

// Check is what another package knows of a configuration. Values that are wrong
// already can be among those it sees.
type Check func(*Config) []Complaint

// Complaint is a mistake by its key, such as "guest.web.extra[0]": a Problem
// without the place.
type Complaint struct {
	Key, What, Instead string
	Other              string // key of the other place that What speaks of, whose line is added; empty: none
}

// complain reports what checks find. What they say of a value or a table that is
// known to be wrong may follow from that and is left out.
func (r *reader) complain(c *Config, checks []Check) {
	known := slices.Collect(maps.Keys(r.bad))
	for _, check := range checks {
		for _, p := range check(c) {
			follows := slices.ContainsFunc(known, func(bad string) bool { return strings.HasPrefix(bad+".", p.Key+".") })
			if !follows && r.ok(p.Key) {
				if p.Other != "" {
					p.What += fmt.Sprintf(", in line %d", r.lineOf(p.Other))
				}
				r.problemAt(p.Key, p.What, p.Instead)
			}
		}
	}
}

// KeyPath is the path of a key by the names of its tables and its own.
func KeyPath(names ...string) (path string) {
	for _, name := range names {
		path = join(path, name)
	}
	return path
}

// Parse reads the text of a file without looking at this machine:
// Profile.Script stays empty, and so does the Node of a guest for which the file
// has none. Relative paths are taken from the directory of name. Mistakes are
// returned as Problems.
func Parse(name string, data []byte) (*Config, error) {
	c, r := parse(name, data, "")
	if err := r.err(); err != nil {
		return nil, err
	}
	return c, nil
}

// parse reads a file on the machine called host; empty: on any.
func parse(name string, data []byte, host string) (*Config, *reader) {
	r := newReader(name, data)
	c := Default()
	root := r.document()
	if r.broken {
		return c, r
	}
	fileKeys(&section{r: r, in: root}, c)
	r.nameNodes(c, host)
	r.check(c)
	return c, r
}
