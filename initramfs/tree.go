package initramfs

import (
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

	"github.com/u-root/mkuimage/cpio"
	"golang.org/x/sys/unix"
)

// tree is the content of an archive: clean relative path → record.
type tree map[string]cpio.Record

// baseTree is what every archive has: the directories that init mounts on, and
// the devices that the kernel and a program need before /dev is mounted.
func baseTree() tree {
	t := tree{}
	for _, dir := range []string{"bin", "dev", "etc", "proc", "root", "run", "sys", "usr/lib", "var/log"} {
		t.put(cpio.Directory(dir, 0o755))
	}
	t.put(cpio.Directory("tmp", 0o1777))
	t.put(cpio.CharDev("dev/console", 0o600, 5, 1))
	t.put(cpio.CharDev("dev/null", 0o666, 1, 3))
	t.put(cpio.StaticFile("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n", 0o644))
	return t
}

// put adds r or replaces what has its name. What is no directory any more loses
// what was in it.
func (t tree) put(r cpio.Record) {
	old, ok := t[r.Name]
	if ok && isDir(old) && !isDir(r) {
		for name := range t {
			if strings.HasPrefix(name, r.Name+"/") {
				delete(t, name)
			}
		}
	}
	t[r.Name] = r
}

func isDir(r cpio.Record) bool { return r.Mode&modeType == modeDir }

// write writes the archive: every path behind its parents, which are made when
// nothing made them, and nothing in a record that depends on time or machine.
func (t tree) write(w io.Writer) error {
	for _, name := range slices.Collect(maps.Keys(t)) {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			parent, ok := t[dir]
			if !ok {
				t[dir] = cpio.Directory(dir, 0o755)
			} else if !isDir(parent) {
				return fmt.Errorf("/%s cannot lie in /%s, which is not a directory", name, dir)
			}
		}
	}
	out := cpio.Newc.Writer(w)
	for i, name := range slices.Sorted(maps.Keys(t)) {
		r := t[name]
		uid, gid := r.UID, r.GID
		r = cpio.MakeReproducible(r)
		r.UID, r.GID = uid, gid
		r.Ino, r.NLink = uint64(i+1), 1
		if err := out.WriteRecord(r); err != nil {
			return fmt.Errorf("/%s: %w", name, err)
		}
	}
	return cpio.WriteTrailer(out)
}

// addPath puts the file, symbolic link or directory at src, owned by root, at
// dst; "." is the root of the archive.
func (t tree) addPath(dst, src string) error {
	return filepath.WalkDir(src, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, p)
		if err != nil {
			return err
		}
		name := path.Join(dst, filepath.ToSlash(rel))
		if name == "." {
			return nil
		}
		r, err := recordOf(name, p)
		if err != nil {
			return err
		}
		t.put(r)
		return nil
	})
}

// recordOf describes the file at p without opening it.
func recordOf(name, p string) (cpio.Record, error) {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return cpio.Record{}, &os.PathError{Op: "lstat", Path: p, Err: err}
	}
	r := cpio.Record{Info: cpio.Info{Name: name, Mode: uint64(st.Mode)}}
	switch st.Mode & modeType {
	case modeFile:
		r.FileSize = uint64(st.Size)
		r.ReaderAt = &lazyFile{path: p}
	case modeLink:
		target, err := os.Readlink(p)
		if err != nil {
			return r, err
		}
		r = cpio.Symlink(name, target)
	case modeChar, modeBlock:
		r.Rmajor, r.Rminor = uint64(unix.Major(st.Rdev)), uint64(unix.Minor(st.Rdev))
	case modeDir, modeFIFO:
	default:
		return r, fmt.Errorf("%s: sockets cannot be in an initramfs", p)
	}
	return r, nil
}

// lazyFile is open only while it is read, so that a layer of many files does
// not run out of descriptors. The archive's writer closes it at the end.
type lazyFile struct {
	path string
	f    *os.File
}

func (l *lazyFile) ReadAt(p []byte, off int64) (int, error) {
	if l.f == nil {
		f, err := os.Open(l.path)
		if err != nil {
			return 0, err
		}
		l.f = f
	}
	return l.f.ReadAt(p, off)
}

func (l *lazyFile) Close() error {
	if l.f == nil {
		return nil
	}
	f := l.f
	l.f = nil
	return f.Close()
}

// addArchive puts the files of the initramfs at src, which keep their owners.
// Their contents are copied to spill, which must stay open until write is done.
func (t tree) addArchive(src string, spill *os.File) error {
	f, err := os.Open(src)
	if err != nil {
		return err
	}
	defer f.Close()
	pos, err := spill.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	links := map[hardLink][]string{}
	err = scan(f, func(h header, name string, data io.Reader) error {
		clean := path.Clean("/" + name)[1:]
		if clean == "" {
			return nil // the root directory itself
		}
		n, err := io.Copy(spill, data)
		if err != nil {
			return err
		}
		if n != int64(h.size) {
			return io.ErrUnexpectedEOF
		}
		r := cpio.Record{Info: cpio.Info{
			Name: clean, Mode: uint64(h.mode), UID: uint64(h.uid), GID: uint64(h.gid),
			Rmajor: uint64(h.rmajor), Rminor: uint64(h.rminor), FileSize: uint64(n),
		}}
		if n > 0 || h.mode&modeType == modeFile {
			r.ReaderAt = io.NewSectionReader(spill, pos, n)
		}
		pos += n
		t.put(r)
		if h.nlink > 1 && h.mode&modeType == modeFile {
			t.joinLinks(links, h, clean)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", src, err)
	}
	return nil
}

// hardLink identifies a file with several names inside one archive.
type hardLink struct{ major, minor, ino uint32 }

// joinLinks gives every name of a file its content, which an archive has with
// only one of them, most often the last. They become files of their own.
func (t tree) joinLinks(links map[hardLink][]string, h header, name string) {
	key := hardLink{h.major, h.minor, h.ino}
	for _, other := range links[key] {
		from, to := name, other
		if h.size == 0 {
			from, to = other, name
		}
		src, dst := t[from], t[to]
		dst.ReaderAt, dst.FileSize = src.ReaderAt, src.FileSize
		t[to] = dst
	}
	links[key] = append(links[key], name)
}

// addLayer puts the archive or directory at src.
func (t tree) addLayer(src string, spill *os.File) error {
	info, err := os.Stat(src)
	if err != nil {
		return err
	}
	switch {
	case info.IsDir():
		return t.addPath(".", src)
	case info.Mode().IsRegular():
		return t.addArchive(src, spill)
	}
	return fmt.Errorf("%s: %w", src, errors.New("a layer is a cpio archive or a directory"))
}
