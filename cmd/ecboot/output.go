package main

import (
	"encoding/json"
	"errors"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// listSchema is raised when a field of a list's elements changes its meaning.
const listSchema = 1

// outputFlag adds -o. A form that there is none of is refused before anything is
// done.
func outputFlag(cmd *cobra.Command, output *string) {
	*output = "text"
	cmd.Flags().VarP((*outputForm)(output), "output", "o", "`text|json`")
}

// outputForm is a pflag.Value.
type outputForm string

func (f *outputForm) String() string { return string(*f) }
func (f *outputForm) Type() string   { return "form" }

func (f *outputForm) Set(s string) error {
	if s != "text" && s != "json" {
		return errors.New("want text or json")
	}
	*f = outputForm(s)
	return nil
}

// printList prints a list as a table or, with -o json, as a document with the
// list under name.
func printList(cmd *cobra.Command, output, name string, list any, table func(*tabwriter.Writer)) error {
	if output == "json" {
		enc := json.NewEncoder(cmd.OutOrStdout())
		enc.SetIndent("", "  ")
		return enc.Encode(map[string]any{"schema": listSchema, name: list})
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	table(w)
	return w.Flush()
}
