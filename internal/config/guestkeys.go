package config

import (
	"fmt"
	"slices"
	"strconv"
)

// guestSection goes through [guest]: the defaults of all guests, and in it a
// table for each guest that is declared.
func guestSection(s *section, c *Config) {
	firmwareKeys(s, &c.Guest)
	machineTypeKeys(s, &c.Guest)
	key(s, "nic", deviceModel, &c.Guest.NIC)
	key(s, "timeout", bootTimeout, &c.Guest.Timeout)
	key(s, "base_mac", macAddress, &c.BaseMAC)
	guestTables(s, c)
	s.end()
}

// machineTypeKeys are what every virtual machine has.
func machineTypeKeys(s *section, g *Guest) {
	key(s, "arch", oneOf("amd64", "arm64"), &g.Arch)
	key(s, "memory", guestMemory, &g.Memory)
	key(s, "cpus", cpuCount, &g.CPUs)
	key(s, "accel", oneOf("auto", "kvm", "tcg"), &g.Accel)
	key(s, "append", optional(kernelWords), &g.Append)
}

// firmwareKeys are what virtual machines with firmware have.
func firmwareKeys(s *section, g *Guest) {
	key(s, "firmware", oneOf("bios", "uefi", "uefi-ia32"), &g.Firmware)
	key(s, "secure_boot", boolean, &g.SecureBoot)
	key(s, "machine", written(oneOf("q35", "pc")), &g.Machine)
	key(s, "rom", oneOf("default", "none"), &g.ROM)
}

// guestTables goes through [guest.NAME]. Their names are those of [guest] that
// are no keys.
func guestTables(s *section, c *Config) {
	if s.writing() {
		for i := range c.Guests {
			g := c.Guests[i]
			guestKeys(s.begin(s.key(g.Name)), &g)
		}
		return
	}
	for _, name := range s.in.order {
		e := s.in.byName[name]
		if e.value.kind != kindTable || slices.Contains(s.known, name) {
			continue
		}
		s.named = append(s.named, name)
		path := s.key(name)
		sub := s.r.table(path, e.value)
		if err := CheckName(name); err != nil {
			s.r.problem(path, e.at, strconv.Quote(name)+" "+err.Error(), "write a name such as [guest.web]")
		}
		g := newGuest(name, c.Guest)
		guestKeys(sub, &g)
		guestDefaults(sub, &g)
		c.Guests = append(c.Guests, g)
	}
}

// guestKeys goes through one [guest.NAME]. What the backend does not have is
// read all the same, so that the checks can say so, and not shown.
func guestKeys(s *section, g *DeclaredGuest) {
	has := func(backends ...Backend) bool { return !s.writing() || slices.Contains(backends, g.Backend) }
	key(s, "backend", oneOf(BackendQEMU, BackendMicroVM, BackendContainer), &g.Backend)
	key(s, "node_name", written(hostName), &g.Node)
	key(s, "base_mac", written(macAddress), &g.BaseMAC)
	if has(BackendQEMU) {
		firmwareKeys(s, &g.Guest)
		key(s, "tpm", boolean, &g.TPM)
		key(s, "graphics", oneOf(GraphicsNone, GraphicsVNC), &g.Graphics)
		key(s, "chain_url", written(chainURL), &g.ChainURL)
	}
	if has(BackendQEMU, BackendMicroVM) {
		machineTypeKeys(s, &g.Guest)
		key(s, "cpu", written(cpuModel), &g.CPU)
		key(s, "boot", oneOf(BootNetwork, BootDisk, BootDirect), &g.Boot)
		key(s, "profile", written(anyText), &g.Profile)
		key(s, "user", written(userName), &g.User)
	}
	if has(BackendContainer) {
		key(s, "root", written(s.filePath()), &g.Root)
		key(s, "ephemeral", written(boolean), &g.Ephemeral)
		key(s, "state", written(s.filePath()), &g.State)
		key(s, "stop_signal", written(signalName), &g.StopSignal)
		key(s, "uid_base", written(uidBase), &g.UIDBase)
	}
	key(s, "autostart", boolean, &g.Autostart)
	key(s, "order", startOrder, &g.Order)
	key(s, "delay", startDelay, &g.Delay)
	key(s, "restart", oneOf(RestartOnFailure, RestartAlways, RestartNever), &g.Restart)
	key(s, "restart_delay", restartDelay, &g.RestartDelay)
	key(s, "restart_max", restartDelay, &g.RestartMax)
	key(s, "stop_timeout", stopTimeout, &g.StopTimeout)
	list(s, "extra", argument, &g.Extra)
	if !s.writing() || g.Limits != (Limits{}) {
		if sub := s.sub("limits"); sub != nil {
			limitKeys(sub, &g.Limits)
		}
	}
	tableArray(s, "nic", &g.NICs, nicKeys)
	tableArray(s, "disk", &g.Disks, diskKeys)
	tableArray(s, "share", &g.Shares, shareKeys)
	zfsTables(s, &g.ZFS)
	s.end()
}

func limitKeys(s *section, l *Limits) {
	key(s, "cpu", written(percent), &l.CPU)
	key(s, "memory", written(guestMemory), &l.Memory)
	key(s, "tasks", written(taskCount), &l.Tasks)
	key(s, "io_weight", written(ioWeight), &l.IOWeight)
	s.end()
}

func nicKeys(s *section, n *GuestNIC) {
	key(s, "segment", written(nonEmpty(anyText)), &n.Segment)
	key(s, "macvtap", written(nonEmpty(linkName)), &n.Macvtap)
	key(s, "macvlan", written(nonEmpty(linkName)), &n.Macvlan)
	key(s, "user", written(boolean), &n.User)
	key(s, "mac", written(macAddress), &n.MAC)
	key(s, "address", written(hostAddress), &n.Address)
	key(s, "model", written(deviceModel), &n.Model)
	key(s, "name", written(nonEmpty(linkName)), &n.Name)
	key(s, "rom", written(oneOf("default", "none")), &n.ROM)
	key(s, "boot", written(bootPlace), &n.Boot)
	s.end()
}

func diskKeys(s *section, d *GuestDisk) {
	key(s, "path", written(s.filePath()), &d.Path)
	key(s, "format", written(oneOf("qcow2", "raw")), &d.Format)
	key(s, "size", written(diskSize), &d.Size)
	key(s, "base", written(s.filePath()), &d.Base)
	key(s, "ephemeral", written(boolean), &d.Ephemeral)
	key(s, "read_only", written(boolean), &d.ReadOnly)
	key(s, "iso", written(boolean), &d.ISO)
	key(s, "bus", written(oneOf("virtio", "scsi", "ide")), &d.Bus)
	s.end()
	if !s.writing() {
		diskDefaults(s, d)
	}
}

// diskDefaults fills in what follows from other keys.
func diskDefaults(s *section, d *GuestDisk) {
	if !s.has("format") {
		d.Format = "qcow2"
		if d.ISO {
			d.Format = "raw"
		}
	}
	if !s.has("size") && d.Base == "" && !d.ReadOnly && !d.ISO {
		d.Size = 16 << 30
	}
	if !s.has("bus") && !d.ISO {
		d.Bus = "virtio"
	}
}

func shareKeys(s *section, sh *GuestShare) {
	key(s, "source", written(s.filePath()), &sh.Source)
	key(s, "target", written(nonEmpty(anyText)), &sh.Target)
	key(s, "read_only", written(boolean), &sh.ReadOnly)
	key(s, "driver", written(oneOf("virtiofs", "9p")), &sh.Driver)
	s.end()
}

// zfsTables goes through [guest.NAME.zfs."/PATH"], whose names are the paths in
// the guest.
func zfsTables(s *section, p *[]GuestZFS) {
	if s.writing() {
		for i := range *p {
			z := (*p)[i]
			zfsKeys(s.begin(join(s.key("zfs"), z.Guest)), &z)
		}
		return
	}
	v := s.take("zfs")
	if v == nil {
		return
	}
	path := s.key("zfs")
	if v.kind != kindTable {
		s.r.problem(path, v.at, "is "+v.kind.String(), fmt.Sprintf(`write one table per path in the guest, such as [%s."/persist"]`, path))
		return
	}
	for _, name := range v.table.order {
		z := GuestZFS{Guest: name}
		if sub := s.r.table(join(path, name), v.table.byName[name].value); sub != nil {
			zfsKeys(sub, &z)
		}
		*p = append(*p, z)
	}
}

func zfsKeys(s *section, z *GuestZFS) {
	key(s, "pool", written(anyText), &z.Pool)
	key(s, "dataset", written(anyText), &z.Dataset)
	key(s, "host_mountpoint", written(anyText), &z.HostMountpoint)
	s.end()
}

// guestDefaults fills in what follows from other keys, and takes out of the
// inherited defaults what the backend does not have.
func guestDefaults(s *section, g *DeclaredGuest) {
	switch g.Backend {
	case BackendContainer:
		g.Guest, g.Graphics, g.Boot = Guest{}, "", ""
	case BackendMicroVM:
		g.Firmware, g.SecureBoot, g.Machine, g.ROM, g.NIC, g.Graphics = "", false, "", "", "", ""
		if !s.has("boot") {
			g.Boot = BootDirect
		}
	default:
		if g.Arch == "arm64" {
			if !s.has("firmware") {
				g.Firmware = "uefi"
			}
			if !s.has("machine") {
				g.Machine = ""
			}
		}
		// Nobody has signed the ROM of a network card.
		if g.SecureBoot && g.Firmware != "bios" && !s.has("rom") {
			g.ROM = "none"
		}
		for i := range g.NICs {
			nic := &g.NICs[i]
			if nic.Model == "" {
				nic.Model = g.NIC
			}
			if nic.ROM == "" {
				nic.ROM = g.ROM
			}
		}
		for i := range g.Disks {
			if d := &g.Disks[i]; d.Bus == "" {
				d.Bus = "ide"
				if g.Arch == "arm64" {
					d.Bus = "scsi"
				}
			}
		}
	}
}
