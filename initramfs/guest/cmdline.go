//go:build linux

package main

import (
	"net"
	"strings"
)

// cmdline is what this program reads from the kernel command line.
type cmdline struct {
	url      string           // ecboot.url=: where to report, "" for nowhere
	bootIF   net.HardwareAddr // BOOTIF=: the NIC that the machine booted from
	powerOff bool             // ecboot.poweroff: switch off after the report
}

// parseCmdline takes the last of several values, as the kernel does.
func parseCmdline(text string) cmdline {
	var c cmdline
	for _, field := range splitCmdline(text) {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "ecboot.url":
			c.url = value
		case "ecboot.poweroff":
			c.powerOff = value == "" || value == "1" || value == "y"
		case "BOOTIF":
			c.bootIF = parseBootIF(value)
		}
	}
	return c
}

// splitCmdline cuts at white space outside double quotes and drops the quotes,
// like the kernel's next_arg.
func splitCmdline(text string) []string {
	var fields []string
	var b strings.Builder
	quoted := false
	end := func() {
		if b.Len() > 0 {
			fields = append(fields, b.String())
			b.Reset()
		}
	}
	for _, c := range []byte(text) {
		switch {
		case c == '"':
			quoted = !quoted
		case !quoted && strings.IndexByte(" \t\r\n", c) >= 0:
			end()
		default:
			b.WriteByte(c)
		}
	}
	end()
	return fields
}

// parseBootIF reads the pxelinux form 01-52-54-00-12-34-56, whose first byte is
// the link type, and the bare address that other loaders write. Anything but an
// Ethernet address is nil.
func parseBootIF(value string) net.HardwareAddr {
	if len(value) == len("01-52-54-00-12-34-56") {
		rest, ok := strings.CutPrefix(value, "01")
		if !ok {
			return nil
		}
		value = rest[1:]
	}
	mac, err := net.ParseMAC(value)
	if err != nil || len(mac) != 6 {
		return nil
	}
	return mac
}
