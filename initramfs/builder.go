package initramfs

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// formatVersion is part of every key. Raise it when Build makes other bytes of
// the same input.
const formatVersion = "1"

// builder makes one archive.
type builder struct {
	spec Spec
	log  *slog.Logger
	tool goEnv  // of a build that compiles
	key  string // hexadecimal; of everything that the archive is made of
}

func newBuilder(ctx context.Context, spec Spec, log *slog.Logger) (*builder, error) {
	b := &builder{spec: spec, log: log}
	var err error
	if b.compiles() {
		if b.tool, err = queryGo(ctx, ""); err != nil {
			return nil, err
		}
	}
	b.key, err = b.computeKey()
	return b, err
}

func (b *builder) compiles() bool { return !b.spec.NoGuest || len(b.spec.Commands) > 0 }

// computeKey hashes the spec, the contents that it refers to, and the tools.
func (b *builder) computeKey() (string, error) {
	h := sha256.New()
	s := b.spec
	fmt.Fprintf(h, "%q %q %q %q %v %q %d\n", formatVersion, s.Arch, s.Commands, s.BuildTags, s.NoGuest, s.Compression, s.Level)
	if b.compiles() {
		fmt.Fprintf(h, "%q %q %q %q\n", b.tool.Version, b.tool.Experiment, b.tool.AMD64, b.tool.ARM64)
		for _, content := range [][]byte{moduleFile, moduleSums} {
			fmt.Fprintf(h, "%x\n", sha256.Sum256(content))
		}
	}
	if !s.NoGuest {
		sources, err := guestSources()
		if err != nil {
			return "", err
		}
		for _, name := range slices.Sorted(maps.Keys(sources)) {
			fmt.Fprintf(h, "guest %q %x\n", name, sha256.Sum256(sources[name]))
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

// hashPath hashes all that addPath would take over from root, which may be a
// single file.
func hashPath(h hash.Hash, root string) error {
	return filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
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
		if c, ok := r.ReaderAt.(io.Closer); ok {
			defer c.Close()
		}
		fmt.Fprintf(h, "%q %o %d %d:%d\n", rel, r.Mode, r.FileSize, r.Rmajor, r.Rminor)
		if r.ReaderAt == nil {
			return nil
		}
		_, err = io.Copy(h, io.NewSectionReader(r.ReaderAt, 0, int64(r.FileSize)))
		return err
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
	guest := t["init"]
	spill, err := os.Create(filepath.Join(work, "spill"))
	if err != nil {
		return err
	}
	defer spill.Close()
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
	if !b.spec.NoGuest && t["init"] != guest {
		// The guest program runs it when it is done.
		theirs := t["init"]
		theirs.Name = "inito"
		t.put(theirs)
		t.put(guest)
	}
	if _, ok := t["init"]; !ok {
		return errors.New("nothing to run as /init; add the guest program, a command, or a layer or file with an /init")
	}
	if err := b.write(t, out); err != nil {
		return err
	}
	if key, err := b.computeKey(); err != nil || key != b.key {
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
