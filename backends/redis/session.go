package redis

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"lockfs/backends"
	"lockfs/backends/lease"
)

// recheckEvery is how often a session asks what became of its requests
// although nothing says that a message was lost.
const recheckEvery = time.Minute

// session is a lease at the server, kept by one goroutine; one listens to its
// channel, one hands out its events, one waits for others' leases to end.
// All of them, and its requests, run on its crew and end with ctx.
type session struct {
	b     *Backend
	id    string
	ttl   time.Duration
	delay time.Duration // the lock delay
	log   *slog.Logger
	lease *lease.Lease
	crew  *crew
	box   *mailbox

	// ctx is the session's life; done is closed after err is set.
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}

	numbers atomic.Uint64 // of requests and claims
	beat    atomic.Uint64 // the last renewal that was answered
	echo    atomic.Uint64 // the last renewal that came back on the channel
	checked time.Time     // of the renewing goroutine: the last recheck
	// reapWake says that reapAt, when to look for the dead, came closer.
	reapWake chan struct{}

	mu      sync.Mutex
	over    bool
	err     error
	waiters map[string]*waiter // by id, those without an outcome
	// confirmed counts the subscriptions: messages that were sent before the
	// last may be lost.
	confirmed uint64
	channel   *goredis.PubSub
	joined    bool // it listens to what is told all sessions
	// epoch is the one in which the server knows what the session has; "" while
	// that is being said: no request is sent then. news is closed when it is known again.
	epoch string
	news  chan struct{}
	// said is the epoch for which the session last wrote down what it has.
	said   string
	claims map[uint64]*held // what callers have been told of and not given up, by number
	reapAt time.Time        // zero: not before a heartbeat says so
}

var (
	_ backends.Session = (*session)(nil)
	_ backends.Prompt  = (*session)(nil)
	_ backends.Bulk    = (*session)(nil)
	_ backends.Quiet   = (*session)(nil)
)

func newSession(b *Backend, options backends.SessionOptions) *session {
	s := &session{
		b: b, id: newID(options.Node), ttl: options.TTL, delay: options.LockDelay, log: options.Log, crew: newCrew(), box: newMailbox(),
		done: make(chan struct{}), reapWake: make(chan struct{}, 1), waiters: map[string]*waiter{}, claims: map[uint64]*held{},
		news: make(chan struct{}), checked: time.Now(),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.log = s.log.With("session", s.id)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// start returns when the server knows the session and its channel is open.
func (s *session) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*s.b.timeout, fmt.Errorf("%w: no answer within %v", backends.ErrUnavailable, 2*s.b.timeout))
	defer cancel()
	ready := make(chan error, 1)
	s.crew.do(func() { s.listen(ready) })
	select {
	case err := <-ready:
		if err != nil {
			return withWayOut(err)
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	s.b.saw(0, s.ttl+s.delay)
	sent := lease.Now()
	a, err := detach(ctx, s.crew, nil, func() (answer, error) {
		return s.b.eval(s.ctx, s.b.beats, openScript, s.who(noEpoch, s.ttl.Milliseconds(),
			s.b.hold.Load()/int64(time.Millisecond), newEpochID(), s.b.stamp.Load(), s.delay.Milliseconds())...)
	})
	if err != nil {
		return withWayOut(err)
	}
	s.opened(a, sent)
	s.crew.do(s.keep)
	s.crew.do(s.reap)
	s.crew.do(func() { s.box.run(s.ctx) })
	return nil
}

// opened takes the answer of the open script to a request sent at sent.
func (s *session) opened(a answer, sent time.Duration) {
	if left := time.Duration(a.number(2)) * time.Millisecond; left > 0 {
		s.log.Warn("the server is new, or may have forgotten who holds which lock: no locks are granted until those who hold some have had the time to say so",
			"backend", s.b.where, "left", left)
	}
	s.lease = lease.New(s.ttl, sent)
	s.mu.Lock()
	s.epoch, s.said, s.joined = a.text(0), a.text(0), true
	channel := s.channel
	s.mu.Unlock()
	s.reapSoon(time.Duration(a.number(1)) * time.Millisecond)
	// Where that fails, the connection is broken, and listen makes another one.
	_ = channel.Subscribe(s.ctx, s.b.keys[0]+toAll)
}

// keep renews the lease until the session is over.
func (s *session) keep() {
	err := s.lease.Keep(s.ctx, s.renew, func(err error) {
		s.log.Warn("the lease could not be renewed", "backend", s.b.where, "left", s.lease.Left(), "error", err)
	})
	if err != nil {
		s.end(err)
	}
}

// renew is one heartbeat: one script call, however many locks there are.
func (s *session) renew(ctx context.Context) error {
	// The last one's echo has had a whole interval to come.
	deaf := s.echo.Load() < s.beat.Load()
	if s.b.guide != nil {
		s.b.guide.look()
	}
	n := s.beat.Load() + 1
	epoch, err := s.known(ctx)
	var a answer
	if err == nil {
		a, err = s.b.eval(ctx, s.b.beats, renewScript, s.who(epoch, s.ttl.Milliseconds(), n)...)
	}
	switch {
	case err != nil:
		return fmt.Errorf("renewing the lease at %s: %w", s.b.where, err)
	case a.outcome == "over":
		return errUnknown(s.b.where)
	case a.outcome == "new":
		s.forgotten(epoch)
		return fmt.Errorf("renewing the lease at %s: %w: it has started anew or was replaced", s.b.where, backends.ErrUnavailable)
	}
	s.beat.Store(n)
	s.b.saw(uint64(a.number(3)), time.Duration(a.number(2))*time.Millisecond)
	if deaf || a.number(0) == 0 {
		s.log.Warn("no messages arrive; subscribing anew", "backend", s.b.where)
		s.crew.do(s.unlisten)
	}
	s.reapSoon(time.Duration(a.number(1)) * time.Millisecond)
	if time.Since(s.checked) >= recheckEvery {
		s.checked = time.Now()
		s.crew.do(s.recheckAll)
	}
	return nil
}

func errUnknown(where string) error {
	return fmt.Errorf("%s does not know the session any more: %w", where, backends.ErrSessionOver)
}

// reapSoon says when the next lease of any session ends; what has ended
// already is negative.
func (s *session) reapSoon(in time.Duration) {
	if in > s.lease.Interval() {
		return // the next heartbeat will know better
	}
	// Spread, for all sessions wake for the same death.
	at := time.Now().Add(max(in, 0) + time.Millisecond + rand.N(100*time.Millisecond))
	s.mu.Lock()
	sooner := s.reapAt.IsZero() || at.Before(s.reapAt)
	if sooner {
		s.reapAt = at
	}
	s.mu.Unlock()
	if sooner {
		select {
		case s.reapWake <- struct{}{}:
		default: // it will see the time anyway
		}
	}
}

// reap clears dead sessions away at the moment when their lease ends, so
// that those who wait for them need not ask. Where all leases are of one
// length, it does nothing while everybody renews.
func (s *session) reap() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-s.reapWake:
		case <-timer.C:
			s.setReapAt(time.Time{})
			s.reapSoon(s.reapOnce())
		case <-s.ctx.Done():
			return
		}
		if at := s.nextReap(); !at.IsZero() {
			timer.Reset(time.Until(at))
		}
	}
}

func (s *session) setReapAt(at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reapAt = at
}

func (s *session) nextReap() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reapAt
}

// reapOnce returns when the next lease of any session ends.
func (s *session) reapOnce() time.Duration {
	for {
		a, err := s.b.eval(s.ctx, s.b.client, reapScript, s.who(noEpoch, "dead")...)
		if err != nil {
			return longPause
		}
		if a.number(0) == 0 {
			return time.Duration(a.number(1)) * time.Millisecond
		}
		// A bounded piece of the work was done.
	}
}

// end makes the session be over: no claim of it counts any more here.
func (s *session) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	s.over, s.err = true, err
	if s.lease != nil {
		s.lease.End()
	}
	close(s.done)
	s.cancel()
	s.crew.close()
	clear(s.waiters) // their callers see done
	clear(s.claims)
}

// overError is what methods return when the session is over.
func (s *session) overError() error {
	if err := s.Err(); err != nil {
		return err
	}
	return fmt.Errorf("session %s is closed: %w", s.id, backends.ErrSessionOver)
}

// ID, Events, Valid, Done and Err are as backends.Session says.

func (s *session) ID() string                    { return s.id }
func (s *session) RelabelsQuietly()              {} // as backends.Quiet says
func (s *session) Events() <-chan backends.Event { return s.box.out }
func (s *session) Valid() bool                   { return s.lease.Valid() }
func (s *session) Deadline() time.Duration       { return s.lease.Deadline() }
func (s *session) Done() <-chan struct{}         { return s.done }

func (s *session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Close says goodbye, as backends.Session says. It returns when all goroutines
// of the session have ended, or with ctx's end.
// The server may have to be asked several times: each call does a bounded piece.
func (s *session) Close(ctx context.Context) error {
	s.end(nil)
	_, err := detach(ctx, s.b.crew, nil, func() (struct{}, error) {
		var err error
		if s.delay == 0 || s.Err() == nil { // a goodbye after the loss would end the lock delay
			err = s.goodbye(ctx)
		}
		s.crew.wait()
		return struct{}{}, err
	})
	if err != nil {
		return fmt.Errorf("closing session %s at %s: %w", s.id, s.b.where, err)
	}
	return nil
}

// goodbye ends the session at the server, within the back end's time-out
// for each piece of the work.
func (s *session) goodbye(ctx context.Context) error {
	for {
		bounded, cancel := context.WithTimeout(ctx, s.b.timeout)
		a, err := s.b.try(bounded, reapScript, s.who(noEpoch, "end")...)
		cancel()
		if err != nil {
			return err
		}
		if a.number(0) == 0 {
			return nil
		}
	}
}

// ended takes the outcome "over" of a script, and ends the session.
func (s *session) ended(a answer) bool {
	if a.outcome != "over" {
		return false
	}
	s.end(errUnknown(s.b.where))
	return true
}

// try runs a script until the server has answered in the current epoch, or the
// session is over. apply, where not nil, takes the answer in the same step in
// which it is seen to be of the current epoch, with mu held.
func (s *session) try(ctx context.Context, apply func(answer), script *goredis.Script, args ...any) (answer, error) {
	for {
		epoch, err := s.known(ctx)
		if err != nil {
			return answer{}, err
		}
		a, err := s.b.try(ctx, script, s.who(epoch, args...)...)
		if err == nil && s.ended(a) || s.ctx.Err() != nil {
			return a, s.overError()
		}
		if err != nil || s.applied(epoch, a, apply) {
			return a, err
		}
	}
}

// applied reports whether an answer to a request of an epoch counts.
func (s *session) applied(epoch string, a answer, apply func(answer)) bool {
	if a.outcome == "new" {
		s.forgotten(epoch)
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.current(epoch) {
		return false
	}
	if apply != nil && !s.over {
		apply(a)
	}
	return true
}

// calling is a script that runs for a caller who may go.
type calling struct {
	answer answer
	err    error
	later  *detached[answer] // nil: it has been answered
}

func (c *calling) decided() bool { return c.later == nil || c.later.decided() }

func (c *calling) wait(ctx context.Context) (answer, error) {
	if c.later == nil {
		return c.answer, c.err
	}
	return c.later.wait(ctx)
}

// call runs a script for a caller who may go: then it goes on by itself,
// until it is answered or life ends. apply is as try has it.
func (s *session) call(ctx, life context.Context, apply func(answer), script *goredis.Script, args ...any) (answer, error) {
	return s.begin(life, apply, script, args...).wait(ctx)
}

// begin is the first part of call: a quick attempt here, then others on the crew.
func (s *session) begin(life context.Context, apply func(answer), script *goredis.Script, args ...any) *calling {
	if epoch := s.knownNow(); epoch != "" && s.b.mayBeQuick() {
		a, ok, err := s.b.quick(life, script, s.who(epoch, args...)...)
		switch {
		case ok && err != nil:
			return &calling{answer: a, err: err}
		case ok && s.ended(a):
			return &calling{answer: a, err: s.overError()}
		case ok && s.applied(epoch, a, apply):
			return &calling{answer: a}
		}
	}
	return &calling{later: start(s.crew, s.done, func() (answer, error) { return s.try(life, apply, script, args...) })}
}

// called makes the error of a method of the session.
func (s *session) called(what, name string, err error) error {
	if errors.Is(err, errClosed) {
		err = s.overError()
	}
	return fmt.Errorf("%s %q at %s: %w", what, name, s.b.where, err)
}
