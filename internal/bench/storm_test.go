package bench

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/nettest"
	"github.com/every-channel/ecboot/internal/sim"
)

// The rack of the storm. Its files are smaller than a real kernel and initrd,
// which all machines together could not hash on two cores in the time that is
// to be measured.
const (
	stormMachines = 500
	stormKernel   = 2 << 20
	stormInitrd   = 1 << 20
)

// BenchmarkStorm switches 500 simulated machines on at once: DHCP, TFTP of the
// boot program, DHCP again, script, kernel and initrd, from one ecboot and from
// dnsmasq and nginx. It measures the time until the last machine has
// everything, and the most memory that the servers ever had.
func BenchmarkStorm(b *testing.B) {
	nettest.NeedRoot(b)
	nettest.Need(b, "dnsmasq", "nginx", "ip")
	first, last := firstClient.Addr(), netip.MustParseAddr("10.77.4.255")
	host := loadNetwork(b, 1024) // all of the pool
	dir := publicDir(b)
	rack := sim.Rack{Link: "eth0", Machines: stormMachines, Want: map[string]string{}, Limit: 3 * time.Minute}
	put := func(name string, data []byte) {
		rack.Want[filepath.Base(name)] = fmt.Sprintf("%x", sha256.Sum256(data))
		writeFile(b, filepath.Join(dir, name), string(data))
	}
	nbp, err := os.ReadFile("/usr/lib/ipxe/snponly.efi")
	if err != nil {
		b.Fatal(err)
	}
	put("tftp/snponly.efi", nbp)
	put("http/kernel", bytes.Repeat([]byte("kernel. "), stormKernel/8))
	put("http/initrd", bytes.Repeat([]byte("initrd. "), stormInitrd/8))
	writeFile(b, filepath.Join(dir, "http/boot.ipxe"), strings.ReplaceAll(strings.ReplaceAll(usualScript, "vmlinuz", "kernel"), "10.77.0.1", serverAddr.String()))

	contenders := []struct {
		name  string
		start func() (pids []int, stop func())
	}{
		{"ecboot", func() ([]int, func()) {
			p, stop := startEcboot(b, fmt.Sprintf("pool = \"%s-%s\"\n[profile.default]\nkernel = %q\ninitrds = [%q]\ncmdline = %q\n",
				first, last, filepath.Join(dir, "http/kernel"), filepath.Join(dir, "http/initrd"), cmdline))
			return []int{p.Pid}, stop
		}},
		{"dnsmasq + nginx", func() ([]int, func()) {
			leases := filepath.Join(b.TempDir(), "leases")
			dnsmasq, stopDnsmasq := background(b, "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface=br0", "--bind-interfaces", "--no-ping",
				fmt.Sprintf("--dhcp-range=%s,%s,255.255.0.0,1h", first, last), "--dhcp-leasefile="+leases, "--dhcp-lease-max=2000",
				"--enable-tftp", "--tftp-root="+dir+"/tftp", "--tftp-max=2000", "--user=root", "--dhcp-userclass=set:ipxe,iPXE",
				"--dhcp-boot=tag:!ipxe,snponly.efi", "--dhcp-boot=tag:ipxe,http://"+serverAddr.String()+"/boot.ipxe")
			nginx, stopNginx := startNginx(b, dir, 80)
			return append(childrenOf(b, nginx.Pid), nginx.Pid, dnsmasq.Pid), func() { stopDnsmasq(); stopNginx() }
		}},
	}
	seconds, megabytes := make([][]float64, 2), make([][]float64, 2)
	for range rounds(b) {
		for i, c := range contenders {
			pids, stop := c.start()
			r, err := rack.BootOn(b.Context(), host)
			if err != nil {
				b.Fatal(err)
			}
			var peak int64
			for _, pid := range pids {
				peak += peakRSS(b, pid)
			}
			stop()
			all := r.Seconds[sim.Stages[len(sim.Stages)-1]]
			seconds[i], megabytes[i] = append(seconds[i], all), append(megabytes[i], float64(peak)/1e6)
			fmt.Printf("  %s:", c.name)
			for _, stage := range sim.Stages {
				fmt.Printf(" %s %.2f s,", stage, r.Seconds[stage])
			}
			fmt.Printf(" %d repeats, %.1f MB\n", r.Retries, float64(peak)/1e6)
		}
	}
	report("storm-500-time", median(seconds[0]), median(seconds[1]), "s", contenders[1].name, 1)
	fmt.Printf("bench storm-500-memory ours=%.1fMB peer=%.1fMB ratio=%.2f (peer: %s)\n",
		median(megabytes[0]), median(megabytes[1]), median(megabytes[0])/median(megabytes[1]), contenders[1].name)
}

// childrenOf are the processes that a process with one thread has started.
func childrenOf(b *testing.B, pid int) (pids []int) {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	if err != nil {
		b.Fatal(err)
	}
	for f := range strings.FieldsSeq(string(text)) {
		n, err := strconv.Atoi(f)
		if err != nil {
			b.Fatal(err)
		}
		pids = append(pids, n)
	}
	return pids
}
