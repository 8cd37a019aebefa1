package doctor

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// WriteText writes one line per check, what to do below those that need it,
// and a sum. The status is a word, never only a colour.
func WriteText(w io.Writer, checks []Check) error {
	width := 0
	for _, c := range checks {
		width = max(width, len(c.Title))
	}
	var b strings.Builder
	count := map[Status]int{}
	for _, c := range checks {
		count[c.Status]++
		fmt.Fprintf(&b, "%-4s  %-*s  %s\n", c.Status, width, c.Title, oneLine(c.Found))
		if c.Mend != "" {
			fmt.Fprintf(&b, "%*s  to mend: %s\n", 4+2+width, "", oneLine(c.Mend))
		}
		if c.Status == Fail {
			fmt.Fprintf(&b, "%*s  needed by: %s\n", 4+2+width, "", strings.Join(c.Needs, ", "))
		}
	}
	fmt.Fprintf(&b, "\nok: %d, warn: %d, fail: %d, skip: %d\n", count[OK], count[Warn], count[Fail], count[Skip])
	_, err := io.WriteString(w, b.String())
	return err
}

// oneLine keeps the columns when an error of another program has several.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), " / ")
}

// WriteJSON writes {"schema":1,"worst":"…","checks":[…]}.
func WriteJSON(w io.Writer, checks []Check) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(struct {
		Schema int     `json:"schema"`
		Worst  Status  `json:"worst"`
		Checks []Check `json:"checks"`
	}{1, Worst(checks), checks})
}
