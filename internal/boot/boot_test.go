package boot

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// opts is a request's options as a test writes them.
type opts map[uint8]string

func (o opts) Get(code uint8) []byte {
	v, ok := o[code]
	if !ok {
		return nil
	}
	return []byte(v)
}

var mac = MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}

// fullIPXE announces HTTP, bzImage and version 1.0.0; efiIPXE announces EFI
// instead of bzImage, as the builds do.
const (
	fullIPXE = "\x13\x01\x01\x18\x01\x01\xeb\x03\x01\x00\x00"
	efiIPXE  = "\x13\x01\x01\x24\x01\x01\xeb\x03\x01\x00\x00"
	oldIPXE  = "\x18\x01\x01\xeb\x03\x00\x09\x07"
)

func TestClassify(t *testing.T) {
	tests := []struct {
		name string
		opts opts
		kind Kind
		arch Arch
	}{
		{"operating system", opts{60: "udhcp 1.35.0"}, KindOS, ArchBIOS},
		{"BIOS PXE", opts{60: "PXEClient:Arch:00000:UNDI:002001", 93: "\x00\x00"}, KindPXE, ArchBIOS},
		{"UEFI PXE", opts{60: "PXEClient:Arch:00007:UNDI:003016", 93: "\x00\x07"}, KindPXE, ArchX64},
		{"architecture only in the vendor class", opts{60: "PXEClient:Arch:00007:UNDI:003016"}, KindPXE, ArchX64},
		{"vendor class cut short", opts{60: "PXEClient:Arch:000"}, KindPXE, ArchBIOS},
		{"vendor class with letters", opts{60: "PXEClient:Arch:0000x"}, KindPXE, ArchBIOS},
		{"odd length of option 93", opts{60: "PXEClient", 93: "\x00\x07\x00"}, KindPXE, ArchX64},
		{"two architectures", opts{60: "PXEClient", 93: "\x00\x09\x00\x07"}, KindPXE, ArchEBC},
		{"UEFI HTTP Boot", opts{60: "HTTPClient:Arch:00016:UNDI:003001", 93: "\x00\x10"}, KindHTTP, ArchX64HTTP},
		{"iPXE", opts{60: "PXEClient:Arch:00000:UNDI:002001", 77: "iPXE", 93: "\x00\x00", 175: fullIPXE}, KindIPXE, ArchBIOS},
		{"iPXE by RFC 3004", opts{77: "\x04iPXE"}, KindIPXE, ArchBIOS},
		{"another user class", opts{77: "gPXE"}, KindOS, ArchBIOS},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := Classify(mac, tt.opts)
			if c.Kind != tt.kind || c.Arch() != tt.arch {
				t.Errorf("got kind %d and architecture %d, want kind %d and %d", c.Kind, c.Arch(), tt.kind, tt.arch)
			}
		})
	}
}

func TestClassifyReadsUUIDAndFeatures(t *testing.T) {
	c := Classify(mac, opts{
		77:  "iPXE",
		97:  "\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10",
		175: fullIPXE + "\x21\x09", // and a sub-option cut short
	})
	if want := "01020304-0506-0708-090a-0b0c0d0e0f10"; c.UUID != want {
		t.Errorf("UUID %q, want %q", c.UUID, want)
	}
	if c.IPXE.Version != "1.0.0" || !c.IPXE.Has(0x13) || c.IPXE.Has(0x14) || c.IPXE.Has(0x21) {
		t.Errorf("features %+v", c.IPXE)
	}
}

func TestNextStage(t *testing.T) {
	profile := Profile{Name: "default", Kernel: File{Name: "vmlinuz"}}
	tree := &Profile{Name: "tree", Tree: "/srv/tree", Programs: map[Platform]string{BIOS: "pxelinux.0", UEFIX64: "grub/grubx64.efi"}}
	scripted := &Profile{Name: "scripted", Tree: "/srv/tree", Programs: map[Platform]string{UEFIIA32: "menu/netboot.ipxe"}}
	signed := &Profile{Name: "signed", Kernel: File{Name: "vmlinuz"}, SecureBoot: true, Signed: map[Platform]Shim{
		UEFIX64: {Name: "shimx64.efi", HTTP: true}, UEFIARM64: {Name: "shimaa64.efi"},
	}}
	script := Bootfile{Via: ViaHTTP, Path: "/ipxe/52:54:00:12:34:56"}
	tests := []struct {
		name    string
		opts    opts
		loaded  bool
		machine Machine
		none    bool     // no profile
		profile *Profile // instead of the default one
		want    Bootfile
		why     string // a part of Why
	}{
		{name: "operating system", want: Bootfile{}},
		{name: "BIOS", opts: opts{60: "PXEClient", 93: "\x00\x00"}, want: Bootfile{Via: ViaTFTP, Path: "undionly.kpxe"}},
		{name: "UEFI x64", opts: opts{60: "PXEClient", 93: "\x00\x07"}, want: Bootfile{Via: ViaTFTP, Path: "snponly.efi"}},
		{name: "UEFI x64 as EBC", opts: opts{60: "PXEClient", 93: "\x00\x09"}, want: Bootfile{Via: ViaTFTP, Path: "snponly.efi"}},
		{name: "UEFI HTTP Boot", opts: opts{60: "HTTPClient", 93: "\x00\x10"}, want: Bootfile{Via: ViaHTTP, Path: "/nbp/snponly.efi"}},
		{name: "its own boot program", opts: opts{60: "PXEClient", 93: "\x00\x07"}, machine: Machine{NBP: "ipxe.efi"}, want: Bootfile{Via: ViaTFTP, Path: "ipxe.efi"}},
		{name: "nothing for this architecture", opts: opts{60: "PXEClient", 93: "\x00\x0b"}, why: "no boot program for uefi-arm64"},
		{name: "no profile", opts: opts{60: "PXEClient", 93: "\x00\x07"}, none: true, why: "no profile"},
		{name: "iPXE", opts: opts{77: "iPXE", 93: "\x00\x00", 175: fullIPXE}, want: script},
		{name: "iPXE for UEFI", opts: opts{77: "iPXE", 93: "\x00\x07", 175: efiIPXE}, want: script},
		{name: "iPXE that cannot", opts: opts{77: "iPXE", 93: "\x00\x00", 175: oldIPXE}, want: Bootfile{Via: ViaTFTP, Path: "undionly.kpxe"}},
		{name: "our own iPXE that cannot", opts: opts{77: "iPXE", 93: "\x00\x00", 175: oldIPXE}, loaded: true, why: "0.9.7"},
		{name: "UEFI IA32 without a program", opts: opts{60: "PXEClient", 93: "\x00\x06"}, why: "uefi-ia32"},
		{name: "Raspberry Pi", opts: opts{60: "PXEClient", 93: "\x00\x29"}, why: "raspberry-pi"},
		{name: "U-Boot with the program that it was given", opts: opts{60: "PXEClient", 93: "\x00\x16"}, machine: Machine{NBP: "u.scr"}, want: Bootfile{Via: ViaTFTP, Path: "u.scr"}},
		{name: "tree on BIOS", opts: opts{60: "PXEClient", 93: "\x00\x00"}, profile: tree, want: Bootfile{Via: ViaTFTP, Path: "pxelinux.0"}},
		{name: "tree on UEFI", opts: opts{60: "PXEClient", 93: "\x00\x09"}, profile: tree, want: Bootfile{Via: ViaTFTP, Path: "grub/grubx64.efi"}},
		{name: "tree by HTTP Boot", opts: opts{60: "HTTPClient", 93: "\x00\x10"}, profile: tree, want: Bootfile{Via: ViaHTTP, Path: "/nbp/grub/grubx64.efi"}},
		{name: "tree to an iPXE", opts: opts{77: "iPXE", 93: "\x00\x00", 175: fullIPXE}, profile: tree, want: Bootfile{Via: ViaTFTP, Path: "pxelinux.0"}},
		{name: "tree without a program for it", opts: opts{60: "PXEClient", 93: "\x00\x0b"}, profile: tree, why: "profile tree has no program for uefi-arm64"},
		{name: "tree with a script", opts: opts{60: "PXEClient", 93: "\x00\x06"}, machine: Machine{NBP: "ia32.efi"}, profile: scripted, want: Bootfile{Via: ViaTFTP, Path: "ia32.efi"}},
		{name: "tree with a script to an iPXE", opts: opts{77: "iPXE", 93: "\x00\x06", 175: efiIPXE}, profile: scripted, want: script},
		{name: "tree with a script for another", opts: opts{77: "iPXE", 93: "\x00\x00", 175: fullIPXE}, profile: scripted, why: "no program for bios"},
		{name: "Secure Boot", opts: opts{60: "PXEClient", 93: "\x00\x07"}, profile: signed, want: Bootfile{Via: ViaTFTP, Path: "shimx64.efi"}},
		{name: "Secure Boot by HTTP", opts: opts{60: "HTTPClient", 93: "\x00\x10"}, profile: signed, want: Bootfile{Via: ViaHTTP, Path: "/nbp/shimx64.efi"}},
		{name: "Secure Boot on BIOS", opts: opts{60: "PXEClient", 93: "\x00\x00"}, profile: signed, want: Bootfile{Via: ViaTFTP, Path: "undionly.kpxe"}},
		{name: "Secure Boot on IA32", opts: opts{60: "PXEClient", 93: "\x00\x06"}, profile: signed, why: "no shim and GRUB for uefi-ia32"},
		{name: "Secure Boot on ARM64", opts: opts{60: "PXEClient", 93: "\x00\x0b"}, profile: signed, want: Bootfile{Via: ViaTFTP, Path: "shimaa64.efi"}},
		{name: "Secure Boot by HTTP with a GRUB that cannot", opts: opts{60: "HTTPClient", 93: "\x00\x13"}, profile: signed, why: "knows no HTTP"},
		{name: "Secure Boot and an iPXE that runs", opts: opts{77: "iPXE", 93: "\x00\x07", 175: efiIPXE}, profile: signed, want: script},
		{name: "local disk", opts: opts{60: "PXEClient", 93: "\x00\x07"}, profile: &Profile{Name: LocalName}, why: "local disk"},
		{name: "local disk from iPXE", opts: opts{77: "iPXE", 93: "\x00\x00", 175: fullIPXE}, profile: &Profile{Name: LocalName}, want: script},
		{name: "chainload forced", opts: opts{77: "iPXE", 93: "\x00\x00", 175: fullIPXE}, machine: Machine{Chainload: true}, want: Bootfile{Via: ViaTFTP, Path: "undionly.kpxe"}},
		{name: "chainload done", opts: opts{77: "iPXE", 93: "\x00\x00", 175: fullIPXE}, machine: Machine{Chainload: true}, loaded: true, want: script},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := Classify(mac, tt.opts)
			c.Loaded = tt.loaded
			p := profile
			switch {
			case tt.none:
				p = Profile{}
			case tt.profile != nil:
				p = *tt.profile
			}
			got := NextStage(c, tt.machine, p)
			if tt.why != "" {
				if got.Via != ViaNothing || !strings.Contains(got.Why, tt.why) {
					t.Errorf("got %+v, want nothing because of %q", got, tt.why)
				}
				return
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestInventoryLookup(t *testing.T) {
	const uuid = "01020304-0506-0708-090a-0b0c0d0e0f10"
	profiles := map[string]Profile{}
	for _, name := range []string{"default", "rescue", "arm", "vendor", "rack"} {
		profiles[name] = Profile{Name: name}
	}
	inv := &Inventory{
		Machines: map[MAC]Machine{
			mac:       {MAC: mac, Name: "node1", Profile: "rescue"},
			{0x52, 1}: {MAC: MAC{0x52, 1}, Name: "tagged", Tags: []string{"lab", "rack7"}},
			{0x52, 2}: {MAC: MAC{0x52, 2}, Profile: LocalName},
		},
		ByUUID: map[string]Machine{uuid: {UUID: uuid, Name: "byuuid", NBP: "own.efi"}},
		ByName: map[string]Machine{"laptop": {Name: "laptop"}},
		Rules: []Rule{
			{Platform: UEFIARM64, Profile: "arm", NBP: "arm.efi"},
			{MACPrefix: []byte{0xb8, 0x27, 0xeb}, Vendor: "PXEClient", Profile: "vendor"},
			{Tags: []string{"rack7"}, Profile: "rack"},
		},
		Profiles: profiles,
		Default:  "default",
		NBPs:     map[Platform]string{UEFIX64: "better.efi"},
	}
	tests := []struct {
		name                  string
		client                Client
		machine, profile, nbp string
		known                 bool
	}{
		{"by MAC", Client{MAC: mac}, "node1", "rescue", "", true},
		{"by UUID", Client{MAC: MAC{1}, UUID: uuid}, "byuuid", "default", "own.efi", true},
		{"by name", Client{MAC: MAC{1}, Host: "Laptop"}, "laptop", "default", "", true},
		{"by tag", Client{MAC: MAC{0x52, 1}}, "tagged", "rack", "", true},
		{"stranger", Client{MAC: MAC{1}}, "", "default", "", false},
		{"stranger with a platform's program", Client{MAC: MAC{1}, Kind: KindPXE, Archs: []Arch{ArchX64}}, "", "default", "better.efi", false},
		{"stranger that a rule matches", Client{MAC: MAC{1}, Kind: KindPXE, Archs: []Arch{ArchARM64}}, "", "arm", "arm.efi", true},
		{"all conditions hold", Client{MAC: MAC{0xb8, 0x27, 0xeb}, Kind: KindPXE, Vendor: "PXEClient:Arch:00000"}, "", "vendor", "", true},
		{"one condition fails", Client{MAC: MAC{0xb8, 0x27, 0xeb}, Vendor: "dhcpcd"}, "", "default", "", false},
		{"an operating system has no platform", Client{MAC: MAC{1}, Archs: []Arch{ArchARM64}}, "", "default", "", false},
		{"local disk", Client{MAC: MAC{0x52, 2}}, "", LocalName, "", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, p, known := inv.Lookup(tt.client)
			if m.Name != tt.machine || p.Name != tt.profile || m.NBP != tt.nbp || known != tt.known || m.MAC != tt.client.MAC {
				t.Errorf("got machine %+v, profile %q, known %t", m, p.Name, known)
			}
		})
	}
}

func TestParseOption(t *testing.T) {
	tests := []struct{ name, value, want string }{
		{"ntp-servers", "10.0.0.1, 10.0.0.2", "42 0a0000010a000002"},
		{"42", "10.0.0.1", "42 0a000001"},
		{"interface-mtu", "1400", "26 0578"},
		{"time-offset", "-3600", "2 fffff1f0"},
		{"ip-forwarding", "true", "19 01"},
		{"domain-search", "a.example b", "119 016107657861" + "6d706c6500016200"},
		{"224", "10.0.0.1", "224 0a000001"},
		{"224", "hello", "224 68656c6c6f"},
		{"224", "hex:0a 0b", "224 0a0b"},
		{"224", "u16:1", "224 0001"},
		{"wpad", "text:http://x/", "252 687474703a2f2f782f"},
	}
	for _, tt := range tests {
		o, err := ParseOption(tt.name, tt.value)
		if got := fmt.Sprintf("%d %x", o.Code, o.Data); err != nil || got != tt.want {
			t.Errorf("%s = %q: got %s, %v, want %s", tt.name, tt.value, got, err, tt.want)
		}
	}
	for _, tt := range [][2]string{
		{"no-such", "1"}, {"256", "1"}, {"0", "1"}, {"53", "1"}, {"lease", "1"}, {"ntp-servers", "here"}, {"swap-server", "10.0.0.1 10.0.0.2"},
		{"interface-mtu", "65536"}, {"224", ""}, {"224", "hex:0"}, {"domain-search", "a..b"}, {"ip-forwarding", "maybe"}, {"224", strings.Repeat("x", 1025)},
	} {
		if o, err := ParseOption(tt[0], tt[1]); err == nil {
			t.Errorf("%s = %q was accepted as %v", tt[0], tt[1], o)
		}
	}
}

func TestExpand(t *testing.T) {
	v := Vars{MAC: "52:54:00:12:34:56", Name: "node1", Server: "10.77.0.1"}
	if got, err := Expand("ip=dhcp host={name} u={uuid} {{a} url=http://{server}/{mac}", v); err != nil || got != "ip=dhcp host=node1 u= {a} url=http://10.77.0.1/52:54:00:12:34:56" {
		t.Errorf("%q, %v", got, err)
	}
	for _, bad := range []string{"{", "x={name", "{nam}", "{}", "{Name}"} {
		if err := CheckTemplate(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func FuzzExpand(f *testing.F) {
	f.Add("host={name} {{ }")
	f.Fuzz(func(t *testing.T, template string) {
		_, err := Expand(template, Vars{})
		if (err == nil) != (CheckTemplate(template) == nil) {
			t.Errorf("%q: checked and expanded differently", template)
		}
	})
}

func FuzzParseOption(f *testing.F) {
	f.Add("ntp-servers", "10.0.0.1")
	f.Add("224", "hex:0a")
	f.Add("domain-search", "a.b")
	f.Fuzz(func(t *testing.T, name, value string) {
		if o, err := ParseOption(name, value); err == nil && (o.Code == 0 || o.Code == 255 || len(o.Data) == 0) {
			t.Errorf("%q = %q became %v", name, value, o)
		}
	})
}

func TestParseMAC(t *testing.T) {
	for _, s := range []string{"52:54:00:12:34:56", "52-54-00-12-34-56", "5254.0012.3456", "525400123456", "52:54:00:12:34:56"} {
		if got, err := ParseMAC(strings.ToUpper(s)); err != nil || got != mac {
			t.Errorf("%s: got %s, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "52:54:00:12:34", "52:54:00:12:34:56:78:9a", "hello", "52540012345g"} {
		if _, err := ParseMAC(s); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
}

func FuzzClassify(f *testing.F) {
	f.Add("PXEClient:Arch:00007:UNDI:003016", "iPXE", "\x00\x07", "\x00", fullIPXE)
	f.Add("HTTPClient", "", "\x00", "", "\xff\xff")
	f.Fuzz(func(t *testing.T, vendor, user, arch, uuid, ipxe string) {
		c := Classify(mac, opts{60: vendor, 77: user, 93: arch, 97: uuid, 175: ipxe})
		NextStage(c, Machine{MAC: mac}, Profile{Name: "p"})
	})
}
