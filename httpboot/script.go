package httpboot

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
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

// asker is who asks for a script.
type asker struct {
	client  boot.Client
	machine boot.Machine
	profile boot.Profile
	addr    netip.Addr               // from which it asks
	url     func(path string) string // of our paths, by the scheme that it asks with
}

// script renders what iPXE is to do on a machine. On an error, which says what
// in the profile must change, the text is a script that says the same on the
// machine's console.
func (s *Server) script(a asker) ([]byte, error) {
	p := a.profile
	text, err := []byte(p.Script), error(nil)
	switch {
	case p.Local():
		text = localScript(a)
	case p.Name == "":
		text = idleScript(a)
	case p.Script != "":
	case p.Kernel.Name != "":
		text, err = s.kernelScript(a)
	case len(p.Programs) > 0:
		text, err = s.programScript(a)
	default:
		err = fmt.Errorf("profile %q has neither a kernel nor a program nor a script", p.Name)
	}
	if err != nil {
		return refusalScript(err), err
	}
	return text, nil
}

// kernelScript loads the kernel and the initrds and starts them.
func (s *Server) kernelScript(a asker) ([]byte, error) {
	p := a.profile
	if err := checkName(p.Name); err != nil {
		return nil, fmt.Errorf("profile name %q: %w", p.Name, err)
	}
	for _, f := range append([]boot.File{p.Kernel}, p.Initrds...) {
		if err := checkName(f.Name); err != nil {
			return nil, fmt.Errorf("profile %s, file name %q: %w", p.Name, f.Name, err)
		}
	}
	cmdline, err := boot.Expand(p.Cmdline, s.vars(a))
	if err != nil {
		return nil, fmt.Errorf("profile %s, kernel command line: %w", p.Name, err)
	}
	words, err := cmdlineWords(cmdline)
	if err != nil {
		return nil, fmt.Errorf("profile %s, kernel command line: %w", p.Name, err)
	}
	for _, f := range p.Initrds {
		words = append(words, "initrd="+f.Name)
	}
	mac := a.client.MAC.String()
	words = append(words,
		"BOOTIF=01-"+strings.ReplaceAll(mac, ":", "-"),
		// The system that is booted does not know our certificate.
		"ecboot.url="+s.url("/phone-home/"+mac))

	var b bytes.Buffer
	begin(&b, a)
	if isPC(a.client.Platform()) {
		b.WriteString(inQEMU)
		words = append(words, "${qemu}")
	}
	fmt.Fprintf(&b, "set stage kernel\nkernel %s %s || goto failed\n", a.url(artifactPath(p.Name, p.Kernel.Name)), strings.Join(words, " "))
	b.WriteString("set stage initrd\n")
	for _, f := range p.Initrds {
		fmt.Fprintf(&b, "initrd --name %s %s || goto failed\n", f.Name, a.url(artifactPath(p.Name, f.Name)))
	}
	b.WriteString("set stage linux\nboot || goto failed\n")
	end(&b, a)
	return b.Bytes(), nil
}

// inQEMU keeps Linux from looking for ticks of the timer in a machine that QEMU
// emulates: on a host that is busy they come too late, and it panics before it can
// tell anybody. With KVM it knows that it is virtual, and does not look.
const inQEMU = "iseq ${manufacturer} QEMU && set qemu no_timer_check ||\n"

// isPC reports whether a platform has an x86 processor.
func isPC(p boot.Platform) bool {
	return p == boot.BIOS || p == boot.UEFIIA32 || p == boot.UEFIX64
}

// programScript starts the program that the firmware of the machine could have
// been given as well: for an iPXE that came some other way. A program out of a
// tree goes on asking by TFTP, so it must come from there.
func (s *Server) programScript(a asker) ([]byte, error) {
	p := a.profile
	program := p.Programs[a.client.Platform()]
	if program == "" {
		return nil, fmt.Errorf("profile %s has no program for %s", p.Name, a.client.Platform())
	}
	for elem := range strings.SplitSeq(p.Name+"/"+program, "/") {
		if err := checkName(elem); err != nil {
			return nil, fmt.Errorf("profile %s, program %q: %w", p.Name, program, err)
		}
	}
	from := "tftp://" + s.host() + (&url.URL{Path: "/" + program}).EscapedPath()
	switch {
	case program == p.EFI.Name:
		from = a.url(artifactPath(p.Name, program))
	case boot.IsScript(program):
		// The files that it names without a host come from where it came from.
		from = a.url((&url.URL{Path: "/" + program}).EscapedPath())
	}
	var b bytes.Buffer
	begin(&b, a)
	fmt.Fprintf(&b, "set stage nbp\nchain %s || goto failed\n", from)
	end(&b, a)
	return b.Bytes(), nil
}

// vars are what a command line may name.
func (s *Server) vars(a asker) boot.Vars {
	addr := a.machine.Addr
	if addr == "" && a.addr.IsValid() {
		addr = a.addr.String()
	}
	return boot.Vars{
		MAC:     a.client.MAC.String(),
		UUID:    cmp.Or(a.machine.UUID, a.client.UUID),
		Name:    a.machine.Name,
		Address: addr,
		Server:  s.cfg.Addr.String(),
		Profile: a.profile.Name,
	}
}

func begin(b *bytes.Buffer, a asker) {
	fmt.Fprintf(b, "#!ipxe\necho ecboot: profile %s for %s\n", a.profile.Name, a.client.MAC)
}

// end is where a script goes that has failed. It says so on the console and to
// the server, and leaves the machine in iPXE's shell: whoever comes sees the
// message and can try again by hand.
func end(b *bytes.Buffer, a asker) {
	// errno changes with every command that fails, so it is kept.
	b.WriteString(":failed\nset err ${errno:hexraw}\n")
	fmt.Fprintf(b, "echo ecboot: profile %s failed at ${stage}, see https://ipxe.org/${err}\n", a.profile.Name)
	fmt.Fprintf(b, "imgfetch --name report %s?stage=${stage}&errno=${err} ||\n", a.url("/failed/"+a.client.MAC.String()))
	b.WriteString("echo ecboot: this is the shell of iPXE; \"exit\" goes on to the next boot device\nshell\n")
}

// localScript goes on to the next boot device. To UEFI, status 0 would mean that
// the machine has been booted.
func localScript(a asker) []byte {
	return fmt.Appendf(nil, "#!ipxe\necho ecboot: %s boots its local disk\nexit 1\n", a.client.MAC)
}

// idleScript is for a machine that is to boot nothing from here. The next boot
// device is right for it in most cases; there is time to read why, and a shell
// for whom it is not.
func idleScript(a asker) []byte {
	return fmt.Appendf(nil, `#!ipxe
echo ecboot: no profile for %s
echo ecboot: give the machine a profile, or set a default one, on the server
prompt --timeout 15000 ecboot: any key opens a shell, the next boot device follows in 15 s && shell ||
exit 1
`, a.client.MAC)
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
