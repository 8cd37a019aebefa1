package lan

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// process is one process of this machine, and no later one of the same number.
type process struct {
	PID int `json:"pid"`
	// Start is when it was started, in clock ticks since the machine was
	// (proc(5), starttime of /proc/PID/stat).
	Start uint64 `json:"start"`
}

// processOf identifies the process that has this number now.
func processOf(pid int) (process, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return process{}, fmt.Errorf("process %d: %w", pid, unix.ESRCH)
	}
	if err != nil {
		return process{}, err
	}
	// The second field is a name in parentheses that may hold anything.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 20 {
		return process{}, fmt.Errorf("/proc/%d/stat has only %d fields", pid, len(fields))
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	return process{pid, start}, err
}

// open returns a pidfd, which is readable once the process has ended. It fails
// with ESRCH when that is so already.
func (p process) open() (fd int, err error) {
	if p.PID <= 0 {
		return -1, unix.ESRCH
	}
	if fd, err = unix.PidfdOpen(p.PID, 0); err != nil {
		return -1, err
	}
	// The number was somebody's when it was opened. If it is this process's
	// now, it was so then.
	now, err := processOf(p.PID)
	if err == nil && now != p {
		err = unix.ESRCH
	}
	if err == nil {
		// Whoever has ended and was not waited for still has a number.
		var n int
		if n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); n > 0 {
			err = unix.ESRCH
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// alive reports whether the process has not ended. One of which that cannot be
// known is taken to live.
func (p process) alive() bool {
	fd, err := p.open()
	if err == nil {
		unix.Close(fd)
	}
	return !errors.Is(err, unix.ESRCH)
}

func (p process) String() string {
	b, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.PID), "cmdline"))
	command := strings.TrimSpace(string(bytes.ReplaceAll(b, []byte{0}, []byte{' '})))
	if len(command) > 60 {
		command = command[:60] + "…"
	}
	if command == "" {
		return strconv.Itoa(p.PID)
	}
	return fmt.Sprintf("%d (%s)", p.PID, command)
}

// living are those that have not ended.
func living(list []process) (out []process) {
	for _, p := range list {
		if p.alive() {
			out = append(out, p)
		}
	}
	return out
}

// A HeldError says that a segment must stay as it is.
type HeldError struct {
	Segment string
	PIDs    []int // that hold it
	text    string
}

func newHeldError(segment string, held []process) *HeldError {
	e := &HeldError{Segment: segment}
	var names []string
	for _, p := range held {
		e.PIDs, names = append(e.PIDs, p.PID), append(names, p.String())
	}
	e.text = strings.Join(names, ", ")
	return e
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("its network is to change, and guests that run use it as it is: process %s; stop them first ('kill' and the number does so gracefully), or write segment %s as it was", e.text, e.Segment)
}

// Hold keeps the segment for a guest's process, or one that lives as long: while
// it lives, the death of this process changes nothing on the network, and
// neither does Leave. Close does not ask.
func (s *Segment) Hold(pid int) error {
	p, err := processOf(pid)
	if err != nil {
		return fmt.Errorf("hold the segment: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watchdog == nil {
		return nil // nothing was changed that could be undone
	}
	s.held = living(s.held)
	if slices.Contains(s.held, p) {
		return nil
	}
	s.held = append(s.held, p)
	s.pause()
	defer s.pause()
	return s.save()
}

// Leave ends this process's part. If the segment is held, it stays as it is: the
// next Open with the same Config and NoteDir takes it over, and the watchdog
// undoes everything once no process holds it any more. Otherwise Leave is Close.
func (s *Segment) Leave() error {
	s.mu.Lock()
	s.held = living(s.held)
	if len(s.held) == 0 {
		s.mu.Unlock()
		return s.Close()
	}
	defer s.mu.Unlock()
	s.unfollow()
	s.owner = process{}
	s.pause()
	err := s.save()
	s.pause()
	s.watchdog.abandon()
	s.watchdog = nil
	s.made, s.held = nil, nil
	return err
}
