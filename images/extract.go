package images

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Extracted are the images of a Set as files.
type Extracted struct {
	paths map[string]string
	nbps  nbpFS
}

// unused is how long an extracted image stays that no Set asked for: those of
// the ecboot before an update.
const unused = 30 * 24 * time.Hour

// Extract writes the images below dir, each as SHA256/NAME, unless they are
// there already with the right contents. A file appears whole or not at all, so
// any number of processes may share dir. Images of other Sets that were not
// used for a month are removed from it.
func (s *Set) Extract(dir string) (*Extracted, error) {
	e := &Extracted{paths: map[string]string{}, nbps: nbpFS{}}
	wrote := false
	for _, i := range s.images {
		p := filepath.Join(dir, i.SHA256, i.Name)
		if !intact(p, i) {
			if err := s.extract(i, p); err != nil {
				if errors.Is(err, unix.ENOSPC) {
					err = fmt.Errorf("%w; free some space below %s", err, dir)
				}
				return nil, fmt.Errorf("images: extract %s: %w", i.Name, err)
			}
			wrote = true
		}
		e.paths[i.Name] = p
		if i.Kind == NBP {
			e.nbps[i.Name] = p
		}
		now := time.Now()
		_ = os.Chtimes(filepath.Dir(p), now, now)
	}
	if wrote {
		dropImagePages()
		removeUnused(dir, time.Now().Add(-unused))
	}
	return e, nil
}

// removeUnused removes what nobody has used since the time given. It is only
// about disk space, so failures pass.
func removeUnused(dir string, since time.Time) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		sum, err := hex.DecodeString(e.Name())
		if err != nil || len(sum) != sha256.Size {
			continue // not ours
		}
		if info, err := e.Info(); err == nil && info.IsDir() && info.ModTime().Before(since) {
			_ = os.RemoveAll(filepath.Join(dir, e.Name()))
		}
	}
}

// Path returns the file that holds the image called name, "" when there is none.
func (e *Extracted) Path(name string) string { return e.paths[name] }

// intact reports whether the file at p is i.
func intact(p string, i Image) bool {
	f, err := os.Open(p)
	if err != nil {
		return false
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() != i.Size {
		return false
	}
	h := sha256.New()
	_, err = io.Copy(h, f)
	return err == nil && hex.EncodeToString(h.Sum(nil)) == i.SHA256
}

// extract writes i to p.
func (s *Set) extract(i Image, p string) error {
	dir := filepath.Dir(p)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// What a process that was killed here left.
	if stale, _ := filepath.Glob(filepath.Join(dir, ".new-*")); len(stale) > 0 {
		for _, f := range stale {
			if info, err := os.Lstat(f); err == nil && time.Since(info.ModTime()) > time.Hour {
				_ = os.Remove(f)
			}
		}
	}
	tmp, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	src, err := s.fsys.Open(i.Name)
	if err != nil {
		return err
	}
	defer src.Close()
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(tmp, h), src); err != nil {
		return err
	}
	if sum := hex.EncodeToString(h.Sum(nil)); sum != i.SHA256 {
		return fmt.Errorf("contents have SHA-256 %s and should have %s; run `make` again", sum, i.SHA256)
	}
	if err := tmp.Chmod(0o644); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), p)
}

// dropImagePages gives back the memory of the images inside the running binary:
// it forgets the read-only pages of the executable, which come back from the
// file when they are touched. It is only about memory, so failures pass.
func dropImagePages() {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(maps)) {
		// address perms offset dev inode path, see proc_pid_maps(5)
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "r--p" || f[5] != exe {
			continue
		}
		from, to, _ := strings.Cut(f[0], "-")
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err1 == nil && err2 == nil {
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, uintptr(start), uintptr(end-start), unix.MADV_DONTNEED)
		}
	}
}
