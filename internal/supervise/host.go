package supervise

import (
	"context"
	"io"
	"path/filepath"

	"github.com/every-channel/ecboot/internal/keeper"
	"github.com/every-channel/ecboot/internal/timeline"
)

// host is where keepers are; in tests there are none.
type host interface {
	spawn(context.Context, keeper.Plan, keeper.SpawnOptions) (instance, error)
	find(dir string) ([]found, error)
}

// instance is a keeper's client; in tests something that behaves like one.
type instance interface {
	Status(context.Context) (keeper.Status, error)
	Stop(context.Context) (how string, err error)
	Kill(context.Context) error
	Reset(context.Context) error
	Screenshot(context.Context) ([]byte, error)
	Log(ctx context.Context, lines int) ([]byte, error)
	Console(ctx context.Context, write bool) (io.ReadWriteCloser, error)
	Events(context.Context, func(timeline.Event)) error
	Done() <-chan struct{}
	Exit() keeper.Exit
	Forget() error
}

// found is a guest that an earlier supervisor started.
type found struct {
	name   string
	in     instance // nil unless its keeper lives
	plan   keeper.Plan
	exit   keeper.Exit // if it does not
	err    error       // what is there makes no sense
	forget func() error
}

// keepers are the real ones.
type keepers struct{}

func (keepers) spawn(ctx context.Context, p keeper.Plan, opts keeper.SpawnOptions) (instance, error) {
	c, err := keeper.Spawn(ctx, p, opts)
	if err != nil {
		return nil, err // no instance that is no nil
	}
	return c, nil
}

func (keepers) find(dir string) ([]found, error) {
	list, err := keeper.Find(dir)
	if err != nil {
		return nil, err
	}
	out := make([]found, len(list))
	for i, f := range list {
		out[i] = found{name: filepath.Base(f.Dir), plan: f.Plan, exit: f.Exit, err: f.Err, forget: f.Forget}
		if f.Client != nil {
			out[i].in = f.Client
		}
	}
	return out, nil
}
