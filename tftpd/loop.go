package tftpd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// tick is how late a deadline may be noticed.
const tick = 10 * time.Millisecond

const (
	anywhere = -1
	inspect  = 16 // packets until the next look at where they arrive
)

// loop moves transfers on, all in one goroutine, which reads their files too.
// One for each of them, as is usual, costs a round through Go's scheduler for
// every block, half as much again as all the rest when there is one block at a
// time.
type loop struct {
	epoll   int
	wake    int         // an eventfd
	home    unix.CPUSet // the cores that this thread may use
	cpu     int         // the one that it is kept to, or anywhere
	packets int

	mu      sync.Mutex
	sockets map[int32]*socket
	closing bool
}

// socket is where a transfer meets its client: connected, so that the kernel
// keeps strangers out, and with the address that was asked.
type socket struct {
	fd      int
	x       sending
	begun   bool
	segment int // bytes of the packets that the kernel cuts; 0: it does not
	ended   chan error
}

func newLoop() (*loop, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	l := &loop{epoll: epoll, cpu: anywhere, sockets: map[int32]*socket{}}
	if l.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err == nil {
		err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, l.wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(l.wake)})
	}
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return l, nil
}

// serve returns when the transfer has ended.
func (l *loop) serve(t *transfer) error {
	fd, err := connect(t.s.cfg.Addr, t.s.cfg.Interface, t.client)
	if err != nil {
		return err
	}
	k := &socket{fd: fd, ended: make(chan error, 1)}
	k.x = sending{t: t, send: k.send}
	l.mu.Lock()
	l.sockets[int32(fd)] = k
	l.mu.Unlock()
	// A new socket can be written to at once, which wakes the loop.
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT, Fd: int32(fd)}); err != nil {
		l.end(k, err)
	}
	return <-k.ended
}

// connect makes a socket for one client.
func connect(from netip.Addr, link string, to netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	if err = bindLink(fd, link); err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: from.As4()})
	}
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	}
	if err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("socket to %s: %w", to, err)
	}
	return fd, nil
}

// run returns after close, when the last transfer has ended.
func (l *loop) run() {
	runtime.LockOSThread() // where to run is a thread's, and ends with it
	l.findHome()
	events := make([]unix.EpollEvent, 64)
	buf := make([]byte, maxRequest)
	var scanned time.Time
	for {
		timeout := -1
		if l.count() > 0 {
			timeout = int(tick / time.Millisecond)
		} else if l.closed() {
			unix.Close(l.epoll)
			unix.Close(l.wake)
			return
		}
		n, _ := unix.EpollWait(l.epoll, events, timeout)
		n = max(n, 0) // EINTR
		now := time.Now()
		for _, e := range events[:n] {
			if k := l.socket(e.Fd); k != nil {
				l.move(k, buf, now)
			}
		}
		if now.Sub(scanned) >= tick {
			scanned = now
			l.scan(buf, now)
		}
	}
}

// findHome is called once, by the thread that runs the loop.
func (l *loop) findHome() {
	if unix.SchedGetaffinity(0, &l.home) != nil {
		l.home = unix.CPUSet{} // and so anywhere
	}
}

// settle lets this thread run where the packets of its only transfer arrive: to
// be woken by another core takes longer than all else that a block costs. With
// several transfers it seldom sleeps, and runs where there is room.
func (l *loop) settle(k *socket) {
	cpu := anywhere
	if l.count() == 1 {
		var err error
		if cpu, err = unix.GetsockoptInt(k.fd, unix.SOL_SOCKET, unix.SO_INCOMING_CPU); err != nil || !l.home.IsSet(cpu) {
			cpu = anywhere
		}
	}
	if cpu == l.cpu {
		return
	}
	set := l.home
	if cpu != anywhere {
		set = unix.CPUSet{}
		set.Set(cpu)
	}
	if unix.SchedSetaffinity(0, &set) == nil {
		l.cpu = cpu
	}
}

// move reads a packet; what else has come is the next event.
func (l *loop) move(k *socket, buf []byte, now time.Time) {
	if !k.begun {
		k.begun = true
		err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_MOD, k.fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(k.fd)})
		if err == nil {
			err = k.x.begin(now)
		}
		if err != nil {
			l.end(k, err)
		}
		return
	}
	n, err := unix.Read(k.fd, buf)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return
	}
	done := false
	if l.packets++; l.packets%inspect == 0 {
		l.settle(k)
	}
	if err == nil {
		done, err = k.x.receive(buf[:n], now)
	}
	if done || err != nil {
		l.end(k, err)
	}
}

// scan looks for transfers that are late, or must end.
func (l *loop) scan(buf []byte, now time.Time) {
	l.mu.Lock()
	var due []*socket
	for _, k := range l.sockets {
		if k.begun && now.After(k.x.deadline) || k.x.t.ctx.Err() != nil {
			due = append(due, k)
		}
	}
	l.mu.Unlock()
	for _, k := range due {
		err := context.Cause(k.x.t.ctx)
		if err == nil {
			err = k.x.late(now)
		} else if k.begun {
			l.move(k, buf, now) // what the client has said in time counts
		}
		if err != nil {
			l.end(k, err)
		}
	}
}

// end tells the client why, unless it knows.
func (l *loop) end(k *socket, err error) {
	l.mu.Lock()
	mine := l.sockets[int32(k.fd)] == k
	if mine {
		delete(l.sockets, int32(k.fd))
	}
	l.mu.Unlock()
	if !mine {
		return
	}
	var said clientError
	if err != nil && !errors.As(err, &said) && !errors.Is(err, os.ErrDeadlineExceeded) {
		unix.Write(k.fd, errorPacket(codeUndefined, err.Error()))
	}
	unix.Close(k.fd)
	k.ended <- err
}

// send counts what cannot leave as lost on the way, unless nothing would ever
// arrive.
func (k *socket) send(p []byte, stride int) error {
	if len(p) > stride && k.cut(stride) {
		_, err := unix.Write(k.fd, p)
		switch {
		case errors.Is(err, unix.ECONNREFUSED):
			return err
		case err == nil, errors.Is(err, unix.EAGAIN):
			return nil
		}
		// Kernels before 6.11 cannot where the device leaves checksums to them.
		k.segment = -1
		unix.SetsockoptInt(k.fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 0)
	}
	for len(p) > 0 {
		one := p[:min(stride, len(p))]
		if _, err := unix.Write(k.fd, one); errors.Is(err, unix.ECONNREFUSED) {
			return err
		}
		p = p[len(one):]
	}
	return nil
}

// cut has the kernel cut what is written into packets, if it can.
func (k *socket) cut(stride int) bool {
	if k.segment == 0 {
		k.segment = stride
		if err := unix.SetsockoptInt(k.fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, stride); err != nil {
			k.segment = -1
		}
	}
	return k.segment > 0
}

func (l *loop) socket(fd int32) *socket {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sockets[fd]
}

func (l *loop) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.sockets)
}

func (l *loop) closed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closing
}

// close lets run return.
func (l *loop) close() {
	l.mu.Lock()
	l.closing = true
	l.mu.Unlock()
	unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}
