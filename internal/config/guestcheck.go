package config

import (
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"path"
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

// isNode reports whether a machine of this name is the guest.
func (g DeclaredGuest) isNode(name string) bool {
	if g.Node == "" { // and will be HOST-NAME
		return strings.HasSuffix(strings.ToLower(name), nodeName("", strings.ToLower(g.Name)))
	}
	return strings.EqualFold(g.Node, name)
}

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
			continue
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
		case BackendMicroVM:
			k.kernel()
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
		complain(what, leave, "arch", "firmware", "secure_boot", "machine", "rom", "accel", "timeout", "append", "cpu", "tpm", "graphics", "user")
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
	if g.Profile != "" && len(g.NICs) > 0 && k.every(func(n GuestNIC) bool { return !k.served(n) }) {
		k.wrong("profile", "is what ecboot serves, and it serves none of the guest's networks", "write a network card on a segment, or leave it out")
	}
}

// every reports whether cond holds for all network cards; those with mistakes
// are not held against the guest.
func (k guestCheck) every(cond func(GuestNIC) bool) bool {
	for i, nic := range k.g.NICs {
		if !k.nicOK(i) || !cond(nic) {
			return false
		}
	}
	return true
}

func (k guestCheck) nicOK(i int) bool {
	path := fmt.Sprintf("%s.nic[%d]", k.path, i)
	for bad := range k.bad {
		if bad == path || strings.HasPrefix(bad, path+".") {
			return false
		}
	}
	return true
}

// served reports whether the card is on a network where ecboot answers.
func (k guestCheck) served(nic GuestNIC) bool {
	for _, s := range k.c.Segments {
		if s.Mode != ModeOff && (nic.Segment == s.Name || nic.Macvtap != "" && (nic.Macvtap == s.Parent || nic.Macvtap == s.Interface)) {
			return true
		}
	}
	return false
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
		if !ok || s.Mode != ModeServer || len(s.DNS) > 0 || !k.ok(join("segment", s.Name)+".dns") {
			return // somebody else says who knows names
		}
		mute = append(mute, s.Name)
	}
	if len(mute) > 0 {
		k.wrong("chain_url", fmt.Sprintf("names the host %s, and segment.%s tells machines no name server", u.Hostname(), mute[0]), fmt.Sprintf("write dns in [segment.%s], or an address in the URL", mute[0]))
	}
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
	name := k.g.Profile
	if name == "" {
		name = DefaultProfile
	}
	p, there := k.c.Profiles[name]
	if there && k.ok(join("profile", name)) && p.Kernel == "" || name == boot.LocalName {
		k.wrong("profile", name+" has no kernel that could be booted directly", "choose a profile with a kernel")
	}
}

// nics looks at network cards one by one.
func (k guestCheck) nics() {
	places := map[int]int{}
	for i, nic := range k.g.NICs {
		at := fmt.Sprintf("nic[%d]", i)
		if !k.ok(k.key(at)) {
			continue
		}
		k.nicWay(at, nic)
		if k.g.Backend != BackendQEMU {
			for _, key := range []string{"model", "rom", "boot"} {
				if k.said(at + "." + key) {
					k.wrong(at+"."+key, "is for virtual machines with firmware", "leave it out")
				}
			}
		}
		if first, taken := places[nic.Boot]; taken && nic.Boot != 0 {
			k.wrong(at+".boot", fmt.Sprintf("%d is the place of nic[%d], too", nic.Boot, first), "give each a place of its own")
		}
		places[nic.Boot] = i
		if nic.User && nic.Name != "" {
			k.wrong(at+".name", "is given beside user, which has no link", "leave it out")
		}
		if nic.Address.IsValid() && nic.Segment == "" {
			k.wrong(at+".address", "is kept on segments alone", "write segment, too, or leave it out")
		}
	}
}

// nicWay looks at how a card is tied to the network.
func (k guestCheck) nicWay(at string, nic GuestNIC) {
	var ways []string
	for _, way := range []struct {
		name string
		set  bool
	}{{"segment", nic.Segment != ""}, {"macvtap", nic.Macvtap != ""}, {"macvlan", nic.Macvlan != ""}, {"user", nic.User}} {
		if way.set || !k.ok(k.key(at+"."+way.name)) {
			ways = append(ways, way.name)
		}
	}
	instead := "write segment, macvtap or user"
	if !k.g.VM() {
		instead = "write segment or macvlan"
	}
	switch {
	case len(ways) == 0:
		k.wrong(at, "is on no network", instead)
		return
	case len(ways) > 1:
		k.wrong(at+"."+ways[1], "is given beside "+ways[0], "keep one of the two: a network card is on one network")
		return
	case nic.Macvlan != "" && k.g.VM():
		k.wrong(at+".macvlan", "is for containers", "write macvtap in its place")
	case nic.Macvtap != "" && !k.g.VM():
		k.wrong(at+".macvtap", "is for virtual machines", "write macvlan in its place")
	case nic.User && !k.g.VM():
		k.wrong(at+".user", "is QEMU's", "write segment or macvlan")
	}
	if nic.Segment != "" {
		k.nicSegment(at+".segment", nic.Segment)
	}
	for _, key := range []string{"macvtap", "macvlan"} {
		parent := nic.parent()
		for _, s := range k.c.Segments {
			if parent != "" && s.Uplink == parent && s.VLAN == 0 && k.said(at+"."+key) {
				k.wrong(at+"."+key, fmt.Sprintf("%s is a port of the bridge of segment.%s, and such a link carries nothing else", parent, s.Name), fmt.Sprintf("write segment = %q in its place", s.Name))
			}
		}
	}
}

// nicSegment wants a segment that has a place for guests.
func (k guestCheck) nicSegment(key, name string) {
	s, ok := k.c.Segment(name)
	if !ok {
		var names []string
		for _, s := range k.c.Segments {
			names = append(names, s.Name)
		}
		k.wrong(key, fmt.Sprintf("there is no segment %q", name), "choose one of "+strings.Join(names, ", ")+", or declare [segment."+name+"]")
		return
	}
	if !k.ok(join("segment", name)) {
		return
	}
	switch bridge := s.HostBridge(); {
	case s.Interface != "":
		k.wrong(key, fmt.Sprintf("%s is %s as it is, which has no place for guests", name, s.Interface), fmt.Sprintf("write bridge and uplink in [segment.%s] instead of interface, or parent", name))
	case s.Relay.IsValid():
		k.wrong(key, name+" is behind a relay, and not on this machine", "write a segment with a bridge or a parent")
	case s.Private() && len(bridge) > maxLinkName:
		k.wrong(key, fmt.Sprintf("%s is private, and %s would be too long for its bridge", name, bridge), "give the segment a shorter name, or write bridge in it")
	}
}

// parent is the link of the host that carries the card, if one does.
func (n GuestNIC) parent() string {
	if n.Macvtap != "" {
		return n.Macvtap
	}
	return n.Macvlan
}

// linkInside is what the card of a container is called in it; systemd-nspawn's
// name on a bridge.
func (n GuestNIC) linkInside() string {
	switch {
	case n.Name != "":
		return n.Name
	case n.Macvlan != "":
		return "mv-" + n.Macvlan
	}
	return "host0"
}

// disks looks at disks one by one.
func (k guestCheck) disks() {
	if !k.g.VM() {
		return
	}
	for i, d := range k.g.Disks {
		at := fmt.Sprintf("disk[%d]", i)
		if !k.ok(k.key(at)) {
			continue
		}
		needless := func(key, why string) {
			if k.said(at + "." + key) {
				k.wrong(at+"."+key, why, "leave it out")
			}
		}
		kind := "read_only"
		if d.ISO {
			kind = "iso"
			needless("read_only", "says what iso says")
			if d.Format != "raw" {
				k.wrong(at+".format", "of a CD is raw", "leave it out")
			}
			if d.Bus == "virtio" {
				k.wrong(at+".bus", `"virtio" has no CDs`, `write "ide" or "scsi", or leave it out`)
			}
			if k.g.Backend == BackendMicroVM {
				k.wrong(at+".iso", "is for virtual machines with firmware", `leave it out, or write backend = "qemu"`)
			}
		}
		switch {
		case d.ISO || d.ReadOnly:
			if d.Path == "" {
				k.wrong(at+".path", "is missing, and a disk that is only read is never made", "write the path of an image")
			}
			needless("size", "is for disks that are made, and one with "+kind+" is not")
			needless("base", "is for disks that are written to, and one with "+kind+" is not")
			needless("ephemeral", "is for disks that are written to, and one with "+kind+" is not")
		case d.Base != "":
			if d.Format != "qcow2" {
				k.wrong(at+".format", "of a disk with a base is qcow2, which can keep what is different", `write "qcow2", or leave it out`)
			}
			if d.Base == d.Path {
				k.wrong(at+".base", "is the disk itself", "write another path for one of the two")
			}
		}
		switch {
		case k.g.Backend == BackendMicroVM && d.Bus != "virtio" && k.said(at+".bus"):
			k.wrong(at+".bus", "of a microvm is virtio", "leave it out")
		case k.g.Backend == BackendQEMU && k.g.Arch == "arm64" && d.Bus == "ide":
			k.wrong(at+".bus", "\"ide\" is not there for arm64", `write "virtio" or "scsi"`)
		}
	}
}

// maxTag is the longest mount tag of QEMU's 9p, shorter than virtiofs's.
const maxTag = 31

// shares looks at shares one by one.
func (k guestCheck) shares() {
	first := map[string]string{} // by what they are in the guest
	for _, z := range k.g.ZFS {
		first[path.Clean(z.Guest)] = join("zfs", z.Guest)
	}
	for i, s := range k.g.Shares {
		at := fmt.Sprintf("share[%d]", i)
		if !k.ok(k.key(at)) {
			continue
		}
		if s.Source == "" {
			k.wrong(at+".source", "is missing", "write a directory of this machine's")
		}
		switch {
		case s.Target == "" && k.g.VM():
			k.wrong(at+".target", "is missing", `write the tag under which the guest mounts it, such as "www"`)
		case s.Target == "":
			k.wrong(at+".target", "is missing", `write where the container sees it, such as "/srv/www"`)
		case k.g.VM() && (len(s.Target) > maxTag || strings.ContainsFunc(s.Target, func(c rune) bool { return c <= ' ' || c > '~' || c == ',' })):
			k.wrong(at+".target", fmt.Sprintf("%q is no mount tag", s.Target), fmt.Sprintf("write up to %d letters, digits and the like", maxTag))
		case !k.g.VM() && (path.Clean("/"+s.Target) != s.Target || s.Target == "/"):
			k.wrong(at+".target", fmt.Sprintf("%q is not an absolute path below /", s.Target), "write one such as \"/srv/www\"")
		}
		if !k.g.VM() && k.said(at+".driver") {
			k.wrong(at+".driver", "is for virtual machines", "leave it out")
		}
		if other, taken := first[s.Target]; taken && s.Target != "" {
			k.wrong(at+".target", s.Target+" is "+other+"'s, too", "give each a target of its own")
		} else {
			first[s.Target] = at
		}
	}
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

// checkMACs wants each address once, among guests and machines. A [[machine]]
// may say more of a guest, under its host name.
func (r *reader) checkMACs(c *Config) {
	type owner struct {
		key  string
		what string
	}
	first := map[boot.MAC]owner{}
	for i, m := range c.Machines {
		if m.MAC != (boot.MAC{}) {
			first[m.MAC] = owner{fmt.Sprintf("machine[%d].mac", i), m.Name}
		}
	}
	for _, g := range c.Guests {
		for i, nic := range g.NICs {
			key := fmt.Sprintf("%s.nic[%d].mac", join("guest", g.Name), i)
			if nic.MAC == (boot.MAC{}) || !r.ok(key) {
				continue
			}
			other, taken := first[nic.MAC]
			machine, _, isMachine := strings.Cut(other.key, ".mac")
			isMachine = isMachine && strings.HasPrefix(machine, "machine[")
			first[nic.MAC] = owner{key: key}
			if !taken || isMachine && other.what != "" && g.isNode(other.what) {
				continue
			}
			line := r.lineOf(other.key)
			instead := "give each network card one of its own, or leave it out to have one assigned"
			if isMachine {
				instead = "give each one of its own; a [[machine]] that is this guest has its node_name as name"
			}
			r.problemAt(key, fmt.Sprintf("%v is %s too, in line %d", nic.MAC, strings.TrimSuffix(other.key, ".mac")+"'s", line), instead)
		}
	}
}

// checkGuestAddresses wants reserved addresses to be of their segments, and of
// one owner.
func (r *reader) checkGuestAddresses(c *Config) {
	first := map[netip.Addr]string{}
	for i, m := range c.Machines {
		if m.Address.IsValid() {
			first[m.Address] = fmt.Sprintf("machine[%d].address", i)
		}
	}
	for _, g := range c.Guests {
		for i, nic := range g.NICs {
			key := fmt.Sprintf("%s.nic[%d].address", join("guest", g.Name), i)
			s, ok := c.Segment(nic.Segment)
			if !nic.Address.IsValid() || !ok || !r.ok(key) || !r.ok(join("segment", s.Name)) {
				continue
			}
			alone := Config{Segments: []Segment{*s}}
			if !r.checkReserved(&alone, key, nic.Address) {
				continue
			}
			if other, taken := first[nic.Address]; taken {
				line := r.lineOf(other)
				r.problemAt(key, fmt.Sprintf("%v is %s too, in line %d", nic.Address, strings.TrimSuffix(other, ".address")+"'s", line), "give each one of its own")
				continue
			}
			first[nic.Address] = key
		}
	}
}

// checkLinkNames wants links whose names are none that the host has.
func (r *reader) checkLinkNames(c *Config) {
	host := map[string]string{} // by name, where the file says so
	note := func(name, where string) {
		if _, there := host[name]; !there && name != "" {
			host[name] = where
		}
	}
	for _, s := range c.Segments {
		path := join("segment", s.Name)
		for _, name := range []string{s.Interface, s.Bridge, s.Uplink, s.Parent} {
			note(name, path)
		}
		if s.Private() {
			note(s.HostBridge(), path)
		}
	}
	for _, g := range c.Guests {
		for i, nic := range g.NICs {
			note(nic.parent(), fmt.Sprintf("%s.nic[%d]", join("guest", g.Name), i))
		}
	}
	// Links that guests have on the host come last: theirs is the mistake.
	for _, g := range c.Guests {
		k := guestCheck{r, c, &g, join("guest", g.Name)}
		inside := map[string]int{}
		for i, nic := range g.NICs {
			at := fmt.Sprintf("nic[%d]", i)
			if g.Backend == "" || !k.nicOK(i) || nic.User {
				continue
			}
			name := nic.Name
			if !g.VM() {
				name = nic.linkInside()
			}
			if name == "" {
				continue
			}
			missing := ""
			if nic.Name == "" {
				missing = "is missing, and "
			}
			if len(name) > maxLinkName {
				k.wrong(at+".name", missing+name+fmt.Sprintf(" would be longer than the %d bytes that an interface name can have", maxLinkName), "write what it is called in the container")
				continue
			}
			if other, taken := inside[name]; taken {
				k.wrong(at+".name", fmt.Sprintf("%s%s is the name of nic[%d], too", missing, name, other), "give each a name of its own")
				continue
			}
			inside[name] = i
			if other, taken := host[name]; taken {
				line := r.lineOf(other)
				k.wrong(at+".name", fmt.Sprintf("%s%s is a link of the host's, named by %s in line %d", missing, name, other, line), "write another name")
				continue
			}
			if g.VM() {
				host[name] = k.key(at)
			}
		}
	}
}

// checkImages wants nobody to write an image that another guest has.
func (r *reader) checkImages(c *Config) {
	type use struct {
		key    string
		writes bool
	}
	uses := map[string][]use{}
	for _, g := range c.Guests {
		if g.Backend == "" || !r.ok(join("guest", g.Name)) {
			continue
		}
		for i, d := range g.Disks {
			at := fmt.Sprintf("%s.disk[%d]", join("guest", g.Name), i)
			if d.Path != "" || c.Server.StateDir != "" {
				p := g.DiskPath(c.Server.StateDir, i)
				uses[p] = append(uses[p], use{at + ".path", d.writes()})
			}
			if d.Base != "" && d.Base != d.Path {
				uses[d.Base] = append(uses[d.Base], use{at + ".base", false})
			}
		}
		if g.State != "" {
			uses[g.State] = append(uses[g.State], use{join("guest", g.Name) + ".state", true})
		}
	}
	for _, p := range slices.Sorted(maps.Keys(uses)) {
		for i, mine := range uses[p] {
			if !r.ok(mine.key) {
				continue
			}
			for _, other := range uses[p][:i] {
				if !mine.writes && !other.writes {
					continue
				}
				line := r.lineOf(other.key)
				r.problemAt(mine.key, fmt.Sprintf("%s is %s too, in line %d, and one of the two writes to it", p, other.key[:strings.LastIndexByte(other.key, '.')]+"'s", line), "give each one of its own, or let both only read it")
				break
			}
		}
	}
}
