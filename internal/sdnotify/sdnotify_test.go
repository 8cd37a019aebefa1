package sdnotify

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"sync/atomic"
	"testing"
	"time"
)

// manager is a socket as a service manager has it.
func manager(t *testing.T, name string) (hear func() string) {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv(socketVar, name)
	return func() string {
		conn.SetReadDeadline(time.Now().Add(time.Minute))
		buf := make([]byte, 4096)
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
}

func TestWhatTheManagerHears(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), fmt.Sprintf("@ecboot-test-%d", os.Getpid())} {
		hear := manager(t, name)
		n, err := New()
		if err != nil {
			t.Fatal(err)
		}
		if v, ok := os.LookupEnv(socketVar); ok {
			t.Errorf("what we start would inherit %s", v)
		}
		for _, step := range []struct {
			say  func() error
			want string
		}{
			{n.Ready, `^READY=1$`},
			{n.Stopping, `^STOPPING=1$`},
		} {
			if err := step.say(); err != nil {
				t.Fatal(err)
			}
			if got := hear(); !regexp.MustCompile(step.want).MatchString(got) {
				t.Errorf("it hears %q, want %s", got, step.want)
			}
		}
	}
}

func TestWatchdog(t *testing.T) {
	hear := manager(t, filepath.Join(t.TempDir(), "notify"))
	t.Setenv(watchdogVar, "2000")
	t.Setenv(watchdogPIDVar, fmt.Sprint(os.Getpid()))
	n, err := New()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var asked atomic.Int32
	dead, ended := make(chan struct{}), make(chan error)
	go func() {
		ended <- n.Watch(ctx, func() bool {
			if asked.Add(1) > 3 {
				select {
				case dead <- struct{}{}:
				default:
				}
				return false
			}
			return true
		})
	}()
	for range 3 {
		if got := hear(); got != "WATCHDOG=1" {
			t.Errorf("it hears %q", got)
		}
	}
	// Asked, it says nothing any more: what is heard next is the sign.
	<-dead
	<-dead
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := n.Stopping(); err != nil {
		t.Fatal(err)
	}
	if got := hear(); got != "STOPPING=1" {
		t.Errorf("of a service that is not alive, it hears %q", got)
	}
}

func TestNobodyListens(t *testing.T) {
	t.Setenv(socketVar, "")
	n, err := New()
	if n != nil || err != nil {
		t.Errorf("%v, %v", n, err)
	}
	for _, say := range []func() error{n.Ready, n.Stopping} {
		if err := say(); err != nil {
			t.Error(err)
		}
	}
	if err := n.Watch(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

func TestWatchdogOfAnother(t *testing.T) {
	manager(t, filepath.Join(t.TempDir(), "notify"))
	t.Setenv(watchdogVar, "1000")
	t.Setenv(watchdogPIDVar, "1")
	n, err := New()
	if err != nil || n.watchdog != 0 {
		t.Errorf("%+v, %v", n, err)
	}
}

func TestNonsense(t *testing.T) {
	for _, env := range [][2]string{{"run/notify", ""}, {"/run/x", "0"}, {"/run/x", "-5"}, {"/run/x", "soon"}, {"/run/x", "9223372036854775807"}} {
		t.Setenv(socketVar, env[0])
		t.Setenv(watchdogVar, env[1])
		if n, err := New(); err == nil {
			t.Errorf("%q gives %+v", env, n)
		}
	}
	t.Setenv(socketVar, filepath.Join(t.TempDir(), "none"))
	n, err := New()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Ready(); err == nil {
		t.Error("it is told to nobody, without an error")
	}
}

// A manager that hears nothing more holds up nobody for ever.
func TestManagerThatHangs(t *testing.T) {
	manager(t, filepath.Join(t.TempDir(), "notify"))
	n, err := New()
	if err != nil {
		t.Fatal(err)
	}
	for err == nil { // until its queue is full
		err = n.Ready()
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}
