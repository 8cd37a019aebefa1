package initramfs

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
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

// formatVersion is part of every key. Raise it when Build makes other bytes of
// the same input.
const formatVersion = "1"

const urootModule = "github.com/u-root/u-root"

// The Go module that commands are built in. The files that make a directory a
// module cannot be embedded under their own names.
//
//go:embed module/go.mod.txt
var moduleFile []byte

//go:embed module/go.sum.txt
var moduleSums []byte

//go:embed guest/*.go
var guestSource embed.FS

// builder makes one archive.
type builder struct {
	spec Spec
	log  *slog.Logger
	key  string // hexadecimal; of everything that the archive is made of
}

// goEnv is what the go command says of itself.
type goEnv struct {
	GOVERSION, GOROOT, GOWORK      string
	GOEXPERIMENT, GOAMD64, GOARM64 string
}

// prepare finds the go command and computes the key.
func (b *builder) prepare(ctx context.Context) error {
	env, err := queryGo(ctx, "")
	if err != nil {
		return err
	}
	key, err := b.computeKey(env)
	if err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	b.key = key
	return nil
}

// queryGo asks the go command that is in charge of directory dir.
func queryGo(ctx context.Context, dir string) (goEnv, error) {
	var env goEnv
	// The library looks for go in PATH as well.
	if _, err := exec.LookPath("go"); err != nil {
		return env, errors.New("initramfs: building one needs Go, and there is no go command in PATH; " +
			"install Go (https://go.dev/dl), or use the image that ecboot has inside")
	}
	cmd := exec.CommandContext(ctx, "go", "env", "-json",
		"GOVERSION", "GOROOT", "GOWORK", "GOEXPERIMENT", "GOAMD64", "GOARM64")
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		return env, fmt.Errorf("initramfs: go env: %w", withStderr(err))
	}
	if err := json.Unmarshal(out, &env); err != nil {
		return env, fmt.Errorf("initramfs: go env: %w", err)
	}
	return env, nil
}

// withStderr puts what a program said in place of its exit status.
func withStderr(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(bytes.TrimSpace(exit.Stderr)) > 0 {
		return errors.New(string(bytes.TrimSpace(exit.Stderr)))
	}
	return err
}

// computeKey hashes the spec, the contents it refers to, and the tools.
func (b *builder) computeKey(env goEnv) (string, error) {
	h := sha256.New()
	s := b.spec
	fmt.Fprintf(h, "%q %q %q %q %v %q %d\n", formatVersion, s.Arch, s.Commands, s.BuildTags, s.NoGuest, s.Compression, s.Level)
	if b.compiles() {
		fmt.Fprintf(h, "%q %q %q %q\n", env.GOVERSION, env.GOEXPERIMENT, env.GOAMD64, env.GOARM64)
		for _, content := range [][]byte{moduleFile, moduleSums} {
			fmt.Fprintf(h, "%x\n", sha256.Sum256(content))
		}
	}
	if !s.NoGuest {
		if err := hashFS(h, guestSource); err != nil {
			return "", err
		}
	}
	for _, l := range s.Layers {
		fmt.Fprintln(h, "layer")
		if err := hashPath(h, l); err != nil {
			return "", err
		}
	}
	for _, dst := range slices.Sorted(maps.Keys(s.Files)) {
		fmt.Fprintf(h, "file %q\n", dst)
		if err := hashPath(h, s.Files[dst]); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:32], nil
}

func (b *builder) compiles() bool { return !b.spec.NoGuest || len(b.spec.Commands) > 0 }

func hashFS(h hash.Hash, fsys fs.FS) error {
	return fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := fs.ReadFile(fsys, p)
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%q %x\n", p, sha256.Sum256(content))
		return nil
	})
}

// hashPath hashes all that addPath would take over from root, which may be a
// single file.
func hashPath(h hash.Hash, root string) error {
	return filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		r, err := recordOf(rel, p)
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%q %o %d %d:%d\n", rel, r.Mode, r.FileSize, r.Rmajor, r.Rminor)
		if c, ok := r.ReaderAt.(io.Closer); ok {
			defer c.Close()
		}
		if r.ReaderAt != nil {
			if _, err := io.Copy(h, io.NewSectionReader(r.ReaderAt, 0, int64(r.FileSize))); err != nil {
				return err
			}
		}
		return nil
	})
}

// build writes the archive to out. It keeps everything else below work.
func (b *builder) build(ctx context.Context, work, out string) error {
	t := baseTree()
	if b.compiles() {
		if err := b.addPrograms(ctx, work, t); err != nil {
			return err
		}
	}
	spill, err := os.Create(filepath.Join(work, "spill"))
	if err != nil {
		return err
	}
	defer spill.Close()
	guest, hasGuest := t["init"]
	for _, layer := range b.spec.Layers {
		if err := t.addLayer(layer, spill); err != nil {
			return err
		}
	}
	for _, dst := range slices.Sorted(maps.Keys(b.spec.Files)) {
		if err := t.addPath(dst, b.spec.Files[dst]); err != nil {
			return err
		}
	}
	if hasGuest && !b.spec.NoGuest && t["init"] != guest {
		theirs := t["init"]
		theirs.Name = "inito"
		t.put(theirs)
		t.put(guest)
	}
	if _, ok := t["init"]; !ok {
		return errors.New("nothing to run as /init: add the guest program, a command, or a layer or file with an /init")
	}
	env, err := queryGo(ctx, "")
	if err != nil {
		return err
	}
	if err := b.write(t, out); err != nil {
		return err
	}
	if key, err := b.computeKey(env); err != nil || key != b.key {
		return errors.Join(errors.New("a file or layer changed while it was read; try again"), err)
	}
	return ctx.Err()
}

// write compresses t into the file out and brings it to the disk.
func (b *builder) write(t tree, out string) error {
	f, err := os.OpenFile(out, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := bufio.NewWriterSize(f, 1<<20)
	z, err := b.spec.Compression.writer(buf, b.spec.Level)
	if err != nil {
		return err
	}
	if err := t.write(z); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	if err := buf.Flush(); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Close()
}

// addPrograms compiles the guest program and the commands into t.
func (b *builder) addPrograms(ctx context.Context, work string, t tree) error {
	src := filepath.Join(work, "src")
	if err := writeModule(src); err != nil {
		return err
	}
	env, err := queryGo(ctx, src)
	if err != nil {
		return err
	}
	if env.GOWORK != "" && env.GOWORK != "off" {
		return fmt.Errorf("the Go workspace %s is in the way; set GOWORK=off", env.GOWORK)
	}
	g := &goTool{ctx: ctx, env: env, arch: b.spec.Arch, dir: src}
	if !b.spec.NoGuest {
		b.log.Debug("compiling the guest program")
		bin := filepath.Join(work, "guest")
		if err := g.build(src, moduleMode, bin, nil, "./guest"); err != nil {
			return err
		}
		r, err := recordOf("init", bin)
		if err != nil {
			return err
		}
		r.Mode = modeFile | 0o755
		t.put(r)
	}
	if len(b.spec.Commands) > 0 {
		return b.addCommands(g, work, t)
	}
	return nil
}

// writeModule writes the Go module with the guest program in it.
func writeModule(dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, "guest"), 0o755); err != nil {
		return err
	}
	files := map[string][]byte{"go.mod": moduleFile, "go.sum": moduleSums}
	sources, err := fs.Glob(guestSource, "guest/*.go")
	if err != nil {
		return err
	}
	for _, p := range sources {
		if strings.HasSuffix(p, "_test.go") {
			continue
		}
		if files[p], err = guestSource.ReadFile(p); err != nil {
			return err
		}
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, filepath.FromSlash(name)), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// addCommands builds the commands into one binary, with a symbolic link for each.
func (b *builder) addCommands(g *goTool, work string, t tree) error {
	uroot, err := g.moduleDir(urootModule)
	if err != nil {
		return err
	}
	packages, err := resolveCommands(uroot, b.spec.Commands)
	if err != nil {
		return err
	}
	// Loads what is missing into Go's module cache, while ctx can still end it.
	list := append([]string{"list", "-deps", "-mod=readonly", g.tags(b.spec.BuildTags)}, packages...)
	if _, err := g.run(g.dir, moduleMode, list...); err != nil {
		return err
	}
	gopath := filepath.Join(work, "gopath")
	genv := golang.Default(golang.DisableCGO(), golang.WithGOOS("linux"), golang.WithGOARCH(b.spec.Arch),
		golang.WithGOROOT(g.env.GOROOT), golang.WithGO111MODULE("on"), golang.WithMod(golang.ModReadonly),
		golang.WithWorkingDir(g.dir), golang.WithBuildTag(append([]string{buildTag}, b.spec.BuildTags...)...))
	b.log.Info("compiling u-root commands", "commands", len(packages))
	if err := bb.BuildBusybox(logAdapter{b.log}, &bb.Opts{
		Env:          genv,
		LookupEnv:    &findpkg.Env{}, // not what GBB_PATH and UROOT_SOURCE say
		GenSrcDir:    gopath,
		CommandPaths: packages,
		// Its own go build would compile the standard library every time.
		GenerateOnly: true,
	}); err != nil {
		return err
	}
	if err := g.ctx.Err(); err != nil {
		return err
	}
	bin := filepath.Join(work, "bb")
	gopathMode := []string{"GO111MODULE=off", "GOPATH=" + gopath}
	if err := g.build(filepath.Join(gopath, "src/bb.u-root.com/bb"), gopathMode, bin, b.spec.BuildTags, "."); err != nil {
		return err
	}
	r, err := recordOf("bbin/bb", bin)
	if err != nil {
		return err
	}
	r.Mode = modeFile | 0o755
	t.put(r)
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

// buildTag is always set, so that no -tags of the user's GOFLAGS is.
const buildTag = "ecboot"

// goTool runs the go command in an environment that makes the same of the same.
type goTool struct {
	ctx  context.Context
	env  goEnv
	arch string
	dir  string
}

func (g *goTool) tags(tags []string) string {
	return "-tags=" + strings.Join(append([]string{buildTag}, tags...), ",")
}

// moduleMode is the environment for a directory with a go.mod.
var moduleMode = []string{"GO111MODULE=on"}

// build compiles pkg, found from dir, to the file out.
func (g *goTool) build(dir string, env []string, out string, tags []string, pkg string) error {
	_, err := g.run(dir, env, "build", "-o", out, "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", g.tags(tags), pkg)
	return err
}

// run returns the standard output of a go command.
func (g *goTool) run(dir string, env []string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(g.ctx, filepath.Join(g.env.GOROOT, "bin", "go"), args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off", "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+g.arch)
	cmd.Env = append(cmd.Env, env...)
	// The compilers that go runs end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.Output()
	if ctxErr := g.ctx.Err(); ctxErr != nil {
		return nil, ctxErr
	}
	if err != nil {
		return nil, explainGo(args[0], withStderr(err))
	}
	return out, nil
}

// explainGo says what to do about a go command that failed.
func explainGo(verb string, err error) error {
	text := err.Error()
	for _, sign := range []string{"dial tcp", "no such host", "module lookup disabled", "i/o timeout", "proxyconnect", "TLS handshake"} {
		if strings.Contains(text, sign) {
			return fmt.Errorf("u-root's sources could not be loaded (they are needed once; connect this machine, or set GOPROXY to a proxy that it reaches): go %s: %s", verb, text)
		}
	}
	return fmt.Errorf("go %s: %s", verb, text)
}

// moduleDir returns where Go's module cache has the module, loading it first.
func (g *goTool) moduleDir(module string) (string, error) {
	out, err := g.run(g.dir, moduleMode, "mod", "download", "-json", module)
	var m struct{ Dir, Error string }
	if len(out) > 0 && json.Unmarshal(out, &m) == nil && m.Error != "" {
		err = explainGo("mod download", errors.New(m.Error))
	}
	if err != nil {
		return "", err
	}
	return m.Dir, nil
}

// resolveCommands turns what a Spec names into sorted import paths, with the
// help of u-root's source in dir.
func resolveCommands(dir string, names []string) ([]string, error) {
	tmpl, err := templates.TemplateFromFile(filepath.Join(dir, ".mkuimage.yaml"))
	if err != nil {
		return nil, fmt.Errorf("u-root's templates: %w", err)
	}
	set := map[string]bool{urootModule + "/cmds/core/init": true}
	for _, name := range names {
		bare, remove := strings.CutPrefix(name, "-")
		for _, pattern := range tmpl.CommandsFor(bare) {
			found, err := findCommands(dir, pattern)
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

// findCommands resolves a name, an import path or a glob of either.
func findCommands(dir, pattern string) ([]string, error) {
	rel, isPath := strings.CutPrefix(pattern, urootModule+"/")
	var tries []string
	switch {
	case isPath:
		tries = []string{rel}
	case strings.Contains(pattern, "/"):
		tries = []string{"cmds/" + pattern}
	default:
		tries = []string{"cmds/core/" + pattern, "cmds/*/" + pattern}
	}
	for _, try := range tries {
		matches, err := filepath.Glob(filepath.Join(dir, filepath.FromSlash(try)))
		if err != nil {
			return nil, fmt.Errorf("command %q: %w", pattern, err)
		}
		var found []string
		for _, m := range matches {
			if sources, _ := filepath.Glob(filepath.Join(m, "*.go")); len(sources) == 0 {
				continue
			}
			rel, err := filepath.Rel(dir, m)
			if err != nil {
				return nil, err
			}
			found = append(found, urootModule+"/"+filepath.ToSlash(rel))
		}
		if len(found) > 0 {
			return found, nil
		}
	}
	return nil, fmt.Errorf("u-root has no command or template %q; its commands are listed at https://pkg.go.dev/%s/cmds", pattern, urootModule)
}

// logAdapter passes the library's chatter to a logger, for those who debug.
type logAdapter struct{ log *slog.Logger }

func (l logAdapter) Printf(format string, v ...any) { l.log.Debug(fmt.Sprintf(format, v...)) }
