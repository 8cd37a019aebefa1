package lan

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// isolatedVar marks a process that Isolate has moved; its value is the user id
// before the move.
const isolatedVar = "ECBOOT_ISOLATED_UID"

// Isolated reports whether this process runs in a namespace that Isolate made,
// and the user id that it had before.
func Isolated() (uid int, ok bool) {
	uid, err := strconv.Atoi(os.Getenv(isolatedVar))
	return uid, err == nil
}

// Isolate moves the whole process into a network namespace of its own, without
// root also into a user namespace in which it is root. It does so by executing
// the program again with the same arguments: process id, terminal and parent
// stay the same, and Isolated is true afterwards. It returns only on error.
//
// A namespace without a name lives as long as its processes, so a private
// segment cannot be left behind.
func Isolate() error {
	env := append(os.Environ(), isolatedVar+"="+strconv.Itoa(os.Getuid()))
	if os.Geteuid() != 0 {
		return isolateRootless(env)
	}
	// A namespace belongs to a thread; exec makes the thread that has it the
	// whole process.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("new network namespace: %w: allow CAP_SYS_ADMIN, or use an existing bridge with --bridge", err)
	}
	return fmt.Errorf("start again in the namespace: %w", syscall.Exec("/proc/self/exe", os.Args, env))
}

// isolateRootless goes through unshare(1), which is in every Debian: a process
// with several threads, as every Go program is, may not enter a user namespace.
func isolateRootless(env []string) error {
	if err := exec.Command("unshare", "--map-root-user", "--net", "--", "true").Run(); err != nil {
		return fmt.Errorf("this user may not make a private network (unshare --map-root-user --net: %w): run as root, or see 'ecboot doctor' for the switch that forbids it", err)
	}
	path, err := exec.LookPath("unshare")
	if err != nil {
		return err
	}
	// By name: /proc/self/exe would be unshare.
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	args := append([]string{"unshare", "--map-root-user", "--net", "--", exe}, os.Args[1:]...)
	return fmt.Errorf("start again in the namespace: %w", syscall.Exec(path, args, env))
}
