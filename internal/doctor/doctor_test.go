package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// machine is a healthy Env on a fake tree, to be spoilt by a test.
type machine struct {
	Env
	t       *testing.T
	outputs map[string]string // by the command; a missing one fails
}

func newMachine(t *testing.T) *machine {
	m := &machine{t: t, outputs: map[string]string{
		"unshare --net -- true":                 "",
		"unshare --map-root-user --net -- true": "",
		"/bin/qemu-system-x86_64 --version":     "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright",
		"/bin/go env GOVERSION":                 "go1.26.8\n",
		"iptables -S FORWARD":                   "-P FORWARD ACCEPT\n",
	}}
	m.Env = Env{
		Root:     t.TempDir(),
		LookPath: func(program string) (string, error) { return "/bin/" + program, nil },
		Output: func(_ context.Context, program string, args ...string) (string, error) {
			command := strings.Join(append([]string{program}, args...), " ")
			out, ok := m.outputs[command]
			if !ok {
				return "", &exec.Error{Name: program, Err: exec.ErrNotFound}
			}
			if why, bad := strings.CutPrefix(out, "FAIL "); bad {
				return why, errors.New("exit status 1")
			}
			return out, nil
		},
		Space:    func(string) (uint64, error) { return 100 << 30, nil },
		StateDir: "/var/lib/ecboot",
		CacheDir: "/var/cache/ecboot",
		KVM:      func(context.Context) (bool, string) { return true, "" },
		Firmware: func() (string, error) { return "OVMF", nil },
		Images:   func() (string, error) { return "all there", nil },
	}
	m.OperatorGroup = "ecboot"
	m.file("/etc/passwd", "root:x:0:0::/root:/bin/sh\necboot-guest:x:990:990::/:/usr/sbin/nologin\n")
	m.file("/etc/group", "root:x:0:\necboot:x:991:\n")
	m.file("/dev/net/tun", "")
	m.file("/dev/kvm", "")
	for _, table := range []string{"udp", "tcp", "udp6", "tcp6"} {
		m.file("/proc/net/"+table, socketHeader)
	}
	return m
}

func (m *machine) file(path, text string) {
	m.t.Helper()
	path = m.Root + path
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// lack takes a program out of PATH.
func (m *machine) lack(program string) {
	look := m.LookPath
	m.LookPath = func(p string) (string, error) {
		if p == program {
			return "", exec.ErrNotFound
		}
		return look(p)
	}
}

func (m *machine) process(pid int, comm, cgroup string, inodes ...int) {
	m.t.Helper()
	dir := fmt.Sprintf("/proc/%d", pid)
	m.file(dir+"/comm", comm+"\n")
	m.file(dir+"/cgroup", cgroup)
	m.file(dir+"/fd/0", "")
	for i, inode := range inodes {
		if err := os.Symlink(fmt.Sprintf("socket:[%d]", inode), fmt.Sprintf("%s%s/fd/%d", m.Root, dir, i+3)); err != nil {
			m.t.Fatal(err)
		}
	}
}

const socketHeader = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n"

// Lines as a little-endian kernel prints them.
const (
	udp67any      = "  103: 00000000:0043 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1234 2 0000000000000000 0\n"
	udp67other    = "  103: 0100A8C0:0043 00000000:0000 07 00000000:00000000 00:00000000 00000000   105        0 1235 2 0000000000000000 0\n"
	udp69loopback = "  105: 0100007F:0045 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1236 2 0000000000000000 0\n"
	tcp80listen   = "    0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000    33        0 1237 1 0000000000000000 100 0 0 10 0\n"
	tcp80open     = "    1: 0100A8C0:0050 0200A8C0:D431 01 00000000:00000000 00:00000000 00000000     0        0 1238 1 0000000000000000 20 4 30 10 -1\n"
)

func (m *machine) check(id string) Check {
	m.t.Helper()
	for _, c := range Run(context.Background(), m.Env) {
		if c.ID == id {
			return c
		}
	}
	m.t.Fatalf("no check %q", id)
	return Check{}
}

// segment gives the machine a segment of which this is to be said.
func (m *machine) segment(obstacles, warnings []string, err error) {
	m.Segments = []Segment{{Name: "lab", Link: "eth0", Look: func() ([]string, []string, error) { return obstacles, warnings, err }}}
}

func TestHealthy(t *testing.T) {
	m := newMachine(t)
	checks := Run(context.Background(), m.Env)
	ids := map[string]bool{}
	for _, c := range checks {
		if c.Status != OK || c.Mend != "" || c.Found == "" || c.Title == "" || len(c.Needs) == 0 || ids[c.ID] {
			t.Errorf("%+v", c)
		}
		ids[c.ID] = true
	}
	if got := Worst(checks); got != OK {
		t.Errorf("worst: %s", got)
	}
}

func TestChecks(t *testing.T) {
	for _, tt := range []struct {
		name        string
		spoil       func(*machine)
		id          string
		want        Status
		found, mend string // parts
	}{
		{"user with namespaces", func(m *machine) { m.UID = 1000 }, "rights", OK, "user 1000; a private segment works", ""},
		{"root in a container", func(m *machine) {
			m.outputs["unshare --net -- true"] = "FAIL unshare: unshare failed: Operation not permitted\n"
		},
			"rights", Fail, "root; no network namespace can be made: unshare: unshare failed: Operation not permitted", "CAP_SYS_ADMIN"},
		{"user without namespaces", func(m *machine) {
			m.UID = 1000
			m.outputs["unshare --map-root-user --net -- true"] = "FAIL "
		}, "rights", Fail, "exit status 1", "run as root"},
		{"AppArmor", func(m *machine) {
			m.UID = 1000
			m.outputs["unshare --map-root-user --net -- true"] = "FAIL denied"
			m.file("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n")
		}, "rights", Fail, "denied", "sysctl kernel.apparmor_restrict_unprivileged_userns=0"},
		{"no unshare", func(m *machine) { delete(m.outputs, "unshare --net -- true") }, "rights", Fail, "unshare is not in PATH", "util-linux"},

		{"no tun", func(m *machine) { os.Remove(m.Root + "/dev/net/tun") }, "tun", Fail, "/dev/net/tun is not there", "modprobe tun"},

		{"no QEMU", func(m *machine) { m.LookPath = func(string) (string, error) { return "", exec.ErrNotFound } }, "qemu", Fail, "is not in PATH", "apt install qemu-system-x86"},
		{"old QEMU", func(m *machine) { m.outputs["/bin/qemu-system-x86_64 --version"] = "QEMU emulator version 5.2.0\n" }, "qemu", Fail, "version 5.2.0, too old", "6.0 or newer"},
		{"broken QEMU", func(m *machine) {
			m.outputs["/bin/qemu-system-x86_64 --version"] = "FAIL error while loading shared libraries: libpixman-1.so.0\n"
		}, "qemu", Fail, "does not run: error while loading", "install"},
		{"strange QEMU", func(m *machine) { m.outputs["/bin/qemu-system-x86_64 --version"] = "hello" }, "qemu", Warn, "names no version", ""},

		{"KVM that cannot run", func(m *machine) { m.KVM = func(context.Context) (bool, string) { return false, "internal error" } }, "kvm", Warn, "internal error", "falls back"},
		{"no KVM", func(m *machine) {
			m.KVM = func(context.Context) (bool, string) { return false, "no /dev/kvm" }
			os.Remove(m.Root + "/dev/kvm")
		}, "kvm", Warn, "no /dev/kvm", "modprobe kvm_intel"},
		{"KVM not asked", func(m *machine) { m.KVM = nil }, "kvm", Skip, "not tried", ""},
		{"no firmware", func(m *machine) { m.Firmware = func() (string, error) { return "", errors.New("no OVMF") } }, "firmware", Fail, "no OVMF", "apt install ovmf"},
		{"no images", func(m *machine) { m.Images = func() (string, error) { return "", errors.New("kernel is missing") } }, "images", Fail, "kernel is missing", "make"},

		{"dnsmasq on 67", func(m *machine) {
			m.file("/proc/net/udp", socketHeader+udp69loopback+udp67any)
			m.process(77, "dnsmasq", "0::/system.slice/dnsmasq.service\n", 1, 1234)
			m.process(78, "sh", "", 2)
		}, "port-dhcp", Warn, "67/udp is held by dnsmasq (process 77);", "'systemctl stop dnsmasq.service'; or use a private segment"},
		{"two on 67", func(m *machine) {
			m.file("/proc/net/udp", socketHeader+udp67any+udp67other)
			m.process(77, "dnsmasq", "", 1234)
		}, "port-dhcp", Warn, "held by a process of user 105 and dnsmasq (process 77)", "run doctor as root to see the program, stop process 77"},
		{"'ecboot up' on 67", func(m *machine) {
			m.file("/proc/net/udp", socketHeader+udp67any)
			m.process(77, "ecboot", "0::/system.slice/ecboot.service\n", 1234)
			m.Up = 77
		}, "port-dhcp", OK, "67/udp is held by the 'ecboot up' that runs", ""},
		{"'ecboot up' and dnsmasq on 67", func(m *machine) {
			m.file("/proc/net/udp", socketHeader+udp67any+udp67other)
			m.process(77, "ecboot", "", 1234)
			m.Up = 77
		}, "port-dhcp", Warn, "held by a process of user 105", "run doctor as root to see the program; or"},
		{"67 on another address", func(m *machine) {
			m.file("/proc/net/udp", socketHeader+udp67other)
			m.Address = netip.MustParseAddr("10.77.0.1")
		}, "port-dhcp", OK, "67/udp is free", ""},
		{"67 on our address", func(m *machine) {
			m.file("/proc/net/udp", socketHeader+udp67other)
			m.Address = netip.MustParseAddr("192.168.0.1")
		}, "port-dhcp", Warn, "67/udp is held", ""},
		{"69 on loopback", func(m *machine) { m.file("/proc/net/udp", socketHeader+udp69loopback) }, "port-tftp", OK, "69/udp is free", ""},
		{"nginx on 80", func(m *machine) {
			m.file("/proc/net/tcp6", socketHeader+tcp80listen)
			m.process(80, "nginx", "", 1237)
			m.process(81, "nginx", "", 1237)
		}, "port-http", Warn, "80/tcp is held by nginx (process 80) and nginx (process 81)", "stop process 80, stop process 81"},
		{"a connection from 80", func(m *machine) { m.file("/proc/net/tcp", socketHeader+tcp80open) }, "port-http", OK, "80/tcp is free", ""},
		{"another HTTP port", func(m *machine) {
			m.file("/proc/net/tcp6", socketHeader+tcp80listen)
			m.HTTPPort = 8080
		}, "port-http", OK, "8080/tcp is free", ""},
		{"strange table", func(m *machine) { m.file("/proc/net/udp", socketHeader+"what\n") }, "port-dhcp", Skip, "/proc/net/udp: line 2", ""},
		{"no tables", func(m *machine) { os.RemoveAll(m.Root + "/proc/net") }, "port-http", Skip, "cannot be read", ""},

		{"no swtpm", func(m *machine) { m.lack("swtpm") }, "swtpm", Warn, "only guests with a TPM need it", "apt install swtpm"},
		{"no swtpm for whom needs it", func(m *machine) {
			m.lack("swtpm")
			m.Guests = map[string][]string{PartTPM: {"win", "db"}}
		}, "swtpm", Fail, "needed by win, db", "apt install swtpm"},
		{"no QEMU of ARM64", func(m *machine) { m.lack("qemu-system-aarch64") }, "qemu-system-aarch64", Warn, "only guests of ARM64 need it", "apt install qemu-system-arm"},
		{"no QEMU of ARM64 for whom needs it", func(m *machine) {
			m.lack("qemu-system-aarch64")
			m.Guests = map[string][]string{PartARM64: {"pi"}}
		}, "qemu-system-aarch64", Fail, "needed by pi", "apt install qemu-system-arm"},
		{"no virtiofsd", func(m *machine) { m.lack("virtiofsd") }, "virtiofsd", Warn, "others have 9p", "virtiofsd"},
		{"virtiofsd where QEMU has it", func(m *machine) {
			m.lack("virtiofsd")
			m.file("/usr/libexec/virtiofsd", "")
		}, "virtiofsd", OK, "/usr/libexec/virtiofsd", ""},
		{"no nspawn", func(m *machine) { m.lack("systemd-nspawn") }, "systemd-nspawn", Warn, "only containers need it", "apt install systemd-container"},
		{"accounts not asked", func(m *machine) { m.OperatorGroup = "" }, "accounts", Skip, "not looked for", ""},
		{"accounts without root", func(m *machine) { m.UID = 1000 }, "accounts", Skip, "yours runs QEMU as yourself", ""},
		{"no accounts", func(m *machine) { m.file("/etc/group", "xecboot:x:9:\n") }, "accounts", Warn, "no group ecboot, so only root drives guests", "ecboot install"},
		{"no user", func(m *machine) { m.file("/etc/passwd", "root:x:0:0::/root:/bin/sh\n") }, "accounts", Warn, "no user ecboot-guest, so QEMU runs as nobody", "'ecboot install', and what it says to do next"},
		{"a group of one's own", func(m *machine) { m.OperatorGroup = "operators" }, "accounts", Warn, "no group operators, so only root", "groupadd --system operators"},

		{"br_netfilter off", func(m *machine) { m.file("/proc/sys/net/bridge/bridge-nf-call-iptables", "0\n") }, "br_netfilter", OK, "bypass", ""},
		{"br_netfilter and ACCEPT", func(m *machine) { m.file("/proc/sys/net/bridge/bridge-nf-call-iptables", "1\n") }, "br_netfilter", OK, "forwards by default", ""},
		{"br_netfilter and Docker", func(m *machine) {
			m.file("/proc/sys/net/bridge/bridge-nf-call-iptables", "1\n")
			m.outputs["iptables -S FORWARD"] = "-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n"
		}, "br_netfilter", Warn, "its FORWARD policy drops them", "sysctl net.bridge.bridge-nf-call-iptables=0"},
		{"br_netfilter and nftables", func(m *machine) {
			m.file("/proc/sys/net/bridge/bridge-nf-call-iptables", "1\n")
			delete(m.outputs, "iptables -S FORWARD")
			m.outputs["nft list ruleset"] = "table inet filter {\n\tchain forward {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}\n"
		}, "br_netfilter", Warn, "its forward policy drops them", "iptables -I FORWARD"},
		{"br_netfilter and harmless nftables", func(m *machine) {
			m.file("/proc/sys/net/bridge/bridge-nf-call-iptables", "1\n")
			delete(m.outputs, "iptables -S FORWARD")
			m.outputs["nft list ruleset"] = "chain forward {\n type filter hook forward priority filter; policy accept;\n}\nchain input {\n type filter hook input priority filter; policy drop;\n}\n"
		}, "br_netfilter", OK, "forwards by default", ""},
		{"br_netfilter and no rights", func(m *machine) {
			m.file("/proc/sys/net/bridge/bridge-nf-call-iptables", "1\n")
			m.outputs["iptables -S FORWARD"] = "FAIL Permission denied (you must be root)"
		}, "br_netfilter", Warn, "cannot be read", "sysctl"},

		{"segment", func(m *machine) { m.segment(nil, nil, nil) }, "segment.lab", OK, "eth0 can be served", ""},
		{"segment that cannot be", func(m *machine) { m.segment([]string{"eth0 is wireless", "no address"}, []string{"no carrier"}, nil) },
			"segment.lab", Fail, "eth0 is wireless; no address", "[segment.lab]"},
		{"segment with a warning", func(m *machine) { m.segment(nil, []string{"no carrier"}, nil) }, "segment.lab", Warn, "no carrier", "[segment.lab]"},
		{"segment that cannot be seen", func(m *machine) { m.segment(nil, nil, errors.New("not permitted")) }, "segment.lab", Fail, "not permitted", "root"},

		{"full disk", func(m *machine) { m.Space = func(string) (uint64, error) { return 100 << 10, nil } }, "state", Fail, "/var/lib/ecboot, 0 MiB free", "free at least 64 MiB"},
		{"nearly full disk", func(m *machine) { m.Space = func(string) (uint64, error) { return 900 << 20, nil } }, "cache", Warn, "900 MiB free, which will not do for long", "free at least 1.0 GiB"},
		{"read-only disk", func(m *machine) {
			m.Space = func(string) (uint64, error) { return 0, errors.New("read-only file system") }
		}, "cache", Fail, "is not writable: read-only file system", "make it writable"},
		{"file in the way", func(m *machine) { m.file("/var/lib", "") }, "state", Fail, "/var/lib is in the way", "move it away"},
		{"no directory", func(m *machine) { m.StateDir = "" }, "state", Skip, "none is set", ""},

		{"no Go", func(m *machine) { m.LookPath = func(string) (string, error) { return "", exec.ErrNotFound } }, "go", Warn, "only building an initramfs needs it", "go.dev"},
		{"broken Go", func(m *machine) { m.outputs["/bin/go env GOVERSION"] = "FAIL " }, "go", Warn, "does not run: exit status 1", "go.dev"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t)
			tt.spoil(m)
			got := m.check(tt.id)
			if got.Status != tt.want || !strings.Contains(got.Found, tt.found) || !strings.Contains(got.Mend, tt.mend) {
				t.Errorf("%s\nfound %s\nmend  %s\nwant %s, %q, %q", got.Status, got.Found, got.Mend, tt.want, tt.found, tt.mend)
			}
			if got.Status == Fail && got.Mend == "" {
				t.Error("a failure without a cure")
			}
		})
	}
}

// TestSystem looks at the machine that runs the test: the real tables must be
// readable, whatever they say.
func TestSystem(t *testing.T) {
	env := System()
	env.StateDir, env.CacheDir = t.TempDir(), t.TempDir()
	for _, c := range Run(context.Background(), env) {
		t.Logf("%-14s %-4s %s", c.ID, c.Status, c.Found)
		if c.Found == "" {
			t.Errorf("%s found nothing", c.ID)
		}
		if strings.HasPrefix(c.ID, "port-") && c.Status == Skip {
			t.Errorf("%s: %s", c.ID, c.Found)
		}
	}
}

func TestWriteText(t *testing.T) {
	checks := []Check{
		{ID: "a", Title: "tap devices", Status: OK, Found: "/dev/net/tun opens", Needs: []string{"run"}},
		{ID: "b", Title: "QEMU", Status: Fail, Found: "it is\nnot there", Mend: "install it", Needs: []string{"run", "boot"}},
		{ID: "c", Title: "KVM", Status: Warn, Found: "emulated", Mend: "nothing", Needs: []string{"run"}},
		{ID: "d", Title: "firmware", Status: Skip, Found: "not looked for", Needs: []string{"run"}},
	}
	var b bytes.Buffer
	if err := WriteText(&b, checks); err != nil {
		t.Fatal(err)
	}
	const want = `ok    tap devices  /dev/net/tun opens
fail  QEMU         it is / not there
                   to mend: install it
                   needed by: run, boot
warn  KVM          emulated
                   to mend: nothing
skip  firmware     not looked for

ok: 1, warn: 1, fail: 1, skip: 1
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
	b.Reset()
	if err := WriteJSON(&b, checks); err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Schema int
		Worst  Status
		Checks []Check
	}
	if err := json.Unmarshal(b.Bytes(), &doc); err != nil || doc.Schema != 1 || doc.Worst != Fail || len(doc.Checks) != 4 || doc.Checks[1].Needs[1] != "boot" {
		t.Errorf("%v: %s", err, b.String())
	}
}

func TestWorst(t *testing.T) {
	for _, tt := range []struct {
		have []Status
		want Status
	}{
		{nil, OK}, {[]Status{OK, Skip}, OK}, {[]Status{OK, Warn, OK}, Warn}, {[]Status{Warn, Fail, OK}, Fail},
	} {
		var checks []Check
		for _, s := range tt.have {
			checks = append(checks, Check{Status: s})
		}
		if got := Worst(checks); got != tt.want {
			t.Errorf("%v: %s", tt.have, got)
		}
	}
}

func FuzzParseSockets(f *testing.F) {
	for _, line := range []string{udp67any, udp67other, tcp80listen, tcp80open, "", "\n\n", "a b c d e f g h i j\n"} {
		f.Add(socketHeader + line)
	}
	f.Fuzz(func(t *testing.T, text string) {
		sockets, err := parseSockets(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, s := range sockets {
			if !s.local.Addr().IsValid() {
				t.Errorf("%+v", s)
			}
		}
	})
}
