package images

import (
	"errors"
	"io/fs"
	"os"
)

// FS serves the network boot programs, and nothing else, under their names. It
// has no directories.
func (e *Extracted) FS() fs.FS { return e.nbps }

// nbpFS is name → path.
type nbpFS map[string]string

func (f nbpFS) Open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	p, ok := f[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	file, err := os.Open(p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errors.New("removed from the cache since the start; start ecboot again")}
	}
	if err != nil {
		return nil, err
	}
	return file, nil
}
