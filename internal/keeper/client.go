package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/every-channel/ecboot/internal/nspawn"
	"github.com/every-channel/ecboot/internal/timeline"
)

const (
	askTimeout   = 10 * time.Second // for what a keeper answers at once
	killPatience = 10 * time.Second // for a guest to be gone that was killed
	maxAnswer    = 128 << 20        // bytes
)

// Client talks to a keeper. All methods may be called at the same time.
type Client struct {
	dir    string
	plan   Plan
	keeper *os.File // pidfd
	http   *http.Client
	done   chan struct{}
	exit   Exit // valid once done is closed
}

// newClient takes over the pidfds; guest may be nil.
func newClient(dir string, plan Plan, keeper, guest *os.File) *Client {
	c := &Client{dir: dir, plan: plan, keeper: keeper, done: make(chan struct{})}
	c.http = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (conn net.Conn, err error) {
			err = inDir(dir, func(short string) error {
				var d net.Dialer
				conn, err = d.DialContext(ctx, "unix", filepath.Join(short, socketName))
				return err
			})
			return conn, err
		},
	}}
	go c.watch(guest)
	return c
}

// watch waits for the keeper's end, and for its guest's: one that is killed with
// its keeper still holds its disks for a moment.
func (c *Client) watch(guest *os.File) {
	_ = awaitEnd(c.keeper)
	if guest != nil {
		_ = guest.SetReadDeadline(time.Now().Add(killPatience))
		_ = awaitEnd(guest)
		guest.Close()
	}
	if c.plan.Container != nil {
		nspawn.Sweep(c.plan.Cgroup)
	}
	c.exit = readExit(c.dir)
	close(c.done)
	c.keeper.Close() // who may still want to signal it knows by done
}

// Plan is what the keeper was told to run.
func (c *Client) Plan() Plan { return c.plan }

// Done is closed when the keeper has ended, and its guest with it.
func (c *Client) Done() <-chan struct{} { return c.done }

// Exit waits for the end and tells how it came.
func (c *Client) Exit() Exit {
	<-c.done
	return c.exit
}

// Forget removes what the keeper has left. It must have ended.
func (c *Client) Forget() error { return forget(c.dir) }

// Status asks what the guest does.
func (c *Client) Status(ctx context.Context) (st Status, err error) {
	if err := c.ask(ctx, http.MethodGet, "/v1/status", &st); err != nil {
		return st, err
	}
	if st.Schema > Schema {
		return st, fmt.Errorf("the keeper of %s is of a newer ecboot (schema %d, and this one knows %d): use that one", c.plan.Name, st.Schema, Schema)
	}
	return st, nil
}

// Stop asks the guest to end and ends it when it does not, after Plan.Grace. It
// returns when keeper and guest are gone, and says what it took. When ctx is done
// it only stops waiting: see Kill. Who stops a guest that is being stopped waits
// with whoever was first.
func (c *Client) Stop(ctx context.Context) (how string, err error) {
	var a stopAnswer
	err = c.call(ctx, http.MethodPost, "/v1/stop", &a)
	if err != nil && ctx.Err() == nil && !closed(c.done) {
		// One that cannot be talked to may still hear this.
		_ = signalProcess(c.keeper, syscall.SIGINT)
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	switch {
	case a.How != "":
		return a.How, nil
	case c.exit.How != "":
		return c.exit.How, nil
	}
	return hadEnded, nil
}

// Kill ends the guest at once, and returns when keeper and guest are gone or ctx
// is done. A keeper that does not obey is killed itself.
func (c *Client) Kill(ctx context.Context) error {
	patience, cancel := context.WithTimeout(ctx, killPatience)
	defer cancel()
	if c.call(patience, http.MethodPost, "/v1/kill", nil) == nil {
		select {
		case <-c.done:
			return nil
		case <-patience.Done():
		}
	}
	if ctx.Err() == nil && !closed(c.done) {
		if err := signalProcess(c.keeper, syscall.SIGKILL); err != nil && !closed(c.done) && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill the keeper of %s: %w", c.plan.Name, err)
		}
	}
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Reset presses the machine's reset button.
func (c *Client) Reset(ctx context.Context) error {
	return c.ask(ctx, http.MethodPost, "/v1/reset", nil)
}

// Screenshot returns what the machine's screen shows, as PNG.
func (c *Client) Screenshot(ctx context.Context) (png []byte, err error) {
	err = c.ask(ctx, http.MethodGet, "/v1/screenshot", &png)
	return png, err
}

// Log returns the last lines of text on the console, those of earlier runs
// included if the plan has a log; 0 are all that are kept.
func (c *Client) Log(ctx context.Context, lines int) (text []byte, err error) {
	if c.plan.LogFile != "" {
		return ReadLog(c.plan.LogFile, lines)
	}
	err = c.ask(ctx, http.MethodGet, "/v1/log?lines="+strconv.Itoa(lines), &text)
	return text, err
}

// Events calls fn with each event of the guest's timeline, from the first one
// on, and returns when there will be no more or ctx is done.
func (c *Client) Events(ctx context.Context, fn func(timeline.Event)) error {
	resp, err := c.open(ctx, http.MethodGet, "/v1/events", "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for d := json.NewDecoder(resp.Body); ; {
		var e timeline.Event
		err := d.Decode(&e)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
			return nil // the keeper was killed
		case err != nil:
			return fmt.Errorf("events of %s: %w", c.plan.Name, err)
		}
		fn(e)
	}
}

// Console attaches to the console: reading gives its last 64 KiB, then what
// comes, and io.EOF when the guest has ended. With write it also takes input,
// and is ErrBusy while another one does. A reader that is too slow misses some
// of the output and is told so in its place. ctx is for attaching. What is
// returned has a method History() int, the number of bytes that are of the past.
func (c *Client) Console(ctx context.Context, write bool) (io.ReadWriteCloser, error) {
	path := "/v1/console"
	if write {
		path += "?write=1"
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	resp, err := c.open(ctx, http.MethodGet, path, protocol)
	if err != nil {
		return nil, err
	}
	conn, ok := resp.Body.(io.ReadWriteCloser)
	if resp.StatusCode != http.StatusSwitchingProtocols || !ok {
		resp.Body.Close()
		return nil, fmt.Errorf("the keeper of %s does not hand out its console", c.plan.Name)
	}
	past, _ := strconv.Atoi(resp.Header.Get(historyHeader))
	return &console{conn, past}, nil
}

// console is a connection to a console.
type console struct {
	io.ReadWriteCloser
	history int
}

// History is how many of the bytes that are read first are of the past.
func (c *console) History() int { return c.history }

// ask is call for what is answered at once.
func (c *Client) ask(ctx context.Context, method, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return c.call(ctx, method, path, into)
}

// call reads the answer into a *[]byte as it is, or as JSON, or not at all.
func (c *Client) call(ctx context.Context, method, path string, into any) error {
	resp, err := c.open(ctx, method, path, "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("keeper of %s: %w", c.plan.Name, err)
	}
	switch into := into.(type) {
	case nil:
	case *[]byte:
		*into = body
	default:
		if err := json.Unmarshal(body, into); err != nil {
			return fmt.Errorf("keeper of %s: %w", c.plan.Name, err)
		}
	}
	return nil
}

// open returns an answer that is none of a failure; its body is open.
func (c *Client) open(ctx context.Context, method, path, upgrade string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://keeper"+path, nil)
	if err != nil {
		return nil, err
	}
	if upgrade != "" {
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", upgrade)
	}
	resp, err := c.http.Do(req)
	switch {
	case err != nil && closed(c.done):
		return nil, fmt.Errorf("%s has ended: %s", c.plan.Name, c.exit)
	case err != nil && ctx.Err() != nil:
		return nil, fmt.Errorf("the keeper of %s does not answer: %w", c.plan.Name, context.Cause(ctx))
	case err != nil:
		return nil, fmt.Errorf("keeper of %s: %w", c.plan.Name, err)
	case resp.StatusCode < 300:
		return resp, nil
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusLocked:
		return nil, ErrBusy
	case http.StatusNotFound, http.StatusMethodNotAllowed:
		return nil, fmt.Errorf("the keeper of %s is of another version of ecboot, which cannot do this: restart the guest", c.plan.Name)
	}
	var f failure
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if json.Unmarshal(body, &f) != nil || f.Error == "" {
		f.Error = resp.Status
	}
	return nil, errors.New(f.Error)
}
