package tftpd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"
)

// crowd opens n sockets that ask for a file and then say nothing more.
func crowd(t *testing.T, n int, from func(i int) netip.Addr, options ...string) {
	t.Helper()
	packet := append([]byte{0, opRead}, strings.Join(append([]string{"snponly.efi", "octet"}, options...), "\x00")+"\x00"...)
	for i := range n {
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: from(i).AsSlice()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		// Not faster than the server reads: what its socket drops would not
		// trouble it.
		conn.WriteToUDPAddrPort(packet, netip.AddrPortFrom(loopback, DefaultPort))
		if i%64 == 63 {
			time.Sleep(time.Millisecond)
		}
	}
}

// TestHalfOpenTransfers has thousands of clients that ask and never answer, of
// all kinds; then one that boots.
func TestHalfOpenTransfers(t *testing.T) {
	everybody := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}) }
	one := func(int) netip.Addr { return netip.AddrFrom4([4]byte{127, 1, 1, 1}) }
	tests := []struct {
		name    string
		from    func(int) netip.Addr
		options []string
		client  netip.Addr // that boots
	}{
		{"many addresses", everybody, []string{"tsize", "0", "blksize", "1432", "windowsize", "64"}, netip.MustParseAddr("127.9.9.9")},
		{"many addresses, no options", everybody, nil, netip.MustParseAddr("127.9.9.9")},
		{"one address", one, []string{"tsize", "0"}, netip.MustParseAddr("127.9.9.9")},
		{"the address of the client that boots", one, []string{"tsize", "0"}, one(0)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := start(t, Config{Addr: loopback, Files: only(files())})
			idle := runtime.NumGoroutine()
			crowd(t, 3000, tt.from, tt.options...)
			for _, opts := range [][]string{{"blksize", "1432", "windowsize", "2"}, nil} {
				c := dialFrom(t, tt.client, loopback)
				c.request(1, append([]string{"snponly.efi", "octet"}, opts...)...)
				blksize, window := 512, 1
				if opts != nil {
					blksize, window = 1432, 2
					parseOACK(t, c.receive())
					c.ack(0)
				}
				if got := c.fetchWindows(blksize, window); !bytes.Equal(got, pattern(5000)) {
					t.Errorf("%v: got %d bytes", opts, len(got))
				}
			}
			c := s.Counters()
			if c.Active > maxTransfers || c.Evicted == 0 {
				t.Errorf("counters %+v", c)
			}
			// One or two for each transfer that has a slot, and those of
			// pin/tftp.
			if n := runtime.NumGoroutine() - idle; n > 2*maxTransfers+4*maxLockstep {
				t.Errorf("%d goroutines", n)
			}
			if log := s.log.String(); strings.Count(log, "\n") > 2 {
				t.Errorf("log: %s", log)
			}
		})
	}
}

// TestNuisancesAreCountedNotLogged has each of them a hundred times.
func TestNuisancesAreCountedNotLogged(t *testing.T) {
	foreign := netip.MustParseAddr("127.0.0.66")
	s := start(t, Config{Addr: loopback, Files: only(files()), Allow: func(a netip.Addr) bool { return a != foreign }})
	const n = 100
	c, f := dial(t, loopback), dialFrom(t, foreign, loopback)
	for i := range n {
		f.request(1, "snponly.efi", "octet")
		c.send([]byte("\x00\x04\x00\x01"))
		for _, request := range [][]string{{"../x", "octet"}, {"snponly.efi", "mail"}, {fmt.Sprint(i), "octet"}} {
			c.request(opRead, request...)
			if p := c.receive(); binary.BigEndian.Uint16(p) != opError {
				t.Fatalf("%v: got %q", request, p)
			}
		}
		c.server.Port = DefaultPort
	}
	got := s.Counters()
	want := Counters{Requests: 5 * n, Foreign: n, Malformed: n, Refused: 2 * n, NotFound: n}
	if got.Active = 0; got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if log := s.log.String(); strings.Count(log, "\n") != 3 {
		t.Errorf("log: %s", log)
	}
	// Whom we do not serve hears nothing.
	f.conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, _, err := f.conn.ReadFromUDP(make([]byte, 100)); err == nil {
		t.Errorf("%s got %d bytes", foreign, n)
	}
}
