package netroot

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/every-channel/ecboot/internal/boot"
)

// Signed is the chain of boot programs that firmware with Secure Boot runs, as
// paths: shim, which Microsoft has signed, and the GRUB that this shim trusts.
type Signed struct {
	Shim    string
	GRUB    string
	Manager string // of shim's keys; it may be missing
}

// suffixes end the names of EFI programs for a platform, which shim has
// compiled in: it asks for grubx64.efi beside itself.
var suffixes = map[boot.Platform]string{boot.UEFIX64: "x64", boot.UEFIARM64: "aa64", boot.UEFIIA32: "ia32"}

// ShimName is what the firmware of a platform asks for.
func ShimName(p boot.Platform) string { return "shim" + suffixes[p] + ".efi" }

// SecurePlatforms are the platforms that have a shim.
func SecurePlatforms() []boot.Platform {
	return []boot.Platform{boot.UEFIX64, boot.UEFIARM64, boot.UEFIIA32}
}

// Programs are the chain's files by the names that the platform's firmware and
// shim ask for, name to path.
func (s Signed) Programs(p boot.Platform) map[string]string {
	programs := map[string]string{}
	for begin, path := range map[string]string{"shim": s.Shim, "grub": s.GRUB, "mm": s.Manager} {
		if path != "" && suffixes[p] != "" {
			programs[begin+suffixes[p]+".efi"] = path
		}
	}
	return programs
}

// debian is where Debian and Ubuntu install the chain of a platform. The
// installers' packages, which exist for all platforms on any, have it too.
var debian = map[boot.Platform]struct{ shims, grubs []string }{
	boot.UEFIX64: {
		[]string{"/usr/lib/shim/shimx64.efi.signed", "/usr/lib/debian-installer/images/*/amd64/text/debian-installer/amd64/bootnetx64.efi"},
		[]string{"/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed", "/usr/lib/debian-installer/images/*/amd64/text/debian-installer/amd64/grubx64.efi"},
	},
	boot.UEFIARM64: {
		[]string{"/usr/lib/shim/shimaa64.efi.signed", "/usr/lib/debian-installer/images/*/arm64/text/debian-installer/arm64/bootnetaa64.efi"},
		[]string{"/usr/lib/grub/arm64-efi-signed/grubnetaa64.efi.signed", "/usr/lib/debian-installer/images/*/arm64/text/debian-installer/arm64/grubaa64.efi"},
	},
	boot.UEFIIA32: {
		[]string{"/usr/lib/shim/shimia32.efi.signed", "/usr/lib/debian-installer/images/*/i386/text/debian-installer/i386/bootnetia32.efi"},
		[]string{"/usr/lib/grub/i386-efi-signed/grubnetia32.efi.signed", "/usr/lib/debian-installer/images/*/i386/text/debian-installer/i386/grubia32.efi"},
	},
}

// FindSigned completes a chain whose paths are given in part with what this
// machine has installed.
func FindSigned(p boot.Platform, given Signed) (Signed, error) { return findSigned("/", p, given) }

// findSigned looks below root, which is / outside of tests.
func findSigned(root string, p boot.Platform, s Signed) (Signed, error) {
	if suffixes[p] == "" {
		return s, fmt.Errorf("there is no shim for %s", p)
	}
	if s.Shim == "" {
		s.Shim = firstFile(root, debian[p].shims)
	}
	if s.GRUB == "" {
		s.GRUB = firstFile(root, debian[p].grubs)
	}
	if s.Manager == "" {
		s.Manager = firstFile(root, []string{"/usr/lib/shim/mm" + suffixes[p] + ".efi.signed"})
	}
	var missing []string
	if s.Shim == "" {
		missing = append(missing, "shim")
	}
	if s.GRUB == "" {
		missing = append(missing, "a GRUB for the network")
	}
	if len(missing) > 0 {
		return s, fmt.Errorf("for Secure Boot %s needs %s: install Debian's shim-signed and grub-efi-amd64-signed, or name the files in [server]", p, strings.Join(missing, " and "))
	}
	return s, nil
}

// firstFile returns the first file that one of the patterns matches, of several
// versions the newest.
func firstFile(root string, patterns []string) string {
	for _, pattern := range patterns {
		found, _ := filepath.Glob(filepath.Join(root, pattern))
		for _, path := range slices.Backward(found) {
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
				return path
			}
		}
	}
	return ""
}

// GRUB is what a signed GRUB says of itself.
type GRUB struct {
	Version string // of GNU's release, such as "2.12"; empty if it does not say
	// HTTP means that it can go on by HTTP where firmware and shim have begun
	// with it. That of Debian 12 cannot: it knows TFTP only, and Secure Boot
	// lets it load no more modules.
	HTTP bool
}

var (
	// grubRequest is in every GRUB that has its module http.
	grubRequest = []byte(" HTTP/1.1\r\nHost: ")
	// sbat is the line of the GRUB itself in the table by which shim knows the
	// generations of what it starts (shim, SBAT.md).
	sbat = regexp.MustCompile(`(?m)^grub,\d+,[^,\n]*,grub,(\d[^,\n]*),`)
)

// InspectGRUB reads what a GRUB can do out of its file.
func InspectGRUB(path string) (GRUB, error) {
	program, err := os.ReadFile(path)
	if err != nil {
		return GRUB{}, err
	}
	g := GRUB{HTTP: bytes.Contains(program, grubRequest)}
	if m := sbat.FindSubmatch(program); m != nil {
		g.Version = string(m[1])
	}
	return g, nil
}

// FollowsProxy reports whether it fetches its files from a proxyDHCP server that
// named it, and not from the server that gave the address: since 2.12.
func (g GRUB) FollowsProxy() bool {
	var major, minor int
	_, err := fmt.Sscanf(g.Version, "%d.%d", &major, &minor)
	return err != nil || major > 2 || major == 2 && minor >= 12
}
