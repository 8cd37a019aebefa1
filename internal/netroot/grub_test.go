package netroot

import (
	"bytes"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/every-channel/ecboot/internal/boot"
)

var vars = boot.Vars{
	MAC: "52:54:00:12:34:56", UUID: "11111111-2222-3333-4444-555555555555", Name: "node1",
	Address: "10.77.0.50", Server: "10.77.0.1", Profile: "debian",
}

func profile(cmdline string, initrds ...string) boot.Profile {
	p := boot.Profile{Name: "debian", Kernel: boot.File{Name: "vmlinuz"}, Cmdline: cmdline, SecureBoot: true}
	for _, name := range initrds {
		p.Initrds = append(p.Initrds, boot.File{Name: name})
	}
	return p
}

func TestGRUBConfig(t *testing.T) {
	const refused = `echo 'ecboot: profile debian: kernel command line: %s'
echo 'ecboot: mend it on the server; the next boot device follows in 15 s'
sleep --interruptible 15
exit
`
	tests := []struct {
		name    string
		profile boot.Profile
		report  string
		want    string
	}{
		{"kernel and initrds", profile("console=ttyS0 quiet", "initrd.gz", "more.cpio"), "http://10.77.0.1/phone-home/52:54:00:12:34:56", `set default=0
set timeout=0
menuentry 'ecboot: profile debian' {
	linux /profile/debian/vmlinuz console=ttyS0 quiet BOOTIF=01-52-54-00-12-34-56 ecboot.url=http://10.77.0.1/phone-home/52:54:00:12:34:56
	initrd /profile/debian/initrd.gz /profile/debian/more.cpio
}
`},
		{"no initrd, no report", profile(""), "", `set default=0
set timeout=0
menuentry 'ecboot: profile debian' {
	linux /profile/debian/vmlinuz BOOTIF=01-52-54-00-12-34-56
}
`},
		{"template and quotes", profile(`hostname={name} ip={address}::{server} dyndbg="file a.c +p" a=$b;c|{{d} # x`), "", `set default=0
set timeout=0
menuentry 'ecboot: profile debian' {
	linux /profile/debian/vmlinuz hostname=node1 ip=10.77.0.50::10.77.0.1 'dyndbg=file a.c +p' 'a=$b;c|{d}' '#' x BOOTIF=01-52-54-00-12-34-56
}
`},
		{"unknown name in the template", profile("{teapot}"), "", strings.Replace(refused, "%s",
			"it names {teapot}, which is not known: write one of {mac}, {uuid}, {name}, {address}, {server}, {profile}, or {{ for the brace itself", 1)},
		{"backslash", profile(`a=\x20`), "", strings.Replace(refused, "%s", `GRUB cannot hand \ and '\'' to a kernel`, 1)},
		{"open quote", profile(`a="b c`), "", strings.Replace(refused, "%s", "a quote is not closed", 1)},
		{"two lines", profile("a\nb"), "", strings.Replace(refused, "%s", "it is not one line", 1)},
		{"no text", profile("a\xff"), "", strings.Replace(refused, "%s", "it is not UTF-8", 1)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := GRUBConfig(tt.profile, vars, tt.report)
			if string(got) != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
			checkScript(t, got)
		})
	}
}

// checkScript has GRUB's own parser read a script, where it is installed.
func checkScript(t *testing.T, script []byte) {
	t.Helper()
	program, err := exec.LookPath("grub-script-check")
	if err != nil {
		t.Log("not checked by GRUB: needs grub-script-check")
		return
	}
	cmd := exec.Command(program)
	cmd.Stdin = bytes.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("GRUB cannot read it: %v\n%s", err, out)
	}
}

// unquote reads words as GRUB does, as far as grubWord writes them.
func unquote(line string) (words []string, ok bool) {
	var word strings.Builder
	begun, quoted := false, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case quoted && c == '\'':
			quoted = false
		case quoted:
			word.WriteByte(c)
		case c == '\'':
			begun, quoted = true, true
		case c == '\\' && i+1 < len(line):
			i++
			begun = true
			word.WriteByte(line[i])
		case c == ' ':
			if begun {
				words = append(words, word.String())
			}
			word.Reset()
			begun = false
		case strings.ContainsRune("{}|&$;<>\"\n\t#\\", rune(c)):
			return nil, false // GRUB would do something with it
		default:
			begun = true
			word.WriteByte(c)
		}
	}
	if begun {
		words = append(words, word.String())
	}
	return words, !quoted
}

func FuzzGRUBWord(f *testing.F) {
	for _, seed := range []string{"", "plain", "a b", "it's", `a\'b`, "$(x)", "{}", "'", "''", "#", "é"} {
		f.Add(seed, seed)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		got, ok := unquote(grubWord(a) + " " + grubWord(b))
		if !ok || !slices.Equal(got, []string{a, b}) {
			t.Errorf("%q and %q become %q", a, b, got)
		}
	})
}

// Whatever a configuration says, the file has the lines that it should have,
// and nothing of it becomes a command.
func FuzzGRUBConfig(f *testing.F) {
	for _, seed := range []string{"console=ttyS0", `a="b c" d`, "}\nreboot", "a; reboot", "{mac}", "{", "\\", "a\x00", "\u2028", "a\"b\"c"} {
		f.Add(seed, "debian", "initrd")
	}
	f.Fuzz(func(t *testing.T, cmdline, name, initrd string) {
		p := profile(cmdline, initrd)
		p.Name = name
		text := GRUBConfig(p, vars, "http://10.77.0.1/x")
		script := string(text)
		if strings.HasPrefix(script, "echo ") {
			if n := strings.Count(script, "\n"); n != 4 {
				t.Fatalf("a refusal of %d lines:\n%s", n, script)
			}
			return
		}
		_, line, _ := strings.Cut(script, "\tlinux ")
		line, rest, _ := strings.Cut(line, "\n\tinitrd ")
		words, ok := unquote(line)
		if !ok || words[0] != "/profile/"+name+"/vmlinuz" || words[len(words)-1] != "ecboot.url=http://10.77.0.1/x" {
			t.Fatalf("kernel line %q", line)
		}
		kernel, err := kernelWords(p, vars)
		if err != nil || !slices.Equal(kernel, words[1:len(words)-2]) {
			t.Errorf("%q becomes %q, want %q (%v)", cmdline, words, kernel, err)
		}
		if words, ok := unquote(strings.TrimSuffix(rest, "\n}\n")); !ok || !slices.Equal(words, []string{"/profile/" + name + "/" + initrd}) {
			t.Errorf("initrd line %q", rest)
		}
	})
}
