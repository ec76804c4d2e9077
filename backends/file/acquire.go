package file

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"lockfs/backends"
	"lockfs/backends/queue"
)

// waiter is an Acquire under way.
//
// Invariant: while its entry is in the state of the name and not decided,
// the waiter is in session.waiters; both change with the shard locked.
type waiter struct {
	id   string
	name string
	req  backends.Request
	done chan result // of 1: the first decision is the one that counts
	// queued is set by ask where the request has to wait; read after ask has returned.
	queued bool
	// gaveUp is set, with session.mu held, before the entry is dropped: an
	// Acquire that had not asked yet then does not ask at all.
	gaveUp bool
}

type result struct {
	claim backends.Claim
	err   error
}

// settle decides a waiter; what comes second is ignored.
func (w *waiter) settle(r result) {
	select {
	case w.done <- r:
	default:
	}
}

func (w *waiter) granted(token, seq uint64, contended bool) result {
	return result{claim: backends.Claim{ID: w.id, Lock: w.req.Lock, Hint: w.req.Hint, Token: token, Seq: seq, Contended: contended}}
}

// Acquire asks for a claim. See backends.Session.
func (s *session) Acquire(ctx context.Context, name string, req backends.Request) (backends.Claim, error) {
	w := &waiter{id: rand.Text(), name: name, req: req, done: make(chan result, 1)}
	claim, err := s.acquire(ctx, w)
	if err != nil {
		return backends.Claim{}, fmt.Errorf("acquire a %v lock on %q: %w", req.Mode, name, err)
	}
	return claim, nil
}

func (s *session) acquire(ctx context.Context, w *waiter) (backends.Claim, error) {
	if ctx.Err() != nil {
		return backends.Claim{}, context.Cause(ctx)
	}
	ask := func() error { return s.transact(w.name, func(t *txn) error { return t.ask(w) }) }
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		err := s.run(ctx, ask)
		if err == nil {
			break
		}
		switch { // it may be under way still
		case ctx.Err() != nil:
			return backends.Claim{}, s.leave(ctx, w)
		case errors.Is(err, backends.ErrUnavailable):
			s.giveUp(w, nil)
		}
		if !w.req.Wait || !errors.Is(err, backends.ErrUnavailable) {
			return backends.Claim{}, err
		}
		if !s.pause(ctx, wait) {
			if ctx.Err() != nil {
				return backends.Claim{}, s.leave(ctx, w)
			}
			return backends.Claim{}, s.overErr()
		}
		w = w.again()
		ask = func() error { return s.transact(w.name, func(t *txn) error { return t.ask(w) }) }
	}
	if w.queued && w.req.Queued != nil {
		w.req.Queued()
	}
	select {
	case r := <-w.done:
		return r.claim, r.err
	case <-ctx.Done():
		return backends.Claim{}, s.leave(ctx, w)
	case <-s.Done():
		return backends.Claim{}, s.overErr()
	}
}

// again is the same request under another ID, after one that may be under way still was given up.
func (w *waiter) again() *waiter {
	return &waiter{id: rand.Text(), name: w.name, req: w.req, done: make(chan result, 1)}
}

// ask puts a waiter's entry into the queue. Its decision, now or later, comes through w.done.
func (t *txn) ask(w *waiter) error {
	t.s.mu.Lock()
	gaveUp, closing := w.gaveUp, t.s.closing
	t.s.mu.Unlock()
	if gaveUp {
		return context.Canceled // nobody reads it
	}
	if closing {
		return errClosed
	}
	entry := queue.Entry{ID: w.id, Session: t.s.id, Lock: w.req.Lock, Held: w.req.Held, Hint: w.req.Hint, YieldTo: w.req.YieldTo}
	if !t.st.Ask(entry) {
		refusal := backends.ErrWouldBlock
		if w.req.Wait {
			refusal = backends.ErrDeadlock
		}
		t.written = append(t.written, func() { w.settle(result{err: refusal}) })
		return nil
	}
	t.settle()
	i := t.st.Find(w.id)
	waits := i >= 0 && !t.st[i].Granted
	if waits && !w.req.Wait {
		t.st.Drop(w.id) // the last of the queue, so nobody stood behind it
		t.written = append(t.written, func() { w.settle(result{err: backends.ErrWouldBlock}) })
		return nil
	}
	t.written = append(t.written, func() { t.s.await(w) })
	if waits {
		t.written = append(t.written, func() {
			w.queued = true
			t.announce(entry)
		})
	}
	return nil
}

// await makes a waiter known to those who decide.
func (s *session) await(w *waiter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiters[w.id] = w
	if s.closing {
		w.settle(result{err: errClosed})
	}
}

// announce tells the sessions in a waiter's way that they are wanted, and
// makes a line to every session that stands before it.
func (t *txn) announce(entry queue.Entry) {
	for _, id := range t.sessions() {
		t.s.lineTo(id)
	}
	last, err := t.s.a.lastToken(t.sh)
	if err != nil {
		last = 0
		for _, e := range t.st {
			last = max(last, e.Seq)
		}
	}
	for _, id := range t.st.InTheWay(entry) {
		t.s.tell(id, message{Kind: kindWanted, Name: []byte(t.name), Seq: last + 1})
	}
}

// sessions returns the other sessions that have entries.
func (t *txn) sessions() []string {
	seen := map[string]bool{t.s.id: true}
	var ids []string
	for _, e := range t.st {
		if !seen[e.Session] {
			seen[e.Session] = true
			ids = append(ids, e.Session)
		}
	}
	return ids
}

// leave takes a request back whose context has ended, and returns what Acquire is to return.
func (s *session) leave(ctx context.Context, w *waiter) error {
	s.giveUp(w, w.req.TakenBack)
	return fmt.Errorf("%w: %w", backends.ErrGivenUp, context.Cause(ctx))
}

// giveUp drops a waiter's entry, whatever has become of it, in the
// background and for as long as the session lives, and calls takenBack, which may be nil, when that is done.
func (s *session) giveUp(w *waiter, takenBack func()) {
	s.mu.Lock()
	w.gaveUp = true
	s.mu.Unlock()
	if s.begin() != nil {
		return // Close drops it
	}
	go func() {
		defer s.endOp()
		err := s.persist(func() error {
			return s.transact(w.name, func(t *txn) error {
				t.st.Drop(w.id)
				t.written = append(t.written, func() { s.forget(w.id) })
				return nil
			})
		})
		if err != nil && !errors.Is(err, backends.ErrSessionOver) {
			s.log.Error("a request that was given up may stay in the queue", "name", w.name, "error", err)
		}
		if takenBack != nil {
			takenBack()
		}
	}()
}

func (s *session) forget(id string) *waiter {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.waiters[id]
	delete(s.waiters, id)
	return w
}

// decide passes a decision to the waiter it is for, if that still waits here.
func (s *session) decide(m message) {
	w := s.forget(m.ID)
	switch {
	case w == nil: // given up, or decided already
	case m.Kind == kindGrant:
		w.settle(w.granted(m.Token, m.Seq, m.Contended))
	default:
		w.settle(result{err: backends.ErrYield})
	}
}

// reexamine looks after all waits of this session: somebody died, who may
// have been in their way or have owed them a message.
func (s *session) reexamine() {
	s.mu.Lock()
	names := map[string]bool{}
	for _, w := range s.waiters {
		names[w.name] = true
	}
	s.mu.Unlock()
	for name := range names {
		if s.begin() != nil {
			return
		}
		err := s.persist(func() error {
			return s.transact(name, func(t *txn) error {
				t.written = append(t.written, t.resolve)
				return nil
			})
		})
		s.endOp()
		if err != nil && !errors.Is(err, backends.ErrSessionOver) {
			s.log.Error("can't find out about waiting requests", "name", name, "error", err)
		}
	}
}

// resolve decides the waiters of this name as the state says. One whose
// entry is gone has yielded: nothing else removes it.
func (t *txn) resolve() {
	t.s.mu.Lock()
	var mine []*waiter
	for _, w := range t.s.waiters {
		if w.name == t.name {
			mine = append(mine, w)
		}
	}
	t.s.mu.Unlock()
	for _, w := range mine {
		switch i := t.st.Find(w.id); {
		case i < 0:
			t.s.decide(message{Kind: kindYield, ID: w.id})
		case t.st[i].Granted:
			e := t.st[i]
			t.s.decide(message{Kind: kindGrant, ID: w.id, Token: e.Token, Seq: e.Seq, Contended: t.st.Contended(e.Session, e.Lock)})
		}
	}
}
