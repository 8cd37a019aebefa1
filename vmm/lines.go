package vmm

import (
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
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
// line, because that is how firmware that draws its screen goes on. Moving it to
// where it is does not: SeaBIOS does that whenever its timer comes, within words.
//
// It is not a terminal: text that is drawn piecemeal comes in pieces.
type splitter struct {
	line   []byte // the line so far
	params []byte // of the control sequence being read
	state  state
	cr     bool // a carriage return has come: text from here on overwrites the line
	at     place
	moved  place // in the row of at, where text is to go on; zero: at
}

// place is a row and a column of the screen, from 1; the zero value is not known.
type place struct{ row, column int }

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
		s.at, s.moved = place{}, place{}
	case b == '\b':
		if n := len(s.line); n > 0 && !s.cr {
			s.line = s.line[:n-1]
		}
		s.at, s.moved = place{}, place{}
	case b == '\t' || b >= 0x20 && b != 0x7f:
		if moved := s.moved; moved != (place{}) && moved != s.at {
			s.endIfAny(emit)
			s.at = moved
		}
		s.moved = place{}
		switch {
		case b == '\t':
			s.at = place{}
		case s.at != (place{}) && utf8.RuneStart(b):
			s.at.column++
		}
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
	case 'H', 'f':
		to := s.position()
		if s.at != (place{}) && to.row == s.at.row {
			s.moved = to
			return
		}
		s.endIfAny(emit)
		s.at = to
	case 'A', 'B', 'E', 'F', 'd':
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
		s.at, s.moved = place{}, place{}
	}
}

// position reads the parameters of a move; one that is left out is 1.
func (s *splitter) position() place {
	row, column, _ := strings.Cut(string(s.params), ";")
	p := place{1, 1}
	var err error
	if row != "" {
		p.row, err = strconv.Atoi(row)
	}
	if column != "" && err == nil {
		p.column, err = strconv.Atoi(column)
	}
	if err != nil {
		return place{}
	}
	return p
}

func (s *splitter) end(emit func(string)) {
	emit(s.partial())
	s.forget()
}

func (s *splitter) endIfAny(emit func(string)) {
	if strings.TrimSpace(s.partial()) != "" {
		s.end(emit)
	}
	s.forget()
}

// forget begins a line.
func (s *splitter) forget() {
	s.line = s.line[:0]
	s.cr = false
	s.at, s.moved = place{}, place{}
}

// partial is the line that has not ended yet, such as a prompt.
func (s *splitter) partial() string {
	return strings.ToValidUTF8(string(s.line), "\uFFFD")
}
