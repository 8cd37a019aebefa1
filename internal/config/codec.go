package config

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"net/netip"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/every-channel/ecboot/internal/boot"
)

// The types of values. An error of a parse function continues the sentence
// that the value begins: “"x" is not an address”.

var anyText = codec[string]{
	want:  "a string",
	parse: func(s string) (string, error) { return s, nil },
	text:  identity,
}

func identity(s string) string { return s }

func text(want string, check func(string) error) codec[string] {
	return codec[string]{
		want:  want,
		parse: func(s string) (string, error) { return s, check(s) },
		text:  identity,
	}
}

// oneOf is a word out of a closed list.
func oneOf[T ~string](words ...T) codec[T] {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = strconv.Quote(string(w))
	}
	want := wordList(quoted, "or")
	return codec[T]{
		want: want,
		parse: func(s string) (T, error) {
			if !slices.Contains(words, T(s)) {
				return "", errors.New("is not one of the words that this key knows")
			}
			return T(s), nil
		},
		text: func(w T) string { return string(w) },
	}
}

var boolean = codec[bool]{
	kind:  kindBool,
	want:  "true or false, without quotes",
	parse: func(s string) (bool, error) { return s == "true", nil },
	text:  strconv.FormatBool,
}

func integer[T int | uint16](lowest, highest T, want string) codec[T] {
	return codec[T]{
		kind: kindInteger,
		want: fmt.Sprintf("%s, %d to %d, without quotes", want, lowest, highest),
		parse: func(s string) (T, error) {
			n, err := strconv.ParseInt(s, 0, 64)
			if err != nil || n < int64(lowest) || n > int64(highest) {
				return 0, errors.New("is out of range")
			}
			return T(n), nil
		},
		text: func(n T) string { return strconv.FormatInt(int64(n), 10) },
	}
}

var (
	port     = integer[uint16](1, math.MaxUint16, "a port")
	cpuCount = integer(1, 256, "a number of processors")
	vlanTag  = integer(1, 4094, "an 802.1Q tag")
)

// duration accepts whole seconds only, the unit of DHCP and of deadlines.
func duration(lowest, highest time.Duration, example string) codec[time.Duration] {
	return codec[time.Duration]{
		want: "a duration such as " + strconv.Quote(example) + " in quotes",
		parse: func(s string) (time.Duration, error) {
			d, err := time.ParseDuration(s)
			switch {
			case err != nil:
				return 0, errors.New("is not a duration: a number and one of the units h, m, s is")
			case d%time.Second != 0:
				return 0, errors.New("is not a number of whole seconds")
			case d < lowest:
				return 0, fmt.Errorf("is shorter than %s", formatDuration(lowest))
			case d > highest:
				return 0, fmt.Errorf("is longer than %s", formatDuration(highest))
			}
			return d, nil
		},
		text: formatDuration,
	}
}

var (
	// RFC 2131 has no lower limit; a lease must outlive the pauses between
	// the stages of a boot or its address could be given away in between.
	leaseTime   = duration(time.Minute, 10*365*24*time.Hour, "1h")
	bootTimeout = duration(time.Second, 365*24*time.Hour, "5m")
)

// formatDuration leaves out the units that are zero: 1h, not 1h0m0s.
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Size is an amount of memory in bytes.
type Size int64

// MiB returns the size in mebibytes, rounded down.
func (s Size) MiB() int { return int(s >> 20) }

var sizeUnits = []struct {
	suffix string
	shift  uint
}{{"G", 30}, {"M", 20}, {"K", 10}}

// ParseSize reads a whole number and one of the binary units K, M and G, which
// may be spelled KiB, MiB and GiB: "512M".
func ParseSize(s string) (Size, error) {
	var size Size
	err := size.UnmarshalText([]byte(s))
	return size, err
}

// String returns the size in the largest unit that shows it exactly, "512M".
func (s Size) String() string {
	for _, u := range sizeUnits {
		if s != 0 && s%(1<<u.shift) == 0 {
			return strconv.FormatInt(int64(s>>u.shift), 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// MarshalText makes sizes strings in JSON and on the command line.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is ParseSize for JSON and the command line.
func (s *Size) UnmarshalText(b []byte) error {
	size, err := parseSize(string(b))
	if err != nil {
		return fmt.Errorf("%q %w", b, err)
	}
	*s = size
	return nil
}

var errSize = errors.New(`is not a size such as "512M" or "2G"`)

func parseSize(s string) (Size, error) {
	digits := strings.TrimSuffix(s, "iB")
	for _, u := range sizeUnits {
		number, ok := strings.CutSuffix(digits, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(number, 10, 63)
		if err != nil || n > math.MaxInt64>>u.shift {
			return 0, errSize
		}
		return Size(n << u.shift), nil
	}
	return 0, errSize
}

// Below the least memory no current Linux kernel unpacks a u-root initrd; the
// most is QEMU's limit for q35 with the usual 40-bit guests.
const (
	leastMemory Size = 64 << 20
	mostMemory  Size = 1 << 40
)

var guestMemory = codec[Size]{
	want: `a size such as "512M" or "2G" in quotes`,
	parse: func(s string) (Size, error) {
		size, err := parseSize(s)
		switch {
		case err != nil:
			return 0, errors.New("is not a size: a whole number and one of the units M and G is")
		case size < leastMemory:
			return 0, fmt.Errorf("is less than %v, too little to boot in", leastMemory)
		case size > mostMemory:
			return 0, fmt.Errorf("is more than %v", mostMemory)
		case size%(1<<20) != 0:
			return 0, errors.New("is not a number of whole mebibytes")
		}
		return size, nil
	},
	text: Size.String,
}

var hostAddress = codec[netip.Addr]{
	want:  `an IPv4 address such as "10.77.0.20"`,
	parse: parseHost,
	text:  netip.Addr.String,
}

func parseHost(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return a, errors.New("is not an address")
	case !a.Is4():
		return a, errors.New("is not an IPv4 address")
	}
	return a, checkUnicast(a)
}

func checkUnicast(a netip.Addr) error {
	if a.IsMulticast() || a.IsLoopback() || a.As4()[0] == 0 || a.As4()[0] >= 240 {
		return errors.New("is not the address of a host on a network")
	}
	return nil
}

var serverAddress = codec[netip.Prefix]{
	want: `the servers' own address with the prefix length, such as "10.77.0.1/24"`,
	parse: func(s string) (netip.Prefix, error) {
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil && !strings.Contains(s, "/"):
			return p, errors.New("has no prefix length")
		case err != nil:
			return p, errors.New("is not an address with a prefix length")
		case !p.Addr().Is4():
			return p, errors.New("is not an IPv4 address")
		case p.Bits() < 8 || p.Bits() > 30:
			return p, errors.New("has a prefix length that is not between 8 and 30")
		case p.Addr() == networkOf(p):
			return p, errors.New("is the address of the network, not of a host in it")
		case p.Addr() == broadcastOf(p):
			return p, errors.New("is the broadcast address of the network")
		}
		return p, checkUnicast(p.Addr())
	},
	text: netip.Prefix.String,
}

var addressRange = codec[Range]{
	want: `an IPv4 address or a range such as "10.77.0.50-10.77.0.99"`,
	parse: func(s string) (Range, error) {
		first, last, isRange := strings.Cut(s, "-")
		if !isRange {
			last = first
		}
		var r Range
		var err error
		if r.First, err = parseHost(strings.TrimSpace(first)); err != nil {
			return r, err
		}
		if r.Last, err = parseHost(strings.TrimSpace(last)); err != nil {
			return r, err
		}
		if r.Last.Less(r.First) {
			return r, errors.New("ends before it begins")
		}
		return r, nil
	},
	text: Range.String,
}

var macAddress = codec[boot.MAC]{
	want: `a MAC address such as "52:54:00:12:34:56"`,
	parse: func(s string) (boot.MAC, error) {
		m, err := boot.ParseMAC(s)
		switch {
		case err != nil:
			return m, errors.New("is not an Ethernet address")
		case m[0]&1 != 0:
			return m, errors.New("is a group address, which no single machine can have")
		case m == boot.MAC{}:
			return m, errors.New("is no machine's address")
		}
		return m, nil
	},
	text: boot.MAC.String,
}

// maxLinkName is the kernel's IFNAMSIZ without the null byte.
const maxLinkName = 15

// linkName is the kernel's dev_valid_name: at most 15 bytes, no slash, colon
// or space.
var linkName = text(`the name of a network interface such as "br0"`, func(s string) error {
	if len(s) > maxLinkName {
		return fmt.Errorf("is longer than the %d bytes that an interface name can have", maxLinkName)
	}
	if s == "." || s == ".." || strings.ContainsFunc(s, func(c rune) bool {
		return c == '/' || c == ':' || c <= ' ' || c == 0x7f
	}) {
		return errors.New("cannot be the name of an interface")
	}
	return nil
})

var errHostName = errors.New("is not a host name (RFC 1123): labels of letters, digits and hyphens are, each up to 63 long")

// hostName is one label: the domain is the segment's.
var hostName = text(`a host name such as "node1"`, func(s string) error {
	if strings.Contains(s, ".") {
		return errors.New("has a dot; a host name is one label, and the domain is the segment's")
	}
	return checkLabel(s)
})

var domainName = text(`a domain such as "lab.example"`, func(s string) error {
	if len(s) > 253 {
		return errors.New("is longer than the 253 bytes that a domain can have")
	}
	for label := range strings.SplitSeq(s, ".") {
		if err := checkLabel(label); err != nil {
			return err
		}
	}
	return nil
})

// checkLabel is RFC 1123 §2.1.
func checkLabel(s string) error {
	if len(s) == 0 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return errHostName
	}
	for i := range len(s) {
		if c := s[i]; c != '-' && !isLetterOrDigit(c) {
			return errHostName
		}
	}
	return nil
}

func isLetterOrDigit(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// bootProgram is one that ecboot carries, or the path of a file.
func (s *section) bootProgram() codec[string] {
	ours := []string{boot.NBPUndionly, boot.NBPSNPOnly, boot.NBPIPXE}
	file := s.filePath()
	return codec[string]{
		want: fmt.Sprintf("%q, %q or %q, or a path with a slash in it", ours[0], ours[1], ours[2]),
		parse: func(p string) (string, error) {
			switch {
			case slices.Contains(ours, p):
				return p, nil
			case !strings.Contains(p, "/"):
				return "", errors.New("is no boot program that ecboot carries")
			}
			return file.parse(p)
		},
		text: identity,
	}
}

var platform = oneOf(boot.Platforms()...)

// programPath is a path in a tree, as a client asks for it: no longer than the
// BOOTP file field.
var programPath = text(`the path of a file in the tree, such as "pxelinux.0"`, func(s string) error {
	switch {
	case !fs.ValidPath(s) || s == "." || strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > '~' }):
		return errors.New("is not the path of a file in the tree")
	case len(s) > 127:
		return errors.New("is longer than the 127 bytes that a boot file name can have")
	}
	return nil
})

// optionName is checked with the value, which it decides on.
var optionName = codec[string]{want: `"ntp-servers" or 224`, parse: func(s string) (string, error) { return s, nil }, text: identity}

var route = codec[Route]{
	want: `a route such as "10.9.0.0/16 via 10.77.0.9"`,
	parse: func(s string) (r Route, err error) {
		to, via, ok := strings.Cut(s, " via ")
		if !ok {
			return r, errors.New("is not a route")
		}
		if r.To, err = netip.ParsePrefix(strings.TrimSpace(to)); err != nil || !r.To.Addr().Is4() {
			return r, errors.New("does not begin with an IPv4 network and its prefix length")
		}
		if r.To != r.To.Masked() {
			return r, fmt.Errorf("has bits behind its prefix length: the network is %v", r.To.Masked())
		}
		r.Via, err = parseHost(strings.TrimSpace(via))
		return r, err
	},
	text: Route.String,
}

var tag = text(`a tag such as "rack7"`, func(s string) error {
	if !isBare(s) {
		return errors.New("is not a tag: letters, digits, - and _ are")
	}
	return nil
})

var uuid = codec[string]{
	want: `a UUID such as "01020304-0506-0708-090a-0b0c0d0e0f10"`,
	parse: func(s string) (string, error) {
		u, err := boot.ParseUUID(s)
		if err != nil {
			return "", errors.New("is not a UUID")
		}
		return u, nil
	},
	text: identity,
}

var uuidPrefix = codec[string]{
	want: `the beginning of a UUID such as "4c4c4544"`,
	parse: func(s string) (string, error) {
		s = strings.ToLower(s)
		if strings.Trim(s, "0123456789abcdef-") != "" || len(s) > 36 {
			return "", errors.New("is not the beginning of a UUID")
		}
		return s, nil
	},
	text: identity,
}

var macPrefix = codec[string]{
	want: `the beginning of a MAC address such as "52:54:00"`,
	parse: func(s string) (string, error) {
		b, err := hex.DecodeString(strings.NewReplacer(":", "", "-", "", ".", "").Replace(s))
		if err != nil || len(b) == 0 || len(b) > 6 {
			return "", errors.New("is not the beginning of an Ethernet address")
		}
		return net.HardwareAddr(b).String(), nil
	},
	text: identity,
}

// kernelWords end up in a line of an iPXE script, where a line break would
// begin a command.
var kernelWords = text("words on one line", checkKernelWords)

func checkKernelWords(s string) error {
	if strings.ContainsFunc(s, unicode.IsControl) {
		return errors.New("has control characters or several lines")
	}
	// Linux, arch/x86: COMMAND_LINE_SIZE, with room for what the server adds.
	if len(s) > 1536 {
		return errors.New("is longer than the 1536 bytes that fit beside what the server adds")
	}
	return nil
}

// cmdline is kernelWords with what is filled in for each machine.
var cmdline = text("words on one line, with {name}, {mac} and the like where a machine's own belong", func(s string) error {
	if err := checkKernelWords(s); err != nil {
		return err
	}
	return boot.CheckTemplate(s)
})

var deviceModel = text(`a QEMU device model such as "virtio-net-pci" or "e1000"`, func(s string) error {
	if s == "" || strings.ContainsFunc(s, func(c rune) bool {
		return c > unicode.MaxASCII || c != '-' && c != '_' && c != '.' && !isLetterOrDigit(byte(c))
	}) {
		return errors.New("cannot be the name of a device model")
	}
	return nil
})

var commandPattern = text(`a u-root command such as "ls", a template such as "core" or a Go package pattern`, func(s string) error {
	if s == "" || strings.ContainsFunc(s, func(c rune) bool { return unicode.IsSpace(c) || unicode.IsControl(c) }) {
		return errors.New("is not the name of a command, a template or a package")
	}
	return nil
})

// archivePath makes "etc/motd" and "/etc/motd" the same.
var archivePath = codec[string]{
	want: `"/etc/motd"`,
	parse: func(s string) (string, error) {
		clean := path.Clean("/" + s)
		if s == "" || strings.HasSuffix(s, "/") || clean == "/" || strings.ContainsRune(s, 0) {
			return "", errors.New("is not the path of a file in the archive")
		}
		return clean, nil
	},
	text: identity,
}

// filePath is a path on this machine, made absolute from the directory of the
// configuration file.
func (s *section) filePath() codec[string] {
	return codec[string]{
		want: "the path of a file, absolute or from the directory of this one",
		parse: func(p string) (string, error) {
			if p == "" || strings.ContainsRune(p, 0) {
				return "", errors.New("is not a path")
			}
			return s.r.absolute(p), nil
		},
		text: identity,
	}
}

// source is filePath, or an embedded image.
func (s *section) source() codec[Source] {
	file := s.filePath()
	return codec[Source]{
		want: fmt.Sprintf("the path of a file, or %q or %q", EmbeddedKernel, EmbeddedInitramfs),
		parse: func(p string) (Source, error) {
			src := Source(p)
			if name, ok := src.Embedded(); ok {
				if src != EmbeddedKernel && src != EmbeddedInitramfs {
					return "", fmt.Errorf("names %q, which is not embedded", name)
				}
				return src, nil
			}
			if profile, ok := src.Built(); ok {
				return "", fmt.Errorf("cannot be written here: a table [profile.%s.initramfs] is what is built", profile)
			}
			p, err := file.parse(p)
			return Source(p), err
		},
		text: func(s Source) string { return string(s) },
	}
}

func (r *reader) absolute(p string) string {
	if filepath.IsAbs(p) {
		return filepath.Clean(p)
	}
	return filepath.Join(r.dir, p)
}

func checkSegmentName(s string) error {
	if !isBare(s) || len(s) > 32 {
		return errors.New("is not the name of a segment: up to 32 letters, digits, - and _ are")
	}
	return nil
}

func checkProfileName(s string) error {
	if s == boot.LocalName {
		return errors.New("is the profile that boots the local disk, which is always there")
	}
	if !isBare(s) {
		return errors.New("is not the name of a profile; it becomes a part of URLs")
	}
	if len(s) > 63 {
		return errors.New("is longer than 63 bytes")
	}
	return nil
}

func networkOf(p netip.Prefix) netip.Addr { return p.Masked().Addr() }

func broadcastOf(p netip.Prefix) netip.Addr { return offset(networkOf(p), hosts(p)-1) }

// hosts is the number of addresses in an IPv4 prefix.
func hosts(p netip.Prefix) uint32 { return 1 << (32 - p.Bits()) }

// offset is the n-th address after a.
func offset(a netip.Addr, n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], number(a)+n)
	return netip.AddrFrom4(b)
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}
