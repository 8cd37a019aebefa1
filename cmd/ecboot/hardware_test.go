package main

import (
	"encoding/json"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/every-channel/ecboot/internal/api"
	"github.com/every-channel/ecboot/internal/nettest"
)

// show is what 'ecboot guest show' says of a guest.
func (u *upHost) show(t *testing.T, guest string) api.Guest {
	t.Helper()
	r := u.commandWant(t, 0, []string{"guest", "show", guest, "-o", "json"})
	var doc struct{ Guest api.Guest }
	if err := json.Unmarshal([]byte(r.stdout), &doc); err != nil {
		t.Fatalf("%v in %s", err, r.stdout)
	}
	return doc.Guest
}

// Members of the operators' group, and nobody else, see the screen of a guest as
// it is while it runs.
func TestUpScreen(t *testing.T) {
	t.Parallel()
	nettest.Need(t, "setpriv", "perl")
	u := newUpHost(t, "screen", `memory = "64M"
[guest.with-screen]
backend = "qemu"
graphics = "vnc"
chain_url = "http://10.0.2.2/"
autostart = true
[[guest.with-screen.nic]]
user = true
`)
	u.Run(t, "sh", "-c", "(cat /etc/group; echo ecboot:x:4242:) >/run/group && mount --bind /run/group /etc/group")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const bin = "/run/ecboot.test" // where users without rights may reach it
	u.Run(t, "cp", exe, bin)
	as := func(groups string, argv ...string) (stdout, stderr string) {
		cmd := u.Command(t.Context(), "setpriv", append([]string{"--reuid=games", "--regid=nogroup", groups, "--inh-caps=-all", "env", mainVar + "=1"}, argv...)...)
		var out, err strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &err
		_ = cmd.Run() // what it says tells
		return out.String(), err.String()
	}
	const operator, stranger = "--groups=ecboot", "--clear-groups"

	s := u.up(t)
	s.until(t, "runs as process")
	s.logged(t, "with-screen", "iPXE initialising devices", 1)
	socket := u.show(t, "with-screen").VNC
	greet := []string{"perl", "-MIO::Socket::UNIX", "-e", `my $s = IO::Socket::UNIX->new($ARGV[0]) or die "$!\n"; print scalar <$s>`, socket}
	if hello, said := as(operator, greet...); hello != "RFB 003.008\n" {
		t.Errorf("to an operator, %q greets %q %s", socket, hello, said)
	}
	if hello, said := as(stranger, greet...); hello != "" || said != "Permission denied\n" {
		t.Errorf("to a stranger, %q greets %q %s", socket, hello, said)
	}
	shot, said := as(operator, bin, "guest", "screenshot", "with-screen", "-")
	if picture, err := png.Decode(strings.NewReader(shot)); err != nil || picture.Bounds().Dx() < 640 {
		t.Errorf("the screenshot: %v %s", err, said)
	}
	for path, mode := range map[string]string{"/run/ecboot/guests": "711 root", filepath.Dir(socket): "710 ecboot", socket: "660 ecboot"} {
		if got := strings.TrimSpace(u.Run(t, "stat", "-c", "%a %G", path)); got != mode {
			t.Errorf("%s is %s, want %s", path, got, mode)
		}
	}
	if theirs := u.Run(t, "find", filepath.Dir(socket), "-type", "f", "-perm", "/077"); theirs != "" {
		t.Errorf("not root's alone:\n%s", theirs)
	}
	if _, err := s.control().Stop(t.Context(), "with-screen", true); err != nil {
		t.Fatal(err)
	}
	u.Run(t, "test", "!", "-e", socket)
	if g := u.show(t, "with-screen"); g.VNC != "" {
		t.Errorf("%+v", g)
	}
	s.cmd.Process.Signal(syscall.SIGTERM)
	if code := s.end(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	u.wantNothing(t)
}
