package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/internal/keeper"
	"github.com/every-channel/ecboot/internal/nspawn"
	"github.com/every-channel/ecboot/internal/zfs"
	"github.com/every-channel/ecboot/vmm"
)

// groundwork is what a guest's plan needs of this machine beside its
// declaration.
type groundwork struct {
	state      string                // directory
	run        string                // of the guest, while it runs
	cache      string                // directory
	operators  int                   // group; -1: none
	credential *vmm.Credential       // who QEMU runs as; nil: root
	accel      vmm.Accel             // of a virtual machine
	uefi       vmm.UEFI              // of one whose firmware it is
	direct     directBoot            // of one that boots so
	ipxe       string                // iPXE as a kernel, for a chain URL without a segment
	zfs        []zfs.Share           // that are mounted
	port       func(string) portKind // of the segment of this name
}

// directBoot is a profile for a machine that is given its kernel by QEMU.
type directBoot struct {
	kernel, initrd, cmdline string
}

// portKind is how guests are tied to a segment: by a port of a bridge, or by a
// link on a parent.
type portKind struct{ bridge, parent string }

// guestFile is a file of a guest's own that is kept.
func guestFile(stateDir, guest, name string) string {
	return filepath.Join(stateDir, "guests", guest, name)
}

// planGuest says what runs a guest. It is pure.
func planGuest(g config.DeclaredGuest, on groundwork) keeper.Plan {
	p := keeper.Plan{
		Name: g.Name, Node: g.Node, Backend: string(g.Backend), Machine: timelineName(g), Digest: guestDigest(g),
		Grace: g.StopTimeout, LogFile: guestFile(on.state, g.Name, "console.log"),
	}
	if !g.VM() {
		p.Container, p.Cache = planContainer(g, on), filepath.Join(on.cache, "containers")
		return p
	}
	p.VM, p.Credential, p.SkipBanner = planMachine(g, on), on.credential, true
	if p.VM.VNC != "" {
		p.ScreenGroup = max(0, on.operators)
	}
	for _, nic := range g.NICs {
		if nic.Macvtap != "" || nic.Segment != "" && on.port(nic.Segment).parent != "" {
			p.Links = append(p.Links, linkName(nic))
		}
	}
	return p
}

// planMachine says what virtual machine a guest is.
func planMachine(g config.DeclaredGuest, on groundwork) *vmm.Spec {
	spec := &vmm.Spec{
		Name: g.Name, Arch: g.Arch, Machine: cmp.Or(g.Machine, "microvm"), CPU: g.CPU, CPUs: g.CPUs, MemoryMiB: g.Memory.MiB(),
		Accel: on.accel, UEFI: on.uefi, Sandbox: true, Extra: g.Extra,
	}
	if g.Arch == vmm.ArchARM64 {
		spec.Machine = "virt"
	}
	if spec.UEFI != (vmm.UEFI{}) {
		spec.VarsFile = guestFile(on.state, g.Name, "vars.fd")
	}
	if g.TPM {
		spec.TPM = guestFile(on.state, g.Name, "tpm")
	}
	if g.Graphics == config.GraphicsVNC {
		spec.VNC = filepath.Join(on.run, "vnc.sock")
	}
	for _, nic := range g.NICs {
		n := vmm.NIC{User: nic.User, Model: nic.Model, MAC: nic.MAC.HardwareAddr()}
		if nic.ROM == vmm.ROMNone {
			n.ROM = vmm.ROMNone
		}
		spec.NICs = append(spec.NICs, n)
	}
	for i, d := range g.Disks {
		disk := vmm.Disk{
			Path: g.DiskPath(on.state, i), Format: d.Format, Size: int64(d.Size), Base: d.Base,
			Ephemeral: d.Ephemeral, ReadOnly: d.ReadOnly, CDROM: d.ISO, Bus: d.Bus,
		}
		if d.Ephemeral && d.Base != "" && d.Path == "" {
			disk.Path = "" // all that there is of it is in the base
		}
		spec.Disks = append(spec.Disks, disk)
	}
	for _, s := range g.Shares {
		spec.Shares = append(spec.Shares, vmm.Share{Tag: s.Target, Path: s.Source, Driver: s.Driver, ReadOnly: s.ReadOnly})
	}
	for _, s := range on.zfs {
		spec.Shares = append(spec.Shares, vmm.Share{Tag: s.GuestPath, Path: s.HostPath})
	}
	switch {
	case g.Boot == config.BootDirect:
		spec.Kernel, spec.Initrd, spec.Append = on.direct.kernel, on.direct.initrd, on.direct.cmdline
	case chainsAlone(g):
		before := ""
		if g.Boot == config.BootDisk {
			// A kernel goes before all disks, so that iPXE must boot them.
			orderBoot(g, spec)
			before = tryDisks(g)
		}
		spec.Kernel, spec.InitrdData = on.ipxe, []byte(chainScript(before, g.ChainURL))
	default:
		orderBoot(g, spec)
	}
	return spec
}

// orderBoot numbers the devices from which firmware is to boot. Those that come
// second are there for when the first have nothing.
func orderBoot(g config.DeclaredGuest, spec *vmm.Spec) {
	next := 1
	take := func(index *int) { *index, next = next, next+1 }
	disks := func() {
		for i := range spec.Disks {
			take(&spec.Disks[i].BootIndex)
		}
	}
	if g.Boot == config.BootDisk {
		disks()
	}
	for _, i := range nicOrder(g) {
		take(&spec.NICs[i].BootIndex)
	}
	if g.Boot != config.BootDisk {
		disks()
	}
}

// nicOrder is in which order network cards are booted from: those with a place
// first.
func nicOrder(g config.DeclaredGuest) []int {
	const last = 1 << 10
	order := make([]int, len(g.NICs))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Compare(cmp.Or(g.NICs[a].Boot, last), cmp.Or(g.NICs[b].Boot, last))
	})
	return order
}

// planContainer says what container a guest is. Its limits are those of its
// scope.
func planContainer(g config.DeclaredGuest, on groundwork) *nspawn.Spec {
	spec := &nspawn.Spec{
		Name: cmp.Or(g.Node, g.Name), Root: g.Root, Ephemeral: g.Ephemeral, State: g.State,
		StopSignal: g.StopSignal, UIDBase: g.UIDBase, Extra: g.Extra,
	}
	for _, nic := range g.NICs {
		n := nspawn.NIC{Name: nic.Name, Parent: nic.Macvlan, MAC: nic.MAC.HardwareAddr()}
		if nic.Segment != "" {
			port := on.port(nic.Segment)
			n.Parent, n.Bridge = port.parent, port.bridge
		}
		spec.NICs = append(spec.NICs, n)
	}
	for _, s := range g.Shares {
		spec.Binds = append(spec.Binds, nspawn.Bind{Source: s.Source, Target: s.Target, ReadOnly: s.ReadOnly})
	}
	for _, s := range on.zfs {
		spec.Binds = append(spec.Binds, nspawn.Bind{Source: s.HostPath, Target: s.GuestPath})
	}
	return spec
}

// linkName is what a virtual machine's network card is called on the host: 15
// bytes at most.
func linkName(nic config.GuestNIC) string {
	return cmp.Or(nic.Name, "vm-"+hex.EncodeToString(nic.MAC[:]))
}

// hasUEFI reports whether a guest's firmware is UEFI.
func hasUEFI(g config.DeclaredGuest) bool { return g.Firmware != "" && g.Firmware != "bios" }

// wantedUEFI is the firmware of a guest that has UEFI.
func wantedUEFI(g config.DeclaredGuest) vmm.Wanted {
	wanted := vmm.Wanted{Arch: g.Arch, Machine: cmp.Or(g.Machine, "q35"), SecureBoot: g.SecureBoot}
	switch {
	case g.Firmware == "uefi-ia32":
		wanted.Arch = vmm.Arch386
	case g.Arch == vmm.ArchARM64:
		wanted.Machine = "virt"
	}
	return wanted
}

// timelineName is who a guest is in the timeline, where the servers know it by
// its address.
func timelineName(g config.DeclaredGuest) string {
	if len(g.NICs) > 0 && g.NICs[0].MAC != (boot.MAC{}) {
		return g.NICs[0].MAC.String()
	}
	return g.Name
}

// guestDigest is another one for each declaration that runs another guest: when it
// starts makes no difference.
func guestDigest(g config.DeclaredGuest) string {
	g.Autostart, g.Order, g.Delay = false, 0, 0
	g.Restart, g.RestartDelay, g.RestartMax = "", 0, 0
	text, err := json.Marshal(g)
	if err != nil {
		return err.Error() // of a type that has no JSON: no value is at fault
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}

// chainScript is what iPXE runs for a guest that boots from a URL of its own, if
// what is tried before does not boot.
func chainScript(before, url string) string {
	return fmt.Sprintf("#!ipxe\n%sdhcp && chain %s || shell\n", before, url)
}

// tryDisks has iPXE boot the disks of a BIOS guest. The BIOS numbers them from
// 0x80 in their boot order, and CDs elsewhere.
func tryDisks(g config.DeclaredGuest) (script string) {
	drive := 0x80
	for _, d := range g.Disks {
		if !d.ISO {
			script += fmt.Sprintf("sanboot --no-describe --drive %#x || ", drive)
			drive++
		}
	}
	return script
}

// onSegment is the first of a guest's network cards that is on a segment.
func onSegment(g config.DeclaredGuest) (nic config.GuestNIC, ok bool) {
	i := slices.IndexFunc(g.NICs, func(n config.GuestNIC) bool { return n.Segment != "" })
	if i < 0 {
		return nic, false
	}
	return g.NICs[i], true
}

// chainsAlone reports whether a guest must bring the script of its chain URL
// along: none of our servers hands it out where the guest is.
func chainsAlone(g config.DeclaredGuest) bool {
	_, served := onSegment(g)
	return g.ChainURL != "" && !served
}

// guestProfile is the name of the profile that a guest boots, one of its own
// where the declared one is not what it boots.
func guestProfile(g config.DeclaredGuest) string {
	if g.ChainURL != "" || g.Append != "" {
		return "guest." + g.Name
	}
	return cmp.Or(g.Profile, config.DefaultProfile)
}

// addGuests makes the declared guests machines that servers know. What is said
// of one as a machine counts more. Guests without an address are unknown.
func addGuests(inv *boot.Inventory, guests []config.DeclaredGuest) {
	for _, g := range guests {
		profile := guestProfile(g)
		if _, there := inv.Profiles[profile]; !there {
			p := inv.Profiles[cmp.Or(g.Profile, config.DefaultProfile)]
			p.Cmdline = strings.TrimSpace(p.Cmdline + " " + g.Append)
			if g.ChainURL != "" {
				p = boot.Profile{Script: chainScript("", g.ChainURL)}
			}
			p.Name = profile
			inv.Profiles[profile] = p
		}
		for _, nic := range g.NICs {
			if nic.MAC == (boot.MAC{}) {
				continue
			}
			m := inv.Machines[nic.MAC]
			m.MAC, m.Name, m.Profile = nic.MAC, cmp.Or(m.Name, g.Node), cmp.Or(m.Profile, profile)
			if m.Addr == "" && nic.Address.IsValid() {
				m.Addr = nic.Address.String()
			}
			inv.Machines[nic.MAC] = m
		}
	}
}

// command is what runs a guest, program first. The descriptors that it names
// are opened by the keeper.
func planCommand(p keeper.Plan) ([]string, error) {
	if p.Container != nil {
		return p.Container.Command("")
	}
	return p.VM.Command(p.QEMU)
}

// zfsEntries are the datasets of all guests.
func zfsEntries(guests []config.DeclaredGuest) (list []zfs.Entry) {
	for _, g := range guests {
		for _, z := range g.ZFS {
			list = append(list, zfs.Entry{Guest: g.Name, Name: z.Guest, Pool: z.Pool, Dataset: z.Dataset, HostMountpoint: z.HostMountpoint, GuestMountpoint: z.Guest})
		}
	}
	return list
}
