package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/every-channel/ecboot/internal/api"
	"github.com/every-channel/ecboot/internal/config"
	"github.com/every-channel/ecboot/internal/durable"
)

func newGuestEditCommand(configPath *string) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "edit [GUEST]",
		Short: "Edit the configuration, check it, and let 'ecboot up' take it over",
		Long: `Edit a copy of the configuration file with $VISUAL or $EDITOR, at the table of the
guest if one is named. When it has no mistakes it replaces the file, and 'ecboot up'
takes it over: what is new starts if it is to start by itself, what is gone stops,
and what has changed goes on as it was until it is restarted.`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeDeclared(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			e := editor{stdin: os.Stdin, stdout: cmd.OutOrStdout(), stderr: cmd.ErrOrStderr(), load: loadConfig}
			path, _, err := guestConfig(cmd.Context(), *configPath)
			switch {
			case err != nil:
				return err
			case path == "":
				return withCode(exitUsage, errors.New("there is no configuration file to edit: 'ecboot config init /etc/ecboot/ecboot.toml' writes one"))
			}
			done, err := e.edit(cmd.Context(), path, args)
			if err != nil {
				return err
			}
			return printList(cmd, output, "edit", done, func(w *tabwriter.Writer) { done.writeText(w) })
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

// edited is what came of editing.
type edited struct {
	File     string   `json:"file"`
	Changes  []string `json:"changes"`  // of values, a line each
	Reloaded bool     `json:"reloaded"` // by 'ecboot up'
	Restart  []string `json:"restart"`  // guests that run as they were declared before
	// RestartUp is true when segments or servers have changed, which are opened
	// at the start.
	RestartUp bool `json:"restart_up"`

	written bool
}

func (e edited) writeText(w io.Writer) {
	for _, c := range e.Changes {
		fmt.Fprintln(w, c)
	}
	switch {
	case !e.written:
		fmt.Fprintf(w, "%s: nothing was changed\n", e.File)
	case len(e.Changes) == 0:
		fmt.Fprintf(w, "%s: nothing that counts was changed\n", e.File)
	case !e.Reloaded:
		fmt.Fprintf(w, "%s is written; no 'ecboot up' runs here that would take it over\n", e.File)
	default:
		fmt.Fprintf(w, "%s is written, and 'ecboot up' has taken it over\n", e.File)
	}
	if e.Reloaded && e.RestartUp {
		fmt.Fprintln(w, "[segment] and [server] hold as before until 'ecboot up' is restarted, as by 'systemctl restart ecboot'")
	}
	if len(e.Restart) > 0 {
		fmt.Fprintf(w, "still as before until 'ecboot guest restart %s'\n", strings.Join(e.Restart, " "))
	}
}

// editor changes a configuration file by a person's editor.
type editor struct {
	stdin          *os.File
	stdout, stderr io.Writer
	load           func(path string) (*config.Config, error)
}

// edit lets a person change the file at path; guest may hold the name of the
// guest to begin at.
func (e editor) edit(ctx context.Context, path string, guest []string) (done edited, err error) {
	done = edited{File: path, Changes: []string{}, Restart: []string{}}
	// A link stays one: what it leads to is replaced.
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return done, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return done, err
	}
	done.File = path
	if err := replaceable(path); err != nil {
		return done, withCode(exitEnvironment, err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		return done, err
	}
	previous, err := e.load(path)
	if err != nil {
		fmt.Fprintln(e.stderr, err) // it may be why somebody edits
	}
	line := 0
	if len(guest) == 1 {
		if line = guestLine(before, guest[0]); line == 0 && previous != nil {
			return done, noSuchGuest(guest, guestNames(previous))
		}
	}
	next, err := e.change(ctx, path, before, line)
	if err != nil || next == nil {
		return done, err
	}
	done.written, done.Changes = true, changes(previous, next)
	done.RestartUp = previous != nil && changesNetworks(previous, next)
	return done, e.reload(ctx, &done)
}

// replaceable says why a file cannot be replaced by this user.
func replaceable(path string) error {
	if strings.HasPrefix(path, "/nix/store/") {
		return fmt.Errorf("%s is made by NixOS: change services.ecboot.settings and run 'nixos-rebuild switch'", path)
	}
	dir := filepath.Dir(path)
	if err := errors.Join(unix.Access(dir, unix.W_OK), unix.Access(path, unix.R_OK)); err != nil {
		return fmt.Errorf("%s cannot be replaced by you (%w): whoever may write to %s can, as with 'sudo ecboot guest edit'", path, err, dir)
	}
	return nil
}

// change has a copy edited, checked, and put in the place of the file. It returns
// no configuration when the person has changed nothing; after an error the copy
// is kept if there is work in it.
func (e editor) change(ctx context.Context, path string, before []byte, line int) (next *config.Config, err error) {
	// Paths in the file are taken from its directory, so the copy is there.
	f, err := os.CreateTemp(filepath.Dir(path), ".edit-*-"+filepath.Base(path))
	if err != nil {
		return nil, err
	}
	copied := f.Name()
	defer func() {
		now, readErr := os.ReadFile(copied)
		switch {
		case errors.Is(readErr, fs.ErrNotExist): // it is in its place
		case err == nil || readErr == nil && bytes.Equal(now, before):
			err = errors.Join(err, os.Remove(copied))
		default:
			err = fmt.Errorf("%w\n%s is left as it is; your version is %s", err, path, copied)
		}
	}()
	_, err = f.Write(before)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if next, err = e.untilRight(ctx, path, copied, before, line); err != nil || next == nil {
		return nil, err
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, before) {
		return nil, fmt.Errorf("%s was changed by somebody else meanwhile", path)
	}
	return next, replace(path, copied)
}

// untilRight lets the person edit the copy until it has no mistakes.
func (e editor) untilRight(ctx context.Context, path, copied string, before []byte, line int) (*config.Config, error) {
	for answers := bufio.NewReader(e.stdin); ; {
		if err := e.open(copied, line); err != nil {
			return nil, err
		}
		after, err := os.ReadFile(copied)
		if err != nil {
			return nil, err
		}
		if bytes.Equal(after, before) {
			return nil, nil
		}
		next, err := e.load(copied)
		if err == nil {
			return next, nil
		}
		// The lines are those that the file would have.
		err = withCode(exitUsage, errors.New(strings.ReplaceAll(err.Error(), copied, path)))
		if !isTerminal(e.stdin) || ctx.Err() != nil {
			return nil, err
		}
		fmt.Fprintf(e.stderr, "%v\nedit again? [Y/n] ", err)
		answer, readErr := answers.ReadString('\n')
		if readErr != nil || strings.HasPrefix(strings.ToLower(strings.TrimSpace(answer)), "n") {
			return nil, withCode(exitUsage, errors.New("it has mistakes"))
		}
	}
}

// open runs the person's editor and waits for its end.
func (e editor) open(file string, line int) error {
	program := os.Getenv("VISUAL")
	if program == "" {
		program = os.Getenv("EDITOR")
	}
	for _, usual := range []string{"sensible-editor", "editor", "nano", "vi"} {
		if _, err := exec.LookPath(usual); program == "" && err == nil {
			program = usual
		}
	}
	if program == "" {
		return withCode(exitEnvironment, errors.New("which editor? Set EDITOR"))
	}
	args := []string{"-c", program + ` "$@"`, program}
	if line > 0 && takesLine.MatchString(program) {
		args = append(args, fmt.Sprintf("+%d", line))
	}
	// It is the person's to end, so no context: Ctrl-C is a key of its own.
	cmd := exec.Command("sh", append(args, file)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = e.stdin, os.Stderr, os.Stderr
	if isTerminalWriter(e.stdout) {
		cmd.Stdout = e.stdout
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("the editor %s: %w: EDITOR names another", program, err)
	}
	return nil
}

// takesLine matches editors that can be sent to a line by +LINE.
var takesLine = regexp.MustCompile(`(^|/)(sensible-editor|editor|nano|pico|vi|vim|nvim|vim\.\w+|emacs|emacsclient|micro|joe|jed|mg|ne|kak)( |$)`)

// guestLine is the line of the file in which the table of a guest begins; 0 when
// there is none in the usual way of writing.
func guestLine(text []byte, name string) int {
	header := regexp.MustCompile(`^\s*\[\s*guest\s*\.\s*["']?` + regexp.QuoteMeta(name) + `["']?\s*\]`)
	n := 0
	for line := range bytes.Lines(text) {
		if n++; header.Match(line) {
			return n
		}
	}
	return 0
}

// replace puts a file that lies beside path in its place, with the mode and the
// owner that path has.
func replace(path, with string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	f, err := os.OpenFile(with, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	// The owner first: a change of it may take bits off the mode.
	if err := errors.Join(f.Chown(int(st.Uid), int(st.Gid)), f.Chmod(fs.FileMode(st.Mode&0o777))); err != nil {
		f.Close()
		return err
	}
	return durable.Replace(f, path)
}

// changes tells what differs between two configurations as they are in effect;
// before may be nil, of a file that had mistakes.
func changes(before, after *config.Config) []string {
	if before == nil {
		return []string{"the file had mistakes, and has none now"}
	}
	old, new := tables(before.Show()), tables(after.Show())
	list := []string{}
	for _, t := range old.order {
		if new.lines[t] == nil {
			list = append(list, t+" is gone")
		}
	}
	for _, t := range new.order {
		was, is := old.lines[t], new.lines[t]
		if was == nil {
			list = append(list, t+" is new")
			continue
		}
		keys := map[string]bool{}
		for _, line := range is {
			keys[keyOf(line)] = true
			if !slices.Contains(was, line) {
				list = append(list, t+" "+line)
			}
		}
		for _, line := range was {
			if key := keyOf(line); !keys[key] {
				list = append(list, t+" "+key+" is taken out")
			}
		}
	}
	return list
}

func keyOf(line string) string {
	key, _, _ := strings.Cut(line, " = ")
	return key
}

// shown is what Config.Show prints: the lines of each table by its header.
type shown struct {
	order []string
	lines map[string][]string
}

func tables(text string) shown {
	s := shown{lines: map[string][]string{}}
	count := map[string]int{}
	table := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "["):
			table = line
			if count[line]++; strings.HasPrefix(line, "[[") {
				table = fmt.Sprintf("%s number %d", line, count[line])
			}
			s.order = append(s.order, table)
			s.lines[table] = []string{}
		case line != "":
			s.lines[table] = append(s.lines[table], line)
		}
	}
	return s
}

// reload tells the supervisor, if there is one, and asks who goes on as before.
func (e editor) reload(ctx context.Context, done *edited) error {
	s, err := openSupervisor(ctx)
	if errors.Is(err, errNoSupervisor) {
		return nil // the text says so
	}
	var st api.Status
	if err == nil {
		st, err = s.Status(ctx)
	}
	if used, linkErr := filepath.EvalSymlinks(st.Config); err == nil && linkErr == nil && st.Config != "" && used != done.File {
		err = fmt.Errorf("it reads %s", st.Config)
	}
	if err == nil {
		err = s.Reload(ctx)
	}
	if err != nil {
		return fmt.Errorf("%s is written, but 'ecboot up' has not taken it over: %w", done.File, err)
	}
	done.Reloaded = true
	guests, err := s.Guests(ctx)
	for _, g := range guests {
		if len(g.Drift) > 0 && isUp(g) {
			done.Restart = append(done.Restart, g.Name)
		}
	}
	return err
}
