package config

import (
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
)

// bare begins files whose guests need no more than a backend.
const (
	vm   = "[guest.a]\nbackend = \"qemu\"\n"
	card = "[[guest.a.nic]]\nsegment = \"private\"\n" // of vm, 3 and 4
	disk = "[[guest.a.disk]]\n"
	cont = "[guest.a]\nbackend = \"container\"\nroot = \"/r\"\n"
	tiny = "[guest.a]\nbackend = \"microvm\"\n"
	bare = "[guest.b]\nbackend = \"microvm\"\n" // another, with nothing to get wrong
)

func TestGuestMistakes(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []string // LINE:COLUMN: KEY: and a part of what follows
	}{
		// Names.
		{"name with a dot", "[guest.\"a.b\"]\n", []string{`1:8: guest."a.b": "a.b" is not the name of a guest: letters, digits, - and _ are, a letter or digit first; write a name such as [guest.web]`}},
		{"name of a directory", "[guest.\"..\"]\n", []string{`guest.".."`}},
		{"name of an option", "[guest.-a]\n", []string{"1:8: guest.-a: \"-a\" is not the name"}},
		{"no name", "[guest.\"\"]\n", []string{`guest."": "" is not the name`}},
		{"long name", "[guest." + strings.Repeat("x", 49) + "]\n", []string{"is longer than the 48 bytes"}},
		{"names in two cases", tiny + "[guest.A]\nbackend = \"microvm\"\n", []string{"3:8: guest.A: differs from guest.a in case alone"}},
		{"name of a key", "[guest.memory]\n", []string{`1:8: guest.memory: is a table; write a size`}},
		{"guest that is no table", "[guest]\nweb = 1\n", []string{"2:1: guest.web: is not a key of ecboot's"}},
		{"node name", "[guest.a]\nbackend = \"microvm\"\nnode_name = \"a.b\"\n", []string{"3:13: guest.a.node_name: \"a.b\" has a dot"}},
		{"node name twice", tiny + "node_name = \"n\"\n" + bare + "node_name = \"N\"\n", []string{"6:13: guest.b.node_name: N is guest.a's too, in line 1"}},

		{"one CD too many", "[guest.a]\nbackend = \"qemu\"\nmachine = \"pc\"\nboot = \"disk\"\n" + strings.Repeat("[[guest.a.disk]]\npath = \"/cd\"\niso = true\n", 5), []string{`17:11: guest.a.disk[4].bus: "ide" of a pc has 4 places, which are taken; write "scsi", or for a disk "virtio"`}},

		// Backends.
		{"no backend", "[guest.a]\nmemory = \"1G\"\n", []string{`1:8: guest.a.backend: is missing; write backend = "qemu", "microvm" or "container"`}},
		{"unknown backend and names", "[guest.a]\nbackend = \"xen\"\nprofile = \"x\"\n[[guest.a.nic]]\nsegment = \"x\"\n", []string{
			`2:11: guest.a.backend: "xen" is not`, `3:11: guest.a.profile: there is no profile "x"`, `5:11: guest.a.nic[0].segment: there is no segment "x"`}},
		{"unknown backend", "[guest.a]\nbackend = \"xen\"\n", []string{`2:11: guest.a.backend: "xen" is not one of the words that this key knows; write "qemu", "microvm" or "container"`}},
		{"unknown key", tiny + "memry = \"1G\"\n", []string{"3:1: guest.a.memry: is not a key of ecboot's; did you mean memory?"}},
		{"key of a card", tiny + "segment = \"lan\"\n", []string{"segment belongs in [[guest.NAME.nic]]"}},
		{"keys of containers", tiny + "root = \"/r\"\nephemeral = true\nuid_base = 65536\n", []string{
			"3:8: guest.a.root: is for containers; leave it out, and give the virtual machine a [[guest.a.disk]]", "guest.a.ephemeral: is for containers; write it in [[guest.a.disk]]", "guest.a.uid_base: is for containers"}},
		{"keys of machines", cont + "memory = \"1G\"\nprofile = \"default\"\ntpm = true\n" + disk, []string{
			"4:10: guest.a.memory: is for virtual machines; leave it out; guest.a.limits bounds", "5:11: guest.a.profile: is for virtual machines; leave it out; a container starts from root", "6:7: guest.a.tpm", "7:11: guest.a.disk"}},
		{"keys of firmware", tiny + "firmware = \"uefi\"\ntpm = true\ngraphics = \"vnc\"\nboot = \"disk\"\nchain_url = \"http://1.2.3.4/x\"\n", []string{
			`guest.a.firmware: is for virtual machines with firmware; leave it out, or write backend = "qemu"`, "guest.a.tpm: is for", "guest.a.graphics: is for", `6:8: guest.a.boot: is always "direct"`, "guest.a.chain_url: is for"}},
		{"microvm for arm64", "[guest]\narch = \"arm64\"\n" + tiny, []string{"guest.a.arch: is arm64, which has no microvm"}},
		{"no root", "[guest.a]\nbackend = \"container\"\n", []string{"1:8: guest.a.root: is missing; write the path of a directory"}},
		{"state of nothing", cont + "ephemeral = true\nstate = \"/s\"\n", []string{"5:9: guest.a.state: is given beside ephemeral"}},
		{"user ids", cont + "uid_base = 1000\n", []string{"4:12: guest.a.uid_base: 1000 is not a multiple of 65536"}},
		{"signal", cont + "stop_signal = \"kill\"\n", []string{`"kill" is not the name of a signal`}},
		{"user", tiny + "user = \"a:b\"\n", []string{`"a:b" cannot be the name of a user`}},
		{"cpu", tiny + "cpu = \"host kvm\"\n", []string{"cannot be the name of a CPU model"}},
		{"cpu of a host without KVM", tiny + "cpu = \"host\"\naccel = \"tcg\"\n", []string{`3:7: guest.a.cpu: "host" needs KVM`}},
		{"extra", tiny + "extra = [\"-device\", \"\"]\n", []string{"3:21: guest.a.extra[1]"}},

		// Starts, ends and limits.
		{"restart", tiny + "restart = \"on-crash\"\n", []string{`write "on-failure", "always" or "never"`}},
		{"times", tiny + "restart_delay = \"1m\"\nrestart_max = \"10s\"\ndelay = \"2h\"\nstop_timeout = \"0s\"\n", []string{
			"4:15: guest.a.restart_max: 10s is shorter than restart_delay, which is 1m", "guest.a.delay: \"2h\" is longer than 1h", "guest.a.stop_timeout: \"0s\" is shorter than 1s"}},
		{"order", tiny + "order = 2000\n", []string{"2000 is out of range; write a place in the order of starts, -1000 to 1000"}},
		{"memory for a chain", vm + "chain_url = \"http://10.0.2.2/\"\nmemory = \"64M\"\n" + "[[guest.a.nic]]\nuser = true\n", []string{
			`4:10: guest.a.memory: 64M is too little for chain_url on no segment: iPXE unpacks itself over the script that it is started with; write "128M" or more`}},
		{"limits", tiny + "[guest.a.limits]\ncpu = \"1.5\"\nmemory = \"1G\"\ntasks = 1\nio_weight = 0\n", []string{
			`4:7: guest.a.limits.cpu: "1.5" is not a number of percent`, "5:10: guest.a.limits.memory: 1G is not more than the guest's own 1G, and QEMU needs some besides; write 1280M or more", "6:9: guest.a.limits.tasks", "7:13: guest.a.limits.io_weight"}},
		{"share of a processor", tiny + "limits = {cpu = \"0%\"}\n", []string{"is not between 1% and 102400%"}},

		// Network cards.
		{"card on nothing", tiny + "[[guest.a.nic]]\nuser = false\n", []string{"3:11: guest.a.nic[0]: is on no network; write segment, macvtap or user"}},
		{"card on two", tiny + "[[guest.a.nic]]\nsegment = \"private\"\nuser = true\n", []string{"5:8: guest.a.nic[0].user: is given beside segment"}},
		{"parent of nothing", tiny + "[[guest.a.nic]]\nmacvtap = \"\"\n", []string{`4:11: guest.a.nic[0].macvtap: "" is empty; write the name of a network interface`}},
		{"card that is a word", vm + "boot = \"disk\"\nnic = \"e1000\"\n" + disk, []string{"guest.a.nic: is a string; write [[guest.a.nic]], in two brackets, before the keys of each nic"}},
		{"macvlan of a machine", tiny + "[[guest.a.nic]]\nmacvlan = \"eth0\"\n", []string{"guest.a.nic[0].macvlan: is for containers; write macvtap"}},
		{"macvtap of a container", cont + "[[guest.a.nic]]\nmacvtap = \"eth0\"\n", []string{"guest.a.nic[0].macvtap: is for virtual machines; write macvlan"}},
		{"user network of a container", cont + "[[guest.a.nic]]\nuser = true\n", []string{"guest.a.nic[0].user: is QEMU's; write segment or macvlan"}},
		{"unknown segment", tiny + "[[guest.a.nic]]\nsegment = \"lan\"\n", []string{`4:11: guest.a.nic[0].segment: there is no segment "lan"; choose one of private, or declare [segment.lan]`}},
		{"segment without a place", "[segment.x]\ninterface = \"eth0\"\n" + tiny + "[[guest.a.nic]]\nsegment = \"x\"\n", []string{"6:11: guest.a.nic[0].segment: x is eth0 as it is, which has no place for guests"}},
		{"segment behind a relay", "[segment.x]\nbridge = \"br0\"\n[segment.y]\nrelay = \"10.9.0.1/24\"\n" + tiny + "[[guest.a.nic]]\nsegment = \"y\"\n", []string{"y is behind a relay"}},
		{"private segment with a long name", "[segment.classroom-two]\n" + tiny + "[[guest.a.nic]]\nsegment = \"classroom-two\"\n", []string{"ec-classroom-two would be too long for its bridge"}},
		{"macvtap on a port", "[segment.x]\nuplink = \"eth0\"\n" + tiny + "[[guest.a.nic]]\nmacvtap = \"eth0\"\n", []string{`6:11: guest.a.nic[0].macvtap: eth0 is a port of the bridge of segment.x, and such a link carries nothing else; write segment = "x" in its place`}},
		{"model of a microvm", tiny + card + "model = \"e1000\"\nrom = \"none\"\nboot = 1\n", []string{"guest.a.nic[0].model: is for virtual machines with firmware", "nic[0].rom", "nic[0].boot"}},
		{"place where none is asked for", vm + "boot = \"direct\"\n" + card + "boot = 1\n", []string{`6:8: guest.a.nic[0].boot: is a place in the firmware's order, and boot is "direct"; leave out one of the two`}},
		{"place twice", vm + card + "boot = 1\n" + card + "boot = 1\n", []string{"8:8: guest.a.nic[1].boot: 1 is the place of nic[0], too"}},
		{"name of no link", vm + card + "[[guest.a.nic]]\nuser = true\nname = \"x\"\n", []string{"7:8: guest.a.nic[1].name: is given beside user"}},
		{"mac of a group", tiny + card + "mac = \"01:00:5e:00:00:01\"\n", []string{"5:7: guest.a.nic[0].mac: \"01:00:5e:00:00:01\" is a group address"}},
		{"mac twice", tiny + card + "mac = \"525400000001\"\n" + bare + "[[guest.b.nic]]\nuser = true\nmac = \"52-54-00-00-00-01\"\n", []string{"10:7: guest.b.nic[0].mac: 52:54:00:00:00:01 is guest.a.nic[0]'s too, in line 5"}},
		{"mac of a machine", tiny + card + "mac = \"525400000001\"\n[[machine]]\nmac = \"525400000001\"\nname = \"node1\"\n", []string{
			"5:7: guest.a.nic[0].mac: 52:54:00:00:00:01 is machine[0]'s too, in line 7; give each one of its own; a [[machine]] that is this guest has its node_name as name"}},
		{"address of a stranger", tiny + card + "address = \"10.9.0.1\"\n", []string{"5:11: guest.a.nic[0].address: 10.9.0.1 is outside of 10.77.0.0/24"}},
		{"address twice", tiny + card + "address = \"10.77.0.9\"\n[[machine]]\nname = \"x\"\naddress = \"10.77.0.9\"\n", []string{"5:11: guest.a.nic[0].address: 10.77.0.9 is machine[0]'s too, in line 8"}},
		{"address on no segment", tiny + "[[guest.a.nic]]\nuser = true\naddress = \"10.77.0.9\"\n", []string{"5:11: guest.a.nic[0].address: is kept on segments alone"}},

		// Links.
		{"link of the host's", cont + "[[guest.a.nic]]\nmacvlan = \"eth0\"\nname = \"eth0\"\n", []string{"6:8: guest.a.nic[0].name: eth0 is a link of the host's, named by guest.a.nic[0] in line 4; write another name"}},
		{"default name of a link of the host's", "[segment.x]\nbridge = \"mv-eth0\"\n" + cont + "[[guest.a.nic]]\nmacvlan = \"eth0\"\n", []string{"guest.a.nic[0].name: is missing, and mv-eth0 is a link of the host's, named by segment.x in line 1"}},
		{"loopback", cont + card + "name = \"lo\"\n", []string{"lo is there already"}},
		{"default name on the parent of a segment", "[segment.x]\nparent = \"enx525400123456\"\n" + cont + "[[guest.a.nic]]\nsegment = \"x\"\n", []string{"guest.a.nic[0].name: is missing, and mv-enx525400123456 would be longer"}},
		{"long link", cont + "[[guest.a.nic]]\nmacvlan = \"enx525400123456\"\n", []string{"4:11: guest.a.nic[0].name: is missing, and mv-enx525400123456 would be longer than the 15 bytes"}},
		{"two links of one name", cont + card + card, []string{"6:11: guest.a.nic[1].name: is missing, and host0 is the name of nic[0], too"}},
		{"two macvtaps of one name", tiny + "[[guest.a.nic]]\nmacvtap = \"eth0\"\nname = \"t0\"\n" + bare + "[[guest.b.nic]]\nmacvtap = \"eth0\"\nname = \"t0\"\n", []string{"guest.b.nic[0].name: t0 is a link of the host's, named by guest.a.nic[0] in line 3"}},
		{"bridge of a private segment", tiny + "[[guest.a.nic]]\nmacvtap = \"eth0\"\nname = \"ec-private\"\n", []string{"ec-private is a link of the host's"}},

		// Disks.
		{"format", vm + card + disk + "format = \"vmdk\"\n", []string{`6:10: guest.a.disk[0].format: "vmdk" is not one of the words that this key knows; write "qcow2" or "raw"`}},
		{"size", vm + card + disk + "size = \"1K\"\n" + disk + "size = \"16\"\n", []string{`6:8: guest.a.disk[0].size: "1K" is less than 1M`, `"16" is not a size: a whole number and one of the units K, M and G is`}},
		{"CD", vm + card + disk + "iso = true\nformat = \"qcow2\"\nsize = \"1G\"\nbus = \"virtio\"\nbase = \"/b\"\nread_only = true\n", []string{
			"5:11: guest.a.disk[0].path: is missing, and a disk that is only read is never made", "7:10: guest.a.disk[0].format: of a CD is raw", "8:8: guest.a.disk[0].size: is for disks that are made, and one with iso is not",
			`9:7: guest.a.disk[0].bus: "virtio" has no CDs`, "10:8: guest.a.disk[0].base: is for disks that are written to", "11:13: guest.a.disk[0].read_only: says what iso says"}},
		{"CD of a microvm", tiny + disk + "path = \"/x\"\niso = true\n", []string{"5:7: guest.a.disk[0].iso: is for virtual machines with firmware"}},
		{"read only", vm + card + disk + "read_only = true\nephemeral = true\npath = \"/x\"\n", []string{"guest.a.disk[0].ephemeral: is for disks that are written to, and one with read_only is not"}},
		{"raw overlay", vm + card + disk + "base = \"/b\"\nformat = \"raw\"\n", []string{"7:10: guest.a.disk[0].format: of a disk with a base is qcow2"}},
		{"overlay over itself", vm + card + disk + "base = \"/b\"\npath = \"/b\"\n", []string{"6:8: guest.a.disk[0].base: is the disk itself"}},
		{"bus of a microvm", tiny + disk + "bus = \"ide\"\n", []string{"4:7: guest.a.disk[0].bus: of a microvm is virtio"}},
		{"read only on ide", vm + card + disk + "read_only = true\npath = \"/x\"\nbus = \"ide\"\n", []string{`8:7: guest.a.disk[0].bus: "ide" has no disks that are only read`}},
		{"bus of arm64", vm + "arch = \"arm64\"\n" + card + disk + "bus = \"ide\"\n", []string{`guest.a.disk[0].bus: "ide" is not there for arm64`}},
		{"one image for two", tiny + disk + "path = \"/x\"\n" + bare + "[[guest.b.disk]]\npath = \"/y/../x\"\nread_only = true\n", []string{"8:8: guest.b.disk[0].path: /x is guest.a.disk[0]'s too, in line 4, and one of the two writes to it; give each one of its own, or let both only read it"}},
		{"base that is written", tiny + disk + "path = \"/x\"\n" + disk + "base = \"/x\"\n", []string{"6:8: guest.a.disk[1].base: /x is guest.a.disk[0]'s too"}},
		{"default path of another", "[server]\nstate_dir = \"/s\"\n" + tiny + disk + bare + "[[guest.b.disk]]\npath = \"/s/guests/a/disk0.qcow2\"\n", []string{"9:8: guest.b.disk[0].path: /s/guests/a/disk0.qcow2 is guest.a.disk[0]'s too, in line 5"}},
		{"one state for two", cont + "state = \"/s\"\n[guest.b]\nbackend = \"container\"\nroot = \"/r\"\nstate = \"/s\"\n", []string{"8:9: guest.b.state: /s is guest.a's too, in line 4"}},

		// Shares.
		{"share of nothing", tiny + "[[guest.a.share]]\n", []string{"guest.a.share[0].source: is missing", "guest.a.share[0].target: is missing; write the tag"}},
		{"tag", tiny + "[[guest.a.share]]\nsource = \"/x\"\ntarget = \"a b\"\n", []string{`5:10: guest.a.share[0].target: "a b" is no mount tag`}},
		{"path in a container", cont + "[[guest.a.share]]\nsource = \"/x\"\ntarget = \"srv/\"\ndriver = \"9p\"\n", []string{`6:10: guest.a.share[0].target: "srv/" is not an absolute path below /`, "7:10: guest.a.share[0].driver: is for virtual machines"}},
		{"target twice", cont + "[[guest.a.share]]\nsource = \"/x\"\ntarget = \"/p\"\n[guest.a.zfs.\"/p\"]\npool = \"tank\"\ndataset = \"x\"\n", []string{`6:10: guest.a.share[0].target: /p is zfs."/p"'s, too`}},
		{"zfs that is no table", tiny + "zfs = \"tank\"\n", []string{`3:7: guest.a.zfs: is a string; write one table per path in the guest, such as [guest.a.zfs."/persist"]`}},
		{"long path of zfs", tiny + "[guest.a.zfs.\"/var/lib/postgresql/15/main/base\"]\npool = \"tank\"\ndataset = \"x\"\n", []string{"3:14: guest.a.zfs.\"/var/lib/postgresql/15/main/base\": is longer than the 31 bytes that a mount tag can have"}},
		{"key of zfs", tiny + "[guest.a.zfs.\"/p[0]\"]\npol = \"tank\"\n", []string{`4:1: guest.a.zfs."/p[0]".pol: is not a key of ecboot's; did you mean pool?`}},

		// What is booted.
		{"nothing to boot from", vm, []string{`1:8: guest.a.boot: "network" needs a network card; write [[guest.a.nic]], too, or boot = "disk"`}},
		{"no disk", vm + "boot = \"disk\"\n", []string{`3:8: guest.a.boot: "disk" needs one`}},
		{"unknown profile", vm + "profile = \"x\"\n" + card, []string{`3:11: guest.a.profile: there is no profile "x"; choose one of default, local, or declare [profile.x]`}},
		{"microvm without a kernel", "[profile.menu]\nscript = \"m\"\n" + tiny + "profile = \"menu\"\n", []string{"5:11: guest.a.profile: menu has no kernel that could be booted directly; choose a profile with a kernel"}},
		{"direct without a kernel", "[profile.default]\nscript = \"m\"\n" + vm + "boot = \"direct\"\n", []string{"3:8: guest.a.profile: default has no kernel"}},
		{"profile of nobody's network", vm + "profile = \"default\"\n[[guest.a.nic]]\nmacvtap = \"eth0\"\n", []string{"3:11: guest.a.profile: is what ecboot serves, and it serves none of the guest's networks"}},
		{"profile behind a macvtap on the servers' link", "[segment.x]\ninterface = \"eth0\"\n" + vm + "profile = \"default\"\n[[guest.a.nic]]\nmacvtap = \"eth0\"\n", []string{"5:11: guest.a.profile: is what ecboot serves, and it serves none"}},
		{"BIOS without a ROM", vm + "rom = \"none\"\n" + card, []string{`guest.a.boot: "network" needs the ROM of a network card with BIOS`}},
		{"chain and profile", vm + "profile = \"default\"\nchain_url = \"http://1.2.3.4/\"\n" + card, []string{"4:13: guest.a.chain_url: is given beside profile"}},
		{"chain and direct", vm + "boot = \"direct\"\nchain_url = \"http://1.2.3.4/\"\n", []string{`4:13: guest.a.chain_url: is for boots over the network, and boot is "direct"`}},
		{"chain of UEFI", vm + "firmware = \"uefi\"\nchain_url = \"http://1.2.3.4/\"\n[[guest.a.nic]]\nuser = true\n", []string{"4:13: guest.a.chain_url: is handed to UEFI by the servers of a segment, and the guest is on none"}},
		{"how long a boot may take", tiny + "timeout = \"1m\"\n", []string{"3:1: guest.a.timeout: is not a key of ecboot's; timeout belongs in [guest]"}},
		{"words behind a chain", vm + "append = \"quiet\"\nchain_url = \"http://1.2.3.4/\"\n" + card, []string{"3:10: guest.a.append: is for the kernel of a profile, and chain_url is in its place; leave out one of the two"}},
		{"words for the disk", vm + "append = \"quiet\"\nprofile = \"local\"\n" + card, []string{"3:10: guest.a.append: is for the kernel of a profile, and local has none; leave it out"}},
		{"words for a script", "[profile.menu]\nscript = \"m\"\n" + vm + "append = \"quiet\"\nprofile = \"menu\"\n" + card, []string{"5:10: guest.a.append: is for the kernel of a profile, and menu has none; leave it out"}},
		{"chain on a segment without servers", "[segment.x]\nbridge = \"br0\"\nmode = \"off\"\n" + vm + "chain_url = \"http://1.2.3.4/\"\n[[guest.a.nic]]\nsegment = \"x\"\n", []string{
			`6:13: guest.a.chain_url: is handed out by the servers of a segment, and the mode of segment.x is "off"; write another mode there, or a network card elsewhere`}},
		{"profile without a network", vm + "boot = \"disk\"\nprofile = \"default\"\n" + disk, []string{"4:11: guest.a.profile: is what ecboot serves over the network, and the guest has no network card"}},
		{"words without a network", vm + "boot = \"disk\"\nappend = \"quiet\"\n" + disk, []string{"4:10: guest.a.append: is for the kernel of a profile, and the guest has no network card to load one by; leave it out"}},
		{"chain without a network", vm + "boot = \"disk\"\nchain_url = \"http://1.2.3.4/\"\n" + disk, []string{"4:13: guest.a.chain_url: is loaded over the network, and the guest has no network card"}},
		{"chain to nowhere", vm + "chain_url = \"\"\n" + card, []string{`3:13: guest.a.chain_url: "" does not begin with http://, https:// or tftp://`}},
		{"chain to two words", vm + "chain_url = \"http://h/a b\"\n" + card, []string{`is not a URL`}},
		{"chain to a file", vm + "chain_url = \"file:///x\"\n" + card, []string{`does not begin with http://`}},
		{"chain to no host", vm + "chain_url = \"http:///x\"\n" + card, []string{`names no host`}},

		// Firmware.
		{"firmware of arm64", vm + "arch = \"arm64\"\nfirmware = \"bios\"\n" + card, []string{"4:12: guest.a.firmware: bios is not there for arm64"}},
		{"machine of arm64", vm + "arch = \"arm64\"\nmachine = \"pc\"\n" + card, []string{"4:11: guest.a.machine: is for amd64"}},
		{"Secure Boot of a BIOS", vm + "secure_boot = true\n" + card, []string{`3:15: guest.a.secure_boot: is UEFI's, and firmware is "bios"; write firmware = "uefi", too`}},
		{"Secure Boot on a pc", vm + "secure_boot = true\nfirmware = \"uefi\"\nmachine = \"pc\"\n" + card, []string{`guest.a.secure_boot: needs machine "q35"`}},
		{"Secure Boot and ROMs", vm + "secure_boot = true\nfirmware = \"uefi\"\nrom = \"default\"\n" + card, []string{`5:7: guest.a.rom: is not run with secure_boot`}},
		{"Secure Boot and a card's ROM", vm + "secure_boot = true\nfirmware = \"uefi\"\n" + card + "rom = \"default\"\n", []string{`7:7: guest.a.nic[0].rom: is not run with secure_boot`}},

		// The assertions of the ipxe-qemu module.
		{"no name server for a name", vm + "chain_url = \"http://boot.example/menu.ipxe\"\n" + card, []string{
			"3:13: guest.a.chain_url: names the host boot.example, and segment.private tells machines no name server; write dns in [segment.private], or an address in the URL"}},
		{"no parent of the LAN's card", vm + card + "[[guest.a.nic]]\nmodel = \"virtio-net-pci\"\n", []string{"5:11: guest.a.nic[1]: is on no network"}},
		{"no root to serve", vm + "[[guest.a.nic]]\nuser = true\n", []string{`guest.a.boot: "network" finds nothing to boot on QEMU's own network; write chain_url, or a network card on a segment`}},
	} {
		t.Run(tt.name, func(t *testing.T) { checkMistakes(t, tt.text, tt.want) })
	}
}

func checkMistakes(t *testing.T, text string, want []string) {
	t.Helper()
	_, err := Parse("f", []byte(text))
	var problems Problems
	if !errors.As(err, &problems) {
		t.Fatalf("error %v, want Problems", err)
	}
	if len(problems) != len(want) {
		t.Fatalf("got %d problems, want %d:\n%v", len(problems), len(want), err)
	}
	for i, want := range want {
		if got := problems[i].String(); !strings.Contains(got, want) {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

// TestGuestsWithoutMistakes is what the checks must leave alone.
func TestGuestsWithoutMistakes(t *testing.T) {
	for name, text := range map[string]string{
		"disk alone":                  vm + "boot = \"disk\"\n" + disk,
		"disk and local":              vm + "boot = \"disk\"\nprofile = \"local\"\n" + card + disk,
		"a LAN's own boot servers":    vm + "[[guest.a.nic]]\nmacvtap = \"eth0\"\n",
		"macvtap beside the servers":  "[segment.x]\nparent = \"eth0\"\n" + vm + "profile = \"default\"\n[[guest.a.nic]]\nmacvtap = \"eth0\"\n",
		"macvtap beside a tagged one": "[segment.x]\nuplink = \"eth0\"\nvlan = 7\n" + vm + "[[guest.a.nic]]\nmacvtap = \"eth0\"\n",
		"direct without a network":    vm + "boot = \"direct\"\n",
		"chain through a user's own":  vm + "chain_url = \"http://boot.example/${net0/mac}\"\n[[guest.a.nic]]\nuser = true\n",
		"chain in little memory":      vm + "chain_url = \"http://10.0.2.2/\"\nmemory = \"65M\"\n[[guest.a.nic]]\nuser = true\n",
		"chain by a segment":          vm + "chain_url = \"http://10.77.0.9/\"\nmemory = \"64M\"\n" + card,
		"chain with a name server":    "[segment.private]\ndns = [\"10.77.0.1\"]\n" + vm + "chain_url = \"http://boot.example/\"\n" + card,
		"chain with another option":   "[segment.private]\noptions = {6 = \"10.77.0.1\"}\n" + vm + "chain_url = \"http://boot.example/\"\n" + card,
		"chain to an address":         vm + "chain_url = \"http://[fd00::1]:8080/\"\n" + card,
		"images that are only read":   tiny + disk + "path = \"/x\"\nread_only = true\n" + bare + "[[guest.b.disk]]\nbase = \"/x\"\n[[guest.b.disk]]\npath = \"/x\"\nephemeral = true\n",
		"one target for two guests":   tiny + "[[guest.a.share]]\nsource = \"/x\"\ntarget = \"x\"\n" + bare + "[[guest.b.share]]\nsource = \"/x\"\ntarget = \"x\"\n",
		"a machine that is a guest":   tiny + "node_name = \"web\"\n" + card + "mac = \"525400000001\"\n[[machine]]\nmac = \"525400000001\"\nname = \"WEB\"\n",
		"one without a name":          tiny + card + "mac = \"525400000001\"\n[[machine]]\nmac = \"525400000001\"\n",
		"a machine that will be one":  tiny + card + "mac = \"525400000001\"\n[[machine]]\nmac = \"525400000001\"\nname = \"host-a\"\n",
		"Secure Boot by inheritance":  "[guest]\nsecure_boot = true\nfirmware = \"uefi\"\n" + vm + card + bare,
		"arm64":                       vm + "arch = \"arm64\"\n" + card + disk + "path = \"/x.iso\"\niso = true\n",
		"user ids":                    cont + "uid_base = 0x80000\n",
		"limits of a container":       cont + "[guest.a.limits]\nmemory = \"64M\"\ncpu = \"50%\"\n",
	} {
		c, err := Parse("f", []byte(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		checkRoundTrip(t, c)
	}
}

// fiveGuests is the example of docs/guests.md.
func fiveGuests(t *testing.T) []byte {
	t.Helper()
	page, err := os.ReadFile("../../docs/guests.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(page), "```toml\n")
	text, _, end := strings.Cut(text, "```\n")
	if !ok || !end {
		t.Fatal("docs/guests.md has no example")
	}
	return []byte(text)
}

func TestParseGuests(t *testing.T) {
	c, err := Parse("/etc/ecboot/ecboot.toml", []byte(`
[segment.lan]
uplink = "eth0"
[guest.web]
backend = "qemu"
firmware = "uefi"
secure_boot = true
memory = "2G"
tpm = true
autostart = true
order = -5
delay = "10s"
restart = "always"
boot = "disk"
extra = ["-device", "virtio-balloon-pci"]
limits = {cpu = "150%", memory = "3G", tasks = 512, io_weight = 50}
nic = [{segment = "lan", mac = "02:01:27:00:00:01", boot = 1}, {macvtap = "eth1", model = "e1000e", name = "t0"}]
disk = [{}, {path = "a.iso", iso = true}, {base = "/b.qcow2", bus = "scsi"}]
[[guest.web.share]]
source = "www"
target = "www"
read_only = true
[guest.web.zfs."/persist"]
pool = "tank"
dataset = "safe/web"
[guest.web.zfs."/logs"]
pool = "tank"
dataset = "logs"
host_mountpoint = "/var/log/web"
[guest.small]
backend = "microvm"
node_name = "tiny"
[guest.dns]
backend = "container"
root = "dns.squashfs"
[[guest.dns.nic]]
macvlan = "eth1"
[guest]
cpus = 4
nic = "e1000"
base_mac = "02:02:02:00:00:00"
`))
	if err != nil {
		t.Fatal(err)
	}
	defaults := Default().Guest
	defaults.CPUs, defaults.NIC = 4, "e1000"
	if c.Guest != defaults || c.BaseMAC != (boot.MAC{2, 2, 2}) {
		t.Errorf("defaults: %+v %v", c.Guest, c.BaseMAC)
	}
	web := newGuest("web", defaults)
	web.Backend, web.TPM, web.Autostart, web.Order, web.Delay, web.Restart, web.Boot = BackendQEMU, true, true, -5, 10*time.Second, RestartAlways, BootDisk
	web.Firmware, web.SecureBoot, web.ROM, web.Memory = "uefi", true, "none", 2<<30
	web.Extra = []string{"-device", "virtio-balloon-pci"}
	web.Limits = Limits{CPU: 150, Memory: 3 << 30, Tasks: 512, IOWeight: 50}
	web.NICs = []GuestNIC{{Segment: "lan", MAC: boot.MAC{2, 1, 0x27, 0, 0, 1}, Boot: 1, Model: "e1000", ROM: "none"}, {Macvtap: "eth1", Model: "e1000e", ROM: "none", Name: "t0"}}
	web.Disks = []GuestDisk{{Format: "qcow2", Size: 16 << 30, Bus: "virtio"}, {Path: "/etc/ecboot/a.iso", Format: "raw", ISO: true, Bus: "ide"}, {Base: "/b.qcow2", Format: "qcow2", Bus: "scsi"}}
	web.Shares = []GuestShare{{Source: "/etc/ecboot/www", Target: "www", ReadOnly: true}}
	web.ZFS = []GuestZFS{{"/persist", "tank", "safe/web", ""}, {"/logs", "tank", "logs", "/var/log/web"}}
	small := newGuest("small", Guest{Arch: "amd64", Memory: 1 << 30, CPUs: 4, Accel: "auto"})
	small.Backend, small.Node, small.Boot, small.Graphics = BackendMicroVM, "tiny", BootDirect, ""
	dns := newGuest("dns", Guest{})
	dns.Backend, dns.Root, dns.Boot, dns.Graphics = BackendContainer, "/etc/ecboot/dns.squashfs", "", ""
	dns.NICs = []GuestNIC{{Macvlan: "eth1"}}
	want := []DeclaredGuest{web, small, dns}
	normalize(c)
	if len(c.Guests) != len(want) {
		t.Fatalf("%d guests", len(c.Guests))
	}
	for i := range want {
		if !reflect.DeepEqual(c.Guests[i], want[i]) {
			t.Errorf("got\n%+v\nwant\n%+v", c.Guests[i], want[i])
		}
	}
	checkRoundTrip(t, c)
	for i, path := range []string{"/s/guests/web/disk0.qcow2", "/etc/ecboot/a.iso", "/s/guests/web/disk2.qcow2"} {
		if got := c.Guests[0].DiskPath("/s", i); got != path {
			t.Errorf("disk %d: %s", i, got)
		}
	}
	if g, ok := c.DeclaredGuest("dns"); !ok || g.VM() {
		t.Errorf("%+v", g)
	}
}

// TestInheritedAppend keeps the words of [guest] from guests without a kernel of
// ours, which are not to get a profile of their own for them.
func TestInheritedAppend(t *testing.T) {
	c, err := Parse("f", []byte("[guest]\nappend = \"quiet\"\n[profile.menu]\nscript = \"m\"\n"+vm+card+
		strings.ReplaceAll(vm+"profile = \"local\"\n"+card, ".a", ".disk")+strings.ReplaceAll(vm+"profile = \"menu\"\n"+card, ".a", ".menu")+
		strings.ReplaceAll(vm+"chain_url = \"http://1.2.3.4/\"\n"+card, ".a", ".chain")))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"quiet", "", "", ""} {
		if g := c.Guests[i]; g.Append != want {
			t.Errorf("%s has %q, want %q", g.Name, g.Append, want)
		}
	}
}

func TestNodeNames(t *testing.T) {
	const text = "[guest.my_web]\nbackend = \"microvm\"\n[guest.db]\nbackend = \"microvm\"\nnode_name = \"db\"\n"
	c, r := parse("f", []byte(text), "big.lab.example")
	if r.err() != nil || c.Guests[0].Node != "big-my-web" || c.Guests[1].Node != "db" {
		t.Errorf("%+v, %v", c.Guests, r.err())
	}
	_, r = parse("f", []byte(text), strings.Repeat("x", 60))
	if err := r.err(); err == nil || !strings.Contains(err.Error(), "1:8: guest.my_web.node_name: is missing, and xxx") {
		t.Errorf("long name of a host: %v", err)
	}
	_, r = parse("f", []byte(text+"[guest.my-web]\nbackend = \"microvm\"\n"), "big")
	if err := r.err(); err == nil || !strings.Contains(err.Error(), "guest.my-web.node_name: big-my-web is guest.my_web's too, in line 1") {
		t.Errorf("the same default for two: %v", err)
	}
}

func TestFiveGuests(t *testing.T) {
	c, err := Parse("/etc/ecboot/ecboot.toml", fiveGuests(t))
	if err != nil {
		t.Fatal(err)
	}
	backends := map[Backend]bool{}
	for _, g := range c.Guests {
		backends[g.Backend] = true
	}
	if len(c.Guests) != 5 || len(backends) != 3 {
		t.Errorf("%d guests on %d backends", len(c.Guests), len(backends))
	}
	checkRoundTrip(t, c)
}

// TestLoadWithChecks adds what other packages know.
func TestLoadWithChecks(t *testing.T) {
	path := t.TempDir() + "/ecboot.toml"
	if err := os.WriteFile(path, []byte(tiny+"extra = [\"-S\"]\nmemory = 5\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := Load(path, func(c *Config) []Complaint {
		return []Complaint{{Key: "guest.a.extra[0]", What: c.Guests[0].Extra[0] + " contradicts guest.a", Other: "guest.a", Instead: "leave it out"}, {Key: "guest.a.memory", What: "is odd"}, {Key: "guest.a.zfs", What: "is missing"}}
	})
	want := []string{path + ":1:8: guest.a.zfs: is missing", path + ":3:10: guest.a.extra[0]: -S contradicts guest.a, in line 1; leave it out", path + ":4:10: guest.a.memory: 5 is an integer"}
	var problems Problems
	if !errors.As(err, &problems) || len(problems) != len(want) {
		t.Fatalf("got %v", err)
	}
	for i, p := range problems {
		if !strings.HasPrefix(p.String(), want[i]) {
			t.Errorf("got  %v\nwant %s", p, want[i])
		}
	}
	if slices.ContainsFunc(problems, func(p Problem) bool { return p.Line == 0 }) {
		t.Error("a complaint has no line")
	}
}
