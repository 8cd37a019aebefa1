package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/every-channel/ecboot/internal/api"
)

// guestResult is what became of one guest that a verb was used on.
type guestResult struct {
	Name  string `json:"name"`
	Done  string `json:"done,omitempty"`  // started, stopped, restarted, reset; empty: see error
	How   string `json:"how,omitempty"`   // it ended: "power button", "killed QEMU"
	Error string `json:"error,omitempty"` // why it did not work
}

func (r guestResult) String() string {
	switch {
	case r.Error != "":
		return r.Name + ": FAILED: " + r.Error
	case r.How != "":
		return fmt.Sprintf("%s: %s (%s)", r.Name, r.Done, r.How)
	}
	return r.Name + ": " + r.Done
}

// powerVerb is a verb that changes whether guests run.
type powerVerb struct {
	done string               // what has become of a guest
	all  func(api.Guest) bool // the guests that --all means; nil: there is no such flag
	do   func(ctx context.Context, s *supervisor, g api.Guest) (how string, err error)
	// together: guests do not wait for one another.
	together bool
}

func powerCommand(use, short string, verb powerVerb) *cobra.Command {
	var output string
	var all bool
	cmd := &cobra.Command{
		Use:               use,
		Short:             short,
		ValidArgsFunction: completeGuests(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case all && len(args) > 0:
				return withCode(exitUsage, errors.New("--all and names: give one of the two"))
			case len(args) == 0 && verb.all == nil:
				return withCode(exitUsage, fmt.Errorf("which guest? %s NAME…", cmd.CommandPath()))
			case len(args) == 0 && !all:
				return withCode(exitUsage, fmt.Errorf("which guest? %s NAME…, or --all", cmd.CommandPath()))
			}
			ctx := cmd.Context()
			s, err := openSupervisor(ctx)
			if err != nil {
				return err
			}
			var guests []api.Guest
			if all {
				guests = slices.DeleteFunc(slices.Clone(s.guests), func(g api.Guest) bool { return !verb.all(g) })
			} else if guests, err = s.find(args); err != nil {
				return err
			}
			results := verb.run(ctx, s, guests, cmd.ErrOrStderr(), func(r guestResult) {
				if output == "text" && r.Error == "" {
					fmt.Fprintln(cmd.OutOrStdout(), r)
				}
			})
			var errs []error
			for _, r := range results {
				if r.Error != "" {
					errs = append(errs, fmt.Errorf("%s: %s", r.Name, r.Error))
				}
			}
			if len(results) == 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "no guest is to be %s\n", verb.done)
			}
			if output == "json" {
				errs = append(errs, printList(cmd, output, "guests", results, func(*tabwriter.Writer) {}))
			}
			return errors.Join(errs...)
		},
	}
	if verb.all != nil {
		cmd.Flags().BoolVar(&all, "all", false, "all guests of the configuration that are not "+verb.done+" yet")
	}
	outputFlag(cmd, &output)
	return cmd
}

// patience is how long nothing need be said of what is waited for.
const patience = 3 * time.Second

// run does it to all guests and reports on each when it is through.
func (v powerVerb) run(ctx context.Context, s *supervisor, guests []api.Guest, stderr io.Writer, report func(guestResult)) []guestResult {
	results := make([]guestResult, len(guests))
	var mu sync.Mutex
	waiting := make([]string, len(guests))
	for i, g := range guests {
		results[i].Name, waiting[i] = g.Name, g.Name
	}
	one := func(i int) {
		r := guestResult{Name: guests[i].Name, Done: v.done}
		how, err := v.do(ctx, s, guests[i])
		if r.How = how; err != nil {
			r.Done, r.Error = "", strings.TrimPrefix(err.Error(), "guest "+r.Name+": ")
			if ctx.Err() != nil {
				r.Error = "interrupted; it goes on without you, 'ecboot guest list' shows how far it is"
			}
		}
		mu.Lock()
		defer mu.Unlock()
		results[i] = r
		waiting = slices.DeleteFunc(waiting, func(name string) bool { return name == r.Name })
		report(r)
	}
	slow := time.AfterFunc(patience, func() {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(stderr, "waiting for %s\n", strings.Join(waiting, ", "))
	})
	defer slow.Stop()
	var group sync.WaitGroup
	for i := range guests {
		if v.together {
			group.Go(func() { one(i) })
		} else {
			one(i)
		}
	}
	group.Wait()
	return results
}

func isUp(g api.Guest) bool {
	return g.State == api.Running || g.State == api.Starting || g.State == api.Waiting
}

func newGuestStartCommand() *cobra.Command {
	return powerCommand("start GUEST…", "Start guests, one after the other", powerVerb{
		done: "started",
		all:  func(g api.Guest) bool { return g.State != api.Running && g.State != api.Starting },
		do: func(ctx context.Context, s *supervisor, g api.Guest) (how string, err error) {
			if err := s.Start(ctx, g.Name); err != nil || g.State != api.Running {
				return "", err
			}
			// One that was about to end has been started again.
			now, err := s.Guests(ctx)
			if err == nil && slices.ContainsFunc(now, func(n api.Guest) bool { return n.Name == g.Name && n.Keeper == g.Keeper }) {
				how = "it ran already"
			}
			return how, err
		},
	})
}

func newGuestStopCommand() *cobra.Command {
	var now bool
	cmd := powerCommand("stop GUEST…", "Ask guests to shut down, end those that do not, and say which", powerVerb{
		done:     "stopped",
		all:      func(g api.Guest) bool { return isUp(g) || g.State == api.Stopping || !g.NextStart.IsZero() },
		together: true,
		do: func(ctx context.Context, s *supervisor, g api.Guest) (string, error) {
			return s.Stop(ctx, g.Name, now)
		},
	})
	cmd.Long = `Ask guests to shut down, end those that do not within their stop_timeout, and say
which. What was stopped here stays down until it is started here or the host is.`
	cmd.Flags().BoolVar(&now, "now", false, "do not ask the guest: what it has not written is lost")
	return cmd
}

func newGuestRestartCommand() *cobra.Command {
	cmd := powerCommand("restart GUEST…", "Stop guests and start them as they are declared now", powerVerb{
		done:     "restarted",
		all:      isUp,
		together: true,
		do: func(ctx context.Context, s *supervisor, g api.Guest) (string, error) {
			return s.Restart(ctx, g.Name)
		},
	})
	cmd.Flags().Lookup("all").Usage = "all guests that run"
	return cmd
}

func newGuestResetCommand() *cobra.Command {
	return powerCommand("reset GUEST…", "Press the reset button of guests: they begin anew without shutting down", powerVerb{
		done: "reset",
		do: func(ctx context.Context, s *supervisor, g api.Guest) (string, error) {
			return "", s.Reset(ctx, g.Name)
		},
	})
}
