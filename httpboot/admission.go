package httpboot

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// How many connections are open at a time, in all and from one address. iPXE
// and firmware use one or two.
const (
	maxConns        = 1024
	maxConnsPerAddr = 32
)

// admission decides which connections stay open. When there are too many, one
// on which nothing is being answered makes room, so that those who open
// connections and say nothing keep nobody out.
type admission struct {
	max, maxPerAddr int
	crowded         func(netip.Addr) // told of each connection closed for want of room

	mu     sync.Mutex
	visits map[net.Conn]*visit
	per    map[netip.Addr]int // visits from each address
	closed bool
	open   int // connections that net/http has, whether or not they may stay
	ended  *sync.Cond
}

// visit is a connection that may stay.
type visit struct {
	conn    net.Conn
	from    netip.Addr
	since   time.Time // when it was opened or its last answer was complete
	serving bool      // a request is being answered
}

func newAdmission(crowded func(netip.Addr)) *admission {
	a := &admission{max: maxConns, maxPerAddr: maxConnsPerAddr, crowded: crowded,
		visits: map[net.Conn]*visit{}, per: map[netip.Addr]int{}}
	a.ended = sync.NewCond(&a.mu)
	return a
}

// listener accepts what the admission lets in. It hands out plain TCP
// connections: net/http sends files with sendfile on those only.
type listener struct {
	net.Listener
	*admission
}

func (l listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil || l.admit(conn) {
			return conn, err
		}
	}
}

// admit makes room for a connection, or closes it.
func (a *admission) admit(conn net.Conn) bool {
	from := addrOf(conn)
	a.mu.Lock()
	ok, victim := a.room(from)
	if victim != nil {
		a.leave(victim)
	}
	if ok {
		a.visits[conn] = &visit{conn: conn, from: from, since: time.Now()}
		a.per[from]++
		a.open++
	}
	a.mu.Unlock()
	if victim != nil {
		hangUp(victim.conn)
		a.crowded(victim.from)
	}
	if !ok {
		hangUp(conn)
		a.crowded(from)
	}
	return ok
}

// room says whether there is room for one more connection from an address, and
// which other one must go for it.
func (a *admission) room(from netip.Addr) (ok bool, victim *visit) {
	switch {
	case a.closed:
		return false, nil
	case a.per[from] >= a.maxPerAddr:
		victim = a.oldest(func(v *visit) bool { return v.from == from && !v.serving })
	case len(a.visits) >= a.max:
		victim = a.oldest(func(v *visit) bool { return !v.serving })
		if victim == nil {
			victim = a.greediest(from)
		}
	default:
		return true, nil
	}
	return victim != nil, victim
}

func (a *admission) oldest(match func(*visit) bool) (found *visit) {
	for _, v := range a.visits {
		if match(v) && (found == nil || v.since.Before(found.since)) {
			found = v
		}
	}
	return found
}

// greediest is a connection of the address that has most, if the newcomer's
// address has fewer even when it gets that one.
func (a *admission) greediest(newcomer netip.Addr) *visit {
	var most netip.Addr
	for addr, n := range a.per {
		if n > a.per[most] {
			most = addr
		}
	}
	if a.per[most] <= a.per[newcomer]+1 {
		return nil
	}
	return a.oldest(func(v *visit) bool { return v.from == most })
}

func (a *admission) leave(v *visit) {
	if a.visits[v.conn] != v {
		return
	}
	delete(a.visits, v.conn)
	if a.per[v.from]--; a.per[v.from] == 0 {
		delete(a.per, v.from)
	}
}

// connState is a hook of http.Server.
func (a *admission) connState(conn net.Conn, state http.ConnState) {
	if state != http.StateClosed {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if v := a.visits[tcpConn(conn)]; v != nil {
		a.leave(v)
	}
	a.open--
	a.ended.Broadcast()
}

type visitKey struct{}

// connContext is a hook of http.Server: a request knows its connection.
func (a *admission) connContext(ctx context.Context, conn net.Conn) context.Context {
	a.mu.Lock()
	defer a.mu.Unlock()
	return context.WithValue(ctx, visitKey{}, a.visits[tcpConn(conn)])
}

// answer notes that a request is being answered, until done is called.
func (a *admission) answer(r *http.Request) (done func()) {
	v, _ := r.Context().Value(visitKey{}).(*visit)
	if v == nil {
		return func() {}
	}
	set := func(serving bool) {
		a.mu.Lock()
		defer a.mu.Unlock()
		v.serving, v.since = serving, time.Now()
	}
	set(true)
	return func() { set(false) }
}

// close lets nobody in any more, hangs up on everybody and returns when all
// answers have ended.
func (a *admission) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	for conn := range a.visits {
		conn.Close()
	}
	for a.open > 0 {
		a.ended.Wait()
	}
}

// hangUp closes a connection and has the kernel forget it at once.
func hangUp(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}

// tcpConn is the connection below TLS.
func tcpConn(conn net.Conn) net.Conn {
	if over, ok := conn.(interface{ NetConn() net.Conn }); ok {
		return over.NetConn()
	}
	return conn
}

func addrOf(conn net.Conn) netip.Addr {
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
