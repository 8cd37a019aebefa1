package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/every-channel/ecboot/images"
	"github.com/every-channel/ecboot/internal/timeline"
)

func newImageCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "List what the binary carries to boot"}
	cmd.AddCommand(newImageListCommand())
	return cmd
}

func newImageListCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the embedded kernel, initramfs and boot programs with their digests",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			set, err := images.Default()
			if err != nil {
				return withCode(exitEnvironment, err)
			}
			list := set.List()
			return printList(cmd, output, "images", list, func(w *tabwriter.Writer) {
				fmt.Fprintln(w, "NAME\tKIND\tSIZE\tSHA-256\tORIGIN\tLICENCE")
				for _, i := range list {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", i.Name, i.Kind, timeline.FormatBytes(i.Size), i.SHA256[:16], i.Origin, i.Licence)
				}
			})
		},
	}
	outputFlag(cmd, &output)
	return cmd
}
