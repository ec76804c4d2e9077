package locks

import (
	"context"
	"slices"
	"time"

	"lockfs/backends"
)

// Unlock gives up what the owner has on the bytes of r.Lock, and what the
// handle holds by its open alone. It returns when the back end has let go, or
// is out of reach and the session goes on trying; the unlock itself is never undone. A signal to the
// caller is no reason to return before: the lock would be in others' way yet.
//
// ErrLost: the lease has ended meanwhile, or before. To the back end the lock may be held until it ends there.
func (t *Table) Unlock(ctx context.Context, r Request) error {
	begun := t.BeginUnlock(r)
	if begun.Rest != nil {
		return begun.Rest(ctx)
	}
	return begun.Err
}

// BeginUnlock is Unlock for a caller who does not want to stand still (Begun).
func (t *Table) BeginUnlock(r Request) Begun {
	u, todo, err := t.beginUnlock(&r)
	switch {
	case err != nil:
		return Begun{Err: err}
	case u.newcomer == nil && todo.nothing() && u.valid:
		return Begun{}
	case u.newcomer == nil && todo.nothing():
		return Begun{Err: t.unlocked(u)}
	}
	return t.restOfUnlock(u, todo)
}

func (t *Table) restOfUnlock(u unlockCall, todo work) Begun {
	rest := func(context.Context) error {
		if u.newcomer != nil {
			todo = t.linger(u)
		}
		t.perform(context.Background(), todo)
		return t.unlocked(u)
	}
	return Begun{Rest: rest}
}

// unlockCall is an unlock under way.
type unlockCall struct {
	name   string
	handle uint64
	// session is the one under which something was held; nil: nothing was.
	session backends.Session
	// valid: its lease held then.
	valid bool
	// newcomer is closed when one comes for whom it lingers, so long at most; nil: it does not.
	newcomer chan struct{}
	linger   time.Duration
}

// beginUnlock takes what is to be unlocked out of the table.
func (t *Table) beginUnlock(r *Request) (u unlockCall, todo work, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return u, todo, ErrClosed
	case t.lost[r.Handle]:
		return u, todo, ErrLost
	}
	delete(t.flushed, r.Handle)
	n := t.name(r.Name)
	u = unlockCall{name: r.Name, handle: r.Handle}
	u.valid = t.valid()
	held := n.heldBy(r.Handle)
	r.Lock.Mode = backends.None
	n.set(r)
	if held {
		u.session = t.session
		u.newcomer, u.linger = t.lingers(n, r.Handle)
	}
	if u.newcomer == nil {
		todo = t.releasedIf(n, u.valid)
	}
	return u, todo, nil
}

// unlocked notes that a handle has lost its lock, where the table had struck it out before it knew.
func (t *Table) unlocked(u unlockCall) error {
	if u.session == nil || u.session.Valid() {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil // the session has said goodbye: there is nothing that could stay behind
	}
	t.lost[u.handle] = true
	return ErrLost
}

// released follows up on locks that came free.
func (t *Table) released(n *name) work { return t.releasedIf(n, t.valid()) }

// releasedIf is released where it is known whether the lease holds.
func (t *Table) releasedIf(n *name, valid bool) work {
	todo := t.settleIf(n, valid)
	todo.leaving = t.inOthersWay(n)
	n.company.left()
	t.forget(n)
	return todo
}

// releaseAll gives up what matches on a name, and the places of interrupted
// callers that match.
func (t *Table) releaseAll(n *name, of func(owner Owner, handle uint64) bool) work {
	for _, w := range n.all() {
		if w.suspended && of(w.Owner, w.Handle) {
			n.remove(w)
			t.unlist(w)
		}
	}
	n.freeAll(func(h *held) bool { return of(h.owner, h.handle) })
	return t.released(n)
}

// ReleaseProcess gives up all locks of a process on a name: a descriptor of
// it was closed (FLUSH). It returns as Unlock does.
func (t *Table) ReleaseProcess(name string, owner uint64) {
	t.mu.Lock()
	n := t.names[name]
	if n == nil {
		t.mu.Unlock()
		return
	}
	process := Owner{Kind: Process, ID: owner}
	todo := t.releaseAll(n, func(o Owner, _ uint64) bool { return o == process })
	t.mu.Unlock()
	t.perform(context.Background(), todo)
}

// Flushed says that a descriptor of the handle was closed, perhaps the last
// one: RELEASE may follow, and a request that is not to wait and meets this
// handle's lock gives it a few milliseconds. Any later call through the handle
// takes this back.
func (t *Table) Flushed(name string, handle uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.names[name]; n != nil && slices.ContainsFunc(n.held, func(h held) bool { return h.handle == handle }) {
		t.flushed[handle] = time.Now()
	}
}

// ReleaseHandle gives up all locks that were taken through a description: its
// last descriptor was closed (RELEASE). It also forgets that the handle lost
// a lock. It does not wait for the back end.
func (t *Table) ReleaseHandle(name string, handle uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.flushed, handle)
	delete(t.lost, handle)
	if n := t.names[name]; n != nil {
		t.aside(t.releaseAll(n, func(_ Owner, h uint64) bool { return h == handle }))
	}
}
