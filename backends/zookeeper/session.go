package zookeeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"

	"lockfs/backends"
	"lockfs/backends/lease"
)

// session is a node's presence: a ZooKeeper session of its own.
//
// s.mu guards everything in it and in its groups that changes; no request is
// made with it held. Every goroutine of it is counted in work or is the link's, and ends when
// ctx does.
type session struct {
	b     *Backend
	link  *link
	id    string
	log   *slog.Logger
	lease *lease.Lease
	delay time.Duration // the lock delay

	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup
	done   chan struct{}
	ended  chan struct{} // closed when nothing of the session runs any more
	events chan backends.Event
	more   chan struct{} // 1 buffered: pending holds something

	mu      sync.Mutex
	over    bool
	err     error
	gone    bool              // Close has seen that the server has forgotten the session
	groups  map[string]*group // by the name of the lock's directory
	lastID  uint64
	pending []backends.Event
	wasUp   bool
	mourned map[string]bool // paths of the markers that wait for their delay's end
}

// Open starts a session.
func (b *Backend) Open(ctx context.Context, options backends.SessionOptions) (backends.Session, error) {
	s := &session{b: b, log: options.Log, done: make(chan struct{}), ended: make(chan struct{}),
		events: make(chan backends.Event), more: make(chan struct{}, 1), groups: map[string]*group{}, delay: options.LockDelay, mourned: map[string]bool{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	err := s.start(ctx, options)
	if err == nil {
		return s, nil
	}
	s.end(err)
	b.mu.Lock()
	if !b.closed {
		b.old.Go(func() { <-s.ended })
	}
	b.mu.Unlock()
	return nil, fmt.Errorf("opening a session on %s: %w", b, err)
}

func (s *session) start(ctx context.Context, options backends.SessionOptions) error {
	ttl := options.TTL
	var err error
	// Three renewals without an answer in a row: the connection is dead. That leaves time for another server.
	s.link, err = newLink(s.b.cfg, ttl, max(ttl*2/5, 300*time.Millisecond), s.log, s.onState, s.onWatch)
	if err != nil {
		return fmt.Errorf("%w: %w", backends.ErrUnavailable, err)
	}
	limit, cancel := context.WithTimeoutCause(ctx, s.b.cfg.Timeout, backends.ErrUnavailable)
	defer cancel()
	if err := s.link.wait(limit); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return s.b.diagnose(ctx, s.link)
	}
	s.id = fmt.Sprintf("%016x", uint64(s.link.session.Load()))
	if granted := time.Duration(s.link.ttl.Load()); granted < ttl {
		s.log.Warn("ZooKeeper grants a shorter session than asked for", "asked", ttl, "granted", granted)
		ttl = granted
	}
	sent := lease.Now()
	err = s.link.call(limit, func() error { return s.announce(options.Node) })
	if err != nil {
		return kinded(err)
	}
	s.lease = lease.New(ttl*3/4, sent) // see the package comment
	s.work.Go(func() { s.keep(options.Node) })
	s.work.Go(s.pump)
	return nil
}

// announce creates the session's own znode. The leader and a majority have to carry it out, so it renews the lease too.
func (s *session) announce(node string) error {
	for {
		_, err := s.link.conn.Create(s.b.sessionNode(s.id), []byte(node), zk.FlagEphemeral, s.b.acl)
		if err == nil || errors.Is(err, zk.ErrNodeExists) {
			return nil
		}
		if !transient(err) || s.ctx.Err() != nil {
			return fmt.Errorf("znode %s: %w", s.b.sessionNode(s.id), err)
		}
		pause(s.ctx, 20*time.Millisecond)
	}
}

// keep renews the lease until the session is over, by writing the node's name again: see the package comment.
func (s *session) keep(node string) {
	s.work.Go(func() {
		select {
		case <-s.link.expiry:
			s.end(fmt.Errorf("ZooKeeper has expired the session %s: %w", s.id, backends.ErrSessionOver))
		case <-s.ctx.Done():
		}
	})
	renew := func(ctx context.Context) error {
		err := s.link.call(ctx, func() error {
			sent := lease.Now()
			_, err := s.link.conn.Set(s.b.sessionNode(s.id), []byte(node), -1)
			if err == nil {
				s.lease.Renewed(sent) // it counts also where nobody waits for it any more: a disk may be slow
			}
			return err
		})
		if errors.Is(err, zk.ErrSessionExpired) || errors.Is(err, zk.ErrNoNode) {
			return fmt.Errorf("%w: %w", backends.ErrSessionOver, err)
		}
		return err
	}
	failed := func(err error) {
		s.log.Warn("lease not renewed, trying again", "backend", s.b.String(), "session", s.id, "left", s.lease.Left(), "error", err)
	}
	if err := s.lease.Keep(s.ctx, renew, failed); err != nil {
		s.end(fmt.Errorf("session %s: %w", s.id, err))
	}
}

// end ends the session: err is nil when it was closed. It does not wait.
func (s *session) end(err error) {
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return
	}
	s.over, s.err = true, err
	s.mu.Unlock()
	if s.lease != nil {
		s.lease.End()
	}
	s.cancel()
	close(s.done)
	go func() {
		if s.link != nil {
			s.link.close()
		}
		s.work.Wait()
		close(s.ended)
	}()
}

// start a goroutine that the session waits for when it ends; s.mu is held. False when the session is over.
func (s *session) goLocked(f func()) bool {
	if !s.over {
		s.work.Go(f)
	}
	return !s.over
}

// ID returns ZooKeeper's id of the session.
func (s *session) ID() string { return s.id }

// Events delivers what other nodes want.
func (s *session) Events() <-chan backends.Event { return s.events }

// Valid reports whether the lease holds.
func (s *session) Valid() bool { return s.lease.Valid() }

// Deadline is when the lease ends if it is not renewed.
func (s *session) Deadline() time.Duration { return s.lease.Deadline() }

// Done is closed when the session is over.
func (s *session) Done() <-chan struct{} { return s.done }

// Err says why the session is over.
func (s *session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// overError is what methods return when the session is over.
func (s *session) overError() error {
	if err := s.Err(); err != nil {
		return err
	}
	return fmt.Errorf("session %s was closed: %w", s.id, backends.ErrSessionOver)
}

// Close ends the ZooKeeper session, at which the server deletes all of its znodes, and makes sure of it.
func (s *session) Close(ctx context.Context) error {
	s.end(nil)
	select {
	case <-s.ended:
	case <-ctx.Done():
		return fmt.Errorf("closing session %s: %w", s.id, context.Cause(ctx))
	}
	s.mu.Lock()
	gone := s.gone
	s.mu.Unlock()
	if gone {
		return nil
	}
	if err := s.b.forgotten(ctx, s.id); err != nil {
		return fmt.Errorf("closing session %s: %w; its claims last until its lease ends", s.id, err)
	}
	if s.Err() != nil {
		return nil // it was lost, and the lock delay stands
	}
	if err := s.unmarkAll(ctx); err != nil {
		return fmt.Errorf("closing session %s: %w; its locks stay closed for the lock delay", s.id, err)
	}
	s.mu.Lock()
	s.gone = true
	s.mu.Unlock()
	return nil
}

// forgotten waits until the server has no session of this id.
func (b *Backend) forgotten(ctx context.Context, id string) error {
	for {
		there := false
		err := b.retry(ctx, func(c *zk.Conn) error {
			if _, err := c.Sync(b.sessionNode(id)); err != nil {
				return err
			}
			yes, _, err := c.Exists(b.sessionNode(id))
			there = yes
			return err
		})
		if err != nil || !there {
			return err
		}
		if pause(ctx, 50*time.Millisecond); ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// onState is told of lost and restored connections.
func (s *session) onState(up bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	again := up && s.wasUp
	s.wasUp = s.wasUp || up
	if !again {
		return
	}
	// The library sets its watches again, and the server fires those that it missed. This
	// is for what neither knows of: a request for a watch whose answer was lost.
	for _, g := range s.groups {
		if g.inState(waiting) {
			g.kick()
		}
	}
	s.push(backends.Event{Seq: math.MaxUint64})
}

// push queues an event, merging it with one of the same name; s.mu is held.
func (s *session) push(ev backends.Event) {
	for i := range s.pending {
		if s.pending[i].Name == ev.Name {
			s.pending[i].Seq = max(s.pending[i].Seq, ev.Seq)
			return
		}
	}
	s.pending = append(s.pending, ev)
	select {
	case s.more <- struct{}{}:
	default:
	}
}

// pump hands events to who reads them, without ever making s.mu's holders wait.
func (s *session) pump() {
	for {
		select {
		case <-s.more:
		case <-s.ctx.Done():
			return
		}
		s.mu.Lock()
		batch := s.pending
		s.pending = nil
		s.mu.Unlock()
		for _, ev := range batch {
			select {
			case s.events <- ev:
			case <-s.ctx.Done():
				return
			}
		}
	}
}

// newID returns an id for a claim, unique within the session; s.mu is held.
func (s *session) newID() string {
	s.lastID++
	return strconv.FormatUint(s.lastID, 36)
}

// claimID is the claim's id within the cluster.
func claimID(session, id string) string { return session + "." + id }

// insist makes requests until they are answered or the session is over. It is for
// the session's own goroutines.
func (s *session) insist(f func(c *zk.Conn) error) error {
	for {
		err := f(s.link.conn)
		switch {
		case s.ctx.Err() != nil, errors.Is(err, zk.ErrSessionExpired):
			return backends.ErrSessionOver
		case err == nil || !transient(err):
			return err
		}
		pause(s.ctx, 20*time.Millisecond)
	}
}

// insistOnce is insist for what must not be repeated without another look: one
// attempt, after which the caller looks. A failed attempt is followed by a pause.
func (s *session) insistOnce(f func(c *zk.Conn) error) error {
	err := f(s.link.conn)
	if err != nil && transient(err) {
		pause(s.ctx, 20*time.Millisecond)
	}
	return err
}
