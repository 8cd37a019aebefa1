// Package boot is the vocabulary of network booting: who asks (Client, Arch),
// what we know of it (Machine, Profile, Inventory), and the one decision that
// everything else serves, NextStage: what a client is given next. It is pure:
// no packets, no files, no clock.
package boot

import "fmt"

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

// Profile is a system that machines can boot.
type Profile struct {
	Name    string
	Kernel  File
	Initrds []File
	Cmdline string // kernel command line, without initrd=
	Script  string // iPXE script used as it is instead of kernel and initrds; empty for most
}

// Machine is what the configuration says of one machine.
type Machine struct {
	MAC       MAC
	Name      string // host name (option 12); may be empty
	Addr      string // reserved IPv4 address; empty for one out of the pool
	Profile   string // name of its profile; empty for the inventory's default
	NBP       string // boot program instead of the architecture's usual one
	Chainload bool   // load our iPXE even if the firmware's own iPXE would do
}

// Inventory is all machines and profiles that are known.
type Inventory struct {
	Machines map[MAC]Machine
	Profiles map[string]Profile
	Default  string // profile of machines that name none; empty: they get an address and no boot file
}

// Lookup finds the machine with this MAC and the profile that it boots. An
// unknown machine is a zero Machine with its MAC. A profile that does not
// exist is a zero Profile.
func (inv *Inventory) Lookup(mac MAC) (Machine, Profile) {
	m, ok := inv.Machines[mac]
	if !ok {
		m = Machine{MAC: mac}
	}
	name := m.Profile
	if name == "" {
		name = inv.Default
	}
	return m, inv.Profiles[name]
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

// NextStage decides what a client gets next: firmware gets an iPXE of its
// architecture, an iPXE that can run our script gets the script, an operating
// system gets nothing. A machine without a profile boots nothing.
func NextStage(c Client, m Machine, p Profile) Bootfile {
	if c.Kind == KindOS {
		return Bootfile{}
	}
	if p.Name == "" {
		return Bootfile{Why: "no profile for " + c.MAC.String()}
	}
	if c.Kind == KindIPXE {
		capable := c.IPXE.Capable(c.Arch() != ArchBIOS)
		switch {
		case capable && (c.Loaded || !m.Chainload):
			return Bootfile{Via: ViaHTTP, Path: ScriptPath(c.MAC)}
		case c.Loaded:
			return Bootfile{Why: fmt.Sprintf("the iPXE %s that it was given cannot fetch HTTP and boot Linux", c.IPXE.Version)}
		}
	}
	nbp := m.NBP
	if nbp == "" {
		nbp = defaultNBP(c.Arch())
	}
	if nbp == "" {
		return Bootfile{Why: fmt.Sprintf("no boot program for %s", c.Arch())}
	}
	if c.Kind == KindHTTP {
		return Bootfile{Via: ViaHTTP, Path: NBPPath(nbp)}
	}
	return Bootfile{Via: ViaTFTP, Path: nbp}
}

// defaultNBP prefers the builds that use the firmware's NIC driver: it has
// just worked, and iPXE's own driver of that NIC may not.
func defaultNBP(a Arch) string {
	switch {
	case a == ArchBIOS:
		return NBPUndionly
	case a.X64():
		return NBPSNPOnly
	}
	return ""
}
