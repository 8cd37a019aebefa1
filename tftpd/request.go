package tftpd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Opcodes of RFC 1350 §5 and RFC 2347.
const (
	opRead      = 1
	opWrite     = 2
	opData      = 3
	opAck       = 4
	opError     = 5
	opOptionAck = 6
)

// Error codes of RFC 1350 §5 and RFC 2347.
const (
	codeUndefined     = 0
	codeNotFound      = 1
	codeAccess        = 2
	codeIllegal       = 4
	codeUnknownTID    = 5
	codeOptionRefused = 8
)

var (
	errRequest  = errors.New("not a TFTP request")
	errMode     = errors.New("illegal TFTP operation: the modes are octet and netascii")
	errReadOnly = errors.New("access violation: this server is read-only")
	errName     = errors.New("access violation: no such name is ever served")
)

// request is what a client asks for (RFC 1350 §5), with its options (RFC 2347).
type request struct {
	write    bool
	name     string
	netascii bool
	options  []option // in the order of the request
}

// option has its name in lower case: RFC 2347 lets clients write it in any.
type option struct{ name, value string }

func parseRequest(p []byte) (request, error) {
	if len(p) < 2 {
		return request{}, errRequest
	}
	opcode := binary.BigEndian.Uint16(p)
	words := bytes.Split(p[2:], []byte{0})
	if opcode != opRead && opcode != opWrite || len(words) < 2 {
		return request{}, errRequest
	}
	r := request{write: opcode == opWrite, name: string(words[0])}
	switch strings.ToLower(string(words[1])) {
	case "octet":
	case "netascii":
		r.netascii = true
	default:
		return r, errMode
	}
	// The last word is what follows the last end mark; some clients leave that
	// mark out.
	for words = words[2:]; len(words) >= 2; words = words[2:] {
		r.options = append(r.options, option{strings.ToLower(string(words[0])), string(words[1])})
	}
	return r, nil
}

// cleanName turns a requested name into one for fs.FS, or refuses it. Clients
// write the same file in many ways: from the root, with the backslashes of a
// Windows NBP, with doubled slashes where a prefix was put in front, and with
// 0xff after it where a ROM took the end mark of the DHCP options for text.
func cleanName(requested string) (string, error) {
	name, _, _ := strings.Cut(requested, "\xff")
	var elems []string
	for elem := range strings.SplitSeq(strings.ReplaceAll(name, `\`, "/"), "/") {
		if elem != "" && elem != "." {
			elems = append(elems, elem)
		}
	}
	name = strings.Join(elems, "/")
	if name == "" || !fs.ValidPath(name) || strings.ContainsFunc(name, unicode.IsControl) {
		return "", errName
	}
	return name, nil
}

// limits are what the server does not go beyond, whatever a client asks.
type limits struct {
	block  int // bytes
	window int // blocks
}

// maxTimeout is the longest pause between two attempts that a client may ask
// for: it decides how long a client that has gone keeps its transfer.
const maxTimeout = 10 * time.Second

// terms are what client and server agreed on.
type terms struct {
	block    int           // bytes per block
	window   int           // blocks between two acknowledgements (RFC 7440)
	timeout  time.Duration // between attempts, if the client asked for one
	netascii bool
	accepted []option // the OACK; empty: none is sent, data comes at once
}

// negotiate takes of the options what this server knows: each once, never with
// a larger value than asked, and a value that no RFC allows like an option that
// was not asked. size is the file's in bytes.
func (r request) negotiate(size int64, lim limits) terms {
	t := terms{block: 512, window: 1, netascii: r.netascii}
	window, seen := 0, map[string]bool{}
	accept := func(name string, value int64) {
		t.accepted = append(t.accepted, option{name, strconv.FormatInt(value, 10)})
	}
	for _, o := range r.options {
		asked, err := strconv.ParseUint(o.value, 10, 63)
		if seen[o.name] || err != nil {
			continue
		}
		seen[o.name] = true
		switch n := int(min(asked, 1<<16)); o.name {
		case "blksize": // RFC 2348
			if n >= 8 && n <= 65464 {
				t.block = min(n, lim.block)
				accept(o.name, int64(t.block))
			}
		case "tsize": // RFC 2349; the size of what is sent, which netascii changes
			if !r.netascii {
				accept(o.name, size)
			}
		case "timeout": // RFC 2349: as it came, or not at all
			if d := time.Duration(n) * time.Second; n >= 1 && d <= maxTimeout {
				t.timeout = d
				accept(o.name, int64(n))
			}
		case "windowsize": // RFC 7440
			window = n
		}
	}
	// Last, because a window is measured in blocks.
	if window >= 1 && window <= 65535 {
		t.window = min(window, lim.window, max(maxBurst/(4+t.block), 1))
		accept("windowsize", int64(t.window))
	}
	return t
}

// packet is an OACK (RFC 2347).
func (t terms) packet() []byte {
	p := binary.BigEndian.AppendUint16(nil, opOptionAck)
	for _, o := range t.accepted {
		p = append(append(p, o.name...), 0)
		p = append(append(p, o.value...), 0)
	}
	return p
}

// errorPacket is an ERROR (RFC 1350 §5).
func errorPacket(code uint16, message string) []byte {
	p := binary.BigEndian.AppendUint16(nil, opError)
	p = binary.BigEndian.AppendUint16(p, code)
	p = append(p, message...)
	return append(p, 0)
}
