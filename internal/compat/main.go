// Command compat rewrites the tables of what boots in Markdown files, from the
// rows that the tests wrote while they ran:
//
//	compat ROWS FILE…
//
// ROWS holds one Row in JSON per line. A table stands between the lines
// <!-- compat NAME --> and <!-- end compat -->.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// Row is what one test has shown.
type Row struct {
	Table    string `json:"table"`    // name of the table
	Firmware string `json:"firmware"` // with what it depends on: the NIC, Secure Boot
	Mode     string `json:"mode"`     // by which protocols and programs it boots, or beside which server
	Boots    string `json:"boots"`    // what is booted
	Result   string `json:"result"`   // how far it came, or why it did not run
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: compat ROWS FILE…")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "compat:", err)
		os.Exit(1)
	}
}

func run(rowsFile string, files []string) error {
	f, err := os.Open(rowsFile)
	if err != nil {
		return err
	}
	defer f.Close()
	rows, err := readRows(f)
	if err != nil {
		return fmt.Errorf("%s: %w", rowsFile, err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		text, err = rewrite(text, rows)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := os.WriteFile(name, text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// readRows reads rows and sorts them; those of one run come in any order. Of
// two for the same boot the later one counts.
func readRows(r io.Reader) ([]Row, error) {
	type key struct{ table, firmware, mode, boots string }
	byKey := map[key]Row{}
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		var row Row
		if err := json.Unmarshal(lines.Bytes(), &row); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		byKey[key{row.Table, row.Firmware, row.Mode, row.Boots}] = row
	}
	var rows []Row
	for _, row := range byKey {
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b Row) int {
		return cmp.Or(cmp.Compare(a.Firmware, b.Firmware), cmp.Compare(a.Mode, b.Mode), cmp.Compare(a.Boots, b.Boots))
	})
	return rows, lines.Err()
}

const (
	begin = "<!-- compat "
	end   = "<!-- end compat -->"
)

// rewrite replaces the tables of a file.
func rewrite(text []byte, rows []Row) ([]byte, error) {
	var out bytes.Buffer
	found, inside := false, false
	for line := range strings.Lines(string(text)) {
		name, isBegin := strings.CutPrefix(strings.TrimSpace(line), begin)
		switch {
		case isBegin && inside:
			return nil, fmt.Errorf("a table begins in a table: %s is missing", end)
		case isBegin:
			name = strings.TrimSuffix(name, " -->")
			out.WriteString(line)
			if err := writeTable(&out, name, rows); err != nil {
				return nil, err
			}
			found, inside = true, true
		case strings.TrimSpace(line) == end:
			inside = false
			fallthrough
		case !inside:
			out.WriteString(line)
		}
	}
	switch {
	case inside:
		return nil, fmt.Errorf("a table does not end: %s is missing", end)
	case !found:
		return nil, errors.New("it has no table: " + begin + "NAME --> begins one")
	}
	return out.Bytes(), nil
}

func writeTable(w io.Writer, name string, rows []Row) error {
	rows = slices.DeleteFunc(slices.Clone(rows), func(r Row) bool { return r.Table != name })
	if len(rows) == 0 {
		return fmt.Errorf("no test ran that has a row for table %s", name)
	}
	fmt.Fprint(w, "| firmware | mode | boots | result |\n| --- | --- | --- | --- |\n")
	cell := strings.NewReplacer("|", `\|`, "\n", " ")
	for _, r := range rows {
		fmt.Fprintf(w, "| %s | %s | %s | %s |\n", cell.Replace(r.Firmware), cell.Replace(r.Mode), cell.Replace(r.Boots), cell.Replace(r.Result))
	}
	return nil
}
