package vmm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// needQEMU skips the test where there is no QEMU.
func needQEMU(t testing.TB) string {
	t.Helper()
	qemu, err := findQEMU("", ArchAMD64)
	if err != nil {
		t.Skip(err)
	}
	return qemu
}

func TestProbeRunsToItsEnd(t *testing.T) {
	qemu := needQEMU(t)
	for _, machine := range []string{"q35", "pc"} {
		trouble, err := runProbe(t.Context(), qemu, "-machine", machine, "-accel", "tcg", "-cpu", "max")
		if trouble != "" || err != nil {
			t.Errorf("%s: %s %v", machine, trouble, err)
		}
	}
}

func TestProbeTellsWhatWentWrong(t *testing.T) {
	qemu := needQEMU(t)
	for _, tt := range []struct {
		name string
		qemu string
		args []string
		want string
	}{
		{"QEMU refuses", qemu, []string{"-machine", "nonsense"}, "unsupported machine type (before its first instruction)"},
		{"no long mode", qemu, []string{"-machine", "q35", "-accel", "tcg", "-cpu", "qemu32", "-action", "reboot=shutdown"}, "while it entered long mode"},
		{"internal error", script(t, "echo 'qemu: warning: something'; echo 'KVM internal error. Suberror: 1'; exec sleep 600"), nil, "KVM internal error. Suberror: 1 (before its first instruction)"},
		{"abort", script(t, "kill -ABRT $$"), nil, "signal: aborted"},
		{"wrong result", script(t, "exit 35"), nil, "it calculated wrongly"},
	} {
		trouble, err := runProbe(t.Context(), tt.qemu, tt.args...)
		if err != nil || !strings.Contains(trouble, tt.want) {
			t.Errorf("%s: %q, %v; want %q", tt.name, trouble, err, tt.want)
		}
	}
}

// script makes a program whose output goes to stderr.
func script(t *testing.T, body string) string {
	name := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(name, []byte("#!/bin/sh\nexec >&2\n"+body+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestProbeIsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	trouble, err := runProbe(ctx, script(t, "exec sleep 600"))
	if trouble != "" || !errors.Is(err, context.Canceled) {
		t.Errorf("%q, %v", trouble, err)
	}
}

func TestProberRemembers(t *testing.T) {
	device := filepath.Join(t.TempDir(), "kvm")
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	runs := filepath.Join(t.TempDir(), "runs")
	p := prober{device: device, qemu: script(t, "echo run >>"+runs+"; exit 1"), cacheDir: filepath.Join(t.TempDir(), "a", "b")}
	count := func() int {
		b, _ := os.ReadFile(runs)
		return strings.Count(string(b), "run")
	}
	ask := func(p prober) {
		t.Helper()
		trouble, err := p.trouble(t.Context())
		if err != nil || !strings.HasPrefix(trouble, "KVM is present but its test guest died: exit status 1") {
			t.Fatalf("%q, %v", trouble, err)
		}
	}
	ask(p)
	ask(p)
	if count() != 1 {
		t.Errorf("%d runs; want 1: the outcome is not kept", count())
	}
	if err := os.WriteFile(p.file(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	ask(p)
	if count() != 2 {
		t.Errorf("%d runs; want 2: a broken file counts", count())
	}
	if err := os.Remove(device); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ask(p)
	if count() != 3 {
		t.Errorf("%d runs; want 3: a KVM that was loaded anew is another", count())
	}
	p.cacheDir = ""
	ask(p)
	if count() != 4 {
		t.Errorf("%d runs; want 4: nothing is kept without a directory", count())
	}
}

func TestResolveAccel(t *testing.T) {
	needQEMU(t)
	dir := t.TempDir()
	if a, why, err := ResolveAccel(t.Context(), AccelTCG, dir); a != AccelTCG || why != "" || err != nil {
		t.Errorf("tcg: %q %q %v", a, why, err)
	}
	if _, _, err := ResolveAccel(t.Context(), "hvf", dir); err == nil {
		t.Error("hvf is accepted")
	}
	p := prober{device: filepath.Join(dir, "none"), cacheDir: dir, qemu: "/"}
	if trouble, err := p.trouble(t.Context()); err != nil || !strings.Contains(trouble, "there is no ") {
		t.Errorf("without the device: %q, %v", trouble, err)
	}
}

// On a host with a sound KVM this test learns that it is used, on one with a
// broken KVM that it is not.
func TestKVMOfThisHost(t *testing.T) {
	needQEMU(t)
	if _, err := os.Stat("/dev/kvm"); err != nil {
		t.Skip("no /dev/kvm")
	}
	dir := t.TempDir()
	accel, why, err := ResolveAccel(t.Context(), AccelAuto, dir)
	if err != nil || why == "" {
		t.Fatalf("%q, %q, %v", accel, why, err)
	}
	t.Logf("%s: %s", accel, why)
	_, _, err = ResolveAccel(t.Context(), AccelKVM, dir)
	if works := accel == AccelKVM; works != (err == nil) {
		t.Errorf("auto chose %s, kvm says %v", accel, err)
	}
}
