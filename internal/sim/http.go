package sim

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// client is the machine's HTTP: one connection from its own address.
func (m *machine) client() *http.Client {
	dialer := &net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(m.addr, 0))}
	return &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext, DisableCompression: true, MaxConnsPerHost: 1}}
}

func (m *machine) get(ctx context.Context, web *http.Client, url string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := web.Do(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		res.Body.Close()
		return nil, errors.New(res.Status)
	}
	return res.Body, nil
}

// fetchHTTP loads a file and returns its SHA-256.
func (m *machine) fetchHTTP(ctx context.Context, web *http.Client, url string) (sum string, err error) {
	body, err := m.get(ctx, web, url)
	if err != nil {
		return "", err
	}
	defer body.Close()
	digest := sha256.New()
	if _, err := io.Copy(digest, body); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", digest.Sum(nil)), nil
}

// fetchScript loads an iPXE script and returns the URLs of its kernel and its
// initrds.
func (m *machine) fetchScript(ctx context.Context, web *http.Client, url string) (files []string, err error) {
	body, err := m.get(ctx, web, url)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	lines := bufio.NewScanner(body)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) == 0 || words[0] != "kernel" && words[0] != "initrd" {
			continue
		}
		for _, w := range words[1:] {
			if strings.HasPrefix(w, "http://") {
				files = append(files, w)
				break
			}
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(files) < 2 {
		return nil, errors.New("it names no kernel and initrd")
	}
	return files, nil
}
