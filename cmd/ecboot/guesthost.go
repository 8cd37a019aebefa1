package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/internal/keeper"
	"github.com/every-channel/ecboot/internal/lan"
	"github.com/every-channel/ecboot/internal/scope"
	"github.com/every-channel/ecboot/internal/supervise"
	"github.com/every-channel/ecboot/internal/zfs"
	"github.com/every-channel/ecboot/vmm"
)

// guestHost makes on this machine what declared guests need.
type guestHost struct {
	dirs   dirs
	stack  *stack // open; nil when nothing is to be made
	scopes scope.Host
	log    *slog.Logger

	zfsLock sync.Mutex // its calls must not overlap

	mu    sync.Mutex
	cfg   *config.Config // in effect
	files *bootFiles
}

// guestsDir is where keepers have their directories, below dirs.Run.
const guestsDir = "guests"

// declare puts a configuration into effect and returns its guests.
func (h *guestHost) declare(cfg *config.Config, files *bootFiles) []supervise.Guest {
	h.mu.Lock()
	h.cfg, h.files = cfg, files
	h.mu.Unlock()
	h.unmount()
	list := make([]supervise.Guest, 0, len(cfg.Guests))
	for _, g := range cfg.Guests {
		list = append(list, supervise.Guest{
			Name: g.Name, Machine: timelineName(g), Digest: guestDigest(g), LogFile: guestFile(stateDir(cfg), g.Name, "console.log"),
			Autostart: g.Autostart, Order: g.Order, Delay: g.Delay,
			Restart: g.Restart, RestartDelay: g.RestartDelay, RestartMax: g.RestartMax, StopTimeout: g.StopTimeout,
			Prepare: func(ctx context.Context) (*supervise.Prepared, error) { return h.prepare(ctx, g) },
			Check:   func(ctx context.Context, p keeper.Plan) []string { return h.check(ctx, g, p) },
		})
	}
	return list
}

// inEffect is the configuration of now.
func (h *guestHost) inEffect() (*config.Config, *bootFiles) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cfg, h.files
}

// survey finds what a guest's plan needs. It changes nothing but the cache.
func (h *guestHost) survey(ctx context.Context, g config.DeclaredGuest) (on groundwork, err error) {
	cfg, files := h.inEffect()
	on = groundwork{
		state: stateDir(cfg), run: filepath.Join(h.dirs.Run, guestsDir, g.Name), cache: h.dirs.Cache, ipxe: files.ipxe,
		port: func(name string) portKind { return h.port(cfg, name) },
	}
	shares, err := zfs.NewPlan(zfsEntries(cfg.Guests))
	if err != nil {
		return on, err
	}
	on.zfs = shares.Shares(g.Name)
	if !g.VM() {
		return on, nil
	}
	if on.accel, err = h.accel(ctx, g); err != nil {
		return on, err
	}
	if on.credential, err = guestUser(g.User); err != nil {
		return on, err
	}
	if on.operators, err = operatorGroup(cfg); err != nil {
		return on, err
	}
	if hasUEFI(g) {
		if on.uefi, err = vmm.FindUEFI(wantedUEFI(g)); err != nil {
			return on, err
		}
	}
	if g.Boot == config.BootDirect {
		on.direct, err = h.directBoot(cfg, files, g)
	}
	return on, err
}

// accel decides what runs a guest.
func (h *guestHost) accel(ctx context.Context, g config.DeclaredGuest) (vmm.Accel, error) {
	accel, _, err := guestOptions{Guest: g.Guest}.accel(ctx)
	return accel, err
}

// guestUsers are whom guests run as that name nobody: the first that exists.
var guestUsers = []string{"ecboot-guest", "nobody"}

// guestUser is who a guest's QEMU runs as: as itself where this process is not
// root.
func guestUser(name string) (*vmm.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	candidates := guestUsers
	if name != "" {
		candidates = []string{name}
	}
	var u *user.User
	var err error
	for _, name := range candidates {
		if u, err = user.Lookup(name); err == nil {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("who QEMU is to run as: %w: write another in user, or 'useradd --system %s'", err, candidates[0])
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user %s: %w", u.Username, err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user %s: %w", u.Username, err)
	}
	return &vmm.Credential{UID: uint32(uid), GID: uint32(gid)}, nil
}

// port tells how guests are tied to a segment.
func (h *guestHost) port(cfg *config.Config, name string) portKind {
	if h.stack != nil {
		if one := h.stack.segment(name); one != nil {
			if parent := one.lan.Parent(); parent != "" {
				return portKind{parent: parent}
			}
			return portKind{bridge: one.lan.Interface()}
		}
	}
	seg, ok := cfg.Segment(name)
	switch {
	case !ok:
		return portKind{}
	case seg.Private():
		return portKind{bridge: seg.HostBridge()}
	}
	return portKind{bridge: seg.Bridge, parent: seg.Parent}
}

// directBoot finds the files of a guest's profile, the same that HTTP serves, and
// makes several initrds one, which is all that QEMU takes.
func (h *guestHost) directBoot(cfg *config.Config, files *bootFiles, g config.DeclaredGuest) (d directBoot, err error) {
	nic, served := onSegment(g)
	seg, ok := cfg.Segment(nic.Segment)
	if !ok {
		seg = &config.Segment{}
	}
	inv := files.inventory(cfg, *seg)
	p := inv.Profiles[guestProfile(g)]
	if p.Kernel.Path == "" {
		return d, fmt.Errorf("profile %s has no kernel: a guest that boots directly needs one", p.Name)
	}
	d.kernel = p.Kernel.Path
	if d.initrd, err = h.oneInitrd(g.Name, p.Initrds); err != nil {
		return d, err
	}
	vars := boot.Vars{Name: g.Node, Profile: p.Name}
	if len(g.NICs) > 0 {
		vars.MAC = g.NICs[0].MAC.String()
	}
	var url string
	if server := h.server(nic.Segment, seg); served && seg.Mode != config.ModeOff && server.IsValid() {
		vars.Server = server.String()
		url = " ecboot.url=" + httpURL(server, cfg.Server.HTTPPort, "/phone-home/"+nic.MAC.String())
	}
	if nic.Address.IsValid() {
		vars.Address = nic.Address.String()
	}
	if d.cmdline, err = boot.Expand(p.Cmdline, vars); err != nil {
		return d, fmt.Errorf("profile %s, kernel command line: %w", p.Name, err)
	}
	d.cmdline = strings.TrimSpace(d.cmdline + url)
	return d, nil
}

// server is the address of a segment's servers.
func (h *guestHost) server(name string, seg *config.Segment) netip.Addr {
	if h.stack != nil {
		if one := h.stack.segment(name); one != nil {
			return one.Address.Addr()
		}
	}
	return seg.Address.Addr()
}

// oneInitrd returns a file with all initrds behind one another.
func (h *guestHost) oneInitrd(guest string, list []boot.File) (path string, err error) {
	switch len(list) {
	case 0:
		return "", nil
	case 1:
		return list[0].Path, nil
	}
	dir := filepath.Join(h.dirs.Cache, "initrds")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	out, err := os.CreateTemp(dir, "."+guest+"-*")
	if err != nil {
		return "", err
	}
	defer func() {
		out.Close()
		if err != nil {
			os.Remove(out.Name())
		}
	}()
	var size int64
	for _, f := range list {
		in, err := os.Open(f.Path)
		if err != nil {
			return "", err
		}
		n, err := io.Copy(out, in)
		in.Close()
		if err != nil {
			return "", fmt.Errorf("%s: %w", f.Path, err)
		}
		// The kernel looks for the next archive at multiples of four.
		pad := make([]byte, -n&3)
		if _, err := out.Write(pad); err != nil {
			return "", err
		}
		size += n
	}
	if err := out.Chmod(0o644); err != nil {
		return "", err
	}
	path = filepath.Join(dir, guest+".img")
	return path, os.Rename(out.Name(), path)
}

// prepare makes everything that a guest needs to start.
func (h *guestHost) prepare(ctx context.Context, g config.DeclaredGuest) (_ *supervise.Prepared, err error) {
	if err := h.mount(ctx, g); err != nil {
		return nil, err
	}
	on, err := h.survey(ctx, g)
	if err != nil {
		return nil, err
	}
	for _, s := range g.Shares {
		if _, err := os.Stat(s.Source); err != nil {
			return nil, fmt.Errorf("share %s: %w", s.Target, err)
		}
	}
	if err := os.MkdirAll(filepath.Join(on.state, "guests", g.Name), 0o700); err != nil {
		return nil, err
	}
	p := &supervise.Prepared{Plan: planGuest(g, on), Join: h.join(g)}
	if p.Plan.VM == nil {
		return p, nil
	}
	for _, d := range p.Plan.VM.Disks {
		if _, err := vmm.EnsureDisk(ctx, d); err != nil {
			return nil, err
		}
	}
	var made []string // and not those of another guest, such as this one before it was renamed
	defer func() {
		if err != nil {
			for _, tap := range p.Taps {
				tap.Close()
			}
			err = errors.Join(err, h.unplug(made))
		}
	}()
	for _, nic := range g.NICs {
		if nic.User {
			continue
		}
		tap, err := h.plug(nic)
		if err != nil {
			return nil, err
		}
		p.Taps = append(p.Taps, tap.File)
		if slices.Contains(p.Plan.Links, tap.Name) {
			made = append(made, tap.Name)
		}
	}
	return p, nil
}

// missing says, without starting it, what a guest needs that is not there and that
// nobody makes: links of the host's and, where paths can be known, files.
func missing(g config.DeclaredGuest, stateDir string, known func(path string) bool) error {
	var errs []error
	lacks := func(err error, key string, index ...any) {
		errs = append(errs, fmt.Errorf("%s.%s: %w", config.KeyPath("guest", g.Name), fmt.Sprintf(key, index...), err))
	}
	need := func(path, key string, index ...any) {
		if path == "" || !known(path) {
			return
		}
		if _, err := os.Stat(path); err != nil {
			lacks(err, key, index...)
		}
	}
	for i, n := range g.NICs {
		key, parent := "nic[%d].macvtap", n.Macvtap
		if !g.VM() {
			key, parent = "nic[%d].macvlan", n.Macvlan
		}
		if _, err := net.InterfaceByName(parent); parent != "" && err != nil {
			lacks(fmt.Errorf("there is no link %s: 'ip link' lists those of this host", parent), key, i)
		}
	}
	need(g.Root, "root")
	for i, d := range g.Disks {
		need(d.Base, "disk[%d].base", i)
		if d.ISO || d.ReadOnly {
			need(g.DiskPath(stateDir, i), "disk[%d].path", i)
		}
	}
	for i, s := range g.Shares {
		need(s.Source, "share[%d].source", i)
	}
	return errors.Join(errs...)
}

// checkDatasets says what of the datasets cannot be brought about.
func (h *guestHost) checkDatasets(ctx context.Context) error {
	pools, plan, err := h.datasets()
	if err != nil || len(plan.Steps) == 0 {
		return err
	}
	problems, err := pools.Check(ctx, plan)
	errs := []error{err}
	for _, p := range problems {
		if p.Fatal {
			errs = append(errs, errors.New(p.Text))
		}
	}
	return errors.Join(errs...)
}

// join puts a keeper where the guest's limits hold, and has it hold the guest's
// network: before anything of the guest starts, so that from then on the death
// of this process takes nothing away from it.
func (h *guestHost) join(g config.DeclaredGuest) func(pid int) (cgroup string, err error) {
	return func(pid int) (string, error) {
		s, err := h.scopes.Join(context.Background(), scopeOf(g), pid)
		if err == nil {
			err = h.hold(g, pid)
		}
		return s.Cgroup, err
	}
}

// scopeOf is a guest in the terms of package scope.
func scopeOf(g config.DeclaredGuest) scope.Guest {
	return scope.Guest{
		Name: g.Name, StopTimeout: g.StopTimeout,
		Limits: scope.Limits{CPUPercent: g.Limits.CPU, Memory: int64(g.Limits.Memory), Tasks: g.Limits.Tasks, IOWeight: g.Limits.IOWeight},
	}
}

// plug makes a network card's link.
func (h *guestHost) plug(nic config.GuestNIC) (*lan.Tap, error) {
	if nic.Macvtap != "" {
		return lan.Macvtap(nic.Macvtap, linkName(nic), nic.MAC)
	}
	one := h.stack.segment(nic.Segment)
	if one == nil {
		return nil, fmt.Errorf("segment %s is not open yet: restart 'ecboot up'", nic.Segment)
	}
	return one.lan.Port(lan.PortConfig{Name: linkName(nic), MAC: nic.MAC})
}

// datasets are the directories that the declared guests have on ZFS.
func (h *guestHost) datasets() (zfs.Host, zfs.Plan, error) {
	cfg, _ := h.inEffect()
	plan, err := zfs.NewPlan(zfsEntries(cfg.Guests))
	return zfs.Host{Dir: filepath.Join(h.dirs.Run, "zfs")}, plan, err
}

// mount brings about the datasets of a guest: it must not start on an empty
// directory.
func (h *guestHost) mount(ctx context.Context, g config.DeclaredGuest) error {
	if len(g.ZFS) == 0 {
		return nil
	}
	pools, plan, err := h.datasets()
	if err != nil {
		return err
	}
	if plan.Require(g.Name) == nil {
		return nil // whatever the others lack
	}
	h.zfsLock.Lock()
	defer h.zfsLock.Unlock()
	// A path may have another dataset now.
	stale, err := pools.Release(plan)
	if err != nil {
		return err
	}
	problems, err := pools.Apply(ctx, plan)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range append(stale, problems...) {
		if slices.Contains(p.Guests, g.Name) {
			errs = append(errs, errors.New(p.Text))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	return plan.Require(g.Name)
}

// unmount takes back the datasets that no guest declares any more. What is in
// use stays until its guest has ended.
func (h *guestHost) unmount() {
	pools, plan, err := h.datasets()
	if err != nil {
		return // told by whoever starts a guest
	}
	h.zfsLock.Lock()
	defer h.zfsLock.Unlock()
	stale, err := pools.Release(plan)
	for _, p := range stale {
		h.log.Warn("a dataset that is declared no longer stays mounted", "why", p.Text)
	}
	if err != nil {
		h.log.Error("datasets that are declared no longer stay mounted", "error", err)
	}
}

// clean takes back what prepare has made for a guest that has ended.
func (h *guestHost) clean(p keeper.Plan) error {
	err := errors.Join(h.unplug(p.Links), h.scopes.Remove(context.Background(), p.Name))
	h.unmount()
	return err
}

// unplug removes links that do not go with their files.
func (h *guestHost) unplug(links []string) error {
	var errs []error
	for _, link := range links {
		if lan.InUse(link) != nil {
			continue // another guest has it by now
		}
		for _, one := range h.stack.segments {
			if one.lan.Parent() != "" {
				errs = append(errs, one.lan.Unplug(link))
			}
		}
		errs = append(errs, lan.Remove(link))
	}
	return errors.Join(errs...)
}

// check mends what has come loose of a guest that runs as it is declared, and
// says what cannot be mended.
func (h *guestHost) check(ctx context.Context, g config.DeclaredGuest, p keeper.Plan) (drift []string) {
	if p.Digest != guestDigest(g) {
		return nil
	}
	for _, nic := range g.NICs {
		if nic.Macvtap != "" && g.VM() {
			mended, err := lan.MendMacvtap(linkName(nic))
			if err != nil {
				drift = append(drift, err.Error())
			} else if mended {
				h.log.Warn("a port was down and is up again", "guest", g.Name, "port", linkName(nic))
			}
			continue
		}
		one := h.stack.segment(nic.Segment)
		if nic.Segment == "" || one == nil {
			continue
		}
		if err := one.mend(); err != nil {
			drift = append(drift, fmt.Sprintf("segment %s: %v", nic.Segment, err))
		}
		name := linkName(nic)
		if !g.VM() || one.lan.Plugged(name) {
			continue
		}
		if err := one.lan.Replug(name); err != nil {
			drift = append(drift, err.Error())
			continue
		}
		h.log.Warn("a port was out of its segment and is in it again", "guest", g.Name, "port", name, "segment", nic.Segment)
	}
	if len(g.ZFS) > 0 {
		if err := h.mount(ctx, g); err != nil {
			drift = append(drift, err.Error())
		}
	}
	return drift
}

// adopted has a keeper that an earlier supervisor has started hold its guest's
// network here, too.
func (h *guestHost) adopted(name string, pid int) error {
	cfg, _ := h.inEffect()
	g, ok := cfg.DeclaredGuest(name)
	if !ok {
		return nil // whoever started it has
	}
	return h.hold(*g, pid)
}

// hold keeps the segments of a guest for as long as its keeper lives, whatever
// becomes of this process.
func (h *guestHost) hold(g config.DeclaredGuest, pid int) error {
	var errs []error
	for _, nic := range g.NICs {
		if one := h.stack.segment(nic.Segment); one != nil {
			errs = append(errs, one.lan.Hold(pid))
		}
	}
	return errors.Join(errs...)
}
