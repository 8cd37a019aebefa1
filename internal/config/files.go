package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// maxScript is far more than a script needs and little enough to be rendered
// in memory for each request.
const maxScript = 1 << 20

// readFiles reads the scripts of the profiles and reports every file that
// cannot be read.
func (r *reader) readFiles(c *Config) {
	for name, p := range c.Profiles {
		section := join("profile", name)
		script, kernel, initrds, files := section+".script", section+".kernel", section+".initrds", section+".initramfs.files"
		if p.ScriptFile != "" {
			if text, ok := r.readScript(script, p.ScriptFile); ok {
				p.Script = text
				c.Profiles[name] = p
			}
			continue
		}
		if r.ok(kernel) {
			r.checkSource(kernel, p.Kernel)
		}
		if r.ok(initrds) {
			for i, initrd := range p.Initrds {
				r.checkSource(fmt.Sprintf("%s[%d]", initrds, i), initrd)
			}
		}
		if p.Initramfs != nil {
			for inside, outside := range p.Initramfs.Files {
				r.checkThere(join(files, inside), outside)
			}
		}
	}
}

func (r *reader) checkSource(key string, s Source) {
	if _, embedded := s.Embedded(); !embedded {
		r.checkFile(key, string(s))
	}
}

const writePath = "write the path of a file, absolute or from the directory of this one"

// checkThere reports a path that leads nowhere. Directories and dangling
// links can be put into an archive as well as files.
func (r *reader) checkThere(key, path string) bool {
	_, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r.problemAt(key, "there is no file "+path, writePath)
		return false
	case err != nil:
		r.problemAt(key, fmt.Sprintf("%s cannot be looked at: %v", path, reason(err)), "")
		return false
	}
	return true
}

// checkFile reports a file that cannot be served. Only a regular file is
// opened: opening a pipe would wait for a writer.
func (r *reader) checkFile(key, path string) bool {
	if !r.checkThere(key, path) {
		return false
	}
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		r.problemAt(key, path+" is not a regular file", writePath)
		return false
	}
	f, err := os.Open(path)
	if err != nil {
		r.problemAt(key, fmt.Sprintf("%s cannot be read: %v", path, reason(err)), "make it readable for the user who runs ecboot")
		return false
	}
	f.Close()
	return true
}

// reason takes the path out of an error whose message names it anyway.
func reason(err error) error {
	var perr *fs.PathError
	if errors.As(err, &perr) {
		return perr.Err
	}
	return err
}

func (r *reader) readScript(key, path string) (text string, ok bool) {
	if !r.ok(key) || !r.checkFile(key, path) {
		return "", false
	}
	b, err := os.ReadFile(path)
	switch {
	case err != nil:
		r.problemAt(key, fmt.Sprintf("%s cannot be read: %v", path, reason(err)), "")
	case len(b) > maxScript:
		r.problemAt(key, fmt.Sprintf("%s has more than %d bytes", path, maxScript), "write the path of an iPXE script")
	case !strings.HasPrefix(string(b), "#!ipxe"):
		r.problemAt(key, path+" is not an iPXE script: its first line is not #!ipxe", "write the path of an iPXE script")
	default:
		return string(b), true
	}
	return "", false
}
