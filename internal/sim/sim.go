// Package sim boots racks of machines that are simulated: each does on the wire
// what UEFI firmware and then iPXE do, DHCP, TFTP, DHCP, a script, a kernel and
// an initrd, and compares what it loads with its digests. A machine costs a few
// kilobytes, so that one process boots hundreds at once.
package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/every-channel/ecboot/internal/nettest"
)

// Rack is machines that are switched on at the same time, behind one link.
type Rack struct {
	Link     string // of this machine; it gets the addresses that the machines are given
	Machines int
	// Want is what a machine must load: the last part of each path, and the
	// SHA-256 of the file in hexadecimal digits.
	Want  map[string]string
	Limit time.Duration // after which it counts as failed
}

// Stages are the steps of a boot in their order.
var Stages = []string{"address", "boot program", "script", "files"}

// Result says when the last machine had come so far, by stage, in seconds since
// the start.
type Result struct {
	Seconds map[string]float64
	Retries int // of DHCP and TFTP, in all
}

// Program is what nettest.Main needs to know for BootOn.
func Program() nettest.Program { return nettest.Program{Name: "rack", Main: bootMain} }

// bootMain boots the Rack that its argument is, in JSON, and prints a Result.
func bootMain(args []string) error {
	var r Rack
	if err := json.Unmarshal([]byte(strings.Join(args, " ")), &r); err != nil {
		return err
	}
	result, err := r.Boot(context.Background())
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// BootOn is Boot in a process on another host, which has the link.
func (r Rack) BootOn(ctx context.Context, host *nettest.Host) (result Result, err error) {
	arg, err := json.Marshal(r)
	if err != nil {
		return result, err
	}
	cmd, err := host.Self(ctx, Program().Name, string(arg))
	if err != nil {
		return result, err
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return result, fmt.Errorf("%w: %s", err, &stderr)
	}
	return result, json.Unmarshal(out, &result)
}

// MAC is the address of the i-th machine.
func MAC(i int) net.HardwareAddr {
	return net.HardwareAddr{0x52, 0x54, 0, 0x80, byte(i >> 8), byte(i)}
}

// Boot switches the machines on and returns when all are booted. One that gets
// nothing, or something else than it should, is an error.
func (r Rack) Boot(ctx context.Context) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, r.Limit)
	defer cancel()
	link, err := netlink.LinkByName(r.Link)
	if err != nil {
		return Result{}, fmt.Errorf("link %s: %w", r.Link, err)
	}
	cable, err := connect(r.Link)
	if err != nil {
		return Result{}, err
	}
	defer cable.Close()
	run := &run{rack: r, link: link, cable: cable, begin: time.Now(), result: Result{Seconds: map[string]float64{}}}
	defer run.release()
	machines := make([]*machine, r.Machines)
	for i := range machines {
		machines[i] = &machine{run: run, mac: MAC(i), dhcp: make(chan reply, 8)}
	}
	go cable.receive(machines)
	errs := make([]error, len(machines))
	var wg sync.WaitGroup
	for i, m := range machines {
		wg.Go(func() { errs[i] = m.boot(ctx) })
	}
	wg.Wait()
	if err := first(errs); err != nil {
		return Result{}, err
	}
	return run.result, nil
}

// first is the first of the errors, with how many there are: of hundreds of
// machines, most fail of the same.
func first(errs []error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("%d machines did not boot; the first: %w", len(errs), errs[0])
}

// run is what the machines of a rack share.
type run struct {
	rack  Rack
	link  netlink.Link
	cable *cable
	begin time.Time

	mu        sync.Mutex
	result    Result
	addresses []*netlink.Addr
}

func (r *run) reached(stage string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.result.Seconds[stage] = time.Since(r.begin).Seconds()
}

func (r *run) retried() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.result.Retries++
}

// take makes an address ours, so that the kernel's TCP and UDP have it.
func (r *run) take(addr netip.Prefix) error {
	a, err := netlink.ParseAddr(addr.String())
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.addresses = append(r.addresses, a)
	return netlink.AddrReplace(r.link, a)
}

// release gives all addresses back.
func (r *run) release() {
	for _, a := range r.addresses {
		_ = netlink.AddrDel(r.link, a)
	}
}

// machine is one of the rack.
type machine struct {
	*run
	mac  net.HardwareAddr
	addr netip.Addr
	dhcp chan reply
}

func (m *machine) boot(ctx context.Context) error {
	if err := m.steps(ctx); err != nil {
		return fmt.Errorf("%s: %w", m.mac, err)
	}
	return nil
}

func (m *machine) steps(ctx context.Context) error {
	lease, err := m.lease(ctx, firmware)
	if err != nil {
		return fmt.Errorf("the firmware's DHCP: %w", err)
	}
	m.addr = lease.addr.Addr()
	if err := m.take(lease.addr); err != nil {
		return fmt.Errorf("address %s: %w", lease.addr, err)
	}
	m.reached(Stages[0])

	sum, err := m.fetchTFTP(ctx, lease.server, lease.file)
	if err == nil {
		err = m.check(lease.file, sum)
	}
	if err != nil {
		return fmt.Errorf("TFTP of %s: %w", lease.file, err)
	}
	m.reached(Stages[1])

	again, err := m.lease(ctx, ipxe)
	if err != nil {
		return fmt.Errorf("iPXE's DHCP: %w", err)
	}
	if again.addr != lease.addr {
		return fmt.Errorf("the firmware had %s and iPXE gets %s", lease.addr, again.addr)
	}
	web := m.client()
	defer web.CloseIdleConnections()
	files, err := m.fetchScript(ctx, web, again.file)
	if err != nil {
		return fmt.Errorf("script %s: %w", again.file, err)
	}
	m.reached(Stages[2])

	for _, file := range files {
		sum, err := m.fetchHTTP(ctx, web, file)
		if err == nil {
			err = m.check(file, sum)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	m.reached(Stages[3])
	return nil
}

// check compares a digest with what it should be.
func (m *machine) check(path, sum string) error {
	want, ok := m.rack.Want[path[strings.LastIndexByte(path, '/')+1:]]
	switch {
	case !ok:
		return errors.New("nobody expects this file")
	case sum != want:
		return fmt.Errorf("its SHA-256 is %s, not %s", sum, want)
	}
	return nil
}
