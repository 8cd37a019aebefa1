//go:build linux

// Command guest is the first program of an ecboot initramfs. It says on the
// console that userland is reached, configures the network by DHCP, reports to
// the server that booted the machine and leaves the rest to u-root's init.
//
// It runs as process 1 and becomes u-root's init by exec, which needs no second
// process and no mounts but /proc. Package initramfs carries its source inside
// the ecboot binary; so it must not import anything of ecboot.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// reportBudget bounds the way from the marker to the result line when a
	// server waits for a report.
	reportBudget = 20 * time.Second
	// idleBudget is for machines that nobody waits for: their user wants the
	// shell, with a network if there is one.
	idleBudget = 3 * time.Second
)

func main() {
	uptime := bootTime()
	fmt.Printf("ecboot: userland after %.2fs\n", uptime.Seconds())

	procErr := mountProc()
	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		fmt.Printf("ecboot: kernel command line not readable: %v\n", errors.Join(procErr, err))
	}
	cmd := parseCmdline(string(text))

	budget := idleBudget
	if cmd.url != "" {
		budget = reportBudget
	}
	ctx, cancel := context.WithTimeout(context.Background(), budget)
	netErr := configure(ctx, cmd.bootIF)
	switch {
	case cmd.url == "" && netErr != nil:
		fmt.Printf("ecboot: no network: %v\n", netErr)
	case cmd.url == "":
	case netErr != nil:
		fmt.Printf("ecboot: not reported: %v\n", netErr)
	default:
		if err := report(ctx, cmd.url, uptime); err != nil {
			fmt.Printf("ecboot: not reported: %v\n", err)
		} else {
			fmt.Printf("ecboot: reported to %s\n", cmd.url)
		}
	}
	cancel()
	if err := loopbackUp(); err != nil {
		fmt.Printf("ecboot: %v\n", err)
	}

	if cmd.powerOff {
		unix.Sync()
		err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
		fmt.Printf("ecboot: power off: %v\n", err)
	}
	if os.Getpid() == 1 {
		become()
	}
}

// bootTime returns how long ago the kernel began to run.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// mountProc makes /proc/cmdline readable; become undoes it, because u-root's
// init mounts /proc itself and complains about one that is there.
func mountProc() error {
	if os.Getpid() != 1 {
		return nil
	}
	if err := os.MkdirAll("/proc", 0o555); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

// become replaces process 1 by the init that the image has. It returns only to
// a kernel panic, so it says what was tried.
func become() {
	if err := unix.Unmount("/proc", unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		fmt.Printf("ecboot: unmount /proc: %v\n", err)
	}
	// inito is the /init of a layer that this program took the place of.
	for _, path := range []string{"/inito", "/bbin/init", "/bin/sh"} {
		err := unix.Exec(path, append([]string{path}, os.Args[1:]...), os.Environ())
		if !errors.Is(err, unix.ENOENT) {
			fmt.Printf("ecboot: %s: %v\n", path, err)
		}
	}
	fmt.Println("ecboot: the image has none of /inito, /bbin/init and /bin/sh to run")
}
