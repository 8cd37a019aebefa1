package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/every-channel/ecboot/images"
	"github.com/every-channel/ecboot/internal/nettest"
	"github.com/every-channel/ecboot/internal/sim"
)

// TestServeBootsARack switches a hundred machines on at once. Each compares
// what it loads with its digest.
func TestServeBootsARack(t *testing.T) {
	needImages(t)
	set, err := images.Default()
	if err != nil {
		t.Fatal(err)
	}
	nbp, _ := set.Find(images.SNPOnlyName)
	rack := sim.Rack{Link: "eth0", Machines: 100, Want: map[string]string{images.SNPOnlyName: nbp.SHA256}, Limit: 2 * time.Minute}
	dir := t.TempDir()
	for _, name := range []string{"kernel", "initrd"} {
		data := strings.Repeat(name, 50_000)
		rack.Want[name] = fmt.Sprintf("%x", sha256.Sum256([]byte(data)))
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	nettest.Bridge(t, "br0", "10.78.0.1/24")
	host := nettest.NewHost(t, "rack")
	nettest.Connect(t, "br0", host, "eth0")
	config := serveConfig(t, "br0")
	f, err := os.OpenFile(config, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(f, "\n[profile.default]\nkernel = %q\ninitrds = [%q]\n", filepath.Join(dir, "kernel"), filepath.Join(dir, "initrd"))
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s := start(t, "serve", "--config", config)
	s.until(t, "serving 10.78.0.1/24 on br0")
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		io.Copy(io.Discard, s.stderr)
	}()
	if _, err := rack.BootOn(t.Context(), host); err != nil {
		t.Error(err)
	}
	s.cmd.Process.Signal(syscall.SIGTERM)
	<-drained
	if err := s.cmd.Wait(); err != nil {
		t.Error(err)
	}
}
