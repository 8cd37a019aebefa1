//go:build tools

package initramfs

// Archives are compiled from u-root in a module of their own (module/), whose
// version of it follows the one that go.mod pins.
import _ "github.com/u-root/u-root/pkg/libinit"
