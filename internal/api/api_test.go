package api

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/timeline"
)

func TestClientAndServer(t *testing.T) {
	mac := boot.MAC{2, 0, 0, 0, 0, 1}
	want := Status{Schema: Schema, PID: 7,
		Segments: []Segment{{Name: "lan", Mode: "server", Interface: "br0", Address: netip.MustParsePrefix("10.77.0.1/24")}},
		Machines: []Machine{{MAC: mac, Segment: "lan", Steps: []timeline.Step{{Stage: "os.ack", AtMS: 3}}}},
	}
	var released, woken string
	b := Backend{
		Status: func() Status { return want },
		Reload: func() error { return errors.New("line 3 is wrong") },
		Release: func(segment string, a netip.Addr) error {
			if segment != "lan" {
				return fmt.Errorf("segment %s: %w", segment, ErrNotFound)
			}
			released = a.String()
			return nil
		},
		Wake: func(segment string, mac boot.MAC) error { woken = segment + " " + mac.String(); return nil },
	}
	dir := t.TempDir()
	for _, process := range []string{"7", "8"} {
		if err := os.Mkdir(filepath.Join(dir, process), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Listen(filepath.Join(dir, "7", SocketName), b)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.Ready()
	// What a process that was killed leaves.
	if err := os.WriteFile(filepath.Join(dir, "8", SocketName), nil, 0o600); err != nil {
		t.Fatal(err)
	}

	all, err := All(t.Context(), dir)
	if err != nil || len(all) != 1 {
		t.Fatalf("%v, %v", all, err)
	}
	for c, got := range all {
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Error(diff)
		}
		if err := c.Reload(ctx); err == nil || err.Error() != "line 3 is wrong" {
			t.Errorf("reload: %v", err)
		}
		if err := c.Release(ctx, "lan", netip.MustParseAddr("10.77.0.9")); err != nil || released != "10.77.0.9" {
			t.Errorf("release: %v, %q", err, released)
		}
		if err := c.Release(ctx, "a/b", netip.MustParseAddr("10.77.0.9")); err == nil || !strings.Contains(err.Error(), "segment a/b: not found") {
			t.Errorf("release elsewhere: %v", err)
		}
		if err := c.Wake(ctx, "lan", mac); err != nil || woken != "lan "+mac.String() {
			t.Errorf("wake: %v, %q", err, woken)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "7", SocketName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	if all, err := All(t.Context(), dir); err != nil || len(all) != 0 {
		t.Errorf("after the end: %v, %v", all, err)
	}
}
