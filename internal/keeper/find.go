package keeper

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/internal/nspawn"
)

// startPatience is how long Find waits for a keeper that has yet to say what it
// keeps: one whose parent died ends by itself.
const startPatience = 2 * time.Second

// Found is a directory of a guest's: its keeper lives (Client), or has ended
// (Plan and Exit), or what is there makes no sense (Err). A keeper that lives
// with a plan that makes no sense, such as one of a newer version, has both
// Client and Err: it can be stopped.
type Found struct {
	Dir    string
	Client *Client // nil unless its keeper lives
	Plan   Plan
	Exit   Exit // if it does not
	Err    error
}

// Forget removes the directory unless a keeper lives there.
func (f Found) Forget() error { return forget(f.Dir) }

// Find looks into each directory below base. It asks no keeper anything, so that
// one that hangs holds up nobody. That base does not exist is no error.
func Find(base string) ([]Found, error) {
	entries, err := os.ReadDir(base)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []Found
	deadline := time.Now().Add(startPatience)
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		f := look(filepath.Join(base, e.Name()))
		for errors.Is(f.Err, errStarting) && time.Now().Before(deadline) {
			time.Sleep(20 * time.Millisecond)
			f = look(f.Dir)
		}
		list = append(list, f)
	}
	return list, nil
}

var errStarting = errors.New("a keeper is about to start")

func look(dir string) Found {
	f := Found{Dir: dir}
	alive, err := inhabited(dir)
	if err != nil {
		f.Err = err
		return f
	}
	f.Err = readJSON(filepath.Join(dir, planName), &f.Plan)
	if f.Err == nil {
		f.Err = f.Plan.check()
	}
	missing := errors.Is(f.Err, os.ErrNotExist)
	switch {
	case alive && missing:
		f.Err = errStarting
	case alive:
		// Whatever its plan says, it can be stopped.
		c, err := connect(dir, f.Plan)
		f.Client, f.Err = c, errors.Join(f.Err, err)
	case missing:
		f.Err = fmt.Errorf("%s: it has no plan: whoever wanted to start this guest died", dir)
	case f.Err == nil:
		if f.Plan.Container != nil {
			nspawn.Sweep(f.Plan.Cgroup)
		}
		f.Exit = readExit(dir)
	}
	return f
}

// connect returns a Client for a keeper that lives.
func connect(dir string, plan Plan) (*Client, error) {
	keeper, guest, err := notedProcesses(dir)
	if err != nil {
		return nil, err
	}
	process, err := openProcess(keeper)
	if errors.Is(err, unix.ESRCH) {
		return nil, errStarting // what it was about to start has its lock for a moment
	}
	if err != nil {
		return nil, err
	}
	var guestProcess *os.File
	if guest != 0 {
		guestProcess, _ = openProcess(guest) // it may have ended already
	}
	// As long as it holds the lock, the ids are those of these processes.
	if alive, err := inhabited(dir); err != nil || !alive {
		process.Close()
		if guestProcess != nil {
			guestProcess.Close()
		}
		return nil, errors.Join(err, errStarting) // look again
	}
	return newClient(dir, plan, process, guestProcess), nil
}
