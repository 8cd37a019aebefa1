package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
)

// Guests asks for all declared guests.
func (c *Client) Guests(ctx context.Context) ([]Guest, error) {
	var list guestList
	if err := c.ask(ctx, http.MethodGet, "/v1/guests", &list); err != nil {
		return nil, err
	}
	return list.Guests, c.checkSchema(list.Schema)
}

// Start starts a guest and returns when it runs.
func (c *Client) Start(ctx context.Context, name string) error {
	return c.askGuest(ctx, http.MethodPost, name, "start", nil)
}

// Stop asks a guest to shut down, and ends it when it does not. Firm does not
// ask. It returns how the guest ended.
func (c *Client) Stop(ctx context.Context, name string, firm bool) (how string, err error) {
	var e ended
	err = c.askGuest(ctx, http.MethodPost, name, "stop?firm="+strconv.FormatBool(firm), &e)
	return e.How, err
}

// Restart stops a guest, if it runs, and starts it as it is declared now. It
// returns how the guest ended.
func (c *Client) Restart(ctx context.Context, name string) (how string, err error) {
	var e ended
	err = c.askGuest(ctx, http.MethodPost, name, "restart", &e)
	return e.How, err
}

// Reset presses a guest's reset button.
func (c *Client) Reset(ctx context.Context, name string) error {
	return c.askGuest(ctx, http.MethodPost, name, "reset", nil)
}

// Log returns the last lines of a guest's console; 0 lines are all that are kept.
func (c *Client) Log(ctx context.Context, name string, lines int) ([]byte, error) {
	path, err := guestPath(name, "log?lines="+strconv.Itoa(lines))
	if err != nil {
		return nil, err
	}
	return c.do(ctx, http.MethodGet, path)
}

// Screenshot returns a picture of a guest's screen, as PNG.
func (c *Client) Screenshot(ctx context.Context, name string) (png []byte, err error) {
	path, err := guestPath(name, "screenshot")
	if err != nil {
		return nil, err
	}
	return c.do(ctx, http.MethodGet, path)
}

// Console attaches to a guest's console until Close, or the end of ctx or of
// the guest. What it reads begins with what the guest wrote lately. With write
// it may be written to; the error is ErrBusy when somebody else has that part.
func (c *Client) Console(ctx context.Context, name string, write bool) (*Console, error) {
	path, err := guestPath(name, "console?write="+strconv.FormatBool(write))
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, origin+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", consoleProtocol)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.path, err)
	}
	conn, ok := resp.Body.(io.ReadWriteCloser)
	if resp.StatusCode != http.StatusSwitchingProtocols || !ok {
		_, err := c.read(resp)
		if err == nil {
			err = fmt.Errorf("%s: the answer to a request for a console is %s", c.path, resp.Status)
		}
		return nil, err
	}
	past, _ := strconv.Atoi(resp.Header.Get(historyHeader))
	// The context of the request does not close what it was upgraded to.
	return &Console{conn, past, context.AfterFunc(ctx, func() { conn.Close() })}, nil
}

// Console is a connection to a guest's console.
type Console struct {
	io.ReadWriteCloser
	History int // how many of the bytes that are read first are of the past
	forget  func() bool
}

// Close leaves the console.
func (c *Console) Close() error {
	c.forget()
	return c.ReadWriteCloser.Close()
}

// guestPath is where a guest is asked for something. Dots would be taken for
// steps in the path; no guest is called so.
func guestPath(name, what string) (string, error) {
	if name == "" || name == "." || name == ".." {
		return "", fmt.Errorf("guest %q: %w", name, ErrNotFound)
	}
	return "/v1/guests/" + url.PathEscape(name) + "/" + what, nil
}

// askGuest waits for as long as it takes: a guest may need minutes to shut down.
func (c *Client) askGuest(ctx context.Context, method, name, what string, result any) error {
	path, err := guestPath(name, what)
	if err != nil {
		return err
	}
	return c.ask(ctx, method, path, result)
}

// ask makes a request and reads a JSON answer into result, unless that is nil.
func (c *Client) ask(ctx context.Context, method, path string, result any) error {
	body, err := c.do(ctx, method, path)
	if err != nil || result == nil {
		return err
	}
	if err := json.Unmarshal(body, result); err != nil {
		return fmt.Errorf("%s: %w", c.path, err)
	}
	return nil
}
