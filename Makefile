# ecboot: `make` builds ./ecboot with its default images inside.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

ASSETS := images/assets/manifest.json
GOSRC  := $(shell find . -name '*.go' -not -name '*_test.go' -not -path './initramfs/guest/*')

.DEFAULT_GOAL := build
.PHONY: build deb run test check compat fuzz bench assets deps deps-test deps-bench clean

build: ecboot

ecboot: $(ASSETS) $(GOSRC) go.mod go.sum
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $@ ./cmd/ecboot

# What is embedded: a kernel, an initramfs, iPXE. Built only when one of its
# sources is newer; the initramfs comes out of a cache when nothing in it changed.
assets: $(ASSETS)

$(ASSETS): go.mod go.sum $(shell find images/gen initramfs -type f -not -name '*_test.go' -not -path '*/testdata/*') | deps
	$(GO) run ./images/gen -o images/assets

# ecboot_VERSION_ARCH.deb, for Debian 12 and later, the same bits from the same
# commit. A version counts from the last tag, else from nothing.
NFPM        := build/nfpm-v2.45.2
DEB_ARCH    := $(shell $(GO) env GOARCH)
DEB_VERSION := $(shell git describe --tags --match 'v[0-9]*' --dirty=+dirty 2>/dev/null | sed 's/^v//; s/-\([0-9]*\)-g/+\1.g/' | grep . || git log -1 --format=0+git%cd.%h --date=format:%Y%m%d 2>/dev/null || echo 0)
DEB         := ecboot_$(DEB_VERSION)_$(DEB_ARCH).deb
deb: export SOURCE_DATE_EPOCH := $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
deb: build $(NFPM)
	rm -rf build/deb && mkdir -p build/deb/usr/share/zsh/vendor-completions build/deb/usr/share/man/man1 build/deb/usr/share/man/man5 build/deb/usr/share/doc/ecboot
	./ecboot install --root build/deb --prefix /usr >/dev/null
	cd build/deb/usr/share && rm -r ecboot && mv zsh/site-functions/_ecboot zsh/vendor-completions && rmdir zsh/site-functions
	./ecboot docs --man build/deb/man && gzip -9n build/deb/man/* && cd build/deb && mv man/*.1.gz usr/share/man/man1 && mv man/*.5.gz usr/share/man/man5
	gzip -9nc CHANGELOG.md >build/deb/usr/share/doc/ecboot/NEWS.gz
	{ cat NOTICE; printf '\nOn Debian systems the licences are in /usr/share/common-licenses: Apache-2.0, GPL-2.\n'; } >build/deb/usr/share/doc/ecboot/copyright
	./ecboot config init build/deb/ecboot.toml >/dev/null
	find build/deb -exec touch -h -d @$$SOURCE_DATE_EPOCH {} +
	DEB_ARCH=$(DEB_ARCH) DEB_VERSION='$(DEB_VERSION)' $(NFPM) package -f deb/nfpm.yaml -p deb -t '$(DEB)'

$(NFPM):
	GOBIN=$(CURDIR)/build $(GO) install github.com/goreleaser/nfpm/v2/cmd/nfpm@$(@:build/nfpm-%=%) && mv build/nfpm $@

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
	{ ECBOOT_COMPAT=$$rows $(GO) test -count 1 -timeout 30m -run '^(TestBoot|TestFirmware.*|TestProxy.*)$$' ./cmd/ecboot || true; } && \
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
BENCHES := boot servers http tftp dhcp storm guests
bench: $(BENCHES:%=bench-%)

.PHONY: $(BENCHES:%=bench-%)
$(BENCHES:%=bench-%): bench-%: build deps-bench
	$(GO) test -timeout 60m -run '^$$' -bench '(?i)^Benchmark$*$$' -benchtime 1x ./internal/bench

# Debian's packages that building and running need.
PROGRAMS := qemu-system-x86_64:qemu-system-x86 ip:iproute2
FILES    := /usr/share/OVMF/OVMF_CODE_4M.fd:ovmf /usr/lib/ipxe/undionly.kpxe:ipxe /usr/lib/ipxe/qemu/pxe-virtio.rom:ipxe-qemu

deps:
	@$(call install,$(PROGRAMS),$(FILES))

# What Debian 12 has not: iPXE for ARM64, and a signed GRUB that knows HTTP. From
# the packages of Debian 13, which are unpacked here and not installed, out of the
# archive that this machine uses.
DEBIAN13 := cmd/ecboot/testdata/debian13
$(DEBIAN13)/done:
	@mkdir -p $(@D) && cd $(@D) && rm -rf apt && mkdir -p apt/lists/partial apt/archives/partial && \
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $$(apt-get indextargets --format '$$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1) trixie main" >apt/sources && \
	set -- -qq -o Dir::Etc::SourceList=$$PWD/apt/sources -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists=$$PWD/apt/lists -o Dir::Cache=$$PWD/apt -o APT::Sandbox::User=root && \
	if apt-get "$$@" update && apt-get "$$@" download ipxe/trixie grub-efi-amd64-signed/trixie && \
		for deb in *.deb; do dpkg-deb -x $$deb . || exit 1; done; \
	then rm -rf apt *.deb && touch done; \
	else echo "Debian 13's boot programs cannot be had; their tests are skipped" >&2; fi

# A small Debian 12 in which the package is tried, with what it recommends in its
# apt cache, so that the test needs no network.
DEBIAN12 := internal/debtest/testdata/debian12.tar
$(DEBIAN12):
	@$(call install,debootstrap:debootstrap)
	@mkdir -p $(@D) && root=$$(mktemp -d) && trap 'rm -rf "$$root"' EXIT && \
	if debootstrap --variant=minbase --include=systemd bookworm "$$root" \
			"$$(apt-get indextargets --format '$$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1)" >$(@D)/debian12.log 2>&1 && \
		chroot "$$root" apt-get -qq update >>$(@D)/debian12.log 2>&1 && \
		chroot "$$root" apt-get -qq install --download-only --no-install-recommends procps qemu-system-x86 qemu-utils ovmf >>$(@D)/debian12.log 2>&1; \
	then tar -C "$$root" -cf $@.part . && mv $@.part $@ && rm $(@D)/debian12.log; \
	else echo "A Debian 12 cannot be had; the test of the package is skipped. See $(@D)/debian12.log" >&2; fi

# A kernel with a TPM and virtiofs, which the default one has not: unpacked here.
CLOUD := vmm/testdata/linux
$(CLOUD)/done:
	@mkdir -p $(@D) && cd $(@D) && rm -rf boot lib *.deb && \
	if apt-get -qq -o APT::Sandbox::User=root download "$$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: //p' | head -n 1)" && \
		dpkg-deb --fsys-tarfile *.deb | tar -x --wildcards './boot/vmlinuz*' './lib/modules/*/kernel/drivers/virtio/*' './lib/modules/*/kernel/fs/fuse/*'; \
	then rm -f *.deb && touch done; \
	else echo "Debian's cloud kernel cannot be had; its tests are skipped" >&2; fi

# A kernel for ARM64 that has its drivers built in. Tests have no network to get
# it by themselves.
.PHONY: arm64-kernel
arm64-kernel:
	@$(GO) mod download github.com/gokrazy/kernel.arm64 || echo "ARM64's kernel cannot be had; its tests are skipped" >&2

# The foreign clients of the tests, and the firmware, boot programs and netboot
# trees that they boot.
TEST_FILES := /usr/share/OVMF/OVMF32_CODE_4M.secboot.fd:ovmf-ia32 /usr/share/AAVMF/AAVMF_CODE.fd:qemu-efi-aarch64 \
	/usr/lib/shim/shimx64.efi.signed:shim-signed /usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed:grub-efi-amd64-signed \
	/usr/lib/debian-installer/images/12/amd64:debian-installer-12-netboot-amd64 \
	/usr/lib/debian-installer/images/12/arm64:debian-installer-12-netboot-arm64 \
	/usr/lib/debian-installer/images/12/i386:debian-installer-12-netboot-i386 /boot/memtest86+x64.bin:memtest86+ \
	/usr/lib/u-boot/qemu_arm64/u-boot.bin:u-boot-qemu /usr/share/doc/busybox-static/copyright:busybox-static
deps-test: deps arm64-kernel $(DEBIAN13)/done $(CLOUD)/done $(DEBIAN12) $(NFPM)
	@$(call install,qemu-system-aarch64:qemu-system-arm grub-script-check:grub-common dhclient:isc-dhcp-client udhcpc:udhcpc dhcpcd:dhcpcd-base curl:curl tftp:tftp-hpa atftp:atftp \
		systemd-nspawn:systemd-container mksquashfs:squashfs-tools systemd-analyze:systemd dbus-daemon:dbus-daemon \
		tcpdump:tcpdump nft:nftables ping:iputils-ping zstd:zstd cpio:cpio nsenter:util-linux qemu-img:qemu-utils swtpm:swtpm /usr/lib/qemu/virtiofsd:qemu-system-common zfs:zfs-fuse dumpe2fs:e2fsprogs nix-instantiate:nix-bin \
		dnsmasq:dnsmasq-base kea-dhcp4:kea-dhcp4-server perfdhcp:kea-admin dhcpd:isc-dhcp-server dhcrelay:isc-dhcp-relay,$(TEST_FILES))

# atftpd, which Debian does not install beside tftpd-hpa: unpacked here.
ATFTPD := internal/bench/testdata/atftpd
$(ATFTPD)/usr/sbin/atftpd:
	@mkdir -p $(ATFTPD) && cd $(ATFTPD) && apt-get -qq -o APT::Sandbox::User=root download atftpd && dpkg-deb -x atftpd_*.deb . && rm atftpd_*.deb

# The peers of the benchmarks.
deps-bench: deps $(ATFTPD)/usr/sbin/atftpd
	@$(call install,in.tftpd:tftpd-hpa dnsmasq:dnsmasq-base nginx:nginx-light perfdhcp:kea-admin kea-dhcp4:kea-dhcp4-server curl:curl)

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
	rm -rf ecboot build ecboot_*.deb $(DEBIAN12) $(DEBIAN13) $(CLOUD) $(ATFTPD)
	find images/assets -type f -not -name README -delete
