// Command guest is the init of the tests' guests: it loads the modules that lie
// beside it, then does what it is told on its console, a line at a time, and
// answers each line with its number and the outcome.
package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"
)

func main() {
	for _, m := range [][3]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		os.Mkdir(m[1], 0o755)
		syscall.Mount(m[0], m[1], m[0], 0, "")
	}
	modules, _ := filepath.Glob("/modules/*.ko") // in their order
	for _, name := range modules {
		if err := load(name); err != nil {
			fmt.Println(name, err)
		}
	}
	os.WriteFile("/proc/sys/kernel/printk", []byte("1"), 0) // lines of the kernel's would tear ours
	fmt.Println("guest is ready")
	lines := bufio.NewScanner(os.Stdin)
	for n := 1; lines.Scan(); n++ {
		answer, err := do(strings.Split(lines.Text(), "|"))
		if err != nil {
			answer = fmt.Sprint("error ", err)
		} else {
			answer = "ok " + answer
		}
		fmt.Printf("#%d %s\n##%[1]d\n", n, answer)
	}
}

func load(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	none := []byte{0}
	if _, _, errno := syscall.Syscall(313, f.Fd(), uintptr(unsafe.Pointer(&none[0])), 0); errno != 0 { // finit_module on x86-64
		return errno
	}
	return nil
}

// do runs one command, whose words are its arguments.
func do(words []string) (string, error) {
	arg := func(i int) string {
		if i < len(words) {
			return words[i]
		}
		return ""
	}
	switch words[0] {
	case "mount": // type, source, directory, options
		os.MkdirAll(arg(3), 0o755)
		return "", syscall.Mount(arg(2), arg(3), arg(1), 0, arg(4))
	case "read":
		b, err := os.ReadFile(arg(1))
		return fmt.Sprintf("%q", b), err
	case "write":
		return "", os.WriteFile(arg(1), []byte(arg(2)), 0o640)
	case "owner":
		st, err := os.Stat(arg(1))
		if err != nil {
			return "", err
		}
		sys := st.Sys().(*syscall.Stat_t)
		return fmt.Sprint(sys.Uid, ":", sys.Gid), nil
	case "list":
		names, err := filepath.Glob(arg(1))
		return fmt.Sprintf("%q", names), err
	case "put": // disk, byte, MiB: writes that byte, durably
		return "", put(arg(1), arg(2), arg(3))
	case "get": // disk: its first 16 bytes
		f, err := os.Open(arg(1))
		if err != nil {
			return "", err
		}
		defer f.Close()
		head := make([]byte, 16)
		_, err = f.Read(head)
		return fmt.Sprintf("%q", bytes.TrimRight(head, "\x00")), err
	case "tpm": // command in hex: its response
		return tpm(arg(1))
	case "button": // waits for the power button and heeds it
		return "", button()
	case "poweroff":
		return "", syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
	case "reboot":
		return "", syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
	}
	return "", fmt.Errorf("unknown command %q", words)
}

func put(disk, what, mib string) error {
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var n int
	fmt.Sscan(mib, &n)
	for range n {
		if _, err := f.Write(bytes.Repeat([]byte(what[:1]), 1<<20)); err != nil {
			return err
		}
	}
	return f.Sync()
}

func tpm(command string) (string, error) {
	b, err := hex.DecodeString(command)
	if err != nil {
		return "", err
	}
	// Package os would not block: the kernel then takes the command and, until it
	// has begun with it, says that there is no response.
	fd, err := syscall.Open("/dev/tpm0", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	f := os.NewFile(uintptr(fd), "/dev/tpm0")
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return "", err
	}
	response := make([]byte, 4096)
	n, err := f.Read(response)
	return fmt.Sprintf("%x", response[:n]), err
}

func button() error {
	devices, _ := filepath.Glob("/dev/input/event*")
	pressed := make(chan struct{})
	for _, name := range devices {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		go func() {
			event := make([]byte, 24)
			for {
				if _, err := f.Read(event); err != nil {
					return
				}
				if binary.LittleEndian.Uint16(event[16:]) == 1 && binary.LittleEndian.Uint16(event[18:]) == 116 { // KEY_POWER
					pressed <- struct{}{}
				}
			}
		}()
	}
	fmt.Println("listening to", len(devices))
	<-pressed
	return syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
}
