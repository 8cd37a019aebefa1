// Package debtest installs ecboot's Debian package in a small Debian, uses it there
// and removes it again. It has only tests.
package debtest
