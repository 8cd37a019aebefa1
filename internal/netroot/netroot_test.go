package netroot

import (
	"errors"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/every-channel/ecboot/internal/boot"
)

var (
	kernelMAC = boot.MAC{0x52, 0x54, 0, 0, 0, 1}
	treeMAC   = boot.MAC{0x52, 0x54, 0, 0, 0, 2}
	efiMAC    = boot.MAC{0x52, 0x54, 0, 0, 0, 3}
	address   = netip.MustParseAddr("10.77.0.50")
)

// write makes a file below dir and returns its path.
func write(t testing.TB, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func link(t testing.TB, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

// sample is a root with one machine of each kind of profile.
func sample(t testing.TB) (*Root, *boot.Inventory) {
	t.Helper()
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	write(t, tree, "installer/pxelinux.0", "pxelinux")
	write(t, tree, "installer/cfg/default", "menu")
	write(t, tree, "snponly.efi", "the tree's own")
	link(t, "installer/pxelinux.0", filepath.Join(tree, "pxelinux.0"))
	link(t, "installer/cfg", filepath.Join(tree, "pxelinux.cfg"))
	link(t, "../secret", filepath.Join(tree, "out"))
	link(t, filepath.Join(dir, "secret"), filepath.Join(tree, "absolute"))
	write(t, dir, "secret", "secret")

	inv := &boot.Inventory{
		Machines: map[boot.MAC]boot.Machine{
			kernelMAC: {MAC: kernelMAC, Name: "node1", Profile: "linux"},
			treeMAC:   {MAC: treeMAC, Profile: "tree"},
			efiMAC:    {MAC: efiMAC, Profile: "tool"},
		},
		Profiles: map[string]boot.Profile{
			"linux": {
				Name: "linux", Kernel: boot.File{Name: "vmlinuz", Path: write(t, dir, "k", "kernel")},
				Initrds: []boot.File{{Name: "a.gz", Path: write(t, dir, "i", "initrd")}, {Name: "gone", Path: filepath.Join(dir, "gone")}},
				Cmdline: "name={name} at={address}",
			},
			"tree": {Name: "tree", Tree: tree, Programs: map[boot.Platform]string{boot.UEFIX64: "gone.efi"}},
			"tool": {Name: "tool", EFI: boot.File{Name: "memtest.efi", Path: write(t, dir, "m", "memtest")}},
		},
	}
	inv.Files = map[string]string{"lost.efi": filepath.Join(dir, "lost"), "u-boot.scr": write(t, dir, "u", "U-Boot")}
	return New(Config{
		Programs: fstest.MapFS{"snponly.efi": {Data: []byte("ours")}, "undionly.kpxe": {Data: []byte("BIOS")}},
		Signed:   map[string]string{"grubx64.efi": write(t, dir, "g", "GRUB")},
		Server:   netip.MustParseAddr("10.77.0.1"),
		URL:      func(path string) string { return "http://10.77.0.1" + path },
	}), inv
}

func TestView(t *testing.T) {
	root, inv := sample(t)
	stranger := boot.MAC{0x52, 0x54, 0, 0, 0, 9}
	tests := []struct {
		name   string
		mac    boot.MAC
		file   string
		want   string // beginning of the contents
		reason error  // instead
	}{
		{"program", kernelMAC, "snponly.efi", "ours", nil},
		{"program for a stranger", stranger, "undionly.kpxe", "BIOS", nil},
		{"signed program", kernelMAC, "grubx64.efi", "GRUB", nil},
		{"given program", kernelMAC, "u-boot.scr", "U-Boot", nil},
		{"given program that is lost", kernelMAC, "lost.efi", "", errAny},
		{"no such program", kernelMAC, "revocations.efi", "", fs.ErrNotExist},
		{"kernel", kernelMAC, "profile/linux/vmlinuz", "kernel", nil},
		{"initrd of any profile", treeMAC, "profile/linux/a.gz", "initrd", nil},
		{"EFI program as a profile's file", kernelMAC, "profile/tool/memtest.efi", "memtest", nil},
		{"initrd that is lost", kernelMAC, "profile/linux/gone", "", errAny},
		{"no such file of a profile", kernelMAC, "profile/linux/shadow", "", fs.ErrNotExist},
		{"no name of a profile's file", kernelMAC, "profile/tree/x", "", fs.ErrNotExist},
		{"no such profile", kernelMAC, "profile/x/vmlinuz", "", fs.ErrNotExist},
		{"EFI program without its profile", efiMAC, "memtest.efi", "", fs.ErrNotExist},
		{"tree through a link", treeMAC, "pxelinux.0", "pxelinux", nil},
		{"tree through a link to a directory", treeMAC, "pxelinux.cfg/default", "menu", nil},
		{"tree before our programs", treeMAC, "snponly.efi", "the tree's own", nil},
		{"our program beside a tree", treeMAC, "undionly.kpxe", "BIOS", nil},
		{"another's tree", kernelMAC, "pxelinux.0", "", fs.ErrNotExist},
		{"directory of a tree", treeMAC, "installer", "", fs.ErrNotExist},
		{"below a file of a tree", treeMAC, "pxelinux.0/x", "", fs.ErrNotExist},
		{"link out of the tree", treeMAC, "out", "", errAny},
		{"absolute link", treeMAC, "absolute", "", errAny},
		{"dots", treeMAC, "installer/../../secret", "", fs.ErrInvalid},
		{"GRUB's file", kernelMAC, "grub/grub.cfg", "set default=0", nil},
		{"GRUB's file elsewhere", kernelMAC, "debian-installer/i386/grub/grub.cfg", "set default=0", nil},
		{"GRUB's file for a tree", treeMAC, "grub/grub.cfg", "", fs.ErrNotExist},
		{"GRUB's module list", kernelMAC, "grub/x86_64-efi/fs.lst", "", fs.ErrNotExist},
		{"root", kernelMAC, ".", "", fs.ErrNotExist},
		{"empty", kernelMAC, "", "", fs.ErrInvalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := fs.ReadFile(root.View(inv, boot.Client{MAC: tt.mac}, address), tt.file)
			switch {
			case tt.reason == errAny && (err == nil || errors.Is(err, fs.ErrNotExist)):
				t.Errorf("got %q, %v, want a fault of the server's", got, err)
			case tt.reason != nil && tt.reason != errAny && !errors.Is(err, tt.reason):
				t.Errorf("got %q, %v, want %v", got, err, tt.reason)
			case tt.reason == nil && (err != nil || !strings.HasPrefix(string(got), tt.want) || tt.want == ""):
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

func TestOptional(t *testing.T) {
	root, inv := sample(t)
	for name, want := range map[string]bool{
		"revocations_sku.efi": true, "shim_certificate_0.efi": true, "grub/x86_64-efi/command.lst": true,
		"grub/grub.cfg-01-52-54-00-00-00-01": true, "pxelinux.cfg/0A4D0032": true, "a/pxelinux.cfg/01-52": true,
		"autoexec.ipxe": true, "grubx64.EFI": false, "vmlinuz": false, "pxelinux.0": false,
	} {
		_, err := root.View(inv, boot.Client{MAC: kernelMAC}, address).Open(name)
		var o interface{ Optional() bool }
		if got := errors.As(err, &o) && o.Optional(); got != want || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, optional %v", name, err, got)
		}
	}
	for name, want := range map[string]bool{"boot-screens/gtk.cfg": true, "libcom32.c32": true, "gone.efi": false} {
		_, err := root.View(inv, boot.Client{MAC: treeMAC}, address).Open(name)
		var o interface{ Optional() bool }
		if got := errors.As(err, &o) && o.Optional(); got != want || err == nil {
			t.Errorf("%s of a tree: %v, optional %v", name, err, got)
		}
	}
}

// errAny is any error that is not of a missing file.
var errAny = errors.New("any")

func TestGRUBConfigOfAMachine(t *testing.T) {
	root, inv := sample(t)
	for _, tt := range []struct {
		mac  boot.MAC
		want string
	}{
		{kernelMAC, "linux /profile/linux/vmlinuz name=node1 at=10.77.0.50 BOOTIF=01-52-54-00-00-00-01 ecboot.url=http://10.77.0.1/phone-home/52:54:00:00:00:01\n"},
		{boot.MAC{}, "linux /profile/linux/vmlinuz name= at=10.77.0.50\n"},
	} {
		inv.Default = "linux"
		f, err := root.View(inv, boot.Client{MAC: tt.mac}, address).Open("grub/grub.cfg")
		if err != nil {
			t.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(f)
		if err != nil || !strings.Contains(string(text), tt.want) {
			t.Errorf("%s: got %v\n%s\nwant\n%s", tt.mac, err, text, tt.want)
		}
		if info.Name() != "grub.cfg" || info.Size() != int64(len(text)) || !info.Mode().IsRegular() {
			t.Errorf("stat says %v of %d bytes", info, len(text))
		}
		if _, ok := f.(io.ReadSeeker); !ok {
			t.Error("it cannot be read from the middle")
		}
	}
}

func TestFindSigned(t *testing.T) {
	dir := t.TempDir()
	if _, err := findSigned(dir, boot.UEFIX64, Signed{}); err == nil || !strings.Contains(err.Error(), "needs shim and a GRUB") {
		t.Errorf("nothing is there: %v", err)
	}
	if _, err := findSigned(dir, boot.BIOS, Signed{}); err == nil {
		t.Error("there is Secure Boot on a BIOS")
	}
	shim := write(t, dir, "usr/lib/shim/shimx64.efi.signed", "")
	if _, err := findSigned(dir, boot.UEFIX64, Signed{}); err == nil || strings.Contains(err.Error(), "needs shim") {
		t.Errorf("only shim is there: %v", err)
	}
	s, err := findSigned(dir, boot.UEFIX64, Signed{GRUB: "/my/grub"})
	if err != nil || s != (Signed{Shim: shim, GRUB: "/my/grub"}) {
		t.Errorf("with a given GRUB: %+v, %v", s, err)
	}
	grub := write(t, dir, "usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed", "")
	manager := write(t, dir, "usr/lib/shim/mmx64.efi.signed", "")
	s, err = findSigned(dir, boot.UEFIX64, Signed{})
	if err != nil || s != (Signed{shim, grub, manager}) {
		t.Errorf("all is there: %+v, %v", s, err)
	}
	programs := s.Programs(boot.UEFIX64)
	if len(programs) != 3 || programs[ShimName(boot.UEFIX64)] != shim || programs["grubx64.efi"] != grub || programs["mmx64.efi"] != manager {
		t.Errorf("served as %v", programs)
	}

	installer := "usr/lib/debian-installer/images/%/arm64/text/debian-installer/arm64/"
	for _, version := range []string{"11", "12"} {
		for _, name := range []string{"bootnetaa64.efi", "grubaa64.efi"} {
			write(t, dir, strings.Replace(installer, "%", version, 1)+name, "")
		}
	}
	s, err = findSigned(dir, boot.UEFIARM64, Signed{})
	newest := filepath.Join(dir, strings.Replace(installer, "%", "12", 1))
	if err != nil || s.Shim != newest+"/bootnetaa64.efi" || s.GRUB != newest+"/grubaa64.efi" {
		t.Errorf("those of the installer: %+v, %v", s, err)
	}
}

func TestInspectGRUB(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		content string
		want    GRUB
		proxy   bool
	}{
		{"MZ\x00tftp\x00sbat,1,x\ngrub,5,Free Software Foundation,grub,2.06,https://x\ngrub.debian,5,Debian,grub2,2.12-1,y\n", GRUB{"2.06", false}, false},
		{"MZ\x00GET \x00 HTTP/1.1\r\nHost: \x00\ngrub,7,F,grub,2.12~rc1,https://x\n", GRUB{"2.12~rc1", true}, true},
		{"grub,7,F,grub,3.0,https://x\n", GRUB{"3.0", false}, true},
		{"MZ", GRUB{}, true},
	} {
		got, err := InspectGRUB(write(t, dir, "grub", tt.content))
		if got != tt.want || err != nil || got.FollowsProxy() != tt.proxy {
			t.Errorf("%q: %+v, follows a proxy %v, %v", tt.content, got, got.FollowsProxy(), err)
		}
	}
	if _, err := InspectGRUB(filepath.Join(dir, "none")); err == nil {
		t.Error("a missing GRUB is no error")
	}
}

// Whatever is asked for, nothing outside of what is served comes back.
func FuzzOpen(f *testing.F) {
	root, inv := sample(f)
	for _, seed := range []string{"snponly.efi", "profile/linux/vmlinuz", "pxelinux.cfg/default", "out", "absolute", "../secret",
		"grub/grub.cfg", "profile/linux/../../secret", "installer/../../secret", "/etc/passwd", "pxelinux.cfg/../../../secret", "out/.", "\x00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		for _, mac := range []boot.MAC{kernelMAC, treeMAC, efiMAC, {}} {
			text, err := fs.ReadFile(root.View(inv, boot.Client{MAC: mac}, address), name)
			if err == nil && strings.Contains(string(text), "secret") {
				t.Errorf("%s reads a file that is not served", name)
			}
		}
	})
}
