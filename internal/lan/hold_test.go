package lan

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/internal/nettest"
)

func guestMACOf(i int) [6]byte { return [6]byte{0x52, 0x54, 0, 0x12, 0x40, byte(i)} }

// beGuest is what a virtual machine is to its port: a stack of its own, on eth0
// of the host that it runs on, whose frames go through the port.
func beGuest(args []string) error {
	eth0, err := openTap("eth0")
	if err != nil {
		return err
	}
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(args[0])
	if err != nil {
		return err
	}
	if err := netlink.LinkSetHardwareAddr(link, mac); err != nil {
		return err
	}
	if err := (change{Link: "eth0", Addr: netip.MustParsePrefix(args[1])}).addAddress(); err != nil {
		return err
	}
	if err := setUp("eth0"); err != nil {
		return err
	}
	port := os.NewFile(3, "port")
	for _, way := range [][2]*os.File{{port, eth0.File}, {eth0.File, port}} {
		go func() {
			for buf := make([]byte, 65536+64); ; {
				n, err := way[0].Read(buf)
				if err == nil {
					_, err = way[1].Write(buf[:n])
				}
				if errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) {
					return
				}
			}
		}()
	}
	io.Copy(io.Discard, os.NewFile(4, "life"))
	return nil
}

// startProcess is a process that lives until it is ended.
func startProcess(t *testing.T) (pid int, end func()) {
	t.Helper()
	cmd := exec.Command("cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end = func() {
		stdin.Close()
		cmd.Wait()
	}
	t.Cleanup(end)
	return cmd.Process.Pid, end
}

func TestSegmentIsLeftAndTakenOver(t *testing.T) {
	office(t)
	before := network(t)
	cfg := Config{Name: "office", Uplink: "nic0", NoteDir: t.TempDir()}
	first, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	guest, end := startProcess(t)
	if err := first.Hold(guest); err != nil {
		t.Fatal(err)
	}
	opened := network(t)
	if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "is open already") {
		t.Errorf("opened twice: %v", err)
	}
	if err := Sweep(cfg.NoteDir); err != nil {
		t.Fatal(err)
	}
	if err := first.Leave(); err != nil {
		t.Fatal(err)
	}
	if err := Sweep(cfg.NoteDir); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(opened, network(t)); diff != "" {
		t.Fatalf("leaving it has changed the network:\n%s", diff)
	}
	other := cfg
	other.NAT = true
	var held *HeldError
	if _, err := Open(other); !errors.As(err, &held) || !slices.Equal(held.PIDs, []int{guest}) || !strings.Contains(err.Error(), "(cat)") {
		t.Errorf("another configuration: %v", err)
	}
	second, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if diff := cmp.Diff(opened, network(t)); diff != "" {
		t.Errorf("taking it over has changed the network:\n%s", diff)
	}
	if first.Interface() != second.Interface() || first.Address() != second.Address() {
		t.Errorf("the segment is %s at %s", second.Interface(), second.Address())
	}
	end()
	if err := second.Leave(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, network(t)); diff != "" {
		t.Errorf("the network is not as it was:\n%s", diff)
	}
	if left, _ := filepath.Glob(cfg.NoteDir + "/*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// pinging pings from one host until the result is called, which fails the test
// if any answer is missing up to some that were asked for after that.
func pinging(t *testing.T, from *nettest.Host, target string) (stop func()) {
	t.Helper()
	cmd := from.Command(context.Background(), "ping", "-i0.01", target)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	answers := make(chan int, 1<<16)
	go func() {
		defer close(answers)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var n int
			_, rest, _ := strings.Cut(lines.Text(), "icmp_seq=")
			if _, err := fmt.Sscan(rest, &n); err == nil {
				answers <- n
			}
		}
	}()
	return func() {
		t.Helper()
		// So many are not on their way at once.
		const more = 50
		last, enough := 0, len(answers)+more
		late := time.After(time.Minute)
		for range enough {
			select {
			case n := <-answers:
				if n != last+1 {
					t.Errorf("ping %s: answer %d follows %d", target, n, last)
					return
				}
				last = n
			case <-late:
				t.Errorf("ping %s: no answer follows %d", target, last)
				return
			}
		}
		cmd.Process.Kill()
	}
}

// A guest's traffic goes on, whatever becomes of its supervisors.
func TestGuestsOutliveTheirSupervisors(t *testing.T) {
	for name, cfg := range map[string]Config{
		"bridge": {Name: "office", Uplink: "nic0"},
		"parent": {Name: "office", Parent: "nic0", Address: netip.MustParsePrefix("10.79.0.2/24")},
	} {
		t.Run(name, func(t *testing.T) {
			router := office(t)
			before := network(t)
			cfg.NoteDir = t.TempDir()
			life, end, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer end.Close()
			sc := script{Config: cfg}
			hosts := []*nettest.Host{nettest.NewHost(t, "guest0"), nettest.NewHost(t, "guest1")}
			for i, h := range hosts {
				mac := guestMACOf(i)
				cmd, err := h.Self(context.Background(), "guest", net.HardwareAddr(mac[:]).String(), fmt.Sprintf("10.79.0.%d/24", 50+i))
				if err != nil {
					t.Fatal(err)
				}
				sc.Guests = append(sc.Guests, append([]string{"env", cmd.Env[len(cmd.Env)-1]}, cmd.Args...))
			}
			first := sc.start(t, life)
			life.Close()
			if first.said != "open" {
				t.Fatal(first.said)
			}
			opened := network(t)
			for _, h := range hosts {
				await(t, "the start of "+h.Name, func() bool { return reaches(h, "10.79.0.1") })
			}
			session := connect(t, hosts[1], hosts[0], "10.79.0.50")
			session("before")
			between := pinging(t, hosts[1], "10.79.0.50")
			neighbour := pinging(t, router, "10.79.0.51")
			host := pinging(t, hosts[0], "10.79.0.2")

			first.cmd.Process.Kill()
			first.cmd.Process.Wait()
			second := script{Config: cfg, Hold: []int{os.Getpid()}}.start(t)
			if second.said != "open" {
				t.Fatal(second.said)
			}
			first.kill() // its watchdog ends
			watchdog, err := os.FindProcess(second.watchdog)
			if err != nil {
				t.Fatal(err)
			}
			watchdog.Kill()
			second.kill()
			third := script{Config: cfg, Hold: []int{os.Getpid()}, Leave: true}.start(t)
			if third.said != "left" {
				t.Fatal(third.said)
			}
			s, err := Open(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			third.kill()
			if diff := cmp.Diff(opened, network(t)); diff != "" {
				t.Errorf("the successors have changed the network:\n%s", diff)
			}
			for i := range hosts {
				if port := fmt.Sprintf("guest%d", i); !s.Plugged(port) {
					t.Errorf("%s is not plugged", port)
				}
			}
			session("after")
			between()
			neighbour()
			host()
			if len(s.Warnings()) > 0 && strings.Contains(strings.Join(s.Warnings(), " "), "somebody") {
				t.Errorf("warnings: %s", s.Warnings())
			}
			end.Close()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			await(t, "the end of the guests", func() bool { return cmp.Equal(before, network(t)) })
		})
	}
}

// Wherever it is killed, a supervisor that takes a segment over, holds or leaves
// it changes nothing for a guest, and the last one to watch puts it back.
func TestKilledWithAGuestAtEachStep(t *testing.T) {
	office(t)
	before := network(t)
	for _, from := range []string{"open", "hold", "leave"} {
		t.Run(from, func(t *testing.T) {
			for stop := 0; ; stop++ {
				cfg := Config{Name: "office", Uplink: "nic0", NoteDir: t.TempDir()}
				guest, end := startProcess(t)
				first := script{Config: cfg, Hold: []int{guest}}.start(t)
				first.cmd.Process.Kill()
				first.cmd.Process.Wait()
				opened := network(t)
				another, endAnother := startProcess(t)
				second := script{Config: cfg, Hold: []int{another}, Leave: true, Stop: stop, From: from}.start(t)
				if first.said != "open" || second.said != "stopped" && second.said != "left" {
					t.Fatalf("step %d: %s, %s", stop, first.said, second.said)
				}
				second.cmd.Process.Kill()
				second.cmd.Process.Wait()
				if diff := cmp.Diff(opened, network(t)); diff != "" {
					t.Fatalf("killed at step %d: the network has changed:\n%s", stop, diff)
				}
				end()
				endAnother()
				first.kill()
				second.kill()
				if diff := cmp.Diff(before, network(t)); diff != "" {
					t.Fatalf("killed at step %d: the network is not as it was:\n%s\n%s%s", stop, diff, first.stderr, second.stderr)
				}
				if left, _ := filepath.Glob(cfg.NoteDir + "/*"); len(left) > 0 {
					t.Errorf("killed at step %d: left behind: %v", stop, left)
				}
				if second.said == "left" {
					t.Logf("killed at each of %d steps", stop)
					return
				}
			}
		})
	}
}

func TestAnotherConfigurationOfAnUnheldSegment(t *testing.T) {
	office(t)
	before := network(t)
	cfg := Config{Name: "office", Uplink: "nic0", NoteDir: t.TempDir()}
	guest, end := startProcess(t)
	first := script{Config: cfg, Hold: []int{guest}}.start(t)
	watchdog, err := os.FindProcess(first.watchdog)
	if err != nil {
		t.Fatal(err)
	}
	watchdog.Kill()
	first.kill()
	opened := network(t)
	if err := Sweep(cfg.NoteDir); err != nil {
		t.Fatal(err)
	}
	end()
	if err := Sweep(cfg.NoteDir, "lab", cfg.Name); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(opened, network(t)); diff != "" {
		t.Fatalf("what was to stay was undone:\n%s", diff)
	}
	cfg = Config{Name: "office", Parent: "nic0", Address: netip.MustParsePrefix("10.79.0.2/24"), NoteDir: cfg.NoteDir}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	wantNoLink(t, "ecbr-office")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, network(t)); diff != "" {
		t.Errorf("the network is not as it was:\n%s", diff)
	}
}

func TestSuccessorOnABridgeWithAnotherAddress(t *testing.T) {
	office(t)
	run(t, "ip", "-4", "addr", "flush", "dev", "nic0")
	nettest.Bridge(t, "br0", "10.1.0.1/16")
	cfg := Config{Bridge: "br0", Uplink: "nic0", NoteDir: t.TempDir()}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Hold(os.Getpid()); err != nil {
		t.Fatal(err)
	}
	if err := s.Leave(); err != nil {
		t.Fatal(err)
	}
	run(t, "ip", "addr", "add", "10.2.0.1/16", "dev", "br0")
	run(t, "ip", "addr", "del", "10.1.0.1/16", "dev", "br0")
	if s, err = Open(cfg); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Address().String() != "10.2.0.1/16" || !strings.Contains(strings.Join(s.Warnings(), " "), "no longer the address 10.1.0.1/16") {
		t.Errorf("the servers are at %s: %s", s.Address(), s.Warnings())
	}
}

// Guests still have one another.
func TestSuccessorWithoutItsNIC(t *testing.T) {
	office(t)
	cfg := Config{Name: "office", Uplink: "nic0", NoteDir: t.TempDir()}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Hold(os.Getpid()); err != nil {
		t.Fatal(err)
	}
	if err := s.Leave(); err != nil {
		t.Fatal(err)
	}
	run(t, "ip", "link", "del", "nic0")
	if s, err = Open(cfg); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Interface() != "ecbr-office" || !strings.Contains(strings.Join(s.Warnings(), " "), "nic0: Link not found") {
		t.Errorf("the segment is %s: %s", s.Interface(), s.Warnings())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wantNoLink(t, "ecbr-office")
}

// Half of an undoing is undone, whoever holds the segment.
func TestKilledWhileClosing(t *testing.T) {
	office(t)
	before := network(t)
	cfg := Config{Name: "office", Uplink: "nic0", NoteDir: t.TempDir()}
	guest, _ := startProcess(t)
	first := script{Config: cfg, Hold: []int{guest}}.start(t)
	n, err := readNote(noteFile(cfg.NoteDir, cfg.Name))
	if err != nil || n == nil {
		t.Fatalf("the note is %v, %v", n, err)
	}
	// As Close begins.
	n.Open = nil
	if err := n.write(noteFile(cfg.NoteDir, cfg.Name)); err != nil {
		t.Fatal(err)
	}
	first.kill()
	if diff := cmp.Diff(before, network(t)); diff != "" {
		t.Errorf("the network is not as it was:\n%s", diff)
	}
}

// What somebody has begun to undo and could not complete is not continued: a
// setting that is as it was before is not made again.
func TestHalfUndoneIsNotContinued(t *testing.T) {
	path := noteFile(t.TempDir(), "")
	n := note{Boot: bootID(), Made: []change{{Op: opAddress, Link: "lo"}}, Open: &opened{Link: "lo"}} // no address: undoing that fails
	for name, undo := range map[string]func() error{
		"sweep":    func() error { return sweepNote(path) },
		"takeover": func() error { _, err := claim(path, Config{Bridge: "br0"}, nil); return err },
		"watchdog": func() error { _, _, err := standIn(path, n.Watchdog); return err },
	} {
		t.Run(name, func(t *testing.T) {
			if err := n.write(path); err != nil {
				t.Fatal(err)
			}
			if err := undo(); err == nil {
				t.Fatal("it was undone")
			}
			if left, err := readNote(path); err != nil || left == nil || left.Open != nil || len(left.Made) != 1 {
				t.Errorf("%+v, %v", left, err)
			}
		})
	}
}

func TestAddressesFollowWhileNobodyServes(t *testing.T) {
	office(t)
	before := network(t)
	cfg := Config{Name: "office", Uplink: "nic0", NoteDir: t.TempDir()}
	guest, end := startProcess(t)
	first := script{Config: cfg, Hold: []int{guest}, Leave: true}.start(t)
	first.cmd.Process.Kill()
	first.cmd.Process.Wait()
	run(t, "ip", strings.Fields("addr add 10.79.0.77/24 dev nic0")...)
	await(t, "the move to the bridge", func() bool {
		return strings.Contains(run(t, "ip", "addr", "show", "dev", "ecbr-office"), "10.79.0.77/24") && run(t, "ip", "-4", "addr", "show", "dev", "nic0") == ""
	})
	end()
	first.kill()
	if have := run(t, "ip", "addr", "show", "dev", "nic0"); !strings.Contains(have, "10.79.0.77/24") {
		t.Errorf("the NIC has not got its new address back: %s", have)
	}
	run(t, "ip", strings.Fields("addr del 10.79.0.77/24 dev nic0")...)
	if diff := cmp.Diff(before, network(t)); diff != "" {
		t.Errorf("the network is not as it was:\n%s", diff)
	}
}

func TestAProcessIsNoOtherOfItsNumber(t *testing.T) {
	me, err := processOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !me.alive() {
		t.Error("this process does not live")
	}
	earlier := me
	earlier.Start--
	if earlier.alive() || (process{}).alive() {
		t.Error("one that has ended lives")
	}
	// One that has ended and was not waited for.
	cmd := exec.Command("cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cat, err := processOf(cmd.Process.Pid)
	if err != nil || !cat.alive() {
		t.Errorf("%v, %v", cat, err)
	}
	stdin.Close()
	await(t, "its end", func() bool { return !cat.alive() })
	cmd.Wait()
	if _, err := processOf(cmd.Process.Pid); !errors.Is(err, unix.ESRCH) {
		t.Errorf("got %v", err)
	}
}
