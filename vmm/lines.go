package vmm

import (
	"io"
	"strings"
)

// Lines returns a writer for what a console shows, which calls emit with each
// line of text in it.
func Lines(emit func(line string)) io.Writer { return &lineWriter{emit: emit} }

type lineWriter struct {
	splitter splitter
	emit     func(string)
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.splitter.feed(p, w.emit)
	return len(p), nil
}

// maxLine is the length in bytes at which a line is broken.
const maxLine = 4096

// splitter turns what a terminal is sent into lines of text: escape sequences
// go, overwritten text goes, and moving the cursor to another place ends a
// line, because that is how firmware that draws its screen goes on.
//
// It is not a terminal: text that is drawn piecemeal comes in pieces.
type splitter struct {
	line   []byte // the line so far
	params []byte // of the control sequence being read
	state  state
	cr     bool // a carriage return has come: text from here on overwrites the line
}

type state uint8

const (
	text       state = iota
	escape           // after ESC
	escapeMore       // after ESC and an intermediate byte: one more ends it
	control          // after ESC [
	str              // after ESC ] or another that begins a string; ends by BEL or ESC \
	strEscape        // after ESC in a string
)

const maxParams = 32

// feed reads p and calls emit with each line that is complete.
func (s *splitter) feed(p []byte, emit func(string)) {
	for _, b := range p {
		switch s.state {
		case text:
			s.text(b, emit)
		case escape:
			s.escape(b, emit)
		case escapeMore:
			if b < 0x20 || b >= 0x30 {
				s.state = text
			}
		case control:
			switch {
			case b == 0x1b:
				s.state = escape
			case b >= 0x40 && b < 0x7f:
				s.state = text
				s.control(b, emit)
			case b >= 0x20 && b < 0x40:
				if len(s.params) < maxParams {
					s.params = append(s.params, b)
				}
			case b == '\n' || b == '\r':
				// Binary noise rather than a sequence: the line ends all the same.
				s.state = text
				s.text(b, emit)
			}
		case str:
			switch b {
			case 0x07:
				s.state = text
			case 0x1b:
				s.state = strEscape
			case '\n':
				s.state = text
				s.text(b, emit)
			}
		case strEscape:
			s.state = text
			if b != '\\' {
				s.escape(b, emit)
			}
		}
	}
}

func (s *splitter) text(b byte, emit func(string)) {
	switch {
	case b == 0x1b:
		s.state = escape
	case b == '\n':
		s.end(emit)
	case b == '\r':
		s.cr = true
	case b == '\b':
		if n := len(s.line); n > 0 && !s.cr {
			s.line = s.line[:n-1]
		}
	case b == '\t' || b >= 0x20 && b != 0x7f:
		if s.cr {
			s.line = s.line[:0]
			s.cr = false
		}
		s.line = append(s.line, b)
		if len(s.line) >= maxLine {
			s.end(emit)
		}
	}
}

func (s *splitter) escape(b byte, emit func(string)) {
	s.state = text
	switch {
	case b == 0x1b:
		s.state = escape
	case b == '[':
		s.state = control
		s.params = s.params[:0]
	case b == ']' || b == 'P' || b == 'X' || b == '^' || b == '_':
		s.state = str
	case b == 'c': // reset
		s.endIfAny(emit)
	case b >= 0x20 && b < 0x30:
		s.state = escapeMore
	case b == '\n' || b == '\r':
		s.text(b, emit)
	}
}

// control acts on the sequences that move the cursor off the line (position,
// up, down, next and previous line, erase display) or along it.
func (s *splitter) control(final byte, emit func(string)) {
	switch final {
	case 'H', 'f', 'A', 'B', 'E', 'F', 'd':
		s.endIfAny(emit)
	case 'J':
		// With no parameter it clears from the cursor on, which line
		// editors do within their own line.
		if len(s.params) > 0 && s.params[0] != '0' {
			s.endIfAny(emit)
		}
	case 'C':
		s.text(' ', emit)
	case 'G':
		if len(s.params) == 0 || string(s.params) == "1" {
			s.cr = true
		}
	}
}

func (s *splitter) end(emit func(string)) {
	emit(s.partial())
	s.line = s.line[:0]
	s.cr = false
}

func (s *splitter) endIfAny(emit func(string)) {
	if strings.TrimSpace(s.partial()) != "" {
		s.end(emit)
	}
	s.line = s.line[:0]
	s.cr = false
}

// partial is the line that has not ended yet, such as a prompt.
func (s *splitter) partial() string {
	return strings.ToValidUTF8(string(s.line), "\uFFFD")
}
