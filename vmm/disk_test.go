package vmm

import (
	"log/slog"
	"testing"
	"testing/synctest"
)

// A QEMU that is too busy to answer is asked again: else its guest would wait
// for room that there is.
func TestRoomIsAwaitedPatiently(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, monitor := newMonitor(t)
		m := &Machine{qmp: q, done: make(chan struct{}), opts: Options{Log: slog.New(slog.DiscardHandler)}, spec: Spec{Disks: []Disk{{Path: "/disk"}}}}
		m.onFull("disk0")
		if m.Trouble() == "" {
			t.Error("it is in no trouble")
		}
		played := make(chan struct{})
		go func() {
			defer close(played)
			monitor.receive() // and no answer
			for _, answer := range []string{`{"status": "io-error"}`, `{}`, `{"status": "running"}`} {
				monitor.send(`{"return": %s, "id": %s}`, answer, monitor.receive().ID)
			}
		}()
		m.wait(t.Context(), 3*retryFull+2*commandTimeout)
		if trouble := m.Trouble(); trouble != "" {
			t.Error(trouble)
		}
		close(m.done)
		monitor.conn.Close()
		<-played
	})
}
