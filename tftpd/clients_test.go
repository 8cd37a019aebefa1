package tftpd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/every-channel/ecboot/internal/nettest"
)

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

// directory holds a small file, a large one, and one that takes more blocks of
// 512 bytes than a block number can count.
func directory(t testing.TB) (dir string, sums map[string]string) {
	t.Helper()
	dir = t.TempDir()
	sums = map[string]string{}
	for name, size := range map[string]int{"undionly.kpxe": 74213, "snponly.efi": 173_792, "ipxe.efi": 1_000_448, "wraps": 33 << 20} {
		data := pattern(size)
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
		sums[name] = fmt.Sprintf("%x", sha256.Sum256(data))
	}
	return dir, sums
}

func sumOf(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))
}

// foreign are clients by others, with arguments that fetch a file.
var foreign = []struct {
	name, program string
	args          func(server, name, to string) []string
}{
	{"tftp-hpa", "tftp", func(server, name, to string) []string {
		return []string{"-m", "binary", server, "-c", "get", name, to}
	}},
	{"busybox", "busybox", func(server, name, to string) []string {
		return []string{"tftp", "-g", "-r", name, "-l", to, server}
	}},
	{"busybox, 1468", "busybox", func(server, name, to string) []string {
		return []string{"tftp", "-g", "-b", "1468", "-r", name, "-l", to, server}
	}},
	{"curl without options", "curl", func(server, name, to string) []string {
		return []string{"-sS", "--tftp-no-options", "-o", to, "tftp://" + server + "/" + name}
	}},
	// curl asks for a timeout too.
	{"curl", "curl", curlBlock("512")},
	{"curl, 1468", "curl", curlBlock("1468")},
	{"curl, 65464", "curl", curlBlock("65464")},
	{"atftp", "atftp", atftpOptions()},
	{"atftp, 1432", "atftp", atftpOptions("blksize 1432")},
	{"atftp, 65464", "atftp", atftpOptions("blksize 65464")},
	{"atftp, timeout", "atftp", atftpOptions("timeout 1", "blksize 1468")},
	{"atftp, window of 1", "atftp", atftpOptions("windowsize 1")},
	{"atftp, window of 4, 1468", "atftp", atftpOptions("windowsize 4", "blksize 1468")},
	{"atftp, window of 16", "atftp", atftpOptions("windowsize 16")},
	{"atftp, window of 64, 1432", "atftp", atftpOptions("windowsize 64", "blksize 1432")},
	{"atftp, window of 64, 8", "atftp", atftpOptions("windowsize 64", "blksize 8")},
	{"atftp, window of 2000, 65464", "atftp", atftpOptions("windowsize 2000", "blksize 65464")},
}

func curlBlock(size string) func(server, name, to string) []string {
	return func(server, name, to string) []string {
		return []string{"-sS", "--tftp-blksize", size, "-o", to, "tftp://" + server + "/" + name}
	}
}

func atftpOptions(options ...string) func(server, name, to string) []string {
	return func(server, name, to string) (args []string) {
		for _, o := range append(options, "tsize") {
			args = append(args, "--option", o)
		}
		return append(args, "--get", "-r", name, "-l", to, server)
	}
}

func TestForeignClients(t *testing.T) {
	addr, host := segment(t)
	dir, sums := directory(t)
	s := start(t, Config{Addr: addr, Interface: "br0", Files: only(os.DirFS(dir))})
	for _, client := range foreign {
		t.Run(client.name, func(t *testing.T) {
			nettest.Need(t, client.program)
			for name, sum := range sums {
				if name == "wraps" {
					continue
				}
				to := filepath.Join(t.TempDir(), name)
				host.Run(t, client.program, client.args(addr.String(), name, to)...)
				if sumOf(t, to) != sum {
					t.Errorf("%s arrived damaged", name)
				}
			}
		})
	}
	s.stop()
	if log := s.log.String(); log != "" {
		t.Errorf("log: %s", log)
	}
}

func TestBlockNumbersWrap(t *testing.T) {
	addr, host := segment(t)
	dir, sums := directory(t)
	start(t, Config{Addr: addr, Interface: "br0", Files: only(os.DirFS(dir))})
	for _, client := range foreign {
		if !slices.Contains([]string{"tftp-hpa", "curl", "atftp", "atftp, window of 16"}, client.name) {
			continue
		}
		t.Run(client.name, func(t *testing.T) {
			t.Parallel()
			nettest.Need(t, client.program)
			to := filepath.Join(t.TempDir(), "wraps")
			host.Run(t, client.program, client.args(addr.String(), "wraps", to)...)
			if sumOf(t, to) != sums["wraps"] {
				t.Error("arrived damaged")
			}
		})
	}
}

// TestLossyLink loses 5 % of the packets in each direction, where they arrive.
// It is nftables that drops them: fewer kernels are built with netem. OACKs and
// their acknowledgements arrive, for atftp does not bear an OACK that comes
// twice if there is a window in it.
func TestLossyLink(t *testing.T) {
	nettest.Need(t, "nft")
	addr, host := segment(t)
	dir, sums := directory(t)
	const loss = "table ip lossy { chain c { type filter hook input priority 0; " +
		"meta l4proto udp @th,64,16 != 6 @th,64,32 != 0x00040000 numgen random mod 100 < 5 drop; }; }"
	if out, err := exec.Command("nft", loss).CombinedOutput(); err != nil {
		t.Skipf("needs a kernel with nf_tables: %s", out)
	}
	t.Cleanup(func() { exec.Command("nft", "delete table ip lossy").Run() })
	host.Run(t, "nft", loss)
	start(t, Config{Addr: addr, Interface: "br0", Files: only(os.DirFS(dir))})
	for _, client := range foreign {
		// Not those that have the server wait whole seconds, nor thousands of
		// blocks.
		if slices.Contains([]string{"curl", "curl, 1468", "curl, 65464", "atftp, timeout", "atftp, window of 64, 8"}, client.name) {
			continue
		}
		t.Run(client.name, func(t *testing.T) {
			t.Parallel()
			nettest.Need(t, client.program)
			to := filepath.Join(t.TempDir(), "snponly.efi")
			host.Run(t, client.program, client.args(addr.String(), "snponly.efi", to)...)
			if sumOf(t, to) != sums["snponly.efi"] {
				t.Error("arrived damaged")
			}
		})
	}
}

func TestForeignClientsAreRefused(t *testing.T) {
	nettest.Need(t, "tftp", "curl")
	addr, host := segment(t)
	dir, _ := directory(t)
	s := start(t, Config{Addr: addr, Interface: "br0", Files: only(os.DirFS(dir))})
	to := filepath.Join(t.TempDir(), "x")
	tests := []struct {
		name    string
		program string
		args    []string
		want    string // on the client's console
	}{
		{"unknown file", "tftp", []string{addr.String(), "-c", "get", "none.efi", to}, "Error code 1: file not found: none.efi"},
		{"path trick", "tftp", []string{addr.String(), "-c", "get", "../../etc/passwd", to}, "Error code 2: access violation"},
		{"write", "tftp", []string{addr.String(), "-c", "put", "/etc/hostname", "hostname"}, "Error code 2: access violation: this server is read-only"},
		{"unknown file", "curl", []string{"-sS", "tftp://" + addr.String() + "/none.efi"}, "curl: (68)"},
		{"path trick", "curl", []string{"-sS", "--path-as-is", "tftp://" + addr.String() + "/../etc/passwd"}, "curl: (69)"},
	}
	for _, tt := range tests {
		t.Run(tt.name+"/"+tt.program, func(t *testing.T) {
			out, err := host.Command(context.Background(), tt.program, tt.args...).CombinedOutput()
			if !strings.Contains(string(out), tt.want) {
				t.Errorf("got %q, %v, want %q", out, err, tt.want)
			}
		})
	}
	s.stop()
	if _, err := os.Stat(filepath.Join(dir, "hostname")); err == nil {
		t.Error("a file was written")
	}
}

// TestAnswersComeFromTheAddressThatWasAsked has a server on the second address
// of a link: clients drop answers from the first.
func TestAnswersComeFromTheAddressThatWasAsked(t *testing.T) {
	nettest.Need(t, "curl")
	_, host := segment(t)
	if out, err := exec.Command("ip", "addr", "add", "10.78.0.2/24", "dev", "br0").CombinedOutput(); err != nil {
		t.Fatalf("%s", out)
	}
	second := netip.MustParseAddr("10.78.0.2")
	s := start(t, Config{Addr: second, Interface: "br0", Files: only(files())})
	if got := host.Run(t, "curl", "-sS", "tftp://10.78.0.2/snponly.efi"); !bytes.Equal([]byte(got), pattern(5000)) {
		t.Errorf("got %d bytes that differ", len(got))
	}
	for _, request := range [][]string{
		{"snponly.efi", "octet"},
		{"snponly.efi", "octet", "blksize", "1468"},
		{"snponly.efi", "octet", "windowsize", "4"},
		{"../x", "octet"},
		{"none", "octet"},
	} {
		c := dial(t, second)
		c.request(1, request...)
		c.receive()
		if !c.server.IP.Equal(net.IP(second.AsSlice())) {
			t.Errorf("%v: answer from %s", request, c.server)
		}
		c.send(errorPacket(codeUnknownTID, "enough"))
	}
	s.stop()
}
