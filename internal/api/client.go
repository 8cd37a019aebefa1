package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"syscall"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
)

// Client talks to one process.
type Client struct {
	path string
	http *http.Client
}

// origin is the server in the requests; the socket decides.
const origin = "http://ecboot"

// askTimeout is for what a server knows at once.
const askTimeout = 30 * time.Second

// maxAnswer is far more than the status of the most machines takes.
const maxAnswer = 256 << 20

// Connect returns a Client for the socket at path.
func Connect(path string) *Client {
	return &Client{path, &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}}
}

// All returns the status of every process that answers below the directory in
// which processes keep theirs, each with its Client. One that has just ended is
// left out.
func All(ctx context.Context, dir string) (map[*Client]Status, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*", SocketName))
	if err != nil {
		return nil, err
	}
	found := map[*Client]Status{}
	for _, path := range paths {
		c := Connect(path)
		st, err := c.Status(ctx)
		switch {
		case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		case errors.Is(err, syscall.EACCES):
			return nil, fmt.Errorf("%s: %w: its owner alone may use it", path, syscall.EACCES)
		case err != nil:
			return nil, err
		default:
			found[c] = st
		}
	}
	return found, nil
}

// Status asks what is served and who was seen.
func (c *Client) Status(ctx context.Context) (st Status, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if err := c.ask(ctx, http.MethodGet, "/v1/status", &st); err != nil {
		return st, err
	}
	return st, c.checkSchema(st.Schema)
}

func (c *Client) checkSchema(schema int) error {
	if schema != Schema {
		return fmt.Errorf("the process at %s speaks schema %d, and this ecboot %d: they are of different versions", c.path, schema, Schema)
	}
	return nil
}

// Reload makes the process read its configuration again. That may take its time:
// what the configuration describes is built.
func (c *Client) Reload(ctx context.Context) error {
	_, err := c.do(ctx, http.MethodPost, "/v1/reload")
	return err
}

// Release frees a lease.
func (c *Client) Release(ctx context.Context, segment string, a netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	_, err := c.do(ctx, http.MethodDelete, "/v1/leases/"+url.PathEscape(segment)+"/"+a.String())
	return err
}

// Wake sends a machine the packet that switches it on.
func (c *Client) Wake(ctx context.Context, segment string, mac boot.MAC) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	_, err := c.do(ctx, http.MethodPost, "/v1/wake/"+mac.String()+"?segment="+url.QueryEscape(segment))
	return err
}

// do makes a request and returns the answer's body.
func (c *Client) do(ctx context.Context, method, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, origin+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.path, err)
	}
	return c.read(resp)
}

// read takes the answer in; one that says that it failed is an error.
func (c *Client) read(resp *http.Response) ([]byte, error) {
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.path, err)
	}
	if resp.StatusCode/100 != 2 {
		return nil, decodeFailure(body)
	}
	return body, nil
}
