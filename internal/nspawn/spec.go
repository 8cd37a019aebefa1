// Package nspawn runs one systemd-nspawn container: Spec says what it is, Args
// turns that into nspawn's arguments without touching anything, Start runs it
// and hands back a Container with its console and, at the end, the reason why it
// ended.
//
// What a container needs of the host is made in namespaces without names, which
// only one thread of this process and nspawn are in: the loop device, the
// overlay, the macvlan. The kernel removes all of it with the last of them,
// kill -9 included, so there is nothing to note. Only cgroups cannot be made so:
// see Sweep.
//
// What nspawn (systemd 252 and later) needs, and how it gets it:
//
//   - With --register=no --keep-unit, neither systemd nor machined need to run,
//     and a reboot ends nspawn, with exit code 133.
//   - It refuses a network link that udev has not seen yet, unless /sys is
//     read-only; and udev sees no link of another namespace. So /sys is read-only
//     where nspawn runs, and links work with and without udev.
//   - The link is moved into the container by nspawn, rather than that nspawn is
//     given a network namespace (--network-namespace-path): that would belong to
//     the host's user namespace, and a container with user ids of its own could
//     not configure its link.
//   - It locks, notes and mounts below /run/systemd/nspawn. A tmpfs lies there,
//     or a container that was killed would leave some of it.
//   - The container's init does not die with it. It runs as the first process of
//     a process namespace, which does.
//   - It wants a cgroup of its own where the host has cgroup v2 only, see
//     Options.Cgroup.
package nspawn

import (
	"cmp"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Program is what is run when Options name no other.
const Program = "systemd-nspawn"

// Spec is a container before it exists. Name and Root must be given.
type Spec struct {
	Name string // also its host name: letters, digits, dashes and dots, at most 63 bytes

	// Root is what becomes /: a directory, a squashfs image or a tar archive,
	// plain or compressed by gzip, bzip2, xz or zstd. A directory is used in
	// place. Images stay as they are; what the container changes is lost with
	// it, or kept in State.
	Root      string
	Ephemeral bool   // a directory stays as it is, too
	State     string // directory for changes, made if missing; empty: those to an image are not kept

	NICs  []NIC
	Binds []Bind

	// StopSignal is by what the container's init powers off, named as nspawn
	// does; empty: SIGRTMIN+4, which is systemd's. BusyBox wants SIGUSR2.
	StopSignal string
	// UIDBase is the host's id for the container's root, and the first of
	// 65536; a multiple of 65536. 0: root is root.
	UIDBase uint32
	Limits  Limits
	Extra   []string // more options for nspawn, after all others; each is --name or --name=value
}

// NIC is a network link of the container's. It has either Parent or Bridge.
type NIC struct {
	Name   string           // in the container, at most 15 bytes; empty: mv- and the parent, or host0 on a bridge
	Parent string           // link of this namespace that carries it as a macvlan
	Bridge string           // bridge of this namespace of which it is a port
	MAC    net.HardwareAddr // six bytes, unicast, never empty
}

// Bind shows a file or directory of the host's in the container.
type Bind struct {
	Source   string // absolute; must exist
	Target   string // absolute; empty: as Source
	ReadOnly bool
}

// Limits are what the container may use at most. 0 is no limit. Any of them
// needs Options.Cgroup.
type Limits struct {
	MemoryMiB  int
	CPUPercent int // of one CPU: 150 is one and a half
	Tasks      int // processes and threads
}

const (
	// stage is where nspawn finds the container's root, in its own mount
	// namespace.
	base  = "/run/systemd/nspawn"
	stage = base + "/ecboot"

	uids = 1 << 16 // user ids of a container
)

// Args returns the arguments of systemd-nspawn, without the program's name. It is
// an error if the Spec contradicts itself; whether files exist is found out by
// Start.
func (s Spec) Args() ([]string, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	var args []string
	add := func(a ...string) { args = append(args, a...) }

	// Nothing that is not asked for: no settings files, and nothing of the
	// host's in the container.
	add("--quiet", "--settings=no", "--register=no", "--keep-unit")
	add("--resolv-conf=off", "--timezone=off", "--link-journal=no")
	add("--boot", "--console=interactive")
	add("--kill-signal=" + s.stopSignal())
	add("--machine="+s.Name, "--directory="+stage+"/root")
	if s.UIDBase != 0 {
		// Files of the user's keep their owners; those of an overlay may
		// change.
		ownership := "map"
		if s.Ephemeral || s.State != "" {
			ownership = "auto"
		}
		add(fmt.Sprintf("--private-users=%d:%d", s.UIDBase, uids), "--private-users-ownership="+ownership)
	}
	add("--private-network")
	for _, nic := range s.NICs {
		add("--network-interface=" + nic.name())
	}
	for _, b := range s.Binds {
		add(b.arg(s.UIDBase != 0))
	}
	return append(args, s.Extra...), nil
}

// Command is the whole command line of nspawn, program first; an empty program
// means Program. It works in the namespaces that Start makes.
func (s Spec) Command(program string) ([]string, error) {
	args, err := s.Args()
	if err != nil {
		return nil, err
	}
	if program == "" {
		program = Program
	}
	return append([]string{program}, args...), nil
}

func (s Spec) stopSignal() string { return cmp.Or(s.StopSignal, "SIGRTMIN+4") }

func (n NIC) name() string {
	switch {
	case n.Name != "":
		return n.Name
	case n.Parent != "":
		return "mv-" + n.Parent
	}
	return "host0"
}

func (b Bind) target() string {
	if b.Target == "" {
		return b.Source
	}
	return b.Target
}

func (b Bind) arg(idmap bool) string {
	escape := strings.NewReplacer(`\`, `\\`, ":", `\:`).Replace
	arg := "--bind="
	if b.ReadOnly {
		arg = "--bind-ro="
	}
	arg += escape(b.Source) + ":" + escape(b.target())
	if idmap {
		arg += ":idmap"
	}
	return arg
}

var (
	hostName = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)*$`)
	linkName = regexp.MustCompile(`^[^\s/:%\x00-\x1f\x7f]{1,15}$`)
	signals  = regexp.MustCompile(`^SIG[A-Z0-9]+([+-][0-9]+)?$`)
	option   = regexp.MustCompile(`^--([a-z][a-z0-9-]*)(=|$)`)
)

func (s *Spec) check() error {
	switch {
	case !hostName.MatchString(s.Name) || len(s.Name) > 63:
		return fmt.Errorf("container name %q: use letters, digits and dashes, at most 63", s.Name)
	case s.Root == "":
		return fmt.Errorf("container %s has no root: name a directory, a squashfs image or a tar archive", s.Name)
	case s.Ephemeral && s.State != "":
		return fmt.Errorf("an ephemeral container keeps nothing: leave out the state %s, or ephemeral", s.State)
	case s.StopSignal != "" && !signals.MatchString(s.StopSignal):
		return fmt.Errorf("stop signal %q: name it as in SIGTERM or SIGRTMIN+4", s.StopSignal)
	case s.UIDBase%uids != 0 || s.UIDBase > 1<<31-uids:
		return fmt.Errorf("user ids from %d: use a multiple of %d below 2^31", s.UIDBase, uids)
	case s.Limits.MemoryMiB < 0 || s.Limits.CPUPercent < 0 || s.Limits.Tasks < 0:
		return fmt.Errorf("limits %+v: use positive numbers, 0 for none", s.Limits)
	}
	for i, nic := range s.NICs {
		if err := nic.check(s.NICs[:i]); err != nil {
			return fmt.Errorf("NIC %d: %w", i, err)
		}
	}
	for i, b := range s.Binds {
		if err := b.check(s.Binds[:i]); err != nil {
			return err
		}
	}
	for _, v := range slices.Concat([]string{s.Root, s.State}, s.Extra) {
		if strings.ContainsRune(v, 0) {
			return fmt.Errorf("%q holds a NUL byte, which no program can be given", v)
		}
	}
	for _, arg := range s.Extra {
		if err := checkExtra(arg); err != nil {
			return err
		}
	}
	return nil
}

func (n NIC) check(others []NIC) error {
	switch {
	case (n.Parent == "") == (n.Bridge == ""):
		return fmt.Errorf("it needs a parent or a bridge, and not both")
	case !linkName.MatchString(n.name()) || n.name() == "." || n.name() == ".." || n.name() == "lo":
		return fmt.Errorf("name %q: use at most 15 bytes, without spaces, slashes and colons", n.name())
	case len(n.MAC) != 6:
		return fmt.Errorf("it needs a MAC address of six bytes, not %d", len(n.MAC))
	case n.MAC[0]&1 != 0:
		return fmt.Errorf("%s is a group address: make the first byte even", n.MAC)
	case n.MAC.String() == "00:00:00:00:00:00":
		return fmt.Errorf("%s is no address: choose one such as 52:54:00:12:34:56", n.MAC)
	}
	for i, other := range others {
		switch {
		case n.name() == other.name():
			return fmt.Errorf("%s is the name of NIC %d already", n.name(), i)
		case slices.Equal(n.MAC, other.MAC):
			return fmt.Errorf("%s is the MAC address of NIC %d already", n.MAC, i)
		}
	}
	return nil
}

func (b Bind) check(others []Bind) error {
	for _, path := range []string{b.Source, b.target()} {
		if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
			return fmt.Errorf("bind %q: use absolute paths", path)
		}
	}
	target := filepath.Clean(b.target())
	if target == "/" {
		return fmt.Errorf("bind %s: the container's / is its root: name another target", b.Source)
	}
	for _, other := range others {
		if target == filepath.Clean(other.target()) {
			return fmt.Errorf("bind %s: %s is the target of %s already", b.Source, target, other.Source)
		}
	}
	return nil
}

// managed are the options that say what Spec and Start decide.
var managed = []string{
	"as-pid2", "boot", "console", "directory", "ephemeral", "help", "image", "keep-unit", "kill-signal", "machine",
	"network-bridge", "network-interface", "network-ipvlan", "network-macvlan", "network-namespace-path", "network-veth",
	"network-veth-extra", "network-zone", "notify-ready", "oci-bundle", "pipe", "pivot-root", "port", "private-network",
	"private-users", "private-users-chown", "private-users-ownership", "property", "register", "root-hash",
	"root-hash-sig", "settings", "slice", "template", "verity-data", "version", "volatile",
}

// checkExtra knows that nspawn takes an unambiguous beginning for an option.
func checkExtra(arg string) error {
	m := option.FindStringSubmatch(arg)
	if m == nil {
		return fmt.Errorf("extra argument %q: write each as one --name or --name=value", arg)
	}
	for _, name := range managed {
		if strings.HasPrefix(name, m[1]) {
			return fmt.Errorf("extra argument %s contradicts what is set already (--%s): leave it out", strconv.Quote(arg), name)
		}
	}
	return nil
}
