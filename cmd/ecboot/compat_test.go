package main

import (
	"encoding/json"
	"os"
	"testing"
)

// compatVar names the file to which tests that boot machines append what they
// have shown; `make compat` makes the tables of docs/compatibility.md of it.
const compatVar = "ECBOOT_COMPAT"

// compatRow is a line of a table, as internal/compat reads it.
type compatRow struct {
	Table    string `json:"table"`    // boots, or proxy beside other DHCP servers
	Firmware string `json:"firmware"` // with what it depends on: the NIC, Secure Boot
	Mode     string `json:"mode"`     // by which protocols and programs it boots, or beside which server
	Boots    string `json:"boots"`    // what is booted
	Result   string `json:"result"`   // what the test shows if it passes
}

// compat notes the row of a test. Call it first: a test that fails or is skipped
// after it says so in the table.
func compat(t *testing.T, row compatRow) {
	t.Helper()
	file := os.Getenv(compatVar)
	if file == "" {
		return
	}
	t.Cleanup(func() {
		switch {
		case t.Failed():
			row.Result = "**failed**"
		case t.Skipped():
			row.Result = "not run: a part was missing"
		}
		line, err := json.Marshal(row)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		// One write: tests in parallel append to the same file.
		if _, err := f.Write(append(line, '\n')); err != nil {
			t.Fatal(err)
		}
	})
}
