package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Problem is one mistake in a file.
type Problem struct {
	File    string `json:"file"`
	Line    int    `json:"line"`          // from 1
	Column  int    `json:"column"`        // from 1, in bytes
	Key     string `json:"key,omitempty"` // such as "segment.pool" or "machine[1].mac", counted from 0; empty for syntax
	What    string `json:"what"`
	Instead string `json:"instead,omitempty"` // what to write or do, an imperative
}

// String returns FILE:LINE:COLUMN: KEY: WHAT; INSTEAD.
func (p Problem) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d:%d: %s", p.File, p.Line, p.Column, p.message())
	return b.String()
}

// message is the problem without its place.
func (p Problem) message() string {
	var b strings.Builder
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	b.WriteString(p.What)
	if p.Instead != "" {
		b.WriteString("; " + p.Instead)
	}
	return b.String()
}

// Problems is every mistake of one file in the order of the file.
type Problems []Problem

// Error prints all problems, one per line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

func (ps Problems) sort() {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
}
