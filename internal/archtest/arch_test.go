package archtest

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/every-channel/ecboot"

// layer is what a package may import in code that is not a test.
type layer struct {
	pkg  string   // below the module
	ours []string // packages of this module
	std  bool     // nothing but the standard library besides
	not  []string // packages that it must do without all the same
	why  string
}

const (
	whyVocabulary = "the vocabulary that everything shares must not depend on anything that uses it"
	whyServer     = "servers know neither each other nor who assembles them: what crosses is a func value or a small interface that the consumer declares, wired in cmd/ecboot/stack.go"
	whyPart       = "it is useful by itself: what it needs of others is passed to it"
	whyCommand    = "a program; nobody imports it"
	whyTests      = "it serves tests only"
)

// all stands for every package but programs and helpers of tests.
const all = "*"

// layers has every package. A new one needs a row.
var layers = []layer{
	{pkg: "internal/boot", std: true, not: []string{"os", "time", "io/fs", "net/http", "log/slog"},
		why: whyVocabulary + "; and it is pure: no packets, no files, no clock"},
	{pkg: "internal/timeline", std: true, not: []string{"net", "net/http", "os/exec"}, why: whyVocabulary},
	{pkg: "internal/nuisance", std: true, why: whyVocabulary},
	{pkg: "internal/tail", std: true, why: whyVocabulary},

	{pkg: "dhcpd", ours: []string{"internal/boot", "internal/nuisance", "internal/timeline"}, why: whyServer},
	{pkg: "tftpd", ours: []string{"internal/nuisance", "internal/timeline"}, why: whyServer},
	{pkg: "httpboot", ours: []string{"internal/boot", "internal/nuisance", "internal/timeline"}, why: whyServer},
	{pkg: "vmm", ours: []string{"internal/tail", "internal/timeline"}, why: "it runs one machine and knows no bridge: its tap is passed to it as an open file"},

	{pkg: "images", why: whyPart},
	{pkg: "initramfs", why: whyPart},
	{pkg: "internal/lan", why: whyPart},
	{pkg: "internal/zfs", why: whyPart},
	{pkg: "internal/nspawn", ours: []string{"internal/tail"}, why: whyPart},
	{pkg: "internal/durable", why: whyPart},
	{pkg: "internal/keeper", ours: []string{"internal/durable", "internal/nspawn", "internal/timeline", "vmm"}, why: "it runs what it is told to, and what a guest is made of is passed to it"},
	{pkg: "internal/supervise", ours: []string{"internal/durable", "internal/keeper", "internal/timeline"}, why: "it decides when guests start and stop; what a guest is made of is prepared by cmd/ecboot"},
	{pkg: "internal/scope", why: whyPart},
	{pkg: "internal/sdnotify", why: whyPart},
	{pkg: "dist", std: true, why: whyPart},
	{pkg: "internal/doctor", why: whyPart},
	{pkg: "internal/netroot", ours: []string{"internal/boot"}, why: whyServer + "; it is what two of them serve"},
	{pkg: "internal/config", ours: []string{"internal/boot"},
		why: "each package has a small config of its own, into which cmd/ecboot translates the file's"},

	{pkg: "internal/guest", ours: []string{"internal/boot", "internal/config", "internal/durable"}, why: "it decides on the addresses of guests that the configuration declares, and runs none"},
	{pkg: "internal/fleet", ours: []string{"internal/boot", "internal/config", "internal/durable"}, why: "it lays what was said at run time over the configuration"},
	{pkg: "internal/api", ours: []string{"internal/boot", "internal/timeline"}, why: "what it tells is passed to it, so that it can serve any of the parts"},

	{pkg: "initramfs/guest", why: "its source travels inside the ecboot binary and is compiled where nothing else of ecboot is"},
	{pkg: "images/gen", ours: []string{"images", "initramfs"}, why: whyCommand},
	{pkg: "internal/compat", std: true, why: whyCommand},
	{pkg: "cmd/ecboot", ours: []string{all}, why: "it assembles everything; " + whyCommand},

	{pkg: "internal/nettest", why: whyTests},
	{pkg: "internal/sim", ours: []string{"internal/nettest"}, why: whyTests},
	{pkg: "internal/systemdtest", ours: []string{"internal/nspawn"}, why: whyTests},
	{pkg: "internal/bench", why: whyTests},
	{pkg: "internal/archtest", why: whyTests},
	{pkg: "internal/debtest", ours: []string{"dist", "internal/nettest", "internal/nspawn", "internal/systemdtest"}, why: whyTests},
	{pkg: "internal/nixtest", ours: []string{"dist", "internal/config"}, why: whyTests},
}

// testOnly may be imported by tests only.
var testOnly = []string{"internal/nettest", "internal/sim", "internal/systemdtest", "internal/bench", "internal/archtest", "internal/debtest", "internal/nixtest"}

// goPackage is what “go list -json” says of a package.
type goPackage struct {
	Dir, ImportPath, Name string
	Standard              bool
	Module                *struct{ Path string }
	Imports               []string
	GoFiles, CgoFiles     []string
	IgnoredGoFiles        []string // for other systems or build tags
	TestGoFiles           []string
	XTestGoFiles          []string
}

func (p goPackage) ours() bool { return p.Module != nil && p.Module.Path == module }

// name is the path below the module.
func (p goPackage) name() string { return strings.TrimPrefix(p.ImportPath, module+"/") }

// code is the files that are not tests.
func (p goPackage) code() []string {
	files := slices.Concat(p.GoFiles, p.CgoFiles)
	for _, f := range p.IgnoredGoFiles {
		if !strings.HasSuffix(f, "_test.go") {
			files = append(files, f)
		}
	}
	return files
}

// listPackages returns all packages of the module and what they depend on.
// Packages that do not compile are listed too: that is for others to report.
func listPackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-deps", "-json=Dir,ImportPath,Name,Standard,Module,Imports,GoFiles,CgoFiles,IgnoredGoFiles,TestGoFiles,XTestGoFiles", "./...")
	cmd.Dir = filepath.Join("..", "..")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("the program go is missing")
	}
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var list []goPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

func ourPackages(t *testing.T) []goPackage {
	t.Helper()
	ours := slices.DeleteFunc(listPackages(t), func(p goPackage) bool { return !p.ours() })
	if len(ours) < 5 {
		t.Fatalf("go list found only %d packages of %s", len(ours), module)
	}
	return ours
}

func TestImports(t *testing.T) {
	list := listPackages(t)
	standard := map[string]bool{}
	for _, p := range list {
		standard[p.ImportPath] = p.Standard
	}
	for _, p := range list {
		if !p.ours() {
			continue
		}
		i := slices.IndexFunc(layers, func(l layer) bool { return l.pkg == p.name() })
		if i < 0 {
			t.Errorf("%s has no row in the table of layers: say there what it may import, and in docs/architecture.md what it is for", p.name())
			continue
		}
		for _, complaint := range layers[i].judge(p.Imports, standard) {
			t.Error(complaint)
		}
		if len(p.CgoFiles) > 0 {
			t.Errorf("%s uses cgo: ecboot is one static binary", p.name())
		}
	}
}

// judge returns what is wrong with the imports of the layer's package.
func (l layer) judge(imports []string, standard map[string]bool) (complaints []string) {
	complain := func(path, why string) {
		complaints = append(complaints, l.pkg+" imports "+path+": "+why)
	}
	for _, path := range imports {
		name, isOurs := strings.CutPrefix(path, module+"/")
		switch {
		case isOurs && slices.Contains(testOnly, name) && !slices.Contains(testOnly, l.pkg):
			complain(path, whyTests)
		case isOurs && slices.Contains(l.ours, all):
		case isOurs && !slices.Contains(l.ours, name):
			complain(path, l.why)
		case !isOurs && l.std && !standard[path]:
			complain(path, "only the standard library may be used here, so that it can be used everywhere")
		case slices.Contains(l.not, path):
			complain(path, l.why)
		case path == "testing" && !slices.Contains(testOnly, l.pkg):
			complain(path, "it puts the test flags into the binary")
		}
	}
	return complaints
}

// TestJudge keeps the rules from passing by not looking.
func TestJudge(t *testing.T) {
	standard := map[string]bool{"os": true, "fmt": true, "testing": true}
	for _, tt := range []struct {
		pkg, imports string
		bad          bool
	}{
		{"internal/boot", "fmt", false},
		{"internal/boot", "os", true},
		{"internal/boot", "golang.org/x/sys/unix", true},
		{"dhcpd", "golang.org/x/sys/unix", false},
		{"dhcpd", module + "/internal/boot", false},
		{"dhcpd", module + "/tftpd", true},
		{"dhcpd", module + "/internal/config", true},
		{"dhcpd", module + "/internal/lan", true},
		{"tftpd", module + "/internal/boot", true},
		{"httpboot", module + "/vmm", true},
		{"vmm", module + "/internal/lan", true},
		{"internal/config", module + "/dhcpd", true},
		{"initramfs/guest", module + "/internal/boot", true},
		{"vmm", "testing", true},
		{"internal/nettest", "testing", false},
		{"internal/sim", module + "/internal/nettest", false},
		{"cmd/ecboot", module + "/dhcpd", false},
		{"cmd/ecboot", module + "/internal/nettest", true},
	} {
		i := slices.IndexFunc(layers, func(l layer) bool { return l.pkg == tt.pkg })
		got := layers[i].judge([]string{tt.imports}, standard)
		if (len(got) > 0) != tt.bad {
			t.Errorf("%s imports %s: %v", tt.pkg, tt.imports, got)
		}
	}
}

// TestPackageComments wants one package comment per package, in one file: of
// two, godoc joins the texts and nobody maintains both.
func TestPackageComments(t *testing.T) {
	for _, p := range ourPackages(t) {
		var documented []string
		for _, file := range slices.Concat(p.code(), p.TestGoFiles, p.XTestGoFiles) {
			f := parse(t, p, file, parser.PackageClauseOnly|parser.ParseComments)
			if f.Doc == nil {
				continue
			}
			documented = append(documented, file)
			begin := "Package " + p.Name + " "
			if p.Name == "main" {
				begin = "Command " + filepath.Base(p.Dir) + " "
			}
			if strings.HasSuffix(file, "_test.go") {
				t.Errorf("%s/%s: the comment above the package clause is the package's; leave an empty line below it", p.name(), file)
			} else if !strings.HasPrefix(f.Doc.Text(), begin) {
				t.Errorf("%s/%s: the package comment begins with %q, where godoc expects %q", p.name(), file, firstWords(f.Doc.Text()), begin)
			}
		}
		if len(documented) != 1 {
			t.Errorf("%s has %d package comments, want one: %s", p.name(), len(documented), strings.Join(documented, ", "))
		}
	}
}

func firstWords(s string) string {
	words := strings.Fields(s)
	return strings.Join(words[:min(3, len(words))], " ")
}

// TestNoUtil refuses names that say nothing: what a thing is for is where it
// belongs.
func TestNoUtil(t *testing.T) {
	for _, p := range ourPackages(t) {
		for _, name := range append(slices.Concat(p.code(), p.TestGoFiles, p.XTestGoFiles), filepath.Base(p.Dir)) {
			if strings.HasPrefix(name, "util") {
				t.Errorf("%s: %s is a drawer for anything; name it after what is in it", p.name(), name)
			}
		}
	}
}

// TestNoInit refuses init functions: they run in every program that imports
// the package, tests included, before anybody can configure anything.
func TestNoInit(t *testing.T) {
	for _, p := range ourPackages(t) {
		for _, file := range p.code() {
			f := parse(t, p, file, parser.SkipObjectResolution)
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
					t.Errorf("%s/%s has an init function: do the work where main can see it", p.name(), file)
				}
			}
		}
	}
}

func parse(t *testing.T, p goPackage, file string, mode parser.Mode) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, file), nil, mode)
	if err != nil {
		t.Fatal(err)
	}
	return f
}
