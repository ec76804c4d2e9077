package locks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"lockfs/backends"
)

// ask is a running request of a waiter to the back end.
type ask struct {
	ctx    context.Context
	cancel context.CancelFunc
	// queued is closed, by ready, when the request stands in the back end's queue, or is over.
	queued <-chan struct{}
	ready  func()
	// suspect: messages may have been lost since it began, so its claim may
	// be wanted by another node though nobody said so.
	suspect bool
	// again: it failed and was made again, so that later ones may stand before it.
	again bool
}

// startAsk asks the back end on behalf of a waiter that is outside, after
// those who came before it and collide with it have their places.
func (t *Table) startAsk(n *name, w *waiter) {
	ctx, cancel := context.WithCancel(context.Background())
	queued := make(chan struct{})
	a := &ask{ctx: ctx, cancel: cancel, queued: queued, ready: sync.OnceFunc(func() { close(queued) })}
	request := backends.Request{Lock: w.Lock, Wait: w.Wait, Held: n.kept(&w.Request), Hint: w.hint(), YieldTo: w.YieldTo, Queued: a.ready}
	w.ask, w.wentAhead = a, len(request.Held) > 0
	previous := n.previous(w)
	t.asks.Go(func() {
		defer cancel()
		defer a.ready()
		waitFor(ctx, previous, time.Minute)
		for t.asked(w, a, request) {
			select { // only after an error: do not spin
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
}

// previous returns the channel that tells that the last waiter before w that
// collides with it has its place in the back end's queue; nil where there is none.
func (c *core) previous(w *waiter) <-chan struct{} {
	if !w.Wait {
		return nil
	}
	var last <-chan struct{}
	for _, o := range c.outside {
		if o != w && o.Wait && o.ask != nil && o.arrival < w.arrival && o.collides(&w.Request) {
			last = o.ask.queued
		}
	}
	return last
}

// asked makes one attempt and carries out what it came to. It returns whether to try again.
func (t *Table) asked(w *waiter, a *ask, request backends.Request) (again bool) {
	session, err := t.current(a.ctx, w.Wait)
	var claim backends.Claim
	if err == nil {
		claim, err = session.Acquire(a.ctx, w.Name, request)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.name(w.Name) // not that of the start: it may have been forgotten since
	defer t.forget(n)
	if err == nil && session == t.session {
		claim.Contended = claim.Contended || a.suspect
		n.list = append(n.list, claim)
		if w.ask == a && !w.decided() {
			w.ask, w.asked = nil, true
			n.letIn(w)
		}
		t.settle(n)
		t.refuse(n, w)
		return false
	}
	switch {
	case w.ask != a || w.decided():
		return false
	case err == nil, errors.Is(err, backends.ErrSessionOver), errors.Is(err, backends.ErrUnavailable) && w.Wait:
		a.again = true
		return true
	}
	if !w.Wait && errors.Is(err, backends.ErrDeadlock) {
		err = backends.ErrWouldBlock // it does not wait, so not for ever either
	}
	n.remove(w)
	w.decide(err)
	t.unlist(w)
	t.settle(n)
	return false
}

// refuse ends a request that is not to wait, and was let in, but found an owner
// on this node in its way.
func (t *Table) refuse(n *name, w *waiter) {
	if !w.Wait && t.valid() && !w.decided() && slices.Contains(n.queue, w) {
		n.remove(w)
		w.decide(backends.ErrWouldBlock)
		t.unlist(w)
		t.settle(n)
	}
}

// current returns the session once there is one that holds; while there is none it waits, and a request that
// is not to wait gives up after a while with ErrUnavailable.
func (t *Table) current(ctx context.Context, wait bool) (backends.Session, error) {
	var giveUp <-chan time.Time
	if !wait {
		timer := time.NewTimer(t.options.UnavailableAfter)
		defer timer.Stop()
		giveUp = timer.C
	}
	for {
		t.mu.Lock()
		session, news := t.session, t.news
		t.mu.Unlock()
		if session != nil && session.Valid() {
			return session, nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-giveUp:
			return nil, fmt.Errorf("no session with the back end: %w", backends.ErrUnavailable)
		}
	}
}

// run serves the session's events, and opens a new session when one is lost.
func (t *Table) run(ctx context.Context, session backends.Session) {
	defer close(t.ended)
	for session != nil {
		tick := time.NewTimer(t.until(session))
		select {
		case <-tick.C:
		case event := <-session.Events():
			t.wanted(event)
		case <-session.Done():
			t.lose(session)
			session = t.reopen(ctx)
		case <-ctx.Done():
			tick.Stop()
			return
		}
		tick.Stop()
	}
}

// wanted notes that another node waits for what this one has.
func (t *Table) wanted(event backends.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if event.Name != "" {
		if n := t.names[event.Name]; n != nil {
			n.wanted = max(n.wanted, event.Seq)
		}
		return
	}
	for _, n := range t.names {
		for i := range n.list {
			n.list[i].Contended = true
		}
		for _, w := range n.outside {
			if w.ask != nil {
				w.ask.suspect = true
			}
		}
	}
}

// lose carries out the loss of a session: what was held is lost, who waits
// goes on waiting for the next session. What holds is told to the watcher before
// it is forgotten, and nothing is granted in between, for there is no session.
func (t *Table) lose(session backends.Session) {
	if !t.markLost(session) {
		return
	}
	if t.options.Watcher != nil {
		t.options.Watcher.Lost(session.Err())
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range t.names {
		n.held, n.list = nil, nil
		n.tell()
		t.leave(n)
		if n.freed != nil {
			close(n.freed)
			n.freed = nil
		}
		t.forget(n)
	}
	if t.options.Watcher != nil {
		t.options.Watcher.Until(backends.NoDeadline)
	}
}

// markLost makes every call on a descriptor that holds a lock fail from now on. It returns
// false where the table is closed.
func (t *Table) markLost(session backends.Session) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.log.Error("session lost, and all locks with it", "session", session.ID(), "reason", session.Err())
	t.announce(nil)
	for _, n := range t.names {
		for i := range n.held {
			t.logLost(n, &n.held[i], session.Err())
			t.lost[n.held[i].handle] = true
		}
	}
	return true
}

// leave puts all who wait for a name outside, to ask again in their order, and
// ends those whose descriptor lost a lock.
func (t *Table) leave(n *name) {
	waiters := n.all()
	n.queue, n.outside = nil, nil
	for _, w := range waiters {
		if w.ask != nil {
			w.ask.cancel()
			w.ask = nil
		}
		w.asked = false
		if t.lost[w.Handle] {
			w.decide(ErrLost)
			t.unlist(w)
			continue
		}
		n.outside = append(n.outside, w)
		t.startAsk(n, w)
	}
}

// logLost writes the one line that says which lock was lost.
func (t *Table) logLost(n *name, h *held, reason error) {
	comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", h.pid)) // may be gone already
	t.log.Error("lock lost", "name", n.name, "mode", h.Mode.String(), "pid", h.pid,
		"command", strings.TrimSpace(string(comm)), "token", h.token, "reason", reason)
}

// reopen opens a new session, however long it takes. nil: ctx ended.
func (t *Table) reopen(ctx context.Context) backends.Session {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		attempt, cancel := context.WithTimeout(ctx, t.options.UnavailableAfter)
		session, err := t.options.Open(attempt)
		cancel()
		if err == nil {
			t.log.Info("new session", "session", session.ID())
			t.until(session)
			t.mu.Lock()
			t.announce(session)
			t.mu.Unlock()
			return session
		}
		t.log.Warn("no new session yet", "reason", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// announce sets the session (nil: none) and tells those who wait for one.
func (t *Table) announce(session backends.Session) {
	t.session = session
	close(t.news)
	t.news = make(chan struct{})
}

// Close releases everything, says goodbye to the back end and ends all waits
// with ErrClosed. ctx bounds it.
func (t *Table) Close(ctx context.Context) error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	for _, n := range t.names {
		for _, w := range n.all() {
			n.remove(w)
			w.decide(ErrClosed)
			t.unlist(w)
		}
	}
	t.mu.Unlock()
	t.stop()
	<-t.ended
	t.asks.Wait()
	t.mu.Lock()
	session := t.session
	t.mu.Unlock()
	if session == nil {
		return nil
	}
	err := session.Close(ctx)
	t.changes.Wait() // each ends with the session
	if err == nil && t.options.Watcher != nil {
		t.options.Watcher.Until(backends.NoDeadline)
	}
	return err
}
