package locks

import (
	"context"
	"slices"
	"time"

	"lockfs/backends"
)

// work is what a change in the table leaves to be done with the back end. Whoever gets it performs it, with the
// table unlocked.
type work struct {
	// done is closed when the back end knows; nil: there is nothing for it to know.
	done <-chan struct{}
	// change is to be carried out; nil: another one is at it, and this comes after it.
	change *change
	// leaving are requests that are being taken back (inOthersWay); only perform waits for them.
	leaving []<-chan struct{}
}

// change is a Change for the back end.
type change struct {
	n       *name
	session backends.Session
	changes []backends.Change
	had     backends.Lock // all that is changed, and what lies between
	done    chan struct{}
	// idle: it drops only what may be idle for all that other nodes know (backends.Kept), so that nobody is refused for it meanwhile.
	idle bool
	// again, where not nil, is closed when what came up meanwhile has been carried out too.
	again chan struct{}
}

// settle grants on a name what can be granted, then gives back what is not
// needed.
//
// Nothing is granted on a lease that may have run out, though the session's end is
// not known yet: the claims may be another node's already.
func (t *Table) settle(n *name) work { return t.settleIf(n, t.valid()) }

// settleIf is settle where it is known whether the lease holds.
func (t *Table) settleIf(n *name, valid bool) work {
	defer n.tell()
	if !valid {
		return work{}
	}
	if len(n.queue)+len(n.outside) > 0 {
		t.endTurn(n)
		var room [2]*waiter
		for _, w := range n.core.settle(room[:0]) {
			t.unlist(w)
		}
	}
	if len(n.queue)+len(n.outside) == 0 {
		n.queue, n.outside = nil, nil // most names never have a waiter again
	}
	t.lookLater(n)
	return t.trim(n)
}

// endTurn puts those outside who were let in for the node's turn only and have not been served in it. Who has a place in the back
// end's queue goes back to it; for the others the back end is asked now, and so they have arrived now.
//
// Invariant: once a turn is over it lets nobody on this node be served before those elsewhere who came earlier, however
// long each of them holds the lock.
func (t *Table) endTurn(n *name) {
	if n.turn == 0 || clock() < n.turn {
		return
	}
	for _, w := range slices.Clone(n.queue) {
		if !w.inTurn || !w.Wait || w.decided() {
			continue
		}
		n.remove(w)
		w.inTurn = false
		if w.ask == nil {
			w.arrival = t.arrival()
		}
		n.outside = insertBefore(n.outside, w, func(o *waiter) bool { return o.arrival > w.arrival })
		if w.ask != nil {
			continue
		}
		if a := t.startAsk(n, w); a != nil {
			go t.pursue(a)
		}
	}
}

// settleAside is settle where nobody waits for the back end to know.
func (t *Table) settleAside(n *name) { t.aside(t.settle(n)) }

// valid reports whether there is a session whose lease holds.
func (t *Table) valid() bool { return t.session != nil && t.session.Valid() }

// trim gives back what the node's owners do not need. One Change runs for a
// name at a time: what comes up meanwhile is seen to after it.
func (t *Table) trim(n *name) work {
	if n.change != nil {
		if len(n.list) == 0 { // nothing can follow
			if n.change.idle {
				return work{}
			}
			return work{done: n.change.done}
		}
		if n.change.again == nil {
			n.change.again = make(chan struct{})
		}
		return work{done: n.change.again}
	}
	if t.session == nil { // it is lost, and what it had is about to be forgotten
		return work{}
	}
	if len(n.list) == 0 || n.sufficient(t.keeps(n)) {
		return work{}
	}
	spare := spareInUse
	if t.keeps(n) {
		spare = spareAll
	}
	return t.begins(n, n.claims.trim(n.needs(), n.hintOn, spare))
}

// begins makes changes of a name's claims the one Change that runs for it.
func (t *Table) begins(n *name, changes []backends.Change) work {
	if len(changes) == 0 {
		return work{}
	}
	n.change = &change{n: n, session: t.session, changes: changes, had: n.extent(changes), done: make(chan struct{}), idle: n.idle(changes)}
	n.claims.begin(changes)
	t.changes.Add(1)
	return work{done: n.change.done, change: n.change}
}

// givesBackBeside reports whether something is being given back, or is about to be, that excludes more than a lock does.
func (n *name) givesBackBeside(l backends.Lock) bool {
	within := func(claim backends.Lock) bool { return l.Mode >= claim.Mode && l.Contains(claim.Range) }
	switch {
	case n.change == nil:
		return false
	case !within(n.change.had):
		return true
	default: // what comes after the change may concern any
		return n.change.again != nil && slices.ContainsFunc(n.list, func(k backends.Claim) bool { return !within(k.Lock) })
	}
}

// perform does work and waits until the back end knows, or is out of reach and the session goes on trying, or ctx ends.
func (t *Table) perform(ctx context.Context, w work) {
	if w.change != nil {
		t.carryOut(w.change)
	}
	waitFor(ctx, w.done, t.options.UnavailableAfter)
	for _, gone := range w.leaving {
		waitFor(ctx, gone, t.options.UnavailableAfter)
	}
}

// aside does work in a goroutine of its own.
func (t *Table) aside(w work) {
	if w.change != nil {
		go t.carryOut(w.change)
	}
}

// carryOut tells the back end about changes, here if that answers in a moment. The session retries until its
// lease ends, so an error means that it is over and the claims are gone.
func (t *Table) carryOut(c *change) {
	ctx := context.Background()
	p := beginChange(c.session, c.n.name, c.changes)
	if !p.Decided() {
		go func() {
			now, err := p.Result(ctx)
			t.carriedOut(c, now, err)
		}()
		return
	}
	now, err := p.Result(ctx)
	t.carriedOut(c, now, err)
}

func (t *Table) carriedOut(c *change, now []backends.Claim, err error) {
	defer t.changes.Done()
	t.mu.Lock()
	defer t.mu.Unlock()
	n := c.n
	if c.session == t.session {
		if err != nil && !t.closed {
			t.log.Error("giving back a lock failed", "name", n.name, "reason", err)
		}
		n.finish(c.changes, now)
	}
	close(c.done)
	n.change = nil
	if c.again != nil {
		next := t.trim(n)
		if next.done == nil {
			close(c.again)
		} else {
			t.aside(next)
			go func() { <-next.done; close(c.again) }()
		}
	}
	t.forget(n)
}

// beginAcquire and beginChange make the first attempt here, where the session can do that.
func beginAcquire(s backends.Session, name string, r backends.Request) backends.Pending[backends.Claim] {
	if p, ok := s.(backends.Prompt); ok {
		return p.BeginAcquire(name, r)
	}
	return later[backends.Claim](func(ctx context.Context) (backends.Claim, error) { return s.Acquire(ctx, name, r) })
}

func beginChange(s backends.Session, name string, changes []backends.Change) backends.Pending[[]backends.Claim] {
	if p, ok := s.(backends.Prompt); ok {
		return p.BeginChange(name, changes)
	}
	return later[[]backends.Claim](func(ctx context.Context) ([]backends.Claim, error) { return s.Change(ctx, name, changes) })
}

// later is a request that is made when its result is asked for.
type later[T any] func(ctx context.Context) (T, error)

func (later[T]) Ready() <-chan struct{}                  { return nil }
func (later[T]) Decided() bool                           { return false }
func (f later[T]) Result(ctx context.Context) (T, error) { return f(ctx) }

// waitFor waits for a channel (nil: not at all), the context's end or a time.
func waitFor(ctx context.Context, done <-chan struct{}, most time.Duration) {
	if done == nil {
		return
	}
	select {
	case <-done: // most often already
		return
	default:
	}
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-done:
	case <-ctx.Done():
	case <-timer.C:
	}
}
