package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The functions here declare every key of the file once: reading, Show and
// Keys all go through them.

func fileKeys(s *section, c *Config) {
	if sub := s.sub("segment"); sub != nil {
		segmentKeys(sub, &c.Segment)
	}
	if sub := s.sub("server"); sub != nil {
		serverKeys(sub, &c.Server)
	}
	if sub := s.sub("guest"); sub != nil {
		guestKeys(sub, &c.Guest)
	}
	profileTables(s, c)
	machineTables(s, c)
	s.end()
}

func segmentKeys(s *section, seg *Segment) {
	key(s, "bridge", optional(linkName), &seg.Bridge)
	key(s, "address", serverAddress, &seg.Address)
	key(s, "pool", addressRange, &seg.Pool)
	list(s, "exclude", addressRange, &seg.Exclude)
	key(s, "lease_time", leaseTime, &seg.LeaseTime)
	key(s, "router", optional(hostAddress), &seg.Router)
	list(s, "dns", hostAddress, &seg.DNS)
	list(s, "ntp", hostAddress, &seg.NTP)
	key(s, "domain", optional(domainName), &seg.Domain)
	key(s, "unknown", oneOf(PolicyBoot, PolicyAddress, PolicyIgnore), &seg.Unknown)
	s.end()
}

func serverKeys(s *section, srv *Server) {
	key(s, "state_dir", optional(s.filePath()), &srv.StateDir)
	key(s, "http_port", port, &srv.HTTPPort)
	s.end()
}

func guestKeys(s *section, g *Guest) {
	key(s, "firmware", oneOf("bios", "uefi"), &g.Firmware)
	key(s, "machine", oneOf("q35", "pc"), &g.Machine)
	key(s, "memory", guestMemory, &g.Memory)
	key(s, "cpus", cpuCount, &g.CPUs)
	key(s, "nic", deviceModel, &g.NIC)
	key(s, "rom", oneOf("default", "none"), &g.ROM)
	key(s, "accel", oneOf("auto", "kvm", "tcg"), &g.Accel)
	key(s, "timeout", bootTimeout, &g.Timeout)
	key(s, "append", optional(kernelWords), &g.Append)
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
	v := s.take("profile")
	if v == nil {
		return
	}
	if v.kind != kindTable {
		s.r.problem("profile", v.at, "is "+v.kind.String(), "write one table per profile, such as [profile.debian]")
		return
	}
	for _, name := range v.table.order {
		e := v.table.byName[name]
		path := join("profile", name)
		if err := checkProfileName(name); err != nil {
			s.r.problem(path, e.at, err.Error(), "write letters, digits, - and _, such as [profile.debian-12]")
		}
		// Machines may refer to a profile that is wrong in itself.
		p := Profile{Name: name}
		if sub := s.r.table(path, e.value); sub != nil {
			profileKeys(sub, &p)
		}
		c.Profiles[name] = p
	}
}

func profileKeys(s *section, p *Profile) {
	key(s, "script", optional(s.filePath()), &p.ScriptFile)
	if s.writing() && p.ScriptFile != "" {
		return
	}
	key(s, "kernel", s.source(), &p.Kernel)
	list(s, "initrds", s.source(), &p.Initrds)
	key(s, "cmdline", kernelWords, &p.Cmdline)
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

// profileDefaults fills in what a profile leaves out: no kernel is the
// embedded one, and the embedded kernel alone comes with the embedded initrd.
func profileDefaults(s *section, p *Profile) {
	if s.has("script") {
		for _, other := range []string{"kernel", "initrds", "cmdline", "initramfs"} {
			if s.has(other) {
				s.r.problemAt(s.key(other), "is given beside script, which would never use it", "leave out one of the two; the script names its own kernel and initrds")
			}
		}
		return
	}
	if !s.has("kernel") {
		p.Kernel = EmbeddedKernel
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

// machineTables goes through [[machine]].
func machineTables(s *section, c *Config) {
	if s.writing() {
		for i := range c.Machines {
			fmt.Fprint(s.out, "\n[[machine]]\n")
			machineKeys(&section{out: s.out}, &c.Machines[i])
		}
		return
	}
	v := s.take("machine")
	if v == nil {
		return
	}
	if v.kind != kindList {
		s.r.problem("machine", v.at, "is "+v.kind.String(), "write [[machine]], in two brackets, before the keys of each machine")
		return
	}
	for i, element := range v.list {
		// A machine that is no table keeps its place, so that the numbers
		// of the others are those of the file.
		var m Machine
		if sub := s.r.table(fmt.Sprintf("machine[%d]", i), element); sub != nil {
			machineKeys(sub, &m)
		}
		c.Machines = append(c.Machines, m)
	}
}

func machineKeys(s *section, m *Machine) {
	key(s, "mac", macAddress, &m.MAC)
	key(s, "name", optional(hostName), &m.Name)
	key(s, "address", optional(hostAddress), &m.Address)
	key(s, "profile", optional(anyText), &m.Profile)
	key(s, "nbp", optional(bootProgram), &m.NBP)
	key(s, "chainload", boolean, &m.Chainload)
	s.end()
	if !s.writing() && !s.has("mac") {
		s.r.problemAt(s.key("mac"), "is missing", "write "+macAddress.want+" to say which machine this is")
	}
}

// Show returns the configuration as a file that reads the same: with every
// default filled in and every path absolute.
func (c *Config) Show() string {
	shown := *c
	shown.Segment.Unknown = c.Segment.Policy()
	var out strings.Builder
	fileKeys(&section{out: &out}, &shown)
	return strings.TrimPrefix(out.String(), "\n")
}

// Keys returns the path of every key that a file can have, such as
// "segment.pool", "profile.NAME.kernel" and "machine[].mac".
func Keys() []string {
	r := newReader("", []byte("[segment]\n[server]\n[guest]\n[profile.NAME.initramfs]\n[[machine]]\n"))
	fileKeys(&section{r: r, in: r.document()}, Default())
	for i, k := range r.keys {
		r.keys[i] = strings.Replace(k, "[0]", "[]", 1)
	}
	return r.keys
}
