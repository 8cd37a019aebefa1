package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// listSchema is raised when a field of a list's elements changes its meaning.
const listSchema = 1

func outputFlag(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "text", "`text|json`")
}

// printList prints a list as a table or, with -o json, as a document with the
// list under name.
func printList(cmd *cobra.Command, output, name string, list any, table func(*tabwriter.Writer)) error {
	switch output {
	case "json":
		enc := json.NewEncoder(cmd.OutOrStdout())
		enc.SetIndent("", "  ")
		return enc.Encode(map[string]any{"schema": listSchema, name: list})
	case "text":
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		table(w)
		return w.Flush()
	}
	return withCode(exitUsage, fmt.Errorf("-o %s: want text or json", output))
}
