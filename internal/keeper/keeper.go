// Package keeper holds each guest in a process of its own. A keeper is this
// program again, in a session of its own: it runs one QEMU machine or one
// container, reads its console, and is talked to over a Unix socket, so that the
// process which spawned it may end, be killed or be upgraded without the guest
// noticing. The next one finds it by its directory.
//
// The directory of a guest, whose files are for root only, holds
//
//	lock         held (flock) as long as the keeper lives; its process id, and the guest's
//	plan.json    what it runs; written before anything of the guest starts
//	keeper.sock  HTTP, see server.go
//	keeper.log   its messages
//	exit.json    how the guest ended; missing when the keeper was killed
//
// QEMU and nspawn die with their keeper, by whatever cause. What is left of a
// keeper that was killed is its directory, Plan.Links, and the cgroup, and Exit
// tells so.
package keeper

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/every-channel/ecboot/internal/nspawn"
	"github.com/every-channel/ecboot/vmm"
)

// Schema is the version of Plan and Status. A keeper lives longer than the
// program that started it: newer programs understand the older ones.
const Schema = 1

// The backends.
const (
	QEMU      = "qemu"
	MicroVM   = "microvm" // QEMU too
	Container = "container"
)

// Plan is all that a keeper needs to know. It has either VM or Container.
type Plan struct {
	Schema  int // set by Spawn
	Name    string
	Node    string
	Backend string
	Machine string // who the guest is in the timeline: the MAC of its first NIC, or its name
	Digest  string // of the declaration; the keeper only hands it out

	VM         *vmm.Spec
	QEMU       string          // program; empty: that of the architecture
	Credential *vmm.Credential // who QEMU runs as; nil: as the keeper
	SkipBanner bool            // see vmm.Options
	// ScreenGroup is whose members may pass through the guest's directory to
	// the socket of its screen; 0: nobody.
	ScreenGroup int

	Container *nspawn.Spec
	Cache     string // where tar archives are unpacked

	Grace   time.Duration // how long a stop is graceful before it is firm; 0: 30 s
	LogFile string        // the console's output, appended; 10 MiB of it and as much in LogFile.1; empty: none
	Cgroup  string        // directory (v2) for the guest's processes; empty: the keeper's
	Links   []string      // of the host, that must go when the guest has ended; the keeper only hands them out
}

// defaultGrace is a Plan's Grace if it says none.
const defaultGrace = 30 * time.Second

func (p *Plan) grace() time.Duration {
	if p.Grace <= 0 {
		return defaultGrace
	}
	return p.Grace
}

func (p *Plan) check() error {
	vm := p.Backend == QEMU || p.Backend == MicroVM
	switch {
	case p.Schema > Schema:
		return fmt.Errorf("its plan has schema %d, and this ecboot knows %d: it was made by a newer one", p.Schema, Schema)
	case p.LogFile != "" && !filepath.IsAbs(p.LogFile):
		return fmt.Errorf("log %q: use an absolute path", p.LogFile)
	case p.Name == "":
		return errors.New("a guest without a name")
	case !vm && p.Backend != Container:
		return fmt.Errorf("backend %q: use qemu, microvm or container", p.Backend)
	case vm && (p.VM == nil || p.Container != nil), !vm && (p.Container == nil || p.VM != nil):
		return fmt.Errorf("backend %s does not go with what is planned", p.Backend)
	}
	return nil
}

// Exit is how a guest ended.
type Exit struct {
	Reason string // in the words of vmm or nspawn
	Detail string // may be empty
	How    string // what it took to stop it; empty: nobody asked it to end
	Told   bool   // who asked was nobody's Client, but a signal, such as the service manager's
	Failed bool   // a crash, a panic, a kill from outside
	Reboot bool   // it wants to be started again at once
	At     time.Time
}

// String is the reason with its detail.
func (e Exit) String() string {
	s := e.Reason
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	if e.How != "" {
		s += " (" + e.How + ")"
	}
	return s
}

// HowKilled is the How of a guest that was killed by request, also when that was
// asked while a graceful stop was under way.
const HowKilled = "killed by request"

// hadEnded is what a stop answers that comes too late.
const hadEnded = "it had ended already"

// States of a guest in its Status.
const (
	StateStopping = "stopping" // it was asked to end
	StateEnded    = "ended"    // it has, or is about to by itself
)

// Status is what a keeper says of its guest. State is "starting", StateStopping
// or StateEnded; of a container that runs "running"; of a machine QEMU's run state
// (running, paused, guest-panicked, …), or "unresponsive".
type Status struct {
	Schema      int
	Name        string
	Digest      string
	Backend     string
	Keeper, PID int // process ids of the keeper and of QEMU or nspawn; PID is 0 while it starts
	Since       time.Time
	State       string
	Told        bool   // it is stopping as Exit.Told says
	Trouble     string // why the guest waits for its host, such as a full disk; empty: it does not
	Command     []string
	Plan        Plan
}

// Errors of Spawn and Console.
var (
	ErrRunning = errors.New("it runs already")
	ErrBusy    = errors.New("somebody else writes to this console: attach as a reader, or wait")
)

// SpawnOptions is what Spawn needs beside the plan.
type SpawnOptions struct {
	Dir  string     // of this guest; made if missing, and emptied if nobody lives there
	Taps []*os.File // for the machine's NICs, in order; Spawn closes them, whatever comes
	// Join puts the keeper where it belongs before anything of the guest
	// starts, such as into a scope, and gives it what must live as long. The
	// cgroup it returns becomes Plan.Cgroup unless it is empty. nil: nothing is
	// done.
	Join func(pid int) (cgroup string, err error)
}
