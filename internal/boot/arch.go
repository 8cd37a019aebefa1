package boot

import "fmt"

// Arch is a client system architecture as DHCP option 93 carries it
// (RFC 4578 §2.1; IANA "Processor Architecture Types").
type Arch uint16

// The registered architectures that a boot server meets.
const (
	ArchBIOS        Arch = 0
	ArchIA32        Arch = 6
	ArchX64         Arch = 7
	ArchEBC         Arch = 9 // RFC 4578 and its errata swapped 7 and 9: in practice x64 too
	ArchARM32       Arch = 10
	ArchARM64       Arch = 11
	ArchIA32HTTP    Arch = 15
	ArchX64HTTP     Arch = 16
	ArchEBCHTTP     Arch = 17
	ArchARM32HTTP   Arch = 18
	ArchARM64HTTP   Arch = 19
	ArchBIOSHTTP    Arch = 20
	ArchUBootARM32  Arch = 21
	ArchUBootARM64  Arch = 22
	ArchRaspberryPi Arch = 41
)

var archNames = map[Arch]string{
	ArchBIOS:        "BIOS",
	ArchIA32:        "UEFI IA32",
	ArchX64:         "UEFI x64",
	ArchEBC:         "UEFI x64 (EBC)",
	ArchARM32:       "UEFI ARM32",
	ArchARM64:       "UEFI ARM64",
	ArchIA32HTTP:    "UEFI IA32 HTTP",
	ArchX64HTTP:     "UEFI x64 HTTP",
	ArchEBCHTTP:     "UEFI x64 (EBC) HTTP",
	ArchARM32HTTP:   "UEFI ARM32 HTTP",
	ArchARM64HTTP:   "UEFI ARM64 HTTP",
	ArchBIOSHTTP:    "BIOS HTTP",
	ArchUBootARM32:  "U-Boot ARM32",
	ArchUBootARM64:  "U-Boot ARM64",
	ArchRaspberryPi: "Raspberry Pi",
}

// String returns the name that people use, or the number of an unknown one.
func (a Arch) String() string {
	if name, ok := archNames[a]; ok {
		return name
	}
	return fmt.Sprintf("architecture %d", uint16(a))
}

// X64 reports whether the client runs 64-bit x86 EFI programs.
func (a Arch) X64() bool {
	switch a {
	case ArchX64, ArchEBC, ArchX64HTTP, ArchEBCHTTP:
		return true
	}
	return false
}
