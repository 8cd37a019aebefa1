package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/every-channel/ecboot/initramfs"
	"github.com/every-channel/ecboot/internal/timeline"
)

func newInitramfsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "initramfs", Short: "Build u-root archives and look into them"}
	cmd.AddCommand(newInitramfsBuildCommand(), newInitramfsListCommand())
	return cmd
}

// initramfsCache is where built archives are kept.
func initramfsCache() string { return filepath.Join(userDirs().Cache, "initramfs") }

func newInitramfsBuildCommand() *cobra.Command {
	spec := initramfs.Spec{}
	var out, compression string
	var files []string
	cmd := &cobra.Command{
		Use:   "build",
		Short: "Build an archive of u-root commands, layers and files",
		Long: `Build an initramfs of u-root commands and ecboot's guest program. The same
commands and files give the same bytes; what was built before comes out of the
cache. Needs Go, and its module proxy until Go has u-root's source.`,
		Example: `  ecboot initramfs build -o my.cpio.zst --commands core,-sshd
  ecboot initramfs build -o my.cpio.zst --file /etc/motd=motd --layer ./overlay`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			spec.Compression = initramfs.Compression(compression)
			spec.Files = map[string]string{}
			for _, f := range files {
				to, from, ok := strings.Cut(f, "=")
				if !ok || to == "" || from == "" {
					return withCode(exitUsage, fmt.Errorf("--file %s: want PATH-IN-THE-ARCHIVE=FILE", f))
				}
				spec.Files[to] = from
			}
			if cmd.Flags().Changed("output") { // a build may take its time
				if dir := filepath.Dir(out); out == "" || !isDir(dir) {
					return withCode(exitUsage, fmt.Errorf("--output %q: want a file in a directory that is there", out))
				}
			}
			log := newLogger(cmd.ErrOrStderr(), slog.LevelInfo)
			img, err := initramfs.Build(cmd.Context(), spec, initramfs.Options{CacheDir: initramfsCache(), Logger: log})
			if err != nil {
				return err
			}
			how := "built"
			if img.Cached {
				how = "from the cache"
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%s in %s, %s, sha256 %s\n", how, img.Took.Round(time.Millisecond), timeline.FormatBytes(img.Size), img.SHA256)
			if out == "" {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), img.Path)
				return err
			}
			return copyFile(img.Path, out)
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&out, "output", "o", "", "write the archive to `FILE` (default: print its path in the cache)")
	fs.StringSliceVar(&spec.Commands, "commands", initramfs.DefaultSpec().Commands, "u-root `COMMANDS`, import paths or templates such as core; -NAME takes one out")
	fs.StringArrayVar(&files, "file", nil, "`PATH=FILE`: put FILE into the archive at PATH")
	fs.StringArrayVar(&spec.Layers, "layer", nil, "`DIR|ARCHIVE` to lay over the commands")
	fs.StringVar(&spec.Arch, "arch", "amd64", "`amd64|arm64`")
	fs.StringVar(&compression, "compression", string(initramfs.Zstd), "`zstd|gzip|none`")
	fs.IntVar(&spec.Level, "level", 0, "compression `LEVEL` (default: the compression's own)")
	fs.BoolVar(&spec.NoGuest, "no-guest", false, "leave out ecboot's guest program, which reports to the server and heeds the power button")
	return cmd
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// copyFile writes to beside its final place first, so that it appears whole or
// not at all.
func copyFile(from, to string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	tmp, err := os.CreateTemp(filepath.Dir(to), ".ecboot-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	_, err = io.Copy(tmp, src)
	if err = errors.Join(err, tmp.Chmod(0o644), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), to)
}

func newInitramfsListCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "ls FILE",
		Short: "List the contents of an archive",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := initramfs.List(args[0])
			if err != nil {
				return err
			}
			return printList(cmd, output, "entries", list, func(w *tabwriter.Writer) {
				for _, e := range list {
					name := e.Name
					if e.Target != "" {
						name += " -> " + e.Target
					}
					fmt.Fprintf(w, "%s\t%d\t%s\n", e.Mode, e.Size, name)
				}
			})
		},
	}
	outputFlag(cmd, &output)
	return cmd
}
