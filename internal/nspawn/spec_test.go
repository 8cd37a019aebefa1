package nspawn

import (
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var testMAC = net.HardwareAddr{2, 1, 0x27, 0, 0, 1}

func TestArgs(t *testing.T) {
	always := []string{
		"--quiet", "--settings=no", "--register=no", "--keep-unit", "--resolv-conf=off", "--timezone=off", "--link-journal=no",
		"--boot", "--console=interactive",
	}
	for _, test := range []struct {
		name string
		spec Spec
		want []string
	}{
		{"least", Spec{Name: "a", Root: "/r"},
			[]string{"--kill-signal=SIGRTMIN+4", "--machine=a", "--directory=/run/systemd/nspawn/ecboot/root", "--private-network"}},
		{"stop signal", Spec{Name: "a.b-c", Root: "/r", StopSignal: "SIGUSR2"},
			[]string{"--kill-signal=SIGUSR2", "--machine=a.b-c", "--directory=/run/systemd/nspawn/ecboot/root", "--private-network"}},
		{"network", Spec{Name: "a", Root: "/r", NICs: []NIC{
			{Parent: "eth0", MAC: testMAC},
			{Bridge: "br0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}},
			{Name: "lan", Bridge: "br0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 3}},
		}},
			[]string{"--kill-signal=SIGRTMIN+4", "--machine=a", "--directory=/run/systemd/nspawn/ecboot/root", "--private-network",
				"--network-interface=mv-eth0", "--network-interface=host0", "--network-interface=lan"}},
		{"user ids", Spec{Name: "a", Root: "/r", UIDBase: 0x100000, Binds: []Bind{{Source: "/s"}}},
			[]string{"--kill-signal=SIGRTMIN+4", "--machine=a", "--directory=/run/systemd/nspawn/ecboot/root",
				"--private-users=1048576:65536", "--private-users-ownership=map", "--private-network", "--bind=/s:/s:idmap"}},
		{"user ids of an overlay", Spec{Name: "a", Root: "/r", Ephemeral: true, UIDBase: 0x100000},
			[]string{"--kill-signal=SIGRTMIN+4", "--machine=a", "--directory=/run/systemd/nspawn/ecboot/root",
				"--private-users=1048576:65536", "--private-users-ownership=auto", "--private-network"}},
		{"binds", Spec{Name: "a", Root: "/r", Binds: []Bind{
			{Source: "/guests/a/persist", Target: "/persist"}, {Source: `/x:y\z`, Target: "/in: side", ReadOnly: true}, {Source: "/same"}}},
			[]string{"--kill-signal=SIGRTMIN+4", "--machine=a", "--directory=/run/systemd/nspawn/ecboot/root", "--private-network",
				"--bind=/guests/a/persist:/persist", `--bind-ro=/x\:y\\z:/in\: side`, "--bind=/same:/same"}},
		{"extra comes last", Spec{Name: "a", Root: "/r", Extra: []string{"--capability=CAP_NET_RAW", "--no-new-privileges"}},
			[]string{"--kill-signal=SIGRTMIN+4", "--machine=a", "--directory=/run/systemd/nspawn/ecboot/root", "--private-network",
				"--capability=CAP_NET_RAW", "--no-new-privileges"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := test.spec.Args()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(slices.Concat(always, test.want), got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestCommand(t *testing.T) {
	argv, err := Spec{Name: "a", Root: "/r"}.Command("")
	if err != nil || argv[0] != "systemd-nspawn" || argv[1] != "--quiet" {
		t.Errorf("%q, %v", argv, err)
	}
	if _, err := (Spec{}).Command(""); err == nil {
		t.Error("a container without a name has a command")
	}
}

func TestSpecContradicts(t *testing.T) {
	nic := func(n NIC) Spec { return Spec{Name: "a", Root: "/r", NICs: []NIC{n}} }
	bind := func(b ...Bind) Spec { return Spec{Name: "a", Root: "/r", Binds: b} }
	extra := func(arg string) Spec { return Spec{Name: "a", Root: "/r", Extra: []string{arg}} }
	for _, test := range []struct {
		spec Spec
		want string
	}{
		{Spec{Root: "/r"}, `container name ""`},
		{Spec{Name: "a/b", Root: "/r"}, `container name "a/b"`},
		{Spec{Name: "-a", Root: "/r"}, `container name "-a"`},
		{Spec{Name: "..", Root: "/r"}, `container name ".."`},
		{Spec{Name: "a\n", Root: "/r"}, `container name "a\n"`},
		{Spec{Name: strings.Repeat("a", 64), Root: "/r"}, "at most 63"},
		{Spec{Name: "a"}, "has no root"},
		{Spec{Name: "a", Root: "/r\x00"}, "NUL"},
		{Spec{Name: "a", Root: "/r", Ephemeral: true, State: "/s"}, "keeps nothing"},
		{Spec{Name: "a", Root: "/r", StopSignal: "9"}, `stop signal "9"`},
		{Spec{Name: "a", Root: "/r", UIDBase: 1000}, "multiple of 65536"},
		{Spec{Name: "a", Root: "/r", UIDBase: 1 << 31}, "below 2^31"},
		{Spec{Name: "a", Root: "/r", Limits: Limits{Tasks: -1}}, "positive"},
		{nic(NIC{MAC: testMAC}), "NIC 0: it needs a parent or a bridge"},
		{nic(NIC{Parent: "eth0", Bridge: "br0", MAC: testMAC}), "and not both"},
		{nic(NIC{Parent: "enp0s31f6eth0", MAC: testMAC}), `name "mv-enp0s31f6eth0"`},
		{nic(NIC{Name: "a:b", Parent: "eth0", MAC: testMAC}), `name "a:b"`},
		{nic(NIC{Name: "lo", Parent: "eth0", MAC: testMAC}), `name "lo"`},
		{nic(NIC{Parent: "eth0"}), "six bytes"},
		{nic(NIC{Parent: "eth0", MAC: net.HardwareAddr{1, 0, 0, 0, 0, 0}}), "group address"},
		{nic(NIC{Parent: "eth0", MAC: make(net.HardwareAddr, 6)}), "no address"},
		{Spec{Name: "a", Root: "/r", NICs: []NIC{{Parent: "eth0", MAC: testMAC}, {Name: "b", Parent: "eth0", MAC: testMAC}}}, "NIC 1: 02:01:27:00:00:01 is the MAC address of NIC 0"},
		{Spec{Name: "a", Root: "/r", NICs: []NIC{{Bridge: "b0", MAC: testMAC}, {Bridge: "b1", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}}}}, "host0 is the name of NIC 0"},
		{bind(Bind{Source: "data"}), `bind "data"`},
		{bind(Bind{Source: "/data", Target: "data"}), `bind "data"`},
		{bind(Bind{Source: "/data", Target: "/x/.."}), "is its root"},
		{bind(Bind{Source: "/a", Target: "/x"}, Bind{Source: "/b", Target: "/x/"}), "is the target of /a"},
		{extra("--boot"), "(--boot)"},
		{extra("--dir=/"), "(--directory)"},
		{extra("--network-macvlan=eth0"), "(--network-macvlan)"},
		{extra("--p"), "(--pipe)"},
		{extra("-D/"), "--name=value"},
		{extra("/bin/sh"), "--name=value"},
		{extra("--"), "--name=value"},
	} {
		args, err := test.spec.Args()
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: error %v, want %q", test.spec, err, test.want)
		}
		if args != nil {
			t.Errorf("%+v: arguments in spite of an error: %q", test.spec, args)
		}
	}
}
