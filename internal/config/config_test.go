package config

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
)

// TestAllMistakesAtOnce also fixes the wording: these lines are what people
// see and what editors parse.
func TestAllMistakesAtOnce(t *testing.T) {
	const name = "testdata/mistakes.toml"
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/mistakes.golden")
	if err != nil {
		t.Fatal(err)
	}
	_, err = Parse(name, data)
	var problems Problems
	if !errors.As(err, &problems) || len(problems) != 5 {
		t.Fatalf("got %d problems: %v", len(problems), err)
	}
	if got := err.Error() + "\n"; got != string(want) {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
}

func TestMistakes(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []string // LINE:COLUMN: KEY: and a part of what follows
	}{
		// Syntax: alone, whatever else is wrong before it.
		{"syntax", "x = 1\n[segment\n", []string{"2:9: expected ']'"}},
		{"not TOML", "hello", []string{"1:5: expected '='"}},
		{"not UTF-8", "[segment.x]\nbridge = \"\xff\"\n", []string{"2:11: invalid"}},
		{"bad date", "[segment.x]\nbridge = 2024-13-45\n", []string{"2:15: impossible date"}},
		{"bad number", "[server]\nhttp_port = 08\n", []string{"2:13: "}},

		// Structure.
		{"unknown table", "[segmant]\n", []string{"1:2: segmant: is not a key of ecboot's; did you mean segment?"}},
		{"key without table", "pool = 1\n", []string{"1:1: pool: is not a key of ecboot's; pool belongs in [segment.NAME]"}},
		{"key of another section", "[guest]\nmac = 1\n", []string{"2:1: guest.mac: is not a key of ecboot's; mac belongs in [[guest.NAME.nic]], [[machine]] or [[match]]"}},
		{"strange key", "[server]\nwizardry = 1\n", []string{"2:1: server.wizardry: is not a key of ecboot's; the keys in [server] are state_dir, http_port"}},
		{"strange key in quotes", "[server]\n\"a.b\" = 1\n\"\" = 2\n", []string{`2:1: server."a.b": is not`, `3:1: server."": is not`}},
		{"duplicate table", "[guest]\ncpus = 2\n[guest]\ncpus = 2\nmachine = 3\n", []string{
			"3:2: guest: has a header already, in line 1", "4:1: guest.cpus: is set already, in line 2", `5:11: guest.machine: 3 is an integer; write "q35" or "pc"`}},
		{"a card as it is, and in a bridge", "[segment.x]\ninterface = \"eth1\"\n[segment.y]\nbridge = \"br0\"\nuplink = \"eth1\"\naddress = \"10.78.0.1/24\"\n", []string{"5:10: segment.y.uplink: eth1 is segment.x's too, in line 1"}},
		{"a card in a bridge, and a parent", "[segment.x]\nbridge = \"br0\"\nuplink = \"eth1\"\n[segment.y]\nparent = \"eth1\"\naddress = \"10.78.0.1/24\"\n", []string{"5:10: segment.y.parent: eth1 is segment.x's too, in line 1"}},
		{"a bridge that another serves as it is", "[segment.x]\nbridge = \"br0\"\n[segment.y]\ninterface = \"br0\"\naddress = \"10.78.0.1/24\"\n", []string{"4:13: segment.y.interface: br0 is segment.x's too, in line 1"}},
		{"duplicate in dotted keys", "guest.cpus = 1\nguest.cpus = 2\n", []string{"2:7: guest.cpus: is set already"}},
		{"duplicate in an inline table", "guest = {cpus = 1, cpus = 2}\n", []string{"1:20: guest.cpus: is set already"}},
		{"table after dotted keys", "guest.cpus = 1\n[guest]\ncpus = 3\n", []string{"2:2: guest: is defined already, in line 1"}},
		{"header into an inline table", "profile = {a = {}}\n[profile.b]\n", []string{"2:2: profile: is not a table that can be added to, in line 1"}},
		{"table and table array", "[machine]\n[[machine]]\n", []string{"1:2: machine: is a table; write [[machine]]", "2:3: machine: is defined already"}},
		{"list and table array", "machine = []\n[[machine]]\n", []string{"2:3: machine: is defined already"}},
		{"section that is no table", "guest = 1\nprofile = 2\nmachine = [3]\n", []string{
			"1:9: guest: is an integer; write a table: [guest]", "2:11: profile: is an integer", "3:12: machine[0]: is an integer; write a table: [[machine]]"}},
		{"profile that is no table", "[profile]\ndebian = \"x\"\n", []string{"2:10: profile.debian: is a string; write a table: [profile.debian]"}},

		{"too many brackets", "x = [[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]\n", []string{"1:1: x: is not a key", "1:5: x[0][0][0][0][0][0][0][0]: is nested too deeply"}},

		// Types.
		{"string for a number", "[server]\nhttp_port = \"80\"\n", []string{`2:13: server.http_port: "80" is a string; write a port, 1 to 65535, without quotes`}},
		{"string for a boolean", "[[machine]]\nmac = \"525400123456\"\nchainload = \"yes\"\n", []string{`3:13: machine[0].chainload: "yes" is a string; write true or false`}},
		{"table for a string", "[segment.x]\nbridge = {}\n", []string{"2:10: segment.x.bridge: is a table"}},
		{"date for a string", "[segment.x]\nbridge = 2024-01-01\n", []string{"2:10: segment.x.bridge: 2024-01-01 is a date or time"}},
		{"float for an integer", "[guest]\ncpus = 1.5\n", []string{"2:8: guest.cpus: 1.5 is a float"}},
		{"list elements", "[segment.x]\ndns = [\"10.0.0.1\", 5, \"x\", []]\n", []string{
			"2:7: segment.x.dns[3]: is a list", "2:20: segment.x.dns[1]: 5 is an integer", `2:23: segment.x.dns[2]: "x" is not an address`}},
		{"string for a list", "[profile.a]\ninitrds = \"x\"\n", []string{"2:11: profile.a.initrds: is a string; write a list in brackets"}},
		{"list for a table", "[profile.a.initramfs]\nfiles = []\n", []string{`2:9: profile.a.initramfs.files: is a list; write a table such as {"/etc/motd" = "…"}`}},

		// Values.
		{"address without length", "[segment.x]\naddress = \"10.77.0.1\"\n", []string{"2:11: segment.x.address: \"10.77.0.1\" has no prefix length"}},
		{"address of the network", "[segment.x]\naddress = \"10.77.0.0/24\"\n", []string{"is the address of the network"}},
		{"broadcast address", "[segment.x]\naddress = \"10.77.0.255/24\"\n", []string{"is the broadcast address"}},
		{"IPv6", "[segment.x]\naddress = \"fd00::1/64\"\nrouter = \"fd00::2\"\n", []string{"2:11: segment.x.address: \"fd00::1/64\" is not an IPv4", "3:10: segment.x.router: \"fd00::2\" is not an IPv4"}},
		{"prefix too long", "[segment.x]\naddress = \"10.77.0.1/31\"\n", []string{"not between 8 and 30"}},
		{"multicast", "[segment.x]\naddress = \"224.0.0.1/24\"\n", []string{"is not the address of a host"}},
		{"pool backwards", "[segment.x]\npool = \"10.77.0.9-10.77.0.2\"\n", []string{"2:8: segment.x.pool[0]: \"10.77.0.9-10.77.0.2\" ends before it begins"}},
		{"pool with the server in it", "[segment.x]\npool = \"10.77.0.1-10.77.0.2\"\n", []string{"contains the servers' own address 10.77.0.1"}},
		{"pool out of a smaller prefix", "[segment.x]\naddress = \"10.77.0.1/25\"\npool = \"10.77.0.50-10.77.0.250\"\n", []string{"3:8: segment.x.pool[0]: 10.77.0.50-10.77.0.250 reaches out of 10.77.0.0/25"}},
		{"pool used up", "[segment.x]\npool = \"10.77.0.9-10.77.0.12\"\nexclude = [\"10.77.0.11-10.77.0.20\", \"10.77.0.5-10.77.0.10\"]\n", []string{"2:8: segment.x.pool[0]: has no address left"}},
		{"default pool used up", "[segment.x]\nexclude = [\"10.77.0.2-10.77.0.254\"]\n", []string{"1:10: segment.x.pool[0]: has no address left"}},
		{"exclude outside", "[segment.x]\nexclude = [\"10.77.0.60\", \"10.78.0.60\"]\n", []string{"2:26: segment.x.exclude[1]: 10.78.0.60 reaches out of"}},
		{"router outside", "[segment.x]\nrouter = \"10.78.0.1\"\n", []string{"2:10: segment.x.router: 10.78.0.1 is outside of 10.77.0.0/24"}},
		{"bad address hides what follows from it", "[segment.x]\naddress = \"x\"\nrouter = \"10.78.0.1\"\n", []string{"2:11: segment.x.address"}},
		{"lease time", "[segment.x]\nlease_time = \"1 hour\"\n", []string{`2:14: segment.x.lease_time: "1 hour" is not a duration: a number and one of the units h, m, s is; write a duration such as "1h" in quotes`}},
		{"lease time too short", "[segment.x]\nlease_time = \"5s\"\n", []string{"is shorter than 1m"}},
		{"lease time too long", "[segment.x]\nlease_time = \"1000000h\"\n", []string{"is longer than 87600h"}},
		{"fraction of a second", "[guest]\ntimeout = \"1.5s\"\n", []string{"is not a number of whole seconds"}},
		{"bridge name", "[segment.x]\nbridge = \"a-very-long-bridge\"\n", []string{"is longer than the 15 bytes"}},
		{"bridge name with a slash", "[segment.x]\nbridge = \"a/b\"\n", []string{"cannot be the name of an interface"}},
		{"domain", "[segment.x]\ndomain = \"lab..example\"\n", []string{"is not a host name (RFC 1123)"}},
		{"policy", "[segment.x]\nunknown = \"maybe\"\n", []string{`write "boot", "address" or "ignore"`}},
		{"port", "[server]\nhttp_port = 65536\n", []string{"2:13: server.http_port: 65536 is out of range"}},
		{"state directory", "[server]\nstate_dir = \"a\\u0000\"\n", []string{`is not a path`}},
		{"too little memory", "[guest]\nmemory = \"16M\"\n", []string{"is less than 64M"}},
		{"too much memory", "[guest]\nmemory = \"2000G\"\n", []string{"is more than 1024G"}},
		{"memory without unit", "[guest]\nmemory = \"512\"\n", []string{"is not a size"}},
		{"memory in pieces", "[guest]\nmemory = \"100000K\"\n", []string{"is not a number of whole mebibytes"}},
		{"cpus", "[guest]\ncpus = 0\n", []string{"2:8: guest.cpus: 0 is out of range; write a number of processors, 1 to 256"}},
		{"device", "[guest]\nnic = \"e1000,mac=x\"\n", []string{"cannot be the name of a device model"}},
		{"append", "[guest]\nappend = \"a\\nb\"\n", []string{"has control characters or several lines"}},
		{"long cmdline", "[profile.a]\ncmdline = \"" + strings.Repeat("x", 1537) + "\"\n", []string{"is longer than the 1536 bytes"}},
		{"profile name", "[profile.\"a/b\"]\n", []string{`1:10: profile."a/b": is not the name of a profile`}},
		{"unknown embedded image", "[profile.a]\nkernel = \"embedded:vmlinux\"\n", []string{`names "vmlinux", which is not embedded; write the path of a file, or "embedded:kernel" or "embedded:initramfs"`}},
		{"built", "[profile.a]\ninitrds = [\"built:a\"]\n", []string{"2:12: profile.a.initrds[0]: \"built:a\" cannot be written here"}},
		{"script and kernel", "[profile.a]\nscript = \"a.ipxe\"\nkernel = \"k\"\ncmdline = \"x\"\n", []string{"3:10: profile.a.kernel: is given beside script", "4:11: profile.a.cmdline: is given beside script"}},
		{"command", "[profile.a.initramfs]\ncommands = [\"core\", \"l s\"]\n", []string{"2:21: profile.a.initramfs.commands[1]"}},
		{"path in the archive", "[profile.a.initramfs]\nfiles = {\"/\" = \"x\"}\n", []string{`2:10: profile.a.initramfs.files."/": "/" is not the path of a file in the archive`}},
		{"path in the archive twice", "[profile.a.initramfs]\nfiles = {\"/a\" = \"x\", a = \"y\"}\n", []string{"2:22: profile.a.initramfs.files.a: names /a a second time"}},

		// Segments.
		{"two ways to the network", "[segment.x]\ninterface = \"eth0\"\nbridge = \"br0\"\n", []string{"3:10: segment.x.bridge: is given beside interface"}},
		{"uplink beside an interface", "[segment.x]\ninterface = \"eth0\"\nuplink = \"eth1\"\n", []string{"segment.x.bridge: is given beside interface"}},
		{"uplink with a long segment", "[segment.much-too-long]\nuplink = \"eth1\"\n", []string{"segment.much-too-long.bridge: is missing, and br-much-too-long would be too long"}},
		{"uplink is the bridge", "[segment.x]\nbridge = \"br0\"\nuplink = \"br0\"\n", []string{"br0 is the bridge itself"}},
		{"vlan of nothing", "[segment.x]\nvlan = 7\n", []string{"2:8: segment.x.vlan: needs a link to tag"}},
		{"vlan out of range", "[segment.x]\ninterface = \"eth0\"\nvlan = 4095\n", []string{"4095 is out of range"}},
		{"mode", "[segment.x]\nmode = \"prox\"\n", []string{`write "server", "proxy" or "off"`}},
		{"private proxy", "[segment.x]\nmode = \"proxy\"\n", []string{"makes no sense on a private segment"}},
		{"proxy with a pool", "[segment.x]\ninterface = \"eth0\"\nmode = \"proxy\"\npool = \"10.0.0.1\"\n", []string{"4:8: segment.x.pool: is what the other DHCP server says"}},
		{"the same bridge twice", "[segment.x]\nbridge = \"br0\"\n[segment.y]\nbridge = \"br0\"\n", []string{"4:10: segment.y.bridge: br0 is segment.x's too, in line 1"}},
		{"networks that overlap", "[segment.x]\nbridge = \"br0\"\naddress = \"10.1.0.1/16\"\n[segment.y]\nbridge = \"br1\"\naddress = \"10.1.9.1/24\"\n", []string{"6:11: segment.y.address: 10.1.9.0/24 overlaps with 10.1.0.0/16 of segment.x, in line 1"}},
		{"relay without servers", "[segment.x]\nrelay = \"10.9.0.1/24\"\n", []string{"segment.x.via: is missing; declare the segment"}},
		{"relay of two servers", "[segment.x]\nbridge = \"a\"\n[segment.y]\nbridge = \"b\"\n[segment.z]\nrelay = \"10.9.0.1/24\"\n", []string{"segment.z.via: is missing; write one of x, y"}},
		{"relay through nobody", "[segment.x]\nbridge = \"a\"\n[segment.z]\nrelay = \"10.9.0.1/24\"\nvia = \"z\"\n", []string{`5:7: segment.z.via: "z" is no segment that is served`}},
		{"segment name", "[segment.\"a/b\"]\n", []string{"is not the name of a segment"}},
		{"option", "[segment.x]\noptions = {\"ntp-server\" = \"10.0.0.1\"}\n", []string{`segment.x.options.ntp-server: option "ntp-server" is not known by name`}},
		{"option of our own", "[segment.x]\noptions = {54 = \"10.0.0.1\"}\n", []string{"option 54 cannot be set: it is the server's address"}},
		{"option twice", "[segment.x]\noptions = {42 = \"10.0.0.1\", ntp-servers = \"10.0.0.1\"}\n", []string{"is the same option as 42"}},
		{"route", "[segment.x]\nroutes = [\"10.9.0.1/16 via 10.77.0.9\", \"10.9.0.0/16\"]\n", []string{"the network is 10.9.0.0/16", "is not a route"}},
		{"route through a stranger", "[segment.x]\nroutes = [\"10.9.0.0/16 via 10.78.0.9\"]\n", []string{"10.78.0.9 is outside of 10.77.0.0/24"}},
		{"one port for two", "[server]\nhttp_port = 8080\nhttps_port = 8080\n", []string{"3:14: server.https_port: 8080 is http_port, too; give each a port of its own"}},
		{"a certificate for nothing", "[server]\ntls_certificate = \"c\"\ntls_key = \"k\"\n", []string{"2:19: server.tls_certificate: is for HTTPS, and no https_port is given; write https_port = 443"}},
		{"half a certificate", "[server]\ntls_key = \"k\"\n", []string{"server.tls_certificate: and tls_key belong together"}},
		{"platform", "[server]\nnbp = {x86 = \"k\"}\n", []string{`write a name such as "bios", "uefi-ia32"`}},

		// Profiles.
		{"tree without programs", "[profile.a]\ntree = \"/srv\"\n", []string{"profile.a.programs: is missing"}},
		{"programs without a tree", "[profile.a]\nprograms = {bios = \"x\"}\n", []string{"is given beside no tree"}},
		{"program out of the tree", "[profile.a]\ntree = \"/srv\"\nprograms = {bios = \"../x\", uefi-x64 = \"x\"}\n", []string{"is not the path of a file in the tree"}},
		{"initrds of a tree", "[profile.a]\ntree = \"/srv\"\nprograms = {bios = \"x\"}\ninitrds = [\"y\"]\n", []string{"profile.a.initrds: is given beside no kernel"}},
		{"template", "[profile.a]\ncmdline = \"{host}\"\n", []string{"names {host}, which is not known"}},
		{"profile of the local disk", "[profile.local]\n", []string{"is the profile that boots the local disk"}},

		// Rules.
		{"rule for all", "[[match]]\nprofile = \"default\"\n", []string{"match[0]: matches every machine"}},
		{"rule that says nothing", "[[match]]\nmac = \"52:54\"\n", []string{"match[0]: says nothing"}},
		{"rule with an odd prefix", "[[match]]\nmac = \"52:5\"\nprofile = \"x\"\n", []string{"is not the beginning of an Ethernet address", `there is no profile "x"`}},

		// Machines.
		{"uuid", "[[machine]]\nuuid = \"x\"\n", []string{"is not a UUID"}},
		{"next", "[[machine]]\nname = \"a\"\nnext = \"never\"\n", []string{`write "always", "once" or "local"`}},
		{"tag", "[[machine]]\nname = \"a\"\ntags = [\"a b\"]\n", []string{"is not a tag"}},
		{"no mac", "[[machine]]\nchainload = true\n", []string{"1:3: machine[0].mac: is missing"}},
		{"mac of a group", "[[machine]]\nmac = \"01:00:5e:00:00:01\"\n", []string{"is a group address"}},
		{"mac of nobody", "[[machine]]\nmac = \"000000000000\"\n", []string{"is no machine's address"}},
		{"the same in two machines", "[[machine]]\nmac = \"52:54:00:12:34:56\"\nname = \"a\"\naddress = \"10.77.0.9\"\n[[machine]]\nmac = \"525400123456\"\nname = \"A\"\naddress = \"10.77.0.9\"\n", []string{
			"6:7: machine[1].mac: 52:54:00:12:34:56 is another machine's too, in line 2", "7:8: machine[1].name: A is another", "8:11: machine[1].address: 10.77.0.9 is another"}},
		{"machine outside", "[[machine]]\nmac = \"525400123456\"\naddress = \"10.78.0.9\"\n", []string{"10.78.0.9 is outside of 10.77.0.0/24; reserve an address of a segment"}},
		{"machine on the server", "[[machine]]\nmac = \"525400123456\"\naddress = \"10.77.0.1\"\n", []string{"is the servers' own address"}},
		{"machine on the router", "[segment.x]\nrouter = \"10.77.0.2\"\n[[machine]]\nmac = \"525400123456\"\naddress = \"10.77.0.2\"\n", []string{"is the router's address"}},
		{"machine on the broadcast address", "[[machine]]\nmac = \"525400123456\"\naddress = \"10.77.0.255\"\n", []string{"is no host's address in"}},
		{"name with a dot", "[[machine]]\nmac = \"525400123456\"\nname = \"a.b\"\n", []string{"has a dot"}},
		{"boot program", "[[machine]]\nmac = \"525400123456\"\nnbp = \"pxelinux.0\"\n", []string{`write "undionly.kpxe", "snponly.efi" or "ipxe.efi", or a path with a slash in it`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("f", []byte(tt.text))
			var problems Problems
			if !errors.As(err, &problems) {
				t.Fatalf("error %v, want Problems", err)
			}
			if len(problems) != len(tt.want) {
				t.Fatalf("got %d problems, want %d:\n%v", len(problems), len(tt.want), err)
			}
			for i, want := range tt.want {
				if got := problems[i].String(); !strings.Contains(got, want) {
					t.Errorf("got  %s\nwant %s", got, want)
				}
			}
		})
	}
}

func TestParse(t *testing.T) {
	c, err := Parse("/etc/ecboot/ecboot.toml", []byte(`
guest = {memory = "2GiB", timeout = "90s"}
[segment.lan]
bridge = "br0"
address = "192.168.7.2/25"
exclude = ["192.168.7.40", "192.168.7.50 - 192.168.7.60"]
router = "192.168.7.1"
[profile.debian]
kernel = "debian/linux"
initrds = ["/srv/initrd.gz"]
[profile.rescue]
[profile.rescue.initramfs]
commands = ["core"]
files = {"etc/motd" = "motd"}
[profile.menu]
script = "menu.ipxe"
[profile.tuned]
cmdline = ""
[[machine]]
mac = "52-54-00-AA-BB-CC"
address = "192.168.7.9"
profile = "debian"
chainload = true
[[machine]]
mac = "525400000002"
name = "two"
`))
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddr
	want := Default()
	want.Segments = []Segment{NewSegment("lan")}
	lan := &want.Segments[0]
	lan.Bridge = "br0"
	lan.Address = netip.MustParsePrefix("192.168.7.2/25")
	lan.Pool = []Range{{addr("192.168.7.25"), addr("192.168.7.126")}}
	lan.Exclude = []Range{{addr("192.168.7.40"), addr("192.168.7.40")}, {addr("192.168.7.50"), addr("192.168.7.60")}}
	lan.Router = addr("192.168.7.1")
	want.Guest.Memory = 2 << 30
	want.Guest.Timeout = 90 * time.Second
	for _, p := range []Profile{
		{Name: "debian", Kernel: "/etc/ecboot/debian/linux", Initrds: []Source{"/srv/initrd.gz"}, Cmdline: defaultCmdline},
		{Name: "rescue", Kernel: EmbeddedKernel, Cmdline: defaultCmdline, Initramfs: &Initramfs{
			Commands: []string{"core"}, Files: map[string]string{"/etc/motd": "/etc/ecboot/motd"}}},
		{Name: "menu", ScriptFile: "/etc/ecboot/menu.ipxe"},
		{Name: "tuned", Kernel: EmbeddedKernel, Initrds: []Source{EmbeddedInitramfs}},
	} {
		want.Profiles[p.Name] = p
	}
	want.Machines = []Machine{
		{MAC: boot.MAC{0x52, 0x54, 0, 0xaa, 0xbb, 0xcc}, Address: addr("192.168.7.9"), Profile: "debian", Next: NextAlways, Chainload: true},
		{MAC: boot.MAC{0x52, 0x54, 0, 0, 0, 2}, Name: "two", Next: NextAlways},
	}
	normalize(c)
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got\n%s\nwant\n%s", c.Show(), want.Show())
	}
	if got := c.Segments[0].Policy(); got != PolicyIgnore {
		t.Errorf("policy on a bridge: %q", got)
	}
	checkRoundTrip(t, c)
}

// checkRoundTrip fails unless what Show prints reads as the same again.
func checkRoundTrip(t *testing.T, c *Config) {
	t.Helper()
	shown := c.Show()
	again, err := Parse("/elsewhere/ecboot.toml", []byte(shown))
	if err != nil {
		t.Fatalf("Show printed what Parse refuses: %v\n%s", err, shown)
	}
	want := *c
	want.Segments = slices.Clone(c.Segments)
	for i, seg := range c.Segments {
		want.Segments[i].Unknown = seg.Policy()
	}
	want.Guests = slices.Clone(c.Guests)
	for _, l := range []*Config{&want, again} {
		normalize(l)
	}
	if !reflect.DeepEqual(again, &want) {
		t.Errorf("read again:\n%s\nbefore:\n%s", again.Show(), shown)
	}
}

// normalize makes empty lists and tables nil: a file can say [] or nothing.
func normalize(c *Config) { emptyToNil(reflect.ValueOf(c)) }

func emptyToNil(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			emptyToNil(v.Elem())
		}
	case reflect.Struct:
		if v.Type().PkgPath() != reflect.TypeFor[Config]().PkgPath() {
			return
		}
		for _, f := range v.Fields() {
			emptyToNil(f)
		}
	case reflect.Slice:
		if v.Len() == 0 {
			v.SetZero()
		}
		for i := range v.Len() {
			emptyToNil(v.Index(i))
		}
	case reflect.Map:
		if v.Len() == 0 {
			v.SetZero()
			return
		}
		clean := reflect.MakeMap(v.Type())
		for it := v.MapRange(); it.Next(); {
			one := reflect.New(v.Type().Elem()).Elem()
			one.Set(it.Value())
			emptyToNil(one)
			clean.SetMapIndex(it.Key(), one)
		}
		v.Set(clean)
	}
}

func TestDefaultsRoundTrip(t *testing.T) {
	checkRoundTrip(t, Default())
	for name, text := range map[string]string{"empty": "", "reference": Reference, "starter": Starter} {
		c, err := Parse("ecboot.toml", []byte(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		normalize(c)
		if !reflect.DeepEqual(c, Default()) {
			t.Errorf("%s is not the defaults:\n%s", name, c.Show())
		}
	}
}

var (
	exampleLine = regexp.MustCompile(`^#([a-z_]+ = |\[)`)
	settingLine = regexp.MustCompile(`^[a-z_]+ = `)
	keyOfLine   = regexp.MustCompile(`^#?([a-z_]+) = `)
	pathInGuest = regexp.MustCompile(`"/[^"]*"`)
	tableOfLine = regexp.MustCompile(`^#?\[\[?([^\]]+)\]`)
)

// referenceExamples is the reference with its examples instead of its settings.
func referenceExamples() string {
	var b strings.Builder
	for line := range strings.Lines(Reference) {
		switch {
		case exampleLine.MatchString(line):
			b.WriteString(line[1:])
		case !settingLine.MatchString(line):
			b.WriteString(line)
		}
	}
	return b.String()
}

func TestReferenceExamples(t *testing.T) {
	text := referenceExamples()
	c, err := Parse("ecboot.toml", []byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if len(c.Machines) != 1 || len(c.Rules) != 1 || len(c.Profiles) != 7 || len(c.Segments) != 5 || len(c.Guests) != 5 {
		t.Errorf("examples are missing:\n%s", c.Show())
	}
	checkRoundTrip(t, c)
}

// TestReferenceIsComplete wants every key that is read in the reference, with
// a comment above it, and in the starter none that is not.
func TestReferenceIsComplete(t *testing.T) {
	documented := documentedKeys(t, Reference)
	for _, key := range Keys() {
		// A guest's own keys include those that it inherits.
		inherited, isGuest := strings.CutPrefix(key, "guest.NAME.")
		if !slices.Contains(documented, key) && !(isGuest && slices.Contains(documented, "guest."+inherited)) {
			t.Errorf("%s is not in reference.toml", key)
		}
	}
	for _, key := range append(documented, documentedKeys(t, Starter)...) {
		if !slices.Contains(Keys(), key) {
			t.Errorf("%s is documented and not read", key)
		}
	}
}

func documentedKeys(t *testing.T, text string) (keys []string) {
	t.Helper()
	table := ""
	for line := range strings.Lines(text) {
		if m := tableOfLine.FindStringSubmatch(line); m != nil {
			table = m[1]
			if profile, rest, ok := strings.Cut(table, "."); ok {
				_, sub, nested := strings.Cut(rest, ".")
				table = profile + ".NAME"
				if nested {
					table += "." + pathInGuest.ReplaceAllString(sub, "PATH")
				}
			}
			if strings.Contains(line, "[[") {
				table += "[]"
			}
		}
		if m := keyOfLine.FindStringSubmatch(line); m != nil {
			keys = append(keys, table+"."+m[1])
		}
	}
	return keys
}

func TestDerivePool(t *testing.T) {
	for _, tt := range []struct{ address, want string }{
		{"10.77.0.1/24", "10.77.0.50-10.77.0.250"},
		{"10.77.0.100/24", "10.77.0.101-10.77.0.250"},
		{"10.77.0.200/24", "10.77.0.50-10.77.0.199"},
		{"10.77.0.254/24", "10.77.0.50-10.77.0.250"},
		{"10.0.0.1/8", "10.51.51.50-10.255.255.250"},
		{"172.16.0.1/22", "172.16.0.203-172.16.3.250"},
		{"10.77.0.1/28", "10.77.0.3-10.77.0.14"},
		{"10.77.0.1/29", "10.77.0.2-10.77.0.6"},
		{"10.77.0.6/29", "10.77.0.1-10.77.0.5"},
		{"10.77.0.1/30", "10.77.0.2"},
		{"10.77.0.2/30", "10.77.0.1"},
	} {
		if got := derivePool(netip.MustParsePrefix(tt.address)); got.String() != tt.want {
			t.Errorf("%s: %v, want %s", tt.address, got, tt.want)
		}
	}
	// Wherever the server is: inside the prefix, not empty, clear of it.
	for bits := 8; bits <= 30; bits++ {
		network := netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), bits)
		n := hosts(network)
		for _, host := range []uint32{1, 2, n / 5, n / 2, n - 7, n - 6, n - 3, n - 2} {
			if host < 1 || host > n-2 {
				continue
			}
			address := netip.PrefixFrom(offset(network.Addr(), host), bits)
			if pool := derivePool(address); !within(address, pool) || pool.Last.Less(pool.First) || pool.Contains(address.Addr()) {
				t.Errorf("%v: %v", address, pool)
			}
		}
	}
}

func TestSetAddress(t *testing.T) {
	s := Default().Segments[0]
	s.Exclude = s.Pool
	if err := s.SetAddress("192.168.9.1/28"); err != nil || s.Address.String() != "192.168.9.1/28" || s.Pool[0].String() != "192.168.9.3-192.168.9.14" || s.Exclude != nil {
		t.Errorf("%+v, %v", s, err)
	}
	s = Default().Segments[0]
	pool := Range{offset(s.Pool[0].First, 10), offset(s.Pool[0].First, 20)}
	s.Pool, s.Exclude = []Range{pool}, []Range{{pool.First, pool.First}}
	if err := s.SetAddress("10.77.0.254/24"); err != nil || s.Pool[0] != pool || len(s.Exclude) != 1 {
		t.Errorf("on the same network: %+v, %v", s, err)
	}
	if err := s.SetAddress("10.77.0.65/24"); err != nil || s.Pool[0] != derivePool(s.Address) {
		t.Errorf("in the middle of the pool: %+v, %v", s, err)
	}
	for _, bad := range []string{"", "192.168.9.1", "192.168.9.0/24", "192.168.9.1/32", "192.168.9.1/0", "fd00::1/64"} {
		if err := s.SetAddress(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestSize(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want Size
		out  string
	}{
		{"512M", 512 << 20, "512M"}, {"2G", 2 << 30, "2G"}, {"2GiB", 2 << 30, "2G"},
		{"1024MiB", 1 << 30, "1G"}, {"1536M", 1536 << 20, "1536M"}, {"1K", 1 << 10, "1K"}, {"0M", 0, "0"},
	} {
		got, err := ParseSize(tt.in)
		if err != nil || got != tt.want || got.String() != tt.out {
			t.Errorf("%s: %d %q %v", tt.in, got, got, err)
		}
	}
	for _, bad := range []string{"", "M", "512", "512B", "512m", "-1M", "1.5G", "9999999999G", "iB", "5 M"} {
		if got, err := ParseSize(bad); err == nil {
			t.Errorf("%q was read as %v", bad, got)
		}
	}
}

func TestFormatDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		time.Hour: "1h", 90 * time.Minute: "1h30m", 90 * time.Second: "1m30s", 10 * time.Minute: "10m", 20 * time.Second: "20s", time.Hour + time.Second: "1h0m1s",
	} {
		if got := formatDuration(d); got != want {
			t.Errorf("%d: %s, want %s", d, got, want)
		}
	}
}

func TestInventory(t *testing.T) {
	c, err := Parse("/c/ecboot.toml", []byte(`
[profile.default]
kernel = "a/vm linuz"
initrds = ["a/initrd.img", "b/initrd.img", "c/initrd.img"]
cmdline = "quiet"
[profile.default.initramfs]
[profile.menu]
script = "menu.ipxe"
[[machine]]
mac = "525400000001"
name = "one"
address = "10.77.0.9"
nbp = "ipxe.efi"
[[machine]]
mac = "525400000002"
profile = "menu"
`))
	if err != nil {
		t.Fatal(err)
	}
	one, two := boot.MAC{0x52, 0x54, 0, 0, 0, 1}, boot.MAC{0x52, 0x54, 0, 0, 0, 2}
	want := &boot.Inventory{
		Default: "default", Declared: "default",
		ByUUID: map[string]boot.Machine{}, ByName: map[string]boot.Machine{}, NBPs: map[boot.Platform]string{}, Files: map[string]string{},
		Machines: map[boot.MAC]boot.Machine{
			one: {MAC: one, Name: "one", Addr: "10.77.0.9", NBP: "ipxe.efi"},
			two: {MAC: two, Profile: "menu"},
		},
		Profiles: map[string]boot.Profile{
			"default": {
				Name: "default", Cmdline: "quiet",
				Kernel: boot.File{Name: "vm-linuz", Path: "/c/a/vm linuz"},
				Initrds: []boot.File{
					{Name: "initrd.img", Path: "/c/a/initrd.img"},
					{Name: "initrd-2.img", Path: "/c/b/initrd.img"},
					{Name: "initrd-3.img", Path: "/c/c/initrd.img"},
					{Name: "default.cpio", Path: "built:default"},
				},
			},
			"menu": {Name: "menu"},
		},
	}
	if got := c.Inventory(c.Segments[0]); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	// Declared machines keep their profile where strangers get none.
	c.Segments[0].Unknown = PolicyAddress
	if got := c.Inventory(c.Segments[0]); got.Default != "" || got.Declared != "default" {
		t.Errorf("with policy address: %+v", got)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("vmlinuz", "kernel")
	write("menu.ipxe", "#!ipxe\nshell\n")
	write("not.ipxe", "shell\n")

	c, err := Load(write("good.toml", `
[profile.a]
kernel = "vmlinuz"
[profile.a.initramfs]
files = {"/etc/x" = "."}
[profile.b]
script = "menu.ipxe"
`))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Profiles["b"].Script; got != "#!ipxe\nshell\n" {
		t.Errorf("script: %q", got)
	}

	bad := write("bad.toml", `
[profile.a]
kernel = "vmlinux"
initrds = ["vmlinuz", "gone.img"]
[profile.b]
kernel = "."
[profile.c]
script = "not.ipxe"
[profile.d]
script = "gone.ipxe"
[profile.e.initramfs]
files = {"etc/x" = "gone"}
[guest]
cpus = 0
`)
	_, err = Load(bad)
	want := strings.ReplaceAll(`DIR/bad.toml:3:10: profile.a.kernel: there is no file DIR/vmlinux; write the path of a file, absolute or from the directory of this one
DIR/bad.toml:4:23: profile.a.initrds[1]: there is no file DIR/gone.img; write the path of a file, absolute or from the directory of this one
DIR/bad.toml:6:10: profile.b.kernel: DIR is not a regular file; write the path of a file, absolute or from the directory of this one
DIR/bad.toml:8:10: profile.c.script: DIR/not.ipxe is not an iPXE script: its first line is not #!ipxe; write the path of an iPXE script
DIR/bad.toml:10:10: profile.d.script: there is no file DIR/gone.ipxe; write the path of a file, absolute or from the directory of this one
DIR/bad.toml:12:20: profile.e.initramfs.files."/etc/x": there is no file DIR/gone; write the path of a file, absolute or from the directory of this one
DIR/bad.toml:14:8: guest.cpus: 0 is out of range; write a number of processors, 1 to 256, without quotes`, "DIR", dir)
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}

	if c, err := Load(""); err != nil || !reflect.DeepEqual(c, Default()) {
		t.Errorf("no file: %v", err)
	}
	if _, err := Load(dir); err == nil {
		t.Error("a directory was loaded")
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a.toml"), filepath.Join(dir, "b.toml")
	if got, err := findIn(a, b); got != "" || err != nil {
		t.Errorf("neither: %q, %v", got, err)
	}
	for _, path := range []string{b, a} {
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := findIn(a, b); got != path || err != nil {
			t.Errorf("got %q, %v, want %q", got, err, path)
		}
	}
	// Something that cannot be looked at is not something that is not there.
	if got, err := findIn(filepath.Join(a, "x.toml"), b); err == nil {
		t.Errorf("passed over a broken path to %q", got)
	}
	if got, err := Find(a); got != a || err != nil {
		t.Errorf("explicit: %q, %v", got, err)
	}
	if _, err := Find(filepath.Join(dir, "gone.toml")); err == nil || !strings.Contains(err.Error(), "config init") {
		t.Errorf("missing explicit file: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(Reference))
	f.Add([]byte(Starter))
	if mistakes, err := os.ReadFile("testdata/mistakes.toml"); err == nil {
		f.Add(mistakes)
	}
	for _, seed := range []string{
		"a.b.c = 1\n[a.b]\n[[a]]\n", "machine = [{mac = '525400000001'}, {}]", "[[machine]]\n[[machine]]\n",
		"[profile.default.initramfs]\nfiles = {'a\"\\b' = \"\\u007f\\u2028\"}", "[segment.a]\naddress = '10.0.0.2/30'", "x = [[[[[{}]]]]]",
		referenceExamples(), vm + card + disk, cont, tiny + "nic = [{segment = 'private', mac = '020127000001'}, 5]\nlimits = {cpu = '1%'}", "[guest]\na.backend = 'container'\na.zfs.'/x\"'.pool = 'p'",
		"[profile.x]\ninitrds = []\n", "segment.a.exclude = ['1.1.1.1-255.255.255.255']",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("/dir/ecboot.toml", data)
		if err == nil {
			checkRoundTrip(t, c)
			c.Inventory(c.Segments[0])
			return
		}
		var problems Problems
		if !errors.As(err, &problems) || len(problems) == 0 {
			t.Fatalf("%T without problems: %v", err, err)
		}
		lines := 1 + strings.Count(string(data), "\n")
		for _, p := range problems {
			if p.Line < 1 || p.Line > lines || p.Column < 1 || p.What == "" {
				t.Errorf("outside of the file of %d lines: %v", lines, p)
			}
		}
	})
}
