package initramfs

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cache is a directory of finished archives, named KEY-SHA256.cpio.zst: what
// they were made of, and what they must contain. An archive appears by a rename
// and never changes. One build at a time holds the lock and owns work-*, so what
// a killed build left there is removed by the next.
type cache struct {
	dir        string
	log        *slog.Logger
	maxEntries int
	maxBytes   int64
}

func openCache(o Options) (*cache, error) {
	if err := os.MkdirAll(o.CacheDir, 0o755); err != nil {
		return nil, fmt.Errorf("initramfs cache: %w", err)
	}
	return &cache{
		dir:        o.CacheDir,
		log:        cmp.Or(o.Logger, slog.New(slog.DiscardHandler)),
		maxEntries: cmp.Or(o.MaxEntries, 32),
		maxBytes:   cmp.Or(o.MaxBytes, 1<<30),
	}, nil
}

// lookup finds the archive of key and reads it whole: a disk that lost a part
// of it must not cost somebody a machine that does not boot.
func (c *cache) lookup(key string, comp Compression) (Image, bool) {
	found, _ := filepath.Glob(filepath.Join(c.dir, key+"-*"+comp.suffix()))
	for _, p := range found {
		want := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(p), key+"-"), comp.suffix())
		sum, size, err := digest(p)
		if err == nil && sum == want {
			now := time.Now() // prune removes what was used longest ago
			_ = os.Chtimes(p, now, now)
			return Image{Path: p, SHA256: sum, Size: size, Cached: true}, true
		}
		c.log.Warn("a cached initramfs is damaged and will be built again", "path", p)
		_ = os.Remove(p)
	}
	return Image{}, false
}

// build runs b under the lock, unless somebody else did so meanwhile.
func (c *cache) build(ctx context.Context, b *builder) (Image, error) {
	unlock, err := c.lock(ctx)
	if err != nil {
		return Image{}, err
	}
	defer unlock()
	comp := b.spec.Compression
	if img, ok := c.lookup(b.key, comp); ok {
		return img, nil
	}
	if stale, _ := filepath.Glob(filepath.Join(c.dir, "work-*")); stale != nil {
		for _, dir := range stale {
			_ = os.RemoveAll(dir)
		}
	}
	work, err := os.MkdirTemp(c.dir, "work-")
	if err != nil {
		return Image{}, fmt.Errorf("initramfs cache: %w", err)
	}
	defer os.RemoveAll(work)

	out := filepath.Join(work, "image")
	if err := b.build(ctx, work, out); err != nil {
		if errors.Is(err, unix.ENOSPC) || strings.Contains(err.Error(), "no space left") {
			err = fmt.Errorf("%w; free some space below %s", err, c.dir)
		}
		return Image{}, fmt.Errorf("initramfs: %w", err)
	}
	sum, size, err := digest(out)
	if err != nil {
		return Image{}, fmt.Errorf("initramfs: %w", err)
	}
	p := filepath.Join(c.dir, b.key+"-"+sum+comp.suffix())
	if err := os.Rename(out, p); err != nil {
		return Image{}, fmt.Errorf("initramfs cache: %w", err)
	}
	c.prune(p)
	return Image{Path: p, SHA256: sum, Size: size}, nil
}

// lock waits for the cache's lock. The lock ends with the process, so nobody
// has to remove one that was left behind.
func (c *cache) lock(ctx context.Context) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(c.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("initramfs cache: %w", err)
	}
	said := false
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("initramfs cache: lock %s: %w", f.Name(), err)
		}
		if !said {
			c.log.Info("another ecboot is building an initramfs; waiting for it", "cache", c.dir)
			said = true
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// prune removes the archives that were used longest ago until the limits hold,
// but never keep.
func (c *cache) prune(keep string) {
	type archive struct {
		path string
		size int64
		used time.Time
	}
	var all []archive
	var total int64
	names, _ := filepath.Glob(filepath.Join(c.dir, "*.cpio*"))
	for _, p := range names {
		info, err := os.Lstat(p)
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		all = append(all, archive{p, info.Size(), info.ModTime()})
		total += info.Size()
	}
	slices.SortFunc(all, func(a, b archive) int { return a.used.Compare(b.used) })
	count := len(all)
	for _, a := range all {
		if count <= c.maxEntries && total <= c.maxBytes {
			return
		}
		if a.path == keep {
			continue
		}
		if err := os.Remove(a.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.log.Warn("cannot prune the initramfs cache", "err", err)
			return
		}
		count--
		total -= a.size
	}
}

// digest returns the SHA-256 and the size of a file.
func digest(p string) (sum string, size int64, err error) {
	f, err := os.Open(p)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	size, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), size, err
}
