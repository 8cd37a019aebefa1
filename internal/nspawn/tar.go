package nspawn

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"
)

// partSuffix ends the name of a directory that is not whole.
const partSuffix = ".part"

// Unpack unpacks an archive into a directory below cache that is named by the
// archive's digest, unless it is there already, and returns it. A directory that
// is there is whole. Owners, modes, times and, where the file system can, extended
// attributes are those of the archive; devices are left out, because a container
// has its own. No entry leads out of the directory.
func Unpack(ctx context.Context, archive, cache string) (dir string, err error) {
	f, err := os.Open(archive)
	if err != nil {
		return "", err
	}
	defer f.Close()
	digest := sha256.New()
	if _, err := io.Copy(digest, reader{ctx, f}); err != nil {
		return "", err
	}
	// What is inside may have the set-user-id bit: not for others.
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	dir = filepath.Join(cache, hex.EncodeToString(digest.Sum(nil)))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	// Whoever left one was killed: the lock is ours.
	parts, err := filepath.Glob(filepath.Join(cache, "*"+partSuffix))
	if err != nil {
		return "", err
	}
	for _, part := range parts {
		if err := os.RemoveAll(part); err != nil {
			return "", err
		}
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	part := dir + partSuffix
	if err := unpackInto(ctx, f, part); err != nil {
		return "", errors.Join(err, os.RemoveAll(part))
	}
	return dir, os.Rename(part, dir)
}

func unpackInto(ctx context.Context, archive io.Reader, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	plain, err := decompress(bufio.NewReader(reader{ctx, archive}))
	if err != nil {
		return err
	}
	u := unpacker{root: root}
	if err := u.all(tar.NewReader(plain)); err != nil {
		return err
	}
	// A power cut must not leave a directory that looks whole.
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

// reader ends with its context.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

// compressionOf tells how a file that begins so is compressed; empty: not.
func compressionOf(head []byte) string {
	for _, c := range []struct{ name, magic string }{
		{"gzip", "\x1f\x8b"}, {"zstd", "\x28\xb5\x2f\xfd"}, {"xz", "\xfd7zXZ\x00"}, {"bzip2", "BZh"},
	} {
		if bytes.HasPrefix(head, []byte(c.magic)) {
			return c.name
		}
	}
	return ""
}

func decompress(r *bufio.Reader) (io.Reader, error) {
	head, _ := r.Peek(6) // a short file is none of these
	switch compressionOf(head) {
	case "gzip":
		return gzip.NewReader(r)
	case "zstd":
		return zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
	case "xz":
		return xz.NewReader(r)
	case "bzip2":
		return bzip2.NewReader(r), nil
	}
	return r, nil
}

// unpacker writes entries below root. Package os sees to it that no link, of the
// archive or before it, leads out of there.
type unpacker struct {
	root *os.Root
	dirs []*tar.Header // whose times come last: each entry in them changes those
}

func (u *unpacker) all(archive *tar.Reader) error {
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		name, err := entryPath(h.Name)
		if err == nil {
			h.Name = name
			err = u.entry(h, archive)
		}
		if err != nil {
			return fmt.Errorf("entry %q: %w", h.Name, err)
		}
	}
	for _, h := range slices.Backward(u.dirs) {
		// One that has been replaced since has no use for them.
		if st, err := u.root.Lstat(h.Name); err == nil && st.IsDir() {
			if err := u.root.Chtimes(h.Name, h.ModTime, h.ModTime); err != nil {
				return err
			}
		}
	}
	return nil
}

// entryPath is where an entry belongs, relative to the root. Archives name them
// as in ./etc/passwd, etc/passwd or /etc/passwd. One that goes up is refused even
// where it would come down again: nothing honest makes it.
func entryPath(name string) (string, error) {
	if strings.ContainsRune(name, 0) {
		return "", errors.New("its name holds a NUL byte")
	}
	if slices.Contains(strings.Split(name, "/"), "..") {
		return "", errors.New("its name leads upwards")
	}
	return path.Join(".", strings.TrimLeft(name, "/")), nil
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo:
	default:
		return nil
	}
	if h.Name == "." && h.Typeflag != tar.TypeDir {
		return errors.New("the root must be a directory")
	}
	// Not every archive has an entry for each directory.
	if err := u.root.MkdirAll(path.Dir(h.Name), 0o755); err != nil {
		return err
	}
	if err := u.clear(h); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeLink:
		target, err := entryPath(h.Linkname)
		if err != nil {
			return fmt.Errorf("link to %q: %w", h.Linkname, err)
		}
		return u.root.Link(target, h.Name)
	case tar.TypeSymlink:
		if err := u.root.Symlink(h.Linkname, h.Name); err != nil {
			return err
		}
		return u.root.Lchown(h.Name, h.Uid, h.Gid)
	case tar.TypeReg:
		if err := u.file(h, content); err != nil {
			return err
		}
	case tar.TypeFifo:
		if err := u.at(h.Name, func(path string) error { return unix.Mkfifo(path, 0o600) }); err != nil {
			return err
		}
	case tar.TypeDir:
		if err := u.root.Mkdir(h.Name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		u.dirs = append(u.dirs, h)
	}
	return u.dress(h)
}

// clear removes what an earlier entry has put there. A directory stays if it is
// to be one again.
func (u *unpacker) clear(h *tar.Header) error {
	st, err := u.root.Lstat(h.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.IsDir() && h.Typeflag == tar.TypeDir:
		return nil
	}
	return u.root.RemoveAll(h.Name)
}

func (u *unpacker) file(h *tar.Header, content io.Reader) error {
	f, err := u.root.OpenFile(h.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	return errors.Join(err, f.Close())
}

// dress gives an entry its owner, which takes away some of what the others give,
// then its mode, attributes and time.
func (u *unpacker) dress(h *tar.Header) error {
	if err := u.root.Lchown(h.Name, h.Uid, h.Gid); err != nil {
		return err
	}
	if err := u.root.Chmod(h.Name, h.FileInfo().Mode()&^fs.ModeType); err != nil {
		return err
	}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		// Others mean something to this host, or to the overlay.
		if !ok || name != "security.capability" && !strings.HasPrefix(name, "user.") {
			continue
		}
		err := u.at(h.Name, func(path string) error { return unix.Lsetxattr(path, name, []byte(value), 0) })
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return u.root.Chtimes(h.Name, h.ModTime, h.ModTime)
}

// at calls fn with a path to an entry, for what os.Root cannot do. Its directory
// is opened by os.Root; its last part is for fn not to follow.
func (u *unpacker) at(name string, fn func(path string) error) error {
	dir, err := u.root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	return fn(fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), path.Base(name)))
}
