package locks

import (
	"context"
	"errors"
	"slices"
	"time"

	"lockfs/backends"
)

// Lock takes a lock, or changes the one that the owner has on those bytes.
//
// What the handle holds by its open alone is taken over by the first explicit call
// (Door Flock or Fcntl) on it that succeeds. A flock conversion to a write
// lock lets go first, as flock(2) says.
//
// ctx is the caller's: when it ends (a signal), Lock returns an error wrapping
// ctx.Err() at once. Nothing stays behind, but for a few milliseconds in which the same
// owner's same request would find its place kept (SA_RESTART).
//
// Errors: backends.ErrWouldBlock, ErrDeadlock, ErrYield (Door Open only),
// ErrUnavailable (not waiting requests only), ErrLost, ErrClosed.
func (t *Table) Lock(ctx context.Context, r Request) error {
	deadline := time.Now().Add(flushLimit)
	for {
		s, err := t.begin(&r, nil)
		switch {
		case s.closing != nil && time.Now().Before(deadline): // with nothing to do
			t.awaitRelease(ctx, s.closing)
			if ctx.Err() != nil {
				return ctx.Err()
			}
		case err != nil:
			t.aside(s.work)
			return err
		case s.w == nil:
			t.perform(ctx, s.work)
			return nil
		default:
			return t.wait(ctx, &r, s)
		}
	}
}

// wait drives what was begun until it is decided, or ctx ends.
func (t *Table) wait(ctx context.Context, r *Request, s begun) error {
	t.aside(s.work)
	var rest unfinished
	if s.ask != nil {
		rest = t.drive(s.ask)
	}
	err := t.await(ctx, s.w, rest)
	switch {
	case err == nil:
		t.mu.Lock()
		todo := t.roomMade(r)
		t.mu.Unlock()
		t.perform(ctx, todo)
	case errors.Is(err, backends.ErrYield):
		t.perform(ctx, t.yielded(r.Name))
	}
	return err
}

// roomMade is what has to be done before the caller is told of a lock that it had to wait for, however shortly: those here who were in its way
// have gone, and it may say so to somebody on another node, who must not be refused what they had. What excludes no more than
// this lock itself does can wait.
func (t *Table) roomMade(r *Request) work {
	if n := t.names[r.Name]; n != nil && n.givesBackBeside(r.Lock) {
		return t.trim(n)
	}
	return work{}
}

// yielded is what an open that was let through leaves to be done: its request to the back end would be in others' way.
func (t *Table) yielded(name string) work {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.name(name)
	defer t.forget(n)
	return work{leaving: t.inOthersWay(n)}
}

// begun is what a request has come to at first.
type begun struct {
	// w is the waiter where it is not decided yet; ask is to be driven for it, where not nil.
	w   *waiter
	ask *ask
	// call, where not nil, has w's decision told to who was named in begin.
	call *answering
	// work is to be performed.
	work work
	// closing comes with ErrWouldBlock where trying again soon makes sense.
	closing *closing
}

// closing is what is in the way of a request that isn't to wait, here or on another node, where that are only handles of which a
// descriptor was closed: was it the last, RELEASE is on its way.
type closing struct {
	freed   <-chan struct{} // closed when a lock on the name comes free
	handles []uint64
	since   []time.Time // FLUSH came
}

// awaitRelease waits for the RELEASEs that may be on their way, and notes of handles that there is none for. The kernel sends RELEASE before
// close(2) returns; that it was read, but what read it does not run, is what CatchUp is for.
func (t *Table) awaitRelease(ctx context.Context, c *closing) {
	waitFor(ctx, c.freed, time.Until(slices.MaxFunc(c.since, time.Time.Compare).Add(flushGrace)))
	if t.options.CatchUp != nil {
		t.options.CatchUp(ctx, c.freed)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, h := range c.handles {
		if t.flushed[h].Equal(c.since[i]) && ctx.Err() == nil {
			delete(t.flushed, h)
		}
	}
}

// begin starts a request. answer, where not nil, is told of the decision if that is others' to make who are on this node already.
func (t *Table) begin(r *Request, answer func(error)) (begun, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return begun{}, ErrClosed
	}
	if t.lost[r.Handle] {
		return begun{}, ErrLost
	}
	delete(t.flushed, r.Handle)
	n := t.name(r.Name)
	defer t.forget(n)
	valid := t.valid()
	if !valid && n.heldBy(r.Handle) {
		return begun{}, ErrLost // the session's end is about to be noticed
	}
	if w := n.resume(r); w != nil {
		s := t.handOver(begun{w: w}, answer)
		t.settleAside(n)
		return s, nil
	}
	if _, has := n.has(r); has && valid {
		n.set(r)
		return begun{work: t.settleIf(n, valid)}, nil
	}
	if r.Door == Flock {
		t.letGo(n, r)
	}
	t.taking(n)
	if valid && len(n.queue) > 0 {
		t.endTurn(n) // who has missed it came before this one
	}
	if valid && len(n.queue)+len(n.outside) == 0 && n.free(r) && n.admit(r.Lock, 0) {
		n.set(r) // nobody waits, so nobody is overtaken
		return begun{work: t.settleIf(n, valid)}, nil
	}
	if valid && len(n.outside) > 0 && n.admit(r.Lock, len(n.queue)) && n.letInBefore(r) {
		t.settleAside(n)
	}
	w := &waiter{Request: *r, arrival: t.arrival(), done: make(chan struct{})}
	if valid && n.admit(r.Lock, len(n.queue)) && !n.blockedByOutside(r) {
		w.inTurn = n.wantedOn(r.Lock)
		n.queue = append(n.queue, w)
		todo := t.settle(n)
		if w.decided() {
			return begun{work: todo}, w.err
		}
		t.aside(todo)
	} else if n.yields(r) {
		return begun{}, backends.ErrYield
	} else if r.Wait || len(n.inTheWay(r)) == 0 || r.YieldTo != 0 {
		// An open asks even where an owner here is in its way: one on another node may be one to yield to.
		n.outside = append(n.outside, w)
	}
	s, err := t.enlist(n, w)
	return t.handOver(s, answer), err
}

// handOver has an undecided waiter told to answer, where there is nothing for its caller to do.
func (t *Table) handOver(s begun, answer func(error)) begun {
	if answer != nil && s.w != nil && s.ask == nil {
		t.answerLater(s.w, answer)
		s.call = s.w.later
	}
	return s
}

// arrival is the number of one who comes now.
func (t *Table) arrival() uint64 {
	t.arrivals++
	return t.arrivals
}

// enlist decides whether a request that can't be granted yet may wait, and
// starts the asking where it is outside.
func (t *Table) enlist(n *name, w *waiter) (begun, error) {
	outside := slices.Contains(n.outside, w)
	switch {
	case !w.Wait && !outside:
		t.drop(n, w)
		return begun{closing: t.closing(n, n.inTheWay(&w.Request))}, backends.ErrWouldBlock
	case w.Wait && w.Owner.Kind == Process && t.closesCircle(n, w):
		t.drop(n, w)
		return begun{}, backends.ErrDeadlock
	}
	if w.Owner.Kind == Process {
		t.waiting[w.Owner] = append(t.waiting[w.Owner], w)
	}
	s := begun{w: w}
	if outside {
		if w.ask == nil { // else its turn ended while it came
			s.ask = t.startAsk(n, w)
		}
		if t.valid() {
			s.work = t.trim(n) // what was kept idle is of no use
		}
	}
	return s, nil
}

// closing is not nil if all that is in the way belongs to handles of which a descriptor was closed.
func (t *Table) closing(n *name, inTheWay []held) *closing {
	if len(inTheWay) == 0 {
		return nil // other waiters are
	}
	c := &closing{}
	for _, h := range inTheWay {
		since, ok := t.flushed[h.handle]
		if !ok {
			return nil
		}
		c.handles, c.since = append(c.handles, h.handle), append(c.since, since)
	}
	company := n.withCompany()
	if company.freed == nil {
		company.freed = make(chan struct{})
	}
	c.freed = company.freed
	return c
}

// letGo carries out the first step of a flock conversion: the existing lock is
// removed, then the new one established (flock(2)). The node's claim goes with it,
// so that two nodes that convert at the same time do not wait for each other.
func (t *Table) letGo(n *name, r *Request) {
	if n.freeAll(func(h *held) bool { return h.owner == r.Owner && h.Overlaps(r.Lock.Range) }) {
		t.settleAside(n)
	}
}

// resume finds the place that an interrupted caller of the same request left.
func (c *core) resume(r *Request) *waiter {
	for _, list := range [...][]*waiter{c.queue, c.outside} {
		for _, w := range list {
			if w.suspended && w.Owner == r.Owner && w.Handle == r.Handle && w.Lock == r.Lock && w.Door == r.Door && r.Wait {
				w.suspended = false
				return w
			}
		}
	}
	return nil
}

// await waits for the decision or the caller's end. It finishes the attempt that is under way when that is ready, or
// leaves it to another goroutine: the waiter may be decided without it, or go, and others share it.
func (t *Table) await(ctx context.Context, w *waiter, rest unfinished) error {
	defer func() {
		if rest.finish != nil {
			go rest.finish()
		}
	}()
	if w.decided() {
		return w.err
	}
	if err := t.waitsForItself(w); err != nil {
		return err
	}
	defer t.watchWait(w)()
	select {
	case <-w.done:
		return w.err
	case <-rest.ready:
		rest.finish()
		rest = unfinished{}
	case <-ctx.Done():
	}
	select {
	case <-w.done:
		return w.err
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if w.decided() {
		return w.err
	}
	t.giveUpWait(w)
	return ctx.Err()
}

// expire gives up the place of an interrupted caller who did not come back.
func (t *Table) expire(w *waiter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if w.suspended && !w.decided() && !time.Now().Before(w.until) {
		t.drop(t.name(w.Name), w)
	}
}

// waitsForItself gives up an open that waits for a lock that its own process holds through
// another descriptor, where nobody but this single-threaded process could let go.
// One exception: a program that made the file by O_EXCL, opens it again and closes the
// first descriptor then (Python's mailbox does) is let through.
func (t *Table) waitsForItself(w *waiter) error {
	if w.Door != Open || t.options.Alone == nil || !w.Wait {
		return nil
	}
	t.mu.Lock()
	own, created := false, true
	for _, h := range t.name(w.Name).inTheWay(&w.Request) {
		if _, closing := t.flushed[h.handle]; h.pid == w.PID && !closing {
			own, created = true, created && h.created
		}
	}
	t.mu.Unlock()
	if !own || !t.options.Alone(w.PID, w.Name) {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if w.decided() {
		return w.err
	}
	t.drop(t.name(w.Name), w)
	if created && w.YieldTo == backends.ByCall {
		return backends.ErrYield
	}
	return backends.ErrDeadlock
}

// drop takes an undecided waiter out and gives back what was had for it.
func (t *Table) drop(n *name, w *waiter) {
	n.remove(w)
	if w.ask != nil {
		n.othersAsk() // it may have waited for another node
	}
	t.unlist(w)
	t.settleAside(n)
	t.forget(n)
}

// unlist ends what a waiter that is out of the lists has running.
func (t *Table) unlist(w *waiter) {
	t.leaveAsk(w)
	if w.Owner.Kind != Process || t.waiting[w.Owner] == nil {
		return
	}
	rest := slices.DeleteFunc(t.waiting[w.Owner], func(o *waiter) bool { return o == w })
	if len(rest) == 0 {
		delete(t.waiting, w.Owner)
	} else {
		t.waiting[w.Owner] = rest
	}
}

// closesCircle reports whether the wait of a process would close a circle of
// waits on this node, over any names (fcntl(2), EDEADLK).
func (t *Table) closesCircle(n *name, w *waiter) bool {
	seen := map[Owner]bool{}
	next := n.waitsFor(w)
	for len(next) > 0 {
		owner := next[0]
		next = next[1:]
		if owner == w.Owner {
			return true
		}
		if seen[owner] {
			continue
		}
		seen[owner] = true
		for _, other := range t.waiting[owner] {
			if !other.suspended {
				next = append(next, t.name(other.Name).waitsFor(other)...)
			}
		}
	}
	return false
}
