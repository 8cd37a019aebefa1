package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// Parts that only some declared guests need.
const (
	PartARM64     = "qemu-system-aarch64"
	PartDisk      = "qemu-img"
	PartTPM       = "swtpm"
	PartVirtiofs  = "virtiofsd"
	PartContainer = "systemd-nspawn"
	PartZFS       = "zfs"
	PartAccounts  = "accounts"
)

// part is a program that Debian has in the package pkg.
type part struct {
	id, title string
	pkg       string
	whom      string   // the guests that need it
	instead   string   // how they do without; empty: not at all
	also      []string // where it may be that PATH does not lead to
}

var parts = []part{
	{id: PartARM64, title: "QEMU for ARM64", pkg: "qemu-system-arm", whom: "guests of ARM64"},
	{id: PartDisk, title: "disk images", pkg: "qemu-utils", whom: "guests whose disks are to be made"},
	{id: PartTPM, title: "TPM", pkg: "swtpm", whom: "guests with a TPM"},
	{id: PartVirtiofs, title: "shares", pkg: "virtiofsd, in Debian 12 part of qemu-system-common", whom: "guests with the driver virtiofs",
		instead: "others have 9p, which is slower", also: []string{"/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"}},
	{id: PartContainer, title: "containers", pkg: "systemd-container", whom: "containers"},
	{id: PartZFS, title: "ZFS", pkg: "zfsutils-linux", whom: "guests with datasets", also: []string{"/usr/sbin/zfs", "/sbin/zfs"}},
}

// guestParts looks at what some guests need. It fails for what a guest of the
// configuration cannot do without.
func (env Env) guestParts() (checks []Check) {
	for _, p := range parts {
		c := Check{ID: p.id, Title: p.title, Needs: []string{verbUp}}
		if path, ok := env.find(p); ok {
			checks = append(checks, c.is(OK, path, ""))
			continue
		}
		checks = append(checks, env.lacking(c, p.id+" is not in PATH", p.whom, p.instead, "install it (Debian: apt install "+p.pkg+")"))
	}
	return append(checks, env.accounts())
}

// lacking judges what is not there by who needs it.
func (env Env) lacking(c Check, found, whom, instead, mend string) Check {
	if guests := env.Guests[c.ID]; len(guests) > 0 {
		return c.is(Fail, found+"; needed by "+strings.Join(guests, ", "), mend)
	}
	found += "; only " + whom + " need it"
	if instead != "" {
		found += ", " + instead
	}
	return c.is(Warn, found, mend)
}

func (env Env) find(p part) (path string, ok bool) {
	if path, err := env.LookPath(p.id); err == nil {
		return path, true
	}
	for _, path := range p.also {
		if _, err := os.Stat(env.Root + path); err == nil {
			return path, true
		}
	}
	return "", false
}

// accounts looks for whom QEMU runs as, and for the operators.
func (env Env) accounts() Check {
	c := Check{ID: PartAccounts, Title: "user and group", Needs: []string{verbUp}}
	if env.OperatorGroup == "" {
		return c.is(Skip, "not looked for", "")
	}
	if env.UID != 0 {
		return c.is(Skip, "root's 'ecboot up' has them; yours runs QEMU as yourself, and nobody else drives its guests", "")
	}
	const user, group = "ecboot-guest", "ecboot" // which 'ecboot install' knows
	var missing, mend []string
	for _, entry := range []struct{ file, what, name, so, made string }{
		{"/etc/passwd", "user", user, "QEMU runs as nobody", user},
		{"/etc/group", "group", env.OperatorGroup, "only root drives guests", group},
	} {
		data, err := os.ReadFile(env.Root + entry.file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return c.is(Skip, err.Error(), "")
		}
		if !strings.Contains("\n"+string(data), "\n"+entry.name+":") {
			missing = append(missing, fmt.Sprintf("no %s %s, so %s", entry.what, entry.name, entry.so))
			how := "'ecboot install', and what it says to do next"
			if entry.name != entry.made {
				how = "groupadd --system " + entry.name
			}
			if !slices.Contains(mend, how) {
				mend = append(mend, how)
			}
		}
	}
	if len(missing) == 0 {
		return c.is(OK, fmt.Sprintf("QEMU runs as %s; the group %s may drive guests", user, env.OperatorGroup), "")
	}
	return c.is(Warn, strings.Join(missing, "; "), strings.Join(mend, "; "))
}
