#!/bin/sh
# Writes go.mod.txt and go.sum.txt anew: the module in which the commands of an
# initramfs and the guest program are compiled. Run it after u-root, or a module
# that the guest program imports, got another version in ecboot's own go.mod.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The versions that ecboot itself uses; a test compares them.
cd "$here"
pins=$(go list -m -f '{{.Path}}@{{.Version}}' \
	github.com/u-root/u-root github.com/insomniacslk/dhcp github.com/vishvananda/netlink \
	github.com/mdlayher/packet github.com/mdlayher/socket github.com/klauspost/compress \
	golang.org/x/net golang.org/x/sys golang.org/x/sync golang.org/x/term golang.org/x/text)
go=$(go list -m -f '{{.GoVersion}}')

cd "$work"
export GOFLAGS=-mod=mod GOWORK=off GOOS=linux CGO_ENABLED=0
printf 'module ecboot.invalid/image\n\ngo %s\n' "$go" >go.mod
go get $pins
mkdir guest
cp "$here"/../guest/*.go guest
# Every command of u-root must find its modules and their sums, whatever tags and
# architecture it is built for.
commands=$(cd "$(go list -m -f '{{.Dir}}' github.com/u-root/u-root)/cmds" && ls -d core/* exp/* boot/* |
	sed 's|^|github.com/u-root/u-root/cmds/|')
for arch in amd64 arm64; do
	for tags in none goshliner goshsmall; do
		GOARCH=$arch go list -e -deps -tags "$tags" ./guest $commands >/dev/null
	done
done
cp go.mod "$here/go.mod.txt"
cp go.sum "$here/go.sum.txt"
