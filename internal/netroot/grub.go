package netroot

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/every-channel/ecboot/internal/boot"
)

// GRUBConfig renders the configuration by which GRUB boots a profile's kernel:
// one menu entry that is started at once and stays on the screen when it fails.
// Paths begin at the root, which GRUB looks up where it was loaded from itself,
// by TFTP or HTTP. report is the URL that the booted system is to call; empty:
// none. A profile that GRUB cannot boot gives a file that says why.
func GRUBConfig(p boot.Profile, vars boot.Vars, report string) []byte {
	words, err := kernelWords(p, vars)
	if err != nil {
		return refusal(p, err)
	}
	if vars.MAC != "" {
		words = append(words, "BOOTIF=01-"+strings.ReplaceAll(vars.MAC, ":", "-"))
	}
	if report != "" {
		words = append(words, "ecboot.url="+report)
	}
	var b bytes.Buffer
	b.WriteString("set default=0\nset timeout=0\n")
	fmt.Fprintf(&b, "menuentry %s {\n", grubWord("ecboot: profile "+p.Name))
	fmt.Fprintf(&b, "\tlinux %s", grubWord(artifact(p, p.Kernel)))
	for _, w := range words {
		b.WriteString(" " + grubWord(w))
	}
	b.WriteByte('\n')
	if len(p.Initrds) > 0 {
		b.WriteString("\tinitrd")
		for _, f := range p.Initrds {
			b.WriteString(" " + grubWord(artifact(p, f)))
		}
		b.WriteByte('\n')
	}
	b.WriteString("}\n")
	return b.Bytes()
}

func artifact(p boot.Profile, f boot.File) string { return "/profile/" + p.Name + "/" + f.Name }

// refusal says on the machine's console what must change on the server, and
// offers the next boot device.
func refusal(p boot.Profile, err error) []byte {
	var b bytes.Buffer
	why := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, fmt.Sprintf("ecboot: profile %s: %v", p.Name, err))
	fmt.Fprintf(&b, "echo %s\n", grubWord(why))
	b.WriteString("echo 'ecboot: mend it on the server; the next boot device follows in 15 s'\n")
	b.WriteString("sleep --interruptible 15\nexit\n")
	return b.Bytes()
}

// kernelWords is the command line of the kernel in words, cut where the kernel
// cuts it: at white space outside double quotes, which GRUB puts back around a
// word that needs them. It puts a backslash before other quotes and backslashes,
// which the kernel would take for part of the word: such a line is refused.
func kernelWords(p boot.Profile, vars boot.Vars) ([]string, error) {
	line, err := boot.Expand(p.Cmdline, vars)
	switch {
	case err != nil:
		return nil, fmt.Errorf("kernel command line: it %w", err)
	case !utf8.ValidString(line):
		return nil, errors.New("kernel command line: it is not UTF-8")
	case strings.ContainsFunc(line, func(r rune) bool { return unicode.IsControl(r) && r != '\t' }):
		return nil, errors.New("kernel command line: it is not one line")
	case strings.ContainsAny(line, `\'`):
		return nil, errors.New(`kernel command line: GRUB cannot hand \ and ' to a kernel`)
	case strings.Count(line, `"`)%2 != 0:
		return nil, errors.New("kernel command line: a quote is not closed")
	}
	var words []string
	var word strings.Builder
	quoted := false
	for _, c := range line + " " {
		switch {
		case c == '"':
			quoted = !quoted
		case !quoted && unicode.IsSpace(c):
			if word.Len() > 0 {
				words = append(words, word.String())
			}
			word.Reset()
		default:
			word.WriteRune(c)
		}
	}
	return words, nil
}

// grubWord quotes a word of GRUB's script language where it must be: nothing is
// special between single quotes but the quote itself (GRUB manual, Quoting).
func grubWord(s string) string {
	plain := func(r rune) bool {
		return r < utf8.RuneSelf && (unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("/._:=,+@%-", r))
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
