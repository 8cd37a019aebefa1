package main

import (
	"bytes"
	"fmt"
	"strings"
	"time"
)

// manualOf makes a manual page, man(7), of the reference of the configuration: what
// is explained becomes text, what is written in a file stays as it is.
func manualOf(reference string, date time.Time, source string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, ".TH ecboot.toml 5 %q %q ecboot\n", date.UTC().Format("2006-01-02"), source)
	b.WriteString(".SH NAME\necboot.toml \\- the configuration of ecboot\n.SH DESCRIPTION\n")
	// Two empty lines part the tables, one their keys.
	for i, table := range strings.Split(strings.TrimSpace(reference), "\n\n\n") {
		if i > 0 {
			fmt.Fprintf(&b, ".SH %s\n", roffText(tableName(table)))
		}
		for _, part := range strings.Split(table, "\n\n") {
			writePart(&b, part)
		}
	}
	b.WriteString(".SH SEE ALSO\n.BR ecboot (1),\n.BR ecboot\\-config (1)\n")
	return b.Bytes()
}

// writePart writes lines of which the first explain the others.
func writePart(b *bytes.Buffer, part string) {
	const text, item, file = 1, 2, 3 // an item is an indented line of text
	last := 0
	end := func() {
		if last == file {
			b.WriteString(".EE\n.RE\n")
		}
	}
	for line := range strings.Lines(part) {
		line = strings.TrimSuffix(line, "\n")
		words, isText := strings.CutPrefix(line, "# ")
		if line == "#" {
			words, isText = "", true
		}
		switch {
		case isText && words == "":
			end()
			last = 0
		case isText:
			now := text
			if strings.HasPrefix(words, " ") {
				now = item
			}
			if last != text && last != item {
				end()
				b.WriteString(".PP\n")
			} else if now == item || last == item {
				b.WriteString(".br\n")
			}
			last = now
			b.WriteString(roffText(strings.TrimLeft(words, " ")) + "\n")
		case line != "":
			if last != file {
				b.WriteString(".PP\n.RS 4\n.EX\n")
			}
			last = file
			b.WriteString(roffText(line) + "\n")
		}
	}
	end()
}

// tableName is the first table of a text, such as "segment.private".
func tableName(text string) string {
	for line := range strings.Lines(text) {
		if name, ok := strings.CutPrefix(strings.TrimPrefix(line, "#"), "["); ok {
			name, _, _ = strings.Cut(strings.TrimPrefix(name, "["), "]")
			return name
		}
	}
	return "keys"
}

// roffText keeps a line from being read as a request, and its hyphens and
// backslashes as they are.
func roffText(line string) string {
	line = strings.NewReplacer(`\`, `\e`, "-", `\-`, "^", `\(ha`, "~", `\(ti`, "`", `\(ga`, "'", `\(aq`).Replace(line)
	if strings.HasPrefix(line, ".") {
		line = `\&` + line
	}
	return line
}
