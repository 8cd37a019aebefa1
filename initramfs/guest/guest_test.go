//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

var bootMAC = net.HardwareAddr{0x52, 0x54, 0, 0x12, 0x34, 0x56}

func TestParseCmdline(t *testing.T) {
	const url = "http://10.77.0.1/phone-home/52:54:00:12:34:56"
	for text, want := range map[string]cmdline{
		"":                      {},
		"console=ttyS0 quiet\n": {},
		"console=ttyS0 initrd=initramfs.cpio.zst BOOTIF=01-52-54-00-12-34-56 ecboot.url=" + url: {url: url, bootIF: bootMAC},
		"ecboot.url=http://a/ ecboot.url=http://b/":                                             {url: "http://b/"},
		`"ecboot.url=http://a/ b" x`:                                                            {url: "http://a/ b"},
		`ecboot.url="http://a/"`:                                                                {url: "http://a/"},
		"ecboot.poweroff":                                                                       {powerOff: true},
		"ecboot.poweroff=1":                                                                     {powerOff: true},
		"ecboot.poweroff=0":                                                                     {},
		"ecboot.poweroffs":                                                                      {},
		"\tecboot.poweroff  \r\n":                                                               {powerOff: true},
		"ecboot.url":                                                                            {},
		"xecboot.url=http://a/ BOOTIF=":                                                         {},
	} {
		if got := parseCmdline(text); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %+v, want %+v", text, got, want)
		}
	}
}

func FuzzParseCmdline(f *testing.F) {
	f.Add(`console=ttyS0 BOOTIF=01-52-54-00-12-34-56 ecboot.url="http://10.77.0.1/x y" ecboot.poweroff`)
	f.Add(`"" " = BOOTIF=01`)
	f.Fuzz(func(t *testing.T, text string) {
		c := parseCmdline(text)
		if !strings.Contains(strings.ReplaceAll(text, `"`, ""), c.url) || len(c.bootIF) != 0 && len(c.bootIF) != 6 {
			t.Errorf("%q: %+v", text, c)
		}
	})
}

func TestParseBootIF(t *testing.T) {
	for text, want := range map[string]net.HardwareAddr{
		"01-52-54-00-12-34-56":    bootMAC,
		"01:52:54:00:12:34:56":    bootMAC,
		"52:54:00:12:34:56":       bootMAC,
		"52-54-00-12-34-56":       bootMAC,
		"06-52-54-00-12-34-56":    nil, // not Ethernet
		"01-52-54-00-12-34-5":     nil,
		"01-52-54-00-12-34-56-78": nil,
		"01":                      nil,
		"01-zz-54-00-12-34-56":    nil,
		"":                        nil,
	} {
		if got := parseBootIF(text); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
	}
}

func TestChoose(t *testing.T) {
	other := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	third := net.HardwareAddr{2, 0, 0, 0, 0, 2}
	for _, tt := range []struct {
		name   string
		nics   []nic
		bootIF net.HardwareAddr
		want   int
		ok     bool
	}{
		{"none", nil, nil, 0, false},
		{"the only one", []nic{{"eth0", other, true}}, nil, 0, true},
		{"no carrier", []nic{{"eth0", other, false}}, nil, 0, false},
		{"first with a carrier", []nic{{"eth0", other, false}, {"eth1", third, true}, {"eth2", bootMAC, true}}, nil, 1, true},
		{"the one that booted", []nic{{"eth0", other, true}, {"eth1", bootMAC, true}}, bootMAC, 1, true},
		{"waits for the one that booted", []nic{{"eth0", other, true}, {"eth1", bootMAC, false}}, bootMAC, 1, false},
		{"the one that booted is not there", []nic{{"eth0", other, false}, {"eth1", third, true}}, bootMAC, 1, true},
	} {
		if got, ok := choose(tt.nics, tt.bootIF); ok != tt.ok || ok && got != tt.want {
			t.Errorf("%s: got %d, %v, want %d, %v", tt.name, got, ok, tt.want, tt.ok)
		}
	}
}

func TestResolvConf(t *testing.T) {
	dns := dhcpv4.OptDNS(net.IPv4(10, 77, 0, 1), net.IPv4(10, 77, 0, 2))
	domain := dhcpv4.OptDomainName("lab.example")
	for _, tt := range []struct {
		options []dhcpv4.Option
		want    string
	}{
		{nil, ""},
		{[]dhcpv4.Option{domain}, ""},
		{[]dhcpv4.Option{dns}, "nameserver 10.77.0.1\nnameserver 10.77.0.2\n"},
		{[]dhcpv4.Option{dns, domain}, "search lab.example\nnameserver 10.77.0.1\nnameserver 10.77.0.2\n"},
	} {
		ack, err := dhcpv4.New()
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range tt.options {
			ack.UpdateOption(o)
		}
		if got := resolvConf(ack); got != tt.want {
			t.Errorf("%v: got %q, want %q", tt.options, got, tt.want)
		}
	}
}

func TestParseStatus(t *testing.T) {
	for line, want := range map[string]int{
		"HTTP/1.1 204 No Content": 204,
		"HTTP/1.0 500":            500,
		"HTTP/1.1 20 What":        0,
		"HTTP/1.1":                0,
		"SSH-2.0-OpenSSH 204 x":   0,
		"":                        0,
	} {
		got, err := parseStatus(line)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: got %d, %v", line, got, err)
		}
	}
}

func TestReport(t *testing.T) {
	for _, tt := range []struct {
		name    string
		answers []int // the last one again and again
		want    string
		calls   int
	}{
		{"accepted", []int{204}, "", 1},
		{"at the third try", []int{503, 500, 200}, "", 3},
		{"unknown machine", []int{404}, "SERVER answered 404", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			calls := 0
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				got := fmt.Sprint(r.Method, r.URL.Path, r.Header.Get("Content-Type"), string(body), err)
				if want := `POST/phone-home/52:54:00:12:34:56application/json{"stage":"userland","uptime_ms":3210}<nil>`; got != want {
					t.Errorf("got  %s\nwant %s", got, want)
				}
				w.WriteHeader(tt.answers[min(calls, len(tt.answers)-1)])
				calls++
			}))
			defer srv.Close()
			err := report(t.Context(), srv.URL+"/phone-home/52:54:00:12:34:56", 3210*time.Millisecond)
			var got string
			if err != nil {
				got = strings.ReplaceAll(err.Error(), srv.Listener.Addr().String(), "SERVER")
			}
			if got != tt.want || calls != tt.calls {
				t.Errorf("got %q after %d calls, want %q after %d", got, calls, tt.want, tt.calls)
			}
		})
	}
}

func TestReportGivesUp(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := ln.Addr().String()
	ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := report(ctx, "http://"+gone+"/", 0); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("got the error %v, want what was wrong with the last try", err)
	}
	for _, target := range []string{"https://10.77.0.1/", "/phone-home", "http://", "http://[::1/", "x"} {
		if err := report(t.Context(), target, 0); err == nil {
			t.Errorf("%q: no error", target)
		}
	}
}

// A server that accepts and then says nothing, or something else, must not hold
// the machine.
func TestPostToOthers(t *testing.T) {
	for _, answer := range []string{"", "220 mail ESMTP\r\n", strings.Repeat("x", 1000)} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, answer)
			_, _ = io.Copy(io.Discard, io.LimitReader(conn, 1))
		}()
		u := &url.URL{Scheme: "http", Host: ln.Addr().String(), Path: "/"}
		if status, err := post(t.Context(), u, "{}"); err == nil {
			t.Errorf("%.20q: status %d and no error", answer, status)
		}
		ln.Close()
	}
}

// A switch with spanning tree passes nothing on for 30 s (IEEE 802.1D-2004, table
// 17-1): somebody must ask after that, while there is time to report.
func TestAsksAfterSpanningTree(t *testing.T) {
	var asks []time.Duration
	at, wait := time.Duration(0), firstWait
	for range waits {
		asks = append(asks, at)
		at, wait = at+wait, 2*wait
	}
	if last := asks[len(asks)-1]; last < 30*time.Second || last > reportBudget-10*time.Second {
		t.Errorf("asks at %v, and gives up at %v", asks, reportBudget)
	}
}
