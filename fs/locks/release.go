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
func (t *Table) Unlock(_ context.Context, r Request) error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return ErrClosed
	}
	if t.lost[r.Handle] {
		t.mu.Unlock()
		return ErrLost
	}
	delete(t.flushed, r.Handle)
	n := t.name(r.Name)
	held, session := n.heldBy(r.Handle), t.session
	r.Lock.Mode = backends.None
	n.set(&r)
	todo, done := work{}, false
	if held {
		n, done = t.linger(n, r.Handle)
	}
	if !done {
		todo = t.released(n)
	}
	t.mu.Unlock()
	t.perform(context.Background(), todo)
	if held && !session.Valid() {
		return t.lostByUnlock(r.Handle)
	}
	return nil
}

// lostByUnlock notes that a handle has lost its lock, though the table had struck it out before it knew.
func (t *Table) lostByUnlock(handle uint64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil // the session has said goodbye: there is nothing that could stay behind
	}
	t.lost[handle] = true
	return ErrLost
}

// released follows up on locks that came free.
func (t *Table) released(n *name) work {
	todo := t.settle(n)
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
