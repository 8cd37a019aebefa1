package bench

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/nettest"
)

const (
	guestCount = 20
	// guestsTimeout is for all of them, which share the cores.
	guestsTimeout = 10 * time.Minute
)

// BenchmarkGuests starts twenty microvm guests at once: how long it takes until
// all are ready, and the memory of each, beside plain QEMU with the same
// arguments.
func BenchmarkGuests(b *testing.B) {
	nettest.NeedRoot(b)
	nettest.Need(b, "qemu-system-x86_64")
	var seconds, megabytes [2][]float64
	for range rounds(b) {
		ours, mine, commands := upSeconds(b)
		peer, theirs := plainSeconds(b, commands)
		fmt.Printf("  %d guests: ecboot %.1f s, %.1f MB each; QEMU %.1f s, %.1f MB each\n", guestCount, ours, mine, peer, theirs)
		seconds[0], seconds[1] = append(seconds[0], ours), append(seconds[1], peer)
		megabytes[0], megabytes[1] = append(megabytes[0], mine), append(megabytes[1], theirs)
	}
	report("guests-20-ready", median(seconds[0]), median(seconds[1]), "s", "plain QEMU", 1.10)
	report("guests-20-memory-each", median(megabytes[0]), median(megabytes[1]), "MB", "plain QEMU", 1.10)
}

// upSeconds has 'ecboot up' start the guests. It returns the seconds until the
// last was ready, the megabytes of each with the process that keeps it, and the
// command lines of QEMU.
func upSeconds(b *testing.B) (seconds, megabytes float64, commands [][]string) {
	b.Helper()
	dir := b.TempDir()
	config := filepath.Join(dir, "ecboot.toml")
	text := fmt.Sprintf("[server]\nstate_dir = %q\n[guest]\nmemory = \"128M\"\naccel = \"tcg\"\n", dir)
	for i := range guestCount {
		text += fmt.Sprintf("[guest.bench%d]\nbackend = \"microvm\"\nautostart = true\nstop_timeout = \"1s\"\n", i)
	}
	writeFile(b, config, text)
	ecboot := repoFile(b, "ecboot")
	begin := time.Now()
	up := exec.Command(ecboot, "up", "--config", config)
	var said bytes.Buffer
	up.Stderr = &said
	if err := up.Start(); err != nil {
		b.Fatal(err)
	}
	defer stopper(b, up)()
	for ready := 0; ready < guestCount; time.Sleep(20 * time.Millisecond) {
		if time.Since(begin) > guestsTimeout {
			b.Fatalf("%d of %d guests are ready", ready, guestCount)
		}
		ready = 0
		for i := range guestCount {
			log, err := os.ReadFile(filepath.Join(dir, "guests", fmt.Sprintf("bench%d", i), "console.log"))
			if err == nil && bytes.Contains(log, []byte(marker)) {
				ready++
			}
		}
	}
	seconds = time.Since(begin).Seconds()
	out, err := exec.Command(ecboot, "guest", "list", "-o", "json").Output()
	if err != nil {
		b.Fatalf("guest list: %v\n%s", err, stderrOf(err))
	}
	var doc struct {
		Guests []struct{ PID, Keeper int }
	}
	if err := json.Unmarshal(out, &doc); err != nil || len(doc.Guests) != guestCount {
		b.Fatalf("guest list: %v\n%s", err, out)
	}
	for _, g := range doc.Guests {
		megabytes += pss(b, g.PID) + pss(b, g.Keeper)
		commands = append(commands, commandOf(b, g.PID))
	}
	return seconds, megabytes / guestCount, commands
}

// commandOf is the command line of a process, with what it was handed as a
// descriptor by its path.
func commandOf(b *testing.B, pid int) []string {
	b.Helper()
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		b.Fatal(err)
	}
	args := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
	for i, arg := range args {
		if fd, ok := strings.CutPrefix(arg, "/proc/self/fd/"); ok {
			if args[i], err = os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd)); err != nil {
				b.Fatal(err)
			}
		}
	}
	return args
}

// plainSeconds starts the same machines without ecboot: their consoles are
// standard output, and nobody is at their monitors.
func plainSeconds(b *testing.B, commands [][]string) (seconds, megabytes float64) {
	b.Helper()
	ready := make(chan bool, len(commands))
	var all []*exec.Cmd
	defer func() {
		for _, cmd := range all {
			cmd.Process.Kill()
			cmd.Wait()
		}
	}()
	begin := time.Now()
	for _, command := range commands {
		args := slices.DeleteFunc(slices.Clone(command), func(arg string) bool { return arg == "-S" })
		for i, arg := range args {
			switch {
			case strings.HasPrefix(arg, "socket,id=console,"):
				args[i] = "stdio,id=console,signal=off"
			case strings.HasPrefix(arg, "socket,id=qmp,"):
				args[i] = "null,id=qmp"
			}
		}
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, cmd)
		go func() {
			lines, seen := bufio.NewScanner(out), false
			for lines.Scan() {
				if !seen && strings.Contains(lines.Text(), marker) {
					seen = true
					ready <- true
				}
			}
			if !seen {
				ready <- false
			}
		}()
	}
	late := time.After(guestsTimeout)
	for range commands {
		select {
		case ok := <-ready:
			if !ok {
				b.Fatal("a plain QEMU ended before its guest was ready")
			}
		case <-late:
			b.Fatal("the guests of plain QEMU are not ready")
		}
	}
	seconds = time.Since(begin).Seconds()
	for _, cmd := range all {
		megabytes += pss(b, cmd.Process.Pid)
	}
	return seconds, megabytes / float64(len(all))
}

// pss is the memory of a process in megabytes; of what it shares, its part.
func pss(b *testing.B, pid int) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib * 1024 / 1e6
		}
	}
	b.Fatalf("process %d has no Pss", pid)
	return 0
}
