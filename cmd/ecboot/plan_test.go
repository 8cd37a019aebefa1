package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/internal/doctor"
	"github.com/every-channel/ecboot/internal/nspawn"
	"github.com/every-channel/ecboot/internal/zfs"
	"github.com/every-channel/ecboot/vmm"
)

var planGround = groundwork{
	state: "/s", run: "/r", cache: "/c", accel: vmm.AccelTCG, ipxe: "/ipxe.lkrn",
	credential: &vmm.Credential{UID: 7, GID: 8},
	direct:     directBoot{"/k", "/i", "console=ttyS0"},
	port: func(name string) portKind {
		if name == "wan" {
			return portKind{parent: "eth0"}
		}
		return portKind{bridge: "br0"}
	},
}

func TestPlanMachine(t *testing.T) {
	mac := func(n byte) boot.MAC { return boot.MAC{2, 1, 0x27, 0, 0, n} }
	base := config.DeclaredGuest{Name: "web", Node: "h-web", Backend: config.BackendQEMU, Boot: config.BootNetwork, StopTimeout: time.Minute}
	base.Arch, base.Firmware, base.Machine, base.CPUs, base.Memory = "amd64", "bios", "q35", 2, 4<<30
	nics := []config.GuestNIC{{Segment: "lan", MAC: mac(1), Model: "e1000"}, {Segment: "wan", MAC: mac(2), Boot: 1}, {Macvtap: "eth1", MAC: mac(3), Name: "mine"}, {User: true, MAC: mac(4), ROM: "none"}}
	disks := []config.GuestDisk{{Format: "qcow2", Size: 16 << 30, Bus: "virtio"}, {Format: "qcow2", Base: "/b.qcow2", Ephemeral: true}}
	on := func(change func(*config.DeclaredGuest)) config.DeclaredGuest {
		g := base
		change(&g)
		return g
	}
	for _, tt := range []struct {
		name  string
		guest config.DeclaredGuest
		want  []string // parts of the command
		not   string
		links []string
	}{
		{"network first", on(func(g *config.DeclaredGuest) { g.NICs, g.Disks = nics, disks }), []string{
			"guest=web", "-machine q35,", "-smp 2 -m 4096", "e1000,id=nic0,netdev=net0,mac=02:01:27:00:00:01,bootindex=2",
			"mac=02:01:27:00:00:02,bootindex=1", "mac=02:01:27:00:00:04,romfile=,bootindex=4", "drive=disk0,werror=enospc,rerror=report,bootindex=5", "bootindex=6", "-netdev user,id=net3", "-sandbox on",
		}, "-kernel", []string{"vm-020127000002", "mine"}},
		{"disk first", on(func(g *config.DeclaredGuest) { g.NICs, g.Disks, g.Boot = nics[:1], disks, config.BootDisk }), []string{
			"mac=02:01:27:00:00:01,bootindex=3", "drive=disk0,werror=enospc,rerror=report,bootindex=1",
		}, "", nil},
		{"a chain URL that a server hands out", on(func(g *config.DeclaredGuest) { g.NICs, g.ChainURL = nics[:1], "http://x/" }), []string{"bootindex=1"}, "-kernel", nil},
		{"one that the guest brings along", on(func(g *config.DeclaredGuest) { g.NICs, g.ChainURL = nics[3:], "http://x/" }), []string{"-kernel /ipxe.lkrn -initrd"}, "bootindex", nil},
		{"its disk before that", on(func(g *config.DeclaredGuest) {
			g.NICs, g.Disks, g.ChainURL, g.Boot = nics[3:], disks, "http://x/", config.BootDisk
		}), []string{"-kernel /ipxe.lkrn -initrd", "drive=disk0,werror=enospc,rerror=report,bootindex=1", "bootindex=2"}, "", nil},
		{"direct", on(func(g *config.DeclaredGuest) { g.NICs, g.Boot = nics[:1], config.BootDirect }), []string{"-kernel /k -initrd /i -append 'console=ttyS0 no_timer_check'"}, "bootindex", nil},
		{"microvm", on(func(g *config.DeclaredGuest) {
			g.Backend, g.Boot, g.Machine, g.Firmware, g.NICs = config.BackendMicroVM, config.BootDirect, "", "", []config.GuestNIC{{Segment: "lan", MAC: mac(1)}}
		}), []string{"-machine microvm", "virtio-net-device", "-kernel /k"}, "", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := planGuest(tt.guest, planGround)
			argv, err := planCommand(p)
			if err != nil {
				t.Fatal(err)
			}
			command := vmm.ShellQuote(argv)
			for _, part := range tt.want {
				if !strings.Contains(command, part) {
					t.Errorf("no %q in\n%s", part, command)
				}
			}
			if tt.not != "" && strings.Contains(command, tt.not) {
				t.Errorf("%q in\n%s", tt.not, command)
			}
			if diff := cmp.Diff(tt.links, p.Links); diff != "" {
				t.Error(diff)
			}
			if p.Machine != tt.guest.NICs[0].MAC.String() || p.LogFile != "/s/guests/web/console.log" || p.Grace != time.Minute || p.Credential.UID != 7 {
				t.Errorf("%+v", p)
			}
		})
	}
}

// TestChainScript wants disks first where they are to be, and no CD among them.
func TestChainScript(t *testing.T) {
	g := config.DeclaredGuest{Backend: config.BackendQEMU, Boot: config.BootNetwork, ChainURL: "http://x/", NICs: []config.GuestNIC{{User: true}},
		Disks: []config.GuestDisk{{Format: "raw"}, {ISO: true, Format: "raw"}, {Format: "raw"}}}
	if got, want := string(planMachine(g, planGround).InitrdData), "#!ipxe\ndhcp && chain http://x/ || shell\n"; got != want {
		t.Errorf("network: %q, want %q", got, want)
	}
	g.Boot = config.BootDisk
	want := "#!ipxe\nsanboot --no-describe --drive 0x80 || sanboot --no-describe --drive 0x81 || dhcp && chain http://x/ || shell\n"
	if got := string(planMachine(g, planGround).InitrdData); got != want {
		t.Errorf("disk: %q, want %q", got, want)
	}
}

func TestPlanContainer(t *testing.T) {
	g := config.DeclaredGuest{
		Name: "box", Node: "h-box", Backend: config.BackendContainer, Root: "/root.tar",
		NICs: []config.GuestNIC{
			{Macvlan: "eth1", MAC: boot.MAC{2, 0, 0, 0, 0, 1}}, {Segment: "lan", MAC: boot.MAC{2, 0, 0, 0, 0, 2}}, {Segment: "wan", MAC: boot.MAC{2, 0, 0, 0, 0, 3}, Name: "w"},
		},
		Shares: []config.GuestShare{{Source: "/srv", Target: "/data", ReadOnly: true}},
	}
	on := planGround
	on.zfs = []zfs.Share{{HostPath: "/guests/box/persist", GuestPath: "/persist"}}
	p := planGuest(g, on)
	want := &nspawn.Spec{
		Name: "h-box", Root: "/root.tar",
		NICs: []nspawn.NIC{
			{Parent: "eth1", MAC: g.NICs[0].MAC.HardwareAddr()}, {Bridge: "br0", MAC: g.NICs[1].MAC.HardwareAddr()}, {Name: "w", Parent: "eth0", MAC: g.NICs[2].MAC.HardwareAddr()},
		},
		Binds: []nspawn.Bind{{Source: "/srv", Target: "/data", ReadOnly: true}, {Source: "/guests/box/persist", Target: "/persist"}},
	}
	if diff := cmp.Diff(want, p.Container); diff != "" || p.VM != nil || p.Cache != "/c/containers" {
		t.Errorf("%s\n%+v", diff, p)
	}
}

// TestNoScreen wants to be told by which key a guest gets a screen.
func TestNoScreen(t *testing.T) {
	g := config.DeclaredGuest{Name: "web", Backend: config.BackendQEMU, Graphics: config.GraphicsVNC}
	if p := planGuest(g, planGround); lacksScreen(p) {
		t.Error("VNC is no screen")
	}
	g.Graphics = config.GraphicsNone
	want := `web has no screen: write graphics = "vnc" in [guest.web] by 'ecboot guest edit', then 'ecboot guest restart web'`
	if p := planGuest(g, planGround); !lacksScreen(p) || noScreen(p).Error() != want {
		t.Error(noScreen(p))
	}
	g.Backend = config.BackendMicroVM
	if p := planGuest(g, planGround); !lacksScreen(p) || !strings.Contains(noScreen(p).Error(), "look at its console") {
		t.Error(noScreen(p))
	}
	if p := planGuest(config.DeclaredGuest{Name: "box", Backend: config.BackendContainer}, planGround); lacksScreen(p) {
		t.Error("a container is a virtual machine")
	}
}

// TestGuestNeeds has doctor told what declared guests cannot do without.
func TestGuestNeeds(t *testing.T) {
	cfg := config.Default()
	guest := func(name, arch, firmware string, secure bool) {
		g := config.DeclaredGuest{Name: name, Backend: config.BackendQEMU}
		g.Arch, g.Firmware, g.SecureBoot = arch, firmware, secure
		cfg.Guests = append(cfg.Guests, g)
	}
	guest("old", "amd64", "bios", false)
	guest("new", "amd64", "uefi", false)
	guest("safe", "amd64", "uefi", true)
	guest("pi", "arm64", "uefi", false)
	cfg.Guests = append(cfg.Guests, config.DeclaredGuest{Name: "box", Backend: config.BackendContainer})
	if diff := cmp.Diff(map[string][]string{doctor.PartARM64: {"pi"}, doctor.PartContainer: {"box"}}, guestParts(cfg)); diff != "" {
		t.Error(diff)
	}
	_, err := guestFirmware(cfg, func(w vmm.Wanted) (vmm.UEFI, error) {
		if w.SecureBoot || w.Machine == "virt" {
			return vmm.UEFI{}, errors.New("none")
		}
		return vmm.UEFI{Code: "/code"}, nil
	})
	if err == nil || err.Error() != "guest safe: none\nguest pi: none" {
		t.Errorf("firmware: %v", err)
	}
}

func TestGuestDigest(t *testing.T) {
	g := config.DeclaredGuest{Name: "a"}
	later := g
	later.Autostart, later.Order, later.Restart, later.RestartMax = true, 3, "always", time.Hour
	if guestDigest(g) != guestDigest(later) {
		t.Error("when it starts makes it another guest")
	}
	later.Memory = 1 << 30
	if guestDigest(g) == guestDigest(later) {
		t.Error("its memory makes no difference")
	}
}

func TestSegmentsWithNATAreOpenedLast(t *testing.T) {
	var names []string
	for _, s := range natLast([]config.Segment{{Name: "a", NAT: true}, {Name: "b"}, {Name: "c", NAT: true}, {Name: "d"}}) {
		names = append(names, s.Name)
	}
	if got := strings.Join(names, ""); got != "bdac" {
		t.Errorf("opened in the order %s", got)
	}
}
