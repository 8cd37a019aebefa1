package bench

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/every-channel/ecboot/internal/nettest"
)

// The network of the load benchmarks: the servers have the first address of a
// bridge, the clients are on one host beside it.
var (
	serverAddr  = netip.MustParseAddr("10.77.0.1")
	firstClient = netip.MustParsePrefix("10.77.1.0/16")
)

const artifactSize = 16 << 20

// BenchmarkHTTP compares ecboot and nginx: bytes per second of large files, and
// the time in which a thousand machines have their scripts.
func BenchmarkHTTP(b *testing.B) {
	nettest.NeedRoot(b)
	nettest.Need(b, "nginx", "curl", "ip")
	const machines = 1000
	clients := loadNetwork(b, machines)
	dir := publicDir(b)
	artifact := filepath.Join(dir, "http", "artifact")
	writeFile(b, artifact, strings.Repeat("ecboot is measured with this. ", artifactSize/30+1)[:artifactSize])
	writeFile(b, filepath.Join(dir, "http", "boot.ipxe"), usualScript)
	startEcboot(b, fmt.Sprintf("[profile.default]\nkernel = %q\ninitrds = []\ncmdline = %q\n", artifact, cmdline))
	startNginx(b, dir, 8080)
	ecboot, nginx := netip.AddrPortFrom(serverAddr, 80), netip.AddrPortFrom(serverAddr, 8080)

	type contest struct {
		name           string
		ours, peer     load
		curl           bool // is the client
		figure         func(loadResult) float64
		unit           string
		oursPer, peers []float64
	}
	rate := func(r loadResult) float64 { return float64(r.Bytes) / r.Seconds / 1e6 }
	time := func(r loadResult) float64 { return r.Seconds }
	contests := []*contest{
		// Two Go runtimes, the client's and the server's, would share the cores.
		{name: "http-16MB-1-client", curl: true, unit: "MB/s", figure: rate, ours: load{Path: "/profile/default/artifact", Clients: 1, Fetches: 64}, peer: load{Path: "/artifact"}},
		{name: "http-16MB-16-clients", unit: "MB/s", figure: rate, ours: load{Path: "/profile/default/artifact", Clients: 16, Fetches: 8}, peer: load{Path: "/artifact"}},
		{name: "http-1000-scripts", unit: "s", figure: time, ours: load{Path: "/ipxe/52:54:00:00:00:07", Clients: machines, Fetches: 1}, peer: load{Path: "/boot.ipxe"}},
	}
	for range rounds(b) {
		for _, c := range contests {
			c.ours.Link, c.ours.First = "eth0", firstClient
			theirs := c.ours
			c.ours.Server, theirs.Server, theirs.Path = ecboot, nginx, c.peer.Path
			run := load.run
			if c.curl {
				run = load.curl
			}
			ours, peer := c.figure(run(c.ours, b, clients)), c.figure(run(theirs, b, clients))
			c.oursPer, c.peers = append(c.oursPer, ours), append(c.peers, peer)
			fmt.Printf("  %s: ecboot %.3g %s, nginx %.3g %s\n", c.name, ours, c.unit, peer, c.unit)
		}
	}
	for _, c := range contests {
		ours, peer := median(c.oursPer), median(c.peers)
		if c.unit == "s" {
			report(c.name, ours, peer, c.unit, "nginx", 1)
		} else {
			reportRate(c.name, ours, peer, c.unit, "nginx", 1)
		}
	}
}

// loadNetwork makes the network of the load benchmarks, with room for n
// clients. The servers know their hardware addresses beforehand: the kernel
// keeps no more than a thousand that it has asked for.
func loadNetwork(b *testing.B, n int) *nettest.Host {
	nettest.Bridge(b, "br0", serverAddr.String()+"/16")
	host := nettest.NewHost(b, "clients")
	nettest.Connect(b, "br0", host, "eth0")
	var mac []byte
	host.Do(b, func() {
		if link, err := netlink.LinkByName("eth0"); err == nil {
			mac = link.Attrs().HardwareAddr
		}
	})
	bridge, err := netlink.LinkByName("br0")
	if err != nil || mac == nil {
		b.Fatalf("the load's network: %v", err)
	}
	addr := firstClient.Addr()
	for range n {
		neigh := &netlink.Neigh{LinkIndex: bridge.Attrs().Index, State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: mac}
		if err := netlink.NeighSet(neigh); err != nil {
			b.Fatalf("neighbour %s: %v", addr, err)
		}
		addr = addr.Next()
	}
	return host
}

// publicDir is a directory that everybody may read: nginx drops its workers to
// another user.
func publicDir(b *testing.B) string {
	top := b.TempDir()
	for dir := top; dir != "/" && dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			b.Fatal(err)
		}
	}
	return top
}

// startEcboot serves all machines on br0 until stop is called or the benchmark
// ends; config is what the file has besides.
func startEcboot(b *testing.B, config string) (p *os.Process, stop func()) {
	b.Helper()
	file := filepath.Join(b.TempDir(), "ecboot.toml")
	writeFile(b, file, fmt.Sprintf("[server]\nstate_dir = %q\n[segment.lan]\nbridge = \"br0\"\nunknown = \"boot\"\n%s", b.TempDir(), config))
	serve := exec.Command(repoFile(b, "ecboot"), "serve", "--config", file)
	stderr, err := serve.StderrPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := serve.Start(); err != nil {
		b.Fatal(err)
	}
	stop = stopper(b, serve)
	lines := bufio.NewScanner(stderr)
	awaitLine(b, lines, "serving")
	go func() {
		for lines.Scan() {
		}
	}()
	return serve.Process, stop
}

// startNginx serves dir/http as its manual says, with a worker for each core
// and room for a thousand clients at once.
func startNginx(b *testing.B, dir string, port int) (p *os.Process, stop func()) {
	b.Helper()
	conf := filepath.Join(dir, "nginx.conf")
	writeFile(b, conf, fmt.Sprintf(`daemon off; pid %[1]s/nginx.pid; worker_processes auto; error_log %[1]s/error.log;
events { worker_connections 4096; }
http { access_log %[1]s/access.log; sendfile on; tcp_nopush on; server { listen %[2]s:%[3]d backlog=4096; root %[1]s/http; } }
`, dir, serverAddr, port))
	p, stop = background(b, "nginx", "-c", conf)
	awaitTCP(b, fmt.Sprintf("%s:%d", serverAddr, port))
	return p, stop
}
