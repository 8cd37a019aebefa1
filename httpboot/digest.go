package httpboot

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of what is kept of files, and of what waits to be read.
const (
	maxDigests  = 4096
	maxToDigest = 64      // open files
	maxAtOnce   = 1 << 20 // bytes that are digested while a client waits
)

// fileState is a file with its contents: whatever is written to it changes one
// of these.
type fileState struct {
	dev, inode   uint64
	size         int64
	mtime, ctime syscall.Timespec
}

// stateOf is false for what is no file of the operating system.
func stateOf(info fs.FileInfo) (fileState, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fileState{}, false
	}
	return fileState{dev: uint64(st.Dev), inode: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}, true
}

// clockTick is the coarsest step of the clock that stamps files: one that was
// changed within it may change again and look the same.
const clockTick = 20 * time.Millisecond

// digests knows the SHA-256 of files by their state. Large files are read in
// the background, so that no client waits for it.
type digests struct {
	queue chan undigested

	mu    sync.Mutex
	known map[fileState]string // "" while it waits in the queue
}

type undigested struct {
	state fileState
	file  *os.File
}

func newDigests() *digests {
	return &digests{queue: make(chan undigested, maxToDigest), known: map[fileState]string{}}
}

// etag is the strong entity tag of a file (RFC 9110 §8.8.3). It is "" for a
// file that nobody has asked for before, and soon known.
func (d *digests) etag(info fs.FileInfo, content io.ReadSeeker) string {
	if f, ok := content.(*os.File); ok {
		if state, ok := stateOf(info); ok {
			return d.lookup(state, f)
		}
	}
	// Made in memory, and small: nothing tells its versions apart but itself.
	if info.Size() > maxAtOnce {
		return ""
	}
	sum := sha256.New()
	_, err := io.Copy(sum, content)
	if _, serr := content.Seek(0, io.SeekStart); err != nil || serr != nil {
		return ""
	}
	return entityTag(sum)
}

func entityTag(sum hash.Hash) string { return fmt.Sprintf(`"%x"`, sum.Sum(nil)) }

func (d *digests) lookup(state fileState, f *os.File) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if tag, ok := d.known[state]; ok {
		return tag
	}
	// A descriptor of its own: the caller closes f.
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	u := undigested{state, os.NewFile(uintptr(fd), f.Name())}
	select {
	case d.queue <- u:
		d.remember(state, "")
	default: // the next one who asks tries again
		u.file.Close()
	}
	return ""
}

// remember keeps a tag; d.mu is held.
func (d *digests) remember(state fileState, tag string) {
	if len(d.known) >= maxDigests {
		clear(d.known)
	}
	d.known[state] = tag
}

// prepare has a file digested before anybody asks for it. Whoever asks will
// be told if it cannot be read.
func (d *digests) prepare(path string) {
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
		d.etag(info, f)
	}
}

// run digests files until ctx is done.
func (d *digests) run(ctx context.Context) {
	for {
		select {
		case u := <-d.queue:
			d.digest(ctx, u)
		case <-ctx.Done():
			return
		}
	}
}

// digest reads a file. Of one that changes meanwhile nothing is kept.
func (d *digests) digest(ctx context.Context, u undigested) {
	defer u.file.Close()
	// What is written within the tick of its last change cannot be told apart.
	sleep(ctx, min(clockTick, time.Until(time.Unix(u.state.ctime.Unix()).Add(clockTick))))
	sum := sha256.New()
	_, err := io.Copy(sum, cancellable{ctx, io.NewSectionReader(u.file, 0, u.state.size)})
	tag := entityTag(sum)
	if info, serr := u.file.Stat(); err != nil || serr != nil {
		tag = ""
	} else if now, _ := stateOf(info); now != u.state {
		tag = ""
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if tag == "" {
		delete(d.known, u.state)
		return
	}
	d.remember(u.state, tag)
}

func sleep(ctx context.Context, pause time.Duration) {
	select {
	case <-time.After(pause):
	case <-ctx.Done():
	}
}

// cancellable is a reader that ends with its context.
type cancellable struct {
	ctx context.Context
	io.Reader
}

func (c cancellable) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.Reader.Read(p)
}
