package locks

import (
	"context"
	"time"

	"lockfs/backends"
)

// settle grants on a name what can be granted, then gives back what is not
// needed. The channel, if not nil, is closed when the back end knows.
//
// Nothing is granted on a lease that may have run out, though the session's end is
// not known yet: the claims may be another node's already.
func (t *Table) settle(n *name) <-chan struct{} {
	defer n.tell()
	if !t.valid() {
		return nil
	}
	if len(n.queue)+len(n.outside) > 0 {
		before := n.all()
		n.core.settle()
		for _, w := range before {
			if w.decided() {
				t.unlist(w)
			}
		}
	}
	return t.trim(n)
}

// valid reports whether there is a session whose lease holds.
func (t *Table) valid() bool { return t.session != nil && t.session.Valid() }

// trim gives back what the node's owners do not need. One Change runs for a
// name at a time: what comes up meanwhile is seen to after it.
func (t *Table) trim(n *name) <-chan struct{} {
	if n.change != nil {
		if n.again == nil {
			n.again = make(chan struct{})
		}
		return n.again
	}
	if len(n.list) == 0 || n.sufficient(t.keeps(n)) {
		return nil
	}
	changes := n.claims.trim(n.needs(), n.hintOn, t.keeps(n))
	if len(changes) == 0 {
		return nil
	}
	n.change = make(chan struct{})
	n.claims.begin(changes)
	session, done := t.session, n.change
	t.changes.Go(func() { t.carryOut(n, session, changes, done) })
	return done
}

// carryOut tells the back end about changes. The session retries until its
// lease ends, so an error means that it is over and the claims are gone.
func (t *Table) carryOut(n *name, s backends.Session, changes []backends.Change, done chan struct{}) {
	now, err := s.Change(context.Background(), n.name, changes)
	t.mu.Lock()
	defer t.mu.Unlock()
	if s == t.session {
		if err != nil && !t.closed {
			t.log.Error("giving back a lock failed", "name", n.name, "reason", err)
		}
		n.finish(changes, now)
	}
	close(done)
	n.change = nil
	if again := n.again; again != nil {
		n.again = nil
		if next := t.trim(n); next == nil {
			close(again)
		} else {
			go func() { <-next; close(again) }()
		}
	}
	t.forget(n)
}

// waitFor waits for a channel (nil: not at all), the context's end or a time.
func waitFor(ctx context.Context, done <-chan struct{}, most time.Duration) {
	if done == nil {
		return
	}
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-done:
	case <-ctx.Done():
	case <-timer.C:
	}
}
