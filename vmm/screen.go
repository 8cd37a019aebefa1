package vmm

import (
	"context"
	"errors"
	"fmt"
	"io"
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
