package config

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// The types of values that guests alone have.

// nonEmpty is for names, whose empty form says nothing.
func nonEmpty(c codec[string]) codec[string] {
	parse := c.parse
	c.parse = func(s string) (string, error) {
		if s == "" {
			return "", errors.New("is empty")
		}
		return parse(s)
	}
	return c
}

var (
	startOrder   = integer(-1000, 1000, "a place in the order of starts")
	startDelay   = duration(0, time.Hour, "10s")
	restartDelay = duration(time.Second, 24*time.Hour, "5s")
	stopTimeout  = duration(time.Second, time.Hour, "1m")
	bootPlace    = integer(1, 99, "a place in the boot order")
	ioWeight     = integer(1, 10000, "a weight") // cgroup v2, io.weight
	// QEMU alone has a thread for each processor and some for its disks.
	taskCount = integer(16, 4<<20, "a number of processes and threads")
)

var percent = codec[int]{
	want: `a part of one processor such as "50%", or "200%" for two`,
	parse: func(s string) (int, error) {
		digits, ok := strings.CutSuffix(s, "%")
		n, err := strconv.ParseUint(digits, 10, 32)
		switch {
		case !ok || err != nil:
			return 0, errors.New("is not a number of percent")
		case n < 1 || n > 102400:
			return 0, errors.New("is not between 1% and 102400%")
		}
		return int(n), nil
	},
	text: func(n int) string { return strconv.Itoa(n) + "%" },
}

// diskSize is in sectors, as every format wants it.
var diskSize = codec[Size]{
	want: `a size such as "16G" in quotes`,
	parse: func(s string) (Size, error) {
		size, err := parseSize(s)
		switch {
		case err != nil:
			return 0, errors.New("is not a size: a whole number and one of the units K, M and G is")
		case size < 1<<20:
			return 0, errors.New("is less than 1M")
		case size > 64<<40:
			return 0, errors.New("is more than 65536G")
		}
		return size, nil
	},
	text: Size.String,
}

// chainURL ends up behind a word of an iPXE script, where a space would begin
// the next one. What iPXE replaces, ${…}, may be in it.
var chainURL = text(`a URL such as "http://10.77.0.1/menu.ipxe"`, func(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > '~' }):
		return errors.New("is not a URL")
	case u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "tftp":
		return errors.New("does not begin with http://, https:// or tftp://, which iPXE loads")
	case u.Hostname() == "":
		return errors.New("names no host")
	}
	return nil
})

// cpuModel is a model of QEMU's and features of it.
var cpuModel = text(`a CPU model of QEMU's such as "host" or "qemu64,+ssse3"`, func(s string) error {
	if s == "" || strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._,+=-") != "" {
		return errors.New("cannot be the name of a CPU model")
	}
	return nil
})

// userName is what useradd and groupadd of Debian take.
var userName = matching(`^[a-z_][a-z0-9_-]{0,31}$`, `the name of a user or group such as "ecboot"`, "cannot be the name of a user or group")

// signalName is one of systemd's.
var signalName = matching(`^SIG[A-Z0-9]{1,12}([+-][0-9]{1,2})?$`, `the name of a signal such as "SIGUSR2" or "SIGRTMIN+4"`, "is not the name of a signal")

func matching(expr, want, what string) codec[string] {
	re := regexp.MustCompile(expr)
	return text(want, func(s string) error {
		if !re.MatchString(s) {
			return errors.New(what)
		}
		return nil
	})
}

// uidBase is what systemd-nspawn takes: user ids go in blocks of 65536.
var uidBase = codec[uint32]{
	kind: kindInteger,
	want: "the first of 65536 user ids, such as 65536 or 131072, without quotes",
	parse: func(s string) (uint32, error) {
		n, err := strconv.ParseUint(s, 0, 32)
		switch {
		case err != nil || n == 0 || n > 1<<32-2<<16:
			return 0, errors.New("is out of range")
		case n%(1<<16) != 0:
			return 0, fmt.Errorf("is not a multiple of %d", 1<<16)
		}
		return uint32(n), nil
	},
	text: func(n uint32) string { return strconv.FormatUint(uint64(n), 10) },
}

// argument is one of a program's.
var argument = text("an argument on one line", func(s string) error {
	if s == "" || strings.ContainsFunc(s, unicode.IsControl) {
		return errors.New("is empty, or has control characters or several lines")
	}
	return nil
})
