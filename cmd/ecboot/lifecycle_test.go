package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/images"
	"github.com/every-channel/ecboot/internal/nettest"
	"github.com/every-channel/ecboot/internal/timeline"
)

// started is an ecboot that runs in the background.
type started struct {
	cmd    *exec.Cmd
	stderr *bufio.Reader
}

func start(t *testing.T, args ...string) *started {
	t.Helper()
	s := &started{cmd: ecbootCommand(t, t.Context(), args...)}
	pipe, err := s.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.stderr = bufio.NewReader(pipe)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.cmd.Process.Kill()
		s.cmd.Wait()
	})
	return s
}

// until reads standard error up to a line with this text, whatever the width of
// its columns.
func (s *started) until(t *testing.T, text string) {
	t.Helper()
	var seen strings.Builder
	for {
		line, err := s.stderr.ReadString('\n')
		seen.WriteString(line)
		if strings.Contains(strings.Join(strings.Fields(line), " "), text) {
			return
		}
		if err != nil {
			t.Fatalf("ecboot ended without saying %q:\n%s", text, seen.String())
		}
	}
}

// end waits for the end and returns the exit code.
func (s *started) end(t *testing.T) int {
	t.Helper()
	io.Copy(io.Discard, s.stderr)
	var exit *exec.ExitError
	if err := s.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return s.cmd.ProcessState.ExitCode()
}

// childOf returns a pidfd of a program, such as QEMU, that a process has started.
func childOf(t *testing.T, parent int, program string) (pidfd int) {
	t.Helper()
	// It is started by one of the parent's threads.
	children, err := filepath.Glob("/proc/" + strconv.Itoa(parent) + "/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range children {
		list, _ := os.ReadFile(file)
		for _, pid := range strings.Fields(string(list)) {
			name, _ := os.ReadFile("/proc/" + pid + "/comm")
			if strings.HasPrefix(string(name), program) {
				n, _ := strconv.Atoi(pid)
				if pidfd, err = unix.PidfdOpen(n, 0); err == nil {
					t.Cleanup(func() { unix.Close(pidfd) })
					return pidfd
				}
			}
		}
	}
	t.Fatalf("no %s is running", program)
	return -1
}

// awaitEnd waits for the end of the process behind a pidfd.
func awaitEnd(t *testing.T, pidfd int) {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 30_000)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			t.Fatal(err)
		case n == 0:
			t.Fatal("it is still there")
		default:
			return
		}
	}
}

func TestInterruptLeavesNothing(t *testing.T) {
	needGuests(t)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			s := start(t, "run", "--accel", "tcg")
			s.until(t, "ipxe.ack")
			qemu := childOf(t, s.cmd.Process.Pid, "qemu-system")
			dir := filepath.Join("/run/ecboot", strconv.Itoa(s.cmd.Process.Pid))
			if _, err := os.Stat(dir); err != nil {
				t.Fatal(err)
			}
			s.cmd.Process.Signal(sig)
			code := s.end(t)
			awaitEnd(t, qemu)
			if sig == syscall.SIGKILL {
				// It could not clean up itself; the next start does.
				ecboot(t, "run", "--accel", "tcg", "--until", "console:SeaBIOS").want(t, 0)
			} else if code != exitFailed {
				t.Errorf("exit code %d, want %d", code, exitFailed)
			}
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is still there", dir)
			}
		})
	}
}

func TestKilledOnABridge(t *testing.T) {
	needGuests(t)
	nettest.Bridge(t, "br7", "")
	link, err := netlink.LinkByName("br7")
	if err != nil {
		t.Fatal(err)
	}
	addresses := func() []netlink.Addr {
		list, err := netlink.AddrList(link, netlink.FAMILY_V4)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	s := start(t, "run", "--accel", "tcg", "--bridge", "br7")
	s.until(t, "ipxe.ack")
	qemu := childOf(t, s.cmd.Process.Pid, "qemu-system")
	if len(addresses()) != 1 {
		t.Errorf("the bridge has the addresses %v while ecboot runs", addresses())
	}
	s.cmd.Process.Kill()
	s.end(t)
	awaitEnd(t, qemu)
	ecboot(t, "run", "--accel", "tcg", "--until", "console:SeaBIOS").want(t, 0)
	if len(addresses()) != 0 {
		t.Errorf("the next start has left %v on the bridge", addresses())
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(links, func(l netlink.Link) bool { return strings.HasPrefix(l.Attrs().Name, "ectap") }) {
		t.Error("a tap is left")
	}
}

// assetPaths returns the embedded kernel and initramfs as files.
func assetPaths(t *testing.T) (kernel, initrd string) {
	t.Helper()
	set, err := images.Default()
	if err != nil {
		t.Skip(err)
	}
	files, err := set.Extract(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return files.Path(images.KernelName), files.Path(images.InitrdName)
}

func TestBootAForeignSystem(t *testing.T) {
	needGuests(t)
	t.Parallel()
	kernel, initrd := assetPaths(t)
	t.Run("console", func(t *testing.T) {
		doc := bootReport(t, "boot", kernel, initrd, "--first-stage", "ipxe", "--until", "console:userland after [0-9.]+s")
		wantStages(t, doc.Stages, timeline.Kernel, timeline.Initrd, timeline.Linux)
	})
	t.Run("poweroff", func(t *testing.T) {
		doc := bootReport(t, "boot", kernel, initrd, "--append", "ecboot.poweroff", "--first-stage", "ipxe", "--until", "poweroff")
		wantStages(t, doc.Stages, timeline.Linux, timeline.Userland, timeline.Exit)
	})
}

func TestBootThatFails(t *testing.T) {
	needGuests(t)
	t.Parallel()
	kernel, _ := assetPaths(t)
	tests := []struct {
		name    string
		args    []string
		code    int
		outcome string
		cause   string
	}{
		{"no initrd", []string{"boot", kernel}, exitGuest, outcomeFailed, "no root"},
		{"no init", []string{"boot", kernel, kernel}, exitGuest, outcomeFailed, "root"},
		{"no time", []string{"run", "--timeout", "2s"}, exitTimeout, outcomeTimeout, ""},
		{"QEMU refuses", []string{"run", "--", "-device", "teapot"}, exitEnvironment, "", "teapot"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			args := append([]string{tt.args[0], "-o", "json", "--accel", "tcg"}, tt.args[1:]...)
			r := ecboot(t, args...)
			r.want(t, tt.code, tt.cause)
			if tt.outcome == "" {
				return
			}
			var doc report
			if err := json.Unmarshal([]byte(r.stdout), &doc); err != nil {
				t.Fatalf("%v in %s", err, r.stdout)
			}
			if doc.Outcome != tt.outcome || doc.Failure == nil || doc.Failure.Cause == "" || doc.Failure.Command == "" {
				t.Errorf("outcome %q with failure %+v", doc.Outcome, doc.Failure)
			}
		})
	}
}

func TestOnlyTheBootedProfileIsPrepared(t *testing.T) {
	needGuests(t)
	config := filepath.Join(t.TempDir(), "ecboot.toml")
	text := "[profile.other]\nkernel = \"embedded:kernel\"\ninitramfs = { commands = [\"no-such-command\"] }\n"
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	ecboot(t, "run", "--config", config, "--accel", "tcg", "--until", "console:SeaBIOS").want(t, 0)
	ecboot(t, "run", "other", "--config", config, "--accel", "tcg", "--until", "console:SeaBIOS").want(t, exitFailed, "no-such-command")
}
