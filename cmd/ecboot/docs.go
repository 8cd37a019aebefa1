package main

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/every-channel/ecboot/internal/config"
)

// newDocsCommand is for those who make packages.
func newDocsCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:    "docs --man DIR",
		Short:  "Write the manual pages: of each verb, and of the configuration",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				return withCode(exitUsage, errors.New("where to? 'ecboot docs --man DIR'"))
			}
			return writeManual(cmd.Root(), dir)
		},
	}
	cmd.Flags().StringVar(&dir, "man", "", "the `DIR`ectory to write them to")
	return cmd
}

// writeManual writes ecboot.1, ecboot-VERB.1 and ecboot.toml.5. Their date is
// $SOURCE_DATE_EPOCH, where it is set.
func writeManual(root *cobra.Command, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	date := time.Now()
	if epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64); err == nil {
		date = time.Unix(epoch, 0)
	}
	header := &doc.GenManHeader{Section: "1", Date: &date, Source: "ecboot " + version, Manual: "ecboot"}
	root.DisableAutoGenTag = true
	if err := doc.GenManTree(root, header, dir); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "ecboot.toml.5"), manualOf(config.Reference, date, header.Source), 0o644)
}
