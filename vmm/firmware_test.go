package vmm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// debian is the descriptor of Debian's plain OVMF; the tests vary it.
const debian = `{
	"description": "UEFI firmware for x86_64, without Secure Boot without SMM, with empty varstore",
	"interface-types": ["uefi"],
	"mapping": {
		"device": "flash",
		"executable": {"filename": "/fw/CODE.fd", "format": "raw"},
		"nvram-template": {"filename": "/fw/VARS.fd", "format": "raw"}
	},
	"targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
	"features": ["acpi-s3", "amd-sev", "verbose-dynamic"],
	"tags": []
}`

func TestDescriptor(t *testing.T) {
	for _, tt := range []struct {
		name     string
		from, to string // what is changed in Debian's
		machine  string
		want     bool
	}{
		{"q35", "", "", "q35", true},
		{"pc", "", "", "pc", true},
		{"a version", "", "", "pc-q35-7.2", true},
		{"another machine", "", "", "microvm", false},
		{"q35 only, for pc", `"pc-i440fx-*", `, "", "pc", false},
		{"q35 only, for a version of pc", `"pc-i440fx-*", `, "", "pc-i440fx-7.2", false},
		{"exact machine", `"pc-i440fx-*"`, `"microvm"`, "microvm", true},
		{"bad glob", `"pc-i440fx-*"`, `"[x"`, "[x", false},
		{"another architecture", "x86_64\", \"machines", "aarch64\", \"machines", "q35", false},
		{"BIOS", `["uefi"]`, `["bios"]`, "q35", false},
		{"both interfaces", `["uefi"]`, `["bios", "uefi"]`, "q35", true},
		{"memory", `"flash"`, `"memory"`, "q35", false},
		{"split", `"flash"`, `"flash", "mode": "split"`, "q35", true},
		{"stateless", `"flash"`, `"flash", "mode": "stateless"`, "q35", false},
		{"combined", `"flash"`, `"flash", "mode": "combined"`, "q35", false},
		{"qcow2", `VARS.fd", "format": "raw"`, `VARS.qcow2", "format": "qcow2"`, "q35", false},
		{"no variables", `"/fw/VARS.fd"`, `""`, "q35", false},
		{"needs SMM", `"acpi-s3"`, `"requires-smm"`, "q35", true},
		{"Secure Boot in setup mode", `"acpi-s3"`, `"secure-boot"`, "q35", true},
		{"keys", `"acpi-s3"`, `"enrolled-keys"`, "q35", false},
		{"unknown feature", `"acpi-s3"`, `"warp-drive"`, "q35", true},
	} {
		if !strings.Contains(debian, tt.from) {
			t.Fatalf("%s: %s is not in the descriptor", tt.name, tt.from)
		}
		d, err := parseDescriptor([]byte(strings.Replace(debian, tt.from, tt.to, 1)))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if got := d.fits(Wanted{Arch: ArchAMD64, Machine: tt.machine}); got != tt.want {
			t.Errorf("%s: usable %v; want %v", tt.name, got, tt.want)
		}
	}
}

func FuzzDescriptor(f *testing.F) {
	f.Add([]byte(debian), "q35")
	f.Add([]byte(debian), "pc-q35-7.2")
	f.Add([]byte(`{"targets": [{"architecture": "x86_64", "machines": ["[a-"]}]}`), "microvm")
	f.Add([]byte(`{"mapping": null, "features": null}`), "")
	f.Add([]byte(`[]`), "pc")
	f.Fuzz(func(t *testing.T, data []byte, machine string) {
		d, err := parseDescriptor(data)
		if (d == nil) == (err == nil) {
			t.Fatalf("%v and %v", d, err)
		}
		if d != nil && d.fits(Wanted{Arch: ArchAMD64, Machine: machine}) && (d.Mapping.Executable.Filename == "" || d.Mapping.Vars.Filename == "") {
			t.Fatal("usable without a file")
		}
	})
}

func TestFindUEFI(t *testing.T) {
	descriptor := func(name string) string {
		return strings.NewReplacer("/fw/CODE", "/fw/"+name, "/fw/VARS", "/fw/"+name+"-vars").Replace(debian)
	}
	smm := strings.Replace(descriptor("smm"), "acpi-s3", "requires-smm", 1)
	secure := strings.Replace(descriptor("secure"), `"acpi-s3"`, `"requires-smm", "secure-boot", "enrolled-keys"`, 1)
	narrow := strings.Replace(smm, `"x86_64"`, `"i386"`, 1)
	arm := strings.NewReplacer(`"x86_64"`, `"aarch64"`, "pc-q35-*", "virt-*").Replace(descriptor("arm"))
	other := Wanted{SecureBoot: true}
	const (
		etc = "etc/qemu/firmware/"
		usr = "usr/share/qemu/firmware/"
	)
	images := func(names ...string) map[string]string {
		files := map[string]string{}
		for _, n := range names {
			files["fw/"+n+".fd"], files["fw/"+n+"-vars.fd"] = "x", "x"
		}
		return files
	}
	ovmf := map[string]string{"usr/share/OVMF/OVMF_CODE_4M.fd": "x", "usr/share/OVMF/OVMF_VARS_4M.fd": "x"}
	for _, tt := range []struct {
		name        string
		files       []map[string]string
		descriptors map[string]string
		wanted      Wanted
		want        string // code image, or a part of the error
	}{
		{"by name", []map[string]string{images("a", "b")}, map[string]string{usr + "60-b.json": descriptor("b"), usr + "50-a.json": descriptor("a")}, Wanted{}, "/fw/a.fd"},
		{"secure ones are passed over", []map[string]string{images("secure", "b")}, map[string]string{usr + "40.json": secure, usr + "60.json": descriptor("b")}, Wanted{Machine: "q35"}, "/fw/b.fd"},
		{"the one with SMM comes last", []map[string]string{images("smm", "b")}, map[string]string{usr + "40.json": smm, usr + "60.json": descriptor("b")}, Wanted{}, "/fw/b.fd"},
		{"SMM where there is no other", []map[string]string{images("smm")}, map[string]string{usr + "40.json": smm}, Wanted{}, "/fw/smm.fd"},
		{"SMM needs a q35", []map[string]string{images("smm")}, map[string]string{usr + "40.json": smm}, Wanted{Machine: "pc"}, "the UEFI firmware that is here needs a machine q35"},
		{"Secure Boot", []map[string]string{images("secure", "b")}, map[string]string{usr + "40.json": secure, usr + "30.json": descriptor("b")}, other, "/fw/secure.fd"},
		{"no Secure Boot", []map[string]string{images("b")}, map[string]string{usr + "30.json": descriptor("b")}, other, "no UEFI firmware with Secure Boot for an amd64 machine q35: install the package ovmf"},
		{"32 bits", []map[string]string{images("smm", "b")}, map[string]string{usr + "40.json": narrow, usr + "30.json": descriptor("b")}, Wanted{Arch: Arch386}, "/fw/smm.fd"},
		{"arm64", []map[string]string{images("arm", "b")}, map[string]string{usr + "40.json": arm, usr + "30.json": descriptor("b")}, Wanted{Arch: ArchARM64}, "/fw/arm.fd"},
		{"arm64 is not there", []map[string]string{images("b")}, map[string]string{usr + "30.json": descriptor("b")}, Wanted{Arch: ArchARM64}, "install the package qemu-efi-aarch64"},
		{"machine options", []map[string]string{images("b")}, map[string]string{usr + "60.json": descriptor("b")}, Wanted{Machine: "q35,smm=off"}, "/fw/b.fd"},
		{"the administrator's goes first", []map[string]string{images("a", "b")}, map[string]string{usr + "60.json": descriptor("b"), etc + "60.json": descriptor("a")}, Wanted{}, "/fw/a.fd"},
		{"an empty one hides", []map[string]string{images("a", "b")}, map[string]string{usr + "50.json": descriptor("a"), etc + "50.json": "", usr + "60.json": descriptor("b")}, Wanted{}, "/fw/b.fd"},
		{"missing images", []map[string]string{images("b")}, map[string]string{usr + "50.json": descriptor("a"), usr + "60.json": descriptor("b")}, Wanted{}, "/fw/b.fd"},
		{"a broken one does not matter", []map[string]string{images("b")}, map[string]string{usr + "50.json": "{", usr + "60.json": descriptor("b")}, Wanted{}, "/fw/b.fd"},
		{"no descriptors", []map[string]string{ovmf}, nil, Wanted{}, "/usr/share/OVMF/OVMF_CODE_4M.fd"},
		{"nothing", nil, nil, Wanted{}, "no UEFI firmware for an amd64 machine q35: install the package ovmf"},
		{"nothing but a broken one", nil, map[string]string{usr + "50.json": "{"}, Wanted{}, "50.json is broken: unexpected end of JSON input"},
		{"the table is for PCs", []map[string]string{ovmf}, nil, Wanted{Machine: "microvm"}, "no UEFI firmware for an amd64 machine microvm"},
	} {
		root := t.TempDir()
		for _, set := range append(tt.files, tt.descriptors) {
			for name, text := range set {
				path := filepath.Join(root, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		u, err := findUEFI(root, tt.wanted)
		if strings.HasPrefix(tt.want, "/") {
			if err != nil || u.Code != tt.want || u.Vars == "" || u.SMM != (strings.Contains(u.Code, "smm") || strings.Contains(u.Code, "secure")) {
				t.Errorf("%s: %+v, %v; want %s", tt.name, u, err, tt.want)
			}
		} else if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", tt.name, err, tt.want)
		}
	}
}
