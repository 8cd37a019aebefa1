package images

import (
	"os"
	"os/exec"
	"path"
	"regexp"
	"strings"
	"testing"
)

// Every module that is linked into ecboot must be named in NOTICE.
func TestNotice(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("needs the program go")
	}
	notice, err := os.ReadFile("../NOTICE")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}}{{end}}{{end}}", "../cmd/ecboot").Output()
	if err != nil {
		t.Fatal(err)
	}
	major := regexp.MustCompile(`/(v[0-9]+|src)$`)
	for module := range strings.FieldsSeq(string(out)) {
		dir, base := path.Split(major.ReplaceAllString(module, ""))
		found := false
		for line := range strings.Lines(string(notice)) {
			found = found || strings.Contains(line, " "+dir) && regexp.MustCompile(`[/ ]`+regexp.QuoteMeta(base)+`[ ,\n]`).MatchString(line)
		}
		if !found {
			t.Errorf("NOTICE does not name %s", module)
		}
	}
}
