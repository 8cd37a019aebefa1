package httpboot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/nettest"
	"github.com/every-channel/ecboot/internal/timeline"
)

var loopback = netip.MustParseAddr("127.0.0.1")

// start runs a server until stop, or the end of the test.
func start(t testing.TB, cfg Config) (events *eventLog, stop func()) {
	t.Helper()
	events, cfg.Timeline = newEventLog()
	_, stop = startServer(t, cfg)
	return events, stop
}

func startServer(t testing.TB, cfg Config) (s *Server, stop func()) {
	t.Helper()
	nettest.NeedRoot(t)
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.Ready()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return s, stop
}

// segment is a bridge with the server's address and one host on it.
func segment(t testing.TB) (netip.Addr, *nettest.Host) {
	t.Helper()
	nettest.Need(t, "ip", "nsenter")
	nettest.Bridge(t, "br0", "10.78.0.1/24")
	h := nettest.NewHost(t, "client")
	nettest.Connect(t, "br0", h, "eth0")
	h.Run(t, "ip", "addr", "add", "10.78.0.50/24", "dev", "eth0")
	return netip.MustParseAddr("10.78.0.1"), h
}

func sum(data []byte) string { return fmt.Sprintf("%x", sha256.Sum256(data)) }

func sumOf(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return sum(data)
}

func TestCurlFetchesEverything(t *testing.T) {
	nettest.Need(t, "curl")
	at, host := segment(t)
	inv := inventory(t)
	events, stop := start(t, Config{Addr: at, Interface: "br0", Inventory: func() *boot.Inventory { return inv }, Files: files})
	base := "http://" + at.String()
	files := map[string]int{"/profile/default/vmlinuz": kernelSize, "/profile/default/initramfs.zst": initrdSize, "//nbp//snponly.efi": nbpSize}
	for path, size := range files {
		t.Run(path, func(t *testing.T) {
			to := filepath.Join(t.TempDir(), "file")
			host.Run(t, "curl", "-sSf", "--path-as-is", "-o", to, base+path)
			if sumOf(t, to) != sum(pattern(size)) {
				t.Error("arrived damaged")
			}
			// What a client has when the link breaks in between.
			if err := os.Truncate(to, int64(size/3)); err != nil {
				t.Fatal(err)
			}
			events.ended()
			host.Run(t, "curl", "-sSf", "--path-as-is", "-C", "-", "-o", to, base+path)
			if sumOf(t, to) != sum(pattern(size)) {
				t.Error("resumed damaged")
			}
			if end := events.ended(); end.Bytes != int64(size-size/3) || end.Machine != "10.78.0.50" {
				t.Errorf("the rest was %+v", end)
			}
			head := host.Run(t, "curl", "-sSfI", "--path-as-is", base+path)
			for _, want := range []string{"HTTP/1.1 200 OK", fmt.Sprintf("Content-Length: %d\r\n", size), "Accept-Ranges: bytes"} {
				if !strings.Contains(head, want) {
					t.Errorf("HEAD lacks %q: %s", want, head)
				}
			}
		})
	}
	host.Run(t, "curl", "-sSf", "-d", `{"stage":"userland","uptime_ms":1234}`, base+"/phone-home/"+mac.String())
	script := host.Run(t, "curl", "-sSf", base+boot.ScriptPath(mac))
	if !strings.HasPrefix(script, "#!ipxe\n") || !strings.Contains(script, "kernel http://10.78.0.1/profile/default/vmlinuz") {
		t.Errorf("script: %s", script)
	}
	for _, trick := range []string{"/../../etc/passwd", "/profile/default/../../etc/passwd", "/nbp/%2e%2e/%2e%2e/etc/passwd"} {
		if got := host.Run(t, "curl", "-sS", "--path-as-is", "-o", "/dev/null", "-w", "%{http_code}", base+trick); got != "400" {
			t.Errorf("%s: %s", trick, got)
		}
	}
	stop()
}

// TestLossyLink loses 5 % of the packets in each direction, where they arrive.
// It is nftables that drops them: fewer kernels are built with netem.
func TestLossyLink(t *testing.T) {
	nettest.Need(t, "nft", "curl")
	at, host := segment(t)
	const loss = "table ip lossy { chain c { type filter hook input priority 0; numgen random mod 100 < 5 drop; }; }"
	if out, err := exec.Command("nft", loss).CombinedOutput(); err != nil {
		t.Skipf("needs a kernel with nf_tables: %s", out)
	}
	t.Cleanup(func() { exec.Command("nft", "delete table ip lossy").Run() })
	host.Run(t, "nft", loss)
	inv := inventory(t)
	start(t, Config{Addr: at, Interface: "br0", Inventory: func() *boot.Inventory { return inv }})
	to := filepath.Join(t.TempDir(), "vmlinuz")
	host.Run(t, "curl", "-sSf", "-o", to, "http://10.78.0.1/profile/default/vmlinuz")
	if sumOf(t, to) != sum(pattern(kernelSize)) {
		t.Error("arrived damaged")
	}
}

// TestShutdownEndsTransfers has a client that stops reading.
func TestShutdownEndsTransfers(t *testing.T) {
	big := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(big, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(big, 1<<30); err != nil {
		t.Fatal(err)
	}
	inv := &boot.Inventory{Profiles: map[string]boot.Profile{"p": {Name: "p", Kernel: boot.File{Name: "big", Path: big}}}}
	events, stop := start(t, Config{Addr: loopback, Inventory: func() *boot.Inventory { return inv }})
	conn, err := net.Dial("tcp", "127.0.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /profile/p/big HTTP/1.1\r\nHost: x\r\n\r\n")
	events.await(timeline.Begin)
	stop()
	// After Run, nothing more happens: the failure is there.
	got := events.take()
	if len(got) != 2 || got[1].Phase != timeline.Fail || !strings.HasPrefix(got[1].Detail, "big ended after ") {
		t.Errorf("%+v", got)
	}
}

func TestConfigErrors(t *testing.T) {
	nettest.NeedRoot(t)
	holder, err := net.Listen("tcp", "127.0.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	tests := []struct {
		name string
		cfg  Config
		want string
	}{
		{"no address", Config{}, "give the address to serve on"},
		{"any address", Config{Addr: netip.IPv4Unspecified()}, "give the address to serve on"},
		{"port taken", Config{Addr: loopback, Port: 8080}, "TCP port 8080 of 127.0.0.1: another program holds it; 'ss -tlpn sport = :8080'"},
		{"no such interface", Config{Addr: loopback, Interface: "nolink0"}, "nolink0: no such network interface"},
		{"foreign address", Config{Addr: netip.MustParseAddr("192.0.2.1")}, "this machine does not have that address"},
	}
	for _, tt := range tests {
		if _, err := New(tt.cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

// TestIPXERunsTheScripts boots Debian's iPXE in QEMU: what only it can say of a
// script is whether its words mean to it what they mean to us.
func TestIPXERunsTheScripts(t *testing.T) {
	const lkrn = "/boot/ipxe.lkrn"
	nettest.Need(t, "qemu-system-x86_64", "ip")
	if _, err := os.Stat(lkrn); err != nil {
		t.Skipf("needs %s, Debian's package ipxe: run make deps", lkrn)
	}
	nettest.NeedRoot(t)
	nettest.Bridge(t, "br0", "10.78.0.1/24")
	for _, args := range []string{"tuntap add tap0 mode tap", "link set tap0 master br0 up"} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %s", args, out)
		}
	}
	t.Cleanup(func() { exec.Command("ip", "link", "del", "tap0").Run() })
	inv := inventory(t)
	start := func(t *testing.T) *eventLog {
		events, _ := start(t, Config{Addr: netip.MustParseAddr("10.78.0.1"), Interface: "br0", Inventory: func() *boot.Inventory { return inv }})
		return events
	}
	broken := inv.Profiles["default"]
	broken.Name, broken.Kernel.Path = "broken", lkrn // which has the form of a kernel
	broken.Initrds = append(broken.Initrds, boot.File{Name: "gone", Path: "/nonexistent/gone"})
	inv.Profiles["broken"] = broken
	inv.Machines[boot.MAC{4}] = boot.Machine{MAC: boot.MAC{4}, Profile: "broken"}
	inv.Machines[boot.MAC{5}] = boot.Machine{MAC: boot.MAC{5}, Profile: "missing"}

	const shell = "iPXE> "
	tests := []struct {
		name    string
		mac     boot.MAC
		until   string
		console string
		fail    timeline.Stage
	}{
		{"no kernel", boot.MAC{5}, shell, "ecboot: profile missing failed at kernel, see https://ipxe.org/", timeline.Kernel},
		{"a kernel that is none", mac, shell, "ecboot: profile default failed at kernel, see https://ipxe.org/2e008001", timeline.Kernel},
		{"no second initrd", boot.MAC{4}, shell, "ecboot: profile broken failed at initrd, see https://ipxe.org/", timeline.Initrd},
		{"no profile", boot.MAC{3}, "follows in 15 s", "ecboot: no profile for 03:00:00:00:00:00", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			events := start(t)
			script := filepath.Join(t.TempDir(), "start.ipxe")
			first := "#!ipxe\nifopen net0\nset net0/ip 10.78.0.60\nset net0/netmask 255.255.255.0\nchain http://10.78.0.1" + boot.ScriptPath(tt.mac) + "\n"
			if err := os.WriteFile(script, []byte(first), 0o644); err != nil {
				t.Fatal(err)
			}
			// For an iPXE that says nothing at all.
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
			defer cancel()
			// Without graphics, SeaBIOS gives iPXE a console on the serial port.
			cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-machine", "pc,graphics=off", "-accel", "tcg", "-m", "256", "-display", "none", "-nodefaults", "-serial", "stdio",
				"-kernel", lkrn, "-initrd", script, "-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no", "-device", "virtio-net-pci,netdev=n,romfile=")
			console, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stderr = cmd.Stdout
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Wait()
			defer cmd.Process.Kill()
			said, ok := readUntil(console, tt.until)
			if !ok || !strings.Contains(said, tt.console) {
				t.Fatalf("the console does not say %q:\n%s", tt.console, said)
			}
			if tt.fail == "" {
				return
			}
			var reported bool
			for _, e := range events.take() {
				reported = reported || e.Stage == tt.fail && e.Phase == timeline.Fail && e.Machine == tt.mac.String() && strings.Contains(e.Detail, "https://ipxe.org/")
			}
			if !reported {
				t.Error("the failure was not reported")
			}
		})
	}
}

// readUntil reads until text has come by; ok is false if the stream ends first.
func readUntil(r io.Reader, text string) (said string, ok bool) {
	var b bytes.Buffer
	buf := make([]byte, 1)
	for {
		if _, err := r.Read(buf); err != nil {
			return b.String(), false
		}
		b.Write(buf)
		if bytes.HasSuffix(b.Bytes(), []byte(text)) {
			return b.String(), true
		}
	}
}
