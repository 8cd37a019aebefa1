package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/every-channel/ecboot/internal/api"
	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/internal/keeper"
	"github.com/every-channel/ecboot/internal/scope"
	"github.com/every-channel/ecboot/internal/supervise"
)

// upGuests is the supervisor's guests as command lines see them.
type upGuests struct {
	sup  *supervise.Supervisor
	host *guestHost
}

// translate turns errors of the supervisor and of keepers into those of the API.
func translate(err error) error {
	switch {
	case errors.Is(err, supervise.ErrNotFound):
		return fmt.Errorf("%w: %w", err, api.ErrNotFound)
	case errors.Is(err, keeper.ErrBusy):
		return api.ErrBusy
	}
	return err
}

func (u *upGuests) List() []api.Guest {
	<-u.sup.Adopted()
	cfg, _ := u.host.inEffect()
	states := map[string]supervise.State{}
	var rest []supervise.State // that the configuration no longer has
	for _, st := range u.sup.List() {
		states[st.Name] = st
		if _, ok := cfg.DeclaredGuest(st.Name); !ok {
			rest = append(rest, st)
		}
	}
	list := []api.Guest{}
	for _, g := range cfg.Guests {
		if st, ok := states[g.Name]; ok {
			list = append(list, u.describe(cfg, g, st))
		}
	}
	for _, st := range rest {
		list = append(list, u.describe(cfg, config.DeclaredGuest{Name: st.Name, Node: st.Plan.Node, Backend: config.Backend(st.Plan.Backend)}, st))
	}
	return list
}

// describe joins what is declared of a guest and what is known of it.
func (u *upGuests) describe(cfg *config.Config, g config.DeclaredGuest, st supervise.State) api.Guest {
	a := api.Guest{
		Name: g.Name, Node: g.Node, Backend: string(g.Backend), State: string(st.Phase), PID: st.PID, Keeper: st.Keeper,
		Restarts: st.Restarts, Since: st.Since, NextStart: st.Next, LastExit: st.Reason, Down: st.Down, Drift: st.Drift, Autostart: g.Autostart,
		Command: st.Command, MACs: []boot.MAC{}, Addresses: []string{}, NICs: []api.NIC{}, Disks: []api.Disk{}, TPM: g.TPM,
	}
	if a.Drift == nil {
		a.Drift = []string{}
	}
	if st.Plan.VM != nil {
		a.VNC = st.Plan.VM.VNC
	}
	if g.VM() && g.Backend != "" {
		a.Profile = guestProfile(g)
	}
	if u.host.scopes.Systemd() && st.Keeper != 0 {
		a.Unit = scope.UnitName(g.Name)
	}
	for _, nic := range g.NICs {
		n := api.NIC{MAC: &nic.MAC, Network: network(nic)}
		switch {
		case g.VM() && (nic.Segment != "" || nic.Macvtap != ""):
			n.Link = linkName(nic)
		case !g.VM():
			n.Link = nic.Name
		}
		if addr, ok := u.addressOf(nic); ok {
			n.Address = addr.String()
			a.Addresses = append(a.Addresses, n.Address)
		}
		a.MACs, a.NICs = append(a.MACs, nic.MAC), append(a.NICs, n)
	}
	for i, d := range g.Disks {
		a.Disks = append(a.Disks, api.Disk{
			Path: g.DiskPath(stateDir(cfg), i), Format: d.Format, Size: int64(d.Size), Base: d.Base, ReadOnly: d.ReadOnly || d.ISO, Lost: d.Ephemeral,
		})
	}
	return a
}

// addressOf is the address that a network card has from a segment's server: of
// the segment that it is on, or of one on the same parent.
func (u *upGuests) addressOf(nic config.GuestNIC) (netip.Addr, bool) {
	for _, one := range u.host.stack.segments {
		if parent := one.lan.Parent(); one.Name == nic.Segment || parent != "" && parent == cmp.Or(nic.Macvtap, nic.Macvlan) {
			return one.addressOf(nic.MAC)
		}
	}
	return netip.Addr{}, false
}

// network says in words what a network card is on.
func network(n config.GuestNIC) string {
	switch {
	case n.Segment != "":
		return "segment " + n.Segment
	case n.Macvtap != "":
		return "macvtap " + n.Macvtap
	case n.Macvlan != "":
		return "macvlan " + n.Macvlan
	}
	return "user"
}

func (u *upGuests) Start(ctx context.Context, name string) error {
	return translate(u.sup.Start(ctx, name))
}

func (u *upGuests) Stop(ctx context.Context, name string, firm bool) (string, error) {
	how, err := u.sup.Stop(ctx, name, firm)
	return how, translate(err)
}

func (u *upGuests) Restart(ctx context.Context, name string) (string, error) {
	how, err := u.sup.Restart(ctx, name)
	return how, translate(err)
}

func (u *upGuests) Reset(ctx context.Context, name string) error {
	return translate(u.sup.Reset(ctx, name))
}

func (u *upGuests) Console(ctx context.Context, name string, write bool) (io.ReadWriteCloser, error) {
	c, err := u.sup.Console(ctx, name, write)
	return c, translate(err)
}

func (u *upGuests) Log(ctx context.Context, name string, lines int) ([]byte, error) {
	text, err := u.sup.Log(ctx, name, lines)
	return text, translate(err)
}

func (u *upGuests) Screenshot(ctx context.Context, name string) ([]byte, error) {
	for _, st := range u.sup.List() {
		if st.Name == name && lacksScreen(st.Plan) {
			return nil, noScreen(st.Plan)
		}
	}
	png, err := u.sup.Screenshot(ctx, name)
	return png, translate(err)
}

// lacksScreen reports whether a virtual machine runs without a screen. Containers
// say so themselves.
func lacksScreen(p keeper.Plan) bool { return p.VM != nil && p.VM.VNC == "" }

// noScreen says how a guest that runs by this plan gets a screen.
func noScreen(p keeper.Plan) error {
	if p.Backend == string(config.BackendMicroVM) {
		return fmt.Errorf("%s has no screen: a microvm never has one, look at its console", p.Name)
	}
	return fmt.Errorf("%s has no screen: write graphics = %q in [%s] by 'ecboot guest edit', then 'ecboot guest restart %s'",
		p.Name, config.GraphicsVNC, config.KeyPath("guest", p.Name), p.Name)
}

var _ api.Guests = (*upGuests)(nil)
