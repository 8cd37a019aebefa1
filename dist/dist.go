// Package dist has the files that make a service of the program: units, users
// and directories. 'ecboot install' writes them, and packages contain them.
package dist

import (
	_ "embed"
	"path"
	"strings"
)

// File is one of them, where it belongs on a host.
type File struct {
	Path    string
	Content string
}

var (
	//go:embed ecboot.service
	service string
	//go:embed ecboot.slice
	slice string
	//go:embed sysusers.conf
	sysusers string
	//go:embed tmpfiles.conf
	tmpfiles string
)

// Prefix is where packages install, and what the files are written for.
const Prefix = "/usr"

// Program is where the service finds the program.
func Program(prefix string) string { return path.Join(prefix, "bin/ecboot") }

// Files returns all of them for a prefix.
func Files(prefix string) []File {
	lib := func(name string) string { return path.Join(prefix, "lib", name) }
	return []File{
		{lib("systemd/system/ecboot.service"), strings.ReplaceAll(service, Program(Prefix), Program(prefix))},
		{lib("systemd/system/ecboot.slice"), slice},
		{lib("sysusers.d/ecboot.conf"), sysusers},
		{lib("tmpfiles.d/ecboot.conf"), tmpfiles},
	}
}
