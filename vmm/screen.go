package vmm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
)

// maxSocketPath is what fits into a Unix socket's address.
const maxSocketPath = 107

// display says who shows the screen. QEMU makes no socket for VNC: it is handed
// the connections.
func (s *Spec) display() []string {
	if s.VNC == "" {
		return []string{"-display", "none"}
	}
	return []string{"-vnc", "none"}
}

// screenDevices give the machine a screen, a pointer and, where it has none by
// nature, a keyboard.
func (s *Spec) screenDevices() []string {
	switch {
	case s.VNC == "":
		return nil
	case s.Arch == ArchARM64:
		return []string{"-device", "virtio-gpu-pci", "-device", "qemu-xhci", "-device", "usb-kbd", "-device", "usb-tablet"}
	}
	return []string{"-device", "VGA", "-device", "qemu-xhci", "-device", "usb-tablet"}
}

// ErrNoScreen says that a machine was made without a screen.
var ErrNoScreen = errors.New("the machine has no screen: it is made without VNC")

// Screenshot returns what the machine's screen shows, as a PNG.
func (m *Machine) Screenshot(ctx context.Context) (png []byte, err error) {
	if m.spec.VNC == "" {
		return nil, ErrNoScreen
	}
	picture, err := memoryFile("screenshot", nil)
	if err != nil {
		return nil, err
	}
	defer picture.Close()
	// QEMU takes it for a file to write to, so it gets one that is no more.
	theirs, err := os.OpenFile(fdPath(int(picture.Fd())), os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	var set struct {
		ID int `json:"fdset-id"`
	}
	if err := m.qmp.send(ctx, "add-fd", nil, &set, theirs); err != nil {
		return nil, err
	}
	err = m.qmp.execute(ctx, "screendump", map[string]any{"filename": fmt.Sprintf("/dev/fdset/%d", set.ID), "format": "png"}, nil)
	err = errors.Join(err, m.qmp.execute(ctx, "remove-fd", map[string]any{"fdset-id": set.ID}, nil))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(picture, 0, 1<<30))
}

// screen is the socket on which the machine's screen is shown. QEMU could not
// make one where its user may not write, so it is made here and QEMU is handed
// each connection.
type screen struct{ *net.UnixListener }

// listen makes the socket, in place of one that nobody listens to any more.
// This process's user may connect and, unless it is 0, this group.
func listen(path string, group int) (*screen, error) {
	addr := &net.UnixAddr{Name: path, Net: "unix"}
	if st, err := os.Lstat(path); err == nil && st.Mode().Type() == fs.ModeSocket {
		conn, err := net.DialUnix("unix", nil, addr)
		if err == nil {
			conn.Close()
			return nil, fmt.Errorf("VNC: another process listens on %s", path)
		}
		os.Remove(path)
	}
	l, err := net.ListenUnix("unix", addr)
	if err != nil {
		return nil, fmt.Errorf("VNC: %w", err)
	}
	if err = os.Chmod(path, 0o600); err == nil && group != 0 {
		err = errors.Join(os.Chown(path, -1, group), os.Chmod(path, 0o660))
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("VNC: %w", err)
	}
	return &screen{l}, nil
}

// close takes the socket away.
func (s *screen) close() { s.Close() }

// serve hands QEMU each connection until the socket closes.
func (s *screen) serve(q *qmp) {
	for {
		conn, err := s.AcceptUnix()
		if err != nil {
			return
		}
		_ = handOver(q, conn) // which closes it, if it fails, and the client sees that
	}
}

func handOver(q *qmp, conn *net.UnixConn) error {
	f, err := conn.File()
	conn.Close()
	if err != nil {
		return err
	}
	defer f.Close()
	ctx := context.Background()
	if err := q.send(ctx, "getfd", map[string]any{"fdname": "vnc"}, nil, f); err != nil {
		return err
	}
	return q.execute(ctx, "add_client", map[string]any{"protocol": "vnc", "fdname": "vnc"}, nil)
}
