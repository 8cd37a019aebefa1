package bench

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/every-channel/ecboot/internal/nettest"
	"github.com/every-channel/ecboot/tftpd"
)

// BenchmarkTFTP compares bytes per second with those of the servers that Debian
// has. The clients are on a host beside, behind a bridge; each server has an
// address of its own, so that all can be asked in turn.
func BenchmarkTFTP(b *testing.B) {
	nettest.NeedRoot(b)
	nettest.Need(b, "in.tftpd", "dnsmasq", "ip")
	nettest.Bridge(b, "br0", "10.78.0.1/24")
	host := nettest.NewHost(b, "clients")
	nettest.Connect(b, "br0", host, "eth0")
	host.Run(b, "ip", "addr", "add", "10.78.0.9/24", "dev", "eth0")
	for _, addr := range []string{"10.78.0.2/24", "10.78.0.3/24", "10.78.0.4/24"} {
		run(b, "ip", "addr", "add", addr, "dev", "br0")
	}

	dir := publicDir(b) // tftpd-hpa serves what everybody may read
	random := rand.NewChaCha8([32]byte{})
	for name, size := range map[string]int{"large": 32 << 20, "small": 4 << 20} {
		data := make([]byte, size)
		random.Read(data)
		writeFile(b, filepath.Join(dir, name), string(data))
	}
	startTFTP(b, dir, "10.78.0.1")
	background(b, "in.tftpd", "-L", "-a", "10.78.0.2:69", "--secure", "-u", "root", dir)
	background(b, "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--listen-address=10.78.0.3", "--bind-interfaces",
		"--enable-tftp", "--tftp-root="+dir, "--user=root", "--tftp-max=500", "--quiet-tftp")
	background(b, repoFile(b, "internal/bench/testdata/atftpd/usr/sbin/atftpd"), "--daemon", "--no-fork", "--user", "root.root", "--bind-address", "10.78.0.4", "--maxthread", "1000", dir)

	const ours, hpa, dnsmasq, atftpd = 0, 1, 2, 3
	servers := []string{"ecboot", "tftpd-hpa", "dnsmasq", "atftpd"}
	measure := func(server int, l tftpLoad) float64 {
		l.Server = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 78, 0, byte(1 + server)}), tftpd.DefaultPort)
		l.Like, l.Block = filepath.Join(dir, l.Name), 1432
		return l.run(b, host) / 1e6
	}
	cases := []struct {
		name  string
		load  tftpLoad
		peers []int
	}{
		{"tftp-1-client", tftpLoad{Name: "large", Clients: 1, Fetches: 1, Window: 1}, []int{hpa, dnsmasq, atftpd}},
		{"tftp-1-client-window-16", tftpLoad{Name: "large", Clients: 1, Fetches: 3, Window: 16}, []int{atftpd}},
		{"tftp-1-client-window-64", tftpLoad{Name: "large", Clients: 1, Fetches: 4, Window: 64}, []int{atftpd}},
		{"tftp-64-clients", tftpLoad{Name: "small", Clients: 64, Fetches: 1, Window: 1}, []int{atftpd}},
		{"tftp-64-clients-window-16", tftpLoad{Name: "small", Clients: 64, Fetches: 2, Window: 16}, []int{atftpd}},
	}
	for i := range servers {
		measure(i, tftpLoad{Name: "small", Clients: 1, Fetches: 1, Window: 16}) // until it answers
	}
	for _, c := range cases {
		rates := make([][]float64, len(servers))
		for range rounds(b) {
			for _, server := range append([]int{ours}, c.peers...) {
				rates[server] = append(rates[server], measure(server, c.load))
			}
		}
		best := c.peers[0]
		for _, peer := range c.peers {
			fmt.Printf("  %s: %s %.1f MB/s\n", c.name, servers[peer], median(rates[peer]))
			if median(rates[peer]) > median(rates[best]) {
				best = peer
			}
		}
		reportRate(c.name, median(rates[ours]), median(rates[best]), "MB/s", servers[best], 1)
	}
}

// startTFTP serves dir in this process, which has nothing else to do, until the
// benchmark ends.
func startTFTP(b *testing.B, dir, address string) {
	files := os.DirFS(dir)
	server, err := tftpd.New(tftpd.Config{Addr: netip.MustParseAddr(address), Interface: "br0", Files: func(netip.Addr) fs.FS { return files }})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	})
}
