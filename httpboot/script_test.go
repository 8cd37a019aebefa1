package httpboot

import (
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/every-channel/ecboot/internal/boot"
)

var (
	mac  = boot.MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	addr = netip.MustParseAddr("10.77.0.1")
)

func profile() boot.Profile {
	return boot.Profile{
		Name:    "default",
		Kernel:  boot.File{Name: "vmlinuz"},
		Initrds: []boot.File{{Name: "initramfs.zst"}, {Name: "extra.cpio"}},
		Cmdline: "console=ttyS0  quiet",
	}
}

// ask renders a profile for a machine of which nothing else is known.
func ask(cfg Config, p boot.Profile) ([]byte, error) {
	s := newServer(cfg)
	return s.script(asker{client: boot.Client{MAC: mac}, profile: p, url: s.url})
}

func TestScripts(t *testing.T) {
	spaces := profile()
	spaces.Kernel.Name, spaces.Initrds = "vmlinuz+5%", nil
	bad := profile()
	bad.Cmdline = "quiet && evil ${{net0/mac}"
	tests := []struct {
		golden  string
		port    uint16
		profile boot.Profile
		wantErr bool
	}{
		{"boot", 0, profile(), false},
		{"escaped", 8080, spaces, false},
		{"own", 0, boot.Profile{Name: "own", Script: "#!ipxe\nsanboot ${anything}\n"}, false},
		{"idle", 0, boot.Profile{}, false},
		{"local", 0, boot.Profile{Name: boot.LocalName}, false},
		{"efi", 8080, boot.Profile{Name: "memtest", EFI: boot.File{Name: "memtest86+.efi"}, Programs: map[boot.Platform]string{boot.BIOS: "memtest86+.efi"}}, false},
		{"tree", 8080, boot.Profile{Name: "debian", Tree: "/srv", Programs: map[boot.Platform]string{boot.BIOS: "debian/pxelinux%.0"}}, false},
		{"tree-script", 8080, boot.Profile{Name: "nixos", Tree: "/srv", Programs: map[boot.Platform]string{boot.BIOS: "sub/netboot%.ipxe"}}, false},
		{"refused", 0, bad, true},
	}
	for _, tt := range tests {
		t.Run(tt.golden, func(t *testing.T) {
			got, err := ask(Config{Addr: addr, Port: tt.port}, tt.profile)
			if (err != nil) != tt.wantErr {
				t.Errorf("error %v", err)
			}
			path := filepath.Join("testdata", tt.golden+".ipxe")
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("%s: %s", path, diff)
			}
		})
	}
}

func TestValuesThatCannotGoIntoAScript(t *testing.T) {
	tests := []struct {
		name   string
		change func(*boot.Profile)
		want   string // in the error; "" means that it is fine
	}{
		{"plain", func(*boot.Profile) {}, ""},
		{"tab", func(p *boot.Profile) { p.Cmdline = "a\tb" }, ""},
		{"dollar", func(p *boot.Profile) { p.Cmdline = "pass=$1 x={{y}" }, ""},
		{"template", func(p *boot.Profile) { p.Cmdline = "host={name} {uuid}" }, ""},
		{"unknown name in a template", func(p *boot.Profile) { p.Cmdline = "host={hostname}" }, "{hostname}, which is not known"},
		{"setting out of a template", func(p *boot.Profile) { p.Cmdline = "ip=${{net0/ip}" }, "expand ${"},
		{"operators inside words", func(p *boot.Profile) { p.Cmdline = "a||b c&&d e;f g#h" }, ""},
		{"umlaut", func(p *boot.Profile) { p.Cmdline = "name=Zürich" }, ""},
		{"setting", func(p *boot.Profile) { p.Cmdline = "ip=${net0/ip}" }, "{net0/ip}, which is not known"},
		{"line", func(p *boot.Profile) { p.Cmdline = "a\nshell" }, "one line"},
		{"carriage return", func(p *boot.Profile) { p.Cmdline = "a\rshell" }, "one line"},
		{"NUL", func(p *boot.Profile) { p.Cmdline = "a\x00b" }, "one line"},
		{"or", func(p *boot.Profile) { p.Cmdline = "a || b" }, `"||"`},
		{"and", func(p *boot.Profile) { p.Cmdline = "a && b" }, `"&&"`},
		{"semicolon", func(p *boot.Profile) { p.Cmdline = "a ; b" }, `";"`},
		{"comment", func(p *boot.Profile) { p.Cmdline = "a #b" }, `"#b"`},
		{"not UTF-8", func(p *boot.Profile) { p.Cmdline = "a\xffb" }, "UTF-8"},
		{"no kernel", func(p *boot.Profile) { p.Kernel = boot.File{} }, "neither a kernel nor a program nor a script"},
		{"kernel with a space", func(p *boot.Profile) { p.Kernel.Name = "my kernel" }, "one word"},
		{"kernel that is a path", func(p *boot.Profile) { p.Kernel.Name = "../vmlinuz" }, "not be a path"},
		{"initrd with a setting", func(p *boot.Profile) { p.Initrds[1].Name = "${x}" }, "expand ${"},
		{"initrd without a name", func(p *boot.Profile) { p.Initrds[0].Name = "" }, "one word"},
		{"initrd that is an operator", func(p *boot.Profile) { p.Initrds[0].Name = "||" }, `"||"`},
		{"no program for the platform", func(p *boot.Profile) {
			*p = boot.Profile{Name: "x", Programs: map[boot.Platform]string{boot.UEFIX64: "x.efi"}}
		}, "no program for bios"},
		{"program with a space", func(p *boot.Profile) {
			*p = boot.Profile{Name: "x", Programs: map[boot.Platform]string{boot.BIOS: "x/y z"}}
		}, "one word"},
		{"program outside", func(p *boot.Profile) {
			*p = boot.Profile{Name: "x", Programs: map[boot.Platform]string{boot.BIOS: "../x"}}
		}, "not be a path"},
		{"profile that is a directory", func(p *boot.Profile) { p.Name = ".." }, "not be a path"},
		{"profile with a line", func(p *boot.Profile) { p.Name = "a\nb" }, "one line"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := profile()
			tt.change(&p)
			text, err := ask(Config{Addr: addr}, p)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			checkScript(t, string(text))
		})
	}
}

// Linux on an ARM knows nothing of a PC's timer.
func TestOnlyAPCHasATimerToCheck(t *testing.T) {
	s := newServer(Config{Addr: addr})
	for arch, want := range map[boot.Arch]bool{boot.ArchBIOS: true, boot.ArchX64: true, boot.ArchX64HTTP: true, boot.ArchARM64: false} {
		text, err := s.script(asker{client: boot.Client{MAC: mac, Archs: []boot.Arch{arch}}, profile: profile(), url: s.url})
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(string(text), "no_timer_check"); got != want {
			t.Errorf("%s: %s", arch.Platform(), text)
		}
	}
}

// TestCommandLineTemplate fills in what is known of a machine.
func TestCommandLineTemplate(t *testing.T) {
	p := profile()
	p.Cmdline = "m={mac} u={uuid} n={name} a={address} s={server} p={profile} {{x}"
	s := newServer(Config{Addr: addr, Port: 8080})
	const uuid = "12345678-1234-1234-1234-123456789abc"
	for _, tt := range []struct {
		machine boot.Machine
		client  boot.Client
		want    string
	}{
		{boot.Machine{}, boot.Client{}, "m=52:54:00:12:34:56 u= n= a=10.77.0.66 s=10.77.0.1 p=default {x} "},
		{boot.Machine{Name: "node1", Addr: "10.77.0.5"}, boot.Client{UUID: uuid}, "m=52:54:00:12:34:56 u=" + uuid + " n=node1 a=10.77.0.5 s=10.77.0.1 p=default {x} "},
		{boot.Machine{Name: "a || b"}, boot.Client{}, ""},
		{boot.Machine{Name: "a\nshell"}, boot.Client{}, ""},
		{boot.Machine{Name: "${net0/ip}"}, boot.Client{}, ""},
	} {
		tt.client.MAC = mac
		text, err := s.script(asker{client: tt.client, machine: tt.machine, profile: p, addr: netip.MustParseAddr("10.77.0.66"), url: s.url})
		if (err == nil) != (tt.want != "") || !strings.Contains(string(text), tt.want) {
			t.Errorf("%+v: %v\n%s", tt.machine, err, text)
		}
		checkScript(t, string(text))
	}
}

// The words with which lines of our scripts may begin, and the settings that
// they expand.
var (
	ownLines    = regexp.MustCompile(`^(#!ipxe|:failed|(echo|set|kernel|initrd|boot|chain|imgfetch|prompt|exit|shell)( .*)?)$`)
	ownSettings = map[string]bool{"${stage}": true, "${err}": true, "${errno:hexraw}": true, "${qemu}": true}
	setting     = regexp.MustCompile(`\$\{[^}]*\}?`)
	// After an operator comes one of these, and a comment is in the first line only.
	afterOperator = regexp.MustCompile(` (\|\||&&|;)( |$)`)
	ownOperators  = regexp.MustCompile(` (\|\| goto failed|&& shell \|\||\|\|)$`)
)

// checkScript reads a script as iPXE does and complains of what is not ours.
func checkScript(t *testing.T, text string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i, line := range lines {
		if line+"\n" == inQEMU {
			continue
		}
		if !ownLines.MatchString(line) || strings.ContainsAny(line, "\r\x00\v\f") || strings.HasSuffix(line, `\`) {
			t.Errorf("line %d is not ours: %q", i+1, line)
		}
		for _, s := range setting.FindAllString(line, -1) {
			if !ownSettings[s] {
				t.Errorf("line %d expands %s: %q", i+1, s, line)
			}
		}
		if afterOperator.MatchString(ownOperators.ReplaceAllString(line, "")) {
			t.Errorf("line %d has an operator that is not ours: %q", i+1, line)
		}
		if i > 0 && strings.Contains(line, " #") {
			t.Errorf("line %d has a comment: %q", i+1, line)
		}
	}
}

func FuzzScript(f *testing.F) {
	f.Add("default", "vmlinuz", "initrd", "console=ttyS0")
	f.Add("a\nshell", "x ${y}", "..", "a || b")
	f.Add("", "#", "--name", "\\")
	f.Add("p", "k", "i", "x ; y #z \\\n$\x00{a}")
	f.Add("p", "$", "{x}", "a\\")
	f.Add("p", "k", "i", "host={name} {{x} {mac}{uuid} ${{x}")
	f.Fuzz(func(t *testing.T, name, kernel, initrd, cmdline string) {
		p := boot.Profile{Name: name, Kernel: boot.File{Name: kernel}, Initrds: []boot.File{{Name: initrd}}, Cmdline: cmdline}
		text, err := ask(Config{Addr: addr}, p)
		checkScript(t, string(text))
		if err == nil && name != "" {
			got := string(text)
			cmdline, _ := boot.Expand(cmdline, boot.Vars{MAC: mac.String(), Server: addr.String(), Profile: name})
			for _, want := range append(strings.Fields(cmdline), "initrd="+initrd, "BOOTIF=01-52-54-00-12-34-56", "ecboot.url=http://10.77.0.1/phone-home/52:54:00:12:34:56") {
				if !strings.Contains(got, " "+want+" ") {
					t.Errorf("%q is not on the command line: %s", want, got)
				}
			}
		}
	})
}
