package nixtest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"

	"github.com/every-channel/ecboot/dist"
	"github.com/every-channel/ecboot/internal/config"
)

// host is what eval.nix makes of a module.
type host struct {
	Settings map[string]any
	Failed   []string // assertions
	Warnings []string
	Enable   bool
	Unit     struct {
		Path           []string
		ReloadTriggers []string
		UnitConfig     map[string]any
		ServiceConfig  map[string]any
		After, Wants   []string
	}
	Tmpfiles []string
	Users    struct {
		Users  map[string]struct{ Group string }
		Groups map[string]struct{ Members []string }
	}
}

func nix(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("nix-instantiate")
	if err != nil {
		t.Skip("needs nix-instantiate (Debian: nix-bin)")
	}
	return path
}

// instantiate runs nix-instantiate without a store.
func instantiate(t *testing.T, args ...string) ([]byte, error) {
	t.Helper()
	cmd := exec.Command(nix(t), append([]string{"--readonly-mode"}, args...)...)
	dir := t.TempDir()
	cmd.Env = append(os.Environ(), "HOME="+dir, "NIX_STATE_DIR="+dir, "NIX_CONF_DIR="+dir, "NIX_CONFIG=build-users-group =")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, stderr.String())
	}
	return out, err
}

// evaluate gives what a host with this module comes to. NIXPKGS_LIB names
// nixpkgs' own lib to be used in place of the stand-in.
func evaluate(t *testing.T, module string) (h host, err error) {
	t.Helper()
	eval, err := filepath.Abs("testdata/eval.nix")
	if err != nil {
		t.Fatal(err)
	}
	lib := ""
	if dir := os.Getenv("NIXPKGS_LIB"); dir != "" {
		lib = "lib = import " + dir + ";"
	}
	out, err := instantiate(t, "--eval", "--strict", "--json", "-E", fmt.Sprintf("import %s { %s module = %s; }", eval, lib, module))
	if err != nil {
		return h, err
	}
	return h, json.Unmarshal(out, &h)
}

func mustEvaluate(t *testing.T, module string) host {
	t.Helper()
	h, err := evaluate(t, module)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// file writes settings as pkgs.formats.toml does.
func (h host) file(t *testing.T) string {
	t.Helper()
	text, err := toml.Marshal(whole(h.Settings))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// whole makes integers of the numbers, of which JSON has one kind only.
func whole(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			v[key] = whole(value)
		}
	case []any:
		for i := range v {
			v[i] = whole(v[i])
		}
	case float64:
		return int64(v)
	}
	return v
}

// effect is the configuration that a file comes to, or the mistakes in it.
func effect(t *testing.T, text string) string {
	t.Helper()
	cfg, err := config.Parse("ecboot.toml", []byte(text))
	if err != nil {
		t.Fatalf("ecboot does not read it: %v\n%s", err, text)
	}
	return cfg.Show()
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestParse(t *testing.T) {
	t.Parallel()
	for _, pattern := range []string{"../../nix/*.nix", "../../nix/*/*.nix", "testdata/*.nix"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v, %v", pattern, files, err)
		}
		for _, name := range files {
			if _, err := instantiate(t, "--parse", name); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// sameExample is a module in docs/migrating.md and the file that it becomes.
var sameExample = regexp.MustCompile("(?s)<!-- same -->\n```nix\n(.*?)```.*?```toml\n(.*?)```")

func TestExamples(t *testing.T) {
	t.Parallel()
	examples := sameExample.FindAllStringSubmatch(read(t, "docs/migrating.md"), -1)
	if len(examples) < 3 {
		t.Fatalf("docs/migrating.md has %d examples", len(examples))
	}
	for i, example := range examples {
		h := mustEvaluate(t, example[1])
		if !h.Enable || len(h.Failed) > 0 || len(h.Warnings) > 0 {
			t.Errorf("example %d: enabled %v, failed %q, warnings %q", i+1, h.Enable, h.Failed, h.Warnings)
		}
		if diff := cmp.Diff(effect(t, example[2]), effect(t, h.file(t))); diff != "" {
			t.Errorf("example %d is not what the module comes to (-text +module):\n%s", i+1, diff)
		}
	}
}

var inCode = regexp.MustCompile("`([^`]*)`")

// TestRows wants a row in docs/migrating.md for every option, and keys in it that
// there are.
func TestRows(t *testing.T) {
	t.Parallel()
	const prefix = "services.every-channel.ipxe-qemu."
	keys := config.Keys()
	rows := map[string]bool{}
	for line := range strings.Lines(read(t, "docs/migrating.md")) {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|\n"), "|")
		if len(cells) != 4 {
			t.Errorf("a row of %d cells: %s", len(cells), line)
			continue
		}
		option, named, remarks := strings.Trim(cells[0], " `"), inCode.FindAllStringSubmatch(cells[2], -1), strings.TrimSpace(cells[3])
		rows[option] = true
		for _, key := range named {
			if !slices.Contains(keys, key[1]) {
				t.Errorf("%s: there is no key %s", option, key[1])
			}
		}
		if len(named) == 0 && remarks == "" {
			t.Errorf("%s has neither a key nor a reason", option)
		}
	}
	for option := range strings.Lines(read(t, "internal/nixtest/testdata/options.txt")) {
		option = strings.TrimSpace(option)
		if !rows[option] && !rows[strings.TrimPrefix(option, prefix)] {
			t.Errorf("docs/migrating.md has no row for %s", option)
		}
	}
}

// TestAllOptions sets each option that the old modules had: those that are gone
// would be refused.
func TestAllOptions(t *testing.T) {
	t.Parallel()
	h := mustEvaluate(t, `{
		node.type = "host";
		containers.plain = { };
		services.every-channel.ipxe-qemu = {
			enable = true; package = { type = "derivation"; name = "q"; outPath = "/nix/store/q"; };
			name = "vm"; machine = "pc,accel=tcg"; cpu = "max"; enableKvm = true; vcpus = 4; memoryMiB = 512; serial = "stdio"; stateDir = "/s";
			disk = { path = "/d/disk.qcow2"; size = "8G"; };
			boot = {
				order = "nc"; chainUrl = "http://10.0.2.2:81/sub/menu.ipxe";
				http = { enable = true; bindIp = "0.0.0.0"; port = 81; root = "/r"; };
				userNet = { hostname = "h"; dnsServers = [ "1.1.1.1" ]; tftpDir = "/t"; bootFilename = "ipxe.pxe"; model = "virtio-net-pci"; };
			};
			lan = { enable = true; model = "e1000e"; macvtap = { interface = "eth0"; name = "tap7"; mode = "bridge"; }; };
			extraArgs = [ "-device" "usb-ehci" ];
		};
		guests.a = {
			nodeName = "n"; backend = "microvm"; autostart = true; extraSpecialArgs = { x = 1; }; modules = [ { } ];
			microvm = { system = "aarch64-linux"; macvtap = "eth1"; baseMac = "02:aa:bb:00:00:00"; };
			networking.mainLinkName = "wan";
			zfs.p = { pool = "tank"; dataset = "a"; hostMountpoint = "/h"; guestMountpoint = "/p"; };
			nixosConfiguration.config = {
				system.build = { kernel = "/k"; toplevel = "/t"; initialRamdisk = "/i"; };
				system.boot.loader = { kernelFile = "Image"; initrdFile = "initrd"; };
				boot.kernelParams = [ "loglevel=4" ];
				microvm = { mem = 3072; vcpu = 2; };
			};
		};
		guests.b = { backend = "container"; container.macvlan = "eth1"; nixosConfiguration.config.system.build.toplevel = "/t"; };
	}`)
	if len(h.Failed) > 0 {
		t.Errorf("failed: %q", h.Failed)
	}
	if want := []string{"serial has no effect", "bootFilename has no effect"}; !inOrder(h.Warnings, want) {
		t.Errorf("warnings %q, want %q", h.Warnings, want)
	}
	effect := effect(t, h.file(t))
	for _, want := range []string{
		`http_port = 81`, `programs = {"bios" = "sub/menu.ipxe", "uefi-x64" = "sub/menu.ipxe"}`,
		`machine = "pc"`, `accel = "tcg"`, `boot = "network"`, `base_mac = "02:aa:bb:00:00:00"`,
		`kernel = "/k/Image"`, `initrds = ["/i/initrd"]`, `cmdline = "init=/t/init console=ttyAMA0 loglevel=4"`,
		`arch = "arm64"`, `boot = "direct"`, `memory = "3G"`, `cpus = 2`, `target = "ro-store"`, `[guest.a.zfs."/p"]`, `host_mountpoint = "/h"`,
		`root = "/nix/store/ecboot-root-b"`, `ephemeral = true`, `node_name = "host-b"`,
	} {
		if !strings.Contains(effect, want) {
			t.Errorf("the configuration lacks %s:\n%s", want, effect)
		}
	}
	if !slices.Contains(h.Unit.Path, "/nix/store/q") {
		t.Errorf("the service does not find the package: %q", h.Unit.Path)
	}
}

// inOrder reports whether each of the texts has its part.
func inOrder(texts, parts []string) bool {
	return slices.EqualFunc(texts, parts, strings.Contains)
}

func TestAssertions(t *testing.T) {
	t.Parallel()
	const (
		enabled = `services.every-channel.ipxe-qemu.enable = true; services.every-channel.ipxe-qemu.boot.http.root = "/r";`
		microvm = `guests.a = { backend = "microvm"; microvm = { system = "x86_64-linux"; macvtap = "eth0"; }; }; services.ecboot.settings.guest.a.profile = "p";`
	)
	for _, tt := range []struct {
		name, module string
		want         []string // parts of what fails
	}{
		{"nothing", ``, nil},
		{"defaults", enabled, nil},
		{"no HTTP root", `services.every-channel.ipxe-qemu.enable = true;`, []string{"boot.http.root must be set when boot.http.enable is true"}},
		{"no name servers", enabled + `services.every-channel.ipxe-qemu.boot.userNet.dnsServers = [ ];`, []string{"dnsServers must not be empty"}},
		{"no LAN interface", enabled + `services.every-channel.ipxe-qemu.lan.enable = true;`, []string{"lan.macvtap.interface must be set"}},
		{"another mode", enabled + `services.every-channel.ipxe-qemu.lan = { enable = true; macvtap = { interface = "e"; mode = "vepa"; }; };`, []string{"have the mode bridge"}},
		{"machine properties", enabled + `services.every-channel.ipxe-qemu.machine = "q35,smm=on";`, []string{"no property but accel"}},
		{"boot order", enabled + `services.every-channel.ipxe-qemu.boot.order = "order=d";`, []string{`"order=n" for the network`}},
		{"a guest", microvm, nil},
		{"a relative path", microvm + `guests.a.zfs.persist = { pool = "p"; dataset = "d"; };`, []string{"guest a: zfs persist: the guestMountpoint must be an absolute path."}},
		{"a long path", microvm + `guests.a.zfs."/var/lib/postgresql/15/main/base" = { pool = "p"; dataset = "d"; };`, []string{"can have 31 bytes"}},
		{"a long path in a container", `guests.c = { backend = "container"; container.macvlan = "eth0"; zfs."/var/lib/postgresql/15/main/base" = { pool = "p"; dataset = "d"; }; }; services.ecboot.settings.guest.c.root = "/r";`, nil},
		{"modules", microvm + `guests.a.modules = [ { } ];`, []string{"builds no NixOS from modules"}},
		{"no system", `guests.c = { backend = "container"; container.macvlan = "eth0"; };`, []string{"services.ecboot.settings.guest.c.root"}},
		{"two bases", microvm + `guests.a.microvm.baseMac = "02:00:01:00:00:00"; guests.b = { backend = "microvm"; microvm = { system = "x86_64-linux"; macvtap = "eth0"; }; }; services.ecboot.settings.guest.b.profile = "p";`, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := mustEvaluate(t, "{ "+tt.module+" }")
			if !inOrder(h.Failed, tt.want) {
				t.Errorf("failed: %q, want %q", h.Failed, tt.want)
			}
		})
	}
}

// TestTypes keeps the stand-in from taking anything.
func TestTypes(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ module, want string }{
		{`services.every-channel.ipxe-qemu.vcpus = 0;`, "vcpus"},
		{`services.every-channel.ipxe-qemu.colour = "red";`, "colour"},
		{`guests.a.backend = "qemu";`, "backend"},
		{`guests.a = { };`, "backend"},
		{`guests.a = { backend = "microvm"; microvm = { system = "x86_64-linux"; macvtap = "e"; mac = "nope"; }; }; services.ecboot.settings.guest.a.profile = "p";`, "mac"},
	} {
		_, err := evaluate(t, `{ services.every-channel.ipxe-qemu = { enable = true; boot.http.root = "/r"; }; `+tt.module+" }")
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.module, err)
		}
	}
}

// TestOverride changes one value of a guest that an old option declares.
func TestOverride(t *testing.T) {
	t.Parallel()
	h := mustEvaluate(t, `{ lib, ... }: {
		services.every-channel.ipxe-qemu = { enable = true; boot.http.root = "/r"; };
		services.ecboot.settings.guest.every-channel-ipxe = { firmware = "uefi"; memory = "8G"; };
		services.ecboot.settings.segment.ipxe-qemu.nat = lib.mkForce false;
		services.ecboot.operators = [ "alice" ];
	}`)
	effect := effect(t, h.file(t))
	for _, want := range []string{`firmware = "uefi"`, `memory = "8G"`, `nat = false`} {
		if !strings.Contains(effect, want) {
			t.Errorf("the configuration lacks %s:\n%s", want, effect)
		}
	}
	if got := h.Users.Groups["ecboot"].Members; !slices.Equal(got, []string{"alice"}) || h.Users.Users["ecboot-guest"].Group != "ecboot-guest" {
		t.Errorf("users: %+v", h.Users)
	}
}

// TestOperatorGroup puts the operators where the configuration looks for them.
func TestOperatorGroup(t *testing.T) {
	t.Parallel()
	h := mustEvaluate(t, `{ services.ecboot = { enable = true; operators = [ "alice" ]; settings.server.operator_group = "wheel"; }; }`)
	if got := h.Users.Groups["wheel"].Members; !slices.Equal(got, []string{"alice"}) {
		t.Errorf("groups: %+v", h.Users.Groups)
	}
}

// TestService wants the service of other systems on NixOS, too.
func TestService(t *testing.T) {
	t.Parallel()
	h := mustEvaluate(t, `{ services.ecboot.enable = true; }`)
	got := []string{"After=" + strings.Join(h.Unit.After, " "), "Wants=" + strings.Join(h.Unit.Wants, " ")}
	for _, section := range []map[string]any{h.Unit.UnitConfig, h.Unit.ServiceConfig} {
		for key, value := range section {
			got = append(got, fmt.Sprintf("%s=%v", key, value))
		}
	}
	for _, f := range dist.Files(dist.Prefix) {
		for line := range strings.Lines(f.Content) {
			line = strings.TrimSpace(line)
			name, _, isKey := strings.Cut(line, "=")
			switch {
			case strings.HasSuffix(f.Path, "tmpfiles.d/ecboot.conf") && strings.HasPrefix(line, "d "):
				if !slices.Contains(h.Tmpfiles, line) {
					t.Errorf("%s: nix/module.nix lacks %s", f.Path, line)
				}
			case !strings.HasSuffix(f.Path, ".service") || !isKey || strings.HasPrefix(line, "#"),
				slices.Contains([]string{"Description", "Documentation", "ExecStart", "ExecReload", "WantedBy"}, name):
			case !slices.Contains(got, line):
				t.Errorf("%s: nix/module.nix lacks %s", f.Path, line)
			}
		}
	}
	if start, ok := h.Unit.ServiceConfig["ExecStart"].(string); !ok || !strings.HasSuffix(start, "/bin/ecboot up --leave-guests --config /etc/ecboot/ecboot.toml") {
		t.Errorf("the service starts %v", h.Unit.ServiceConfig["ExecStart"])
	}
	if len(h.Unit.ReloadTriggers) != 1 {
		t.Errorf("a changed configuration reloads nothing: %q", h.Unit.ReloadTriggers)
	}
}
