package main

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/internal/keeper"
	"github.com/every-channel/ecboot/internal/lan"
	"github.com/every-channel/ecboot/internal/nettest"
)

// A guest that was given another name while it runs keeps its link: that the new
// one cannot have it takes nothing away from the old one, and the end of the old
// one nothing from the new one.
func TestLeavesTheLinkOfAnother(t *testing.T) {
	nettest.NeedRoot(t)
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eclink"}, PeerName: "ecpeer"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nettest.Remove(t, "eclink") })
	mac := boot.MAC{2, 1, 0x27, 0, 0, 0x10}
	tap, err := lan.Macvtap("eclink", "ecold", mac)
	if err != nil {
		t.Fatal(err)
	}
	cfg := &config.Config{Server: config.Server{StateDir: t.TempDir()}}
	h := &guestHost{dirs: dirs{Run: t.TempDir()}, stack: &stack{}, log: slog.New(slog.DiscardHandler), cfg: cfg, files: &bootFiles{}}
	_, err = h.prepare(t.Context(), config.DeclaredGuest{
		Name: "renamed", Backend: config.BackendQEMU, Guest: config.Guest{Accel: "tcg"},
		NICs: []config.GuestNIC{{Macvtap: "eclink", Name: "ecold", MAC: mac}},
	})
	if err == nil || !strings.Contains(err.Error(), "has a guest already") {
		t.Errorf("%v", err)
	}
	// The old one has ended, and the new one has it before that is seen to.
	old := keeper.Plan{Name: "old", Links: []string{"ecold"}}
	if err := h.clean(old); err != nil {
		t.Error(err)
	}
	if _, err := netlink.LinkByName("ecold"); err != nil {
		t.Error("ecold: ", err)
	}
	tap.File.Close()
	if err := h.clean(old); err != nil {
		t.Error(err)
	}
	if _, err := netlink.LinkByName("ecold"); err == nil {
		t.Error("ecold is left")
	}
}
