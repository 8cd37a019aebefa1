package main

import (
	"context"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/every-channel/ecboot/internal/config"
)

// completionTimeout is how long a shell may wait for names.
const completionTimeout = 2 * time.Second

type completion func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective)

// completeNames completes up to limit arguments, -1 for any number, with names
// that are not among them yet. A configuration that cannot be read has no names:
// the verb will say what is wrong.
func completeNames(limit int, names func(cmd *cobra.Command, cfg *config.Config) []string) completion {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if limit >= 0 && len(args) >= limit {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		cfg, err := loadConfig(cmd.Flag("config").Value.String())
		if err != nil {
			cfg = &config.Config{}
		}
		list := slices.DeleteFunc(names(cmd, cfg), func(name string) bool { return name == "" || slices.Contains(args, name) })
		slices.Sort(list)
		return slices.Compact(list), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeGuests completes with the guests that 'ecboot up' has, or those of the
// configuration when it does not answer.
func completeGuests(limit int) completion {
	return completeNames(limit, func(cmd *cobra.Command, cfg *config.Config) (names []string) {
		ctx, cancel := context.WithTimeout(context.Background(), completionTimeout)
		defer cancel()
		s, err := openSupervisor(ctx)
		if err != nil {
			return guestNames(cfg)
		}
		for _, g := range s.guests {
			names = append(names, g.Name)
		}
		return names
	})
}

// completeDeclared completes with the guests of the configuration.
func completeDeclared(limit int) completion {
	return completeNames(limit, func(_ *cobra.Command, cfg *config.Config) []string { return guestNames(cfg) })
}

func completeProfiles(limit int) completion {
	return completeNames(limit, func(_ *cobra.Command, cfg *config.Config) []string { return slices.Collect(maps.Keys(cfg.Profiles)) })
}

// completeSegmentFlag completes --segment.
func completeSegmentFlag(cmd *cobra.Command) {
	// It fails for a flag that is not there, and for one that has been given one.
	_ = cmd.RegisterFlagCompletionFunc("segment", completeNames(-1, func(_ *cobra.Command, cfg *config.Config) (names []string) {
		for _, s := range cfg.Segments {
			names = append(names, s.Name)
		}
		return names
	}))
}

// choices is how a flag of few values names them in its usage.
var choices = regexp.MustCompile(`^[a-z0-9-]+(\|[a-z0-9-]+)+$`)

// completeChoices completes such flags of a command, and of those below it, with
// the values that their usage names.
func completeChoices(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		completeChoices(sub)
	}
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if value, _ := pflag.UnquoteUsage(f); choices.MatchString(value) {
			_ = cmd.RegisterFlagCompletionFunc(f.Name, cobra.FixedCompletions(strings.Split(value, "|"), cobra.ShellCompDirectiveNoFileComp))
		}
	})
}

func completeMachineKeys(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	var keys []string
	for _, key := range config.MachineKeys {
		keys = append(keys, strings.Replace(key+"=", "NAME=", "", 1))
	}
	return keys, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

// completeMachines completes a first argument with machines, and the others with
// what follows.
func completeMachines(follows completion) completion {
	machines := completeNames(1, func(_ *cobra.Command, cfg *config.Config) (names []string) {
		if st, err := machineStore(cfg).Load(); err == nil {
			cfg, _ = st.Apply(cfg)
		}
		for _, m := range cfg.Machines {
			if names = append(names, m.Name); m.Name == "" {
				names[len(names)-1] = m.ID().String()
			}
		}
		for _, g := range cfg.Guests {
			if slices.ContainsFunc(g.NICs, func(n config.GuestNIC) bool { return n.Segment != "" }) {
				names = append(names, g.Node)
			}
		}
		return names
	})
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 && follows != nil {
			return follows(cmd, args[1:], prefix)
		}
		return machines(cmd, args, prefix)
	}
}

// guestNames are the guests of a configuration.
func guestNames(cfg *config.Config) []string {
	names := make([]string, len(cfg.Guests))
	for i, g := range cfg.Guests {
		names[i] = g.Name
	}
	return names
}
