package vmm

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// helper is a process beside QEMU without which the machine cannot go on. It
// dies with us, and ends with QEMU.
type helper struct {
	what string
	proc *process
}

// complaint is what a helper that has ended said last, or nothing.
func (h *helper) complaint() string {
	select {
	case <-h.proc.done:
		said := lastLine(h.proc.stderr.String())
		if said == "" {
			said = h.proc.cmd.ProcessState.String()
		}
		return h.what + " has ended: " + said
	default:
		return ""
	}
}

// watchHelper ends the machine when its helper has ended before it. A helper
// may know a moment before us that QEMU has ended.
func (m *Machine) watchHelper(h *helper) {
	select {
	case <-m.proc.done:
		return
	case <-h.proc.done:
	}
	select {
	case <-m.proc.done:
	case <-time.After(drainTimeout):
		m.fail(h.complaint())
	}
}

// startTPM starts a swtpm that QEMU talks to.
func (s *supplies) startTPM(dir string, opts Options) error {
	program, err := exec.LookPath("swtpm")
	if err != nil {
		return fmt.Errorf("a TPM needs swtpm, which is not installed: install the package swtpm (apt-get install swtpm)")
	}
	state, err := openState(dir, opts.Credential)
	if err != nil {
		return err
	}
	defer state.Close()
	if err := claim(state, dir); err != nil {
		return fmt.Errorf("TPM: %w", err)
	}
	qemus, swtpms, err := connected()
	if err != nil {
		return err
	}
	s.files["tpm"] = qemus
	defer swtpms.Close()
	return s.help("the TPM (swtpm)", launch{
		// Named by a descriptor, the directory may lie where its user
		// could not go.
		argv: []string{program, "socket", "--tpm2", "--terminate", "--ctrl", fmt.Sprintf("type=unixio,clientfd=%d", firstFD),
			"--tpmstate", "dir=" + fdPath(firstFD+1) + ",mode=0600"},
		files: []*os.File{swtpms, state}, credential: opts.Credential, cgroup: opts.Cgroup,
	})
}

// help starts a helper.
func (s *supplies) help(what string, l launch) error {
	proc, err := startProcess(l)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	s.helpers = append(s.helpers, &helper{what, proc})
	return nil
}

// openState opens a directory, made if missing, that belongs to the user with
// all files in it.
func openState(dir string, user *Credential) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	f, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil || user == nil {
		return f, err
	}
	names, err := f.Readdirnames(-1)
	if err == nil {
		err = f.Chown(int(user.UID), int(user.GID))
	}
	for _, name := range names {
		if err == nil {
			err = os.Lchown(filepath.Join(fdPath(int(f.Fd())), name), int(user.UID), int(user.GID))
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// knock returns a socket that listens and a connection that waits there. Nobody
// else can come: its name is gone.
func knock() (caller, listener *os.File, err error) {
	dir, err := os.MkdirTemp("", "ecboot-*") // which only we may enter
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(dir)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s")})
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	c, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		return nil, nil, err
	}
	defer c.Close()
	if caller, err = c.File(); err != nil {
		return nil, nil, err
	}
	if listener, err = l.File(); err != nil {
		caller.Close()
		return nil, nil, err
	}
	return caller, listener, nil
}

// findVirtiofsd returns its path, or nothing.
func findVirtiofsd() string {
	for _, name := range []string{"virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// startVirtiofsd starts what serves the share.
func (s *supplies) startVirtiofsd(share *Share, name string, opts Options) error {
	program := findVirtiofsd()
	if program == "" {
		return fmt.Errorf("virtiofs needs virtiofsd, which is not installed: install it (Debian 12: apt-get install qemu-system-common; later: virtiofsd), or use the driver 9p")
	}
	path, err := filepath.Abs(share.Path)
	if err != nil {
		return err
	}
	// There are two programs of the name: QEMU's until 8.0, and its successor.
	help, _ := exec.Command(program, "--help").CombinedOutput()
	argv := []string{program, fmt.Sprintf("--fd=%d", firstFD)}
	if strings.Contains(string(help), "--shared-dir") {
		argv = append(argv, "--shared-dir", path, "--announce-submounts", "--log-level", "warn")
	} else {
		argv = append(argv, "-o", "source="+strings.NewReplacer(`\`, `\\`, ",", `\,`).Replace(path)+",announce_submounts,log_level=warn")
	}
	if share.ReadOnly {
		// In mounts of its own, where the directory is read-only.
		argv = append([]string{"unshare", "--mount", "sh", "-c", `mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"`, path}, argv...)
	}
	caller, listener, err := knock()
	if err != nil {
		return err
	}
	s.files[name] = caller
	defer listener.Close()
	return s.help("the file server (virtiofsd)", launch{argv: argv, files: []*os.File{listener}, cgroup: opts.Cgroup})
}
