package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/every-channel/ecboot/internal/nettest"
)

// load is what the program "load" does on the client's host: clients, each with
// an address of its own, fetch from an HTTP server at the same time.
type load struct {
	Link    string       // that has the addresses
	First   netip.Prefix // address of the first client; the others follow
	Server  netip.AddrPort
	Path    string // %d is the number of the client
	Clients int
	Fetches int           // of each client, one after the other on one connection
	Limit   time.Duration // for all of it
}

// loadResult is what came of it.
type loadResult struct {
	Seconds float64 // until the last client had everything
	Bytes   int64   // of content, in all
}

// run has a load put on from a host.
func (l load) run(b *testing.B, from *nettest.Host) (r loadResult) {
	b.Helper()
	l.Limit = time.Minute
	arg, err := json.Marshal(l)
	if err != nil {
		b.Fatal(err)
	}
	cmd, err := from.Self(context.Background(), "load", string(arg))
	if err != nil {
		b.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		b.Fatalf("load: %v\n%s", err, &stderr)
	}
	if err := json.Unmarshal(out, &r); err != nil {
		b.Fatalf("load: %v\n%s", err, out)
	}
	return r
}

// curl has curl be the only client.
func (l load) curl(b *testing.B, from *nettest.Host) (r loadResult) {
	b.Helper()
	from.Run(b, "ip", "addr", "replace", l.First.String(), "dev", l.Link)
	var config strings.Builder
	for range l.Fetches {
		fmt.Fprintf(&config, "url = http://%s%s\noutput = /dev/null\n", l.Server, l.Path)
	}
	cmd := from.Command(context.Background(), "curl", "--fail", "--silent", "--show-error", "--write-out", "%{size_download}\n", "--config", "-")
	cmd.Stdin = strings.NewReader(config.String())
	start := time.Now()
	out, err := cmd.CombinedOutput()
	r.Seconds = time.Since(start).Seconds()
	if err != nil {
		b.Fatalf("curl: %v\n%s", err, out)
	}
	for _, size := range strings.Fields(string(out)) {
		n, err := strconv.ParseInt(size, 10, 64)
		if err != nil {
			b.Fatalf("curl: %s", out)
		}
		r.Bytes += n
	}
	return r
}

// loadMain is the program.
func loadMain(args []string) error {
	var l load
	if err := json.Unmarshal([]byte(strings.Join(args, " ")), &l); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), l.Limit)
	defer cancel()
	addrs, err := giveAddresses(l.Link, l.First, l.Clients)
	if err != nil {
		return err
	}
	var result loadResult
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	start := time.Now()
	for i, addr := range addrs {
		wg.Go(func() {
			n, err := l.fetch(ctx, addr, strings.ReplaceAll(l.Path, "%d", fmt.Sprint(i)))
			mu.Lock()
			defer mu.Unlock()
			result.Bytes += n
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", addr, err))
			}
		})
	}
	wg.Wait()
	result.Seconds = time.Since(start).Seconds()
	if len(errs) > 0 {
		return fmt.Errorf("%d of %d clients failed: %w", len(errs), l.Clients, errors.Join(errs[:1]...))
	}
	return json.NewEncoder(printer{}).Encode(result)
}

type printer struct{}

func (printer) Write(p []byte) (int, error) { return fmt.Print(string(p)) }

// giveAddresses makes a link have n addresses.
func giveAddresses(name string, first netip.Prefix, n int) (addrs []netip.Addr, err error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, err
	}
	for addr := first.Addr(); len(addrs) < n; addr = addr.Next() {
		a, err := netlink.ParseAddr(netip.PrefixFrom(addr, first.Bits()).String())
		if err != nil {
			return nil, err
		}
		if err := netlink.AddrReplace(link, a); err != nil {
			return nil, fmt.Errorf("address %s: %w", addr, err)
		}
		addrs = append(addrs, addr)
	}
	return addrs, nil
}

// fetch is one client.
func (l load) fetch(ctx context.Context, from netip.Addr, path string) (sum int64, err error) {
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	conn, err := dialer.DialContext(ctx, "tcp", l.Server.String())
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	r := bufio.NewReaderSize(conn, 4096)
	buf := make([]byte, min(256<<10, 64<<20/l.Clients))
	for range l.Fetches {
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, l.Server); err != nil {
			return sum, err
		}
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			return sum, err
		}
		if res.StatusCode != http.StatusOK {
			return sum, fmt.Errorf("%s: %s", path, res.Status)
		}
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{res.Body}, buf)
		sum += n
		if err != nil {
			return sum, err
		}
	}
	return sum, nil
}
