package zookeeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-zookeeper/zk"

	"lockfs/backends"
	"lockfs/config"
)

// link is a connection with a ZooKeeper session of its own. It reconnects by
// itself, to any server of the ensemble, for as long as the ensemble keeps the session.
//
// It adds to the library what that does not tell or bound: the negotiated
// time-out (read from the handshake as it passes), limits for a server that
// takes a connection and then says nothing, the account of what it has seen of the server's
// transactions (see wire), and an end: once its session has
// expired the library would go on under a new one, with the old one's requests; a
// link never does.
type link struct {
	conn    *zk.Conn
	cfg     config.ZooKeeper
	log     *slog.Logger
	quiet   time.Duration // a connection is given up when the server is silent for so long
	onState func(up bool)
	onWatch func(zk.Event)

	session atomic.Int64 // the session's id
	ttl     atomic.Int64 // the negotiated time-out, a time.Duration
	seen    atomic.Int64 // the zxid of the last answer
	expired atomic.Bool
	failure atomic.Value // the last connection failure, a failure

	up      chan struct{} // closed when the session was there for the first time
	upOnce  sync.Once
	ctx     context.Context // ends with close
	cancel  context.CancelFunc
	calls   sync.WaitGroup
	mu      sync.Mutex
	closed  bool
	sock    net.Conn
	expiry  chan struct{} // closed when the server says that the session has expired
	expOnce sync.Once
	events  <-chan zk.Event
}

type failure struct{ err error }

// errForeign: what came back is not ZooKeeper's protocol.
var errForeign = errors.New("does not speak ZooKeeper's protocol")

// newLink starts connecting. onState and onWatch are called from the link's own
// goroutines, in the order of the server's messages, and must not block; they may be nil.
func newLink(cfg config.ZooKeeper, ttl, quiet time.Duration, log *slog.Logger, onState func(bool), onWatch func(zk.Event)) (*link, error) {
	ctx, cancel := context.WithCancel(context.Background())
	l := &link{cfg: cfg, log: log, quiet: quiet, onState: onState, onWatch: onWatch,
		up: make(chan struct{}), ctx: ctx, cancel: cancel, expiry: make(chan struct{})}
	conn, events, err := zk.Connect(cfg.Hosts, ttl, zk.WithDialer(l.dial), zk.WithHostProvider(&hosts{}),
		zk.WithLogger(libraryLog{log}), zk.WithEventCallback(l.event))
	if err != nil {
		cancel()
		return nil, err
	}
	l.conn, l.events = conn, events
	if cfg.Username != "" {
		l.calls.Go(l.authenticate)
	}
	return l, nil
}

// authenticate gives the library the credentials, which it repeats by itself at each reconnect.
func (l *link) authenticate() {
	for l.ctx.Err() == nil {
		err := l.conn.AddAuth("digest", []byte(l.cfg.Username+":"+l.cfg.Password))
		if err == nil || errors.Is(err, zk.ErrAuthFailed) {
			return
		}
		pause(l.ctx, 20*time.Millisecond)
	}
}

func (l *link) dial(network, address string, _ time.Duration) (net.Conn, error) {
	if l.expired.Load() {
		return nil, zk.ErrSessionExpired
	}
	dialer := net.Dialer{Timeout: l.cfg.Timeout}
	c, err := dialer.DialContext(l.ctx, network, address)
	if err != nil {
		l.failure.Store(failure{err})
		return nil, err
	}
	w := &wire{Conn: c, link: l, since: l.seen.Load()}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		_ = c.Close()
		return nil, net.ErrClosed
	}
	l.sock = w
	return w, nil
}

// event is the library's callback for everything that the server says on its own.
func (l *link) event(e zk.Event) {
	switch {
	case e.Type == zk.EventNotWatching:
	case e.Type != zk.EventSession:
		if l.onWatch != nil {
			l.onWatch(e)
		}
	case e.State == zk.StateExpired:
		l.expired.Store(true)
		l.expOnce.Do(func() { close(l.expiry) })
	case e.State == zk.StateHasSession:
		l.upOnce.Do(func() { close(l.up) })
		if l.onState != nil {
			l.onState(true)
		}
	case e.State == zk.StateDisconnected:
		if l.onState != nil {
			l.onState(false)
		}
	}
}

// wait waits for the session.
func (l *link) wait(ctx context.Context) error {
	select {
	case <-l.up:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// lastFailure says why there is no connection, as far as is known.
func (l *link) lastFailure() error {
	if f, ok := l.failure.Load().(failure); ok {
		return f.err
	}
	return nil
}

// call runs f, which makes requests of the library, and returns when it or
// ctx has ended. f's results must not be looked at when call returns an error of ctx.
func (l *link) call(ctx context.Context, f func() error) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	done := make(chan error, 1)
	if !l.run(func() { done <- f() }) {
		return zk.ErrClosing
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// run starts a goroutine that close waits for; it returns false after close.
func (l *link) run(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.calls.Go(f)
	return true
}

// close says goodbye to the server, as far as it can be reached, and returns when all of the link's
// goroutines have ended. The library bounds it to a few seconds.
func (l *link) close() {
	l.mu.Lock()
	first := !l.closed
	l.closed = true
	l.mu.Unlock()
	if first {
		if l.expired.Load() {
			l.hangUp() // there is nobody to say goodbye to
		}
		l.conn.Close()
		l.cancel()
		l.hangUp()
	}
	l.calls.Wait()
	for range l.events { // the library closes it when its goroutines have ended
	}
}

// hangUp breaks the connection.
func (l *link) hangUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sock != nil {
		_ = l.sock.Close()
	}
}

// hosts is the list of servers. Unlike the library's own it looks up names anew at each
// connect, and after a lost connection tries all of them before the library's pause of a second.
type hosts struct {
	list  []string
	tried int
	next  int
}

func (h *hosts) Init(servers []string) error { h.list = servers; return nil }
func (h *hosts) Len() int                    { return len(h.list) }
func (h *hosts) Connected()                  { h.tried = 0 }
func (h *hosts) Next() (server string, retryStart bool) {
	server = h.list[h.next%len(h.list)]
	retryStart = h.tried > 0 && h.tried%len(h.list) == 0
	h.next++
	h.tried++
	return server, retryStart
}

// libraryLog takes the library's own log.
type libraryLog struct{ log *slog.Logger }

func (l libraryLog) Printf(format string, args ...any) {
	l.log.Debug("zookeeper client: " + strings.TrimSpace(fmt.Sprintf(format, args...)))
}

// transient reports whether an error leaves open if the request was or will be
// carried out: it says something about the connection, not about the request.
func transient(err error) bool {
	for _, definite := range []error{nil, zk.ErrNoNode, zk.ErrNodeExists, zk.ErrBadVersion, zk.ErrNotEmpty, zk.ErrNoAuth,
		zk.ErrAuthFailed, zk.ErrInvalidACL, zk.ErrInvalidPath, zk.ErrBadArguments, zk.ErrNoChildrenForEphemerals,
		zk.ErrInvalidFlags, zk.ErrSessionExpired, zk.ErrReconfigDisabled,
		backends.ErrNotExist, backends.ErrExist, backends.ErrNotDir, backends.ErrIsDir, backends.ErrNotEmpty,
		backends.ErrTooLarge, backends.ErrCrossDevice, backends.ErrForeign, errAgain} {
		if errors.Is(err, definite) {
			return false
		}
	}
	return true
}

// kinded gives a library's error its kind.
func kinded(err error) error {
	switch {
	case errors.Is(err, zk.ErrNoAuth), errors.Is(err, zk.ErrAuthFailed), errors.Is(err, zk.ErrInvalidACL):
		return fmt.Errorf("%w: %w (check username and password, and who owns the znodes)", backends.ErrRefused, err)
	case errors.Is(err, zk.ErrNoNode), errors.Is(err, zk.ErrInvalidPath), errors.Is(err, zk.ErrNotEmpty):
		return fmt.Errorf("%w: %w", backends.ErrForeign, err)
	case errors.Is(err, zk.ErrSessionExpired):
		return fmt.Errorf("%w: %w", backends.ErrUnavailable, err)
	}
	return err
}

// pause sleeps, at most until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
