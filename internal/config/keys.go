package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/every-channel/ecboot/internal/boot"
)

// The functions here declare every key of the file once: reading, Show and
// Keys all go through them.

func fileKeys(s *section, c *Config) {
	segmentTables(s, c)
	if sub := s.sub("server"); sub != nil {
		serverKeys(sub, &c.Server)
	}
	if sub := s.sub("guest"); sub != nil {
		guestSection(sub, c)
	}
	profileTables(s, c)
	tableArray(s, "machine", &c.Machines, machineKeys)
	tableArray(s, "match", &c.Rules, ruleKeys)
	s.end()
}

// segmentTables goes through [segment.NAME]. A file that declares one has no
// other.
func segmentTables(s *section, c *Config) {
	if s.writing() {
		for i := range c.Segments {
			segmentKeys(s.begin("segment."+c.Segments[i].Name), &c.Segments[i])
		}
		return
	}
	named := namedTables(s, "segment", "lan", checkSegmentName)
	if len(named) > 0 {
		c.Segments = nil
	}
	for _, t := range named {
		seg := NewSegment(t.name)
		if t.keys != nil {
			segmentKeys(t.keys, &seg)
			segmentDefaults(t.keys, &seg)
		}
		c.Segments = append(c.Segments, seg)
	}
}

// segmentDefaults fills in what follows from other keys.
func segmentDefaults(s *section, seg *Segment) {
	if seg.Uplink != "" && !s.has("bridge") {
		seg.Bridge = "br-" + seg.Name
		if len(seg.Bridge) > maxLinkName {
			s.r.problemAt(s.key("bridge"), "is missing, and "+seg.Bridge+" would be too long for one", "write the name of the bridge that "+seg.Uplink+" is to join")
		}
	}
	if seg.Private() && !seg.Address.IsValid() && s.r.ok(s.key("address")) {
		seg.Address = defaultAddress
	}
}

// namedTable is one of several tables [WHAT.NAME]; keys is nil when it is no
// table.
type namedTable struct {
	name string
	keys *section
}

// namedTables reads the tables below what.
func namedTables(s *section, what, example string, check func(string) error) (out []namedTable) {
	v := s.take(what)
	if v == nil {
		return nil
	}
	if v.kind != kindTable {
		s.r.problem(what, v.at, "is "+v.kind.String(), fmt.Sprintf("write one table per %s, such as [%[1]s.%s]", what, example))
		return nil
	}
	for _, name := range v.table.order {
		e := v.table.byName[name]
		path := join(what, name)
		if err := check(name); err != nil {
			s.r.problem(path, e.at, err.Error(), fmt.Sprintf("write letters, digits, - and _, such as [%s.%s]", what, example))
		}
		out = append(out, namedTable{name, s.r.table(path, e.value)})
	}
	return out
}

func segmentKeys(s *section, seg *Segment) {
	key(s, "interface", optional(linkName), &seg.Interface)
	key(s, "bridge", optional(linkName), &seg.Bridge)
	key(s, "uplink", optional(linkName), &seg.Uplink)
	key(s, "parent", optional(linkName), &seg.Parent)
	key(s, "vlan", optional(vlanTag), &seg.VLAN)
	key(s, "relay", optional(serverAddress), &seg.Relay)
	key(s, "via", optional(anyText), &seg.Via)
	key(s, "mode", oneOf(ModeServer, ModeProxy, ModeOff), &seg.Mode)
	key(s, "address", optional(serverAddress), &seg.Address)
	if !s.writing() || seg.Pool != nil {
		oneOrMore(s, "pool", addressRange, &seg.Pool)
	}
	list(s, "exclude", addressRange, &seg.Exclude)
	key(s, "lease_time", leaseTime, &seg.LeaseTime)
	key(s, "boot_lease_time", optional(leaseTime), &seg.BootLeaseTime)
	key(s, "router", optional(hostAddress), &seg.Router)
	list(s, "dns", hostAddress, &seg.DNS)
	list(s, "ntp", hostAddress, &seg.NTP)
	key(s, "domain", optional(domainName), &seg.Domain)
	list(s, "search", domainName, &seg.Search)
	list(s, "routes", route, &seg.Routes)
	pairs(s, "options", optionName, anyText, &seg.Options)
	key(s, "nat", boolean, &seg.NAT)
	key(s, "unknown", optional(oneOf(PolicyBoot, PolicyAddress, PolicyIgnore)), &seg.Unknown)
	key(s, "allow_other_dhcp", boolean, &seg.AllowOtherDHCP)
	s.end()
}

func serverKeys(s *section, srv *Server) {
	key(s, "state_dir", optional(s.filePath()), &srv.StateDir)
	key(s, "http_port", port, &srv.HTTPPort)
	key(s, "https_port", optional(port), &srv.HTTPSPort)
	key(s, "tls_certificate", optional(s.filePath()), &srv.TLSCertificate)
	key(s, "tls_key", optional(s.filePath()), &srv.TLSKey)
	pairs(s, "nbp", platform, s.filePath(), &srv.NBP)
	pairs(s, "shim", platform, s.filePath(), &srv.Shim)
	pairs(s, "grub", platform, s.filePath(), &srv.GRUB)
	key(s, "operator_group", userName, &srv.OperatorGroup)
	s.end()
}

// profileTables goes through [profile.NAME].
func profileTables(s *section, c *Config) {
	if s.writing() {
		for _, name := range slices.Sorted(maps.Keys(c.Profiles)) {
			p := c.Profiles[name]
			profileKeys(s.begin("profile."+name), &p)
		}
		return
	}
	for _, t := range namedTables(s, "profile", "debian-12", checkProfileName) {
		// Machines may refer to a profile that is wrong in itself.
		p := Profile{Name: t.name}
		if t.keys != nil {
			profileKeys(t.keys, &p)
		}
		c.Profiles[t.name] = p
	}
}

func profileKeys(s *section, p *Profile) {
	key(s, "script", optional(s.filePath()), &p.ScriptFile)
	if s.writing() && p.ScriptFile != "" {
		return
	}
	key(s, "efi", optional(s.filePath()), &p.EFI)
	key(s, "tree", optional(s.filePath()), &p.Tree)
	if !s.writing() || p.Tree != "" {
		pairs(s, "programs", platform, programPath, &p.Programs)
	}
	key(s, "kernel", optional(s.source()), &p.Kernel)
	if s.writing() && p.Kernel == "" {
		return
	}
	list(s, "initrds", s.source(), &p.Initrds)
	key(s, "cmdline", cmdline, &p.Cmdline)
	if !s.writing() || p.EFI == "" {
		key(s, "secure_boot", boolean, &p.SecureBoot)
	}
	if !s.writing() || p.Initramfs != nil {
		if sub := s.sub("initramfs"); sub != nil {
			if p.Initramfs == nil {
				p.Initramfs = &Initramfs{}
			}
			initramfsKeys(sub, p.Initramfs)
		}
	}
	s.end()
	if !s.writing() {
		profileDefaults(s, p)
	}
}

// profileDefaults fills in what a profile leaves out: one that says nothing else
// boots the embedded kernel, and the embedded kernel alone comes with the
// embedded initrd.
func profileDefaults(s *section, p *Profile) {
	needless := func(key, beside, instead string) {
		if s.has(key) {
			s.r.problemAt(s.key(key), "is given beside "+beside+", which would never use it", instead)
		}
	}
	if s.has("script") {
		for _, other := range []string{"kernel", "initrds", "cmdline", "initramfs", "efi", "tree", "programs", "secure_boot"} {
			needless(other, "script", "leave out one of the two; the script names its own kernel and initrds")
		}
		return
	}
	if p.EFI != "" {
		p.EFIPlatform = boot.UEFIX64
		needless("tree", "efi", "leave out one of the two, and name the program in programs")
		needless("secure_boot", "efi", "leave it out: the firmware checks the program itself")
	}
	if p.Tree != "" && !s.has("programs") {
		s.r.problemAt(s.key("programs"), "is missing", `write which of its files firmware is to run, such as programs = {bios = "pxelinux.0"}`)
	}
	if p.Tree == "" {
		needless("programs", "no tree", "write tree, the directory in which the programs are")
	}
	if !s.has("kernel") && p.EFI == "" && p.Tree == "" {
		p.Kernel = EmbeddedKernel
	}
	if p.Kernel == "" {
		for _, other := range []string{"initrds", "cmdline", "initramfs", "secure_boot"} {
			needless(other, "no kernel", "write kernel, too, or leave it out")
		}
		return
	}
	if !s.has("initrds") && p.Initramfs == nil && p.Kernel == EmbeddedKernel {
		p.Initrds = []Source{EmbeddedInitramfs}
	}
	if !s.has("cmdline") {
		p.Cmdline = defaultCmdline
	}
}

func initramfsKeys(s *section, i *Initramfs) {
	list(s, "commands", commandPattern, &i.Commands)
	pairs(s, "files", archivePath, s.filePath(), &i.Files)
	s.end()
}

// tableArray goes through [[name]].
func tableArray[T any](s *section, name string, p *[]T, keys func(*section, *T)) {
	if s.writing() {
		for i := range *p {
			path := s.key(name)
			fmt.Fprintf(s.out, "\n[[%s]]\n", path)
			keys(&section{path: path, out: s.out}, &(*p)[i])
		}
		return
	}
	v := s.take(name)
	if v == nil {
		return
	}
	path := s.key(name)
	if v.kind != kindList {
		s.r.problem(path, v.at, "is "+v.kind.String(), fmt.Sprintf("write [[%s]], in two brackets, before the keys of each %s", path, name))
		return
	}
	for i, element := range v.list {
		// One that is no table keeps its place, so that the numbers of the
		// others are those of the file.
		var one T
		if sub := s.r.table(fmt.Sprintf("%s[%d]", path, i), element); sub != nil {
			keys(sub, &one)
		}
		*p = append(*p, one)
	}
}

func machineKeys(s *section, m *Machine) {
	key(s, "mac", optional(macAddress), &m.MAC)
	key(s, "uuid", optional(uuid), &m.UUID)
	machineSettings(s, m)
	s.end()
	if !s.writing() && !s.has("mac") && !s.has("uuid") && !s.has("name") {
		s.r.problemAt(s.key("mac"), "is missing", "write "+macAddress.want+", or uuid, or name, to say which machine this is")
	}
}

// machineSettings are the keys that may change at run time.
func machineSettings(s *section, m *Machine) {
	key(s, "name", optional(hostName), &m.Name)
	key(s, "address", optional(hostAddress), &m.Address)
	key(s, "profile", optional(anyText), &m.Profile)
	if m.Next == "" {
		m.Next = NextAlways
	}
	key(s, "next", oneOf(NextAlways, NextOnce, NextLocal), &m.Next)
	key(s, "nbp", optional(s.bootProgram()), &m.NBP)
	key(s, "chainload", boolean, &m.Chainload)
	list(s, "tags", tag, &m.Tags)
	pairs(s, "options", optionName, anyText, &m.Options)
}

func ruleKeys(s *section, r *Rule) {
	key(s, "mac", optional(macPrefix), &r.MAC)
	key(s, "arch", optional(platform), &r.Arch)
	key(s, "vendor_class", optional(anyText), &r.Vendor)
	key(s, "uuid", optional(uuidPrefix), &r.UUID)
	list(s, "tags", tag, &r.Tags)
	key(s, "profile", optional(anyText), &r.Profile)
	key(s, "nbp", optional(s.bootProgram()), &r.NBP)
	s.end()
	if s.writing() {
		return
	}
	if !s.has("mac") && !s.has("arch") && !s.has("vendor_class") && !s.has("uuid") && !s.has("tags") {
		s.r.problemAt(s.path, "matches every machine", "write which machines it is for: mac, arch, vendor_class, uuid or tags")
	}
	if !s.has("profile") && !s.has("nbp") {
		s.r.problemAt(s.path, "says nothing of the machines that it matches", "write profile or nbp")
	}
}

// Show returns the configuration as a file that reads the same: with every
// default filled in and every path absolute.
func (c *Config) Show() string {
	shown := *c
	shown.Segments = slices.Clone(c.Segments)
	for i, seg := range c.Segments {
		shown.Segments[i].Unknown = seg.Policy()
	}
	var out strings.Builder
	fileKeys(&section{out: &out}, &shown)
	return strings.TrimPrefix(out.String(), "\n")
}

// keyTables is a file with every table that there is.
const keyTables = `
[segment.NAME]
[server]
[guest.NAME.limits]
[[guest.NAME.nic]]
[[guest.NAME.disk]]
[[guest.NAME.share]]
[guest.NAME.zfs.PATH]
[profile.NAME.initramfs]
[[machine]]
[[match]]
`

// Keys returns the path of every key that a file can have, such as
// "segment.pool", "profile.NAME.kernel" and "machine[].mac".
func Keys() []string {
	r := newReader("", []byte(keyTables))
	fileKeys(&section{r: r, in: r.document()}, Default())
	for i, k := range r.keys {
		r.keys[i] = strings.Replace(k, "[0]", "[]", 1)
	}
	return r.keys
}
