package bench

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/every-channel/ecboot/internal/nettest"
)

// BenchmarkServers measures the memory of the DHCP, TFTP and HTTP servers, one
// process, after they have booted a machine.
func BenchmarkServers(b *testing.B) {
	nettest.NeedRoot(b)
	nettest.Need(b, "qemu-system-x86_64", "ip")
	nettest.Bridge(b, "br0", "10.77.0.1/24")
	serve, _ := startEcboot(b, "")
	onTap(b, func(nic []string) { qemuSeconds(b, nic...) })
	fmt.Printf("bench servers-rss ours=%.1fMB want<=40MB\n", float64(rss(b, serve.Pid))/1e6)
}

func awaitLine(b *testing.B, lines *bufio.Scanner, text string) {
	b.Helper()
	var seen []string
	for lines.Scan() {
		seen = append(seen, lines.Text())
		if strings.Contains(lines.Text(), text) {
			return
		}
	}
	b.Fatalf("ecboot ended without saying %q:\n%s", text, strings.Join(seen, "\n"))
}

// rss is the resident memory of a process in bytes.
func rss(b *testing.B, pid int) int64 { return memory(b, pid, "VmRSS:") }

// peakRSS is the most that it ever was.
func peakRSS(b *testing.B, pid int) int64 { return memory(b, pid, "VmHWM:") }

// memory reads a line of /proc/PID/status, in bytes.
func memory(b *testing.B, pid int, name string) int64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib << 10
		}
	}
	b.Fatalf("no %s in /proc", name)
	return 0
}
