package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// openTerminal makes a pseudo-terminal: what a person holds, and what the
// program sees.
func openTerminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("needs /dev/ptmx: %v", err)
	}
	t.Cleanup(func() { person.Close() })
	fd := int(person.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return person, program
}

// readUntil reads from a terminal up to a text and no further.
func readUntil(t *testing.T, r *bufio.Reader, text string) {
	t.Helper()
	var seen strings.Builder
	for !strings.HasSuffix(seen.String(), text) {
		c, err := r.ReadByte()
		if err != nil {
			t.Fatalf("%v before %q appeared:\n%s", err, text, seen.String())
		}
		seen.WriteByte(c)
	}
}

func TestConsoleOnATerminal(t *testing.T) {
	needGuests(t)
	t.Parallel()
	for _, tt := range []struct{ name, leave string }{
		{"the escape key ends the guest", string(rune(escapeKey))},
		{"the guest ends by itself", "poweroff\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			person, program := openTerminal(t)
			cmd := ecbootCommand(t, t.Context(), "run", "--accel", "tcg", "--first-stage", "ipxe")
			cmd.Stdin, cmd.Stdout, cmd.Stderr = program, program, program
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			program.Close()
			screen := bufio.NewReader(person)
			readUntil(t, screen, "initrd")
			readUntil(t, screen, escapeKeyName+" leaves it")
			readUntil(t, screen, userlandMarker)
			readUntil(t, screen, "$ ")
			// The terminal echoes what is typed; only the shell adds it up.
			io.WriteString(person, "echo $((40+2))\n")
			readUntil(t, screen, "42")
			io.WriteString(person, tt.leave)
			go io.Copy(io.Discard, screen)
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
}
