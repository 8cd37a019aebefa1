package boot

import (
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
				t.Errorf("got kind %d and %s, want kind %d and %s", c.Kind, c.Arch(), tt.kind, tt.arch)
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
	profile := Profile{Name: "default"}
	script := Bootfile{Via: ViaHTTP, Path: "/ipxe/52:54:00:12:34:56"}
	tests := []struct {
		name    string
		opts    opts
		loaded  bool
		machine Machine
		none    bool // no profile
		want    Bootfile
		why     string // a part of Why
	}{
		{name: "operating system", want: Bootfile{}},
		{name: "BIOS", opts: opts{60: "PXEClient", 93: "\x00\x00"}, want: Bootfile{Via: ViaTFTP, Path: "undionly.kpxe"}},
		{name: "UEFI x64", opts: opts{60: "PXEClient", 93: "\x00\x07"}, want: Bootfile{Via: ViaTFTP, Path: "snponly.efi"}},
		{name: "UEFI x64 as EBC", opts: opts{60: "PXEClient", 93: "\x00\x09"}, want: Bootfile{Via: ViaTFTP, Path: "snponly.efi"}},
		{name: "UEFI HTTP Boot", opts: opts{60: "HTTPClient", 93: "\x00\x10"}, want: Bootfile{Via: ViaHTTP, Path: "/nbp/snponly.efi"}},
		{name: "its own boot program", opts: opts{60: "PXEClient", 93: "\x00\x07"}, machine: Machine{NBP: "ipxe.efi"}, want: Bootfile{Via: ViaTFTP, Path: "ipxe.efi"}},
		{name: "nothing for this architecture", opts: opts{60: "PXEClient", 93: "\x00\x0b"}, why: "no boot program for UEFI ARM64"},
		{name: "no profile", opts: opts{60: "PXEClient", 93: "\x00\x07"}, none: true, why: "no profile"},
		{name: "iPXE", opts: opts{77: "iPXE", 93: "\x00\x00", 175: fullIPXE}, want: script},
		{name: "iPXE for UEFI", opts: opts{77: "iPXE", 93: "\x00\x07", 175: efiIPXE}, want: script},
		{name: "iPXE that cannot", opts: opts{77: "iPXE", 93: "\x00\x00", 175: oldIPXE}, want: Bootfile{Via: ViaTFTP, Path: "undionly.kpxe"}},
		{name: "our own iPXE that cannot", opts: opts{77: "iPXE", 93: "\x00\x00", 175: oldIPXE}, loaded: true, why: "0.9.7"},
		{name: "chainload forced", opts: opts{77: "iPXE", 93: "\x00\x00", 175: fullIPXE}, machine: Machine{Chainload: true}, want: Bootfile{Via: ViaTFTP, Path: "undionly.kpxe"}},
		{name: "chainload done", opts: opts{77: "iPXE", 93: "\x00\x00", 175: fullIPXE}, machine: Machine{Chainload: true}, loaded: true, want: script},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := Classify(mac, tt.opts)
			c.Loaded = tt.loaded
			p := profile
			if tt.none {
				p = Profile{}
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
	inv := &Inventory{
		Machines: map[MAC]Machine{mac: {MAC: mac, Name: "node1", Profile: "rescue"}},
		Profiles: map[string]Profile{"default": {Name: "default"}, "rescue": {Name: "rescue"}},
		Default:  "default",
	}
	if m, p := inv.Lookup(mac); m.Name != "node1" || p.Name != "rescue" {
		t.Errorf("got %+v %+v", m, p)
	}
	if m, p := inv.Lookup(MAC{1}); m.MAC != (MAC{1}) || p.Name != "default" {
		t.Errorf("an unknown machine got %+v %+v", m, p)
	}
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
