package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/every-channel/ecboot/internal/config"
)

// TestManual wants a page of each verb that help lists, and every key on the page
// of the configuration.
func TestManual(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	dir := t.TempDir()
	root, _ := newRoot()
	root.InitDefaultCompletionCmd()
	if err := writeManual(root, dir); err != nil {
		t.Fatal(err)
	}
	pages := func(dir string) (n int) {
		files, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	var walk func(cmd *cobra.Command)
	verbs := 0
	walk = func(cmd *cobra.Command) {
		verbs++
		page := strings.ReplaceAll(cmd.CommandPath(), " ", "-") + ".1"
		if text, err := os.ReadFile(filepath.Join(dir, page)); err != nil || !strings.Contains(string(text), "2023") {
			t.Errorf("%s: %v", page, err)
		}
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() {
				walk(sub)
			}
		}
	}
	walk(root)
	if got := pages(dir); got != verbs+1 {
		t.Errorf("%d pages of %d verbs and the configuration", got, verbs)
	}
	page, err := os.ReadFile(filepath.Join(dir, "ecboot.toml.5"))
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range config.Keys() {
		name := roffText(key[strings.LastIndex(key, ".")+1:])
		if !strings.Contains(string(page), name+" = ") {
			t.Errorf("the page of the configuration lacks %s", key)
		}
	}
	if man, err := exec.LookPath("man"); err == nil {
		cmd := exec.Command(man, "--warnings", "-l", filepath.Join(dir, "ecboot.toml.5"))
		cmd.Env = append(os.Environ(), "MANPAGER=cat", "LC_ALL=C.UTF-8")
		var complaints strings.Builder
		cmd.Stderr = &complaints
		if out, err := cmd.Output(); err != nil || complaints.Len() > 0 || !strings.Contains(string(out), "[segment.private]") {
			t.Errorf("man: %v, %s\n%.400s", err, complaints.String(), out)
		}
	}
}

func TestManualOfReference(t *testing.T) {
	const reference = `# First - with a ~.
#
#   one  a thing
#   two  another
# after it

[a]
key = "\x" # why
#other = 1


#[[b]]
.odd = 2
`
	const want = `.PP
First \- with a \(ti.
.PP
one  a thing
.br
two  another
.br
after it
.PP
.RS 4
.EX
[a]
key = "\ex" # why
#other = 1
.EE
.RE
.SH b
.PP
.RS 4
.EX
#[[b]]
\&.odd = 2
.EE
.RE
.SH SEE ALSO
`
	page := string(manualOf(reference, time.Unix(0, 0), "ecboot 1"))
	_, got, _ := strings.Cut(page, ".SH DESCRIPTION\n")
	if got, _, _ = strings.Cut(got, ".BR"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
