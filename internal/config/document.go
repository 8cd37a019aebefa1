package config

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// The decoder of go-toml stops at the first value of a wrong type and at the
// first duplicate, and keeps no positions. So its parser is used alone, to
// build a tree in which everything knows where it stands.

// kind is the TOML type of a value.
type kind uint8

const (
	kindString kind = iota
	kindInteger
	kindBool
	kindFloat
	kindTime
	kindList
	kindTable
)

var kindNames = [...]string{
	kindString:  "a string",
	kindInteger: "an integer",
	kindBool:    "a boolean",
	kindFloat:   "a float",
	kindTime:    "a date or time",
	kindList:    "a list",
	kindTable:   "a table",
}

func (k kind) String() string { return kindNames[k] }

// value is one value of the document.
type value struct {
	kind  kind
	at    int    // byte offset; of a table with a header, the offset of its name there
	text  string // of a string its contents, of other scalars their source
	list  []*value
	table *table
}

// table keeps its keys in the order of the document.
type table struct {
	origin origin
	order  []string
	byName map[string]*entry
}

type entry struct {
	at    int // byte offset of the key
	value *value
}

// origin says how a table came to be, which decides what may be added to it.
type origin uint8

const (
	implied origin = iota // named on the way in another table's header
	headed                // by a header of its own
	dotted                // by a dotted key
	inline                // between braces
)

func newTable(o origin) *table { return &table{origin: o, byName: map[string]*entry{}} }

func (t *table) add(name string, at int, v *value) {
	t.order = append(t.order, name)
	t.byName[name] = &entry{at: at, value: v}
}

// document builds the tree of r.data. After a syntax error it reports that one
// alone and sets r.broken: nothing behind it can be trusted.
func (r *reader) document() *table {
	var p unstable.Parser
	p.Reset(r.data)
	d := &documentBuilder{r: r, p: &p, root: newTable(headed)}
	d.current = d.root
	for p.NextExpression() {
		d.expression(p.Expression())
	}
	if err := p.Error(); err != nil {
		r.syntaxError(err)
		return d.root
	}
	if len(r.problems) == 0 {
		// The parser leaves the contents of dates and numbers and the finer
		// rules of duplicates to the decoder.
		var whole map[string]any
		if err := toml.Unmarshal(r.data, &whole); err != nil {
			r.syntaxError(err)
		}
	}
	return d.root
}

// syntaxError makes err the one problem of the file.
func (r *reader) syntaxError(err error) {
	r.broken = true
	r.problems = nil
	var parse *unstable.ParserError
	var decode *toml.DecodeError
	switch {
	case errors.As(err, &parse):
		// A highlight is a piece of the document, so their capacities end
		// at the same byte.
		r.problem("", cap(r.data)-cap(parse.Highlight), parse.Message, "")
	case errors.As(err, &decode):
		line, column := decode.Position()
		r.problems = append(r.problems, Problem{
			File: r.name, Line: line, Column: column,
			Key:  strings.Join(decode.Key(), "."),
			What: strings.TrimPrefix(decode.Error(), "toml: "),
		})
	default:
		r.problem("", 0, strings.TrimPrefix(err.Error(), "toml: "), "")
	}
}

type documentBuilder struct {
	r       *reader
	p       *unstable.Parser
	root    *table
	current *table // to which key-values are added
	path    string // of current
}

type keyPart struct {
	name    string
	at, end int
}

func keyParts(n *unstable.Node) (parts []keyPart) {
	for it := n.Key(); it.Next(); {
		k := it.Node()
		at := int(k.Raw.Offset)
		parts = append(parts, keyPart{string(k.Data), at, at + int(k.Raw.Length)})
	}
	return parts
}

func (d *documentBuilder) expression(n *unstable.Node) {
	if n.Kind == unstable.KeyValue {
		d.keyValue(d.current, d.path, n, 0)
		return
	}
	d.header(keyParts(n), n.Kind == unstable.ArrayTable)
}

// header makes the table of [a.b] or a further one of [[a.b]] current. One
// that cannot be is reported, and its keys go nowhere.
func (d *documentBuilder) header(parts []keyPart, array bool) {
	t, path := d.root, ""
	last := len(parts) - 1
	for i, part := range parts {
		path = join(path, part.name)
		e := t.byName[part.name]
		if e == nil {
			v := &value{kind: kindTable, at: part.at, table: newTable(implied)}
			if i == last && array {
				v = &value{kind: kindList, at: part.at}
			}
			t.add(part.name, part.at, v)
			e = t.byName[part.name]
		}
		v := e.value
		if i == last {
			d.path = path
			d.current = d.enter(e, path, part.at, array)
			return
		}
		switch {
		case v.kind == kindTable && v.table.origin != inline:
			t = v.table
		case isTableArray(v):
			path = fmt.Sprintf("%s[%d]", path, len(v.list)-1)
			t = v.list[len(v.list)-1].table
		default:
			d.again(path, part.at, e, "is not a table that can be added to")
			d.path, d.current = path, newTable(headed)
			return
		}
	}
}

// enter returns the table that a header for e opens.
func (d *documentBuilder) enter(e *entry, path string, at int, array bool) *table {
	v := e.value
	switch {
	case array && v.kind == kindList && (len(v.list) == 0 || isTableArray(v)):
		if len(v.list) == 0 && e.at != at {
			break // key = []
		}
		element := &value{kind: kindTable, at: at, table: newTable(headed)}
		v.list = append(v.list, element)
		d.path = fmt.Sprintf("%s[%d]", path, len(v.list)-1)
		return element.table
	case !array && v.kind == kindTable && v.table.origin == implied:
		v.table.origin = headed
		v.at = at
		return v.table
	case !array && v.kind == kindTable && v.table.origin == headed:
		// Read on into the same table, so that its other mistakes show.
		d.again(path, at, e, "has a header already")
		return v.table
	}
	d.again(path, at, e, "is defined already")
	return newTable(headed)
}

// isTableArray reports whether v was made by [[headers]]: a list of tables
// between braces is closed.
func isTableArray(v *value) bool {
	return v.kind == kindList && len(v.list) > 0 && v.list[0].kind == kindTable && v.list[0].table.origin == headed
}

func (d *documentBuilder) again(path string, at int, first *entry, what string) {
	line, _ := d.r.position(first.at)
	d.r.problem(path, at, fmt.Sprintf("%s, in line %d", what, line), "keep one of the two")
}

// keyValue adds one key = value to t.
func (d *documentBuilder) keyValue(t *table, path string, n *unstable.Node, depth int) {
	parts := keyParts(n)
	last := len(parts) - 1
	for i, part := range parts {
		path = join(path, part.name)
		e := t.byName[part.name]
		if i == last {
			v := d.value(n.Value(), path, d.valueStart(part.end), depth+1)
			if e != nil {
				d.again(path, part.at, e, "is set already")
				return
			}
			t.add(part.name, part.at, v)
			return
		}
		if e == nil {
			t.add(part.name, part.at, &value{kind: kindTable, at: part.at, table: newTable(dotted)})
			e = t.byName[part.name]
		}
		if e.value.kind != kindTable || e.value.table.origin != dotted {
			d.again(path, part.at, e, "is defined already")
			return
		}
		t = e.value.table
	}
}

// valueStart skips the equals sign behind a key: lists have no position of
// their own.
func (d *documentBuilder) valueStart(keyEnd int) int {
	rest := d.r.data[keyEnd:]
	return len(d.r.data) - len(bytes.TrimLeft(rest, " \t="))
}

// maxDepth is how deep lists and inline tables may be nested, more than any
// key needs. Without a limit a few kilobytes of brackets take seconds.
const maxDepth = 8

func (d *documentBuilder) value(n *unstable.Node, path string, at, depth int) *value {
	v := &value{at: at, text: string(n.Data)}
	if depth > maxDepth {
		d.r.problem(path, at, "is nested too deeply", "leave out brackets")
		return v
	}
	switch n.Kind {
	case unstable.String:
		v.kind = kindString
	case unstable.Integer:
		v.kind = kindInteger
	case unstable.Bool:
		v.kind = kindBool
	case unstable.Float:
		v.kind = kindFloat
	case unstable.Array:
		v.kind = kindList
		i := 0
		for it := n.Children(); it.Next(); i++ {
			element := it.Node()
			elementAt := at // lists have no Raw
			if element.Raw.Length > 0 {
				elementAt = int(element.Raw.Offset)
			}
			v.list = append(v.list, d.value(element, fmt.Sprintf("%s[%d]", path, i), elementAt, depth+1))
		}
	case unstable.InlineTable:
		v.kind = kindTable
		// Dotted keys may add to the tables of this one only while it is
		// being read, so it is closed afterwards by its origin.
		v.table = newTable(inline)
		for it := n.Children(); it.Next(); {
			d.keyValue(v.table, path, it.Node(), depth)
		}
	default:
		v.kind = kindTime
	}
	return v
}

// join appends a key to a path, in quotes where TOML wants them.
func join(path, name string) string {
	if !isBare(name) {
		name = quote(name)
	}
	if path == "" {
		return name
	}
	return path + "." + name
}

func isBare(name string) bool {
	return name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == ""
}
