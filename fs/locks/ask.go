package locks

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"lockfs/backends"
)

// ask is a running request to the back end, for one waiter, or for several that want the same and came
// before it was sent, or shortly after.
//
// Invariant: a waiter is in waiters as long as its ask is this one. When none is left, the ask ends, and from then until the back
// end has nothing of it any more it is in the table's leaving: whoever lets go of the name waits for that, for others would be refused for it.
type ask struct {
	name    string
	request backends.Request // Wait is the waiters' own
	waiters []*waiter
	began   time.Time
	ctx     context.Context
	cancel  context.CancelFunc
	// queued is closed, by ready, when the request stands in the back end's queue, or is over.
	queued <-chan struct{}
	ready  func()
	// previous are closed, each, when those before it that it collides with have their places.
	previous []<-chan struct{}
	// sent: an attempt was made. over: the back end has nothing of it any more but what it has answered. Guarded by the table's mutex.
	sent, over bool
	// gone, where not nil, is closed when it leaves the table's leaving.
	gone chan struct{}
	// waited: it had to stand in the queue.
	waited atomic.Bool
	// suspect: messages may have been lost since it began, so its claim may
	// be wanted by another node though nobody said so.
	suspect bool
	// again: it failed and was made again, so that later ones may stand before it.
	again bool
}

// maxJoined bounds the waiters of one ask: fewer than there are tokens under one claim.
const maxJoined = tokenBlock / 16

// startAsk prepares to ask the back end on behalf of a waiter that is outside, after
// those who came before it and collide with it have their places. The caller drives the ask that it
// returns, with the table unlocked; nil: the waiter shares one that runs.
func (t *Table) startAsk(n *name, w *waiter) *ask {
	if t.join(n, w) {
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	queued := make(chan struct{})
	a := &ask{name: n.name, waiters: []*waiter{w}, began: time.Now(), ctx: ctx, cancel: cancel,
		queued: queued, ready: sync.OnceFunc(func() { close(queued) })}
	a.request = backends.Request{Lock: w.Lock, Wait: w.Wait, Held: n.kept(&w.Request), Hint: t.label(n, w), YieldTo: w.YieldTo,
		Queued: func() { a.waited.Store(true); a.ready() }, TakenBack: func() { t.takenBack(a) }}
	w.ask, w.wentAhead = a, len(a.request.Held) > 0
	a.previous = n.previous(w)
	t.asks.Add(1)
	return a
}

// unfinished is an attempt that is under way.
type unfinished struct {
	// ready is closed when finish would not wait; it need not be.
	ready <-chan struct{}
	// finish carries out what the attempt comes to. It is to be called, once, from any goroutine.
	finish func()
}

// drive makes the first attempt of an ask here, if it is its turn. What is not decided in a moment goes on in a
// goroutine, or is the caller's to finish, who waits for it anyway.
func (t *Table) drive(a *ask) (rest unfinished) {
	t.mu.Lock()
	session, valid := t.session, t.valid()
	t.mu.Unlock()
	if len(a.previous) > 0 || !valid {
		go t.pursue(a)
		return unfinished{}
	}
	p := t.send(a, session)
	finish := func() {
		if t.answered(a, session, p) {
			go func() { a.rest(); t.pursue(a) }()
			return
		}
		t.end(a)
	}
	switch {
	case p.Decided():
		finish()
	case p.Ready() == nil, !a.request.Wait: // one that is not to wait has a time-out, which finish sees to
		go finish()
	default:
		return unfinished{p.Ready(), finish}
	}
	return unfinished{}
}

// pursue asks until there is an answer or nobody is left who wants it.
func (t *Table) pursue(a *ask) {
	defer t.end(a)
	for _, placed := range a.previous {
		select { // without a limit: what is sent out of its order would be held back for ever (awaitsEarlier)
		case <-placed:
		case <-a.ctx.Done():
		}
	}
	for t.asked(a) {
		a.rest()
	}
}

// rest is the pause after an attempt that failed, so that asking again does not spin.
func (a *ask) rest() { waitFor(a.ctx, a.ctx.Done(), 100*time.Millisecond) }

func (t *Table) end(a *ask) {
	a.cancel()
	a.ready()
	t.asks.Done()
}

// join lets a waiter share the ask of the last one before it, where both want the same and that has not been sent, for the
// one before it is not answered yet: the slower the back end, the more share one. Or it came within
// Options.Turn: so much later it may be served before others' requests that came in between.
func (t *Table) join(n *name, w *waiter) bool {
	if !w.Wait || w.YieldTo != 0 {
		return false
	}
	var last *waiter
	for o := range n.underWay(w) {
		if last == nil || o.arrival > last.arrival {
			last = o
		}
	}
	if last == nil {
		return false
	}
	a := last.ask
	sameHint := a.request.Hint == w.hint() || a.request.Hint == backends.Kept
	if a.again || !a.request.Wait || a.request.Lock != w.Lock || !sameHint || a.request.YieldTo != 0 || len(a.request.Held) > 0 || len(a.waiters) >= maxJoined || a.sent && time.Since(a.began) >= t.options.Turn || len(n.kept(&w.Request)) > 0 {
		return false
	}
	a.waiters = append(a.waiters, w)
	w.ask, w.wentAhead = a, false
	return true
}

// previous returns the channels that tell when the waiters before w that collide with it have their places in the back end's
// queue, of those that have not got them yet. All of them, not only the last: two readers do not wait for each other.
func (c *core) previous(w *waiter) (all []<-chan struct{}) {
	if !w.Wait {
		return nil
	}
	for o := range c.underWay(w) {
		if placed := o.ask.queued; o.Wait && o.collides(&w.Request) && !closed(placed) && !slices.Contains(all, placed) {
			all = append(all, placed)
		}
	}
	return all
}

// underWay goes through the waiters before w for whom the back end is being asked, also those that are inside for a turn.
func (c *core) underWay(w *waiter) iter.Seq[*waiter] {
	return func(yield func(*waiter) bool) {
		for _, list := range [...][]*waiter{c.queue, c.outside} {
			for _, o := range list {
				if o.ask != nil && o.arrival < w.arrival && !yield(o) {
					return
				}
			}
		}
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// asked makes one attempt and carries out what it came to. It returns whether to try again.
func (t *Table) asked(a *ask) (again bool) {
	session, err := t.current(a.ctx, a.request.Wait)
	if err != nil {
		return t.failed(a, err)
	}
	return t.answered(a, session, t.send(a, session))
}

// send makes an attempt.
func (t *Table) send(a *ask, session backends.Session) backends.Pending[backends.Claim] {
	t.mu.Lock()
	left := len(a.waiters) == 0
	a.sent = a.sent || !left
	t.mu.Unlock()
	if left {
		return later[backends.Claim](func(context.Context) (backends.Claim, error) { return backends.Claim{}, context.Canceled })
	}
	return beginAcquire(session, a.name, a.attempt())
}

// attempt is the request to make. One that is not to wait is a try, which waits only to be told whether
// claims that other nodes keep are in use (backends.Kept).
func (a *ask) attempt() backends.Request {
	if a.request.Wait {
		return a.request
	}
	return try(a.request)
}

func try(r backends.Request) backends.Request {
	r.Wait, r.YieldTo = true, backends.ByOpen
	return r
}

// answered waits for an attempt's outcome and carries it out. It returns whether to try again.
func (t *Table) answered(a *ask, session backends.Session, p backends.Pending[backends.Claim]) (again bool) {
	claim, err := t.outcome(a, session, p)
	if err != nil {
		return t.failed(a, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if session != t.session { // the claim went with it
		a.again = len(a.waiters) > 0
		if !a.again {
			t.isOver(a)
		}
		return a.again
	}
	n := t.name(a.name) // not that of the start: it may have been forgotten since
	defer t.forget(n)
	t.got(n, a, claim)
	return false
}

// outcome waits for an attempt's outcome.
func (t *Table) outcome(a *ask, s backends.Session, p backends.Pending[backends.Claim]) (backends.Claim, error) {
	if a.request.Wait {
		return p.Result(a.ctx)
	}
	ctx, cancel := context.WithTimeout(a.ctx, t.options.UnavailableAfter)
	defer cancel()
	claim, err := p.Result(ctx)
	switch {
	case errors.Is(err, backends.ErrYield) && a.request.YieldTo != 0:
		claim, err = yieldOrNot(ctx, s, a)
	case errors.Is(err, backends.ErrYield):
		return claim, fmt.Errorf("%w (%v)", backends.ErrWouldBlock, err)
	}
	if err != nil && ctx.Err() != nil && a.ctx.Err() == nil {
		return claim, fmt.Errorf("no answer within %v: %w: %w", t.options.UnavailableAfter, backends.ErrUnavailable, err)
	}
	return claim, err
}

// yieldOrNot goes on with an open that is not to wait, after its try was refused: the lock is in use, perhaps by a call that the open yields to. That is another request, and
// meanwhile the lock may have come free, and its claim be one of which only a try can find out whether it is in use: then all begins anew, twice at most.
func yieldOrNot(ctx context.Context, s backends.Session, a *ask) (claim backends.Claim, err error) {
	for round := range 3 {
		claim, err = s.Acquire(ctx, a.name, a.request)
		if !errors.Is(err, backends.ErrWouldBlock) || round == 2 {
			return claim, err
		}
		holders, unknown := s.Holders(ctx, a.name, a.request.Lock)
		if unknown != nil || !slices.ContainsFunc(holders, func(h backends.Holder) bool { return h.Hint == backends.Kept }) {
			return claim, err
		}
		if claim, err = s.Acquire(ctx, a.name, a.attempt()); !errors.Is(err, backends.ErrYield) {
			return claim, err
		}
	}
	return claim, err
}

// failed carries out that an attempt brought no claim. It returns whether to try again.
func (t *Table) failed(a *ask, err error) (again bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !errors.Is(err, backends.ErrGivenUp) { // else TakenBack is called
		t.isOver(a)
	}
	if len(a.waiters) == 0 {
		return false
	}
	if errors.Is(err, backends.ErrSessionOver) || errors.Is(err, backends.ErrUnavailable) && a.request.Wait {
		a.again, a.over = true, false
		return true
	}
	if !a.request.Wait && errors.Is(err, backends.ErrDeadlock) {
		err = backends.ErrWouldBlock // it does not wait, so not for ever either
	}
	n := t.name(a.name)
	defer t.forget(n)
	n.othersAsk()
	for _, w := range slices.Clone(a.waiters) {
		n.remove(w)
		w.decide(err)
		t.unlist(w)
	}
	t.settleAside(n)
	return false
}

// got enters a claim, and lets those in for whom it was asked for. Who has gone meanwhile is not among
// them; then the claim is given back, or kept.
func (t *Table) got(n *name, a *ask, claim backends.Claim) {
	claim.Contended = claim.Contended || a.suspect
	n.gain(claim, t.options.Turn)
	if a.waited.Load() {
		n.othersAsk()
	}
	waiters := a.waiters
	a.waiters = nil
	for _, w := range waiters {
		w.ask, w.asked, w.inTurn = nil, true, false
		n.letIn(w)
	}
	todo := t.settle(n)
	if len(waiters) == 0 {
		go func() { t.perform(context.Background(), todo); t.takenBack(a) }()
		return
	}
	t.aside(todo)
	for _, w := range waiters {
		t.refuse(n, w)
	}
}

// refuse ends a request that is not to wait, and was let in, but found an owner
// on this node in its way. Its caller is told when what it was granted has been given back: it would be in others' way yet.
func (t *Table) refuse(n *name, w *waiter) {
	if w.Wait || !t.valid() || w.decided() || !slices.Contains(n.queue, w) {
		return
	}
	n.remove(w)
	t.unlist(w)
	todo := t.settle(n)
	if todo.done == nil {
		w.decide(backends.ErrWouldBlock)
		return
	}
	go func() {
		t.perform(context.Background(), todo)
		t.mu.Lock()
		defer t.mu.Unlock()
		w.decide(backends.ErrWouldBlock)
	}()
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
