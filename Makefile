# ecboot: `make` builds ./ecboot with its default images inside.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

ASSETS := images/assets/manifest.json
GOSRC  := $(shell find . -name '*.go' -not -name '*_test.go' -not -path './initramfs/guest/*')

.DEFAULT_GOAL := build
.PHONY: build assets deps clean

build: ecboot

ecboot: $(ASSETS) $(GOSRC) go.mod go.sum
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $@ ./cmd/ecboot

# What is embedded: a kernel, an initramfs, iPXE. Built only when one of its
# sources is newer; the initramfs comes out of a cache when nothing in it changed.
assets: $(ASSETS)

$(ASSETS): go.mod go.sum $(shell find images/gen initramfs -type f -not -name '*_test.go' -not -path '*/testdata/*') | deps
	$(GO) run ./images/gen -o images/assets

# Debian's packages that building and running need.
PROGRAMS := qemu-system-x86_64:qemu-system-x86 ip:iproute2
FILES    := /usr/share/OVMF/OVMF_CODE_4M.fd:ovmf /usr/lib/ipxe/undionly.kpxe:ipxe /usr/lib/ipxe/qemu/pxe-virtio.rom:ipxe-qemu

deps:
	@missing=; \
	for p in $(PROGRAMS); do command -v $${p%%:*} >/dev/null || missing="$$missing $${p##*:}"; done; \
	for f in $(FILES); do test -e $${f%%:*} || missing="$$missing $${f##*:}"; done; \
	test -z "$$missing" && exit 0; \
	if ! command -v apt-get >/dev/null; then echo "please install what Debian calls$$missing" >&2; exit 1; fi; \
	if test "$$(id -u)" != 0; then echo "not installed:$$missing; run: sudo make deps" >&2; exit 1; fi; \
	echo "installing$$missing"; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing

clean:
	rm -f ecboot
	find images/assets -type f -not -name README -delete
