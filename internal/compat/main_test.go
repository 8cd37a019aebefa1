package main

import (
	"strings"
	"testing"
)

const rowLines = `{"table":"boots","firmware":"UEFI","mode":"PXE","boots":"Linux","result":"failed"}
{"table":"boots","firmware":"BIOS","mode":"PXE","boots":"a | b","result":"userland"}
{"table":"proxy","firmware":"BIOS","mode":"beside Kea","boots":"Linux","result":"userland"}
{"table":"boots","firmware":"UEFI","mode":"PXE","boots":"Linux","result":"userland"}
`

func TestRewrite(t *testing.T) {
	rows, err := readRows(strings.NewReader(rowLines))
	if err != nil {
		t.Fatal(err)
	}
	const before = "# Title\n\n<!-- compat boots -->\nold\n<!-- end compat -->\ntail\n"
	const after = `# Title

<!-- compat boots -->
| firmware | mode | boots | result |
| --- | --- | --- | --- |
| BIOS | PXE | a \| b | userland |
| UEFI | PXE | Linux | userland |
<!-- end compat -->
tail
`
	for range 2 { // the second time changes nothing
		got, err := rewrite([]byte(before), rows)
		if err != nil || string(got) != after {
			t.Errorf("got %v\n%s", err, got)
		}
	}
	for name, text := range map[string]string{
		"no end":     "<!-- compat boots -->\nx\n",
		"no table":   "x\n",
		"no rows":    "<!-- compat other -->\n<!-- end compat -->\n",
		"two begins": "<!-- compat boots -->\n<!-- compat proxy -->\n<!-- end compat -->\n",
	} {
		if got, err := rewrite([]byte(text), rows); err == nil {
			t.Errorf("%s: got %q", name, got)
		}
	}
	if _, err := readRows(strings.NewReader("x\n")); err == nil {
		t.Error("a line that is no row is accepted")
	}
}
