package main

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/every-channel/ecboot/dist"
)

func newInstallCommand() *cobra.Command {
	var output string
	var uninstall bool
	s := setup{}
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Make a service of ecboot: program, systemd's units, users, completion",
		Long: `Writes this program, systemd's units, the users that it needs, and completion for
bash, zsh and fish, and says what to do next. A file that is there and is not as
'ecboot install' has written it stays, unless --force is given.

--uninstall removes what was written and has not been changed since.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !path.IsAbs(s.prefix) || path.Clean(s.prefix) != s.prefix {
				return withCode(exitUsage, fmt.Errorf("--prefix %s: give an absolute path, such as /usr/local", s.prefix))
			}
			root, err := os.OpenRoot(s.dir)
			if err != nil {
				return withCode(exitUsage, fmt.Errorf("--root: %w", err))
			}
			defer root.Close()
			s.root = root
			act := s.uninstall
			if !uninstall {
				act = func() (*installation, error) {
					files, err := installFiles(cmd.Root(), s.prefix)
					if err != nil {
						return nil, err
					}
					return s.install(files)
				}
			}
			done, err := act()
			var at *fs.PathError
			if errors.Is(err, fs.ErrPermission) && errors.As(err, &at) {
				err = withCode(exitEnvironment, fmt.Errorf("%s: %w: run it as root", path.Join(s.dir, at.Path), at.Err))
			}
			if err != nil {
				return err
			}
			return done.print(cmd, output)
		},
	}
	cmd.Flags().StringVar(&s.dir, "root", "/", "install below this `DIR`, such as an image's root")
	cmd.Flags().StringVar(&s.prefix, "prefix", "/usr/local", "`DIR` within the root")
	cmd.Flags().BoolVar(&s.dryRun, "dry-run", false, "say what would be done, and do nothing")
	cmd.Flags().BoolVar(&s.force, "force", false, "replace or remove files that somebody has changed, too")
	cmd.Flags().BoolVar(&uninstall, "uninstall", false, "remove what was installed")
	outputFlag(cmd, &output)
	return cmd
}

// payload is a file to install.
type payload struct {
	path    string
	mode    fs.FileMode
	content []byte
}

// installFiles are those for a prefix, the program that runs now among them.
func installFiles(root *cobra.Command, prefix string) ([]payload, error) {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return nil, fmt.Errorf("read this program: %w", err)
	}
	files := []payload{{dist.Program(prefix), 0o755, self}}
	for _, f := range dist.Files(prefix) {
		files = append(files, payload{f.Path, 0o644, []byte(f.Content)})
	}
	for _, shell := range []struct {
		path     string
		generate func(io.Writer) error
	}{
		{"share/bash-completion/completions/ecboot", func(w io.Writer) error { return root.GenBashCompletionV2(w, true) }},
		{"share/zsh/site-functions/_ecboot", root.GenZshCompletion},
		{"share/fish/vendor_completions.d/ecboot.fish", func(w io.Writer) error { return root.GenFishCompletion(w, true) }},
	} {
		var script bytes.Buffer
		if err := shell.generate(&script); err != nil {
			return nil, err
		}
		files = append(files, payload{path.Join(prefix, shell.path), 0o644, script.Bytes()})
	}
	return files, nil
}

// setup writes below a root, and out of it through no link.
type setup struct {
	dir, prefix   string
	root          *os.Root
	dryRun, force bool
}

// installed is the record of what was written below a prefix.
type installed struct {
	Schema int                 `json:"schema"`
	Files  map[string][]string `json:"files"` // SHA-256 of what each may hold: while they are replaced, two
	Dirs   []string            `json:"dirs"`  // that were made for them
}

const installedSchema = 1

func (s *setup) recordFile() string { return path.Join(s.prefix, "share/ecboot/installed.json") }

// below is a path relative to the root.
func below(p string) string { return strings.TrimPrefix(p, "/") }

// record reads what was written before; nil if nothing was.
func (s *setup) record() (*installed, error) {
	b, err := s.root.ReadFile(below(s.recordFile()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var r installed
	if err := json.Unmarshal(b, &r); err != nil || r.Schema != installedSchema {
		return nil, fmt.Errorf("%s is no record of this ecboot's (%v): remove it to install anew", s.recordFile(), cmp.Or(err, fmt.Errorf("schema %d", r.Schema)))
	}
	return &r, nil
}

func (s *setup) writeRecord(r *installed) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return s.write(payload{s.recordFile(), 0o644, append(b, '\n')}, r)
}

// installation is what was done.
type installation struct {
	Schema int             `json:"schema"`
	DryRun bool            `json:"dry_run"`
	Files  []installedFile `json:"files"`
	Next   []string        `json:"next"` // commands
}

type installedFile struct {
	Path   string `json:"path"`
	Action string `json:"action"`
}

// What is done with a file.
const (
	actionWritten   = "written"
	actionUnchanged = "unchanged"
	actionRemoved   = "removed"
	actionKept      = "kept" // somebody has changed it
)

func (s *setup) installation() *installation {
	return &installation{Schema: 1, DryRun: s.dryRun, Files: []installedFile{}, Next: []string{}}
}

func (i *installation) add(path, action string) {
	i.Files = append(i.Files, installedFile{path, action})
}

func (i *installation) print(cmd *cobra.Command, output string) error {
	out := cmd.OutOrStdout()
	if output == "json" {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(i)
	}
	would := ""
	if i.DryRun {
		would = "would be "
	}
	for _, f := range i.Files {
		why := ""
		if f.Action == actionKept {
			why = "    # somebody has changed it; --force removes it"
		}
		fmt.Fprintf(out, "%s%s %s%s\n", would, f.Action, f.Path, why)
	}
	if len(i.Next) > 0 {
		fmt.Fprintf(out, "\nNext:\n  %s\n", strings.Join(i.Next, "\n  "))
	}
	return nil
}

func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// now returns the digest of what a file holds; empty if there is none.
func (s *setup) now(p string) (string, error) {
	st, err := s.root.Lstat(below(p))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if !st.Mode().IsRegular() {
		return "", fmt.Errorf("%s is no regular file: move it away", p)
	}
	b, err := s.root.ReadFile(below(p))
	return digest(b), err
}

// install writes what differs, all or nothing: whatever forbids a file is found
// before the first one is written.
func (s *setup) install(files []payload) (*installation, error) {
	record, err := s.record()
	if err != nil {
		return nil, err
	}
	upgrade := record != nil
	if !upgrade {
		record = &installed{Schema: installedSchema, Files: map[string][]string{}, Dirs: []string{}}
	}
	done := s.installation()
	var differ []payload
	var obstacles []error
	for _, f := range files {
		now, err := s.now(f.path)
		switch {
		case err != nil:
			obstacles = append(obstacles, err)
		case now == digest(f.content):
			done.add(f.path, actionUnchanged)
		case now == "" || s.force || slices.Contains(record.Files[f.path], now):
			done.add(f.path, actionWritten)
			differ = append(differ, f)
		default:
			obstacles = append(obstacles, fmt.Errorf("%s is not as 'ecboot install' has written it: move it away, or replace it with --force", f.path))
		}
	}
	obstacles = append(obstacles, s.packaged())
	if err := errors.Join(obstacles...); err != nil {
		return nil, err
	}
	done.Next = s.next(upgrade)
	if s.dryRun || len(differ) == 0 {
		return done, nil
	}
	// What was written is known even if this ends half way.
	for _, f := range differ {
		record.Files[f.path] = append(record.Files[f.path], digest(f.content))
	}
	if err := s.writeRecord(record); err != nil {
		return nil, err
	}
	for _, f := range differ {
		if err := s.write(f, record); err != nil {
			return nil, err
		}
		record.Files[f.path] = []string{digest(f.content)}
	}
	return done, s.writeRecord(record)
}

// packaged tells of an ecboot that a package has installed: under another prefix
// there would be two, and the units of one would hide those of the other.
func (s *setup) packaged() error {
	unit := path.Join(dist.Prefix, "lib/systemd/system/ecboot.service")
	if s.prefix == dist.Prefix || s.force {
		return nil
	}
	if _, err := s.root.Lstat(below(unit)); err != nil {
		return nil
	}
	return fmt.Errorf("%s is there, as of a package: remove that, or install over it with --prefix %s, or beside it with --force", unit, dist.Prefix)
}

// next is what to do after an installation.
func (s *setup) next(upgrade bool) (commands []string) {
	const config = "/etc/ecboot/ecboot.toml"
	enabled, systemd := s.enabled(), s.systemd()
	image := filepath.Clean(s.dir) != "/"
	ctl, now := "systemctl", " --now"
	if image {
		ctl, now = ctl+" --root="+s.dir, ""
	}
	enable, users, dirs := ctl+" enable"+now+" ecboot", "", ""
	if s.prefix != dist.Prefix && s.prefix != "/usr/local" {
		// systemd looks there for nothing by itself.
		lib := path.Join(s.prefix, "lib")
		units := path.Join(lib, "systemd/system")
		enable = ctl + " link " + path.Join(units, "ecboot.slice") + " && " + ctl + " enable" + now + " " + path.Join(units, "ecboot.service")
		users, dirs = " "+path.Join(lib, "sysusers.d/ecboot.conf"), " "+path.Join(lib, "tmpfiles.d/ecboot.conf")
	}
	switch {
	case image && enabled:
		return []string{} // JSON: a list, if an empty one
	case image:
		return []string{enable}
	case upgrade:
	case systemd:
		commands = append(commands, "systemd-sysusers"+users, "systemd-tmpfiles --create"+dirs)
	default:
		commands = append(commands, "groupadd --system ecboot", "useradd --system --user-group --shell /usr/sbin/nologin ecboot-guest")
	}
	if _, err := s.root.Stat(below(config)); err != nil {
		commands = append(commands, "mkdir -p /etc/ecboot && ecboot config init "+config)
	}
	switch {
	case !systemd:
		return append(commands, "ecboot up    # no systemd runs here, which would start it with the host")
	case enabled:
		return append(commands, "systemctl daemon-reload", "systemctl restart ecboot    # guests run on")
	}
	return append(commands, "systemctl daemon-reload", enable)
}

// systemd tells whether it runs there.
func (s *setup) systemd() bool {
	st, err := s.root.Lstat("run/systemd/system")
	return err == nil && st.IsDir()
}

// enabled tells whether systemd starts the service with the host.
func (s *setup) enabled() bool {
	_, err := s.root.Lstat("etc/systemd/system/multi-user.target.wants/ecboot.service")
	return err == nil
}

// partSuffix ends the name of a file that is not whole.
const partSuffix = ".ecboot-new"

// write makes a file whole or not at all, and notes the directories that it makes.
func (s *setup) write(f payload, record *installed) (err error) {
	var missing []string
	for dir := path.Dir(f.path); dir != "/"; dir = path.Dir(dir) {
		if _, err := s.root.Stat(below(dir)); err == nil {
			break
		}
		missing = append(missing, dir)
	}
	for _, dir := range slices.Backward(missing) {
		if err := s.root.Mkdir(below(dir), 0o755); err != nil {
			return err
		}
		record.Dirs = append(record.Dirs, dir)
	}
	part := below(f.path) + partSuffix
	defer func() {
		if err != nil {
			s.root.Remove(part)
		}
	}()
	if err := s.root.Remove(part); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file, err := s.root.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.mode)
	if err != nil {
		return err
	}
	_, err = file.Write(f.content)
	// Whatever the umask is.
	if err = errors.Join(err, file.Chmod(f.mode), file.Sync(), file.Close()); err != nil {
		return err
	}
	return s.root.Rename(part, below(f.path))
}

// uninstall removes what is as it was written, and the directories made for it.
func (s *setup) uninstall() (*installation, error) {
	record, err := s.record()
	if err != nil {
		return nil, err
	}
	if record == nil {
		return nil, fmt.Errorf("'ecboot install' has installed nothing under %s: what a package has installed, its manager removes", filepath.Join(s.dir, s.prefix))
	}
	if s.enabled() && !s.force {
		return nil, errors.New("the service is enabled: 'systemctl disable --now ecboot' first; what guests still run, 'ecboot guest list' shows")
	}
	done := s.installation()
	left := &installed{Schema: installedSchema, Files: map[string][]string{}, Dirs: record.Dirs}
	var remove []string
	parts := []string{s.recordFile() + partSuffix}
	for _, p := range slices.Sorted(maps.Keys(record.Files)) {
		parts = append(parts, p+partSuffix) // of an installation that was killed
		now, err := s.now(p)
		switch {
		case err != nil:
			return nil, err
		case now == "":
		case s.force || slices.Contains(record.Files[p], now):
			done.add(p, actionRemoved)
			remove = append(remove, p)
		default:
			done.add(p, actionKept)
			left.Files[p] = record.Files[p]
		}
	}
	if filepath.Clean(s.dir) == "/" && s.systemd() {
		done.Next = append(done.Next, "systemctl daemon-reload")
	}
	if s.dryRun {
		return done, nil
	}
	if len(left.Files) == 0 {
		remove = append(remove, s.recordFile())
	}
	for _, p := range append(parts, remove...) {
		if err := s.root.Remove(below(p)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	if len(left.Files) > 0 {
		return done, s.writeRecord(left)
	}
	// Deeper ones were noted later. Others may have put something there.
	for _, dir := range slices.Backward(record.Dirs) {
		_ = s.root.Remove(below(dir))
	}
	return done, nil
}
