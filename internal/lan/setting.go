package lan

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
)

const sysctls = "/proc/sys/net"

// readSetting returns a setting of the kernel's network, and nothing where the
// kernel has no such thing.
func readSetting(key string) (string, error) {
	b, err := os.ReadFile(filepath.Join(sysctls, key))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(b)), err
}

// writeSetting passes over what the kernel does not have, as one without IPv6.
func writeSetting(key, value string) error {
	err := os.WriteFile(filepath.Join(sysctls, key), []byte(value), 0o644)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return needAdmin("set net/"+key, err)
	}
	return nil
}

// restoreSetting writes the old value back unless somebody else has changed the
// setting since, or has switched forwarding on for all links.
func restoreSetting(key, value, old string) error {
	now, err := readSetting(key)
	if err != nil || now != value || old == value || old == "" {
		return err
	}
	if strings.HasSuffix(key, "/forwarding") {
		if all, _ := readSetting("ipv4/ip_forward"); all == "1" {
			return nil
		}
	}
	return writeSetting(key, old)
}

// settings are changes of the kernel's settings, by their keys.
type settings map[string]change

// othersSettings are those that the notes of other segments have, also of other
// processes: two may need the same one.
func othersSettings(note string) settings {
	list := settings{}
	if note == "" {
		return list
	}
	files, _ := filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(note)), "*", noteGlob))
	for _, file := range files {
		n, err := parseNote(file)
		if file == note || err != nil || n.Boot != bootID() {
			continue
		}
		maps.Copy(list, settingsIn(n.Made))
	}
	return list
}

// settingsIn are those among changes.
func settingsIn(made []change) settings {
	list := settings{}
	for _, c := range made {
		if c.Op == opSetting {
			list[c.Key] = c
		}
	}
	return list
}

// original is what a setting was before the first segment changed it: the last
// one puts that back.
func (others settings) original(key string) (string, error) {
	now, err := readSetting(key)
	if c, ok := others[key]; ok && err == nil && now == c.Value {
		return c.Old, nil
	}
	return now, err
}

// of are those of one link.
func (others settings) of(link string) settings {
	list := settings{}
	for key, c := range others {
		if c.affects() == link {
			list[key] = c
		}
	}
	return list
}

// inherit gives a link the settings of another as they were before these changes:
// what a segment with NAT lets in by the one, it does not let in by the other.
func (others settings) inherit(link, from string) error {
	var errs []error
	for key, c := range others {
		if c.Old != "" {
			errs = append(errs, writeSetting(strings.Replace(key, "/"+from+"/", "/"+link+"/", 1), c.Old))
		}
	}
	return errors.Join(errs...)
}

// inheritSettings gives a new link the IP settings of the one whose addresses it
// takes over: router advertisements, filters, forwarding.
func inheritSettings(link, from string) error {
	for _, family := range []string{"ipv4", "ipv6"} {
		dir := filepath.Join(sysctls, family, "conf", from)
		entries, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			key := filepath.Join(family, "conf", link, e.Name())
			want, err := readSetting(filepath.Join(family, "conf", from, e.Name()))
			if err != nil {
				continue // a secret that is not set
			}
			if have, err := readSetting(key); err != nil || have == want {
				continue
			}
			// Some cannot be written; none of those is a choice of the
			// administrator's.
			_ = writeSetting(key, want)
		}
	}
	return nil
}
