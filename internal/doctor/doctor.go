// Package doctor looks at the machine for what ecboot's verbs need and says how
// to mend what is missing. It changes nothing.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Status is the outcome of a check.
type Status string

// The outcomes.
const (
	OK   Status = "ok"
	Warn Status = "warn" // works, or matters only in cases that Found names
	Fail Status = "fail" // the verbs in Needs cannot work
	Skip Status = "skip" // not looked at; Found says why
)

// Check is one thing that was looked at.
type Check struct {
	ID     string   `json:"id"` // stable, such as "kvm"
	Title  string   `json:"title"`
	Status Status   `json:"status"`
	Found  string   `json:"found"`
	Mend   string   `json:"mend,omitempty"` // what to do; empty when there is nothing
	Needs  []string `json:"needs"`          // verbs that it matters for
}

// Env is the machine. System returns the real one, to which the caller adds
// what only it knows; a nil func there skips its check.
type Env struct {
	Root string // goes before /proc and /dev; empty but in tests
	UID  int    // effective user id

	// LookPath finds a program; Output runs one and returns what it printed,
	// standard error too.
	LookPath func(program string) (string, error)
	Output   func(ctx context.Context, program string, args ...string) (string, error)

	// Space returns the free bytes for this user on the file system of an
	// existing directory, and an error when the directory is not writable.
	Space func(dir string) (uint64, error)

	// To be added by the caller.
	StateDir string
	CacheDir string
	Address  netip.Addr // the servers'; zero: any holder of a port is in the way
	HTTPPort uint16     // 0 means 80
	Up       int        // process id of the 'ecboot up' that runs, which may hold them; 0: none does

	// Guests are the declared guests that need a part, by the constants Part…;
	// OperatorGroup may drive them, empty: not looked for.
	Guests        map[string][]string
	OperatorGroup string

	// Segments are those that tie into networks that are there already.
	Segments []Segment

	// KVM proves that a guest runs, or says why it does not.
	KVM func(ctx context.Context) (ok bool, why string)
	// Firmware and Images say what there is, or what is missing.
	Firmware func() (found string, err error)
	Images   func() (found string, err error)
}

// Segment is a network of the configuration. Look says what would keep it from
// being opened now, and what would be unexpected.
type Segment struct {
	Name, Link string
	Look       func() (obstacles, warnings []string, err error)
}

// System returns the Env of this machine and user.
func System() Env {
	return Env{
		UID:      os.Geteuid(),
		LookPath: exec.LookPath,
		Output: func(ctx context.Context, program string, args ...string) (string, error) {
			ctx, cancel := context.WithTimeout(ctx, commandTimeout)
			defer cancel()
			out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
			return string(out), err
		},
		Space: space,
	}
}

// commandTimeout is for programs that only print something, on a busy machine.
const commandTimeout = 20 * time.Second

// The verbs, as the command line calls them.
const (
	verbRun   = "run"
	verbBoot  = "boot"
	verbServe = "serve"
	verbBuild = "initramfs build"
	verbUp    = "up"
)

// Run makes all checks, in the order in which they are worth reading.
func Run(ctx context.Context, env Env) []Check {
	checks := []Check{
		env.rights(ctx),
		env.tun(),
		env.qemu(ctx),
		env.kvm(ctx),
		env.firmware(),
		env.images(),
	}
	checks = append(checks, env.guestParts()...)
	checks = append(checks, env.ports()...)
	for _, s := range env.Segments {
		checks = append(checks, s.check())
	}
	return append(checks,
		env.bridgeFilter(ctx),
		env.disk("state", "state directory", env.StateDir, stateSpace, verbRun, verbBoot, verbServe, verbUp),
		env.disk("cache", "cache directory", env.CacheDir, cacheSpace, verbRun, verbBoot, verbBuild, verbUp),
		env.goCommand(ctx),
	)
}

// Worst returns the worst status of the checks: Fail, Warn or OK.
func Worst(checks []Check) Status {
	worst := OK
	for _, c := range checks {
		switch {
		case c.Status == Fail:
			return Fail
		case c.Status == Warn:
			worst = Warn
		}
	}
	return worst
}

func (c Check) is(s Status, found, mend string) Check {
	c.Status, c.Found, c.Mend = s, found, mend
	return c
}

// switches are the knobs by which distributions forbid user namespaces.
var switches = []struct{ path, off, mend string }{
	{"/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"},
	{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"},
	{"/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces=10000"},
}

// rights tries what a private segment needs instead of reading capabilities:
// containers, LSMs and sysctls all have their say.
func (env Env) rights(ctx context.Context) Check {
	c := Check{ID: "rights", Title: "rights and namespaces", Needs: []string{verbRun, verbBoot, verbServe, verbUp}}
	who, args := "root", []string{"--net", "--", "true"}
	if env.UID != 0 {
		who = "user " + strconv.Itoa(env.UID)
		args = append([]string{"--map-root-user"}, args...)
	}
	out, err := env.Output(ctx, "unshare", args...)
	switch {
	case err == nil && env.UID == 0:
		return c.is(OK, who+"; network namespaces can be made", "")
	case err == nil:
		return c.is(OK, who+"; a private segment works through a user namespace, an existing bridge needs root", "")
	case errors.Is(err, exec.ErrNotFound):
		return c.is(Fail, "unshare is not in PATH", "install util-linux")
	}
	found := fmt.Sprintf("%s; no network namespace can be made: %s", who, reason(out, err))
	if env.UID == 0 {
		return c.is(Fail, found, "give this container the capability CAP_SYS_ADMIN, or serve an existing bridge with --bridge")
	}
	for _, sw := range switches {
		if env.read(sw.path) == sw.off {
			return c.is(Fail, found, "run as root, or 'sysctl "+sw.mend+"'")
		}
	}
	return c.is(Fail, found, "run as root")
}

// reason is the last line that a program printed, else its error.
func reason(out string, err error) string {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if last := lines[len(lines)-1]; last != "" {
		return last
	}
	return err.Error()
}

func (env Env) read(path string) string {
	b, err := os.ReadFile(env.Root + path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (env Env) tun() Check {
	const path = "/dev/net/tun"
	c := Check{ID: "tun", Title: "tap devices", Needs: []string{verbRun, verbBoot, verbUp}}
	f, err := os.OpenFile(env.Root+path, os.O_RDWR, 0)
	switch {
	case err == nil:
		f.Close()
		return c.is(OK, path+" opens", "")
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV):
		return c.is(Fail, path+" is not there", "'modprobe tun', or in a container pass the device in")
	case errors.Is(err, fs.ErrPermission):
		return c.is(Fail, path+" may not be opened by this user", "run as root, or 'chmod 666 "+path+"' as systems with udev do; in a container allow the device")
	}
	return c.is(Fail, err.Error(), "'modprobe tun'")
}

const qemuProgram = "qemu-system-x86_64"

// leastQEMU is the first release with -action, which guests are started with.
const leastQEMU = 6

var qemuVersion = regexp.MustCompile(`version ((\d+)\.[\d.]+)`)

func (env Env) qemu(ctx context.Context) Check {
	c := Check{ID: "qemu", Title: "QEMU", Needs: []string{verbRun, verbBoot, verbUp}}
	const install = "install it (Debian: apt install qemu-system-x86)"
	path, err := env.LookPath(qemuProgram)
	if err != nil {
		return c.is(Fail, qemuProgram+" is not in PATH", install)
	}
	out, err := env.Output(ctx, path, "--version")
	if err != nil {
		return c.is(Fail, fmt.Sprintf("%s does not run: %s", path, reason(out, err)), install)
	}
	m := qemuVersion.FindStringSubmatch(out)
	if m == nil {
		return c.is(Warn, path+" names no version", "")
	}
	if major, err := strconv.Atoi(m[2]); err != nil || major < leastQEMU {
		return c.is(Fail, fmt.Sprintf("%s is version %s, too old", path, m[1]), fmt.Sprintf("install QEMU %d.0 or newer", leastQEMU))
	}
	return c.is(OK, fmt.Sprintf("%s, version %s", path, m[1]), "")
}

func (env Env) kvm(ctx context.Context) Check {
	c := Check{ID: "kvm", Title: "KVM", Needs: []string{verbRun, verbBoot, verbUp}}
	if env.KVM == nil {
		return c.is(Skip, "not tried", "")
	}
	ok, why := env.KVM(ctx)
	if ok {
		return c.is(OK, "a guest runs under KVM", "")
	}
	mend := "nothing, if emulation will do: --accel auto falls back to it"
	if _, err := os.Stat(env.Root + "/dev/kvm"); errors.Is(err, fs.ErrNotExist) {
		mend += "; else switch virtualization on in the firmware, or in a virtual machine nested virtualization, and 'modprobe kvm_intel' or kvm_amd"
	}
	return c.is(Warn, "guests are emulated, many times slower: "+why, mend)
}

func (env Env) firmware() Check {
	c := Check{ID: "firmware", Title: "guest firmware", Needs: []string{"run --firmware uefi", "boot --firmware uefi", verbUp}}
	return c.ask(env.Firmware, "install UEFI firmware for guests (Debian: apt install ovmf, for ARM64 qemu-efi-aarch64, for 32 bits ovmf-ia32)")
}

func (env Env) images() Check {
	c := Check{ID: "images", Title: "embedded images", Needs: []string{verbRun, verbBoot, verbServe, verbUp}}
	return c.ask(env.Images, "run 'make' in the source tree: a plain 'go build' embeds no images")
}

func (c Check) ask(f func() (string, error), mend string) Check {
	if f == nil {
		return c.is(Skip, "not looked for", "")
	}
	found, err := f()
	if err != nil {
		return c.is(Fail, err.Error(), mend)
	}
	return c.is(OK, found, "")
}

// forwardDrop finds a base chain of nftables that drops what it does not name.
var forwardDrop = regexp.MustCompile(`hook forward [^\n]*policy drop`)

// bridgeFilter explains the silence that Docker brings to bridges: with
// br_netfilter, frames between two ports of a bridge pass iptables' FORWARD
// chain as if they were routed, and Docker sets that to DROP. A namespace of
// our own has an empty chain.
func (env Env) bridgeFilter(ctx context.Context) Check {
	c := Check{ID: "br_netfilter", Title: "bridge filtering", Needs: []string{"serve --bridge", "run --bridge", verbUp}}
	const knob = "bridge-nf-call-iptables"
	value := env.read("/proc/sys/net/bridge/" + knob)
	if value == "" || value == "0" {
		return c.is(OK, "frames on bridges bypass iptables", "")
	}
	const mend = "'sysctl net.bridge." + knob + "=0', or let the bridge through: 'iptables -I FORWARD -i br0 -o br0 -j ACCEPT'"
	why := knob + " is 1, so frames on a bridge pass the firewall"
	if out, err := env.Output(ctx, "iptables", "-S", "FORWARD"); err == nil {
		if strings.Contains(out, "-P FORWARD ACCEPT") {
			return c.is(OK, why+"; it forwards by default", "")
		}
		return c.is(Warn, why+", and its FORWARD policy drops them: DHCP on an existing bridge gets no answer", mend)
	}
	if out, err := env.Output(ctx, "nft", "list", "ruleset"); err == nil {
		if !forwardDrop.MatchString(out) {
			return c.is(OK, why+"; it forwards by default", "")
		}
		return c.is(Warn, why+", and its forward policy drops them: DHCP on an existing bridge gets no answer", mend)
	}
	return c.is(Warn, why+", and its rules cannot be read; they may drop DHCP on an existing bridge", mend)
}

func (s Segment) check() Check {
	c := Check{ID: "segment." + s.Name, Title: "segment " + s.Name, Needs: []string{verbServe, "run --segment", "boot --segment", verbUp}}
	table := "[segment." + s.Name + "]"
	obstacles, warnings, err := s.Look()
	switch {
	case err != nil:
		return c.is(Fail, err.Error(), "run as root")
	case len(obstacles) > 0:
		return c.is(Fail, strings.Join(obstacles, "; "), "change "+table+" or the link as that says")
	case len(warnings) > 0:
		return c.is(Warn, strings.Join(warnings, "; "), "nothing, if that is meant; else change "+table)
	}
	return c.is(OK, s.Link+" can be served", "")
}

// need is how much free space is enough: below fail nothing works, below warn
// it will not for long.
type need struct{ warn, fail uint64 }

var (
	stateSpace = need{warn: 64 << 20, fail: 1 << 20}  // leases, a few hundred bytes each
	cacheSpace = need{warn: 1 << 30, fail: 128 << 20} // archives of some 20 MB, and what Go compiles on the way
)

func (env Env) disk(id, title, dir string, need need, verbs ...string) Check {
	c := Check{ID: id, Title: title, Needs: verbs}
	if dir == "" {
		return c.is(Skip, "none is set", "")
	}
	// The directory itself is made when it is first needed.
	there := env.Root + dir
	for {
		info, err := os.Stat(there)
		if err == nil && !info.IsDir() {
			return c.is(Fail, there+" is in the way of "+dir+" and no directory", "move it away")
		}
		if err == nil || there == filepath.Dir(there) {
			break
		}
		there = filepath.Dir(there)
	}
	free, err := env.Space(there)
	found := fmt.Sprintf("%s, %s free", dir, formatBytes(free))
	switch {
	case err != nil:
		return c.is(Fail, fmt.Sprintf("%s: %s is not writable: %v", dir, there, err), "run as root or make it writable")
	case free < need.fail:
		return c.is(Fail, found, "free at least "+formatBytes(need.warn))
	case free < need.warn:
		return c.is(Warn, found+", which will not do for long", "free at least "+formatBytes(need.warn))
	}
	return c.is(OK, found, "")
}

func space(dir string) (uint64, error) {
	if err := unix.Access(dir, unix.W_OK); err != nil {
		return 0, err
	}
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, err
	}
	return s.Bavail * uint64(s.Bsize), nil
}

func formatBytes(n uint64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

func (env Env) goCommand(ctx context.Context) Check {
	c := Check{ID: "go", Title: "Go", Needs: []string{verbBuild}}
	path, err := env.LookPath("go")
	if err != nil {
		return c.is(Warn, "not in PATH; only building an initramfs needs it, the embedded one does not", "install Go where you build one (https://go.dev/dl)")
	}
	out, err := env.Output(ctx, path, "env", "GOVERSION")
	if err != nil {
		return c.is(Warn, fmt.Sprintf("%s does not run: %s", path, reason(out, err)), "install Go where you build an initramfs (https://go.dev/dl)")
	}
	return c.is(OK, path+", "+strings.TrimSpace(out), "")
}
