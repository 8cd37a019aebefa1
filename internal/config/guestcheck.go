package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/every-channel/ecboot/internal/boot"
)

// Whether the images and directories of guests are there is not for the file's
// checks: they can lie on datasets that are mounted later, and one that is gone
// must keep one guest down, not all.

// nameNodes gives guests a host name whose file does not.
func (r *reader) nameNodes(c *Config, host string) {
	if host == "" {
		return
	}
	for i := range c.Guests {
		g := &c.Guests[i]
		key := join("guest", g.Name)
		if g.Node != "" || !r.ok(key, key+".node_name") {
			continue
		}
		g.Node = nodeName(host, g.Name)
		if err := checkLabel(g.Node); err != nil {
			r.problemAt(key+".node_name", "is missing, and "+g.Node+" is no host name", "write "+hostName.want)
		}
	}
}

// IsNode reports whether a machine of this name is the guest.
func (g DeclaredGuest) IsNode(name string) bool {
	if g.Node == "" { // and will be HOST-NAME
		return strings.HasSuffix(strings.ToLower(name), nodeName("", strings.ToLower(g.Name)))
	}
	return strings.EqualFold(g.Node, name)
}

// Contradicts reports whether a machine with an address of the guest's has a name
// of its own, so that one machine would have two.
func (g DeclaredGuest) Contradicts(m Machine) bool { return m.Name != "" && !g.IsNode(m.Name) }

// guestCheck looks at one guest.
type guestCheck struct {
	*reader
	c    *Config
	g    *DeclaredGuest
	path string
}

func (r *reader) checkGuests(c *Config) {
	for i := range c.Guests {
		g := &c.Guests[i]
		k := guestCheck{r, c, g, join("guest", g.Name)}
		if !r.ok(k.path) {
			continue
		}
		if g.Backend == "" {
			k.wrong("backend", "is missing", `write backend = "qemu", "microvm" or "container"`)
			k.profile()
			for i, nic := range g.NICs {
				if nic.Segment != "" {
					k.nicSegment(fmt.Sprintf("nic[%d].segment", i), nic.Segment)
				}
			}
			continue // the rest depends on it
		}
		k.foreignKeys()
		k.times()
		k.nics()
		k.disks()
		k.shares()
		switch g.Backend {
		case BackendContainer:
			k.container()
		case BackendQEMU:
			k.firmware()
			k.boot()
			k.appended()
		case BackendMicroVM:
			k.kernel()
			k.appended()
		}
	}
	r.checkNames(c)
	r.checkMACs(c)
	r.checkGuestAddresses(c)
	r.checkLinkNames(c)
	r.checkImages(c)
}

// key is the path of a key of the guest's.
func (k guestCheck) key(name string) string { return k.path + "." + name }

// said reports whether the file has the key.
func (k guestCheck) said(name string) bool {
	_, there := k.at[k.key(name)]
	return there
}

// wrong reports a problem with a key that has none yet.
func (k guestCheck) wrong(name, what, instead string) {
	if key := k.key(name); k.ok(key) {
		k.problemAt(key, what, instead)
	}
}

// foreignKeys reports keys that other backends have.
func (k guestCheck) foreignKeys() {
	complain := func(what, instead string, keys ...string) {
		for _, key := range keys {
			if k.said(key) {
				k.wrong(key, what, instead)
			}
		}
	}
	const leave = "leave it out"
	if k.g.VM() {
		const what = "is for containers"
		complain(what, "leave it out, and give the virtual machine a [["+k.key("disk")+"]]", "root", "state")
		complain(what, "write it in [["+k.key("disk")+"]]", "ephemeral")
		complain(what, leave, "stop_signal", "uid_base")
	} else {
		const what = "is for virtual machines"
		complain(what, "leave it out; "+k.key("limits")+" bounds what a container may use", "memory", "cpus")
		complain(what, "leave it out; a container starts from root", "disk", "boot", "profile", "chain_url")
		complain(what, leave, "arch", "firmware", "secure_boot", "machine", "rom", "accel", "append", "cpu", "tpm", "graphics", "user")
	}
	if k.g.Backend == BackendMicroVM {
		const what = "is for virtual machines with firmware"
		complain(what, `leave it out, or write backend = "qemu"`, "firmware", "secure_boot", "machine", "rom", "tpm", "graphics", "chain_url")
		if k.g.Arch != "amd64" {
			k.wrong("arch", "is arm64, which has no microvm", `write arch = "amd64", or backend = "qemu"`)
		}
		if k.g.Boot != BootDirect {
			k.wrong("boot", "is always \"direct\" for a microvm, which has no firmware", `leave it out, or write backend = "qemu"`)
		}
	}
}

// times compares durations and limits with one another.
func (k guestCheck) times() {
	g := k.g
	if g.RestartMax < g.RestartDelay && k.ok(k.key("restart_delay")) {
		k.wrong("restart_max", fmt.Sprintf("%s is shorter than restart_delay, which is %s", formatDuration(g.RestartMax), formatDuration(g.RestartDelay)), "write at least as long")
	}
	if m := g.Limits.Memory; m != 0 && m <= g.Memory && k.ok(k.key("memory")) {
		k.wrong("limits.memory", fmt.Sprintf("%v is not more than the guest's own %v, and QEMU needs some besides", m, g.Memory), fmt.Sprintf("write %v or more", g.Memory+256<<20))
	}
	if g.CPU == "host" && g.Accel == "tcg" && k.ok(k.key("accel")) {
		k.wrong("cpu", `"host" needs KVM, and accel is "tcg"`, "leave it out")
	}
}

func (k guestCheck) container() {
	if k.g.Root == "" {
		k.wrong("root", "is missing", "write the path of a directory, a tar or a squashfs image with the container's files")
	}
	if k.g.Ephemeral && k.g.State != "" {
		k.wrong("state", "is given beside ephemeral, which keeps nothing", "leave out one of the two")
	}
}

// firmware says what of firmware, architecture and the like does not go
// together.
func (k guestCheck) firmware() {
	g := k.g
	if !k.ok(k.key("arch"), k.key("firmware"), k.key("secure_boot"), k.key("machine"), k.key("rom")) {
		return
	}
	bios := g.Firmware == "bios"
	switch {
	case g.Arch == "arm64" && g.Firmware != "uefi":
		k.wrong("firmware", g.Firmware+" is not there for arm64", `write "uefi", or leave it out`)
	case g.Arch == "arm64" && k.said("machine"):
		k.wrong("machine", "is for amd64; arm64 has a machine of its own", "leave it out")
	case g.SecureBoot && bios:
		k.wrong("secure_boot", "is UEFI's, and firmware is \"bios\"", `write firmware = "uefi", too`)
	case g.SecureBoot && g.Arch == "amd64" && g.Machine != "q35":
		k.wrong("secure_boot", "needs machine \"q35\", which can keep its variables from the guest", `write machine = "q35", too`)
	case g.SecureBoot && g.ROM != "none":
		k.wrong("rom", "is not run with secure_boot: nobody has signed the ROM of a network card", `write "none", or leave it out`)
	}
	for i, nic := range g.NICs {
		if name := fmt.Sprintf("nic[%d].rom", i); k.said(name) && g.SecureBoot && nic.ROM != "none" {
			k.wrong(name, "is not run with secure_boot: nobody has signed the ROM of a network card", `write "none", or leave it out`)
		}
	}
}

// ipxeMemory is where iPXE ends when it unpacks itself, or at the memory's end if
// that is lower: INT 15h, AH=88h, which it asks, knows no more. QEMU puts an initrd,
// which is the script, at the memory's end.
const ipxeMemory Size = 64 << 20

// boot checks that there is something to boot.
func (k guestCheck) boot() {
	g := k.g
	if g.ChainURL != "" {
		if g.Profile != "" {
			k.wrong("chain_url", "is given beside profile", "leave out one of the two")
		}
		if g.Boot == BootDirect {
			k.wrong("chain_url", `is for boots over the network, and boot is "direct"`, "leave out one of the two")
		}
		if g.Firmware != "bios" && len(g.NICs) > 0 && k.every(func(n GuestNIC) bool { return n.Segment == "" }) {
			k.wrong("chain_url", "is handed to UEFI by the servers of a segment, and the guest is on none", `write a network card on a segment, or firmware = "bios"`)
		}
		if g.Memory <= ipxeMemory && k.every(func(n GuestNIC) bool { return n.Segment == "" }) {
			k.wrong("memory", g.Memory.String()+" is too little for chain_url on no segment: iPXE unpacks itself over the script that it is started with", fmt.Sprintf("write %q or more", 2*ipxeMemory))
		}
		if s := k.mute(); s != "" {
			k.wrong("chain_url", fmt.Sprintf("is handed out by the servers of a segment, and the mode of segment.%s is \"off\"", s), "write another mode there, or a network card elsewhere")
		}
		k.resolvable()
	}
	if !k.ok(k.key("boot"), k.key("nic"), k.key("disk")) {
		return
	}
	switch {
	case g.Boot == BootDirect:
		k.kernel()
		return
	case g.Boot == BootDisk && len(g.Disks) == 0:
		k.wrong("boot", `"disk" needs one`, "write [["+k.key("disk")+"]], too")
	case g.Boot == BootNetwork && len(g.NICs) == 0:
		k.wrong("boot", `"network" needs a network card`, "write [["+k.key("nic")+"]], too, or boot = \"disk\"")
	case g.Boot == BootNetwork && g.ChainURL == "" && k.every(func(n GuestNIC) bool { return n.User }):
		k.wrong("boot", `"network" finds nothing to boot on QEMU's own network`, "write chain_url, or a network card on a segment")
	case g.Boot == BootNetwork && g.ChainURL == "" && g.Firmware == "bios" && k.every(func(n GuestNIC) bool { return n.ROM == "none" }):
		k.wrong("boot", `"network" needs the ROM of a network card with BIOS, and rom is "none"`, `write rom = "default" for one of them, or firmware = "uefi"`)
	}
	k.profile()
	if g.Boot == BootDisk && len(g.NICs) == 0 {
		const lacking, instead = "over the network, and the guest has no network card", "write one, or leave it out"
		if g.Profile != "" {
			k.wrong("profile", "is what ecboot serves "+lacking, instead)
		}
		if g.ChainURL != "" {
			k.wrong("chain_url", "is loaded "+lacking, instead)
		}
	}
	if g.Profile != "" && len(g.NICs) > 0 && k.every(func(n GuestNIC) bool { return !k.served(n) }) {
		k.wrong("profile", "is what ecboot serves, and it serves none of the guest's networks", "write a network card on a segment, or leave it out")
	}
}

// mute is a segment that the guest is on, if ecboot answers on none of its
// segments.
func (k guestCheck) mute() (name string) {
	for _, nic := range k.g.NICs {
		if s, ok := k.c.Segment(nic.Segment); ok {
			if s.Mode != ModeOff {
				return ""
			}
			name = s.Name
		}
	}
	return name
}

// resolvable wants a name server where chain_url has a name.
func (k guestCheck) resolvable() {
	u, err := url.Parse(k.g.ChainURL)
	if err != nil || strings.Contains(u.Host, "$") {
		return
	}
	if _, err := netip.ParseAddr(u.Hostname()); err == nil {
		return
	}
	var mute []string
	for _, nic := range k.g.NICs {
		s, ok := k.c.Segment(nic.Segment)
		if !ok || s.Mode != ModeServer || s.tellsDNS() || !k.ok(join("segment", s.Name)+".dns") {
			return // somebody knows names
		}
		mute = append(mute, s.Name)
	}
	if len(mute) > 0 {
		k.wrong("chain_url", fmt.Sprintf("names the host %s, and segment.%s tells machines no name server", u.Hostname(), mute[0]), fmt.Sprintf("write dns in [segment.%s], or an address in the URL", mute[0]))
	}
}

// tellsDNS reports whether machines of the segment are told a name server, which
// is option 6.
func (s Segment) tellsDNS() bool {
	return len(s.DNS) > 0 || slices.ContainsFunc(Options(s.Options), func(o boot.Option) bool { return o.Code == 6 })
}

// profile checks the name of the profile.
func (k guestCheck) profile() {
	if key := k.key("profile"); k.ok(key) {
		k.checkProfileName(k.c, key, k.g.Profile)
	}
}

// kernel wants a profile that can be booted directly.
func (k guestCheck) kernel() {
	k.profile()
	if name := cmp.Or(k.g.Profile, DefaultProfile); k.kernelless(name) {
		k.wrong("profile", name+" has no kernel that could be booted directly", "choose a profile with a kernel")
	}
}

// kernelless reports whether the profile of this name is known to have no kernel.
func (k guestCheck) kernelless(name string) bool {
	p, there := k.c.Profiles[name]
	return there && k.ok(join("profile", name)) && p.Kernel == "" || name == boot.LocalName
}

// appended wants a kernel for the words of append. Those of [guest] are for the
// guests that have one.
func (k guestCheck) appended() {
	why, instead := "", ""
	switch name := cmp.Or(k.g.Profile, DefaultProfile); {
	case k.g.ChainURL != "":
		why, instead = "chain_url is in its place", "leave out one of the two"
	case k.g.Boot == BootDisk && len(k.g.NICs) == 0:
		why, instead = "the guest has no network card to load one by", "leave it out"
	case k.kernelless(name):
		why, instead = name+" has none", "leave it out"
	default:
		return
	}
	if k.said("append") && k.ok(k.key("profile")) {
		k.wrong("append", "is for the kernel of a profile, and "+why, instead)
	}
	k.g.Append = ""
}

// checkNames wants names that differ in more than case, and host names that
// differ.
func (r *reader) checkNames(c *Config) {
	names, nodes := map[string]string{}, map[string]string{}
	for _, g := range c.Guests {
		path := join("guest", g.Name)
		if !r.ok(path) {
			continue
		}
		name := strings.ToLower(g.Name)
		if other, taken := names[name]; taken {
			r.problemAt(path, "differs from "+other+" in case alone, and host names have none", "give it another name")
			continue
		}
		names[name] = path
		node := strings.ToLower(g.Node)
		if !r.ok(path+".node_name") || node == "" {
			continue
		}
		if other, taken := nodes[node]; taken {
			line := r.lineOf(other)
			r.problemAt(path+".node_name", fmt.Sprintf("%s is %s's too, in line %d", g.Node, other, line), "give each guest one of its own")
		} else {
			nodes[node] = path
		}
	}
}
