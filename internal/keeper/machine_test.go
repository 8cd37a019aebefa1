package keeper

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/nettest"
	"github.com/every-channel/ecboot/vmm"
)

func TestMachine(t *testing.T) {
	nettest.Need(t, "qemu-system-x86_64")
	dir := filepath.Join(t.TempDir(), "box")
	c, err := Spawn(t.Context(), Plan{Name: "box", Backend: QEMU, Machine: "box", VM: &vmm.Spec{MemoryMiB: 64}, Grace: time.Second}, SpawnOptions{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	st, err := c.Status(t.Context())
	if err != nil || st.State != "running" || !st.Ready {
		t.Errorf("%+v, %v", st, err)
	}
	how, err := c.Stop(context.Background())
	if err != nil || how != string(vmm.StoppedQuit) {
		t.Errorf("%q, %v", how, err)
	}
	t.Log(c.Exit())
}
