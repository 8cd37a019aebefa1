package lan

import (
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// startGuest is a process that lives until it is ended.
func startGuest(t *testing.T) (pid int, end func()) {
	t.Helper()
	cmd := exec.Command("cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end = func() {
		stdin.Close()
		cmd.Wait()
	}
	t.Cleanup(end)
	return cmd.Process.Pid, end
}

func TestSegmentIsLeftAndTakenOver(t *testing.T) {
	office(t)
	before := network(t)
	cfg := Config{Name: "office", Uplink: "nic0", NoteDir: t.TempDir()}
	first, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	guest, end := startGuest(t)
	if err := first.Hold(guest); err != nil {
		t.Fatal(err)
	}
	opened := network(t)
	if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "is open already") {
		t.Errorf("opened twice: %v", err)
	}
	if err := first.Leave(); err != nil {
		t.Fatal(err)
	}
	if err := Sweep(cfg.NoteDir); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(opened, network(t)); diff != "" {
		t.Fatalf("leaving it has changed the network:\n%s", diff)
	}
	other := cfg
	other.NAT = true
	var held *HeldError
	if _, err := Open(other); !errors.As(err, &held) || !slices.Equal(held.PIDs, []int{guest}) || !strings.Contains(err.Error(), "(cat)") {
		t.Errorf("another configuration: %v", err)
	}
	second, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if diff := cmp.Diff(opened, network(t)); diff != "" {
		t.Errorf("taking it over has changed the network:\n%s", diff)
	}
	if first.Interface() != second.Interface() || first.Address() != second.Address() {
		t.Errorf("the segment is %s at %s", second.Interface(), second.Address())
	}
	end()
	if err := second.Leave(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, network(t)); diff != "" {
		t.Errorf("the network is not as it was:\n%s", diff)
	}
	if left, _ := filepath.Glob(cfg.NoteDir + "/*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
