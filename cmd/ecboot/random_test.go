package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/every-channel/ecboot/internal/api"
	"github.com/every-channel/ecboot/internal/nettest"
)

// Environment variables of TestUpKilledAtRandom.
const (
	seedVar   = "ECBOOT_TEST_SEED"   // repeats the choices of a run that has logged it
	roundsVar = "ECBOOT_TEST_ROUNDS" // instead of randomRounds
)

const (
	randomRounds = 8
	firstStart   = 2 * time.Second // about
)

// Whatever dies, and whenever: the next supervisor has all guests run, touches
// none that lived, and leaves nothing twice and nothing behind.
func TestUpKilledAtRandom(t *testing.T) {
	t.Parallel()
	nettest.Need(t, "qemu-img", "ss")
	seed, rounds := uint64(time.Now().UnixNano()), uint64(randomRounds)
	for name, number := range map[string]*uint64{seedVar: &seed, roundsVar: &rounds} {
		if text := os.Getenv(name); text != "" {
			var err error
			if *number, err = strconv.ParseUint(text, 10, 64); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	t.Logf("%s=%d repeats these choices", seedVar, seed)
	m := newMayhem(t, seed)

	// The first start makes more than any other.
	before := m.shows()
	for range 2 {
		m.up()
		time.Sleep(time.Duration(m.random.Float64() * float64(firstStart)))
		if !m.kill(m.victims()...) {
			m.kill(victim{})
		}
	}
	// How long things take when nobody dies, and what there is then.
	m.up()
	m.took("start", func() { m.settle(nil) })
	m.s.logged(t, randomContainer, "userland", 1)
	m.s.atShell(t, randomMicroVM, 1)
	m.s.typed(t, randomMicroVM, "echo it-is-kept | dd of=/dev/vda", "copied")
	m.took("restart", func() {
		if _, err := m.s.control().Stop(t.Context(), randomMicroVM, false); err != nil {
			t.Fatal(err)
		}
		m.awaitStart(randomMicroVM, true)
	})
	m.settle(nil)
	m.whole, m.kept = m.shows(), m.keeps()
	m.took("adopt", func() {
		same := m.pids()
		m.kill(victim{})
		m.up()
		m.settle(same)
	})
	for i := range rounds {
		m.round(i)
	}
	m.stop()
	m.wantNothing(t)
	after := slices.DeleteFunc(m.shows(), func(line string) bool { return strings.HasPrefix(line, "state ") && !slices.Contains(before, line) })
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("what the host shows (-before +after):\n%s", diff)
	}
	if said := m.log.String(); strings.Contains(said, "level=ERROR") {
		t.Error("a supervisor could not do something")
	}
}

// The guests. Their names are those of control groups, which all hosts share.
const (
	randomMicroVM   = "random-micro"
	randomVM        = "random-vm"
	randomMacvtap   = "random-tap"
	randomContainer = "random-box"
)

var randomGuests = []string{randomMicroVM, randomVM, randomMacvtap, randomContainer}

// mayhem is a host on which processes are killed at random moments.
type mayhem struct {
	*upHost
	t      *testing.T
	random *rand.Rand
	s      *started
	ended  chan struct{} // closed when s has ended
	exit   *os.ProcessState
	log    transcript
	spans  map[string]time.Duration
	whole  []string // what shows when all is well; nil: that is not known yet
	kept   []string // what keeps
}

// transcript is what supervisors have said.
type transcript struct {
	mu   sync.Mutex
	text strings.Builder
}

func (t *transcript) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.Write(p)
}

func (t *transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.String()
}

func newMayhem(t *testing.T, seed uint64) *mayhem {
	t.Helper()
	m := &mayhem{t: t, random: rand.New(rand.NewPCG(seed, 0)), spans: map[string]time.Duration{}}
	m.upHost = newUpHost(t, "random", fmt.Sprintf(`memory = "128M"
[segment.lab]
[segment.lan]
parent = "eth0"
address = "10.78.0.1/24"
allow_other_dhcp = true
[guest.%[1]s]
backend = "microvm"
autostart = true
stop_timeout = "1s"
restart_delay = "1s"
restart_max = "1s"
[[guest.%[1]s.nic]]
segment = "lab"
[[guest.%[1]s.disk]]
size = "64M"
[guest.%[2]s]
backend = "qemu"
boot = "disk"
autostart = true
stop_timeout = "1s"
restart_delay = "1s"
restart_max = "1s"
[[guest.%[2]s.nic]]
segment = "lan"
[[guest.%[2]s.disk]]
path = %[5]q
format = "raw"
[guest.%[3]s]
backend = "qemu"
boot = "disk"
autostart = true
order = 1
stop_timeout = "1s"
restart = "always"
restart_delay = "1s"
restart_max = "1s"
[[guest.%[3]s.nic]]
macvtap = "eth0"
[[guest.%[3]s.disk]]
path = %[6]q
format = "raw"
[guest.%[4]s]
backend = "container"
root = %[7]q
autostart = true
stop_signal = "SIGUSR2"
restart_delay = "1s"
restart_max = "1s"
[[guest.%[4]s.nic]]
segment = "lab"
[[guest.%[4]s.nic]]
macvlan = "eth0"
name = "lan0"
`, randomMicroVM, randomVM, randomMacvtap, randomContainer, bootDisk(t), bootDisk(t), busyboxRoot(t)))
	m.env = []string{mayhemVar + "=" + m.dir}
	nettest.Bridge(t, "random", "")
	nettest.Connect(t, "random", m.Host, "eth0")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("what the supervisors said:\n%s", m.log.String())
		}
	})
	return m
}

// mayhemVar marks the processes of a host that are in no control group yet.
const mayhemVar = "ECBOOT_TEST_MAYHEM"

// up starts a supervisor.
func (m *mayhem) up() {
	m.t.Helper()
	s := m.upHost.up(m.t)
	m.s, m.ended = s, make(chan struct{})
	go io.Copy(&m.log, s.stderr) // its watchdogs have it, too
	go func(ended chan struct{}) {
		m.exit, _ = s.cmd.Process.Wait()
		close(ended)
	}(m.ended)
}

// took measures how long something takes.
func (m *mayhem) took(what string, do func()) {
	m.t.Helper()
	began := time.Now()
	do()
	m.spans[what] = time.Since(began)
	m.t.Logf("%s: %.1fs", what, m.spans[what].Seconds())
}

// moments are what goes on when something dies.
var moments = []string{"all run", "all start", "all are taken over", "one starts again", "one is restarted", "one is stopped", "all are stopped", "starts are given up"}

// round brings such a moment about, has something die within, and awaits that all
// is well again.
func (m *mayhem) round(number uint64) {
	moment, one := moments[m.random.IntN(len(moments))], randomGuests[m.random.IntN(len(randomGuests))]
	same := m.pids() // guests that must have the same processes afterwards
	span := m.spans["restart"]
	verb := func(do func(client *api.Client) error) chan error {
		client, done := m.s.control(), make(chan error, 1)
		go func() { done <- do(client) }()
		delete(same, one)
		return done
	}
	var restarted, stopped chan error
	ends := false // the supervisor, also if nobody kills it
	switch moment {
	case "all run":
		span = m.spans["start"]
	case "all start":
		m.stop()
		clear(same)
		m.up()
		span = m.spans["start"]
	case "all are taken over":
		m.kill(victim{})
		m.up()
		span = m.spans["adopt"]
	case "one starts again":
		m.kill(victim{guest: one, more: m.random.IntN(2) == 0})
		delete(same, one)
	case "one is restarted":
		restarted = verb(func(c *api.Client) error { _, err := c.Restart(m.t.Context(), one); return err })
	case "one is stopped":
		stopped = verb(func(c *api.Client) error { _, err := c.Stop(m.t.Context(), one, false); return err })
	case "starts are given up":
		m.stop()
		m.up()
		time.Sleep(time.Duration(m.random.Float64() * float64(m.spans["start"])))
		fallthrough
	case "all are stopped":
		m.s.cmd.Process.Signal(syscall.SIGTERM)
		clear(same)
		ends = true
	}
	for more := m.random.IntN(3); more >= 0; more-- {
		wait, victims := time.Duration(m.random.Float64()*float64(span)), m.victims()
		m.note("round %d: %s (%s), %.2fs, then the death of %v", number, moment, one, wait.Seconds(), victims)
		time.Sleep(wait) // the moment is to be any
		for _, v := range victims {
			delete(same, v.guest)
		}
		if m.kill(victims...) || ends {
			<-m.ended
			m.up()
			moment, span, ends = "all are taken over", m.spans["adopt"], false
		}
	}
	if restarted != nil {
		<-restarted
	}
	if stopped != nil {
		err := <-stopped
		m.awaitStart(one, err == nil)
	}
	m.settle(same)
}

// awaitStart starts a guest that somebody has stopped, or was about to.
func (m *mayhem) awaitStart(guest string, down bool) {
	m.t.Helper()
	for {
		list, err := m.s.control().Guests(m.t.Context())
		if err == nil {
			g := list[slices.IndexFunc(list, func(g api.Guest) bool { return g.Name == guest })]
			if down && (g.State != api.Stopped || slices.ContainsFunc(m.processes(), func(p process) bool { return p.guest == guest })) {
				m.t.Fatalf("was stopped: %+v", g)
			}
			if err = m.s.control().Start(m.t.Context(), guest); err == nil {
				return
			}
		}
		select {
		case <-m.ended:
			m.t.Fatal("the supervisor has ended")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// note logs here and among what supervisors say.
func (m *mayhem) note(format string, args ...any) {
	m.t.Helper()
	m.t.Logf(format, args...)
	fmt.Fprintf(&m.log, "%s --- "+format+"\n", append([]any{time.Now().Format("15:04:05.000")}, args...)...)
}

// victim is what is to be killed.
type victim struct {
	guest string  // whose process; empty: the supervisor
	more  bool    // of a guest: the keeper, not another; of the supervisor: its watchdogs, too
	which float64 // from 0 to 1, of a guest's others
}

func (v victim) String() string {
	switch {
	case v.guest == "" && v.more:
		return "supervisor with watchdogs"
	case v.guest == "":
		return "supervisor"
	case v.more:
		return "keeper of " + v.guest
	}
	return "process of " + v.guest
}

// victims chooses some.
func (m *mayhem) victims() (list []victim) {
	for len(list) == 0 {
		if n := m.random.IntN(6); n < 3 {
			list = append(list, victim{more: n == 0})
		}
		for _, name := range randomGuests {
			if n := m.random.IntN(6); n < 2 {
				list = append(list, victim{name, n == 0, m.random.Float64()})
			}
		}
	}
	m.random.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// kill kills what there is of them, and reports whether the supervisor is.
func (m *mayhem) kill(list ...victim) (supervisor bool) {
	var pids []int
	all := m.processes()
	for _, v := range list {
		var candidates []int
		for _, p := range all {
			if p.guest == v.guest && p.keeper == v.more && v.guest != "" || v.guest == "" && v.more && p.watchdog {
				candidates = append(candidates, p.pid)
			}
		}
		switch {
		case v.guest == "":
			supervisor = true
			pids = append(pids, candidates...)
		case len(candidates) > 0:
			pids = append(pids, candidates[int(v.which*float64(len(candidates)))])
		}
	}
	for _, pid := range pids {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	if supervisor {
		m.s.cmd.Process.Kill() // it may have ended
		<-m.ended
	}
	return supervisor
}

// stop ends the supervisor in good order.
func (m *mayhem) stop() {
	m.t.Helper()
	m.s.cmd.Process.Signal(syscall.SIGTERM)
	<-m.ended
	if code := m.exit.ExitCode(); code != 0 {
		m.t.Fatalf("exit code %d", code)
	}
}

// pids are the processes of guests that run, as their keepers have noted them.
func (m *mayhem) pids() map[string]int {
	pids := map[string]int{}
	for _, name := range randomGuests {
		var keeper, guest int
		lock, _ := os.ReadFile(m.path("/run/ecboot/guests/" + name + "/lock"))
		fmt.Sscan(string(lock), &keeper, &guest)
		pids[name] = guest
	}
	return pids
}

// path is where this process finds a file of the host's.
func (m *mayhem) path(of string) string {
	return fmt.Sprintf("/proc/%d/root%s", m.s.cmd.Process.Pid, of)
}

// settle waits until all is as it should be: what must be the same is.
func (m *mayhem) settle(same map[string]int) {
	m.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		wrong := m.wrong()
		if wrong == "" {
			break
		}
		if m.hasEnded() {
			m.t.Fatalf("the supervisor has ended: %v", m.exit)
		}
		if time.Now().After(deadline) {
			m.t.Fatal(wrong)
		}
	}
	now := m.pids()
	for name, pid := range same {
		if now[name] != pid {
			m.t.Fatalf("nobody killed %s, which was process %d and is %d", name, pid, now[name])
		}
	}
}

func (m *mayhem) hasEnded() bool {
	select {
	case <-m.ended:
		return true
	default:
		return false
	}
}

// wrong says what is not as it should be.
func (m *mayhem) wrong() string {
	m.t.Helper()
	for _, name := range randomGuests {
		if n := len(m.qemus(name)); n > 1 {
			m.t.Fatalf("%d QEMUs of %s", n, name)
		}
	}
	list, err := m.s.control().Guests(m.t.Context())
	if err != nil {
		return err.Error()
	}
	for _, g := range list {
		if g.State != api.Running || len(g.Drift) > 0 {
			return fmt.Sprintf("%+v", g)
		}
	}
	for name, pid := range m.pids() {
		if pid == 0 {
			return name + " still starts" // and was taken over so
		}
	}
	if m.whole == nil {
		return ""
	}
	if diff := cmp.Diff(m.kept, m.keeps()); diff != "" {
		m.t.Fatalf("addresses and disks (-before +now):\n%s", diff)
	}
	if diff := cmp.Diff(m.whole, m.shows()); diff != "" {
		return "what the host shows (-before +now):\n" + diff
	}
	return ""
}

// keeps is what guests must never lose: their addresses, and what is on their
// disks.
func (m *mayhem) keeps() []string {
	m.t.Helper()
	list, err := m.s.control().Guests(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	var kept []string
	for _, g := range list {
		kept = append(kept, fmt.Sprint(g.Name, g.MACs))
		for _, d := range g.Disks {
			content, err := os.ReadFile(d.Path)
			if err != nil {
				m.t.Fatal(err)
			}
			kept = append(kept, fmt.Sprintf("%s %x", d.Path, sha256.Sum256(content)))
		}
	}
	return kept
}

// process is one of ecboot's on the host.
type process struct {
	pid              int
	what             string // its part, or the name of its program
	guest            string // whose it is; empty: nobody's
	keeper, watchdog bool
}

func (p process) String() string { return strings.TrimSpace(p.guest + " " + p.what) }

// processes are all that supervisors have ever started and that still run.
func (m *mayhem) processes() (list []process) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		m.t.Fatal(err)
	}
	mark := "\x00" + mayhemVar + "=" + m.dir + "\x00"
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || m.s != nil && pid == m.s.cmd.Process.Pid {
			continue
		}
		read := func(name string) string {
			b, _ := os.ReadFile(filepath.Join("/proc", e.Name(), name)) // it may have ended
			return string(b)
		}
		environ, groups := "\x00"+read("environ"), read("cgroup")
		p := process{pid: pid}
		for _, name := range randomGuests {
			if strings.Contains(groups, "/ecboot/"+name+"\n") || strings.Contains(groups, "/ecboot/"+name+"/") {
				p.guest = name
			}
		}
		if p.guest == "" && !strings.Contains(environ, mark) || read("cmdline") == "" { // it has ended
			continue
		}
		for v := range strings.SplitSeq(environ, "\x00") {
			name, value, _ := strings.Cut(v, "=")
			switch name {
			case "ECBOOT_WATCHDOG":
				p.what, p.watchdog = "watchdog of "+filepath.Base(value), true
			case "ECBOOT_KEEPER":
				p.what, p.guest, p.keeper = "keeper", filepath.Base(value), true
			}
		}
		if p.what == "" {
			p.what = strings.TrimSpace(read("comm"))
		}
		list = append(list, p)
	}
	return list
}

// qemus are the QEMUs of a guest.
func (m *mayhem) qemus(guest string) (list []process) {
	for _, p := range m.processes() {
		if p.guest == guest && strings.HasPrefix(p.what, "qemu-system") {
			list = append(list, p)
		}
	}
	return list
}

// shows is all that there is of ecboot on the host: links with their addresses,
// mounts, control groups, sockets, files and processes.
func (m *mayhem) shows() (list []string) {
	m.t.Helper()
	add := func(what, script string) {
		for line := range strings.Lines(m.Run(m.t, "sh", "-c", script)) {
			list = append(list, what+" "+strings.TrimSpace(line))
		}
	}
	add("link", `ip -o link | sed 's/^[0-9]*: //; s/[@:].* master \([^ ]*\) .*/ in \1/; s/[@:].*//'`)
	add("address", "ip -o -4 addr | awk '{print $2, $4}'")
	add("mount", "awk '{print $2}' /proc/mounts | grep -E '^(/run|/sys|/var|"+filepath.Dir(m.dir)+")'") // others' come and go
	add("socket", "ss -Hlntu | awk '{print $1, $5}' | sed 's/:[0-9]\\{5\\}$/:any/'; ss -Hlnx | awk '{print $5}' | sed 's,.*/,,'")
	// Files that are half written when somebody dies are made anew by the next.
	const files = ` -not -type d -not -name .lock -not -name '*.new' 2>/dev/null; true`
	add("file", "find /run"+files)
	add("state", "find "+m.dir+files)
	for _, name := range randomGuests {
		trees, _ := filepath.Glob("/sys/fs/cgroup/*/ecboot/" + name)
		for _, tree := range append(trees, "/sys/fs/cgroup/ecboot/"+name) {
			filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					list = append(list, "control group "+path)
				}
				return nil
			})
		}
	}
	for _, p := range m.processes() {
		list = append(list, "process "+p.String())
	}
	slices.Sort(list)
	return list
}
