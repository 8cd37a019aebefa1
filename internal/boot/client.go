package boot

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// The DHCP options that say who is asking.
const (
	optHostName    = 12  // RFC 2132 §3.14
	optVendorClass = 60  // RFC 2132 §9.13
	optUserClass   = 77  // RFC 3004, though iPXE sends a raw string
	optArch        = 93  // RFC 4578 §2.1: a list of 16-bit numbers
	optUUID        = 97  // RFC 4578 §2.3: a type byte and 16 bytes
	optIPXE        = 175 // iPXE's encapsulated options
)

// Options gives the raw value of a DHCP option, nil when it is absent. The
// package reads packets through it so that it needs no codec.
type Options interface{ Get(code uint8) []byte }

// Kind is the sort of program that sent a DHCP request. One machine is several
// kinds in turn: its firmware, then iPXE, then its operating system.
type Kind uint8

// The kinds of client.
const (
	KindOS   Kind = iota // an operating system, or anything else that asks for no boot file
	KindPXE              // PXE firmware: option 60 begins with PXEClient
	KindHTTP             // UEFI HTTP Boot firmware: option 60 begins with HTTPClient
	KindIPXE             // iPXE: option 77 is iPXE
)

// String names the kind as it appears in the stages of a timeline.
func (k Kind) String() string {
	switch k {
	case KindPXE, KindHTTP:
		return "firmware"
	case KindIPXE:
		return "ipxe"
	}
	return "os"
}

// The feature numbers of option 175 that decisions look at (iPXE,
// src/include/ipxe/features.h).
const (
	featureHTTP    = 0x13
	featureBzImage = 0x18
)

// IPXE is what an iPXE says of itself in option 175.
type IPXE struct {
	Version  string // such as "1.21.1"; empty when it was not sent
	features [4]uint64
}

// Has reports whether the iPXE announced the feature number n.
func (i IPXE) Has(n uint8) bool { return i.features[n/64]&(1<<(n%64)) != 0 }

// Capable reports whether the iPXE can run our script: fetch over HTTP and
// start a Linux kernel. An EFI build announces no bzImage and needs none.
func (i IPXE) Capable(efi bool) bool {
	return i.Has(featureHTTP) && (efi || i.Has(featureBzImage))
}

// Client is who sent a DHCP request, as far as the request tells.
type Client struct {
	MAC    MAC
	Kind   Kind
	Archs  []Arch // option 93 in the order it was sent; empty when absent
	UUID   string // option 97 as 32 hex digits with dashes; empty when absent
	Vendor string // option 60, the vendor class; empty when absent
	Host   string // option 12, the host name that it says it has; empty when absent
	IPXE   IPXE   // of KindIPXE
	// Loaded means that this program is one that we gave it in this very
	// boot. Whoever hands out boot programs remembers that: the request
	// does not say it, and without it an iPXE could be given an iPXE for
	// ever.
	Loaded bool
}

// Classify reads who is asking out of a request's options. It never fails: an
// option that makes no sense counts as absent.
func Classify(mac MAC, o Options) Client {
	vendor := o.Get(optVendorClass)
	c := Client{MAC: mac, UUID: formatUUID(o.Get(optUUID)), Vendor: string(vendor), Host: strings.TrimRight(string(o.Get(optHostName)), "\x00")}
	for b := o.Get(optArch); len(b) >= 2; b = b[2:] {
		c.Archs = append(c.Archs, Arch(binary.BigEndian.Uint16(b)))
	}
	switch {
	case isIPXE(o.Get(optUserClass)):
		c.Kind = KindIPXE
		c.IPXE = parseIPXE(o.Get(optIPXE))
	case bytes.HasPrefix(vendor, []byte("PXEClient")):
		c.Kind = KindPXE
	case bytes.HasPrefix(vendor, []byte("HTTPClient")):
		c.Kind = KindHTTP
	}
	// Firmware that leaves out option 93 repeats it in its vendor class,
	// PXEClient:Arch:00007:UNDI:003016.
	if len(c.Archs) == 0 && c.Kind != KindOS {
		c.Archs = archFromVendorClass(string(vendor))
	}
	return c
}

// Arch is the architecture that the client would rather boot: the first that
// it listed, BIOS when it listed none (RFC 4578 §2.1).
func (c Client) Arch() Arch {
	if len(c.Archs) == 0 {
		return ArchBIOS
	}
	return c.Archs[0]
}

// isIPXE accepts iPXE's raw string and the length-prefixed form of RFC 3004.
func isIPXE(userClass []byte) bool {
	return string(userClass) == "iPXE" || string(userClass) == "\x04iPXE"
}

// ParseUUID reads a UUID as people and firmware write it, in either case, and
// returns it as Client.UUID has it.
func ParseUUID(s string) (string, error) {
	h := strings.ReplaceAll(s, "-", "")
	b, err := hex.DecodeString(h)
	if err != nil || len(b) != 16 {
		return "", fmt.Errorf("%q is not a UUID such as 01020304-0506-0708-090a-0b0c0d0e0f10", s)
	}
	return formatUUID(append([]byte{0}, b...)), nil
}

// parseIPXE reads the sub-options of option 175: one byte of code, one of
// length, the value. A truncated tail ends the list.
func parseIPXE(b []byte) (i IPXE) {
	for len(b) >= 2 {
		code, n := b[0], int(b[1])
		if code == 0xff || len(b) < 2+n {
			break
		}
		value := b[2 : 2+n]
		switch {
		case code == 0xeb && n == 3:
			i.Version = fmt.Sprintf("%d.%d.%d", value[0], value[1], value[2])
		case code >= 0x10 && code <= 0x4f && n >= 1 && value[0] != 0:
			i.features[code/64] |= 1 << (code % 64)
		}
		b = b[2+n:]
	}
	return i
}

func archFromVendorClass(class string) []Arch {
	_, rest, ok := strings.Cut(class, ":Arch:")
	if !ok || len(rest) < 5 {
		return nil
	}
	var n uint16
	if _, err := fmt.Sscanf(rest[:5], "%05d", &n); err != nil {
		return nil
	}
	return []Arch{Arch(n)}
}

// formatUUID prints option 97 as the firmware's setup screen does: the bytes
// in the order of the wire.
func formatUUID(b []byte) string {
	if len(b) != 17 || b[0] != 0 {
		return ""
	}
	h := hex.EncodeToString(b[1:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
