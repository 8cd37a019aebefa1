package lan

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/every-channel/ecboot/internal/nettest"
)

// A victim opens a segment, perhaps runs guests on it and leaves it, and stops on
// the way, to be killed there.
type script struct {
	Config Config
	Guests [][]string // commands, whose file 3 is a port and file 4 the victim's
	Hold   []int      // processes
	Leave  bool
	// Stop is the step at which it stops. Steps are counted from opening, or
	// from holding or leaving.
	Stop int
	From string
}

const victimVar = "ECBOOT_LAN_VICTIM" // its script

func beVictim() {
	var sc script
	err := json.Unmarshal([]byte(os.Getenv(victimVar)), &sc)
	if err != nil {
		panic(err)
	}
	step, counts := 0, false
	from := func(phase string) { counts = counts || sc.From == phase }
	sc.Config.pause = func() {
		if !counts {
			return
		}
		if step == sc.Stop {
			fmt.Println("stopped")
			select {}
		}
		step++
	}
	said, err := sc.play(from)
	if err != nil {
		said = err.Error()
	}
	fmt.Println(said)
	io.Copy(io.Discard, os.Stdin)
}

func (sc script) play(from func(phase string)) (string, error) {
	from("open")
	s, err := Open(sc.Config)
	if err != nil {
		return "", err
	}
	if len(sc.Hold)+len(sc.Guests) == 0 {
		if _, err := s.Tap(guestMAC); err != nil {
			return "", err
		}
	}
	from("hold")
	for i, args := range sc.Guests {
		port, err := s.Port(PortConfig{Name: fmt.Sprintf("guest%d", i), MAC: guestMACOf(i)})
		if err != nil {
			return "", err
		}
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), victimVar+"=")
		cmd.ExtraFiles = []*os.File{port.File, os.NewFile(3, "life")}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			return "", err
		}
		port.File.Close()
		sc.Hold = append(sc.Hold, cmd.Process.Pid)
	}
	for _, pid := range sc.Hold {
		if err := s.Hold(pid); err != nil {
			return "", err
		}
	}
	from("leave")
	if sc.Leave {
		return "left", s.Leave()
	}
	return "open", nil
}

type victim struct {
	cmd      *exec.Cmd
	said     string        // stopped, open, left or an error
	stderr   *bytes.Buffer // its watchdog's too
	watchdog int
}

// startVictim returns when it has stopped.
func startVictim(t *testing.T, cfg Config, stop int) *victim {
	t.Helper()
	return script{Config: cfg, Stop: stop, From: "open"}.start(t)
}

// start starts a victim. It and its guests have files.
func (sc script) start(t *testing.T, files ...*os.File) *victim {
	t.Helper()
	text, err := json.Marshal(sc)
	if err != nil {
		t.Fatal(err)
	}
	v := &victim{cmd: exec.Command("/proc/self/exe"), stderr: &bytes.Buffer{}}
	v.cmd.Env = append(os.Environ(), victimVar+"="+string(text))
	v.cmd.Stderr = v.stderr
	v.cmd.ExtraFiles = files
	stdout, err := v.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdin, err := v.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		v.cmd.Process.Kill()
		v.cmd.Wait()
	})
	line, _ := bufio.NewReader(stdout).ReadString('\n')
	v.said = strings.TrimSpace(line)
	children, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", v.cmd.Process.Pid))
	for _, file := range children {
		b, _ := os.ReadFile(file)
		for _, field := range strings.Fields(string(b)) {
			pid, _ := strconv.Atoi(field)
			if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); bytes.HasPrefix(name, []byte("ecboot-watchdog")) {
				v.watchdog = pid
			}
		}
	}
	return v
}

// kill ends the victim the hard way and returns when its watchdog, which holds
// its standard error, has ended too.
func (v *victim) kill() {
	v.cmd.Process.Kill()
	v.cmd.Wait()
}

// network is all that a segment must leave as it was.
func network(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, args := range []string{"-d link", "addr", "route show table all", "-6 route show table all"} {
		// In lines, of which the order means nothing.
		lines := strings.Split(run(t, "ip", strings.Fields("-o "+args)...), "\n")
		slices.Sort(lines)
		fmt.Fprintln(&all, strings.Join(lines, "\n"))
	}
	for _, key := range []string{"ipv4/conf/nic0/forwarding", "ipv6/conf/nic0/disable_ipv6", "ipv4/conf/nic0/arp_ignore", "ipv4/conf/nic0/arp_announce"} {
		value, _ := readSetting(key)
		fmt.Fprintln(&all, key, value)
	}
	if out, err := exec.Command("nft", "list", "ruleset").CombinedOutput(); err == nil {
		all.Write(out)
	}
	return bridgeTimer.ReplaceAllString(all.String(), "")
}

// bridgeTimer runs all the time.
var bridgeTimer = regexp.MustCompile(` (hello|tcn|topology_change|gc)_timer +[0-9.]+`)

// office is a NIC with all that a machine in an office may have, and its router.
func office(t *testing.T) *nettest.Host {
	t.Helper()
	nettest.NeedRoot(t)
	nettest.Need(t, "ip", "ping")
	router := nettest.NewHost(t, "router")
	// Without duplicate address detection addresses are there at once.
	if err := writeSetting("ipv6/conf/default/accept_dad", "0"); err != nil {
		t.Fatal(err)
	}
	router.Run(t, "sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad")
	nettest.Wire(t, "nic0", router, "lan0")
	router.Run(t, "ip", "addr", "add", "10.79.0.1/24", "dev", "lan0")
	router.Run(t, "ip", "addr", "add", "2001:db8:79::1/64", "dev", "lan0", "nodad")
	for _, args := range []string{
		"addr add 10.79.0.2/24 brd 10.79.0.255 dev nic0",
		"addr add 10.79.0.3/24 dev nic0 label nic0:old",
		"addr add 192.0.2.5/32 dev nic0 metric 7",
		"addr add 2001:db8:79::2/64 dev nic0 nodad",
		"route add default via 10.79.0.1 dev nic0 metric 100",
		"route add 10.80.0.0/16 via 10.79.0.1 dev nic0 src 10.79.0.3 mtu 1400",
		"route add 10.81.0.0/16 via 10.79.0.1 table 100",
		"route add 10.82.0.0/16 nexthop via 10.79.0.1 weight 2 nexthop via 10.79.0.9 weight 1",
		"route add 10.83.0.1 dev nic0 scope link",
		"-6 route add default via 2001:db8:79::1 dev nic0 metric 50",
		"-6 route add 2001:db8:80::/48 via 2001:db8:79::1 dev nic0 table 100",
	} {
		run(t, "ip", strings.Fields(args)...)
	}
	settle(t, "nic0", 2)
	return router
}

// settle waits until the kernel, which does that on its own time, has made all
// of a link's IPv6 addresses usable, and their local routes.
func settle(t *testing.T, link string, addresses int) {
	t.Helper()
	for range 2000 {
		tentative := run(t, "ip", "-6", "addr", "show", "dev", link, "tentative")
		local := run(t, "ip", "-6", "route", "show", "table", "local", "dev", link)
		if tentative == "" && strings.Count(local, "local ") >= addresses {
			return
		}
	}
	t.Fatalf("the IPv6 addresses of %s never became usable", link)
}

func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestUplinkTakesEverythingToTheBridgeAndBack(t *testing.T) {
	router := office(t)
	session := connect(t, router, nil, "10.79.0.2")
	before := network(t)
	s, err := Open(Config{Name: "office", Uplink: "nic0", NoteDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	session("while the bridge is there")
	if s.Interface() != "ecbr-office" || s.Address().String() != "10.79.0.2/24" {
		t.Errorf("the segment is %s at %s", s.Interface(), s.Address())
	}
	// Nobody has to be told: the machine's hardware address is the same.
	router.Run(t, "ping", "-c1", "-W5", "10.79.0.2")
	router.Run(t, "ping", "-c1", "-W5", "2001:db8:79::2")
	if out := run(t, "ip", "addr", "show", "dev", "nic0"); strings.Contains(out, "inet") {
		t.Errorf("the port still has addresses: %s", out)
	}
	have := strings.ReplaceAll(run(t, "ip", "route", "show", "table", "all", "dev", "ecbr-office"), "  ", " ")
	for _, want := range []string{
		"default via 10.79.0.1 metric 100", "10.80.0.0/16 via 10.79.0.1 src 10.79.0.3 mtu 1400",
		"10.81.0.0/16 via 10.79.0.1 table 100", "10.83.0.1 scope link",
	} {
		if !strings.Contains(have, want) {
			t.Errorf("the bridge lacks the route %q: %s", want, have)
		}
	}
	if have := run(t, "ip", "route", "show", "10.82.0.0/16"); strings.Count(have, "dev ecbr-office") != 2 {
		t.Errorf("the multipath route is %s", have)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	session("after the end")
	if diff := cmp.Diff(before, network(t)); diff != "" {
		t.Errorf("the network is not as it was:\n%s", diff)
	}
}

// connect opens a TCP connection from another host to an address of this one, or
// of the host on, as somebody's ssh session is; the result sends a line through
// it and back.
func connect(t *testing.T, from, on *nettest.Host, to string) func(line string) {
	t.Helper()
	var listener net.Listener
	var err error
	listen := func() { listener, err = net.Listen("tcp4", to+":0") }
	if on == nil {
		listen()
	} else {
		on.Do(t, listen)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		if conn, err := listener.Accept(); err == nil {
			io.Copy(conn, conn)
			conn.Close()
		}
	}()
	var conn net.Conn
	from.Do(t, func() { conn, err = net.Dial("tcp4", listener.Addr().String()) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	answers := bufio.NewReader(conn)
	return func(line string) {
		t.Helper()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintln(conn, line)
		if got, err := answers.ReadString('\n'); err != nil || got != line+"\n" {
			t.Errorf("the session got %q, %v, want %q", got, err, line)
		}
	}
}

func TestKilledAtEachStepLeavesTheNetworkAsItWas(t *testing.T) {
	for name, cfg := range map[string]Config{
		"uplink": {Uplink: "nic0", Address: private},
		"parent": {Parent: "nic0", Address: netip.MustParsePrefix("10.79.0.2/24")},
		"nat":    {Name: "lab", Bridge: "br8", Address: private, NAT: true},
	} {
		t.Run(name, func(t *testing.T) {
			office(t)
			before := network(t)
			for stop := 0; ; stop++ {
				cfg.NoteDir = t.TempDir()
				v := startVictim(t, cfg, stop)
				if v.said != "stopped" && v.said != "open" {
					t.Fatalf("step %d: %s", stop, v.said)
				}
				v.kill()
				if diff := cmp.Diff(before, network(t)); diff != "" {
					t.Fatalf("killed at step %d: the network is not as it was:\n%s\n%s", stop, diff, v.stderr)
				}
				if left, _ := filepath.Glob(cfg.NoteDir + "/*"); len(left) > 0 {
					t.Errorf("killed at step %d: left behind: %v", stop, left)
				}
				if v.said == "open" {
					t.Logf("killed at each of %d steps", stop)
					return
				}
			}
		})
	}
}

func TestSweepWhenTheWatchdogWasKilledToo(t *testing.T) {
	office(t)
	before := network(t)
	for stop := 0; ; stop++ {
		dir := t.TempDir()
		v := startVictim(t, Config{Uplink: "nic0", NoteDir: dir}, stop)
		if v.watchdog == 0 {
			t.Fatalf("step %d: %s, and no watchdog", stop, v.said)
		}
		watchdog, err := os.FindProcess(v.watchdog)
		if err != nil {
			t.Fatal(err)
		}
		watchdog.Kill()
		v.kill()
		if v.said == "open" && network(t) == before {
			t.Fatal("nothing was left to sweep")
		}
		for range 2 {
			if err := Sweep(dir); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(before, network(t)); diff != "" {
			t.Fatalf("killed at step %d: the network is not as it was:\n%s", stop, diff)
		}
		if v.said == "open" {
			return
		}
	}
}

func TestSweepAfterTheMachineWasStartedAgain(t *testing.T) {
	nettest.NeedRoot(t)
	nettest.Bridge(t, "br0", "10.1.0.1/16")
	dir := t.TempDir()
	// Such a note may lie where /run is kept, as in a container.
	text := `{"boot":"another","made":[{"op":"address","link":"br0","addr":"10.1.0.1/16"}]}`
	if err := os.WriteFile(noteFile(dir, "old"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Sweep(dir); err != nil {
		t.Fatal(err)
	}
	if have, err := AddressOf("br0"); err != nil || !have.IsValid() {
		t.Errorf("the note of another start was carried out: %s, %v", have, err)
	}
	if left, _ := filepath.Glob(dir + "/*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
