//go:build tools

package main

// The tests boot this kernel on ARM64, so go.mod must pin it.
import _ "github.com/gokrazy/kernel.arm64"
