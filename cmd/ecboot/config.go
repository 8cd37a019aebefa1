package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
)

// loadConfig finds and reads the configuration.
func loadConfig(explicit string) (*config.Config, error) {
	path, err := config.Find(explicit)
	if err != nil {
		return nil, withCode(exitUsage, err)
	}
	cfg, err := config.Load(path, guestComplaints)
	return cfg, withCode(exitUsage, err)
}

func newConfigCommand(path *string) *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Write, check and show the configuration"}
	cmd.AddCommand(
		&cobra.Command{
			Use:   "init [FILE]",
			Short: "Write a configuration to begin with (default FILE: ecboot.toml)",
			Args:  cobra.MaximumNArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				file := "ecboot.toml"
				if len(args) == 1 {
					file = args[0]
				}
				return initConfig(cmd, file)
			},
		},
		&cobra.Command{
			Use:   "check [FILE]",
			Short: "Report every mistake of the configuration",
			Args:  cobra.MaximumNArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				if len(args) == 1 {
					*path = args[0]
				}
				found, err := config.Find(*path)
				if err != nil {
					return withCode(exitUsage, err)
				}
				if found == "" {
					fmt.Fprintln(cmd.OutOrStdout(), "no configuration file: defaults hold; 'ecboot config init' writes one to begin with")
					return nil
				}
				if _, err := config.Load(found, guestComplaints); err != nil {
					return withCode(exitUsage, err)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: no mistakes\n", found)
				return nil
			},
		},
		newConfigShowCommand(path),
	)
	return cmd
}

func newConfigShowCommand(path *string) *cobra.Command {
	var reference, options bool
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the configuration as it is in effect, defaults included",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case reference:
				fmt.Fprint(cmd.OutOrStdout(), config.Reference)
				return nil
			case options:
				fmt.Fprintln(cmd.OutOrStdout(), strings.Join(boot.OptionNames(), "\n"))
				return nil
			}
			cfg, err := loadConfig(*path)
			if err != nil {
				return err
			}
			fmt.Fprint(cmd.OutOrStdout(), cfg.Show())
			return nil
		},
	}
	cmd.Flags().BoolVar(&reference, "reference", false, "show the manual of all keys instead")
	cmd.Flags().BoolVar(&options, "options", false, "show the DHCP options that have a name instead")
	cmd.MarkFlagsMutuallyExclusive("reference", "options")
	return cmd
}

// initConfig never overwrites a file.
func initConfig(cmd *cobra.Command, file string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return withCode(exitUsage, fmt.Errorf("%s exists already: remove it first, or give another name", file))
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(config.Starter)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(file))
	}
	fmt.Fprintf(cmd.OutOrStdout(), "wrote %s; 'ecboot config show --reference' explains all keys\n", file)
	return nil
}
