// Package tail keeps the last words of a program.
package tail

import (
	"strings"
	"sync"
)

// Writer keeps the end of what is written to it. It may be used by several at a
// time.
type Writer struct {
	Max int // bytes

	mu  sync.Mutex
	buf []byte
}

// Write never fails.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = append(w.buf, p...)
	if over := len(w.buf) - w.Max; over > 0 {
		w.buf = append(w.buf[:0], w.buf[over:]...)
	}
	return len(p), nil
}

// String is what it keeps, without the white space around it.
func (w *Writer) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.TrimSpace(string(w.buf))
}
