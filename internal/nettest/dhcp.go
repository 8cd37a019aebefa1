package nettest

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// DHCPServers are the programs that ServeDHCP knows: dnsmasq, Kea and ISC dhcpd.
var DHCPServers = []string{"dnsmasq", "kea-dhcp4", "dhcpd"}

// ServeDHCP runs somebody else's DHCP server on a host until the test ends. It
// gives out the addresses from .100 to .199 of a /24, whose .2 becomes the
// address of the host's interface, and knows nothing of booting.
func (h *Host) ServeDHCP(t testing.TB, program, ifname string, network netip.Prefix) {
	t.Helper()
	Need(t, program)
	a := network.Masked().Addr().As4()
	at := func(last byte) string { return fmt.Sprintf("%d.%d.%d.%d", a[0], a[1], a[2], last) }
	h.Run(t, "ip", "addr", "add", at(2)+"/24", "dev", ifname)
	conf := filepath.Join(t.TempDir(), "conf")
	write := func(text string) {
		must(t, conf, os.WriteFile(conf, []byte(text), 0o644))
	}
	switch program {
	case "dnsmasq":
		h.start(t, "DHCP, IP range", "dnsmasq", "--conf-file=/dev/null", "--no-daemon", "--port=0", "--bind-interfaces", "--interface="+ifname,
			"--dhcp-range="+at(100)+","+at(199), "--no-ping", "--dhcp-leasefile=/run/leases", "--pid-file=", "--user=root", "--log-facility=-")
	case "kea-dhcp4":
		write(fmt.Sprintf(`{"Dhcp4": {
			"interfaces-config": {"interfaces": [%q]},
			"lease-database": {"type": "memfile", "persist": false},
			"subnet4": [{"subnet": "%s/24", "pools": [{"pool": "%s - %s"}]}],
			"loggers": [{"name": "kea-dhcp4", "severity": "INFO", "output_options": [{"output": "stdout"}]}]}}`,
			ifname, at(0), at(100), at(199)))
		h.Run(t, "mkdir", "-p", "/run/kea")
		h.start(t, "DHCP4_STARTED", "env", "KEA_PIDFILE_DIR=/run/kea", "KEA_LOCKFILE_DIR=/run/kea", "kea-dhcp4", "-c", conf)
	case "dhcpd":
		write(fmt.Sprintf("authoritative;\nping-check false;\nsubnet %s netmask 255.255.255.0 { range %s %s; }\n", at(0), at(100), at(199)))
		h.Run(t, "touch", "/run/dhcpd.leases")
		h.start(t, "Server starting service", "dhcpd", "-4", "-f", "-d", "--no-pid", "-cf", conf, "-lf", "/run/dhcpd.leases", ifname)
	default:
		t.Fatalf("no DHCP server is called %s", program)
	}
}

// start runs a program on the host until the test ends, and returns once it has
// printed a line with this text. When the test fails, what it printed is shown.
func (h *Host) start(t testing.TB, ready string, name string, args ...string) {
	t.Helper()
	r, w, err := os.Pipe()
	must(t, "pipe", err)
	ctx, cancel := context.WithCancel(context.Background())
	cmd := h.Command(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = w, w
	// It dies with the test, however that ends: to be exact, with the thread
	// that started it, which must live as long.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, gone := make(chan error), make(chan struct{})
	go func() {
		defer close(gone)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
		}
	}()
	must(t, "start "+name, <-started)
	w.Close()
	said, ended := make(chan struct{}), make(chan struct{})
	var log strings.Builder
	go func() {
		defer close(ended)
		waiting := true
		for lines := bufio.NewScanner(r); lines.Scan(); {
			fmt.Fprintln(&log, lines.Text())
			if waiting && strings.Contains(lines.Text(), ready) {
				close(said)
				waiting = false
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-gone
		<-ended
		r.Close()
		if t.Failed() {
			t.Logf("%s on %s:\n%s", name, h.Name, &log)
		}
	})
	select {
	case <-said:
	case <-ended:
		t.Fatalf("%s on %s has ended", name, h.Name)
	}
}
