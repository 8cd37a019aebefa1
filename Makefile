# ecboot: `make` builds ./ecboot with its default images inside.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

ASSETS := images/assets/manifest.json
GOSRC  := $(shell find . -name '*.go' -not -name '*_test.go' -not -path './initramfs/guest/*')

.DEFAULT_GOAL := build
.PHONY: build run test check compat fuzz bench assets deps deps-test deps-bench clean

build: ecboot

ecboot: $(ASSETS) $(GOSRC) go.mod go.sum
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $@ ./cmd/ecboot

# What is embedded: a kernel, an initramfs, iPXE. Built only when one of its
# sources is newer; the initramfs comes out of a cache when nothing in it changed.
assets: $(ASSETS)

$(ASSETS): go.mod go.sum $(shell find images/gen initramfs -type f -not -name '*_test.go' -not -path '*/testdata/*') | deps
	$(GO) run ./images/gen -o images/assets

# Boots one guest; on a terminal you are at its console then.
run: build
	./ecboot run

# Everything, the tests that boot machines included.
test: build deps-test check
	$(GO) test -count 1 -timeout 18m ./...

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

# What needs no root and no machine.
check:
	@test -z "$$(gofmt -l .)" || { gofmt -d .; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	$(GO) test -short ./internal/archtest ./internal/boot ./internal/config ./internal/doctor ./internal/timeline

# What boots what: runs every test that boots a machine and writes the tables of
# README.md and docs/compatibility.md from what they have shown.
compat: build deps-test
	@rows=$$(mktemp) && trap 'rm -f '$$rows EXIT && \
	{ ECBOOT_COMPAT=$$rows $(GO) test -count 1 -timeout 30m ./cmd/ecboot || true; } && \
	$(GO) run ./internal/compat $$rows README.md docs/compatibility.md

# Every fuzz target for FUZZTIME.
FUZZTIME ?= 20s
fuzz:
	@set -e; for pkg in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg | grep ^Fuzz); do \
			echo "$$pkg $$target"; $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

# ecboot beside its peers. Each figure ends in a line: bench NAME ours=… peer=….
# ROUNDS (3) is how often each contender runs.
BENCHES := boot servers http dhcp storm
bench: $(BENCHES:%=bench-%)

.PHONY: $(BENCHES:%=bench-%)
$(BENCHES:%=bench-%): bench-%: build deps-bench
	$(GO) test -timeout 60m -run '^$$' -bench '(?i)^Benchmark$*$$' -benchtime 1x ./internal/bench

# Debian's packages that building and running need.
PROGRAMS := qemu-system-x86_64:qemu-system-x86 ip:iproute2
FILES    := /usr/share/OVMF/OVMF_CODE_4M.fd:ovmf /usr/lib/ipxe/undionly.kpxe:ipxe /usr/lib/ipxe/qemu/pxe-virtio.rom:ipxe-qemu

deps:
	@$(call install,$(PROGRAMS),$(FILES))

# The foreign clients of the tests.
deps-test: deps
	@$(call install,dhclient:isc-dhcp-client udhcpc:udhcpc dhcpcd:dhcpcd-base curl:curl tftp:tftp-hpa atftp:atftp busybox:busybox \
		tcpdump:tcpdump nft:nftables ping:iputils-ping zstd:zstd cpio:cpio nsenter:util-linux)

# The peers of the benchmarks.
deps-bench: deps
	@$(call install,dnsmasq:dnsmasq-base nginx:nginx-light perfdhcp:kea-admin kea-dhcp4:kea-dhcp4-server)

# install PROGRAM:PACKAGE…, FILE:PACKAGE…: install the packages whose program or
# file is missing, without starting their services.
define install
	missing=; \
	for p in $(1); do PATH="$$PATH:/usr/sbin:/sbin" command -v $${p%%:*} >/dev/null || missing="$$missing $${p##*:}"; done; \
	for f in $(2); do test -e $${f%%:*} || missing="$$missing $${f##*:}"; done; \
	test -z "$$missing" && exit 0; \
	if ! command -v apt-get >/dev/null; then echo "please install what Debian calls$$missing" >&2; exit 1; fi; \
	if test "$$(id -u)" != 0; then echo "not installed:$$missing; run: sudo make $@" >&2; exit 1; fi; \
	echo "installing$$missing"; \
	if ! test -e /usr/sbin/policy-rc.d; then \
		trap 'rm -f /usr/sbin/policy-rc.d' EXIT; \
		printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d; \
	fi; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null
endef

clean:
	rm -f ecboot
	find images/assets -type f -not -name README -delete
