package keeper

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/every-channel/ecboot/vmm"
)

// maxConsoleLog is where a console's log is moved aside.
const maxConsoleLog = 10 << 20 // bytes

// rotatingFile is a log that never grows over its limit, and as much of the past
// beside it. What cannot be written is lost: the guest goes on. The zero value
// takes everything and keeps nothing.
type rotatingFile struct {
	path   string
	log    *slog.Logger
	f      *os.File
	size   int64
	broken bool
}

func openRotating(path string, log *slog.Logger) (*rotatingFile, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	r := &rotatingFile{path: path, log: log}
	return r, r.open()
}

func (r *rotatingFile) open() error {
	f, err := os.OpenFile(r.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	r.f, r.size = f, st.Size()
	return nil
}

// Write never fails, because whoever copies the console would give up for good.
func (r *rotatingFile) Write(p []byte) (int, error) {
	if r.path == "" {
		return len(p), nil
	}
	err := r.write(p)
	if err != nil && !r.broken {
		r.log.Error("the console's log loses output", "err", err)
	}
	r.broken = err != nil
	return len(p), nil
}

func (r *rotatingFile) write(p []byte) error {
	if r.f != nil && r.size > 0 && r.size+int64(len(p)) > maxConsoleLog {
		r.f.Close()
		r.f = nil
		if err := os.Rename(r.path, r.path+".1"); err != nil {
			return err
		}
	}
	if r.f == nil {
		if err := r.open(); err != nil {
			return err
		}
	}
	n, err := r.f.Write(p)
	r.size += int64(n)
	return err
}

func (r *rotatingFile) Close() error {
	if r.f == nil {
		return nil
	}
	return r.f.Close()
}

// maxTail is how much of a log is read for its last lines.
const maxTail = 2 << 20 // bytes

// ReadLog returns the last lines of text in a console's log that are not blank,
// those of earlier runs included; 0 are all that are kept, but no more than some
// megabytes. A log that is missing is empty.
func ReadLog(path string, lines int) ([]byte, error) {
	var raw []byte
	for _, name := range []string{path + ".1", path} {
		end, err := readEnd(name)
		if err != nil {
			return nil, err
		}
		raw = append(raw, end...)
	}
	var text []string
	split := vmm.Lines(func(line string) {
		if line = strings.TrimRight(line, " \t"); line != "" {
			text = append(text, line+"\n")
		}
	})
	_, _ = split.Write(append(raw, '\n')) // a last line that has not ended counts
	if lines > 0 {
		text = text[max(0, len(text)-lines):]
	}
	return []byte(strings.Join(text, "")), nil
}

func readEnd(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(f, max(0, st.Size()-maxTail), maxTail))
}
