package zfs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mount is a line of /proc/self/mountinfo.
type mount struct {
	root   string // of the file system's directories, the one that is mounted
	path   string // where
	fstype string
	source string
}

// holds tells whether the whole dataset is mounted, not a directory of it.
func (m mount) holds(dataset string) bool {
	return (m.fstype == "zfs" || m.fstype == "fuse.zfs") && m.source == dataset && m.root == "/"
}

func (m mount) String() string {
	if m.root == "/" {
		return fmt.Sprintf("%s (%s)", m.source, m.fstype)
	}
	return fmt.Sprintf("%s of %s (%s)", m.root, m.source, m.fstype)
}

// mounts is all mounts, by the kernel's number.
type mounts map[uint64]mount

const mountinfo = "/proc/self/mountinfo"

func readMounts() (mounts, error) {
	b, err := os.ReadFile(mountinfo)
	if err != nil {
		return nil, err
	}
	return parseMountinfo(b)
}

// parseMountinfo reads lines as proc_pid_mountinfo(5) describes them:
// 36 35 98:0 /root /path rw,noatime master:1 - ext3 /dev/sda1 rw
func parseMountinfo(b []byte) (mounts, error) {
	all := mounts{}
	for line := range bytes.Lines(b) {
		fields := strings.Split(strings.TrimSuffix(string(line), "\n"), " ")
		// An optional field is never “-” alone, which ends them.
		end := 6
		for end < len(fields) && fields[end] != "-" {
			end++
		}
		if end+2 >= len(fields) {
			return nil, fmt.Errorf("%s: %q is no line of it", mountinfo, line)
		}
		id, err := strconv.ParseUint(fields[0], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: mount %q has no number", mountinfo, fields[0])
		}
		all[id] = mount{
			root: unescape(fields[3]), path: unescape(fields[4]),
			fstype: unescape(fields[end+1]), source: unescape(fields[end+2]),
		}
	}
	return all, nil
}

// unescape undoes \ooo, as the kernel writes spaces, tabs, newlines and
// backslashes.
func unescape(s string) string {
	var out strings.Builder
	for {
		before, after, found := strings.Cut(s, `\`)
		out.WriteString(before)
		if !found {
			return out.String()
		}
		s = after
		if len(s) >= 3 {
			if c, err := strconv.ParseUint(s[:3], 8, 8); err == nil {
				out.WriteByte(byte(c))
				s = s[3:]
				continue
			}
		}
		out.WriteByte('\\')
	}
}

// find returns a place where a dataset can be seen whole.
func (all mounts) find(dataset string) (path string, ok bool) {
	for _, m := range all {
		if !m.holds(dataset) {
			continue
		}
		if right, _ := all.right(dataset, m.path); right && (!ok || m.path < path) {
			path, ok = m.path, true
		}
	}
	return path, ok
}

// right tells whether whoever opens the path now comes to the dataset. False
// without an error means that nothing is mounted there, and perhaps nothing is
// there at all. A name in the table is not enough: it may be hidden by a later
// mount, on the path or above it.
func (all mounts) right(dataset, path string) (bool, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, explain(path, err)
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	// Not from a cache, which would answer for a daemon that is dead.
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &st); err != nil {
		return false, explain(path, err)
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return false, errors.New("the kernel does not number mounts: Linux 5.12 or newer is needed")
	}
	m, known := all[st.Mnt_id]
	switch {
	case known && m.path == path && m.holds(dataset):
		return true, nil
	case known && m.path == path:
		return false, fmt.Errorf("%s has %s mounted: unmount that with 'umount %[1]s', or declare another host mountpoint", path, m)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return false, explain(path, unix.ENOTDIR)
	}
	return false, nil
}

// explain adds what would help.
func explain(path string, err error) error {
	switch {
	case errors.Is(err, unix.ELOOP):
		return fmt.Errorf("%s goes through a symbolic link: declare the path that it leads to", path)
	case errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%s is no directory: move it away, or declare another host mountpoint", path)
	case errors.Is(err, unix.ENOTCONN), errors.Is(err, unix.ECONNABORTED):
		return fmt.Errorf("%s: %w: the daemon behind it has gone; start it again after 'umount %[1]s'", path, err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%s: %w: run as root", path, err)
	}
	return fmt.Errorf("%s: %w", path, err)
}

// openDir returns a directory, made with those around it where missing. No part
// of the path is followed if it is a symbolic link: a guest may have put it into
// a directory of its own.
func openDir(path string) (*os.File, error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Open("/", flags, 0)
	if err != nil {
		return nil, err
	}
	dir := os.NewFile(uintptr(fd), "/")
	for _, at := range append(above(path), path) {
		name := at[strings.LastIndexByte(at, '/')+1:]
		mode := uint32(0o755)
		if at == guestsDir {
			mode = 0o700
		}
		err := unix.Mkdirat(int(dir.Fd()), name, mode)
		if err == nil || errors.Is(err, unix.EEXIST) {
			fd, err = unix.Openat(int(dir.Fd()), name, flags, 0)
		}
		if errors.Is(err, unix.ENOTDIR) && isLink(dir, name) {
			err = unix.ELOOP
		}
		dir.Close()
		if err != nil {
			return nil, explain(at, err)
		}
		dir = os.NewFile(uintptr(fd), at)
	}
	return dir, nil
}

// isLink tells why O_DIRECTORY with O_NOFOLLOW has refused a name.
func isLink(dir *os.File, name string) bool {
	var st unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK
}

// graft mounts what is mounted at from on dir, too. dir is an open directory, so
// nobody can put another in its place meanwhile.
func graft(from string, dir *os.File) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, from, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return explain("copy the mount "+from, err)
	}
	defer unix.Close(tree)
	// A copy that propagates would show what is mounted within one guest's
	// directory in those of the others.
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		return fmt.Errorf("make the copy of the mount %s private: %w: Linux 5.12 or newer is needed", from, err)
	}
	if err := unix.MoveMount(tree, "", int(dir.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return explain(dir.Name(), err)
	}
	return nil
}
