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
	"net/netip"
	"os"
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
	Segment  Segment
	Server   Server
	Profiles map[string]Profile // by name; DefaultProfile is always there
	Machines []Machine          // in the order of the file
	Guest    Guest
}

// Segment is the network that is served.
type Segment struct {
	Bridge    string       // existing bridge; empty: a private segment
	Address   netip.Prefix // the servers' IPv4 address, not the network's, and the prefix length
	Pool      Range        // addresses for machines that have none reserved
	Exclude   []Range      // addresses of the prefix that are never given out
	LeaseTime time.Duration
	Router    netip.Addr // zero: no default route is announced
	DNS       []netip.Addr
	NTP       []netip.Addr
	Domain    string
	Unknown   Policy // PolicyAuto unless the file decides; Policy() says what it comes to
}

// Policy says what machines get that the configuration does not declare.
type Policy string

// The policies. PolicyAuto is never written in a file.
const (
	PolicyAuto    Policy = ""        // boot on a private segment, ignore on a bridge
	PolicyBoot    Policy = "boot"    // an address and the default profile
	PolicyAddress Policy = "address" // an address and no boot file
	PolicyIgnore  Policy = "ignore"  // no answer
)

// Policy decides PolicyAuto: on a segment of our own every machine is ours to
// boot, on a bridge that others use only those that were declared.
func (s Segment) Policy() Policy {
	switch {
	case s.Unknown != PolicyAuto:
		return s.Unknown
	case s.Bridge == "":
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
	StateDir string // absolute; empty: where the user who runs ecboot keeps state
	HTTPPort uint16
}

// DefaultProfile is the profile of machines that name none. A file that does
// not declare it gets the embedded system.
const DefaultProfile = "default"

// Profile is a system to boot: a kernel with initrds, or an iPXE script.
type Profile struct {
	Name       string
	Kernel     Source     // empty when there is a script
	Initrds    []Source   // in the order in which the kernel unpacks them
	Initramfs  *Initramfs // one more to build, unpacked last; nil: none
	Cmdline    string     // kernel command line without initrd=
	ScriptFile string     // absolute path; empty: none
	Script     string     // contents of ScriptFile, filled in by Load
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

// Machine is a machine that the configuration declares.
type Machine struct {
	MAC       boot.MAC
	Name      string     // host name; may be empty
	Address   netip.Addr // reserved for it; zero: one out of the pool
	Profile   string     // empty: DefaultProfile
	NBP       string     // one of the boot programs of package boot; empty: by architecture
	Chainload bool       // give it our iPXE even if its own would do
}

// Guest is the defaults of a virtual machine.
type Guest struct {
	Firmware string // "bios" or "uefi"
	Machine  string // "q35" or "pc"
	Memory   Size   // whole mebibytes
	CPUs     int
	NIC      string // QEMU device model
	ROM      string // "default" or "none"
	Accel    string // "auto", "kvm" or "tcg"
	Timeout  time.Duration
	Append   string // added to the kernel command line of the profile
}

// Default returns the configuration of an empty file.
func Default() *Config {
	address := netip.MustParsePrefix("10.77.0.1/24")
	return &Config{
		Segment: Segment{Address: address, Pool: derivePool(address), LeaseTime: time.Hour},
		Server:  Server{HTTPPort: 80},
		Profiles: map[string]Profile{DefaultProfile: {
			Name:    DefaultProfile,
			Kernel:  EmbeddedKernel,
			Initrds: []Source{EmbeddedInitramfs},
			Cmdline: defaultCmdline,
		}},
		Guest: Guest{
			Firmware: "bios",
			Machine:  "q35",
			Memory:   1 << 30,
			CPUs:     1,
			NIC:      "virtio-net-pci",
			ROM:      "default",
			Accel:    "auto",
			Timeout:  5 * time.Minute,
		},
	}
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
				return "", fmt.Errorf("there is no configuration file %s; “ecboot config init” writes one to begin with", explicit)
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
// file that it names can be read. Mistakes are returned as Problems. An empty
// path gives Default.
func Load(path string) (*Config, error) {
	if path == "" {
		return Default(), nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("configuration file: %w", err)
	}
	c, r := parse(path, data)
	if !r.broken {
		r.readFiles(c)
	}
	if err := r.err(); err != nil {
		return nil, err
	}
	return c, nil
}

// Parse reads the text of a file without looking at the files that it names;
// Profile.Script stays empty. Relative paths are taken from the directory of
// name. Mistakes are returned as Problems.
func Parse(name string, data []byte) (*Config, error) {
	c, r := parse(name, data)
	if err := r.err(); err != nil {
		return nil, err
	}
	return c, nil
}

func parse(name string, data []byte) (*Config, *reader) {
	r := newReader(name, data)
	c := Default()
	root := r.document()
	if r.broken {
		return c, r
	}
	fileKeys(&section{r: r, in: root}, c)
	r.check(c)
	return c, r
}
