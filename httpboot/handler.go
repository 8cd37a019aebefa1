package httpboot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/timeline"
)

// maxReport is the size in bytes of the largest phone-home.
const maxReport = 4 << 10

// ServeHTTP answers one request. It is no ServeMux, which redirects //file to
// /file: firmware follows no redirects, and shim asks with two slashes.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer s.admission.answer(r)()
	client := clientOf(r)
	if !s.cfg.Allow(client) {
		s.foreign.Warn(s.cfg.Logger, "HTTP request from an address that is not of this segment", "address", client, "path", r.URL.Path)
		refuse(w, http.StatusForbidden, "only machines of the segment are served")
		return
	}
	path, ok := splitPath(r.URL.Path)
	if !ok {
		refuse(w, http.StatusBadRequest, "no such path is ever served")
		return
	}
	read := []string{http.MethodGet, http.MethodHead}
	switch {
	case len(path) == 0:
		if allow(w, r, read...) {
			s.serveIndex(w)
		}
	case path[0] == "ipxe" && len(path) == 2:
		if mac, ok := macOf(w, path[1]); ok && allow(w, r, read...) {
			s.serveScript(w, r, mac)
		}
	case path[0] == "profile" && len(path) == 3:
		if allow(w, r, read...) {
			s.serveArtifact(w, r, path[1], path[2])
		}
	case path[0] == "nbp" && len(path) > 1:
		if allow(w, r, read...) {
			s.serveFile(w, r, strings.Join(path[1:], "/"))
		}
	case path[0] == "phone-home" && len(path) == 2:
		if mac, ok := macOf(w, path[1]); ok && allow(w, r, http.MethodPost) {
			s.servePhoneHome(w, r, mac)
		}
	case path[0] == "failed" && len(path) == 2:
		if mac, ok := macOf(w, path[1]); ok && allow(w, r, http.MethodGet) {
			s.serveFailed(w, r, mac)
		}
	default:
		if allow(w, r, read...) {
			s.serveFile(w, r, strings.Join(path, "/"))
		}
	}
}

// splitPath takes a decoded URL path apart. Doubled slashes and "." mean
// nothing; ".." and what no file name contains is refused.
func splitPath(path string) (elems []string, ok bool) {
	if !strings.HasPrefix(path, "/") || strings.ContainsFunc(path, unicode.IsControl) {
		return nil, false
	}
	for elem := range strings.SplitSeq(path, "/") {
		if elem != "" && elem != "." {
			elems = append(elems, elem)
		}
	}
	if len(elems) > 0 && !fs.ValidPath(strings.Join(elems, "/")) {
		return nil, false
	}
	return elems, true
}

// refuse answers with a sentence.
func refuse(w http.ResponseWriter, status int, sentence string) {
	text := "ecboot: " + sentence + "\n"
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	io.WriteString(w, text)
}

func allow(w http.ResponseWriter, r *http.Request, methods ...string) bool {
	if slices.Contains(methods, r.Method) {
		return true
	}
	w.Header().Set("Allow", strings.Join(methods, ", "))
	refuse(w, http.StatusMethodNotAllowed, "this takes "+strings.Join(methods, " or "))
	return false
}

func macOf(w http.ResponseWriter, text string) (boot.MAC, bool) {
	mac, err := boot.ParseMAC(text)
	if err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
	}
	return mac, err == nil
}

func (s *Server) inventory() *boot.Inventory {
	if inv := s.cfg.Inventory(); inv != nil {
		return inv
	}
	return &boot.Inventory{}
}

// clientOf is the address that a request came from; zero if it has none.
func clientOf(r *http.Request) netip.Addr {
	from, _ := netip.ParseAddrPort(r.RemoteAddr)
	return from.Addr().Unmap()
}

// machine names a client for the timeline.
func (s *Server) machine(client netip.Addr) string {
	if mac := s.cfg.Who(client); mac != "" {
		return mac
	}
	return client.String()
}

// send answers with a text that is complete: Content-Length and one write.
func send(w http.ResponseWriter, text []byte) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.Write(text)
}

// serveIndex tells someone with curl and little sleep what is here.
func (s *Server) serveIndex(w http.ResponseWriter) {
	inv := s.inventory()
	var b bytes.Buffer
	fmt.Fprintf(&b, "This is ecboot: it boots machines over the network.\n\nProfiles (default: %s):\n", orNone(inv.Default))
	for _, name := range slices.Sorted(maps.Keys(inv.Profiles)) {
		p := inv.Profiles[name]
		fmt.Fprintf(&b, "  %s\n", p.Name)
		if p.Script != "" {
			b.WriteString("    a script of its own\n")
		}
		for _, f := range filesOf(p) {
			fmt.Fprintf(&b, "    %s\n", s.url(artifactPath(p.Name, f.Name)))
		}
	}
	b.WriteString("\nMachines and what they boot:\n")
	macs := slices.SortedFunc(maps.Keys(inv.Machines), func(a, b boot.MAC) int { return bytes.Compare(a[:], b[:]) })
	for _, mac := range macs {
		m, p, _ := inv.Lookup(boot.Client{MAC: mac})
		fmt.Fprintf(&b, "  %s  %s  %s  %s\n", s.url(boot.ScriptPath(mac)), mac, orNone(m.Name), orNone(p.Name))
	}
	fmt.Fprintf(&b, "  %s  any other machine: %s\n", s.url("/ipxe/MAC"), orNone(inv.Default))
	send(w, b.Bytes())
}

// filesOf are the files of a profile that are served under its name.
func filesOf(p boot.Profile) []boot.File {
	all := append([]boot.File{p.Kernel, p.EFI}, p.Initrds...)
	return slices.DeleteFunc(all, func(f boot.File) bool { return f.Name == "" })
}

func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (s *Server) serveScript(w http.ResponseWriter, r *http.Request, mac boot.MAC) {
	client := s.cfg.Client(mac)
	client.MAC = mac // whatever is known of it
	m, p, _ := s.inventory().Lookup(client)
	a := asker{client: client, machine: m, profile: p, addr: clientOf(r), url: s.url}
	if r.TLS != nil {
		a.url = s.secureURL
	}
	text, err := s.script(a)
	e := timeline.Event{Machine: mac.String(), Stage: timeline.Script, Detail: p.Name}
	switch {
	case err != nil:
		s.unbootable.Warn(s.cfg.Logger, "profile cannot be booted", "machine", mac, "profile", p.Name, "error", err)
		e.Phase, e.Detail = timeline.Fail, err.Error()
	case p.Name == "":
		s.unknown.Warn(s.cfg.Logger, "a machine without a profile asks for its script", "machine", mac)
		e.Phase, e.Detail = timeline.Fail, "no profile for "+mac.String()
	}
	if r.Method != http.MethodHead {
		e.Bytes = int64(len(text))
		s.cfg.Timeline.Record(e)
	}
	send(w, text)
}

// serveArtifact serves the kernel, the initrds and the EFI program of a profile.
// Only names that the profile lists are looked at, so that no path leads
// anywhere else.
func (s *Server) serveArtifact(w http.ResponseWriter, r *http.Request, profile, name string) {
	p, ok := s.inventory().Profiles[profile]
	if !ok {
		refuse(w, http.StatusNotFound, "no such profile; "+s.url("/")+" lists them")
		return
	}
	var path string
	var stage timeline.Stage
	switch i := slices.IndexFunc(p.Initrds, func(f boot.File) bool { return f.Name == name }); {
	case name == p.Kernel.Name:
		path, stage = p.Kernel.Path, timeline.Kernel
	case i >= 0:
		path, stage = p.Initrds[i].Path, timeline.Initrd
	case name == p.EFI.Name:
		path, stage = p.EFI.Path, timeline.HTTPBoot
	default:
		refuse(w, http.StatusNotFound, "the profile has no such file; "+s.url("/")+" lists them")
		return
	}
	t := s.transfer(w, r, stage, name)
	f, err := os.Open(path)
	if err != nil {
		t.refuse(fmt.Errorf("%s of profile %s: %w", stage, profile, err))
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file", path)
	}
	if err != nil {
		t.refuse(fmt.Errorf("%s of profile %s: %w", stage, profile, err))
		return
	}
	t.serve(info, f)
}

// serveFile serves a file that no profile lists: a boot program, or what it
// loads by a name of its own. Such a program tries many names, GRUB most of
// all, so only a program that is missing is a failure.
func (s *Server) serveFile(w http.ResponseWriter, r *http.Request, name string) {
	t := s.transfer(w, r, timeline.HTTPBoot, name)
	f, info, err := openFile(s.cfg.Files(clientOf(r)), name)
	switch {
	case errors.Is(err, fs.ErrNotExist) && (contentType(name) != efiType || optional(err)):
		refuse(w, http.StatusNotFound, "nothing is served here; "+s.url("/")+" lists what is")
		return
	case err != nil:
		t.refuse(err)
		return
	}
	defer f.Close()
	content, ok := f.(io.ReadSeeker)
	if !ok { // as in an archive
		data, err := io.ReadAll(f)
		if err != nil {
			t.refuse(err)
			return
		}
		content = bytes.NewReader(data)
	}
	t.serve(info, content)
}

// optional reports whether an error of Files is of a file that boot programs ask
// for in case it is there, as shim does.
func optional(err error) bool {
	var o interface{ Optional() bool }
	return errors.As(err, &o) && o.Optional()
}

// openFile opens a file that is no directory. nil is no files.
func openFile(files fs.FS, name string) (fs.File, fs.FileInfo, error) {
	missing := &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	if files == nil {
		return nil, nil, missing
	}
	f, err := files.Open(name)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = missing
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

// report is what a booted machine says of itself.
type report struct {
	Stage    string `json:"stage"`
	UptimeMS *int64 `json:"uptime_ms"`
}

// maxUptime keeps what a stranger writes inside time.Duration.
const maxUptime = 100 * 365 * 24 * time.Hour

// parseReport is strict, so that a program that reports wrongly learns of it.
// Its errors are sentences for the one who wrote that program.
func parseReport(body io.Reader) (uptime time.Duration, err error) {
	const form = `want {"stage":"userland","uptime_ms":1234}`
	var rep report
	dec := json.NewDecoder(body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&rep); err != nil {
		return 0, fmt.Errorf("%s: %w", form, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return 0, errors.New(form + ": there is more after it")
	}
	if rep.Stage != string(timeline.Userland) {
		return 0, fmt.Errorf("%s: stage %q is not known", form, rep.Stage)
	}
	if rep.UptimeMS == nil || *rep.UptimeMS < 0 || *rep.UptimeMS > maxUptime.Milliseconds() {
		return 0, errors.New(form + ": uptime_ms is the kernel's uptime in milliseconds")
	}
	return time.Duration(*rep.UptimeMS) * time.Millisecond, nil
}

func (s *Server) servePhoneHome(w http.ResponseWriter, r *http.Request, mac boot.MAC) {
	uptime, err := parseReport(http.MaxBytesReader(w, r.Body, maxReport))
	if err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	s.cfg.Logger.Info("machine is up", "machine", mac, "uptime", uptime)
	s.cfg.Timeline.Record(timeline.Event{Machine: mac.String(), Stage: timeline.Userland, Uptime: uptime})
	w.WriteHeader(http.StatusNoContent)
}

// serveFailed takes the report of a script of ours that could not go on.
func (s *Server) serveFailed(w http.ResponseWriter, r *http.Request, mac boot.MAC) {
	stage := timeline.Stage(r.URL.Query().Get("stage"))
	if !slices.Contains([]timeline.Stage{timeline.HTTPBoot, timeline.Kernel, timeline.Initrd, timeline.Linux}, stage) {
		refuse(w, http.StatusBadRequest, "stage is nbp, kernel, initrd or linux")
		return
	}
	why := "iPXE could not go on"
	if errno, err := strconv.ParseUint(r.URL.Query().Get("errno"), 16, 32); err == nil {
		why += fmt.Sprintf(": see https://ipxe.org/%08x", errno)
	}
	s.reported.Warn(s.cfg.Logger, "iPXE reports a failure", "machine", mac, "stage", stage, "error", why)
	s.cfg.Timeline.Record(timeline.Event{Machine: mac.String(), Stage: stage, Phase: timeline.Fail, Detail: why})
	send(w, []byte("noted\n"))
}
