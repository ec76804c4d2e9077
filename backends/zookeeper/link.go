package zookeeper

import (
	"context"
	"encoding/binary"
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
// takes a connection and then says nothing, and an end: once its session has
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
	w := &wire{Conn: c, link: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		_ = c.Close()
		return nil, net.ErrClosed
	}
	if l.onWatch != nil && l.session.Load() != 0 {
		w.rewatched = make(chan struct{})
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

// wire is the connection to one server as the library uses it.
type wire struct {
	net.Conn
	link  *link
	head  []byte // the handshake's answer, until it is complete
	ready bool

	// After a reconnect the library reads the last zxid that it has seen, to set its watches
	// again from there, while it may already be writing the next. So the first answer is held back until
	// that request has been sent: rewatched is closed then, and nil where there is nothing to
	// wait for. patience bounds it, for there need be no watches.
	rewatched chan struct{}
	sent      bool        // of the writer: rewatched is closed
	asked     atomic.Bool // a request has been sent
	held      bool        // of the reader: hold has been called
}

// Requests as the library sends them, one a Write: length, xid, opcode.
const (
	opAuth       = 100 // answered before anything else is sent
	opSetWatches = 101
	patience     = 100 * time.Millisecond
)

func (w *wire) Write(p []byte) (int, error) {
	if w.rewatched != nil && w.ready && !w.sent && len(p) >= 12 {
		switch binary.BigEndian.Uint32(p[8:]) {
		case opAuth:
		case opSetWatches:
			w.sent = true
			defer close(w.rewatched)
			fallthrough
		default:
			w.asked.Store(true)
		}
	}
	return w.Conn.Write(p)
}

// hold waits for the library to have set its watches again.
func (w *wire) hold() {
	w.held = true
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-w.rewatched:
	case <-timer.C:
	case <-w.link.ctx.Done():
	}
}

// The answer to the connect request: its length, then protocol version,
// time-out in milliseconds and session id, then what is of no interest here.
const handshake = 4 + 4 + 4 + 8

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if w.ready && w.rewatched != nil && !w.held && w.asked.Load() {
		w.hold()
	}
	if !w.ready {
		if err != nil {
			w.link.failure.Store(failure{fmt.Errorf("no answer to the connect request: %w", err)})
		}
		w.head = append(w.head, p[:n]...)
		if err := w.look(); err != nil {
			w.link.failure.Store(failure{err})
			return 0, err
		}
	}
	return n, err
}

// look reads the handshake. The library trusts the length that comes first,
// whoever sent it.
func (w *wire) look() error {
	if len(w.head) < 4 {
		return nil
	}
	if size := binary.BigEndian.Uint32(w.head); size < handshake-4 || size > 1024 {
		return errForeign
	}
	if len(w.head) < handshake {
		return nil
	}
	w.ready = true
	if id := int64(binary.BigEndian.Uint64(w.head[12:])); id != 0 { // 0: expired
		w.link.ttl.Store(int64(time.Duration(binary.BigEndian.Uint32(w.head[8:])) * time.Millisecond))
		w.link.session.Store(id)
	}
	w.head = nil
	return nil
}

// SetReadDeadline shortens what the library allows, which is ten times the session's time-out for the handshake.
func (w *wire) SetReadDeadline(t time.Time) error {
	limit := w.link.quiet
	if !w.ready {
		limit = w.link.cfg.Timeout
	}
	if latest := time.Now().Add(limit); !t.IsZero() && t.After(latest) {
		t = latest
	}
	return w.Conn.SetReadDeadline(t)
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
