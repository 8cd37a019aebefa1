package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/every-channel/ecboot/internal/nettest"
)

// tracesOn is what a dry run must leave as it is.
func (u *upHost) traces(t *testing.T) string {
	t.Helper()
	return u.Run(t, "sh", "-c", "ip -o link; ip -o addr; ip route; ls -lR /run/ecboot 2>/dev/null; cat /run/ecboot/up/*.json 2>/dev/null; nft list ruleset")
}

// dryRun does one, and checks that it changes nothing.
func (u *upHost) dryRun(t *testing.T, code int, parts ...string) result {
	t.Helper()
	before := u.traces(t)
	r := u.commandWant(t, code, []string{"up", "--dry-run"}, parts...)
	if diff := cmp.Diff(before, u.traces(t)); diff != "" {
		t.Errorf("the dry run has changed something:\n%s", diff)
	}
	return r
}

// dryRunAsUser does one without any rights.
func (u *upHost) dryRunAsUser(t *testing.T) result {
	t.Helper()
	// Within reach of everybody.
	u.Run(t, "sh", "-ec", `mkdir -pm 777 /run/user
		test -e /run/ecboot.test || cp /proc/$1/exe /run/ecboot.test
		sed 's,^state_dir.*,state_dir = "/run/user",' $2 >/run/user/ecboot.toml`, "sh", fmt.Sprint(os.Getpid()), u.config)
	cmd := u.Command(t.Context(), "setpriv", "--reuid=games", "--regid=nogroup", "--clear-groups", "--inh-caps=-all",
		"/run/ecboot.test", "up", "--dry-run", "--config", "/run/user/ecboot.toml")
	cmd.Env = []string{mainVar + "=1", "HOME=/run/user", "PATH=" + os.Getenv("PATH")}
	cmd.Dir = "/"
	return resultOf(t, cmd)
}

// What is in the way of a segment is said in the words in which 'ecboot up' says
// it, and what runs already is not in the way.
func TestUpDryRunLooksAtSegments(t *testing.T) {
	t.Parallel()
	nettest.Need(t, "ip", "setpriv", "nft")
	const guest = "[guest.dry]\nbackend = \"microvm\"\n[[guest.dry.nic]]\nsegment = \"inside\"\n"
	const inside = "[segment.inside]\naddress = \"10.78.0.1/24\"\n"
	parent := func(nic string) string {
		return fmt.Sprintf("[segment.lan]\nparent = %q\naddress = \"10.77.0.1/24\"\nallow_other_dhcp = true\n", nic)
	}
	u := newUpHost(t, "dry", parent("nowhere")+inside+guest)
	u.Run(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "wire")
	u.Run(t, "ip", "link", "set", "eth0", "up")

	// A bridge of the administrator's has the name of the private segment's.
	u.Run(t, "ip", "link", "add", "ec-inside", "type", "veth", "peer", "name", "peer")
	const noNIC, noBridge = "segment lan: there is no NIC nowhere: this machine has ec-inside, eth0, peer, wire", "segment inside: ec-inside is no bridge but a veth link"
	u.dryRun(t, exitEnvironment, "# dry\nqemu-system-x86_64 ", "ecboot: "+noNIC, "\n"+noBridge)
	u.dryRunAsUser(t).want(t, 0, "# dry\nqemu-system-x86_64 ", "this machine has ec-inside, eth0, peer, wire\" segment=lan", "is no bridge but a veth link")
	u.commandWant(t, exitEnvironment, []string{"up"}, "ecboot: "+noNIC)
	u.write(t, inside+guest)
	u.commandWant(t, exitEnvironment, []string{"up"}, "ecboot: "+noBridge)
	u.Run(t, "ip", "link", "del", "ec-inside")

	u.write(t, parent("eth0")+inside+guest)
	const noCable = "level=WARN msg=\"eth0 has no carrier: nothing will be heard until a cable is in\" segment=lan"
	u.dryRun(t, 0, noCable)
	s := u.up(t)
	s.until(t, noCable)
	s.until(t, "10.78.0.1")
	u.Run(t, "ip", "link", "show", "ec-inside")
	u.dryRun(t, 0, noCable)
	u.dryRunAsUser(t).want(t, 0, "# dry\nqemu-system-x86_64 ")
	if out, _ := u.command(t, "doctor").CombinedOutput(); !strings.Contains(string(out), "eth0 has no carrier: nothing") { // whatever else it finds
		t.Errorf("doctor:\n%s", out)
	}
	u.write(t, parent("wire")+inside+guest)
	u.dryRun(t, 0)
	s.cmd.Process.Signal(syscall.SIGTERM)
	if code := s.end(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// A limit that cannot be enforced is told in the words in which the guest's start
// fails.
func TestUpDryRunLooksAtLimits(t *testing.T) {
	t.Parallel()
	nettest.Need(t, "ip", "nft")
	u := newUpHost(t, "drylimits", "[guest.drylimits]\nbackend = \"microvm\"\nautostart = true\n[guest.drylimits.limits]\nmemory = \"2G\"\ntasks = 500\n")
	u.dryRun(t, 0)
	// There are some beneath the host's own /sys, too.
	u.Run(t, "sh", "-ec", "while grep -q ' - cgroup' /proc/self/mountinfo; do umount -lR /sys; done")
	const memory, tasks = "limit memory: this host cannot enforce it: no control group has the controller memory; leave it out", "limit tasks: this host cannot enforce it: no control group has the controller pids; leave it out"
	u.dryRun(t, exitEnvironment, "# drylimits\nqemu-system-x86_64 ", "guest drylimits: "+memory, "\n"+tasks)
	s := u.up(t)
	s.until(t, "cannot be started: "+memory)
	s.cmd.Process.Signal(syscall.SIGTERM)
	if code := s.end(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
