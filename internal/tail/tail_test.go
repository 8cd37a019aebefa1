package tail

import (
	"io"
	"testing"
)

func TestWriter(t *testing.T) {
	for _, c := range []struct {
		writes []string
		want   string
	}{
		{nil, ""},
		{[]string{"one\n"}, "one"},
		{[]string{"12345", "678"}, "12345678"},
		{[]string{"12345", "6789"}, "23456789"},
		{[]string{"123456789012"}, "56789012"},
		{[]string{"1234567", "", "8901234567890123"}, "67890123"},
	} {
		w := &Writer{Max: 8}
		for _, s := range c.writes {
			if n, err := io.WriteString(w, s); n != len(s) || err != nil {
				t.Errorf("%q: %d, %v", s, n, err)
			}
		}
		if got := w.String(); got != c.want {
			t.Errorf("%q: %q, want %q", c.writes, got, c.want)
		}
	}
}
