package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/nettest"
)

// marker is what the default image prints when its userland begins.
const marker = "ecboot: userland after"

const guestMAC = "52:54:00:77:00:01"

// bootTimeout is the longest that a boot may take before it counts as failed.
const bootTimeout = 3 * time.Minute

// cmdline is every contender's kernel command line.
const cmdline = "console=ttyS0 panic=-1"

// BenchmarkBoot measures seconds from QEMU's start to userland, with the same
// kernel and initrd, on the same machine, in turn.
func BenchmarkBoot(b *testing.B) {
	nettest.NeedRoot(b)
	nettest.Need(b, "qemu-system-x86_64", "dnsmasq", "nginx", "ip")
	kernel, initrd := repoFile(b, "images/assets/vmlinuz"), repoFile(b, "images/assets/initramfs.cpio.zst")
	ecboot := repoFile(b, "ecboot")
	usual := newUsualStack(b, kernel, initrd)

	ours := func(args ...string) func() float64 {
		return func() float64 { return ecbootSeconds(b, ecboot, args...) }
	}
	contenders := []struct {
		name    string
		seconds func() float64
	}{
		{"ecboot, BIOS, the NIC's ROM", ours("--firmware", "bios")},
		{"ecboot, BIOS, iPXE as the kernel", ours("--firmware", "bios", "--first-stage", "ipxe")},
		{"ecboot, UEFI, the firmware's PXE", ours("--firmware", "uefi", "--rom", "none")},
		{"dnsmasq + nginx, BIOS", func() float64 { return usual.seconds(b, false) }},
		{"dnsmasq + nginx, UEFI", func() float64 { return usual.seconds(b, true) }},
		{"ecboot, BIOS, the NIC's ROM, with iPXE's banner", ours("--firmware", "bios", "--ipxe-banner")},
		{"ecboot, UEFI, the firmware's PXE, with iPXE's banner", ours("--firmware", "uefi", "--rom", "none", "--ipxe-banner")},
		{"direct -kernel -initrd", func() float64 {
			return qemuSeconds(b, "-kernel", kernel, "-initrd", initrd, "-append", cmdline, "-nic", "none")
		}},
	}
	times := make([][]float64, len(contenders))
	for range rounds(b) {
		for i, c := range contenders {
			s := c.seconds()
			times[i] = append(times[i], s)
			fmt.Printf("  %6.2f s  %s\n", s, c.name)
		}
	}
	at := func(i int) float64 { return median(times[i]) }
	report("boot-bios-rom", at(0), at(3), "s", contenders[3].name, 0.30)
	report("boot-bios-rom-banner", at(5), at(3), "s", contenders[3].name, 0.30)
	report("boot-bios-ipxe", at(1), at(3), "s", contenders[3].name, 0.24)
	report("boot-bios-ipxe-direct", at(1), at(7), "s", contenders[7].name, 1.40)
	report("boot-uefi", at(2), at(4), "s", contenders[4].name, 0.55)
	report("boot-uefi-banner", at(6), at(4), "s", contenders[4].name, 0.55)
}

func ecbootSeconds(b *testing.B, ecboot string, args ...string) float64 {
	args = append([]string{"run", "-o", "json", "--memory", "512M", "--until", "console:" + marker}, args...)
	out, err := exec.Command(ecboot, args...).Output()
	if err != nil {
		b.Fatalf("ecboot %s: %v\n%s", strings.Join(args, " "), err, stderrOf(err))
	}
	var doc struct {
		TotalMS float64 `json:"total_ms"`
	}
	if err := json.Unmarshal(out, &doc); err != nil {
		b.Fatalf("ecboot's report: %v\n%s", err, out)
	}
	return doc.TotalMS / 1000
}

func stderrOf(err error) []byte {
	if e, ok := err.(*exec.ExitError); ok {
		return e.Stderr
	}
	return nil
}

// qemuSeconds starts QEMU as people do by hand, and waits for the marker.
func qemuSeconds(b *testing.B, args ...string) float64 {
	ctx, cancel := context.WithTimeout(context.Background(), bootTimeout)
	defer cancel()
	base := []string{"-accel", "tcg", "-machine", "q35", "-m", "512", "-nographic", "-no-reboot", "-device", "virtio-rng-pci"}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", append(base, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	var seen []byte
	chunk := make([]byte, 64<<10)
	for {
		n, err := out.Read(chunk)
		seen = append(seen, chunk[:n]...)
		if bytes.Contains(seen, []byte(marker)) {
			return time.Since(start).Seconds()
		}
		if err != nil {
			b.Fatalf("QEMU ended before the marker: %v\n%s", err, seen[max(0, len(seen)-2000):])
		}
	}
}

// usualStack is what people run today: dnsmasq and nginx on a bridge, configured
// as their manuals say.
type usualStack struct{ dir string }

const nginxConf = `daemon off; pid %[1]s/nginx.pid; worker_processes 1; error_log %[1]s/error.log;
events {}
http { access_log %[1]s/access.log; sendfile on; server { listen 10.77.0.1:80; root %[1]s/http; } }
`

const usualScript = `#!ipxe
kernel http://10.77.0.1/vmlinuz ` + cmdline + ` initrd=initrd
initrd http://10.77.0.1/initrd
boot
`

func newUsualStack(b *testing.B, kernel, initrd string) *usualStack {
	u := &usualStack{dir: b.TempDir()}
	nettest.Bridge(b, "br0", "10.77.0.1/24")
	copyFile(b, "/usr/lib/ipxe/undionly.kpxe", filepath.Join(u.dir, "tftp/undionly.kpxe"))
	copyFile(b, "/usr/lib/ipxe/snponly.efi", filepath.Join(u.dir, "tftp/snponly.efi"))
	copyFile(b, kernel, filepath.Join(u.dir, "http/vmlinuz"))
	copyFile(b, initrd, filepath.Join(u.dir, "http/initrd"))
	writeFile(b, filepath.Join(u.dir, "http/boot.ipxe"), usualScript)
	writeFile(b, filepath.Join(u.dir, "nginx.conf"), fmt.Sprintf(nginxConf, u.dir))
	// nginx drops its workers to another user, who must get at the files.
	for dir := u.dir; dir != "/" && dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			b.Fatal(err)
		}
	}
	background(b, "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface=br0", "--bind-interfaces", "--no-ping",
		"--dhcp-range=10.77.0.50,10.77.0.250,1h", "--enable-tftp", "--tftp-root="+u.dir+"/tftp", "--user=root",
		"--dhcp-userclass=set:ipxe,iPXE", "--dhcp-match=set:efi,option:client-arch,7",
		"--dhcp-boot=tag:!ipxe,tag:!efi,undionly.kpxe", "--dhcp-boot=tag:!ipxe,tag:efi,snponly.efi",
		"--dhcp-boot=tag:ipxe,http://10.77.0.1/boot.ipxe", "--dhcp-leasefile="+u.dir+"/leases")
	background(b, "nginx", "-c", u.dir+"/nginx.conf")
	awaitTCP(b, "10.77.0.1:80")
	return u
}

func (u *usualStack) seconds(b *testing.B, uefi bool) (seconds float64) {
	onTap(b, func(args []string) {
		if uefi {
			vars := filepath.Join(u.dir, "vars.fd")
			copyFile(b, "/usr/share/OVMF/OVMF_VARS_4M.fd", vars)
			args = append(args,
				"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd",
				"-drive", "if=pflash,format=raw,unit=1,file="+vars)
		}
		seconds = qemuSeconds(b, args...)
	})
	return seconds
}

// onTap calls body with the arguments of a NIC that is a port of br0 meanwhile.
func onTap(b *testing.B, body func(nic []string)) {
	run(b, "ip", "tuntap", "add", "tap0", "mode", "tap")
	defer run(b, "ip", "link", "del", "tap0")
	run(b, "ip", "link", "set", "tap0", "master", "br0", "up")
	body([]string{"-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no",
		"-device", "virtio-net-pci,netdev=n0,bootindex=0,mac=" + guestMAC})
}

// background runs a server until stop is called or the benchmark ends.
func background(b *testing.B, name string, args ...string) (p *os.Process, stop func()) {
	cmd := exec.Command(name, args...)
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	return cmd.Process, stopper(b, cmd)
}

// stopper ends a server when it is called, and with the benchmark at the latest.
func stopper(b *testing.B, cmd *exec.Cmd) (stop func()) {
	stop = sync.OnceFunc(func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
	})
	b.Cleanup(stop)
	return stop
}

func awaitTCP(b *testing.B, addr string) {
	for deadline := time.Now().Add(10 * time.Second); ; {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			b.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func run(b *testing.B, name string, args ...string) {
	b.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		b.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

func copyFile(b *testing.B, from, to string) {
	b.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		b.Fatal(err)
	}
	writeFile(b, to, string(data))
}

func writeFile(b *testing.B, path, text string) {
	b.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		b.Fatal(err)
	}
}
