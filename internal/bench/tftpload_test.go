package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/nettest"
)

// tftpLoad is what the program "tftpload" does on the clients' host: clients
// fetch one file by TFTP at the same time.
type tftpLoad struct {
	Server  netip.AddrPort
	Name    string
	Like    string // the same file here, with which every byte is compared
	Clients int
	Fetches int // of each client, one after the other
	Block   int // bytes
	Window  int // blocks; 1 asks for none
}

// run has a load put on from a host, and returns bytes per second in all.
func (l tftpLoad) run(b *testing.B, from *nettest.Host) float64 {
	b.Helper()
	arg, err := json.Marshal(l)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd, err := from.Self(ctx, "tftpload", string(arg))
	if err != nil {
		b.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		b.Fatalf("%+v: %v\n%s", l, err, &stderr)
	}
	var rate float64
	if _, err := fmt.Sscan(string(out), &rate); err != nil {
		b.Fatalf("tftpload: %v\n%s", err, out)
	}
	return rate
}

// tftpLoadMain is the program.
func tftpLoadMain(args []string) error {
	var l tftpLoad
	if err := json.Unmarshal([]byte(args[0]), &l); err != nil {
		return err
	}
	want, err := os.ReadFile(l.Like)
	if err != nil {
		return err
	}
	errs := make([]error, l.Clients)
	var wg sync.WaitGroup
	start := time.Now()
	for i := range errs {
		wg.Go(func() {
			for n := 0; n < l.Fetches && errs[i] == nil; n++ {
				errs[i] = l.fetch(want)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	fmt.Println(float64(l.Clients*l.Fetches*len(want)) / time.Since(start).Seconds())
	return nil
}

// fetch gets the file once, as firmware does: it acknowledges a window when it
// is complete or when a block is missing, and repeats itself after a second.
func (l tftpLoad) fetch(want []byte) error {
	conn, err := net.ListenUDP("udp4", nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	request := fmt.Sprintf("\x00\x01%s\x00octet\x00blksize\x00%d\x00tsize\x000\x00", l.Name, l.Block)
	if l.Window > 1 {
		request += fmt.Sprintf("windowsize\x00%d\x00", l.Window)
	}
	server, last := l.Server, []byte(request)
	send := func(p []byte) error {
		last = p
		_, err := conn.WriteToUDPAddrPort(p, server)
		return err
	}
	if err := send(last); err != nil {
		return err
	}
	var got, pending, tries int // bytes, blocks not acknowledged, repetitions
	window, block := 1, uint16(0)
	buf := make([]byte, 1<<16)
	for {
		conn.SetReadDeadline(time.Now().Add(time.Second))
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) && tries < 10 {
			tries++
			if err := send(last); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("block %d: %w", block, err)
		}
		if n < 4 || server != l.Server && from != server {
			continue
		}
		server, tries = from, 0
		ack := func() error {
			pending = 0
			return send(binary.BigEndian.AppendUint16([]byte{0, 4}, block))
		}
		switch p := buf[:n]; binary.BigEndian.Uint16(p) {
		case 5:
			return fmt.Errorf("the server says %q", p[4:])
		case 6:
			words := bytes.Split(p[2:], []byte{0})
			for i := 0; i+1 < len(words); i += 2 {
				if string(words[i]) == "windowsize" {
					fmt.Sscan(string(words[i+1]), &window)
				}
				if string(words[i]) == "blksize" && string(words[i+1]) != fmt.Sprint(l.Block) {
					return fmt.Errorf("asked for blocks of %d, got %s", l.Block, words[i+1])
				}
			}
			err = ack()
		case 3:
			data := p[4:]
			if binary.BigEndian.Uint16(p[2:]) != block+1 {
				if pending > 0 {
					err = ack()
				}
				break
			}
			if !bytes.HasPrefix(want[got:], data) {
				return fmt.Errorf("byte %d and what follows differ", got)
			}
			block, got, pending = block+1, got+len(data), pending+1
			complete := len(data) < l.Block
			if pending == window || complete {
				err = ack()
			}
			if complete && got != len(want) {
				return fmt.Errorf("the file ended after %d bytes of %d", got, len(want))
			}
			if complete {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
}
