//go:build linux

// Command guest is the first program of an ecboot initramfs. It says on the
// console that userland is reached, configures the network by DHCP, reports to
// the server that booted the machine and leaves the rest to u-root's init.
//
// It stays process 1, unless a layer's own /init takes its place, reaps orphans and
// heeds the power button. Package initramfs carries its source inside the ecboot
// binary; so it must not import anything of ecboot.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// reportBudget bounds the way from the marker to the result line when a
	// server waits for a report. A switch with spanning tree is silent for 30 s
	// after a port comes up, which it does again when a driver takes over.
	reportBudget = 45 * time.Second
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
	if os.Getpid() == 1 {
		// Go ends at these, and the end of process 1 is a kernel panic.
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM)
		if err := heedButton(); err != nil {
			fmt.Printf("ecboot: no power button: %v\n", err)
		}
	}

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
		powerOff()
	}
	if os.Getpid() == 1 {
		handOver()
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

// mountProc makes /proc/cmdline readable; handOver undoes it, because u-root's
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

// handOver runs the init that the image has until that and all that it has
// started end. Then process 1 ends, which is a kernel panic.
func handOver() {
	ending.Lock()
	if err := unix.Unmount("/proc", unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		fmt.Printf("ecboot: unmount /proc: %v\n", err)
	}
	startInit()
	ending.Unlock()
	reap()
	ending.Lock()
}

func startInit() {
	for _, path := range []string{"/inito", "/bbin/init", "/bin/sh"} {
		argv, env := append([]string{path}, os.Args[1:]...), os.Environ()
		var err error
		if path == "/inito" {
			// The /init of a layer that this program took the place of wants
			// to be process 1, and has its own ear for the power button.
			err = unix.Exec(path, argv, env)
		} else {
			_, err = syscall.ForkExec(path, argv, &syscall.ProcAttr{Env: env, Files: []uintptr{0, 1, 2}})
		}
		if err == nil {
			return
		}
		if !errors.Is(err, unix.ENOENT) {
			fmt.Printf("ecboot: %s: %v\n", path, err)
		}
	}
	fmt.Println("ecboot: the image has none of /inito, /bbin/init and /bin/sh to run")
}
