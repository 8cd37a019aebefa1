//go:build tools

package images

// The generator takes the kernel out of this module, so go.mod must pin it.
import _ "github.com/gokrazy/kernel.amd64"
