package boot

import (
	"fmt"
	"slices"
)

// Arch is a client system architecture as DHCP option 93 carries it
// (RFC 4578 §2.1; IANA "Processor Architecture Types").
type Arch uint16

// The registered architectures that a boot server meets.
const (
	ArchBIOS            Arch = 0
	ArchIA32            Arch = 6
	ArchX64             Arch = 7
	ArchEBC             Arch = 9 // RFC 4578 and its errata swapped 7 and 9: in practice x64 too
	ArchARM32           Arch = 10
	ArchARM64           Arch = 11
	ArchIA32HTTP        Arch = 15
	ArchX64HTTP         Arch = 16
	ArchEBCHTTP         Arch = 17
	ArchARM32HTTP       Arch = 18
	ArchARM64HTTP       Arch = 19
	ArchBIOSHTTP        Arch = 20
	ArchUBootARM32      Arch = 21
	ArchUBootARM64      Arch = 22
	ArchUBootARM32HTTP  Arch = 23
	ArchUBootARM64HTTP  Arch = 24
	ArchRISCV64         Arch = 27
	ArchRISCV64HTTP     Arch = 28
	ArchLoongArch64     Arch = 39
	ArchLoongArch64HTTP Arch = 40
	ArchRaspberryPi     Arch = 41
)

// Platform is what decides which programs a client can run: a processor with
// its firmware, whatever protocol it fetches them by. Configurations name it.
type Platform string

// The platforms. A client of another one is known by its architecture's number.
const (
	BIOS            Platform = "bios"
	UEFIIA32        Platform = "uefi-ia32"
	UEFIX64         Platform = "uefi-x64"
	UEFIARM32       Platform = "uefi-arm32"
	UEFIARM64       Platform = "uefi-arm64"
	UEFIRISCV64     Platform = "uefi-riscv64"
	UEFILoongArch64 Platform = "uefi-loongarch64"
	UBootARM32      Platform = "uboot-arm32"
	UBootARM64      Platform = "uboot-arm64"
	RaspberryPi     Platform = "raspberry-pi"
)

// Platforms are all platforms that have a name, in the order of their numbers.
func Platforms() []Platform {
	return []Platform{BIOS, UEFIIA32, UEFIX64, UEFIARM32, UEFIARM64, UEFIRISCV64, UEFILoongArch64, UBootARM32, UBootARM64, RaspberryPi}
}

// Platform is the platform whose programs the architecture runs.
func (a Arch) Platform() Platform {
	switch a {
	case ArchBIOS, ArchBIOSHTTP:
		return BIOS
	case ArchIA32, ArchIA32HTTP:
		return UEFIIA32
	case ArchX64, ArchEBC, ArchX64HTTP, ArchEBCHTTP:
		return UEFIX64
	case ArchARM32, ArchARM32HTTP:
		return UEFIARM32
	case ArchARM64, ArchARM64HTTP:
		return UEFIARM64
	case ArchRISCV64, ArchRISCV64HTTP:
		return UEFIRISCV64
	case ArchLoongArch64, ArchLoongArch64HTTP:
		return UEFILoongArch64
	case ArchUBootARM32, ArchUBootARM32HTTP:
		return UBootARM32
	case ArchUBootARM64, ArchUBootARM64HTTP:
		return UBootARM64
	case ArchRaspberryPi:
		return RaspberryPi
	}
	return Platform(fmt.Sprintf("architecture %d", uint16(a)))
}

// raspberryPis are the address blocks of Raspberry Pi boards, whose boot ROM
// says that it is a BIOS.
var raspberryPis = [][3]byte{
	{0x28, 0xcd, 0xc1}, {0x2c, 0xcf, 0x67}, {0x88, 0xa2, 0x9e}, {0xb8, 0x27, 0xeb},
	{0xd8, 0x3a, 0xdd}, {0xdc, 0xa6, 0x32}, {0xe4, 0x5f, 0x01},
}

// Platform is the platform that the client boots on.
func (c Client) Platform() Platform {
	p := c.Arch().Platform()
	if p == BIOS && c.Kind == KindPXE && slices.Contains(raspberryPis, [3]byte(c.MAC[:3])) {
		return RaspberryPi
	}
	return p
}
