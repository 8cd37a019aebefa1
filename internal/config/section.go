package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// reader collects what is wrong with one file.
type reader struct {
	name     string // of the file
	dir      string // absolute; where relative paths begin
	data     []byte
	problems Problems
	broken   bool           // a syntax error: there is no document
	at       map[string]int // byte offset of each value that was read, and of each section
	bad      map[string]bool
	keys     []string // every key that was asked for
	every    []string // see everyKey
}

// everyKey is Keys, asked for again with every key that nobody knows.
func (r *reader) everyKey() []string {
	if r.every == nil {
		r.every = Keys()
	}
	return r.every
}

func newReader(name string, data []byte) *reader {
	r := &reader{name: name, data: data, at: map[string]int{}, bad: map[string]bool{}}
	dir, err := filepath.Abs(filepath.Dir(name))
	if err != nil {
		// The working directory is gone; relative paths stay relative to it.
		dir = filepath.Dir(name)
	}
	r.dir = dir
	return r
}

// position turns a byte offset into a line and a column, from 1.
func (r *reader) position(offset int) (line, column int) {
	before := r.data[:min(offset, len(r.data))]
	return bytes.Count(before, []byte("\n")) + 1, len(before) - bytes.LastIndexByte(before, '\n')
}

func (r *reader) problem(key string, offset int, what, instead string) {
	line, column := r.position(offset)
	r.problems = append(r.problems, Problem{r.name, line, column, key, what, instead})
	r.bad[key] = true
}

// problemAt reports a problem with the value of a key.
func (r *reader) problemAt(key, what, instead string) { r.problem(key, r.place(key), what, instead) }

// place is the offset of the value of a key or, when the file leaves it to the
// default, of the nearest table around it that is there.
func (r *reader) place(key string) int {
	for {
		if at, ok := r.at[key]; ok || key == "" {
			return at
		}
		key = key[:max(0, strings.LastIndexAny(key, ".["))]
	}
}

// lineOf is the line of place.
func (r *reader) lineOf(key string) int {
	line, _ := r.position(r.place(key))
	return line
}

// ok reports whether none of the keys has been complained about: a check that
// combines values says nothing useful about a wrong one.
func (r *reader) ok(keys ...string) bool {
	return !slices.ContainsFunc(keys, func(k string) bool { return r.bad[k] })
}

func (r *reader) err() error {
	if len(r.problems) == 0 {
		return nil
	}
	r.problems.sort()
	return r.problems
}

// section is one table while its keys are gone through, to read them out of
// in or to write them to out.
type section struct {
	path  string
	r     *reader
	in    *table
	out   *strings.Builder
	known []string // its keys
	named []string // names that the file has chosen
}

func (s *section) writing() bool { return s.out != nil }

func (s *section) key(name string) string { return join(s.path, name) }

// leaf is take for a key that is not a table of further keys.
func (s *section) leaf(name string) *value {
	s.r.keys = append(s.r.keys, s.key(name))
	return s.take(name)
}

// take notes that the section has a key of this name and returns its value in
// the file, nil when there is none.
func (s *section) take(name string) *value {
	s.known = append(s.known, name)
	e := s.in.byName[name]
	if e == nil {
		return nil
	}
	v := e.value
	s.r.at[s.key(name)] = v.at
	return v
}

func (s *section) has(name string) bool { return s.in.byName[name] != nil }

// codec is one type of value in its text form.
type codec[T any] struct {
	kind     kind
	want     string                  // completes "write …"
	parse    func(string) (T, error) // the error continues the sentence that the value begins
	text     func(T) string
	optional bool // "" means that it is not set
}

// optional lets "" stand for the zero value, which is then not shown.
func optional[T comparable](c codec[T]) codec[T] {
	parse, text := c.parse, c.text
	c.text = func(v T) string {
		var zero T
		if v == zero {
			return ""
		}
		return text(v)
	}
	c.parse = func(s string) (v T, err error) {
		if s == "" {
			return v, nil
		}
		return parse(s)
	}
	c.optional = true
	return c
}

// written hides the zero value, which a file cannot write.
func written[T comparable](c codec[T]) codec[T] {
	parse := c.parse
	c = optional(c)
	c.parse = parse
	return c
}

func (c codec[T]) quoted(v T) string {
	if c.kind == kindString {
		return quote(c.text(v))
	}
	return c.text(v)
}

// read parses one value or reports what is wrong with it.
func read[T any](r *reader, key string, c codec[T], v *value) (got T, ok bool) {
	shown := v.text
	if v.kind == kindString {
		shown = strconv.Quote(v.text)
	}
	if v.kind != c.kind {
		what := "is " + v.kind.String()
		if v.kind < kindList {
			what = shown + " " + what
		}
		r.problem(key, v.at, what, "write "+c.want)
		return got, false
	}
	got, err := c.parse(v.text)
	if err != nil {
		r.problem(key, v.at, shown+" "+err.Error(), "write "+c.want)
		return got, false
	}
	return got, true
}

// key is a key with one value.
func key[T any](s *section, name string, c codec[T], p *T) {
	if s.writing() {
		if c.optional && c.text(*p) == "" {
			return
		}
		fmt.Fprintf(s.out, "%s = %s\n", name, c.quoted(*p))
		return
	}
	v := s.leaf(name)
	if v == nil {
		return
	}
	if got, ok := read(s.r, s.key(name), c, v); ok {
		*p = got
	}
}

// list is a key with a list of values.
func list[T any](s *section, name string, c codec[T], p *[]T) {
	if s.writing() {
		texts := make([]string, len(*p))
		for i, v := range *p {
			texts[i] = c.quoted(v)
		}
		fmt.Fprintf(s.out, "%s = [%s]\n", name, strings.Join(texts, ", "))
		return
	}
	v := s.leaf(name)
	if v == nil {
		return
	}
	if v.kind != kindList {
		s.r.problem(s.key(name), v.at, "is "+v.kind.String(), "write a list in brackets, each element "+c.want)
		return
	}
	*p = []T{} // which is not what it is when nothing is said
	for i, element := range v.list {
		k := fmt.Sprintf("%s[%d]", s.key(name), i)
		s.r.at[k] = element.at
		if got, ok := read(s.r, k, c, element); ok {
			*p = append(*p, got)
		} else {
			s.r.bad[s.key(name)] = true
		}
	}
}

// oneOrMore is list for a key whose list of one may be written without brackets.
func oneOrMore[T any](s *section, name string, c codec[T], p *[]T) {
	if !s.writing() {
		if e := s.in.byName[name]; e != nil && e.value.kind == c.kind {
			e.value = &value{kind: kindList, at: e.value.at, list: []*value{e.value}}
		}
	}
	list(s, name, c, p)
}

// pairs is a key with a table of free names.
func pairs[K ~string, T any](s *section, name string, names codec[K], c codec[T], p *map[K]T) {
	if s.writing() {
		texts := make([]string, 0, len(*p))
		for _, k := range slices.Sorted(maps.Keys(*p)) {
			texts = append(texts, quote(string(k))+" = "+c.quoted((*p)[k]))
		}
		fmt.Fprintf(s.out, "%s = {%s}\n", name, strings.Join(texts, ", "))
		return
	}
	v := s.leaf(name)
	if v == nil {
		return
	}
	if v.kind != kindTable {
		s.r.problem(s.key(name), v.at, "is "+v.kind.String(), `write a table such as {`+names.want+` = "…"}`)
		return
	}
	m := make(map[K]T, len(v.table.order))
	for _, k := range v.table.order {
		e := v.table.byName[k]
		path := join(s.key(name), k)
		s.r.at[path] = e.value.at
		clean, err := names.parse(k)
		if err != nil {
			s.r.problem(path, e.at, strconv.Quote(k)+" "+err.Error(), "write a name such as "+names.want)
			continue
		}
		if _, twice := m[clean]; twice {
			s.r.problem(path, e.at, "names "+string(clean)+" a second time", "keep one of the two")
			continue
		}
		if got, ok := read(s.r, path, c, e.value); ok {
			m[clean] = got
			s.r.at[join(s.key(name), string(clean))] = e.value.at
		}
	}
	*p = m
}

// sub opens the table called name of this section. Reading, it is nil when
// the file does not have it.
func (s *section) sub(name string) *section {
	if s.writing() {
		return s.begin(s.key(name))
	}
	v := s.take(name)
	if v == nil {
		return nil
	}
	return s.r.table(s.key(name), v)
}

// begin writes the header of a table.
func (s *section) begin(path string) *section {
	fmt.Fprintf(s.out, "\n[%s]\n", path)
	return &section{path: path, out: s.out}
}

// table makes a section of a value, or nil if it is not a table.
func (r *reader) table(path string, v *value) *section {
	r.at[path] = v.at
	if v.kind != kindTable {
		r.problem(path, v.at, "is "+v.kind.String(), "write a table: "+header(path)+" on a line of its own, keys below it")
		return nil
	}
	return &section{path: path, r: r, in: v.table}
}

// end reports the keys of the file that nobody asked for.
func (s *section) end() {
	if s.writing() {
		return
	}
	for _, name := range s.in.order {
		if !slices.Contains(s.known, name) && !slices.Contains(s.named, name) {
			s.r.problem(s.key(name), s.in.byName[name].at, "is not a key of ecboot's", s.suggest(name))
		}
	}
}

// suggest says what an unknown key may have been meant to be: one of another
// section, or one of its own by a slip of the finger.
func (s *section) suggest(name string) string {
	var elsewhere []string
	for _, k := range s.r.everyKey() {
		if section, last, ok := cutLast(k); ok && last == name && section != "" {
			elsewhere = append(elsewhere, header(section))
		}
	}
	if n := len(elsewhere); n > 0 {
		return name + " belongs in " + wordList(elsewhere, "or")
	}
	best, distance := "", max(1, len(name)/3)+1
	for _, k := range s.known {
		if d := EditDistance(name, k); d < distance {
			best, distance = k, d
		}
	}
	if best != "" {
		return "did you mean " + best + "?"
	}
	where := "here"
	if s.path != "" {
		where = "in " + header(s.path)
	}
	return fmt.Sprintf("the keys %s are %s", where, strings.Join(s.known, ", "))
}

func header(path string) string {
	if i := strings.LastIndexByte(path, '['); i >= 0 && path[len(path)-1] == ']' {
		return "[[" + path[:i] + "]]"
	}
	return "[" + path + "]"
}

// wordList is a, b and c, joined by what is between the last two.
func wordList(words []string, last string) string {
	n := len(words) - 1
	if n < 1 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:n], ", ") + " " + last + " " + words[n]
}

func cutLast(path string) (before, after string, ok bool) {
	i := strings.LastIndexByte(path, '.')
	if i < 0 {
		return "", path, false
	}
	return path[:i], path[i+1:], true
}

// EditDistance counts the letters to insert, drop or change to make one name of
// another (Levenshtein).
func EditDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// quote writes a TOML basic string. JSON's escapes are a subset of TOML's, but
// JSON lets DEL stand as it is.
func quote(s string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // strings always encode
	return strings.ReplaceAll(strings.TrimSuffix(b.String(), "\n"), "\x7f", `\u007f`)
}
