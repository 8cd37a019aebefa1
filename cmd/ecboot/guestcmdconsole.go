package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image/png"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/every-channel/ecboot/internal/api"
	"github.com/every-channel/ecboot/vmm"
)

func newGuestConsoleCommand() *cobra.Command {
	var readOnly bool
	var output string
	cmd := &cobra.Command{
		Use:   "console GUEST",
		Short: "Sit down at a guest's console",
		Long: `Sit down at a guest's console: first what it has shown lately, then what it shows.
On a terminal you type into it, and ` + escapeKeyName + ` leaves it; the guest goes on. One may
type at a time, any number may watch. Without a terminal, what comes from a pipe or
a file is typed, and the command ends with the guest. With -o json it only watches
and prints an object per line of text.`,
		Example: `  ecboot guest console db
  ecboot guest console db --read-only | tee boot.log
  echo poweroff | ecboot guest console db`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeGuests(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			s, g, err := openGuest(ctx, args[0])
			if err != nil {
				return err
			}
			if !hasConsole(g) {
				return notRunning(g)
			}
			if output == "json" {
				return s.follow(ctx, g.Name, 0, consoleJSON(cmd.OutOrStdout(), g.Name))
			}
			a := attachment{s: s, guest: g.Name, stdin: os.Stdin, stdout: cmd.OutOrStdout(), stderr: cmd.ErrOrStderr()}
			return a.run(ctx, readOnly)
		},
	}
	cmd.Flags().BoolVar(&readOnly, "read-only", false, "only watch")
	outputFlag(cmd, &output)
	return cmd
}

// hasConsole reports whether anything of a guest runs that could have one.
func hasConsole(g api.Guest) bool { return g.State == api.Running || g.State == api.Stopping }

// notRunning says why there is nothing to see of a guest.
func notRunning(g api.Guest) error {
	why := ""
	if g.LastExit != "" {
		why = " (" + g.LastExit + ")"
	}
	return fmt.Errorf("%s is %s%s: 'ecboot guest log %[1]s' shows what it said last, 'ecboot guest start %[1]s' starts it", g.Name, g.State, why)
}

// attachment is a person or a script at a guest's console.
type attachment struct {
	s              *supervisor
	guest          string
	stdin          *os.File
	stdout, stderr io.Writer
}

// errLeft is what ends typing when somebody who only watches presses Ctrl-C.
var errLeft = errors.New("left")

func (a attachment) run(ctx context.Context, readOnly bool) error {
	terminal := isTerminal(a.stdin) && isTerminalWriter(a.stdout)
	write := !readOnly && (terminal || feeds(a.stdin))
	conn, err := a.s.Console(ctx, a.guest, write)
	if errors.Is(err, api.ErrBusy) {
		if !terminal {
			return fmt.Errorf("%s: somebody else types at its console: --read-only watches", a.guest)
		}
		fmt.Fprintf(a.stderr, "somebody else types at the console of %s: you only watch\n", a.guest)
		write = false
		conn, err = a.s.Console(ctx, a.guest, false)
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	shown := make(chan error, 1)
	show := func() {
		var err error
		if terminal {
			err = showPast(a.stdout, conn)
		}
		if err == nil {
			_, err = io.Copy(a.stdout, conn)
		}
		if ctx.Err() != nil || errors.Is(err, os.ErrClosed) || isReset(err) {
			err = nil
		}
		shown <- err
		cancel()
	}
	if !terminal {
		if write {
			go io.Copy(conn, a.stdin)
		}
		show()
		return <-shown
	}
	fmt.Fprintf(a.stderr, "this is the console of %s; %s leaves it, and the guest goes on\n", a.guest, escapeKeyName)
	restore, err := rawTerminal(a.stdin)
	if err != nil {
		return err
	}
	defer restore()
	go show()
	var keys io.Writer = conn
	if !write {
		keys = watcherKeys{}
	}
	err = typeInto(ctx, a.stdin, keys)
	ended := ctx.Err() != nil
	cancel()
	conn.Close()
	showErr := <-shown
	restore()
	if showErr != nil {
		return showErr
	}
	// The guest may have left colours, and the cursor hidden.
	fmt.Fprint(a.stdout, "\x1b[0m\x1b[?25h\r\n")
	switch {
	case ended:
		fmt.Fprintf(a.stderr, "the console of %s has ended: 'ecboot guest show %[1]s' says why\n", a.guest)
		return nil
	case errors.Is(err, errLeft):
		return nil
	}
	return err
}

// feeds reports whether something was put in front of the command to be typed.
func feeds(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && (st.Mode().IsRegular() || st.Mode()&(os.ModeNamedPipe|os.ModeSocket) != 0)
}

// watcherKeys takes what somebody types who only watches.
type watcherKeys struct{}

func (watcherKeys) Write(p []byte) (int, error) {
	if bytes.IndexByte(p, 0x03) >= 0 {
		return 0, errLeft
	}
	return len(p), nil
}

// isReset reports whether err only means that the other end is gone.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// showPast shows what a console has shown before. What it asked the terminal then
// is left out: the answer would be typed into a guest that no longer waits for it.
func showPast(w io.Writer, c *api.Console) error {
	past := make([]byte, c.History)
	n, err := io.ReadFull(c, past)
	if _, err := w.Write(terminalQuery.ReplaceAll(past[:n], nil)); err != nil {
		return err
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// terminalQuery matches what terminals answer: requests for status, attributes,
// modes, sizes and colours (ECMA-48 DSR and DA, and what xterm added).
var terminalQuery = regexp.MustCompile(`\x05|\x1bZ|\x1b\[[?>=]?[0-9;]*(?:[cnt]|\$p)|\x1b\][0-9;]+;\?(?:\x07|\x1b\\)|\x1bP[+$]q[^\x1b]*\x1b\\`)

// follow emits the last lines of a guest's console, 0 for all that it has, and
// then those that come, until the end of the guest or of ctx.
func (s *supervisor) follow(ctx context.Context, name string, lines int, emit func(line string)) error {
	conn, err := s.Console(ctx, name, false)
	if err != nil {
		return err
	}
	defer conn.Close()
	var past []string
	sink := func(line string) { past = append(past, line) }
	text := vmm.Lines(func(line string) { sink(line) })
	_, err = io.CopyN(text, conn, int64(conn.History))
	if lines > 0 {
		past = past[max(0, len(past)-lines):]
	}
	for _, line := range past {
		emit(line)
	}
	sink = emit
	if err == nil {
		_, err = io.Copy(text, conn)
	}
	if ctx.Err() != nil || isReset(err) || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// consoleLine is one line of text on a guest's console.
type consoleLine struct {
	Schema int    `json:"schema"`
	Name   string `json:"name"`
	Line   string `json:"line"`
}

func consoleJSON(w io.Writer, name string) (emit func(line string)) {
	enc := json.NewEncoder(w)
	return func(line string) { enc.Encode(consoleLine{listSchema, name, line}) }
}

// guestLog is the answer of 'guest log -o json'.
type guestLog struct {
	Name  string   `json:"name"`
	Lines []string `json:"lines"`
}

func newGuestLogCommand() *cobra.Command {
	var lines int
	var follow bool
	var output string
	cmd := &cobra.Command{
		Use:   "log GUEST",
		Short: "Print what a guest has said on its console, as plain text",
		Long: `Print the last lines that a guest has said on its console, as plain text: what
firmware sends to draw its screen is left out. A guest that has ended keeps its log.
With -f it goes on until the guest ends or you press Ctrl-C; with -o json, too,
each line is then an object.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeGuests(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if lines < 0 {
				return withCode(exitUsage, fmt.Errorf("-n %d: want a number of lines, 0 for all that are kept", lines))
			}
			ctx, stdout := cmd.Context(), cmd.OutOrStdout()
			s, g, err := openGuest(ctx, args[0])
			if err != nil {
				return err
			}
			if follow {
				if !hasConsole(g) {
					return notRunning(g)
				}
				emit := consoleJSON(stdout, g.Name)
				if output == "text" {
					emit = func(line string) { fmt.Fprintln(stdout, line) }
				}
				return s.follow(ctx, g.Name, lines, emit)
			}
			text, err := s.Log(ctx, g.Name, lines)
			if err != nil {
				return err
			}
			if len(text) == 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s has said nothing\n", g.Name)
			}
			if output == "json" {
				l := guestLog{g.Name, []string{}}
				for line := range strings.Lines(string(text)) {
					l.Lines = append(l.Lines, strings.TrimRight(line, "\r\n"))
				}
				return printList(cmd, output, "log", l, func(*tabwriter.Writer) {})
			}
			_, err = stdout.Write(text)
			return err
		},
	}
	cmd.Flags().IntVarP(&lines, "lines", "n", 100, "how many `LINES`, 0 for all that are kept")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what the guest says from now on")
	outputFlag(cmd, &output)
	return cmd
}

// screenshot is the answer of 'guest screenshot -o json'.
type screenshot struct {
	Name   string `json:"name"`
	File   string `json:"file"`
	Bytes  int    `json:"bytes"`
	Width  int    `json:"width"`
	Height int    `json:"height"`
}

func newGuestScreenshotCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "screenshot GUEST FILE.png|-",
		Short: "Write a picture of a guest's screen to a file, as PNG",
		Args:  cobra.ExactArgs(2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return []string{"png"}, cobra.ShellCompDirectiveFilterFileExt
			}
			return completeGuests(1)(cmd, args, prefix)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, file := cmd.Context(), args[1]
			if file == "-" && (output == "json" || isTerminalWriter(cmd.OutOrStdout())) {
				return withCode(exitUsage, errors.New("a picture on this output helps nobody: name a file, or send it through a pipe"))
			}
			s, g, err := openGuest(ctx, args[0])
			if err != nil {
				return err
			}
			if !hasConsole(g) {
				return notRunning(g)
			}
			picture, err := s.Screenshot(ctx, g.Name)
			if err != nil {
				return err
			}
			if file == "-" {
				_, err := cmd.OutOrStdout().Write(picture)
				return err
			}
			size, err := png.DecodeConfig(bytes.NewReader(picture))
			if err != nil {
				return fmt.Errorf("what came as the picture of %s is none: %w", g.Name, err)
			}
			if err := os.WriteFile(file, picture, 0o644); err != nil {
				return err
			}
			path, err := filepath.Abs(file)
			if err != nil {
				return err
			}
			shot := screenshot{g.Name, path, len(picture), size.Width, size.Height}
			return printList(cmd, output, "screenshot", shot, func(w *tabwriter.Writer) {
				fmt.Fprintf(w, "%s: %d×%d to %s\n", g.Name, size.Width, size.Height, file)
			})
		},
	}
	outputFlag(cmd, &output)
	return cmd
}
