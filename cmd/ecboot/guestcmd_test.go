package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/internal/api"
	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/internal/nettest"
)

// fakeUp answers in place of 'ecboot up'.
type fakeUp struct {
	mu       sync.Mutex
	guests   []api.Guest
	calls    []string
	writer   net.Conn // the console's
	consoles chan net.Conn
	past     int    // bytes
	config   string // the file that it reads
	ending   string // a guest that is about to end, and is started again
	reload   func() error
}

// listenFake serves f where the verbs look for 'ecboot up', for members of a
// group as well.
func listenFake(t *testing.T, f *fakeUp, group string) {
	t.Helper()
	nettest.NeedRoot(t)
	f.consoles = make(chan net.Conn, 8)
	cfg := config.Default()
	cfg.Server.OperatorGroup = group
	s, err := listenUp(cfg, api.Backend{
		Status: func() api.Status {
			return api.Status{Schema: api.Schema, Config: f.config, Segments: []api.Segment{}, Machines: []api.Machine{}}
		},
		Reload: func() error {
			if f.reload == nil {
				return nil
			}
			return f.reload()
		},
		Guests: f,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		os.RemoveAll(filepath.Join(userDirs().Run, upName))
	})
}

func (f *fakeUp) did(name, format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, name+" "+fmt.Sprintf(format, args...))
	return nil
}

// said returns what was asked for since it was called last, in order.
func (f *fakeUp) said() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer func() { f.calls = nil }()
	return strings.Join(f.calls, "; ")
}

func (f *fakeUp) List() []api.Guest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.guests
}

func (f *fakeUp) Start(_ context.Context, name string) error {
	f.did(name, "start")
	if name == f.ending {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.guests = slices.Clone(f.guests)
		f.guests[slices.IndexFunc(f.guests, func(g api.Guest) bool { return g.Name == name })].Keeper++
	}
	if name == "old" {
		return errors.New("guest old: disk /srv/old.raw: no such file")
	}
	return nil
}

func (f *fakeUp) Stop(_ context.Context, name string, firm bool) (string, error) {
	if f.did(name, "stop %t", firm); firm || name == "web" {
		return "killed QEMU", nil
	}
	return "power button", nil
}

func (f *fakeUp) Restart(_ context.Context, name string) (string, error) {
	return "power button", f.did(name, "restart")
}

func (f *fakeUp) Reset(_ context.Context, name string) error { return f.did(name, "reset") }

func (f *fakeUp) Console(_ context.Context, name string, write bool) (io.ReadWriteCloser, error) {
	f.did(name, "console %t", write)
	f.mu.Lock()
	defer f.mu.Unlock()
	if write && f.writer != nil {
		return nil, api.ErrBusy
	}
	ours, theirs := net.Pipe()
	if write {
		f.writer = ours
	}
	f.consoles <- ours
	return pastConsole{theirs, f.past}, nil
}

// pastConsole is a console whose first bytes are of the past.
type pastConsole struct {
	net.Conn
	past int
}

func (c pastConsole) History() int { return c.past }

func (f *fakeUp) Log(_ context.Context, name string, lines int) ([]byte, error) {
	f.did(name, "log %d", lines)
	if name == "old" {
		return nil, nil
	}
	return []byte("Welcome\ndb login: \n"), nil
}

// dot is a picture of one pixel.
const dot = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

func (f *fakeUp) Screenshot(_ context.Context, name string) ([]byte, error) {
	f.did(name, "screenshot")
	if name == "box" {
		return nil, errors.New("a container has no screen")
	}
	return base64.StdEncoding.DecodeString(dot)
}

// One that was about to end by itself has been started again, and says so.
func TestStartOfAnEndingGuest(t *testing.T) {
	listenFake(t, &fakeUp{guests: fakeGuests(), ending: "db"}, "users")
	if r := ecboot(t, "guest", "start", "db"); r.code != 0 || r.stdout != "db: started\n" {
		t.Errorf("exit code %d, %q", r.code, r.stdout)
	}
}

func fakeGuests() []api.Guest {
	long := time.Now().Add(-50 * time.Hour)
	mac := boot.MAC{2, 1, 0x27, 0x5b, 0x95, 0x9e}
	return []api.Guest{
		{
			Name: "db", Node: "host-db", Backend: "qemu", State: api.Running, Profile: "debian", PID: 4711, Keeper: 4700, Restarts: 2, Since: long,
			MACs: []boot.MAC{mac}, Addresses: []string{"10.77.0.50"}, Drift: []string{"memory is 1G, declared is 2G"}, Autostart: true,
			Command: []string{"/usr/bin/qemu-system-x86_64", "-name", "guest=db, the first"}, Unit: "ecboot-guest-db.scope",
			NICs:  []api.NIC{{Network: "segment lan", MAC: &mac, Address: "10.77.0.50"}, {Network: "user"}},
			Disks: []api.Disk{{Path: "/srv/db.qcow2", Format: "qcow2", Size: 16 << 30}, {Path: "/srv/cd.iso", ReadOnly: true}},
			TPM:   true, VNC: "/run/ecboot/guests/db/vnc.sock",
		},
		{Name: "web", Backend: "microvm", State: api.Waiting, LastExit: "the kernel panicked", NextStart: time.Now().Add(time.Hour), MACs: []boot.MAC{}, Addresses: []string{}, Drift: []string{}, NICs: []api.NIC{}, Disks: []api.Disk{}},
		{Name: "box", Backend: "container", State: api.Running, Since: long, Addresses: []string{"10.77.0.51"}},
		{Name: "old", Backend: "qemu", State: api.Stopped, LastExit: "it switched itself off", Addresses: []string{"10.77.0.9"}},
	}
}

func TestGuestVerbs(t *testing.T) {
	f := &fakeUp{guests: fakeGuests()}
	listenFake(t, f, "users")
	dir := t.TempDir()
	tests := []struct {
		name  string
		args  []string
		code  int
		want  []string
		calls string
	}{
		{"list", []string{"list"}, 0, []string{
			"NAME  BACKEND    STATE    SINCE  RESTARTS  ADDRESS      NOTE\n",
			"db    qemu       running  2d     2         10.77.0.50   memory is 1G, declared is 2G\n",
			"web   microvm    waiting  -      0         -            the kernel panicked; started again in ",
			"old   qemu       stopped  -      0         (10.77.0.9)  last exit: it switched itself off\n"}, ""},
		{"list for programs", []string{"list", "-o", "json"}, 0, []string{`"schema": 1`, `"guests": [`, `"state": "running"`, `"next_start": "`}, ""},
		{"list takes nothing", []string{"list", "db"}, 2, []string{`"db"`}, ""},
		{"list in no form", []string{"list", "-o", "xml"}, 2, []string{"want text or json"}, ""},

		{"show", []string{"show", "db"}, 0, []string{
			"name       db\n", "node       host-db\n", "state      running since ", " (2d)\n", "restarts   2\n", "autostart  yes\n", "process    4711\n",
			"nic 0      segment lan  02:01:27:5b:95:9e  10.77.0.50\n", "nic 1      user\n", "disk 0     /srv/db.qcow2  qcow2  16G\n", "disk 1     /srv/cd.iso  read-only\n",
			"tpm        yes\n", "vnc        /run/ecboot/guests/db/vnc.sock\n",
			"drift      memory is 1G, declared is 2G\n\n/usr/bin/qemu-system-x86_64 -name 'guest=db, the first'\n"}, ""},
		{"show for programs", []string{"show", "db", "-o", "json"}, 0, []string{`"guest": {`, `"drift": [`, `"mac": "02:01:27:5b:95:9e"`}, ""},
		{"show what", []string{"show"}, 2, []string{"takes GUEST"}, ""},
		{"show nobody", []string{"show", "dbb"}, 2, []string{"there is no guest dbb: there are db, web, box, old"}, ""},

		{"start", []string{"start", "web", "db", "web"}, 0, []string{"web: started\ndb: started (it ran already)\n"}, "web start; db start"},
		{"start all", []string{"start", "--all"}, 1, []string{"web: started\n", "old: disk /srv/old.raw: no such file"}, "web start; old start"},
		{"start for programs", []string{"start", "old", "web", "-o", "json"}, 1, []string{`"done": "started"`, `"error": "disk /srv/old.raw: no such file"`}, "old start; web start"},
		{"start what", []string{"start"}, 2, []string{"which guest?", "--all"}, ""},
		{"start two ways", []string{"start", "--all", "db"}, 2, []string{"one of the two"}, ""},
		{"start nobody", []string{"start", "db", "x", "y"}, 2, []string{"there is no guest x, y"}, ""},

		{"stop", []string{"stop", "db"}, 0, []string{"db: stopped (power button)\n"}, "db stop false"},
		{"stop now", []string{"stop", "db", "--now"}, 0, []string{"db: stopped (killed QEMU)\n"}, "db stop true"},
		{"stop all", []string{"stop", "--all"}, 0, []string{"db: stopped (power button)\n", "web: stopped (killed QEMU)\n", "box: stopped (power button)\n"}, "*"},
		{"stop for programs", []string{"stop", "db", "-o", "json"}, 0, []string{`"name": "db"`, `"done": "stopped"`, `"how": "power button"`}, "db stop false"},
		{"stop nobody", []string{"stop", ""}, 2, []string{"argument 1 of 'ecboot guest stop' is empty"}, ""},
		{"stop what", []string{"stop", "--now"}, 2, []string{"which guest?"}, ""},

		{"restart", []string{"restart", "db"}, 0, []string{"db: restarted (power button)\n"}, "db restart"},
		{"restart what", []string{"restart"}, 2, []string{"which guest?"}, ""},
		{"restart nobody", []string{"restart", "nobody"}, 2, []string{"there is no guest nobody"}, ""},
		{"reset", []string{"reset", "db"}, 0, []string{"db: reset\n"}, "db reset"},
		{"reset what", []string{"reset"}, 2, []string{"which guest?"}, ""},
		{"reset all", []string{"reset", "--all"}, 2, []string{"unknown flag: --all"}, ""},

		{"log", []string{"log", "db"}, 0, []string{"Welcome\ndb login: \n"}, "db log 100"},
		{"log of one that is gone", []string{"log", "old", "-n", "0"}, 0, []string{"old has said nothing"}, "old log 0"},
		{"log for programs", []string{"log", "db", "-n", "5", "-o", "json"}, 0, []string{`"lines": [`, `"Welcome",`, `"db login: "`}, "db log 5"},
		{"log of less than nothing", []string{"log", "db", "-n", "-1"}, 2, []string{"-n -1"}, ""},
		{"log of nobody", []string{"log", "nobody"}, 2, []string{"there is no guest nobody"}, ""},
		{"nothing to follow", []string{"log", "-f", "old"}, 1, []string{"old is stopped (it switched itself off)", "ecboot guest start old"}, ""},

		{"console of one that does not run", []string{"console", "web"}, 1, []string{"web is waiting (the kernel panicked)", "ecboot guest log web"}, ""},
		{"console of nobody", []string{"console", "nobody"}, 2, []string{"there is no guest nobody"}, ""},
		{"console of two", []string{"console", "db", "web"}, 2, []string{"takes GUEST, not"}, ""},

		{"the command of nobody", []string{"exec-args", "nobody"}, 2, []string{"there is no guest nobody", "[guest.nobody]"}, ""},
		{"the command of what", []string{"exec-args"}, 2, []string{"takes GUEST: see"}, ""},
		{"screenshot", []string{"screenshot", "db", filepath.Join(dir, "db.png")}, 0, []string{"db: 1×1 to "}, "db screenshot"},
		{"screenshot for programs", []string{"screenshot", "db", filepath.Join(dir, "db.png"), "-o", "json"}, 0, []string{`"width": 1`, `"file": "` + dir}, "db screenshot"},
		{"screenshot through a pipe", []string{"screenshot", "db", "-"}, 0, []string{"PNG"}, "db screenshot"},
		{"screenshot of a container", []string{"screenshot", "box", filepath.Join(dir, "box.png")}, 1, []string{"a container has no screen"}, "box screenshot"},
		{"screenshot into nowhere", []string{"screenshot", "db", "/no/such/db.png"}, 1, []string{"/no/such/db.png"}, "db screenshot"},
		{"screenshot and a document", []string{"screenshot", "db", "-", "-o", "json"}, 2, []string{"name a file"}, ""},
		{"screenshot of one that does not run", []string{"screenshot", "old", "-"}, 1, []string{"old is stopped"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := ecboot(t, append([]string{"guest"}, tt.args...)...)
			r.want(t, tt.code, tt.want...)
			if calls := f.said(); tt.calls != "*" && calls != tt.calls {
				t.Errorf("asked for %q, want %q", calls, tt.calls)
			}
			if tt.code == exitUsage && r.stdout != "" {
				t.Errorf("standard output is for answers, but it has\n%s", r.stdout)
			}
		})
	}
	if _, err := os.Stat(filepath.Join(dir, "box.png")); err == nil {
		t.Error("a picture that there was not was written")
	}

	t.Run("many", func(t *testing.T) {
		f.mu.Lock()
		f.guests = nil
		for i := range 40 {
			f.guests = append(f.guests, api.Guest{Name: fmt.Sprintf("node-%02d", i)})
		}
		f.mu.Unlock()
		ecboot(t, "guest", "show", "node-4").want(t, 2, "no guest node-4: did you mean node-04", "'ecboot guest list' lists the 40")
		ecboot(t, "guest", "show", "database").want(t, 2, "no guest database: 'ecboot guest list' lists the 40")
	})
	t.Run("none", func(t *testing.T) {
		f.mu.Lock()
		f.guests = nil
		f.mu.Unlock()
		ecboot(t, "guest", "list").want(t, 0, "no guests: tables such as [guest.db]")
		ecboot(t, "guest", "list", "-o", "json").want(t, 0, `"guests": []`)
		ecboot(t, "guest", "show", "db").want(t, 2, "the configuration declares none")
		ecboot(t, "guest", "stop", "--all").want(t, 0, "no guest is to be stopped")
	})
}

// TestGuestDocuments has every field of the documents that programs read: a field
// may be added here, and none may go.
func TestGuestDocuments(t *testing.T) {
	at := time.Date(2026, 11, 25, 22, 0, 0, 0, time.UTC)
	g := fakeGuests()[0]
	g.Since, g.NextStart, g.LastExit = at, at.Add(time.Minute), "crashed"
	g.NICs[0].Link, g.Disks[1].Base, g.Disks[1].Lost = "tap0", "/srv/golden.qcow2", true
	listenFake(t, &fakeUp{guests: []api.Guest{g}}, "users")
	want := func(verb, want string, args ...string) {
		t.Helper()
		r := ecboot(t, append([]string{"guest", verb, "-o", "json"}, args...)...)
		if diff := cmp.Diff(want, r.stdout); r.code != 0 || diff != "" {
			t.Errorf("%s: exit code %d\n%s", verb, r.code, diff)
		}
	}
	want("show", `{
  "guest": {
    "name": "db",
    "node": "host-db",
    "backend": "qemu",
    "state": "running",
    "profile": "debian",
    "pid": 4711,
    "keeper": 4700,
    "restarts": 2,
    "since": "2026-11-25T22:00:00Z",
    "next_start": "2026-11-25T22:01:00Z",
    "macs": [
      "02:01:27:5b:95:9e"
    ],
    "addresses": [
      "10.77.0.50"
    ],
    "last_exit": "crashed",
    "drift": [
      "memory is 1G, declared is 2G"
    ],
    "autostart": true,
    "command": [
      "/usr/bin/qemu-system-x86_64",
      "-name",
      "guest=db, the first"
    ],
    "unit": "ecboot-guest-db.scope",
    "nics": [
      {
        "network": "segment lan",
        "mac": "02:01:27:5b:95:9e",
        "address": "10.77.0.50",
        "link": "tap0"
      },
      {
        "network": "user"
      }
    ],
    "disks": [
      {
        "path": "/srv/db.qcow2",
        "format": "qcow2",
        "size": 17179869184
      },
      {
        "path": "/srv/cd.iso",
        "base": "/srv/golden.qcow2",
        "read_only": true,
        "lost_at_stop": true
      }
    ],
    "tpm": true,
    "vnc": "/run/ecboot/guests/db/vnc.sock"
  },
  "schema": 1
}
`, "db")
	want("stop", `{
  "guests": [
    {
      "name": "db",
      "done": "stopped",
      "how": "power button"
    }
  ],
  "schema": 1
}
`, "db")
	want("log", `{
  "log": {
    "name": "db",
    "lines": [
      "Welcome",
      "db login: "
    ]
  },
  "schema": 1
}
`, "db")
}

// What runs for long must not hold what ecboot was started with, such as a lock.
func TestChildrenInheritNothing(t *testing.T) {
	dir := t.TempDir()
	file, seen := filepath.Join(dir, "ecboot.toml"), filepath.Join(dir, "seen")
	lock, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	cmd := ecbootCommand(t, t.Context(), "guest", "edit", "--config", file)
	cmd.ExtraFiles = []*os.File{lock}
	cmd.Env = append(cmd.Env, "VISUAL=sh -c 'readlink /proc/self/fd/3 >"+seen+"; test -e "+seen+"'")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if inherited, err := os.ReadFile(seen); err != nil || len(inherited) > 0 {
		t.Errorf("the editor has %s, %v", inherited, err)
	}
}

func TestNoSupervisor(t *testing.T) {
	nettest.NeedRoot(t)
	for _, args := range []string{"list", "show db", "start db", "stop --all", "restart db", "reset db", "console db", "log db", "screenshot db -"} {
		ecboot(t, append([]string{"guest"}, strings.Fields(args)...)...).want(t, exitEnvironment, "no 'ecboot up' runs here", "systemctl start ecboot")
	}
	// One that was killed leaves its socket.
	dir, err := makeUpDir(userDirs().Run, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, api.SocketName)})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	ecboot(t, "guest", "list").want(t, exitEnvironment, "no 'ecboot up' runs here")
}

// A guest that somebody has stopped, or that has crashed before, says so.
func TestGuestStoppedByHand(t *testing.T) {
	f := &fakeUp{guests: []api.Guest{{Name: "db", Backend: "qemu", State: api.Stopped, Down: api.ByHand, Autostart: true, LastExit: "killed"}}}
	listenFake(t, f, "users")
	ecboot(t, "guest", "list").want(t, 0, "stopped by hand: 'ecboot guest start db' starts it\n")
	ecboot(t, "guest", "show", "db").want(t, 0, "autostart  yes\n", "down       by hand\n", "last exit  killed\n")
	f.mu.Lock()
	f.guests = []api.Guest{{Name: "db", Backend: "qemu", State: api.Running, Restarts: 1, LastExit: "guest-panic: oops"}}
	f.mu.Unlock()
	ecboot(t, "guest", "list").want(t, 0, "last exit: guest-panic: oops\n") // after which it was started again
}

// A guest that could not be started and will be tried again is not down yet.
func TestStopAllEndsTries(t *testing.T) {
	f := &fakeUp{guests: []api.Guest{{Name: "db", State: api.Failed, NextStart: time.Now().Add(time.Hour)}, {Name: "old", State: api.Failed}}}
	listenFake(t, f, "users")
	ecboot(t, "guest", "stop", "--all").want(t, 0, "db: stopped")
	if calls := f.said(); calls != "db stop false" {
		t.Errorf("%q", calls)
	}
}

// Members of the group do over the socket what root does, and nobody else does
// or sees anything.
func TestOperators(t *testing.T) {
	nettest.NeedRoot(t)
	nettest.Need(t, "setpriv")
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	// The test binary must be in reach of users without rights.
	bin := "/run/ecboot-operators.test"
	if err := os.WriteFile(bin, exe, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(bin)
	home := t.TempDir()
	for d := home; d != "/tmp" && d != "/"; d = filepath.Dir(d) {
		os.Chmod(d, 0o777)
	}
	as := func(t *testing.T, who string, args ...string) result {
		t.Helper()
		cmd := exec.Command("setpriv", append(append(strings.Fields(who), "--inh-caps=-all", bin), args...)...)
		cmd.Env = []string{mainVar + "=1", "HOME=" + home, "PATH=" + os.Getenv("PATH")}
		cmd.Dir = "/"
		return resultOf(t, cmd)
	}
	const operator, stranger = "--reuid=games --regid=nogroup --groups=users", "--reuid=games --regid=nogroup --clear-groups"
	private := filepath.Join(userDirs().Run, "1")
	if err := os.MkdirAll(private, 0o700); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(private)

	t.Run("with a group", func(t *testing.T) {
		f := &fakeUp{guests: fakeGuests()}
		listenFake(t, f, "users")
		as(t, operator, "guest", "list").want(t, 0, "db ", "running")
		as(t, operator, "guest", "stop", "db").want(t, 0, "db: stopped (power button)")
		as(t, operator, "guest", "screenshot", "db", "-").want(t, 0, "PNG")
		as(t, operator, "guest", "log", "db").want(t, 0, "login:")
		f.said()
		as(t, stranger, "guest", "stop", "db").want(t, exitEnvironment, "root's", "join the group users: 'sudo usermod -aG users games'")
		if calls := f.said(); calls != "" {
			t.Errorf("a stranger has done %s", calls)
		}
		for path, want := range map[string]fs.FileMode{
			"/run/ecboot": 0o711, "/run/ecboot/1": 0o700, "/run/ecboot/up": 0o750, "/run/ecboot/up/" + api.SocketName: 0o660,
		} {
			if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
				t.Errorf("%s: %v %v, want mode %v", path, st.Mode(), err, want)
			}
		}
		// What needs files says so.
		dir := t.TempDir()
		file := filepath.Join(dir, "ecboot.toml")
		if err := os.WriteFile(file, []byte("[guest.db]\nbackend = \"microvm\"\n[server]\nstate_dir = \""+dir+"\"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		for d := dir; d != "/tmp" && d != "/"; d = filepath.Dir(d) {
			os.Chmod(d, 0o755)
		}
		as(t, operator, "guest", "edit", "--config", file).want(t, exitEnvironment, file, "sudo ecboot guest edit")
		macs := filepath.Join(dir, "macs")
		if err := os.WriteFile(macs, []byte("web 02:01:27:00:00:01\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		as(t, operator, "guest", "import", macs, "--config", file).want(t, exitEnvironment, dir, "sudo ecboot guest import")
		// Those addresses are the supervisor's, and not the operator's own.
		f.config = filepath.Join(dir, "machine.toml")
		if err := os.WriteFile(f.config, []byte("[guest.db]\nbackend = \"microvm\"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		as(t, operator, "guest", "import", macs).want(t, exitEnvironment, rootDirs().State, "sudo ecboot guest import")
	})
	image := filepath.Join(home, "image")
	if err := os.Mkdir(image, 0o755); err != nil {
		t.Fatal(err)
	}
	as(t, stranger, "install", "--root", image).want(t, exitEnvironment, image+"/usr", ": permission denied: run it as root")
	// Verbs that read state directories know of servers of their user's alone.
	for _, tt := range []struct {
		args string
		code int
		want string
	}{
		{"machine list", 0, "what root runs is shown to root"},
		{"lease list", 0, "what root runs is shown to root"},
		{"machine show node1", 1, "what root runs is shown to root"},
		{"lease show node1", 1, "what root runs is shown to root"},
		{"machine set 52:54:00:00:00:01 tags=a", 0, "kept in " + home + "/.local/state/ecboot/machines.json for servers that you run yourself"},
	} {
		as(t, stranger, strings.Fields(tt.args)...).want(t, tt.code, tt.want)
	}
	t.Run("joined since the login", func(t *testing.T) {
		listenFake(t, &fakeUp{}, "games")
		as(t, stranger, "guest", "list").want(t, exitEnvironment, "you have joined the group games since you logged in", "newgrp games")
	})
	t.Run("without a group", func(t *testing.T) {
		listenFake(t, &fakeUp{guests: fakeGuests()}, "no-such-group")
		as(t, operator, "guest", "list").want(t, exitEnvironment, "run this as root", "operator_group")
		ecboot(t, "guest", "list").want(t, 0, "db")
	})
}

func (f *fakeUp) console(t *testing.T) net.Conn {
	t.Helper()
	select {
	case c := <-f.consoles:
		t.Cleanup(func() { c.Close() })
		return c
	case <-inTime(t, t.Context()).Done():
		t.Fatal("nobody has opened a console")
		return nil
	}
}

func TestGuestConsole(t *testing.T) {
	f := &fakeUp{guests: fakeGuests()}
	listenFake(t, f, "users")
	sit := func(t *testing.T, args ...string) (person *os.File, screen *bufio.Reader, wait func()) {
		t.Helper()
		person, program := openTerminal(t)
		cmd := ecbootCommand(t, t.Context(), append([]string{"guest", "console", "db"}, args...)...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = program, program, program
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		program.Close()
		screen = bufio.NewReader(person)
		return person, screen, func() {
			t.Helper()
			go io.Copy(io.Discard, screen)
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		}
	}
	t.Run("one types and others watch", func(t *testing.T) {
		person, screen, wait := sit(t)
		guest := f.console(t)
		io.WriteString(guest, "what was\r\n")
		readUntil(t, screen, escapeKeyName+" leaves it, and the guest goes on\r\n")
		readUntil(t, screen, "what was\r\n")
		io.WriteString(person, "ls\x03")
		typed := make([]byte, 3)
		if _, err := io.ReadFull(guest, typed); err != nil || string(typed) != "ls\x03" {
			t.Errorf("the guest got %q, %v", typed, err)
		}

		second, secondScreen, secondWait := sit(t)
		readUntil(t, secondScreen, "somebody else types at the console of db: you only watch\r\n")
		io.WriteString(f.console(t), "seen by both\r\n")
		readUntil(t, secondScreen, "seen by both\r\n")
		io.WriteString(second, "x\x03")
		secondWait()

		cmd := ecbootCommand(t, t.Context(), "guest", "console", "db")
		cmd.Stdin = strings.NewReader("reboot\n")
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "somebody else types at its console") {
			t.Errorf("%v\n%s", err, out)
		}

		io.WriteString(person, string(rune(escapeKey)))
		wait()
		f.mu.Lock()
		f.writer = nil
		f.mu.Unlock()
	})
	t.Run("only watching", func(t *testing.T) {
		person, screen, wait := sit(t, "--read-only")
		io.WriteString(f.console(t), "$ ")
		readUntil(t, screen, "$ ")
		io.WriteString(person, string(rune(escapeKey)))
		wait()
	})
	t.Run("the guest ends", func(t *testing.T) {
		_, screen, wait := sit(t, "--read-only")
		f.console(t).Close()
		readUntil(t, screen, "the console of db has ended: 'ecboot guest show db'")
		wait()
	})
	t.Run("through pipes", func(t *testing.T) {
		cmd := ecbootCommand(t, t.Context(), "guest", "console", "db")
		cmd.Stdin = strings.NewReader("reboot\n")
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		guest := f.console(t)
		if line, err := bufio.NewReader(guest).ReadString('\n'); err != nil || line != "reboot\n" {
			t.Errorf("the guest got %q, %v", line, err)
		}
		io.WriteString(guest, "going down\r\n")
		guest.Close()
		if err := cmd.Wait(); err != nil || out.String() != "going down\r\n" {
			t.Errorf("%v, %q", err, out.String())
		}
	})
	t.Run("what was asked before is not answered now", func(t *testing.T) {
		past := "a\x1b[6nb\x1b[1;31mc\x1b[0c\x1b]11;?\x07d"
		f.past = len(past)
		defer func() { f.past = 0 }()
		person, screen, wait := sit(t, "--read-only")
		io.WriteString(f.console(t), past+"\x1b[6n$ ")
		readUntil(t, screen, "ab\x1b[1;31mcd\x1b[6n$ ")
		io.WriteString(person, string(rune(escapeKey)))
		wait()
	})
	t.Run("the last lines and what comes", func(t *testing.T) {
		past := "one\r\ntwo\r\nthree\r\nfo"
		f.past = len(past)
		defer func() { f.past = 0 }()
		cmd := ecbootCommand(t, t.Context(), "guest", "log", "db", "-fn", "2")
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		guest := f.console(t)
		io.WriteString(guest, past+"ur\r\nfive\r\n")
		guest.Close()
		if err := cmd.Wait(); err != nil || out.String() != "two\nthree\nfour\nfive\n" {
			t.Errorf("%v, %q", err, out.String())
		}
	})
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"guest", "console", "db", "-o", "json"}, `{"schema":1,"name":"db","line":"Welcome"}` + "\n"},
		{[]string{"guest", "log", "-f", "db"}, "Welcome\n"},
		{[]string{"guest", "log", "-f", "db", "-o", "json"}, `{"schema":1,"name":"db","line":"Welcome"}` + "\n"},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			cmd := ecbootCommand(t, t.Context(), tt.args...)
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			guest := f.console(t)
			io.WriteString(guest, "\x1b[2J\x1b[1;1HWelcome\r\n")
			guest.Close()
			if err := cmd.Wait(); err != nil || out.String() != tt.want {
				t.Errorf("%v, %q", err, out.String())
			}
		})
	}
}

func TestGuestEdit(t *testing.T) {
	f := &fakeUp{guests: fakeGuests()}
	listenFake(t, f, "users")
	dir := t.TempDir()
	file := filepath.Join(dir, "ecboot.toml")
	base := "[server]\nstate_dir = \"" + dir + "\"\n\n[guest.db]\nbackend = \"microvm\"\nmemory = \"1G\"\n[guest.old]\nbackend = \"microvm\"\n"
	write := func(t *testing.T) {
		t.Helper()
		if err := errors.Join(os.WriteFile(file, []byte(base), 0o640), os.Chmod(file, 0o640), os.Chown(file, 5, 100)); err != nil {
			t.Fatal(err)
		}
	}
	edit := func(t *testing.T, script string, args ...string) result {
		t.Helper()
		t.Setenv("VISUAL", "")
		t.Setenv("EDITOR", "sh -c '"+script+"' editor")
		return ecboot(t, append([]string{"guest", "edit", "--config", file}, args...)...)
	}
	text := func() string {
		data, _ := os.ReadFile(file)
		return string(data)
	}
	left := func(t *testing.T) []string {
		t.Helper()
		list, err := filepath.Glob(filepath.Join(dir, ".edit-*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range list {
			os.Remove(name)
		}
		return list
	}
	const change = `sed -i -e s/1G/2G/ -e /guest.old/,\$d "$1"; printf "[guest.web]\nbackend = \"microvm\"\n" >> "$1"`
	reloads := 0
	f.reload = func() error { reloads++; return nil }
	t.Run("change", func(t *testing.T) {
		write(t)
		edit(t, change).want(t, 0, "[guest.db] memory = \"2G\"\n", "[guest.web] is new\n", "[guest.old] is gone\n",
			"'ecboot up' has taken it over", "still as before until 'ecboot guest restart db'")
		if !strings.Contains(text(), "guest.web") || reloads != 1 || left(t) != nil {
			t.Errorf("reloaded %d times; the file is\n%s", reloads, text())
		}
		var st unix.Stat_t
		if err := unix.Stat(file, &st); err != nil || st.Mode&0o777 != 0o640 || st.Uid != 5 || st.Gid != 100 {
			t.Errorf("%v: mode %o, owner %d:%d", err, st.Mode, st.Uid, st.Gid)
		}
	})
	t.Run("through a link", func(t *testing.T) {
		write(t)
		link := filepath.Join(t.TempDir(), "ecboot.toml")
		if err := os.Symlink(file, link); err != nil {
			t.Fatal(err)
		}
		edit(t, change, "--config", link, "-o", "json").want(t, 0, `"reloaded": true`, `"restart": [`, file)
		if st, err := os.Lstat(link); err != nil || st.Mode()&fs.ModeSymlink == 0 || !strings.Contains(text(), "guest.web") {
			t.Errorf("%v, %v\n%s", st, err, text())
		}
	})
	t.Run("what is opened at the start", func(t *testing.T) {
		write(t)
		const what = "until 'ecboot up' is restarted"
		if r := edit(t, change); strings.Contains(r.stdout, what) {
			t.Error(r.stdout)
		}
		write(t)
		const port = `printf "[server]\nhttp_port = 8080\n" >> "$1"; sed -i 1,2d "$1"`
		edit(t, port).want(t, 0, "[server] http_port = 8080\n", what)
		write(t)
		edit(t, port, "-o", "json").want(t, 0, `"restart_up": true`)
	})
	t.Run("nothing", func(t *testing.T) {
		write(t)
		if r := edit(t, "true"); r.code != 0 || r.stdout != file+": nothing was changed\n" || r.stderr != "" {
			t.Errorf("%+v", r)
		}
		edit(t, `echo "# nothing" >> "$1"`).want(t, 0, "nothing that counts was changed")
	})
	t.Run("mistakes", func(t *testing.T) {
		write(t)
		r := edit(t, `printf "colour = 1\n[guest.web]\nbackend = \"xen\"\n" >> "$1"`)
		r.want(t, exitUsage, file+":9:1: guest.old.colour", file+":11:11: guest.web.backend", "is left as it is; your version is "+dir+"/.edit-")
		if kept := left(t); text() != base || len(kept) != 1 {
			t.Errorf("%v\n%s", kept, text())
		}
	})
	t.Run("the editor fails", func(t *testing.T) {
		write(t)
		edit(t, "exit 3").want(t, exitFailed, "exit status 3")
		if left(t) != nil || text() != base {
			t.Error(text())
		}
		edit(t, `echo >> "$1"; exit 3`).want(t, exitFailed, "your version is")
		if len(left(t)) != 1 || text() != base {
			t.Error(text())
		}
	})
	t.Run("two at once", func(t *testing.T) {
		write(t)
		edit(t, `echo "# mine" >> "$1"; echo "# theirs" >> `+file).want(t, exitFailed, "changed by somebody else meanwhile", "your version is")
		if len(left(t)) != 1 || !strings.HasSuffix(text(), "# theirs\n") {
			t.Error(text())
		}
	})
	t.Run("the file of 'ecboot up'", func(t *testing.T) {
		write(t)
		f.config = file
		defer func() { f.config = "" }()
		t.Setenv("VISUAL", "true")
		ecboot(t, "guest", "edit").want(t, 0, file+": nothing was changed")
		f.config = "/etc/hosts"
		edit(t, change).want(t, exitFailed, file+" is written, but 'ecboot up' has not taken it over: it reads /etc/hosts")
	})
	t.Run("a supervisor that refuses", func(t *testing.T) {
		write(t)
		f.reload = func() error { return errors.New("no space left on device") }
		defer func() { f.reload = nil }()
		edit(t, change).want(t, exitFailed, file+" is written, but 'ecboot up' has not taken it over: no space left on device")
	})
	t.Run("at the table of a guest", func(t *testing.T) {
		write(t)
		vi := filepath.Join(t.TempDir(), "vi")
		if err := os.WriteFile(vi, []byte("#!/bin/sh\necho \"$1\" >&2\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("VISUAL", vi)
		ecboot(t, "guest", "edit", "--config", file, "db").want(t, 0, "+4\n", "nothing was changed")
		ecboot(t, "guest", "edit", "--config", file, "dd").want(t, exitUsage, "there is no guest dd: there are db, old")
	})
	t.Run("on a terminal", func(t *testing.T) {
		write(t)
		person, program := openTerminal(t)
		t.Setenv("VISUAL", "")
		// The first time wrong, then right.
		t.Setenv("EDITOR", `sh -c 'grep -q colour "$1" && sed -i /colour/d "$1" && sed -i s/1G/2G/ "$1" || echo "colour = 1" >> "$1"' editor`)
		cmd := ecbootCommand(t, t.Context(), "guest", "edit", "--config", file)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = program, program, program
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		program.Close()
		screen := bufio.NewReader(person)
		readUntil(t, screen, "guest.old.colour")
		readUntil(t, screen, "edit again? [Y/n] ")
		io.WriteString(person, "\n")
		readUntil(t, screen, `memory = "2G"`)
		go io.Copy(io.Discard, screen)
		if err := cmd.Wait(); err != nil || left(t) != nil {
			t.Error(err)
		}
	})
	t.Run("no file", func(t *testing.T) {
		ecboot(t, "guest", "edit").want(t, exitUsage, "no configuration file to edit")
		ecboot(t, "guest", "edit", "db", "web").want(t, exitUsage, "takes [GUEST], not")
	})
}

func TestGuestImport(t *testing.T) {
	f := &fakeUp{guests: fakeGuests()}
	listenFake(t, f, "users")
	dir := t.TempDir()
	file, list := filepath.Join(dir, "ecboot.toml"), filepath.Join(dir, "macs")
	text := "[server]\nstate_dir = \"" + dir + "\"\n"
	for _, name := range []string{"db", "web"} {
		text += "[guest." + name + "]\nbackend = \"microvm\"\n[[guest." + name + ".nic]]\nsegment = \"private\"\n"
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	run := func(macs string, args ...string) result {
		t.Helper()
		if err := os.WriteFile(list, []byte(macs), 0o644); err != nil {
			t.Fatal(err)
		}
		return ecboot(t, append([]string{"guest", "import", "--config", file, list}, args...)...)
	}
	stored := func() string {
		data, _ := os.ReadFile(filepath.Join(dir, "macs.json"))
		return string(data)
	}
	reloads := 0
	f.reload = func() error { reloads++; return nil }

	// db runs with 02:01:27:5b:95:9e.
	run("db 02:01:27:00:00:01\nweb 02:01:27:00:00:02\n").want(t, exitFailed, "db runs with 02:01:27:5b:95:9e, which would become 02:01:27:00:00:01: 'ecboot guest stop db' first")
	run("db nonsense\nweb = 7\n").want(t, exitUsage, list+": line 1:", "line 2:")
	if stored() != "" || reloads != 0 {
		t.Errorf("half of it was taken: %s", stored())
	}
	run("db 02:01:27:5b:95:9e\nweb 02:01:27:00:00:02\nlater 02:01:27:00:00:03\n").want(t, 0,
		"db     02:01:27:5b:95:9e  added\n", "web    02:01:27:00:00:02  added\n", "later  02:01:27:00:00:03  added, and not declared")
	if !strings.Contains(stored(), "02:01:27:00:00:02") || reloads != 1 {
		t.Errorf("reloaded %d times; stored %s", reloads, stored())
	}
	before := stored()
	run("web 02:01:27:00:00:04\nnew 02:01:27:00:00:03\n").want(t, exitUsage, "nothing was taken", "web has 02:01:27:00:00:02 already", "--replace", "is the address of both")
	if stored() != before {
		t.Errorf("half of it was taken: %s", stored())
	}
	run("web 02:01:27:00:00:04\n", "--replace", "-o", "json").want(t, 0, `"name": "web"`, `"done": "replaced"`, `"declared": true`)
	// A second card goes by the name alone where the first has an address.
	mail := "[guest.mail]\nbackend = \"microvm\"\nnic = [{segment = \"private\", mac = \"02:01:27:00:01:01\"}, {user = true}]\n"
	if err := os.WriteFile(file, []byte(text+mail), 0o644); err != nil {
		t.Fatal(err)
	}
	first, second := boot.MAC{2, 1, 0x27, 0, 1, 1}, boot.MAC{2, 1, 0x27, 0, 1, 2}
	f.mu.Lock()
	f.guests = append(f.guests, api.Guest{Name: "mail", State: api.Running, NICs: []api.NIC{{MAC: &first}, {MAC: &second}}})
	f.mu.Unlock()
	run("mail 02:01:27:00:01:03\n").want(t, exitFailed, "mail runs with 02:01:27:00:01:02, which would become 02:01:27:00:01:03")
	run("mail 02:01:27:00:01:02\n").want(t, 0, "mail  02:01:27:00:01:02  added")
	ecboot(t, "guest", "import", "--config", file, "/no/such").want(t, exitUsage, "ecboot: open /no/such: no such file")
	ecboot(t, "guest", "import", "--config", file, dir).want(t, exitUsage, "ecboot: read "+dir+": is a directory")
	ecboot(t, "guest", "import", "--config", file).want(t, exitUsage, "takes FILE|-: see")
}
