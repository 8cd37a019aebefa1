package initramfs

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"go/build"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/u-root/gobusybox/src/pkg/bb"
	"github.com/u-root/gobusybox/src/pkg/bb/findpkg"
	"github.com/u-root/gobusybox/src/pkg/golang"
	"github.com/u-root/mkuimage/cpio"
	"github.com/u-root/mkuimage/uimage/templates"
)

const urootModule = "github.com/u-root/u-root"

// The Go module that programs are compiled in; module/update.sh writes it. A
// directory with a real go.mod could not be embedded.
var (
	//go:embed module/go.mod.txt
	moduleFile []byte
	//go:embed module/go.sum.txt
	moduleSums []byte
	//go:embed guest/*.go
	guestFiles embed.FS
)

// guestSources returns the guest program: path in the module → content.
func guestSources() (map[string][]byte, error) {
	names, err := fs.Glob(guestFiles, "guest/*.go")
	if err != nil {
		return nil, err
	}
	sources := make(map[string][]byte, len(names))
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		if sources[name], err = guestFiles.ReadFile(name); err != nil {
			return nil, err
		}
	}
	return sources, nil
}

// writeModule writes the Go module with the guest program in it.
func writeModule(dir string) error {
	files, err := guestSources()
	if err != nil {
		return err
	}
	files["go.mod"], files["go.sum"] = moduleFile, moduleSums
	if err := os.MkdirAll(filepath.Join(dir, "guest"), 0o755); err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, filepath.FromSlash(name)), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// addPrograms compiles the guest program and the commands into t.
func (b *builder) addPrograms(ctx context.Context, work string, t tree) error {
	module := filepath.Join(work, "module")
	if err := writeModule(module); err != nil {
		return err
	}
	// Asked again, because the module may want a newer Go than b.tool.
	env, err := queryGo(ctx, module)
	if err != nil {
		return err
	}
	if env.Workspace != "" && env.Workspace != "off" {
		return fmt.Errorf("the Go workspace %s is in the way; set GOWORK=off", env.Workspace)
	}
	g := &goTool{env: env, arch: b.spec.Arch, module: module, tmp: work,
		tags: append([]string{ownTag}, b.spec.BuildTags...)}
	if !b.spec.NoGuest {
		b.log.Debug("compiling the guest program")
		bin := filepath.Join(work, "guest")
		if err := g.compile(ctx, module, moduleMode, bin, "./guest"); err != nil {
			return err
		}
		if err := t.addProgram("init", bin); err != nil {
			return err
		}
	}
	if len(b.spec.Commands) > 0 {
		return b.addCommands(ctx, g, work, t)
	}
	return nil
}

// addProgram puts the executable file at src.
func (t tree) addProgram(name, src string) error {
	r, err := recordOf(name, src)
	if err != nil {
		return err
	}
	r.Mode = modeFile | 0o755 // whatever the user's umask made of it
	t.put(r)
	return nil
}

// addCommands compiles the commands into one binary, with a symbolic link for each.
func (b *builder) addCommands(ctx context.Context, g *goTool, work string, t tree) error {
	uroot, err := g.moduleDir(ctx, urootModule)
	if err != nil {
		return err
	}
	target := build.Default
	target.GOOS, target.GOARCH, target.CgoEnabled, target.BuildTags = "linux", b.spec.Arch, false, g.tags
	packages, err := source{dir: uroot, target: target}.resolve(b.spec.Commands)
	if err != nil {
		return err
	}
	// Loads what Go's module cache lacks, while ctx can still end it.
	if _, err := g.run(ctx, g.module, moduleMode, append([]string{"list", "-deps", "-mod=readonly", g.tagFlag()}, packages...)...); err != nil {
		return err
	}
	b.log.Info("compiling u-root commands", "commands", len(packages))
	gopath := filepath.Join(work, "gopath")
	err = bb.BuildBusybox(logAdapter{b.log}, &bb.Opts{
		Env: golang.Default(golang.DisableCGO(), golang.WithGOOS("linux"), golang.WithGOARCH(b.spec.Arch),
			golang.WithGOROOT(g.env.Root), golang.WithGO111MODULE("on"), golang.WithMod(golang.ModReadonly),
			golang.WithWorkingDir(g.module), golang.WithBuildTag(g.tags...)),
		LookupEnv:    &findpkg.Env{}, // whatever GBB_PATH and UROOT_SOURCE say
		GenSrcDir:    gopath,
		CommandPaths: packages,
		// Its own go build would compile the standard library every time, and
		// nobody could stop it.
		GenerateOnly: true,
	})
	if err != nil {
		return err
	}
	bin := filepath.Join(work, "bb")
	mode := []string{"GO111MODULE=off", "GOPATH=" + gopath}
	if err := g.compile(ctx, filepath.Join(gopath, "src/bb.u-root.com/bb"), mode, bin, "."); err != nil {
		return err
	}
	if err := t.addProgram("bbin/bb", bin); err != nil {
		return err
	}
	for _, p := range packages {
		t.put(cpio.Symlink("bbin/"+path.Base(p), "bb"))
	}
	if _, ok := t["bbin/gosh"]; ok {
		t.put(cpio.Symlink("bin/sh", "../bbin/gosh"))
		t.put(cpio.Symlink("bin/defaultsh", "../bbin/gosh"))
	}
	if b.spec.NoGuest {
		t.put(cpio.Symlink("init", "bbin/init"))
	}
	return nil
}

// logAdapter passes the library's chatter to those who debug.
type logAdapter struct{ log *slog.Logger }

func (l logAdapter) Printf(format string, v ...any) { l.log.Debug(fmt.Sprintf(format, v...)) }

// goEnv is what the go command says of itself.
type goEnv struct {
	Version    string `json:"GOVERSION"`
	Root       string `json:"GOROOT"`
	Workspace  string `json:"GOWORK"`
	Experiment string `json:"GOEXPERIMENT"`
	AMD64      string `json:"GOAMD64"`
	ARM64      string `json:"GOARM64"`
}

// queryGo asks the go command that is in charge of the directory dir.
func queryGo(ctx context.Context, dir string) (goEnv, error) {
	var env goEnv
	cmd := exec.CommandContext(ctx, "go", "env", "-json", "GOVERSION", "GOROOT", "GOWORK", "GOEXPERIMENT", "GOAMD64", "GOARM64")
	cmd.Dir = dir
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return env, errors.New("compiling commands needs Go, and there is no go command in PATH; " +
			"install Go (https://go.dev/dl), or use the image that ecboot carries inside")
	}
	if err != nil {
		return env, fmt.Errorf("go env: %w", withStderr(err))
	}
	if err := json.Unmarshal(out, &env); err != nil {
		return env, fmt.Errorf("go env: %w", err)
	}
	return env, nil
}

// ownTag is always set, so that no -tags of the user's GOFLAGS is.
const ownTag = "ecboot"

// moduleMode is the environment for a directory with a go.mod.
var moduleMode = []string{"GO111MODULE=on"}

// goTool runs the go command in an environment that makes the same of the same.
type goTool struct {
	env    goEnv
	arch   string
	tags   []string
	module string // directory
	tmp    string // for what the go command would leave in /tmp when it is killed
}

func (g *goTool) tagFlag() string { return "-tags=" + strings.Join(g.tags, ",") }

// compile compiles pkg, found from dir, to the file out. Without inlining
// programs are a seventh smaller, which a machine that loads them over a network
// notices, and their user does not.
func (g *goTool) compile(ctx context.Context, dir string, env []string, out, pkg string) error {
	_, err := g.run(ctx, dir, env, "build", "-o", out, "-trimpath", "-buildvcs=false",
		"-gcflags=all=-l", "-ldflags=-s -w -buildid=", g.tagFlag(), pkg)
	return err
}

// run returns the standard output of a go command.
func (g *goTool) run(ctx context.Context, dir string, env []string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(g.env.Root, "bin", "go"), args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off", "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+g.arch, "GOTMPDIR="+g.tmp)
	cmd.Env = append(cmd.Env, env...)
	// The compilers that go runs end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.Output()
	if err == nil {
		return out, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return out, explainGo("go "+args[0], withStderr(err).Error())
}

// moduleDir returns where Go's module cache has a module, loading it first.
func (g *goTool) moduleDir(ctx context.Context, module string) (string, error) {
	out, err := g.run(ctx, g.module, moduleMode, "mod", "download", "-json", module)
	var m struct{ Dir, Error string }
	if json.Unmarshal(out, &m) == nil && m.Error != "" {
		return "", explainGo("go mod download", m.Error)
	}
	return m.Dir, err
}

// withStderr puts what a program said in place of its exit status.
func withStderr(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if text := bytes.TrimSpace(exit.Stderr); len(text) > 0 {
			return errors.New(string(text))
		}
	}
	return err
}

// explainGo says what to do about a go command that failed with text. Of a network
// that is not there, one line is enough: there is one for each module.
func explainGo(what, text string) error {
	for line := range strings.Lines(text) {
		for _, sign := range []string{"dial tcp", "no such host", "lookup disabled", "i/o timeout", "proxyconnect", "TLS handshake"} {
			if strings.Contains(line, sign) {
				return fmt.Errorf("u-root's source code could not be loaded; it is needed once, so connect this machine to a network "+
					"or set GOPROXY to a module proxy that it reaches: %s: %s", what, strings.TrimSpace(line))
			}
		}
	}
	return fmt.Errorf("%s: %s", what, text)
}

// source is u-root's source code and what it is compiled for.
type source struct {
	dir    string
	target build.Context
}

// resolve turns what a Spec names into sorted import paths.
func (s source) resolve(names []string) ([]string, error) {
	known, err := templates.TemplateFromFile(filepath.Join(s.dir, ".mkuimage.yaml"))
	if err != nil {
		return nil, fmt.Errorf("u-root's templates: %w", err)
	}
	set := map[string]bool{urootModule + "/cmds/core/init": true}
	for _, name := range names {
		bare, remove := strings.CutPrefix(name, "-")
		for _, pattern := range known.CommandsFor(bare) {
			found, err := s.find(pattern)
			if err != nil {
				return nil, err
			}
			for _, p := range found {
				if remove {
					delete(set, p)
				} else {
					set[p] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(set)), nil
}

// find returns the import paths of the commands that a name, an import path or
// a glob of either means. It leaves out what is not made for Linux.
func (s source) find(pattern string) ([]string, error) {
	var tries []string
	if rel, ok := strings.CutPrefix(pattern, urootModule+"/"); ok {
		tries = []string{rel}
	} else if strings.Contains(pattern, "/") {
		tries = []string{"cmds/" + pattern}
	} else {
		tries = []string{"cmds/core/" + pattern, "cmds/*/" + pattern}
	}
	for _, try := range tries {
		dirs, err := filepath.Glob(filepath.Join(s.dir, filepath.FromSlash(try)))
		if err != nil {
			return nil, fmt.Errorf("command %q: %w", pattern, err)
		}
		var found []string
		for _, dir := range dirs {
			if p, err := s.target.ImportDir(dir, 0); err != nil || !p.IsCommand() {
				continue
			}
			rel, err := filepath.Rel(s.dir, dir)
			if err != nil {
				return nil, err
			}
			found = append(found, urootModule+"/"+filepath.ToSlash(rel))
		}
		if len(found) > 0 {
			return found, nil
		}
	}
	return nil, fmt.Errorf("u-root has no command or template %q for Linux; its commands are listed at https://pkg.go.dev/%s/cmds", pattern, urootModule)
}
