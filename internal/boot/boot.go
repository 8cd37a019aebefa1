// Package boot is the vocabulary of network booting: who asks (Client, Arch),
// what we know of it (Machine, Profile, Inventory), and the one decision that
// everything else serves, NextStage: what a client is given next. It is pure:
// no packets, no files, no clock.
package boot

import (
	"fmt"
	"strings"
)

// The boot programs that ecboot carries, by the names under which TFTP and
// HTTP serve them.
const (
	NBPUndionly = "undionly.kpxe" // iPXE for BIOS on the NIC's own UNDI driver
	NBPSNPOnly  = "snponly.efi"   // iPXE for UEFI x64 on the firmware's own NIC driver
	NBPIPXE     = "ipxe.efi"      // iPXE for UEFI x64 with its own NIC drivers
)

// File is one file that a profile boots: Name in URLs, Path on this machine.
type File struct {
	Name string
	Path string
}

// LocalName is the name of the profile that boots the machine's own disk. It is
// always there.
const LocalName = "local"

// Profile is a system that machines can boot: a kernel with its initrds, an
// iPXE script, or programs that the firmware runs. The zero Profile boots
// nothing.
type Profile struct {
	Name    string
	Kernel  File
	Initrds []File
	Cmdline string // kernel command line without initrd=; a template, see Expand
	Script  string // iPXE script used as it is instead of kernel and initrds; empty for most

	// Programs are run by the firmware of a platform in place of our iPXE:
	// paths as the client asks for them, below Tree or, for one that stands
	// alone, EFI.Name. A script of iPXE's is run by iPXE.
	Programs map[Platform]string
	Tree     string // directory of a netboot tree that others made, served as it is
	EFI      File   // an EFI program that stands alone

	// SecureBoot starts Kernel through shim and GRUB, which check signatures,
	// on UEFI firmware: Secure Boot does not let our iPXE run there. Signed
	// are the shims that are there.
	SecureBoot bool
	Signed     map[Platform]Shim
}

// Shim is the first of the signed boot programs of a platform. It loads a GRUB
// from beside it.
type Shim struct {
	Name string // as the firmware asks for it
	HTTP bool   // the GRUB can go on by HTTP where that is how it was loaded
}

// Local reports whether the profile is to leave the machine to its own disk.
func (p Profile) Local() bool { return p.Name == LocalName }

// Machine is what the configuration says of one machine. It is known by MAC,
// by UUID or, if it has neither, by the host name that it sends.
type Machine struct {
	MAC       MAC
	UUID      string // as Client.UUID prints it; may be empty
	Name      string // host name (option 12); may be empty
	Addr      string // reserved IPv4 address; empty for one out of the pool
	Profile   string // name of its profile; empty for that of a rule or the inventory's default
	NBP       string // boot program instead of the architecture's usual one
	Chainload bool   // load our iPXE even if the firmware's own iPXE would do
	Tags      []string
	Options   []Option // instead of the segment's with the same codes
}

// Via is the protocol by which a boot file is fetched.
type Via uint8

// The ways to fetch a boot file.
const (
	ViaNothing Via = iota // there is no boot file: Bootfile.Why says why
	ViaTFTP               // Path is a file name on our TFTP server
	ViaHTTP               // Path is an absolute path on our HTTP server
)

// Bootfile is what a client is told to fetch and run next.
type Bootfile struct {
	Via  Via
	Path string
	Why  string // why there is none; empty when the client asked for none
}

// ScriptPath is the path of a machine's iPXE script on the HTTP server.
func ScriptPath(mac MAC) string { return "/ipxe/" + mac.String() }

// NBPPath is the path of a boot program on the HTTP server.
func NBPPath(name string) string { return "/nbp/" + name }

// NextStage decides what a client gets next. Firmware gets the program of its
// profile, or shim where Secure Boot is wanted, or else an iPXE of its
// platform; an iPXE that can run our script gets the script; an operating
// system gets nothing. A machine without a profile boots nothing.
func NextStage(c Client, m Machine, p Profile) Bootfile {
	switch {
	case c.Kind == KindOS:
		return Bootfile{}
	case p.Name == "":
		return Bootfile{Why: "no profile for " + c.MAC.String()}
	case p.Local() && c.Kind != KindIPXE:
		// Firmware that is told of no boot file goes on to its next device.
		return Bootfile{Why: "it boots its local disk"}
	}
	program := p.Programs[c.Platform()]
	// A script runs in iPXE, which firmware gets first.
	if program != "" && !IsScript(program) {
		// For an iPXE too: programs such as PXELINUX go on asking by TFTP.
		return fetch(c, program)
	}
	if len(p.Programs) > 0 && program == "" && p.Kernel.Name == "" && p.Script == "" {
		return Bootfile{Why: fmt.Sprintf("profile %s has no program for %s", p.Name, c.Platform())}
	}
	if c.Kind == KindIPXE {
		capable := c.IPXE.Capable(c.Platform() != BIOS)
		switch {
		case capable && (c.Loaded || !m.Chainload):
			return Bootfile{Via: ViaHTTP, Path: ScriptPath(c.MAC)}
		case c.Loaded:
			return Bootfile{Why: fmt.Sprintf("the iPXE %s that it was given cannot fetch HTTP and boot Linux", c.IPXE.Version)}
		}
	} else if p.SecureBoot && c.Platform() != BIOS {
		shim, ok := p.Signed[c.Platform()]
		switch {
		case !ok:
			return Bootfile{Why: fmt.Sprintf("no shim and GRUB for %s; install them or name them in [server]", c.Platform())}
		case c.Kind == KindHTTP && !shim.HTTP:
			return Bootfile{Why: "its signed GRUB knows no HTTP; let the firmware boot by PXE, or name a GRUB 2.12 in [server]"}
		}
		return fetch(c, shim.Name)
	}
	nbp := m.NBP
	if nbp == "" {
		nbp = defaultNBPs[c.Platform()]
	}
	if nbp == "" {
		return Bootfile{Why: fmt.Sprintf("no boot program for %s; name one in [nbp]", c.Platform())}
	}
	return fetch(c, nbp)
}

// IsScript reports whether a program of a tree is a script of iPXE's.
func IsScript(program string) bool { return strings.HasSuffix(program, ".ipxe") }

// fetch names a program in the protocol that the client asked with.
func fetch(c Client, program string) Bootfile {
	if c.Kind == KindHTTP {
		return Bootfile{Via: ViaHTTP, Path: NBPPath(program)}
	}
	return Bootfile{Via: ViaTFTP, Path: program}
}

// defaultNBPs prefers the builds that use the firmware's NIC driver: it has
// just worked, and iPXE's own driver of that NIC may not.
var defaultNBPs = map[Platform]string{BIOS: NBPUndionly, UEFIX64: NBPSNPOnly}
