package tftpd

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// TestOACK has requests as clients send them and the OACK as it leaves.
func TestOACK(t *testing.T) {
	lim := limits{block: 1468, window: 64}
	tests := []struct {
		name, request, want string // want "" means that data comes at once
	}{
		{"tftp-hpa", "f|octet", ""},
		{"iPXE", "f|octet|blksize|1432|tsize|0", "blksize|1432|tsize|5000"},
		{"EDK2", "f|octet|tsize|0|blksize|1468|windowsize|4", "tsize|5000|blksize|1468|windowsize|4"},
		{"curl", "f|octet|tsize|0|blksize|512|timeout|6", "tsize|5000|blksize|512|timeout|6"},
		{"names in any case", "f|OCTET|BlkSize|1024|TSIZE|0|WindowSize|2|TimeOut|3", "blksize|1024|tsize|5000|timeout|3|windowsize|2"},
		{"size with a value of the client's own", "f|octet|tsize|77", "tsize|5000"},
		{"netascii has no size", "f|netascii|tsize|0|blksize|1000", "blksize|1000"},
		{"block larger than the link's packets", "f|octet|blksize|65464", "blksize|1468"},
		{"block beyond RFC 2348", "f|octet|blksize|65465", ""},
		{"smallest block", "f|octet|blksize|8", "blksize|8"},
		{"no block", "f|octet|blksize|7", ""},
		{"no number", "f|octet|blksize|big", ""},
		{"negative", "f|octet|blksize|-512", ""},
		{"beyond any number", "f|octet|blksize|99999999999999999999999|tsize|0", "tsize|5000"},
		{"window of 1", "f|octet|windowsize|1", "windowsize|1"},
		{"window larger than ours", "f|octet|windowsize|65535|blksize|512", "blksize|512|windowsize|64"},
		{"window of large blocks", "f|octet|windowsize|64|blksize|1468", "blksize|1468|windowsize|44"},
		{"no window", "f|octet|windowsize|0", ""},
		{"window beyond RFC 7440", "f|octet|windowsize|65536", ""},
		{"timeout of RFC 2349 that is too long for us", "f|octet|timeout|255", ""},
		{"no timeout", "f|octet|timeout|0", ""},
		{"unknown options", "f|octet|multicast||utimeout|100|rollover|0", ""},
		{"asked twice", "f|octet|blksize|1024|blksize|512", "blksize|1024"},
		{"name without a value", "f|octet|tsize|0|blksize", "tsize|5000"},
	}
	zero := func(s string) string { return strings.ReplaceAll(s, "|", "\x00") }
	for _, tt := range tests {
		r, err := parseRequest([]byte("\x00\x01" + zero(tt.request) + "\x00"))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		got := ""
		if terms := r.negotiate(5000, lim); len(terms.accepted) > 0 {
			got = string(terms.packet())
		}
		if want := zero(tt.want); want != "" && got != "\x00\x06"+want+"\x00" || want == "" && got != "" {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestParseRequest(t *testing.T) {
	tests := []struct {
		packet string
		want   error
	}{
		{"", errRequest},
		{"\x00", errRequest},
		{"\x00\x01", errRequest},
		{"\x00\x01name", errRequest},
		{"\x00\x01name\x00", errMode},
		{"\x00\x01name\x00mail\x00", errMode},
		{"\x00\x01name\x00octet", nil}, // some leave the end mark out
		{"\x00\x02name\x00octet\x00", nil},
		{"\x00\x03\x00\x01octet\x00", errRequest},
		{"\x01\x00name\x00octet\x00", errRequest},
	}
	for _, tt := range tests {
		if _, err := parseRequest([]byte(tt.packet)); err != tt.want {
			t.Errorf("%q: got %v, want %v", tt.packet, err, tt.want)
		}
	}
}

// FuzzParseRequest holds what is agreed on to what was asked and to our limits.
func FuzzParseRequest(f *testing.F) {
	for _, s := range []string{
		"\x00\x01f\x00octet\x00blksize\x001432\x00tsize\x000\x00",
		"\x00\x01f\x00netascii\x00WINDOWSIZE\x00065\x00timeout\x0010\x00",
		"\x00\x02f\x00octet\x00", "\x00\x01\x00\x00\x00\x00", "\x00\x01f\x00octet\x00blksize\x00",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		r, err := parseRequest(packet)
		if err != nil {
			return
		}
		lim := limits{block: 1468, window: 64}
		terms := r.negotiate(1<<40, lim)
		if terms.block < 8 || terms.block > lim.block || terms.window < 1 || terms.window > lim.window ||
			terms.window > 1 && terms.window*(4+terms.block) > maxBurst || terms.timeout < 0 || terms.timeout > maxTimeout {
			t.Errorf("%q: %+v", packet, terms)
		}
		for _, o := range terms.accepted {
			if !bytes.Contains(bytes.ToLower(packet), []byte("\x00"+o.name+"\x00")) {
				t.Errorf("%q: %s was not asked for", packet, o.name)
			}
		}
		if oack := terms.packet(); len(oack) > 100 {
			t.Errorf("%q: an OACK of %d bytes", packet, len(oack))
		}
	})
}

func TestPatience(t *testing.T) {
	total := func(timeout time.Duration) (d time.Duration) {
		x := &transfer{terms: terms{timeout: timeout}}
		for i := range x.attempts() {
			d += x.patience(i)
		}
		return d
	}
	for timeout, want := range map[time.Duration]time.Duration{
		0:                15800 * time.Millisecond,
		time.Second:      17 * time.Second,
		6 * time.Second:  18 * time.Second,
		10 * time.Second: 30 * time.Second,
	} {
		if got := total(timeout); got != want {
			t.Errorf("timeout %s: given up after %s, want %s", timeout, got, want)
		}
	}
}
