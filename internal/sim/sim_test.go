package sim

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m, Program()) }

// TestARackBootsFromForeignServers boots machines from dnsmasq and Go's file
// server: what they accept is what others send, too.
func TestARackBootsFromForeignServers(t *testing.T) {
	nettest.Need(t, "dnsmasq", "ip")
	nettest.Bridge(t, "br0", "10.78.0.1/16")
	host := nettest.NewHost(t, "rack")
	nettest.Connect(t, "br0", host, "eth0")
	dir := t.TempDir()
	rack := Rack{Link: "eth0", Machines: 20, Want: map[string]string{}, Limit: time.Minute}
	for name, size := range map[string]int{"snponly.efi": 100_000, "kernel": 300_000, "initrd": 1468 * 10} {
		data := strings.Repeat(name, size/len(name)+1)[:size]
		rack.Want[name] = fmt.Sprintf("%x", sha256.Sum256([]byte(data)))
		write(t, filepath.Join(dir, name), data)
	}
	write(t, filepath.Join(dir, "boot.ipxe"), "#!ipxe\nkernel http://10.78.0.1/kernel quiet\ninitrd --name initrd http://10.78.0.1/initrd\nboot\n")
	dnsmasq := exec.Command("dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface=br0", "--bind-interfaces", "--no-ping",
		"--dhcp-range=10.78.1.0,10.78.1.200,255.255.0.0,1h", "--dhcp-leasefile="+dir+"/leases", "--enable-tftp", "--tftp-root="+dir, "--user=root",
		"--dhcp-userclass=set:ipxe,iPXE", "--dhcp-boot=tag:!ipxe,snponly.efi", "--dhcp-boot=tag:ipxe,http://10.78.0.1/boot.ipxe")
	if err := dnsmasq.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		dnsmasq.Process.Kill()
		dnsmasq.Wait()
	})
	listener, err := net.Listen("tcp", "10.78.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.FileServer(http.Dir(dir))}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })

	result, err := rack.BootOn(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	for _, stage := range Stages {
		if result.Seconds[stage] <= 0 {
			t.Errorf("nobody reached the stage %q: %+v", stage, result)
		}
	}
	if left := host.Run(t, "ip", "-4", "addr", "show", "dev", "eth0"); strings.Contains(left, "inet ") {
		t.Errorf("left behind: %s", left)
	}

	rack.Want["initrd"] = "another"
	if _, err := rack.BootOn(t.Context(), host); err == nil || !strings.Contains(err.Error(), "20 machines did not boot") || !strings.Contains(err.Error(), "not another") {
		t.Errorf("a damaged file: %v", err)
	}
}

func write(t *testing.T, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}
