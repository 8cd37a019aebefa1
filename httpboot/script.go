package httpboot

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/every-channel/ecboot/internal/boot"
)

// An iPXE script has no quotes and no escapes. A line is cut into words at
// spaces; the words || && ; and those that begin with # end the command, and ${
// in a word expands a setting. So whatever comes from a configuration either
// holds nothing of the kind or is not booted. (Known of iPXE 1.0.0 of 2019 and
// later.)

// script renders what iPXE is to do on a machine. On an error, which says what
// in the profile must change, the text is a script that says the same on the
// machine's console.
func (s *Server) script(mac boot.MAC, p boot.Profile) ([]byte, error) {
	switch {
	case p.Name == "":
		return idleScript(mac), nil
	case p.Script != "":
		return []byte(p.Script), nil
	}
	text, err := s.bootScript(mac, p)
	if err != nil {
		return refusalScript(err), err
	}
	return text, nil
}

// bootScript loads the kernel and the initrds and starts them. On a failure it
// says so on the console and to the server, and leaves the machine in iPXE's
// shell: whoever comes sees the message and can try again by hand.
func (s *Server) bootScript(mac boot.MAC, p boot.Profile) ([]byte, error) {
	if p.Kernel.Name == "" {
		return nil, fmt.Errorf("profile %q has neither a kernel nor a script", p.Name)
	}
	if err := checkName(p.Name); err != nil {
		return nil, fmt.Errorf("profile name %q: %w", p.Name, err)
	}
	for _, f := range append([]boot.File{p.Kernel}, p.Initrds...) {
		if err := checkName(f.Name); err != nil {
			return nil, fmt.Errorf("profile %s, file name %q: %w", p.Name, f.Name, err)
		}
	}
	words, err := cmdlineWords(p.Cmdline)
	if err != nil {
		return nil, fmt.Errorf("profile %s, kernel command line: %w", p.Name, err)
	}
	for _, f := range p.Initrds {
		words = append(words, "initrd="+f.Name)
	}
	words = append(words,
		"BOOTIF=01-"+strings.ReplaceAll(mac.String(), ":", "-"),
		"ecboot.url="+s.url("/phone-home/"+mac.String()))

	var b bytes.Buffer
	fmt.Fprintf(&b, "#!ipxe\necho ecboot: profile %s for %s\n", p.Name, mac)
	fmt.Fprintf(&b, "set stage kernel\nkernel %s %s || goto failed\n", s.url(artifactPath(p.Name, p.Kernel.Name)), strings.Join(words, " "))
	b.WriteString("set stage initrd\n")
	for _, f := range p.Initrds {
		fmt.Fprintf(&b, "initrd --name %s %s || goto failed\n", f.Name, s.url(artifactPath(p.Name, f.Name)))
	}
	b.WriteString("set stage linux\nboot || goto failed\n")
	// errno changes with every command that fails, so it is kept.
	b.WriteString(":failed\nset err ${errno:hexraw}\n")
	fmt.Fprintf(&b, "echo ecboot: profile %s failed at ${stage}, see https://ipxe.org/${err}\n", p.Name)
	fmt.Fprintf(&b, "imgfetch --name report %s?stage=${stage}&errno=${err} ||\n", s.url("/failed/"+mac.String()))
	b.WriteString("echo ecboot: this is the shell of iPXE; \"exit\" goes on to the next boot device\nshell\n")
	return b.Bytes(), nil
}

// idleScript is for a machine that is to boot nothing from here. The next boot
// device is right for it in most cases; there is time to read why, and a shell
// for whom it is not.
func idleScript(mac boot.MAC) []byte {
	return fmt.Appendf(nil, `#!ipxe
echo ecboot: no profile for %s
echo ecboot: give the machine a profile, or set a default one, on the server
prompt --timeout 15000 ecboot: any key opens a shell, the next boot device follows in 15 s && shell ||
exit 1
`, mac)
}

// refusalScript says what is wrong with a profile.
func refusalScript(err error) []byte {
	return fmt.Appendf(nil, `#!ipxe
echo ecboot: %s: mend it on the server
echo ecboot: this is the shell of iPXE; "exit" goes on to the next boot device
shell
`, printable(err.Error()))
}

// artifactPath is the URL path of a profile's file.
func artifactPath(profile, file string) string {
	return "/profile/" + url.PathEscape(profile) + "/" + url.PathEscape(file)
}

// checkName accepts what is one word in a script and one element of a path.
func checkName(name string) error {
	words, err := cmdlineWords(name)
	switch {
	case err != nil:
		return err
	case len(words) != 1 || words[0] != name:
		return errors.New("must be one word")
	case strings.ContainsAny(name, `/\`) || name == "." || name == "..":
		return errors.New("must not be a path")
	}
	return nil
}

// cmdlineWords splits a kernel command line as iPXE does, which makes several
// spaces one, in quotes too.
func cmdlineWords(line string) ([]string, error) {
	switch {
	case !utf8.ValidString(line):
		return nil, errors.New("is not UTF-8")
	case strings.ContainsFunc(line, func(r rune) bool { return unicode.IsControl(r) && r != '\t' }):
		return nil, errors.New("must be one line")
	case strings.Contains(line, "${"):
		return nil, errors.New("iPXE would expand ${ (if that is meant, give the profile a script)")
	}
	words := strings.Fields(line)
	for _, w := range words {
		if w == "||" || w == "&&" || w == ";" || strings.HasPrefix(w, "#") {
			return nil, fmt.Errorf("iPXE would take the word %q for its own", w)
		}
	}
	return words, nil
}

// printable replaces what an echo in a script would not print as it is.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r > unicode.MaxASCII || !unicode.IsPrint(r) || strings.ContainsRune("$|&;#\\", r) {
			return '?'
		}
		return r
	}, s)
}
