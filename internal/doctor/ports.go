package doctor

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ports looks who holds the ports of the servers. A private segment has ports
// of its own, so a holder is a warning.
func (env Env) ports() []Check {
	http := env.HTTPPort
	if http == 0 {
		http = 80
	}
	return []Check{
		env.port("dhcp", "DHCP port", "udp", 67),
		env.port("tftp", "TFTP port", "udp", 69),
		env.port("http", "HTTP port", "tcp", http),
	}
}

func (env Env) port(id, title, network string, port uint16) Check {
	c := Check{ID: "port-" + id, Title: title, Needs: []string{"serve --bridge", "run --bridge", verbUp}}
	where := fmt.Sprintf("%d/%s", port, network)
	var held []socket
	read := 0
	for _, table := range []string{network, network + "6"} {
		f, err := os.Open(env.Root + "/proc/net/" + table)
		if err != nil {
			continue // no IPv6
		}
		sockets, err := parseSockets(f)
		f.Close()
		if err != nil {
			return c.is(Skip, fmt.Sprintf("/proc/net/%s: %v", table, err), "")
		}
		read++
		for _, s := range sockets {
			if s.local.Port() == port && (network == "udp" || s.state == tcpListen) && env.inTheWay(s.local.Addr()) {
				held = append(held, s)
			}
		}
	}
	if read == 0 {
		return c.is(Skip, "/proc/net/"+network+" cannot be read", "")
	}
	if len(held) == 0 {
		return c.is(OK, where+" is free", "")
	}
	holders := slices.DeleteFunc(env.holders(held), func(h holder) bool { return h.pid != 0 && h.pid == env.Up })
	if len(holders) == 0 {
		return c.is(OK, where+" is held by the 'ecboot up' that runs", "")
	}
	return c.is(Warn, fmt.Sprintf("%s is held by %s; only a private segment has ports of its own", where, strings.Join(names(holders), " and ")), mendPort(holders))
}

// inTheWay reports whether a socket on this address keeps the servers from
// binding theirs.
func (env Env) inTheWay(a netip.Addr) bool {
	return a.IsUnspecified() || a == env.Address || !env.Address.IsValid() && !a.IsLoopback()
}

// socket is one line of /proc/net/udp or tcp.
type socket struct {
	local netip.AddrPort
	state uint8
	uid   int
	inode uint64
}

const tcpListen = 0x0a // TCP_LISTEN of include/net/tcp_states.h

// parseSockets reads the table of one protocol. Fields, from 0: 1 is the local
// address and port in hexadecimal, 3 the state, 7 the user, 9 the inode.
func parseSockets(r io.Reader) ([]socket, error) {
	var sockets []socket
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		fields := strings.Fields(lines.Text())
		if n == 1 || len(fields) == 0 {
			continue
		}
		s, err := parseSocket(fields)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		sockets = append(sockets, s)
	}
	return sockets, lines.Err()
}

func parseSocket(fields []string) (s socket, err error) {
	if len(fields) < 10 {
		return s, fmt.Errorf("%d fields instead of 10", len(fields))
	}
	if s.local, err = parseLocal(fields[1]); err != nil {
		return s, err
	}
	state, err := strconv.ParseUint(fields[3], 16, 8)
	if err != nil {
		return s, err
	}
	s.state = uint8(state)
	if s.uid, err = strconv.Atoi(fields[7]); err != nil {
		return s, err
	}
	s.inode, err = strconv.ParseUint(fields[9], 10, 64)
	return s, err
}

// parseLocal reads 0100007F:0035: the address in words of the machine's own
// byte order, the port as a number.
func parseLocal(text string) (netip.AddrPort, error) {
	addr, port, ok := strings.Cut(text, ":")
	b, err := hex.DecodeString(addr)
	if !ok || err != nil || len(b) != 4 && len(b) != 16 {
		return netip.AddrPort{}, fmt.Errorf("%q is not an address and a port", text)
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is not an address and a port", text)
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), nil
}

// holder is a process with a socket, or what is known of it.
type holder struct {
	pid     int // 0: not to be seen by this user
	command string
	unit    string // systemd's, such as "dnsmasq.service"
	uid     int
}

func (h holder) String() string {
	if h.pid == 0 {
		return fmt.Sprintf("a process of user %d", h.uid)
	}
	return fmt.Sprintf("%s (process %d)", h.command, h.pid)
}

func names(holders []holder) []string {
	texts := make([]string, len(holders))
	for i, h := range holders {
		texts[i] = h.String()
	}
	return texts
}

// holders finds the processes by the links in their fd directories.
func (env Env) holders(sockets []socket) []holder {
	links := map[string]int{} // link text to the index in sockets
	for i, s := range sockets {
		links["socket:["+strconv.FormatUint(s.inode, 10)+"]"] = i
	}
	seen := make([]bool, len(sockets))
	var found []holder
	processes, _ := filepath.Glob(env.Root + "/proc/[0-9]*") // the pattern is good
	for _, dir := range processes {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		fds, err := os.ReadDir(dir + "/fd")
		if err != nil {
			continue // another user's, or gone
		}
		holds := false
		for _, fd := range fds {
			link, err := os.Readlink(dir + "/fd/" + fd.Name())
			if i, ok := links[link]; err == nil && ok {
				seen[i], holds = true, true
			}
		}
		if holds {
			base := "/proc/" + strconv.Itoa(pid)
			found = append(found, holder{pid: pid, command: env.read(base + "/comm"), unit: unitOf(env.read(base + "/cgroup"))})
		}
	}
	for i, s := range sockets {
		unseen := holder{uid: s.uid}
		if !seen[i] && !slices.Contains(found, unseen) {
			found = append(found, unseen)
		}
	}
	slices.SortStableFunc(found, func(a, b holder) int { return a.pid - b.pid })
	return found
}

// unitOf takes the service out of /proc/PID/cgroup, whose lines are
// NUMBER:CONTROLLERS:PATH.
func unitOf(cgroup string) string {
	for line := range strings.Lines(cgroup) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if unit := path.Base(parts[len(parts)-1]); strings.HasSuffix(unit, ".service") {
			return unit
		}
	}
	return ""
}

func mendPort(holders []holder) string {
	var ways []string
	for _, h := range holders {
		way := ""
		switch {
		case h.unit != "":
			way = "'systemctl stop " + h.unit + "'"
		case h.pid != 0:
			way = fmt.Sprintf("stop process %d", h.pid)
		default:
			way = "run doctor as root to see the program"
		}
		if !slices.Contains(ways, way) {
			ways = append(ways, way)
		}
	}
	return strings.Join(ways, ", ") + "; or use a private segment, without --bridge"
}
