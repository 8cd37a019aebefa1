package sim

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"
)

// What EDK2 asks of a TFTP server.
const (
	tftpBlock  = 1468 // bytes
	tftpWindow = 4    // blocks
	tftpWait   = time.Second
	tftpTries  = 10
)

// The operations of TFTP (RFC 1350 §5, RFC 2347).
const (
	opData  = 3
	opAck   = 4
	opError = 5
	opOACK  = 6
)

// fetchTFTP loads a file and returns its SHA-256. It acknowledges a window when
// it is complete or a block of it is missing, and repeats itself when nothing
// comes.
func (m *machine) fetchTFTP(ctx context.Context, server netip.Addr, name string) (sum string, err error) {
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(m.addr, 0)))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	to := netip.AddrPortFrom(server, 69)
	last := fmt.Appendf(nil, "\x00\x01%s\x00octet\x00tsize\x000\x00blksize\x00%d\x00windowsize\x00%d\x00", name, tftpBlock, tftpWindow)
	send := func(p []byte) error {
		last = p
		_, err := conn.WriteToUDPAddrPort(p, to)
		return err
	}
	if err := send(last); err != nil {
		return "", err
	}
	digest := sha256.New()
	block, window, size := uint16(0), 1, 512
	pending, tries, begun := 0, 0, false
	ack := func() error {
		pending = 0
		return send(binary.BigEndian.AppendUint16([]byte{0, opAck}, block))
	}
	buf := make([]byte, 2048)
	for ctx.Err() == nil {
		conn.SetReadDeadline(time.Now().Add(tftpWait))
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) && tries < tftpTries {
			tries++
			m.retried()
			if err := send(last); err != nil {
				return "", err
			}
			continue
		}
		switch {
		case err != nil:
			return "", fmt.Errorf("after block %d: %w", block, err)
		case n < 4 || begun && from != to:
			continue
		}
		to, begun, tries = from, true, 0
		switch p := buf[:n]; binary.BigEndian.Uint16(p) {
		case opOACK:
			if size, window, err = options(p[2:]); err == nil {
				err = ack()
			}
		case opError:
			return "", fmt.Errorf("the server says %q", bytes.TrimRight(p[4:], "\x00"))
		case opData:
			if binary.BigEndian.Uint16(p[2:]) != block+1 {
				if pending > 0 {
					err = ack()
				}
				break
			}
			block, pending = block+1, pending+1
			digest.Write(p[4:])
			complete := len(p)-4 < size
			if complete || pending == window {
				err = ack()
			}
			if complete && err == nil {
				return fmt.Sprintf("%x", digest.Sum(nil)), nil
			}
		}
		if err != nil {
			return "", err
		}
	}
	return "", ctx.Err()
}

// options reads an OACK.
func options(p []byte) (size, window int, err error) {
	size, window = 512, 1
	words := bytes.Split(p, []byte{0})
	for i := 0; i+1 < len(words); i += 2 {
		n, err := strconv.Atoi(string(words[i+1]))
		if err != nil {
			return 0, 0, fmt.Errorf("option %s is %q", words[i], words[i+1])
		}
		switch string(bytes.ToLower(words[i])) {
		case "blksize":
			size = n
		case "windowsize":
			window = n
		}
	}
	return size, window, nil
}
