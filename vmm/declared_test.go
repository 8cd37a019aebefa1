package vmm

import (
	"bytes"
	"errors"
	"fmt"
	"image/png"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var nobody = &Credential{UID: 65534, GID: 65534}

// status reads a field of /proc/PID/status.
func status(t *testing.T, pid int, field string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^` + field + `:[ \t]*(.*)$`).FindSubmatch(text)
	if m == nil {
		t.Fatalf("%s is not in %s", field, text)
	}
	return string(m[1])
}

// cgroup makes a cgroup for the length of a test.
func cgroup(t *testing.T) (dir, name string) {
	t.Helper()
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
			continue
		}
		dir, err := os.MkdirTemp(root, "vmm-test-*")
		if err != nil {
			continue
		}
		t.Cleanup(func() { os.Remove(dir) })
		return dir, filepath.Base(dir)
	}
	t.Log("no cgroup can be made here: QEMU stays in ours")
	return "", ""
}

// An unprivileged QEMU in its sandbox gets all that is declared, though its user
// may open none of it.
func TestUnprivileged(t *testing.T) {
	t.Parallel()
	needRoot(t)
	needQEMUImg(t)
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, content string, size int) {
		if err := os.WriteFile(in(name), append([]byte(content), make([]byte, size-len(content))...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("base.img", "the base", 1<<20)
	write("data.img", "", 2<<20)
	write("fixed.img", "fixed", 1<<20)
	write("cd.iso", "a CD", 64<<10)
	vmlinuz, err := os.ReadFile(kernel(t))
	if err != nil {
		t.Fatal(err)
	}
	write("vmlinuz", string(vmlinuz), len(vmlinuz))
	if err := os.MkdirAll(in("shared, a:b c"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(in("shared, a:b c/file"), []byte("from the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(in("shared, a:b c"), 0o777); err != nil {
		t.Fatal(err)
	}
	spec := Spec{
		Sandbox: true, Kernel: in("vmlinuz"), VNC: in("vnc"),
		Disks: []Disk{
			{Path: in("new, disk.qcow2"), Size: 16 << 20, Serial: "system"},
			{Path: in("overlay.qcow2"), Base: in("base.img")},
			{Path: in("none.qcow2"), Base: in("base.img"), Ephemeral: true},
			{Path: in("fixed.img"), Format: FormatRaw, ReadOnly: true},
			{Path: in("data.img"), Format: FormatRaw, Bus: BusSCSI},
			{Path: in("cd.iso"), CDROM: true},
		},
		Shares: []Share{
			{Tag: "rw", Path: in("shared, a:b c"), Driver: Share9P},
			{Tag: "ro", Path: in("shared, a:b c"), Driver: Share9P, ReadOnly: true},
		},
		NICs: []NIC{{MAC: mac1, User: true, Pcap: in("pcap")}},
	}
	for _, d := range spec.Disks {
		ensure(t, d)
	}
	group, name := cgroup(t)
	g := boot(t, spec, Options{Credential: nobody, Cgroup: group})

	if got := status(t, g.PID(), "Uid"); got != "65534\t65534\t65534\t65534" {
		t.Errorf("QEMU's users are %s", got)
	}
	if got := status(t, g.PID(), "Groups"); strings.TrimSpace(got) != "" {
		t.Errorf("QEMU's groups are %s", got)
	}
	if got := status(t, g.PID(), "Seccomp"); got != "2" {
		t.Errorf("QEMU's seccomp mode is %s", got)
	}
	if got := status(t, g.PID(), "CapEff"); got != "0000000000000000" {
		t.Errorf("QEMU's capabilities are %s", got)
	}
	if in, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", g.PID())); !strings.Contains(string(in), name) {
		t.Errorf("QEMU's cgroups are %s", in)
	}

	g.want(`ok "system"`, "read", "/sys/block/vda/serial")
	g.want("ok", "put", "/dev/vda", "a", "1")
	g.want(`ok "the base"`, "get", "/dev/vdb")
	g.want("ok", "put", "/dev/vdb", "b", "1")
	g.want(`ok "the base"`, "get", "/dev/vdc")
	g.want("ok", "put", "/dev/vdc", "c", "1")
	g.want(`ok "fixed"`, "get", "/dev/vdd")
	g.want("error write /dev/vdd: operation not permitted", "put", "/dev/vdd", "d", "1")
	g.want("ok", "put", "/dev/sda", "s", "1")
	g.want(`ok "a CD"`, "get", "/dev/sr0")
	g.want("ok", "mount", "9p", "rw", "/rw", "trans=virtio,version=9p2000.L")
	g.want("ok", "mount", "9p", "ro", "/ro", "trans=virtio,version=9p2000.L")
	g.want(`ok "from the host"`, "read", "/rw/file")
	g.want("ok", "write", "/rw/new", "from the guest")
	g.want(`ok "from the guest"`, "read", "/ro/new")
	g.want("error open /ro/no: read-only file system", "write", "/ro/no", "x")

	vnc, err := net.Dial("unix", in("vnc"))
	if err != nil {
		t.Fatal(err)
	}
	defer vnc.Close()
	hello := make([]byte, 12)
	if _, err := vnc.Read(hello); err != nil || string(hello) != "RFB 003.008\n" {
		t.Errorf("VNC greets %q, %v", hello, err)
	}
	picture, err := g.Screenshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if im, err := png.Decode(bytes.NewReader(picture)); err != nil || im.Bounds().Dx() < 640 {
		t.Errorf("the screenshot: %v", err)
	}

	g.tell("poweroff")
	if e := g.Exit(); e.Reason != GuestShutdown {
		t.Errorf("exit %+v", e)
	}
	if _, err := os.Lstat(in("vnc")); err == nil {
		t.Error("the socket of VNC is left behind")
	}
	for name, want := range map[string]string{"base.img": "the base", "data.img": "ssss", "fixed.img": "fixed", "shared, a:b c/new": "from the guest"} {
		if got, err := os.ReadFile(in(name)); err != nil || !strings.HasPrefix(string(got), want) {
			t.Errorf("%s begins with %.10q (%v); want %q", name, got, err, want)
		}
	}
	for name, want := range map[string]string{"new, disk.qcow2": "aaaa", "overlay.qcow2": "bbbb"} {
		qemuImg(t, "convert", "-O", "raw", in(name), in("plain"))
		if got, err := os.ReadFile(in("plain")); err != nil || !strings.HasPrefix(string(got), want) {
			t.Errorf("%s begins with %.10q (%v); want %q", name, got, err, want)
		}
	}
	if _, err := os.Lstat(in("none.qcow2")); err == nil {
		t.Error("an ephemeral disk is left behind")
	}
	if st, err := os.Stat(in("pcap")); err != nil || st.Size() == 0 {
		t.Errorf("nothing is captured (%v)", err)
	}
}

// debianKernel finds what make deps-test unpacks: a kernel that knows TPM and,
// with these modules, virtiofs.
func debianKernel(t *testing.T) (kernel string, modules []string) {
	t.Helper()
	found, _ := filepath.Glob("testdata/linux/boot/vmlinuz-*")
	if len(found) == 0 {
		t.Skip("Debian's cloud kernel is missing: run make deps-test")
	}
	for _, m := range []string{"drivers/virtio/virtio_ring.ko", "drivers/virtio/virtio.ko", "drivers/virtio/virtio_pci_legacy_dev.ko",
		"drivers/virtio/virtio_pci_modern_dev.ko", "drivers/virtio/virtio_pci.ko", "fs/fuse/fuse.ko", "fs/fuse/virtiofs.ko"} {
		paths, _ := filepath.Glob("testdata/linux/lib/modules/*/kernel/" + m)
		modules = append(modules, paths...)
	}
	return found[0], modules
}

func need(t *testing.T, program, pkg string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("%s is missing: install the package %s", program, pkg)
	}
}

// The helpers serve an unprivileged QEMU, and end with it.
func TestVirtiofsAndTPM(t *testing.T) {
	t.Parallel()
	needRoot(t)
	need(t, "swtpm", "swtpm")
	if findVirtiofsd() == "" {
		t.Skip("virtiofsd is missing")
	}
	vmlinuz, modules := debianKernel(t)
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	shared := filepath.Join(dir, `s, a:b\ c`)
	if err := os.Mkdir(shared, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(shared, "file"), []byte("from the host"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(shared, "file"), 1234, 5678); err != nil {
		t.Fatal(err)
	}
	group, _ := cgroup(t)
	state := filepath.Join(dir, "state", "tpm")
	g := boot(t, Spec{
		Sandbox: true, Kernel: vmlinuz, InitrdData: initrd(t, modules...), TPM: state,
		Shares: []Share{{Tag: "rw", Path: shared}, {Tag: "ro", Path: shared, Driver: ShareVirtiofs, ReadOnly: true}},
	}, Options{Credential: nobody, Cgroup: group})
	g.want(`ok "2\n"`, "read", "/sys/class/tpm/tpm0/tpm_version_major")
	g.want("ok", "mount", "virtiofs", "rw", "/rw")
	g.want("ok", "mount", "virtiofs", "ro", "/ro")
	g.want(`ok "from the host"`, "read", "/rw/file")
	g.want("ok 1234:5678", "owner", "/rw/file")
	g.want("ok", "write", "/rw/new", "from the guest")
	g.want(`ok "from the guest"`, "read", "/ro/new")
	g.want("error open /ro/no: read-only file system", "write", "/ro/no", "x")
	if got, err := os.ReadFile(filepath.Join(shared, "new")); err != nil || string(got) != "from the guest" {
		t.Errorf("the share holds %q, %v", got, err)
	}
	var tpm int
	for _, h := range g.helpers {
		if strings.Contains(h.what, "TPM") {
			tpm = h.proc.cmd.Process.Pid
			if got := status(t, tpm, "Uid"); !strings.HasPrefix(got, "65534\t") {
				t.Errorf("swtpm's users are %s", got)
			}
		}
	}
	g.tell("poweroff")
	if e := g.Exit(); e.Reason != GuestShutdown {
		t.Errorf("exit %+v", e)
	}
	if unix.Kill(tpm, 0) == nil {
		t.Error("swtpm is left behind")
	}
	if kept, err := os.ReadDir(state); err != nil || len(kept) == 0 {
		t.Errorf("the TPM keeps %v, %v", kept, err)
	}
}

// A machine does not go on without its helper.
func TestHelperDies(t *testing.T) {
	need(t, "swtpm", "swtpm")
	m, _ := start(t, Spec{MemoryMiB: 64, TPM: filepath.Join(t.TempDir(), "tpm")}, Options{})
	if _, err := Start(t.Context(), m.spec, Options{}); err == nil || !strings.Contains(err.Error(), "is in use by another machine") {
		t.Errorf("the TPM is shared: %v", err)
	}
	m.helpers[0].proc.kill()
	if e := m.Exit(); e.Reason != Failed || !strings.Contains(e.Detail, "the TPM (swtpm) has ended: signal: killed") {
		t.Errorf("exit %+v", e)
	}
}

// When the host's disk is full the guest waits, and goes on when there is room.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	needRoot(t)
	needQEMUImg(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("no tmpfs can be mounted: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	d := Disk{Path: filepath.Join(dir, "disk"), Size: 64 << 20}
	ensure(t, d)
	g := boot(t, Spec{Disks: []Disk{d}}, Options{})
	if trouble := g.Trouble(); trouble != "" {
		t.Errorf("trouble %q", trouble)
	}
	g.tell("put", "/dev/vda", "x", "16")
	for g.Trouble() == "" {
		if _, err := g.Status(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := g.Trouble(); got != "the host's disk is full: the guest waits for room to write to "+d.Path {
		t.Errorf("trouble %q", got)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	expect(t, g.Machine, "^#1 ok")
	g.want(`ok "xxxxxxxxxxxxxxxx"`, "get", "/dev/vda")
}

// One image is one machine's.
func TestImageIsLocked(t *testing.T) {
	needQEMUImg(t)
	dir := t.TempDir()
	d := Disk{Path: filepath.Join(dir, "a,disk"), Size: 1 << 20}
	base := Disk{Path: filepath.Join(dir, "base"), Size: 1 << 20}
	over := Disk{Base: base.Path, Ephemeral: true}
	ensure(t, d)
	ensure(t, base)
	m, _ := start(t, Spec{MemoryMiB: 64, Disks: []Disk{d, over}}, Options{})
	for _, other := range []Disk{d, base, {Path: d.Path, ReadOnly: true}} {
		second, err := Start(t.Context(), Spec{MemoryMiB: 64, Disks: []Disk{other}}, Options{})
		if err == nil {
			second.Kill()
			t.Errorf("%+v is used twice", other)
		} else if !strings.Contains(err.Error(), "Is another process using the image ["+other.Path+"]?") {
			t.Errorf("%+v: %v", other, err)
		}
	}
	second, _ := start(t, Spec{MemoryMiB: 64, Disks: []Disk{over}}, Options{})
	second.Kill()
	m.Kill()
	<-m.Done()
	start(t, Spec{MemoryMiB: 64, Disks: []Disk{d, base}}, Options{})
}

// loop makes a block device of a new file.
func loop(t *testing.T) (device, file string) {
	t.Helper()
	needRoot(t)
	file = filepath.Join(t.TempDir(), "device")
	content := make([]byte, 1<<20)
	copy(content, "a device")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).Output()
	if err != nil {
		t.Skipf("no block device can be made here: %v", err)
	}
	device = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	return device, file
}

// A block device is a disk as well as a file is, unless the host has it mounted.
func TestBlockDevices(t *testing.T) {
	needQEMUImg(t)
	device, file := loop(t)
	other, _ := loop(t)
	written := Disk{Path: device, Format: FormatRaw}
	ensure(t, written)
	g := boot(t, Spec{Sandbox: true, Disks: []Disk{
		written, {Path: other, Format: FormatRaw, ReadOnly: true}, {Path: other, Format: FormatRaw, Ephemeral: true}, {Base: other, Ephemeral: true},
	}}, Options{Credential: nobody})
	for _, disk := range []string{"vda", "vdb", "vdc", "vdd"} {
		g.want(`ok "a device"`, "get", "/dev/"+disk)
	}
	for _, disk := range []string{"vda", "vdc", "vdd"} {
		g.want("ok", "put", "/dev/"+disk, "x", "1")
	}
	refused := func(by string) {
		t.Helper()
		m, err := Start(t.Context(), Spec{MemoryMiB: 64, Disks: []Disk{written}}, Options{})
		if err == nil {
			m.Kill()
		}
		if err == nil || !strings.Contains(err.Error(), device+" is in use: it is mounted") {
			t.Errorf("%s has the device, and another machine gets %v", by, err)
		}
	}
	refused("a machine")
	g.Kill()
	<-g.Done()
	if content, err := os.ReadFile(file); err != nil || !bytes.HasPrefix(content, []byte("xxxx")) {
		t.Errorf("the device begins with %.8q, %v", content, err)
	}
	if content, err := os.ReadFile(other); err != nil || !bytes.HasPrefix(content, []byte("a device")) {
		t.Errorf("what is only read begins with %.8q, %v", content, err)
	}
	mounted, err := os.OpenFile(device, os.O_RDONLY|unix.O_EXCL, 0) // as mount(8) does
	if err != nil {
		t.Fatal(err)
	}
	defer mounted.Close()
	refused("a file system")
}

// QEMU puts devices on the first IDE bus, which has room for one or two.
func TestManyOnIDE(t *testing.T) {
	dir := t.TempDir()
	var disks []Disk
	for i := range 6 {
		path := filepath.Join(dir, nth("cd", i))
		if err := os.WriteFile(path, make([]byte, 64<<10), 0o600); err != nil {
			t.Fatal(err)
		}
		disks = append(disks, Disk{Path: path, CDROM: true})
	}
	for machine, room := range map[string]int{"q35": 6, "pc": 4} {
		m, _ := start(t, Spec{Machine: machine, MemoryMiB: 64, Disks: disks[:room]}, Options{})
		m.Kill()
		<-m.Done()
		over := Spec{Machine: machine, Disks: append(disks[:room:room], Disk{Path: "/one/more", CDROM: true})}
		if _, err := over.Args(); err == nil || !strings.Contains(err.Error(), "has no more room on the bus ide: use virtio or scsi") {
			t.Errorf("%s with %d: %v", machine, room+1, err)
		}
	}
}

// bootSector prints a word on the serial port.
var bootSector = []byte("\xbe\x11\x7c\xac\x84\xc0\x74\x06\xba\xf8\x03\xee\xeb\xf5\xf4\xeb\xfdthe disk boots\r\n\x00")

// The disk goes first, and the network when it does not boot.
func TestDiskFirst(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	disk := make([]byte, 1<<20)
	for _, bootable := range []bool{false, true} {
		want := `^iPXE initialising`
		if bootable {
			copy(disk, bootSector)
			copy(disk[510:], "\x55\xaa")
			want = "the disk boots$"
		}
		if err := os.WriteFile(path, disk, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, bus := range []string{BusVirtio, BusSCSI, BusIDE} {
			m, _ := start(t, Spec{
				MemoryMiB: 64, Disks: []Disk{{Path: path, Format: FormatRaw, Bus: bus, BootIndex: 1}},
				NICs: []NIC{{MAC: mac1, User: true, BootIndex: 2}},
			}, Options{})
			expect(t, m, "Booting from Hard Disk")
			expect(t, m, want)
			m.Kill()
			<-m.Done()
		}
	}
}

func TestUEFIKeepsItsVariables(t *testing.T) {
	t.Parallel()
	needQEMU(t)
	uefi, err := FindUEFI(Wanted{})
	if err != nil {
		t.Skip(err)
	}
	template, err := os.ReadFile(uefi.Vars)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	vars := filepath.Join(dir, "guest", "vars.fd")
	spec := Spec{UEFI: uefi, MemoryMiB: 256, VarsFile: vars, Sandbox: true}
	var opts Options
	if os.Geteuid() == 0 {
		opts.Credential = nobody
	}
	m, _ := start(t, spec, opts)
	expect(t, m, "BdsDxe: (loading|starting|failed)")
	if _, err := Start(t.Context(), spec, Options{}); err == nil || !strings.Contains(err.Error(), vars+" is in use by another machine") {
		t.Errorf("variables are shared: %v", err)
	}
	m.Kill()
	<-m.Done()
	kept, err := os.ReadFile(vars)
	if err != nil || len(kept) != len(template) || bytes.Equal(kept, template) {
		t.Errorf("%d bytes are kept (%v)", len(kept), err)
	}
	m, _ = start(t, spec, Options{})
	m.Kill()
	<-m.Done()
	if again, err := os.ReadFile(vars); err != nil || !bytes.Equal(again[:64], kept[:64]) {
		t.Errorf("the variables are made anew (%v)", err)
	}
	if err := os.WriteFile(vars, template[:1000], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), spec, Options{}); err == nil || !strings.Contains(err.Error(), "is for another firmware") {
		t.Errorf("torn variables: %v", err)
	}
}

func TestScreen(t *testing.T) {
	m, _ := start(t, Spec{MemoryMiB: 64}, Options{})
	if _, err := m.Screenshot(t.Context()); err != ErrNoScreen {
		t.Errorf("a screenshot of nothing: %v", err)
	}
	socket := filepath.Join(t.TempDir(), "vnc")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), Spec{MemoryMiB: 64, VNC: socket}, Options{}); err == nil || !strings.Contains(err.Error(), "another process listens on "+socket) {
		t.Errorf("a socket is taken away: %v", err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	start(t, Spec{MemoryMiB: 64, VNC: socket}, Options{})
	if st, err := os.Stat(socket); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket %v, %v", st, err)
	}
}

func TestWithKVM(t *testing.T) {
	device := filepath.Join(t.TempDir(), "kvm")
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	needRoot(t)
	if err := os.Chown(device, 0, 77); err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[os.FileMode]string{0o600: "chgrp kvm", 0o660: "[1 77]", 0o666: "[1]"} {
		if err := os.Chmod(device, mode); err != nil {
			t.Fatal(err)
		}
		c, err := Credential{UID: 5, GID: 5, Groups: []uint32{1}}.withKVM(device)
		if err != nil && !strings.Contains(err.Error(), want) || err == nil && fmt.Sprint(c.Groups) != want {
			t.Errorf("%o: %+v, %v; want %s", mode, c, err, want)
		}
	}
	// Root's own group opens far more than this device.
	if err := errors.Join(os.Chown(device, 0, 0), os.Chmod(device, 0o660)); err != nil {
		t.Fatal(err)
	}
	if c, err := (Credential{UID: 5, GID: 5}).withKVM(device); err == nil || !strings.Contains(err.Error(), "chgrp kvm") {
		t.Errorf("a device of root's group: %+v, %v", c, err)
	}
}

// Every device exists on the machines that may have it.
func TestOtherMachines(t *testing.T) {
	needQEMUImg(t)
	need(t, "swtpm", "swtpm")
	dir := t.TempDir()
	cd, disk := filepath.Join(dir, "cd.iso"), Disk{Path: filepath.Join(dir, "disk"), Size: 1 << 20, Bus: BusSCSI}
	if err := os.WriteFile(cd, make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	ensure(t, disk)
	shares := []Share{{Tag: "9p", Path: dir, Driver: Share9P}}
	if findVirtiofsd() != "" && os.Geteuid() == 0 {
		shares = append(shares, Share{Tag: "fs", Path: dir})
	}
	for _, spec := range []Spec{
		{Machine: "pc", TPM: filepath.Join(dir, "pc"), VNC: filepath.Join(dir, "vnc")},
		{Machine: "microvm", Kernel: kernel(t)},
		{Arch: ArchARM64, TPM: filepath.Join(dir, "arm"), VNC: filepath.Join(dir, "vnc")},
		{Arch: ArchARM64, Machine: "virt", CPUs: 9},
	} {
		if spec.Arch == ArchARM64 {
			uefi, err := FindUEFI(Wanted{Arch: ArchARM64})
			if _, none := findQEMU("", ArchARM64); err != nil || none != nil {
				t.Log("no arm64 here: ", err, none)
				continue
			}
			spec.UEFI = uefi
		}
		spec.MemoryMiB, spec.Sandbox, spec.Shares = 256, true, shares
		spec.Disks = []Disk{disk, {Path: cd, CDROM: true}}
		spec.NICs = []NIC{{MAC: mac1, User: true}}
		m, _ := start(t, spec, Options{})
		if spec.VNC != "" {
			if _, err := m.Screenshot(t.Context()); err != nil {
				t.Errorf("%s: %v", m.describe(), err)
			}
		}
		m.Kill()
		<-m.Done()
	}
}
