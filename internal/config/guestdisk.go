package config

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// idePlaces is how many disks and CDs a machine can have on IDE.
var idePlaces = map[string]int{"q35": 6, "pc": 4}

// disks looks at disks one by one.
func (k guestCheck) disks() {
	if !k.g.VM() {
		return
	}
	onIDE := 0
	for i, d := range k.g.Disks {
		at := fmt.Sprintf("disk[%d]", i)
		if !k.ok(k.key(at)) {
			continue
		}
		if d.Bus == "ide" {
			onIDE++
		}
		needless := func(key, why string) {
			if k.said(at + "." + key) {
				k.wrong(at+"."+key, why, "leave it out")
			}
		}
		kind := "read_only"
		if d.ISO {
			kind = "iso"
			needless("read_only", "says what iso says")
			if d.Format != "raw" {
				k.wrong(at+".format", "of a CD is raw", "leave it out")
			}
			if d.Bus == "virtio" {
				k.wrong(at+".bus", `"virtio" has no CDs`, `write "ide" or "scsi", or leave it out`)
			}
			if k.g.Backend == BackendMicroVM {
				k.wrong(at+".iso", "is for virtual machines with firmware", `leave it out, or write backend = "qemu"`)
			}
		}
		switch {
		case d.ISO || d.ReadOnly:
			if d.Path == "" {
				k.wrong(at+".path", "is missing, and a disk that is only read is never made", "write the path of an image")
			}
			needless("size", "is for disks that are made, and one with "+kind+" is not")
			needless("base", "is for disks that are written to, and one with "+kind+" is not")
			needless("ephemeral", "is for disks that are written to, and one with "+kind+" is not")
		case d.Base != "":
			if d.Format != "qcow2" {
				k.wrong(at+".format", "of a disk with a base is qcow2, which can keep what is different", `write "qcow2", or leave it out`)
			}
			if d.Base == d.Path {
				k.wrong(at+".base", "is the disk itself", "write another path for one of the two")
			}
		}
		switch {
		case k.g.Backend == BackendMicroVM && d.Bus != "virtio" && k.said(at+".bus"):
			k.wrong(at+".bus", "of a microvm is virtio", "leave it out")
		case d.Bus == "ide" && d.ReadOnly && !d.ISO:
			k.wrong(at+".bus", "\"ide\" has no disks that are only read", `write "virtio" or "scsi"`)
		case k.g.Backend == BackendQEMU && k.g.Arch == "arm64" && d.Bus == "ide":
			k.wrong(at+".bus", "\"ide\" is not there for arm64", `write "virtio" or "scsi"`)
		case d.Bus == "ide" && onIDE > idePlaces[k.g.Machine] && idePlaces[k.g.Machine] > 0:
			k.wrong(at+".bus", fmt.Sprintf("\"ide\" of a %s has %d places, which are taken", k.g.Machine, idePlaces[k.g.Machine]), `write "scsi", or for a disk "virtio"`)
		}
	}
}

// maxTag is the longest mount tag of QEMU's 9p, shorter than virtiofs's.
const maxTag = 31

// shares looks at shares one by one.
func (k guestCheck) shares() {
	first := map[string]string{} // by what they are in the guest
	for _, z := range k.g.ZFS {
		key := join("zfs", z.Guest)
		first[path.Clean(z.Guest)] = key
		if k.g.VM() && len(z.Guest) > maxTag {
			k.wrong(key, fmt.Sprintf("is longer than the %d bytes that a mount tag can have", maxTag), "write a shorter path, and mount it where it belongs in the guest")
		}
	}
	for i, s := range k.g.Shares {
		at := fmt.Sprintf("share[%d]", i)
		if !k.ok(k.key(at)) {
			continue
		}
		if s.Source == "" {
			k.wrong(at+".source", "is missing", "write a directory of this machine's")
		}
		switch {
		case s.Target == "" && k.g.VM():
			k.wrong(at+".target", "is missing", `write the tag under which the guest mounts it, such as "www"`)
		case s.Target == "":
			k.wrong(at+".target", "is missing", `write where the container sees it, such as "/srv/www"`)
		case k.g.VM() && (len(s.Target) > maxTag || strings.ContainsFunc(s.Target, func(c rune) bool { return c <= ' ' || c > '~' || c == ',' })):
			k.wrong(at+".target", fmt.Sprintf("%q is no mount tag", s.Target), fmt.Sprintf("write up to %d letters, digits and the like", maxTag))
		case !k.g.VM() && (path.Clean("/"+s.Target) != s.Target || s.Target == "/"):
			k.wrong(at+".target", fmt.Sprintf("%q is not an absolute path below /", s.Target), "write one such as \"/srv/www\"")
		}
		if !k.g.VM() && k.said(at+".driver") {
			k.wrong(at+".driver", "is for virtual machines", "leave it out")
		}
		if other, taken := first[s.Target]; taken && s.Target != "" {
			k.wrong(at+".target", s.Target+" is "+other+"'s, too", "give each a target of its own")
		} else {
			first[s.Target] = at
		}
	}
}

// checkImages wants nobody to write an image that another guest has.
func (r *reader) checkImages(c *Config) {
	type use struct {
		key    string
		writes bool
	}
	uses := map[string][]use{}
	for _, g := range c.Guests {
		if g.Backend == "" || !r.ok(join("guest", g.Name)) {
			continue
		}
		for i, d := range g.Disks {
			at := fmt.Sprintf("%s.disk[%d]", join("guest", g.Name), i)
			if d.Path != "" || c.Server.StateDir != "" {
				p := g.DiskPath(c.Server.StateDir, i)
				uses[p] = append(uses[p], use{at + ".path", d.writes()})
			}
			if d.Base != "" && d.Base != d.Path {
				uses[d.Base] = append(uses[d.Base], use{at + ".base", false})
			}
		}
		if g.State != "" {
			uses[g.State] = append(uses[g.State], use{join("guest", g.Name) + ".state", true})
		}
	}
	for _, p := range slices.Sorted(maps.Keys(uses)) {
		for i, mine := range uses[p] {
			if !r.ok(mine.key) {
				continue
			}
			for _, other := range uses[p][:i] {
				if !mine.writes && !other.writes {
					continue
				}
				line := r.lineOf(other.key)
				r.problemAt(mine.key, fmt.Sprintf("%s is %s too, in line %d, and one of the two writes to it", p, other.key[:strings.LastIndexByte(other.key, '.')]+"'s", line), "give each one of its own, or let both only read it")
				break
			}
		}
	}
}
