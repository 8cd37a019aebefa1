package tftpd

import (
	"net"
	"net/netip"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// A thread whose affinity is another one's must not go back to the scheduler, so
// the test's goroutine ends with it.
func TestLoneTransferIsServedWhereItsPacketsArrive(t *testing.T) {
	client, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	l, err := newLoop()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		cores := func() int {
			var set unix.CPUSet
			if err := unix.SchedGetaffinity(0, &set); err != nil {
				t.Error(err)
			}
			return set.Count()
		}
		all := cores()
		l.findHome()
		fd, err := connect(netip.MustParseAddr("127.0.0.1"), "", netip.MustParseAddrPort(client.LocalAddr().String()))
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(fd)
		k := &socket{fd: fd}
		l.sockets[int32(fd)] = k
		l.settle(k)
		if cores() != all {
			t.Errorf("kept to %d cores before anything has come", cores())
		}
		local, err := unix.Getsockname(fd)
		if err != nil {
			t.Error(err)
			return
		}
		if _, err := client.WriteTo([]byte("ack"), &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: local.(*unix.SockaddrInet4).Port}); err != nil {
			t.Error(err)
		}
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000); err != nil {
			t.Error(err)
		}
		l.settle(k)
		if cores() != 1 {
			t.Errorf("one transfer runs on any of %d cores", cores())
		}
		l.sockets[-1] = &socket{}
		l.settle(k)
		if cores() != all {
			t.Errorf("two transfers are kept to %d cores", cores())
		}
	}()
	<-done
}
