//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	attemptTimeout = 3 * time.Second
	firstPause     = 100 * time.Millisecond
	longestPause   = 2 * time.Second
)

// report posts {"stage":"userland","uptime_ms":…} to target, again after growing
// pauses while nobody answers or the answer is 5xx, until ctx ends.
func report(ctx context.Context, target string, uptime time.Duration) error {
	u, err := url.Parse(target)
	if err != nil {
		return err
	}
	if u.Scheme != "http" || u.Host == "" {
		return fmt.Errorf("%q is not an http:// address", target)
	}
	body := fmt.Sprintf(`{"stage":"userland","uptime_ms":%d}`, uptime.Milliseconds())
	var failed error
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		status, err := post(ctx, u, body)
		switch {
		case err == nil && status/100 == 2:
			return nil
		case err == nil:
			err = fmt.Errorf("%s answered %d", u.Host, status)
			if status/100 != 5 {
				return err
			}
		}
		if failed == nil || !timeIsUp(ctx) {
			failed = err // unless it only says that time is up
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return failed
		}
	}
}

// timeIsUp looks at the clock too: a connection's deadline, which is ctx's, may
// fire a moment before ctx itself knows.
func timeIsUp(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && !time.Now().Before(deadline)
}

// post does one HTTP/1.0 exchange and returns the status code. Package net/http
// would do the same with TLS, HTTP/2 and 5 MB more for the machine to load
// before its first line on the console.
func post(ctx context.Context, u *url.URL, body string) (status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	host := u.Host
	if u.Port() == "" {
		host = net.JoinHostPort(u.Hostname(), "80")
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", host)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return 0, err
		}
	}
	if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.0\r\nHost: %s\r\nUser-Agent: ecboot-guest\r\n"+
		"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		u.RequestURI(), u.Host, len(body), body); err != nil {
		return 0, err
	}
	line, err := textproto.NewReader(bufio.NewReader(conn)).ReadLine()
	if err != nil {
		return 0, err
	}
	return parseStatus(line)
}

// parseStatus reads "HTTP/1.0 204 No Content" (RFC 9112 section 4).
func parseStatus(line string) (int, error) {
	version, rest, ok := strings.Cut(line, " ")
	code, _, _ := strings.Cut(rest, " ")
	status, err := strconv.Atoi(code)
	if !ok || !strings.HasPrefix(version, "HTTP/") || err != nil || len(code) != 3 {
		return 0, errors.New("the answer is not HTTP")
	}
	return status, nil
}
