package vmm

import (
	"log/slog"
	"net"
	"strings"
	"testing"
)

// A helper that ends well because QEMU has gone does not speak for it, though it
// may be seen to end first. One that fails does.
func TestWhoExplainsTheEnd(t *testing.T) {
	run := func(script string) *process {
		p, err := startProcess(launch{argv: []string{"sh", "-c", script}})
		if err != nil {
			t.Fatal(err)
		}
		<-p.done
		return p
	}
	for script, want := range map[string]string{
		"echo disconnected >&2":   "QEMU does not start: no such device",
		"echo no room >&2; false": "QEMU does not start: the helper has ended: no room",
	} {
		ours, theirs := net.Pipe()
		theirs.Close()
		m := &Machine{
			proc: run("echo no such device >&2; false"), helpers: []*helper{{"the helper", run(script)}},
			console: newConsole(ours), qmp: newQMP(ours), done: make(chan struct{}), opts: Options{Log: slog.New(slog.DiscardHandler)},
		}
		m.console.run()
		events := make(chan struct{})
		close(events)
		m.supervise(events)
		if err := m.explain(t.Context(), nil); !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %s", script, err, want)
		}
	}
}
