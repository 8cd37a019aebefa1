package dhcpd

import (
	"strings"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/timeline"
)

// A boot is a sequence of exchanges. Whatever happens in it, no machine is given
// boot programs for ever, and a repeated request is answered as the first one.
func TestChainloading(t *testing.T) {
	pxe := map[uint8]string{60: "PXEClient", 93: "\x00\x00"}
	ipxe := map[uint8]string{77: "iPXE", 93: "\x00\x00", 175: "\x13\x01\x01\x18\x01\x01"}
	old := map[uint8]string{77: "iPXE", 93: "\x00\x00", 175: "\x18\x01\x01\xeb\x03\x00\x09\x07"}
	const (
		nbp    = "undionly.kpxe"
		script = "http://10.77.0.1/ipxe/52:54:00:00:00:0a"
		none   = ""
	)
	type step struct {
		options map[uint8]string
		xid     byte
		after   time.Duration // since the step before
		want    string
	}
	tests := []struct {
		name   string
		forced bool
		steps  []step
	}{
		{name: "firmware, then iPXE", steps: []step{{pxe, 1, 0, nbp}, {pxe, 1, 0, nbp}, {ipxe, 2, 0, script}, {ipxe, 2, 0, script}}},
		{name: "iPXE in the ROM", steps: []step{{ipxe, 1, 0, script}, {ipxe, 1, 0, script}, {ipxe, 2, 0, script}}},
		{name: "forced", forced: true, steps: []step{{ipxe, 1, 0, nbp}, {ipxe, 1, 0, nbp}, {ipxe, 2, 0, script}, {ipxe, 2, 0, script}}},
		{name: "forced, reset at once", forced: true, steps: []step{{ipxe, 1, 0, nbp}, {ipxe, 2, 0, script}, {ipxe, 3, 0, nbp}, {ipxe, 3, 0, nbp}, {ipxe, 4, 0, script}}},
		{name: "forced, booted later", forced: true, steps: []step{{ipxe, 1, 0, nbp}, {ipxe, 2, bootLife, nbp}, {ipxe, 3, 0, script}}},
		{name: "forced, slow", forced: true, steps: []step{{ipxe, 1, 0, nbp}, {ipxe, 2, bootLife - 1, script}, {ipxe, 2, bootLife - 1, script}}},
		{name: "forced, late retransmission", forced: true, steps: []step{{ipxe, 1, 0, nbp}, {ipxe, 2, 0, script}, {ipxe, 1, 0, nbp}, {ipxe, 2, 0, script}}},
		{name: "firmware again", forced: true, steps: []step{{pxe, 1, 0, nbp}, {ipxe, 2, 0, script}, {pxe, 3, 0, nbp}, {ipxe, 4, 0, script}}},
		{name: "UEFI HTTP Boot", forced: true, steps: []step{
			{map[uint8]string{60: "HTTPClient", 93: "\x00\x10"}, 1, 0, "http://10.77.0.1/nbp/snponly.efi"}, {ipxe, 2, 0, script}}},
		{name: "old iPXE in the ROM", steps: []step{{old, 1, 0, nbp}, {ipxe, 2, 0, script}}},
		{name: "what we gave it is too old", steps: []step{{old, 1, 0, nbp}, {old, 2, 0, none}, {old, 2, 0, none}}},
		{name: "the system in between", forced: true, steps: []step{{ipxe, 1, 0, nbp}, {nil, 9, 0, none}, {ipxe, 2, 0, script}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inv := testInventory()
			inv.Machines[macA] = boot.Machine{MAC: macA, Chainload: tt.forced}
			cfg := testConfig()
			cfg.Inventory = func() *boot.Inventory { return inv }
			h := newHandler(t, cfg)
			now := t0
			for i, s := range tt.steps {
				now = now.Add(s.after)
				message := discover
				if i%2 == 1 {
					message = request
				}
				a := ask{mac: macA, message: message, xid: s.xid, server: us, requested: "10.77.0.50", options: s.options}
				d := h.Decide(a.packet(), now)
				if got := string(d.Reply.Packet.Options[67]); got != s.want {
					t.Errorf("step %d: got %q, want %q", i+1, got, s.want)
				}
			}
		})
	}
}

func TestRefusalIsSaidOnce(t *testing.T) {
	h := newHandler(t, testConfig())
	arm := ask{mac: macA, message: discover, options: map[uint8]string{60: "PXEClient", 93: "\x00\x0b"}}
	d := h.Decide(arm.packet(), t0)
	if why := "no boot program for uefi-arm64"; !strings.Contains(d.Warn, why) || !strings.Contains(d.Told.Detail, why) || d.Told.Phase != timeline.Fail {
		t.Errorf("warning %q, timeline %+v", d.Warn, d.Told)
	}
	if d := h.Decide(arm.packet(), t0.Add(time.Hour)); d.Warn != "" || d.Told.Phase == timeline.Fail || d.Told.Detail != "10.77.0.50" {
		t.Errorf("said again: %q, %+v", d.Warn, d.Told)
	}
	// Of many machines each is in the timeline, but not in the log.
	for i := range byte(10) {
		arm.mac[5] = 0x20 + i
		d := h.Decide(arm.packet(), t0.Add(time.Hour+time.Second*time.Duration(i)))
		if d.Told.Phase != timeline.Fail || (d.Warn != "") != (i == 0) {
			t.Errorf("machine %d: %q, %+v", i, d.Warn, d.Told)
		}
	}
}

func TestSeenIPXE(t *testing.T) {
	h := newHandler(t, testConfig())
	h.Decide(ask{mac: macA, message: discover, options: map[uint8]string{77: "iPXE"}}.packet(), t0)
	h.Decide(ask{mac: macB, message: discover}.packet(), t0)
	if !h.SeenIPXE(macA, t0) || h.SeenIPXE(macB, t0) || h.SeenIPXE(macA, t0.Add(bootLife)) {
		t.Error("only macA was iPXE, and not for ever")
	}
}

func TestRecentIsBounded(t *testing.T) {
	r := newRecent[boot.MAC, int](time.Minute)
	for i := range maxRemembered + 10 {
		r.put(boot.MAC{1, byte(i), byte(i >> 8)}, i, t0.Add(time.Duration(i)))
	}
	if len(r.m) != maxRemembered {
		t.Errorf("%d are remembered", len(r.m))
	}
	if _, ok := r.get(boot.MAC{1, 0, 0}, t0); ok {
		t.Error("the first is still remembered")
	}
	if v, ok := r.get(boot.MAC{1, 10, 0}, t0); !ok || v != 10 {
		t.Error("one of the newest was forgotten")
	}
}
