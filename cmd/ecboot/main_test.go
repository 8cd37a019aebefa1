package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/nettest"
	"github.com/every-channel/ecboot/internal/sim"
)

// mainVar makes the test binary be ecboot itself, so that tests run the real
// command with what it does to processes and namespaces.
const mainVar = "ECBOOT_TEST_AS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(mainVar) != "" {
		os.Exit(mainCode())
	}
	nettest.Main(m, sim.Program())
}

// inTime makes ctx end a little before all tests are out of time: a test that
// waits in vain for what ctx ends can still say for what, and what came instead.
func inTime(t testing.TB, ctx context.Context) context.Context {
	if limited, ok := t.(interface{ Deadline() (time.Time, bool) }); ok {
		if deadline, ok := limited.Deadline(); ok {
			var cancel context.CancelFunc
			ctx, cancel = context.WithDeadline(ctx, deadline.Add(-30*time.Second))
			t.Cleanup(cancel)
		}
	}
	return ctx
}

// ecbootCommand prepares an ecboot with directories of its own.
func ecbootCommand(t testing.TB, ctx context.Context, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(inTime(t, ctx), "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), mainVar+"=1")
	cmd.Dir = t.TempDir()
	// A test that is killed by its time limit takes its ecboot along.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// result is what an ecboot that has ended left.
type result struct {
	code           int
	stdout, stderr string
}

// ecboot runs the command to its end.
func ecboot(t testing.TB, args ...string) result {
	t.Helper()
	return resultOf(t, ecbootCommand(t, t.Context(), args...))
}

// resultOf runs a command to its end.
func resultOf(t testing.TB, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

func (r result) want(t testing.TB, code int, parts ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("exit code %d, want %d\nstdout:\n%s\nstderr:\n%s", r.code, code, r.stdout, r.stderr)
	}
	for _, part := range parts {
		if !strings.Contains(r.stdout+r.stderr, part) {
			t.Errorf("nothing says %q\nstdout:\n%s\nstderr:\n%s", part, r.stdout, r.stderr)
		}
	}
}
