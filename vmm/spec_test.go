package vmm

import (
	"encoding/json"
	"flag"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

func mac(s string) net.HardwareAddr {
	m, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

var (
	mac1 = mac("52:54:00:00:00:01")
	mac2 = mac("52:54:00:00:00:02")
)

// specs are machines of every kind; testdata/args holds their arguments.
var specs = map[string]Spec{
	"zero": {},
	"bios-rom": {
		Name: "guest0", NICs: []NIC{{MAC: mac1, BootIndex: 1}},
	},
	"bios-e1000-pcap": {
		Machine: "pc", CPUs: 2, MemoryMiB: 512,
		NICs: []NIC{{Model: "e1000", MAC: mac1, BootIndex: 1, Pcap: "/tmp/a,b.pcap"}},
	},
	"uefi-no-rom": {
		UEFI: UEFI{Code: "/usr/share/OVMF/OVMF_CODE_4M.fd", Vars: "/usr/share/OVMF/OVMF_VARS_4M.fd"},
		NICs: []NIC{{MAC: mac1, ROM: ROMNone, BootIndex: 1}},
	},
	"secure-boot": {
		UEFI: UEFI{Code: "/fw/code.fd", Vars: "/fw/vars.fd", SMM: true},
		NICs: []NIC{{MAC: mac1, ROM: ROMNone, BootIndex: 1}},
	},
	"http-boot": {
		UEFI: UEFI{Code: "/fw/code.fd", Vars: "/fw/vars.fd"}, NoPXE: true,
		NICs: []NIC{{MAC: mac1, ROM: ROMNone, BootIndex: 1}},
	},
	"arm64": {
		Arch: ArchARM64, UEFI: UEFI{Code: "/fw/code.fd", Vars: "/fw/vars.fd"},
		NICs: []NIC{{MAC: mac1, ROM: ROMNone, BootIndex: 1}},
	},
	"ipxe-kernel": {
		Kernel: "/usr/lib/ipxe/ipxe.lkrn", InitrdData: []byte("#!ipxe\nshell\n"),
		NICs: []NIC{{MAC: mac1, ROM: ROMNone}},
	},
	"direct": {
		Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd,1", Append: "console=ttyS0 quiet",
	},
	"kvm": {Accel: AccelKVM},
	"kvm-cpu": {
		Accel: AccelKVM, CPU: "Nehalem,-sse4.2", Machine: "pc-q35-7.2,smm=on", OnPanic: PanicPauses,
	},
	"all-descriptors": {
		Name: "a,b",
		UEFI: UEFI{Code: "/fw/code,1.fd", Vars: "/fw/vars.fd"},
		NICs: []NIC{
			{MAC: mac1, BootIndex: 2},
			{Model: "rtl8139", MAC: mac2, ROM: "/roms/a,b.rom", BootIndex: 1},
		},
		Kernel: "/k", InitrdData: []byte("x"),
		Extra: []string{"-device", "usb-ehci", "-trace", "net*"},
	},
	"disks": {
		Sandbox: true,
		NICs:    []NIC{{MAC: mac1, BootIndex: 2}, {MAC: mac2, User: true, Model: "e1000"}},
		Disks: []Disk{
			{Path: `/d/a,b"c.qcow2`, Size: 1 << 30, BootIndex: 1, Serial: "system"},
			{Path: "/d/overlay.qcow2", Base: "/d/base.qcow2"},
			{Path: "/dev/vg/data", Format: FormatRaw, Bus: BusSCSI},
			{Path: "/d/old.img", Format: FormatRaw, ReadOnly: true, Bus: BusSCSI},
			{Base: "/d/base.img", Ephemeral: true, Bus: BusIDE},
			{Path: "/d/image.qcow2", Ephemeral: true},
			{Path: "/d/install.iso", CDROM: true, BootIndex: 3},
		},
	},
	"declared": {
		UEFI: UEFI{Code: "/fw/code.fd", Vars: "/fw/vars.fd"}, VarsFile: "/g/vars.fd", TPM: "/g/tpm", VNC: "/g/vnc", Sandbox: true,
		Shares: []Share{{Tag: "a,b", Path: "/s/a,b: c"}, {Tag: "old", Path: "/s/old,1", Driver: Share9P, ReadOnly: true}},
		NICs:   []NIC{{MAC: mac1, ROM: "/roms/a.rom", Pcap: "/p"}},
	},
	"declared-arm64": {
		Arch: ArchARM64, UEFI: UEFI{Code: "/fw/code.fd", Vars: "/fw/vars.fd"}, TPM: "/g/tpm", VNC: "/g/vnc",
		Disks: []Disk{{Path: "/d/a.iso", CDROM: true}},
	},
	"microvm": {
		Machine: "microvm", Kernel: "/k", Initrd: "/i", Append: "console=ttyS0",
		NICs:   []NIC{{MAC: mac1, Model: "virtio-net-pci"}},
		Disks:  []Disk{{Path: "/d/a.img", Format: FormatRaw}, {Path: "/d/b.qcow2", Bus: BusSCSI}},
		Shares: []Share{{Tag: "v", Path: "/v"}, {Tag: "p", Path: "/p", Driver: Share9P}},
	},
}

func TestArgs(t *testing.T) {
	for name, spec := range specs {
		t.Run(name, func(t *testing.T) {
			args, err := spec.Args()
			if err != nil {
				t.Fatal(err)
			}
			// One option with its value on each line, as people read them.
			var got strings.Builder
			for i, a := range args {
				if i > 0 {
					if strings.HasPrefix(a, "-") {
						got.WriteString("\n")
					} else {
						got.WriteString(" ")
					}
				}
				got.WriteString(shellWord(a))
			}
			got.WriteString("\n")
			golden := filepath.Join("testdata", "args", name)
			if *update {
				if err := os.MkdirAll(filepath.Dir(golden), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got.String() != string(want) {
				t.Errorf("got\n%swant\n%s", &got, want)
			}
		})
	}
}

// Start passes as many descriptors as the arguments name.
func TestArgsNameEveryDescriptor(t *testing.T) {
	for name, spec := range specs {
		for _, spec.handed = range []bool{false, true} {
			args, err := spec.Args()
			if err != nil {
				t.Fatal(err)
			}
			all := strings.Join(args, " ") + " "
			for i, file := range spec.layout() {
				fd := strconv.Itoa(firstFD + i)
				if !strings.Contains(all, "fd="+fd+" ") && !strings.Contains(all, "fd="+fd+",") &&
					!strings.Contains(all, fdPath(firstFD+i)+" ") && !strings.Contains(all, fdPath(firstFD+i)+",") {
					t.Errorf("%s: descriptor %s, %s, is passed and not used: %s", name, fd, file, all)
				}
			}
		}
	}
}

// A keeper reads its machine from a file.
func TestSpecSurvivesJSON(t *testing.T) {
	for name, spec := range specs {
		text, err := json.Marshal(spec)
		if err != nil {
			t.Fatal(err)
		}
		var again Spec
		if err := json.Unmarshal(text, &again); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(spec, again) {
			t.Errorf("%s: %+v\nbecomes %+v", name, spec, again)
		}
	}
}

func TestCheckExtra(t *testing.T) {
	for _, arg := range []string{"-S", "-qmp", "--mon", "-daemonize", "-no-reboot", "-sandbox", "-runas", "-chroot", "-pidfile", "-name", "-machine", "-m", "-smp", "-M", "-vnc", "-serial", "-no-shutdown", "-readconfig"} {
		if err := CheckExtra([]string{"-device", "usb-ehci", arg, "x"}); err == nil || !strings.HasPrefix(err.Error(), arg+": ") {
			t.Errorf("%s: %v", arg, err)
		}
	}
	if err := CheckExtra([]string{"-device", "usb-ehci", "-usb", "-global", "driver=x,property=y,value=z", "-rtc", "base=localtime", "-smbios", "type=1,serial=m"}); err != nil {
		t.Error(err)
	}
}

func TestArgsRefuse(t *testing.T) {
	uefi := UEFI{Code: "/code", Vars: "/vars"}
	for _, tt := range []struct {
		name string
		spec Spec
		want string
	}{
		{"auto", Spec{Accel: AccelAuto}, "resolve it"},
		{"other accelerator", Spec{Accel: "xen"}, "use kvm or tcg"},
		{"host CPU without KVM", Spec{CPU: "host,-avx"}, "use max"},
		{"other architecture", Spec{Arch: "sparc"}, "use amd64 or arm64"},
		{"arm64 with BIOS", Spec{Arch: ArchARM64}, "no BIOS"},
		{"no PXE with BIOS", Spec{NoPXE: true}, "without a UEFI"},
		{"CPUs", Spec{CPUs: -1}, "1 or more"},
		{"memory", Spec{MemoryMiB: -1}, "positive"},
		{"variables only", Spec{UEFI: UEFI{Vars: "/vars"}}, "name both"},
		{"code only", Spec{UEFI: UEFI{Code: "/code"}}, "name both"},
		{"append without kernel", Spec{Append: "quiet"}, "name a kernel"},
		{"initrd without kernel", Spec{Initrd: "/i"}, "name a kernel"},
		{"data without kernel", Spec{InitrdData: []byte("x")}, "name a kernel"},
		{"two initrds", Spec{Kernel: "/k", Initrd: "/i", InitrdData: []byte("x")}, "leave one out"},
		{"no MAC", Spec{NICs: []NIC{{}}}, "NIC 0: it needs a MAC"},
		{"group MAC", Spec{NICs: []NIC{{MAC: mac("01:00:5e:00:00:01")}}}, "first byte even"},
		{"zero MAC", Spec{NICs: []NIC{{MAC: make(net.HardwareAddr, 6)}}}, "choose one"},
		{"same MAC", Spec{UEFI: uefi, NICs: []NIC{{MAC: mac1}, {MAC: mac1}}}, "NIC 1: 52:54:00:00:00:01 is the MAC address of NIC 0"},
		{"negative boot index", Spec{NICs: []NIC{{MAC: mac1, BootIndex: -1}}}, "use 1 or more"},
		{"same boot index", Spec{NICs: []NIC{{MAC: mac1, BootIndex: 1}, {MAC: mac2, BootIndex: 1}}}, "boot index 1 is that of NIC 0"},
		{"NUL", Spec{Kernel: "/k", Append: "a\x00b"}, "NUL"},
		{"NUL in a NIC", Spec{NICs: []NIC{{MAC: mac1, ROM: "a\x00b"}}}, "NUL"},
		{"microvm with UEFI", Spec{Machine: "microvm", UEFI: uefi}, "no UEFI"},
		{"microvm without kernel", Spec{Machine: "microvm,acpi=on"}, "name a kernel"},
		{"microvm with TPM", Spec{Machine: "microvm", Kernel: "/k", TPM: "/t"}, "no TPM"},
		{"microvm with a screen", Spec{Machine: "microvm", Kernel: "/k", VNC: "/v"}, "no screen"},
		{"microvm with e1000", Spec{Machine: "microvm", Kernel: "/k", NICs: []NIC{{MAC: mac1, Model: "e1000"}}}, "no bus for e1000"},
		{"microvm with a ROM", Spec{Machine: "microvm", Kernel: "/k", NICs: []NIC{{MAC: mac1, ROM: "/r"}}}, "no option ROMs"},
		{"microvm with IDE", Spec{Machine: "microvm", Kernel: "/k", Disks: []Disk{{Path: "/d", Bus: BusIDE}}}, "no bus ide"},
		{"variables without UEFI", Spec{VarsFile: "/v"}, "without a UEFI"},
		{"long socket", Spec{VNC: strings.Repeat("v", 108)}, "too long"},
		{"disk without path", Spec{Disks: []Disk{{Ephemeral: true}}}, "disk 0: it needs the path"},
		{"disk format", Spec{Disks: []Disk{{Path: "/d", Format: "vmdk"}}}, "use qcow2 or raw"},
		{"disk size", Spec{Disks: []Disk{{Path: "/d", Size: -1}}}, "positive"},
		{"CD with size", Spec{Disks: []Disk{{Path: "/d", CDROM: true, Size: 1}}}, "a CD is what it is"},
		{"CD on virtio", Spec{Disks: []Disk{{Path: "/d", CDROM: true, Bus: BusVirtio}}}, "not virtio"},
		{"read-only and ephemeral", Spec{Disks: []Disk{{Path: "/d", ReadOnly: true, Ephemeral: true}}}, "leave one out"},
		{"read-only with base", Spec{Disks: []Disk{{Path: "/d", ReadOnly: true, Base: "/b"}}}, "make the base the disk"},
		{"raw with base", Spec{Disks: []Disk{{Path: "/d", Format: FormatRaw, Base: "/b"}}}, "use qcow2"},
		{"disk bus", Spec{Disks: []Disk{{Path: "/d", Bus: "floppy"}}}, "use virtio, scsi or ide"},
		{"read-only on IDE", Spec{Disks: []Disk{{Path: "/d", Bus: BusIDE, ReadOnly: true}}}, "use virtio or scsi"},
		{"long serial", Spec{Disks: []Disk{{Path: "/d", Serial: strings.Repeat("s", 21)}}}, "20 bytes"},
		{"same disk", Spec{Disks: []Disk{{Path: "/d"}, {Path: "/d", ReadOnly: true}}}, "disk 1: /d is disk 0"},
		{"boot index of two disks", Spec{Disks: []Disk{{Path: "/d", BootIndex: 1}, {Path: "/e", BootIndex: 1}}}, "that of disk 0"},
		{"boot index of a NIC and a disk", Spec{Disks: []Disk{{Path: "/d", BootIndex: 1}}, NICs: []NIC{{MAC: mac1, BootIndex: 1}}}, "that of NIC 0"},
		{"NUL in a disk", Spec{Disks: []Disk{{Path: "a\x00b"}}}, "NUL"},
		{"share without tag", Spec{Shares: []Share{{Path: "/s"}}}, "share 0: it needs a tag"},
		{"long tag", Spec{Shares: []Share{{Tag: strings.Repeat("t", 32), Path: "/s"}}}, "31 bytes"},
		{"share without path", Spec{Shares: []Share{{Tag: "t"}}}, "path of a directory"},
		{"share driver", Spec{Shares: []Share{{Tag: "t", Path: "/s", Driver: "nfs"}}}, "use virtiofs or 9p"},
		{"same tag", Spec{Shares: []Share{{Tag: "t", Path: "/s"}, {Tag: "t", Path: "/r"}}}, "that of share 0"},
		{"daemonize", Spec{Extra: []string{"-daemonize"}}, "leave it out"},
		{"no-reboot", Spec{Extra: []string{"--no-reboot"}}, "leave it out"},
	} {
		args, err := tt.spec.Args()
		if err == nil || args != nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, %v; want an error with %q", tt.name, args, err, tt.want)
		}
	}
}

func TestArgsKeepExtraLast(t *testing.T) {
	spec := Spec{Extra: []string{"-m", "64"}}
	args, err := spec.Args()
	if err != nil || !slices.Equal(args[len(args)-2:], spec.Extra) {
		t.Errorf("%q, %v", args, err)
	}
}

func TestShellQuote(t *testing.T) {
	words := []string{"qemu", "", "a b", "it's", "$HOME", "a,b=c", "back\\slash", "tab\tnewline\n", "*", "ü", "-append", `"quoted"`}
	line := ShellQuote(words)
	out, err := exec.Command("sh", "-c", "for w in "+line+"; do printf '%s\\0' \"$w\"; done").Output()
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	if !slices.Equal(got, words) {
		t.Errorf("%s\nis read as %q\nwant       %q", line, got, words)
	}
	if got := ShellQuote([]string{"qemu-system-x86_64", "-m", "1024"}); got != "qemu-system-x86_64 -m 1024" {
		t.Errorf("plain words are quoted: %s", got)
	}
}
