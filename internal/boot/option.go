package boot

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Option is one DHCP option of a configuration: what is sent as it is.
type Option struct {
	Code uint8
	Data []byte
}

// optionType says how the text of an option's value becomes bytes.
type optionType uint8

const (
	typeAny optionType = iota // addresses if it is a list of them, else text
	typeText
	typeAddr  // one IPv4 address
	typeAddrs // one or more
	typeU8
	typeU16
	typeU32
	typeBool
	typeDomains
)

// namedOptions are the options that people set by name: the registry's names
// in lower case, with dashes.
var namedOptions = []struct {
	name string
	code uint8
	typ  optionType
}{
	{"time-offset", 2, typeU32},
	{"routers", 3, typeAddrs},
	{"time-servers", 4, typeAddrs},
	{"domain-name-servers", 6, typeAddrs},
	{"log-servers", 7, typeAddrs},
	{"lpr-servers", 9, typeAddrs},
	{"host-name", 12, typeText},
	{"domain-name", 15, typeText},
	{"swap-server", 16, typeAddr},
	{"root-path", 17, typeText},
	{"ip-forwarding", 19, typeBool},
	{"default-ttl", 23, typeU8},
	{"interface-mtu", 26, typeU16},
	{"broadcast-address", 28, typeAddr},
	{"nis-domain", 40, typeText},
	{"nis-servers", 41, typeAddrs},
	{"ntp-servers", 42, typeAddrs},
	{"vendor-specific", 43, typeAny},
	{"netbios-name-servers", 44, typeAddrs},
	{"netbios-node-type", 46, typeU8},
	{"netbios-scope", 47, typeText},
	{"tftp-server-name", 66, typeText},
	{"bootfile-name", 67, typeText},
	{"smtp-servers", 69, typeAddrs},
	{"pop3-servers", 70, typeAddrs},
	{"posix-timezone", 100, typeText},
	{"tzdb-timezone", 101, typeText},
	{"ipv6-only-preferred", 108, typeU32},
	{"captive-portal", 114, typeText},
	{"auto-config", 116, typeU8},
	{"domain-search", 119, typeDomains},
	{"sip-servers", 120, typeAny},
	{"capwap-ac", 138, typeAddrs},
	{"tftp-server-address", 150, typeAddrs},
	{"pxelinux-configfile", 209, typeText},
	{"pxelinux-pathprefix", 210, typeText},
	{"pxelinux-reboottime", 211, typeU32},
	{"wpad", 252, typeText},
}

// ownOptions are said by the protocol or by ecboot itself; another value would
// break the exchange.
var ownOptions = map[uint8]string{
	0: "is padding", 255: "ends the options",
	1:  "follows from the segment's address",
	50: "is the client's to send", 51: "is the key lease_time", 52: "is the codec's own", 53: "is the message type", 54: "is the server's address",
	55: "is the client's to send", 56: "is the server's message", 57: "is the client's to send", 58: "follows from lease_time", 59: "follows from lease_time",
	60: "tells boot firmware who answers, which ecboot decides", 61: "is the client's to send", 82: "is the relay's", 93: "is the client's to send",
	94: "is the client's to send", 97: "is the client's to send", 118: "is the relay's", 121: "is the key routes",
}

// ParseOption reads an option as a configuration writes it: the name or the
// number, and the value as text. Values may say what they are with a prefix:
// "hex:0a0b", "text:…", "u8:…", "u16:…", "u32:…"; without one the name decides,
// and of a bare number a list of IPv4 addresses is addresses and anything else
// text.
func ParseOption(name, value string) (Option, error) {
	code, typ, err := optionCode(name)
	if err != nil {
		return Option{}, err
	}
	if why, ours := ownOptions[code]; ours {
		return Option{}, fmt.Errorf("option %s cannot be set: it %s", name, why)
	}
	data, err := optionData(typ, value)
	switch {
	case err != nil:
		return Option{}, fmt.Errorf("option %s: %w", name, err)
	case len(data) == 0:
		return Option{}, fmt.Errorf("option %s: the value is empty", name)
	case len(data) > 1024:
		return Option{}, fmt.Errorf("option %s: the value has %d bytes; a reply has no room for more than 1024", name, len(data))
	}
	return Option{code, data}, nil
}

// OptionNames are the options that have a name, each with its number: "42
// ntp-servers", in the order of the numbers.
func OptionNames() []string {
	list := make([]string, len(namedOptions))
	for i, o := range namedOptions {
		list[i] = fmt.Sprintf("%d %s", o.code, o.name)
	}
	return list
}

func optionCode(name string) (uint8, optionType, error) {
	if n, err := strconv.ParseUint(name, 10, 8); err == nil {
		for _, o := range namedOptions {
			if o.code == uint8(n) {
				return o.code, o.typ, nil
			}
		}
		return uint8(n), typeAny, nil
	}
	for _, o := range namedOptions {
		if o.name == name {
			return o.code, o.typ, nil
		}
	}
	return 0, 0, fmt.Errorf("option %q is not known by name; write its number, 1 to 254, or one of the names that 'ecboot config show --options' lists", name)
}

func optionData(typ optionType, value string) ([]byte, error) {
	if prefix, rest, ok := strings.Cut(value, ":"); ok {
		switch prefix {
		case "hex":
			return hex.DecodeString(strings.NewReplacer(":", "", " ", "").Replace(rest))
		case "text":
			return []byte(rest), nil
		case "u8":
			return number(rest, 8)
		case "u16":
			return number(rest, 16)
		case "u32":
			return number(rest, 32)
		}
	}
	switch typ {
	case typeAddr, typeAddrs:
		b, err := addresses(value)
		if err == nil && typ == typeAddr && len(b) != 4 {
			err = errors.New("takes one address")
		}
		return b, err
	case typeU8:
		return number(value, 8)
	case typeU16:
		return number(value, 16)
	case typeU32:
		return number(value, 32)
	case typeBool:
		v, err := strconv.ParseBool(value)
		if err != nil {
			return nil, fmt.Errorf("%q is neither true nor false", value)
		}
		return map[bool][]byte{true: {1}, false: {0}}[v], nil
	case typeDomains:
		return DomainList(splitList(value))
	case typeAny:
		if b, err := addresses(value); err == nil {
			return b, nil
		}
	}
	return []byte(value), nil
}

func splitList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

// addresses reads a list of IPv4 addresses with commas or spaces between them.
func addresses(value string) (b []byte, err error) {
	for _, word := range splitList(value) {
		a, err := netip.ParseAddr(word)
		if err != nil || !a.Is4() {
			return nil, fmt.Errorf("%q is not an IPv4 address", word)
		}
		b = append(b, a.AsSlice()...)
	}
	return b, nil
}

// number reads a number that fits in so many bits, negative ones included.
func number(s string, bits int) ([]byte, error) {
	n, err := strconv.ParseInt(strings.TrimSpace(s), 0, 64)
	if err != nil || n < -(1<<(bits-1)) || n >= 1<<bits {
		return nil, fmt.Errorf("%q is not a number of %d bits", s, bits)
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(n))
	return b[4-bits/8:], nil
}

// DomainList is the wire form of a list of domain names (RFC 1035 §3.1), as
// option 119 carries it (RFC 3397), without compression.
func DomainList(domains []string) (b []byte, err error) {
	for _, d := range domains {
		d = strings.TrimSuffix(d, ".")
		if d == "" || len(d) > 253 {
			return nil, fmt.Errorf("%q is not a domain", d)
		}
		for label := range strings.SplitSeq(d, ".") {
			if label == "" || len(label) > 63 {
				return nil, fmt.Errorf("%q is not a domain", d)
			}
			b = append(append(b, byte(len(label))), label...)
		}
		b = append(b, 0)
	}
	return b, nil
}
