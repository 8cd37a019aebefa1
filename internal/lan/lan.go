// Package lan makes the network segment that guests and servers share. A segment
// is a bridge with taps: private, the host's, or one that takes a NIC in; or it
// is a macvlan of a NIC for the servers with macvtaps for the guests.
//
// What is to be changed is planned first, by a pure function that also says what
// cannot work and why. Each change is noted on disk before it is made, so that a
// watchdog, and the next start if that is gone too, can undo what a killed
// process left.
package lan

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// PrivateBridge is the bridge of a private segment.
const PrivateBridge = "ecbr0"

// Config says which segment to open. Without any link it is a
// private one, which belongs in a namespace of its own (Isolate).
type Config struct {
	// Name is the segment's, from which the names of what is made come;
	// empty means that there is no other segment in NoteDir.
	Name string

	// Interface is a link that is served as it is, without guests.
	Interface string
	// Bridge is joined if it exists and made if not. Empty with an Uplink:
	// one is made under a name of its own.
	Bridge string
	// Uplink is a NIC to put into the bridge. Addresses, routes and DNS
	// servers that it has move to the bridge while the segment is open.
	Uplink string
	// Parent is, instead of a bridge, a NIC that carries a macvlan for the
	// servers and a macvtap for each guest. It stays as it is, unless
	// Address is one that it has: then its addresses and routes move to the
	// macvlan.
	Parent string
	// VLAN, from 1 to 4094, takes the 802.1Q network of this number on the
	// Uplink or Parent instead of its untagged one; 0 takes the latter.
	VLAN int

	// Address is the servers' address and the segment's prefix. The zero
	// value takes the first IPv4 address that the bridge or the uplink has;
	// another address is added while the segment is open.
	Address netip.Prefix
	// NAT lets the segment's clients out through the host's default route,
	// under the host's address.
	NAT bool

	// NoteDir is an existing directory for the note of what must be undone. A
	// later process with the same NoteDir takes over what is left there.
	NoteDir string

	// pause is called before and after each change, in tests only.
	pause func()
}

// private reports whether the segment is in a namespace of its own.
func (c Config) private() bool {
	return c.Interface == "" && c.Bridge == "" && c.Uplink == "" && c.Parent == ""
}

// Segment is an open network segment.
type Segment struct {
	opened *opened
	found  []string // by Open in what it took over
	pause  func()

	mu       sync.Mutex   // held while something changes
	link     netlink.Link // of the servers
	made     []change
	note     string // empty when nothing outlives the namespace
	owner    process
	watchdog *watchdog // nil as long as there is nothing to undo
	held     []process
	closing  bool          // what is noted is to be undone, not to be continued
	stop     chan struct{} // ends follow; nil when it does not run
}

func newSegment(cfg Config) *Segment {
	s := &Segment{pause: cfg.pause}
	if s.pause == nil {
		s.pause = func() {}
	}
	if !cfg.private() {
		s.note = noteFile(cfg.NoteDir, cfg.Name)
	}
	return s
}

// Open makes or joins the segment, or takes over what a process that is gone has
// left of it. When it fails, nothing that it made is left.
func Open(cfg Config) (*Segment, error) {
	s, err := open(cfg)
	if err != nil {
		return nil, err
	}
	if err := s.follow(); err != nil {
		return nil, errors.Join(err, s.Leave())
	}
	return s, nil
}

func open(cfg Config) (*Segment, error) {
	if !cfg.private() {
		if s, err := takeOver(cfg); s != nil || err != nil {
			return s, err
		}
	}
	h, err := readHost()
	if err != nil {
		return nil, fmt.Errorf("look at the network: %w", err)
	}
	p := plan(cfg, h)
	if err := p.err(); err != nil {
		return nil, err
	}
	s := newSegment(cfg)
	// Before the first change, so that nothing is touched if one of them
	// could not be undone.
	others := othersSettings(s.note)
	for i := range p.changes {
		if err := p.changes[i].remember(others); err != nil {
			return nil, err
		}
	}
	for _, c := range p.changes {
		if err := s.change(c); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	if s.link, err = netlink.LinkByName(p.link); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", p.link, err), s.Close())
	}
	if err := s.isOpen(&opened{cfg, p.link, p.parent, p.noPorts, p.address, p.warnings}); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// isOpen says what the segment is, also to a successor.
func (s *Segment) isOpen(o *opened) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened = o
	return s.save()
}

// Interface is the link of the servers' sockets: the bridge, or the macvlan.
func (s *Segment) Interface() string { return s.opened.Link }

// Address is the servers' address on the segment, with its prefix length.
func (s *Segment) Address() netip.Prefix { return s.opened.Address }

// Index is the number of that link. After Mend it may be another one.
func (s *Segment) Index() int { return s.servers().Attrs().Index }

// MTU is the largest IP packet of the segment in bytes.
func (s *Segment) MTU() int { return s.servers().Attrs().MTU }

func (s *Segment) servers() netlink.Link {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.link
}

// Warnings is what works, but not as everybody expects.
func (s *Segment) Warnings() []string { return append(slices.Clone(s.opened.Warnings), s.found...) }

// STP reports whether spanning tree is on, which keeps a new port silent for
// its forward delay and so loses the first requests of a guest.
func (s *Segment) STP() bool {
	on, err := spanningTree(s.servers())
	return err == nil && on
}

// Close undoes what Open and Port did, last first, whoever holds the segment. If
// others opened it before, that is the state that they found.
func (s *Segment) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unfollow()
	// From here on half of it may be missing, so nobody must continue it. If
	// that cannot be noted it is undone all the same.
	s.closing = true
	_ = s.save()
	err := undoAll(s.note, s.made)
	if err == nil {
		s.made = nil
	} else {
		// Where this failed the watchdog tries once more, then the next
		// start.
		s.owner = process{}
		err = errors.Join(err, s.save())
	}
	err = errors.Join(err, s.watchdog.release())
	s.watchdog = nil
	return err
}

// save notes the state of the segment, once there is anything to undo.
func (s *Segment) save() error {
	if s.watchdog == nil {
		return nil
	}
	n := note{Boot: bootID(), Made: s.made, Owner: s.owner, Watchdog: s.watchdog.id}
	if !s.closing {
		n.Open, n.Held = s.opened, s.held
	}
	return n.write(s.note)
}

// change notes a change and makes it.
func (s *Segment) change(c change) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.add(c)
}

// add is change for whoever holds the lock.
func (s *Segment) add(c change) error {
	if s.note != "" && s.watchdog == nil {
		var err error
		if s.owner, err = processOf(os.Getpid()); err != nil {
			return err
		}
		if s.watchdog, err = startWatchdog(s.note); err != nil {
			return err
		}
	}
	s.made = append(s.made, c)
	if err := s.save(); err != nil {
		return err
	}
	s.pause()
	if err := c.make(s.pause); err != nil {
		if errors.Is(err, unix.EEXIST) && (c.makesLink() || c.Op == opMacvtap || c.Op == opAddress) {
			// Somebody else was faster, and what they made is not ours to
			// undo.
			s.made = s.made[:len(s.made)-1]
			err = errors.Join(err, s.save())
		}
		return err
	}
	s.pause()
	return nil
}

// undo undoes a change before the others.
func (s *Segment) undo(c change) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.made, func(m change) bool { return m.Op == c.Op && m.Link == c.Link })
	if i < 0 {
		return nil
	}
	if err := s.made[i].undo(); err != nil {
		return err
	}
	s.made = slices.Delete(s.made, i, i+1)
	return s.save()
}

// AddressOf returns the first IPv4 address that one of the links has, the zero
// prefix when none has one. Names that are empty or of no link are passed over.
func AddressOf(links ...string) (netip.Prefix, error) {
	for _, name := range links {
		if name == "" {
			continue
		}
		link, err := netlink.LinkByName(name)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("%s: %w", name, err)
		}
		have, err := addresses(link)
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("addresses of %s: %w", name, err)
		}
		if len(have) > 0 {
			return have[0], nil
		}
	}
	return netip.Prefix{}, nil
}

func addresses(link netlink.Link) ([]netip.Prefix, error) {
	list, err := addressesOf(link, netlink.FAMILY_V4)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, a := range list {
		if p, ok := prefixOf(a.IPNet); ok {
			out = append(out, p)
		}
	}
	return out, nil
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	ip, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), bits), ok
}

func setUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return needAdmin("bring "+name+" up", err)
	}
	return nil
}

// noteFile is where a segment's note lies.
func noteFile(dir, segment string) string {
	return filepath.Join(dir, strings.TrimSuffix(notePrefix+segment, "-")+noteSuffix)
}

// needAdmin adds to a refusal by the kernel what would lift it.
func needAdmin(what string, err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%s: %w: run as root", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func isNotFound(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound)
}
