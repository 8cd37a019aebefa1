//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// termTimeout is how long programs may take to end before they are killed.
const termTimeout = 5 * time.Second

// ending is taken for good by what ends the machine, and for a moment by what
// starts a program, so that none starts behind the end's back.
var ending sync.Mutex

// heedButton switches the machine off when its power button is pressed. Netlink
// tells of that from the first moment, without device nodes, which are mounted
// later by others.
func heedButton() error {
	family, err := netlink.GenlFamilyGet("acpi_event")
	if err != nil {
		return err
	}
	if len(family.Groups) != 1 {
		return fmt.Errorf("%d groups of ACPI events", len(family.Groups))
	}
	s, err := nl.Subscribe(unix.NETLINK_GENERIC)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(family.Groups[0].ID)); err != nil {
		s.Close()
		return err
	}
	go func() {
		for {
			msgs, _, err := s.Receive()
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				fmt.Printf("ecboot: no power button any more: %v\n", err)
				return
			}
			for _, m := range msgs {
				if isButton(m.Data) {
					fmt.Println("ecboot: power button")
					powerOff()
				}
			}
		}
	}()
	return nil
}

// isButton reports whether an event says that a power button was pressed. It is
// struct acpi_genl_event of drivers/acpi/event.c in attribute 1; types other
// than 0x80 are wake-ups.
func isButton(event []byte) bool {
	const attrEvent, typeAt, pressed = 1, 36, 0x80
	if len(event) < nl.SizeofGenlmsg {
		return false
	}
	attrs, err := nl.ParseRouteAttr(event[nl.SizeofGenlmsg:])
	if err != nil {
		return false
	}
	for _, a := range attrs {
		if a.Attr.Type == attrEvent && len(a.Value) >= typeAt+4 && bytes.HasPrefix(a.Value, []byte("button/power\x00")) {
			return binary.NativeEndian.Uint32(a.Value[typeAt:]) == pressed
		}
	}
	return false
}

// powerOff ends all other programs, unmounts what is mounted and switches off.
func powerOff() {
	ending.Lock()
	gone := make(chan struct{})
	go func() {
		reap()
		close(gone)
	}()
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		_ = unix.Kill(-1, sig) // an error when nobody is left
		select {
		case <-gone:
		case <-time.After(termTimeout):
		}
	}
	unix.Sync()
	table, err := os.ReadFile("/proc/mounts")
	if err != nil {
		fmt.Printf("ecboot: not unmounted: %v\n", err)
	}
	for _, dir := range mountPoints(string(table)) {
		if unix.Unmount(dir, 0) != nil {
			_ = unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "") // what is neither was synced
		}
	}
	err = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	fmt.Printf("ecboot: power off: %v\n", err)
}

// mountPoints lists the directories of /proc/mounts, the last mounted first.
func mountPoints(table string) (dirs []string) {
	for line := range strings.Lines(table) {
		_, line, _ = strings.Cut(line, " ")
		dir, _, _ := strings.Cut(line, " ")
		for _, escape := range [][2]string{{`\040`, " "}, {`\011`, "\t"}, {`\012`, "\n"}, {`\043`, "#"}, {`\134`, `\`}} {
			dir = strings.ReplaceAll(dir, escape[0], escape[1])
		}
		dirs = append(dirs, dir)
	}
	slices.Reverse(dirs)
	return dirs
}

// reap waits for all children; those of process 1 are all programs whose
// parents have ended.
func reap() {
	for {
		if _, err := unix.Wait4(-1, nil, 0, nil); errors.Is(err, unix.ECHILD) {
			return
		}
	}
}
