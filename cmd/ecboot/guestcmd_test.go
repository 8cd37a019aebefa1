package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

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
	reload   func() error
}

// listenFake serves f where the verbs look for 'ecboot up'.
func listenFake(t *testing.T, f *fakeUp) {
	t.Helper()
	nettest.NeedRoot(t)
	f.consoles = make(chan net.Conn, 8)
	cfg := config.Default()
	cfg.Server.OperatorGroup = "users"
	s, err := listenUp(cfg, api.Backend{
		Status: func() api.Status {
			return api.Status{Schema: api.Schema, Segments: []api.Segment{}, Machines: []api.Machine{}}
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
	if name == "old" {
		return errors.New("disk /srv/old.raw: no such file")
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
	return theirs, nil
}

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
		},
		{Name: "web", Backend: "microvm", State: api.Waiting, LastExit: "the kernel panicked", NextStart: time.Now().Add(time.Hour), MACs: []boot.MAC{}, Addresses: []string{}, Drift: []string{}, NICs: []api.NIC{}, Disks: []api.Disk{}},
		{Name: "box", Backend: "container", State: api.Running, Since: long, Addresses: []string{"10.77.0.51"}},
		{Name: "old", Backend: "qemu", State: api.Stopped, LastExit: "it switched itself off"},
	}
}

func TestGuestVerbs(t *testing.T) {
	f := &fakeUp{guests: fakeGuests()}
	listenFake(t, f)
	dir := t.TempDir()
	tests := []struct {
		name  string
		args  []string
		code  int
		want  []string
		calls string
	}{
		{"list", []string{"list"}, 0, []string{
			"NAME  BACKEND    STATE    SINCE  RESTARTS  ADDRESS     NOTE\n",
			"db    qemu       running  2d     2         10.77.0.50  memory is 1G, declared is 2G\n",
			"web   microvm    waiting  -      0         -           the kernel panicked; started again in ",
			"old   qemu       stopped  -      0         -           it switched itself off\n"}, ""},
		{"list for programs", []string{"list", "-o", "json"}, 0, []string{`"schema": 1`, `"guests": [`, `"state": "running"`, `"next_start": "`}, ""},
		{"list takes nothing", []string{"list", "db"}, 2, []string{`"db"`}, ""},
		{"list in no form", []string{"list", "-o", "xml"}, 2, []string{"want text or json"}, ""},

		{"show", []string{"show", "db"}, 0, []string{
			"name       db\n", "node       host-db\n", "state      running since ", " (2d)\n", "restarts   2\n", "autostart  yes\n", "process    4711\n",
			"nic 0      segment lan  02:01:27:5b:95:9e  10.77.0.50\n", "nic 1      user\n", "disk 0     /srv/db.qcow2  qcow2  16G\n", "disk 1     /srv/cd.iso  read-only\n",
			"drift      memory is 1G, declared is 2G\n", "'ecboot guest restart db'", "/usr/bin/qemu-system-x86_64 -name 'guest=db, the first'\n"}, ""},
		{"show for programs", []string{"show", "db", "-o", "json"}, 0, []string{`"guest": {`, `"drift": [`, `"mac": "02:01:27:5b:95:9e"`}, ""},
		{"show what", []string{"show"}, 2, []string{"accepts 1 arg"}, ""},
		{"show nobody", []string{"show", "dbb"}, 2, []string{"there is no guest dbb: there are db, web, box, old"}, ""},

		{"start", []string{"start", "web", "db", "web"}, 0, []string{"web: started\ndb: started\n"}, "web start; db start"},
		{"start all", []string{"start", "--all"}, 1, []string{"web: started\n", "old: disk /srv/old.raw: no such file"}, "web start; old start"},
		{"start for programs", []string{"start", "old", "web", "-o", "json"}, 1, []string{`"done": "started"`, `"error": "disk /srv/old.raw: no such file"`}, "old start; web start"},
		{"start what", []string{"start"}, 2, []string{"which guest?", "--all"}, ""},
		{"start two ways", []string{"start", "--all", "db"}, 2, []string{"one of the two"}, ""},
		{"start nobody", []string{"start", "db", "x", "y"}, 2, []string{"there is no guest x, y"}, ""},

		{"stop", []string{"stop", "db"}, 0, []string{"db: stopped (power button)\n"}, "db stop false"},
		{"stop now", []string{"stop", "db", "--now"}, 0, []string{"db: stopped (killed QEMU)\n"}, "db stop true"},
		{"stop all", []string{"stop", "--all"}, 0, []string{"db: stopped (power button)\n", "web: stopped (killed QEMU)\n", "box: stopped (power button)\n"}, "*"},
		{"stop for programs", []string{"stop", "db", "-o", "json"}, 0, []string{`"name": "db"`, `"done": "stopped"`, `"how": "power button"`}, "db stop false"},
		{"stop nobody", []string{"stop", ""}, 2, []string{"there is no guest "}, ""},
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
		{"console of two", []string{"console", "db", "web"}, 2, []string{"accepts 1 arg"}, ""},

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
