package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/internal/lan"
	"github.com/every-channel/ecboot/internal/nettest"
	"github.com/every-channel/ecboot/internal/timeline"
	"github.com/every-channel/ecboot/vmm"
)

// proxyGuests are the ways to boot beside another DHCP server. Each is a guest of
// its own, all booted at once.
var proxyGuests = []struct {
	firmware, mode string
	options        guestOptions
	machine        string // what the configuration says of it
	want           []timeline.Stage
}{
	{"BIOS", "QEMU's iPXE ROM, HTTP", guestOptions{}, "",
		[]timeline.Stage{"ipxe.discover", "ipxe.offer", timeline.Script}},
	{"BIOS", "iPXE ROM chainloads `undionly.kpxe` by TFTP, HTTP", guestOptions{}, "chainload = true\n",
		[]timeline.Stage{"ipxe.offer", timeline.TFTP, "ipxe.offer", timeline.Script}},
	{"UEFI x64", "PXE: `snponly.efi` by TFTP, HTTP", guestOptions{FirstStage: stagePXE}, "",
		[]timeline.Stage{"firmware.offer", "firmware.request", "firmware.ack", timeline.TFTP, "ipxe.offer", timeline.Script}},
	{"UEFI x64", "HTTP Boot: `snponly.efi` by HTTP, HTTP", guestOptions{FirstStage: stageHTTP}, "",
		[]timeline.Stage{"firmware.offer", timeline.HTTPBoot, "ipxe.offer", timeline.Script}},
}

// Real firmware takes its address from somebody else's DHCP server and what it
// boots from ecboot, which gives no address to anybody.
func TestProxyBeside(t *testing.T) {
	t.Parallel() // with others; its own guests are as many as the machine can take
	for i, program := range nettest.DHCPServers {
		t.Run(program, func(t *testing.T) {
			for _, g := range proxyGuests {
				compat(t, compatRow{"proxy", g.firmware + ", " + g.mode, "beside " + program, "ecboot's own system", "userland"})
			}
			needGuests(t)
			network := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 79, byte(i), 1}), 24)
			bridge := fmt.Sprintf("proxy%d", i)
			nettest.Bridge(t, bridge, network.String())
			server := nettest.NewHost(t, program)
			nettest.Connect(t, bridge, server, "eth0")
			server.ServeDHCP(t, program, "eth0", network)

			dir := t.TempDir()
			file := filepath.Join(dir, "ecboot.toml")
			text := fmt.Sprintf("[segment.lan]\nbridge = %q\nmode = \"proxy\"\n\n[server]\nstate_dir = %q\n", bridge, dir)
			macs := make([]boot.MAC, len(proxyGuests))
			for j, g := range proxyGuests {
				macs[j] = boot.MAC{0x52, 0x54, 0, 0, byte(i), byte(j)}
				text += fmt.Sprintf("\n[[machine]]\nmac = %q\nname = \"guest%d\"\n%s", macs[j], j, g.machine)
			}
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			s := start(t, "serve", "--config", file)
			s.until(t, "serving boot files")
			stop := map[boot.MAC]func(){}
			for j, g := range proxyGuests {
				stop[macs[j]] = startGuest(t, bridge, macs[j], g.options)
			}
			stages := s.untilUserland(t, stop)
			for j, g := range proxyGuests {
				var steps []timeline.Step
				for _, stage := range stages[macs[j]] {
					steps = append(steps, timeline.Step{Stage: stage})
				}
				wantStages(t, steps, append(g.want, timeline.Kernel, timeline.Initrd, timeline.Userland)...)
			}
		})
	}
}

// startGuest boots a machine on a bridge until it is stopped or the test ends.
func startGuest(t *testing.T, bridge string, mac boot.MAC, o guestOptions) (stop func()) {
	t.Helper()
	o.Guest = config.Default().Guest
	if o.FirstStage != "" {
		o.Firmware = "uefi"
	}
	spec, err := guestSpec(o, vmm.AccelTCG, 0, mac, "", "")
	if err != nil {
		t.Skip(err)
	}
	return startMachine(t, bridge, mac, spec)
}

// startMachine starts a machine with one NIC on a bridge until it is stopped or
// the test ends.
func startMachine(t *testing.T, bridge string, mac boot.MAC, spec vmm.Spec) (stop func()) {
	t.Helper()
	segment, err := lan.Open(lan.Config{Bridge: bridge, NoteDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { segment.Close() })
	tap, err := segment.Tap(mac)
	if err != nil {
		t.Fatal(err)
	}
	m, err := vmm.Start(t.Context(), spec, vmm.Options{Taps: []*os.File{tap.File}, Machine: mac.String(), SkipBanner: true})
	tap.File.Close()
	if err != nil {
		t.Fatal(err)
	}
	stop = func() {
		m.Kill()
		<-m.Done()
	}
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Logf("console of %s:\n%s", mac, strings.Join(m.Console().Tail(30), "\n"))
		}
	})
	return stop
}

// untilUserland reads what a server says until each machine has reported, and
// stops those that have. It returns the stages of each in their order.
func (s *started) untilUserland(t *testing.T, stop map[boot.MAC]func()) map[boot.MAC][]timeline.Stage {
	t.Helper()
	// Firmware that has found nothing asks on for ever: what is longer than
	// any boot ends it.
	tooLong := time.AfterFunc(8*time.Minute, func() { s.cmd.Process.Kill() })
	defer tooLong.Stop()
	stages := map[boot.MAC][]timeline.Stage{}
	for len(stop) > 0 {
		line, err := s.stderr.ReadString('\n')
		if err != nil {
			t.Fatalf("%d machines have not reported", len(stop))
		}
		t.Log(strings.TrimSpace(line))
		fields := strings.Fields(line) // 12.11 s MAC STAGE DETAIL…
		if len(fields) < 4 {
			continue
		}
		mac, err := boot.ParseMAC(fields[2])
		if err != nil {
			continue
		}
		stage := timeline.Stage(fields[3])
		stages[mac] = append(stages[mac], stage)
		if end := stop[mac]; end != nil && stage == timeline.Userland {
			end()
			delete(stop, mac)
		}
	}
	return stages
}
