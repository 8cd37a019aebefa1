package vmm

import (
	"fmt"
	"strings"
)

// managed are QEMU's options that contradict what is managed here, with what to
// use instead in a declared guest.
var managed = map[string]string{
	"daemonize":   "it takes QEMU out of our hands: leave it out",
	"no-reboot":   "it ends the machine where a boot program restarts it: leave it out",
	"S":           "the machine is started as soon as somebody listens: leave it out",
	"no-shutdown": "a guest that switches itself off has ended: leave it out",
	"no-acpi":     "it takes away the power button: leave it out",
	"preconfig":   "the machine would wait for ever: leave it out",
	"readconfig":  "write the arguments themselves",
	"action":      "what a panic and a reset do is decided for all guests: leave it out",
	"name":        "use the guest's name, or node_name",
	"machine":     "use machine",
	"M":           "use machine",
	"accel":       "use accel",
	"enable-kvm":  `use accel = "kvm"`,
	"cpu":         "use cpu",
	"smp":         "use cpus",
	"m":           "use memory",
	"kernel":      "use a profile and boot",
	"initrd":      "use a profile and boot",
	"append":      "use append",
	"bios":        "use firmware",
	"pflash":      "use firmware",
	"boot":        "use boot",
	"serial":      "the serial port is the console: leave it out",
	"mon":         "the monitor is in use: leave it out",
	"monitor":     "the monitor is in use: leave it out",
	"qmp":         "the monitor is in use: leave it out",
	"qmp-pretty":  "the monitor is in use: leave it out",
	"nographic":   `it takes the serial port and the monitor: graphics = "none" is the default`,
	"display":     "use graphics",
	"curses":      "use graphics",
	"vnc":         "use graphics",
	"spice":       "use graphics",
	"vga":         "use graphics",
	"hda":         "use disk",
	"hdb":         "use disk",
	"hdc":         "use disk",
	"hdd":         "use disk",
	"cdrom":       "use disk with iso",
	"snapshot":    "use ephemeral for a disk",
	"nic":         "use nic",
	"net":         "use nic",
	"sandbox":     "QEMU always runs in its sandbox: leave it out",
	"runas":       "use user",
	"chroot":      "QEMU runs as its user, in its sandbox: leave it out",
	"pidfile":     "ecboot guest show says the process id: leave it out",
	"incoming":    "guests do not migrate: leave it out",
	"loadvm":      "guests do not migrate: leave it out",
	"mem-path":    "use memory",
	"add-fd":      "the descriptors are counted: leave it out",
}

// CheckExtra refuses the first of a declared guest's extra arguments that
// contradicts what is managed for it, and says what to use instead.
func CheckExtra(args []string) error {
	for _, a := range args {
		if advice, ok := managed[option(a)]; ok {
			return fmt.Errorf("%s: %s", a, advice)
		}
	}
	return nil
}

// option is the name of the option that an argument is, or nothing. QEMU takes
// one dash or two.
func option(arg string) string {
	name, ok := strings.CutPrefix(arg, "-")
	if !ok {
		return ""
	}
	return strings.TrimPrefix(name, "-")
}
