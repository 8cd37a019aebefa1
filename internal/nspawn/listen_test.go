package nspawn

import (
	"fmt"
	"syscall"
	"testing"
)

func TestSignalNumber(t *testing.T) {
	for name, want := range map[string]syscall.Signal{
		"SIGTERM": 15, "SIGUSR2": 12, "SIGPWR": 30, "SIGRTMIN": 34, "SIGRTMIN+4": 38, "SIGRTMAX-2": 62, "SIGRTMAX": 64,
		"SIGRTMIN+31": 0, "SIGRTMIN-1": 0, "SIGRTMINX": 0, "SIGNONE": 0, "SIG38": 0,
	} {
		if got := signalNumber(name); got != want {
			t.Errorf("%s is %d, want %d", name, got, want)
		}
	}
}

// status is what /proc says of a process: as it is named here, and by the
// namespaces that it is in.
func status(pids, blocked, caught string) string {
	return fmt.Sprintf("Name:\tinit\nPid:\t7\nNSpid:\t%s\nSigQ:\t0/7\nSigPnd:\t0000000000000000\nSigBlk:\t%s\nSigIgn:\tffffffffffffffff\nSigCgt:\t%s\n", pids, blocked, caught)
}

func TestHears(t *testing.T) {
	const none, usr2, all = "0000000000000000", "0000000000000800", "ffffffffffffffff"
	for _, tt := range []struct {
		name, status, wchan string
		want                bool
	}{
		{"has a handler", status("7\t3\t1", none, usr2), "do_wait", true},
		{"learns of it by a file", status("7\t3\t1", usr2, none), "do_epoll_wait", true},
		{"waits for signals", status("7\t3\t1", none, none), "do_sigtimedwait.isra.0", true},
		{"does not listen", status("7\t3\t1", none, none), "do_wait", false},
		{"listens to others", status("7\t3\t1", "fffffffffffff7ff", "fffffffffffff7ff"), "0", false},
		{"a helper of nspawn's", status("7\t2", all, all), "0", false},
		{"has ended", "", "", false},
	} {
		if got := hears(tt.status, tt.wchan, syscall.SIGUSR2); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
