package locks

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"lockfs/backends"
)

const (
	// keepPlace is how long an interrupted waiter keeps its place: the kernel
	// sends the request again where the signal's handler restarts calls.
	keepPlace = 30 * time.Millisecond
	// flushGrace is how long a request that is not to wait gives a handle
	// whose descriptor was just closed to be released (RELEASE comes after close(2)).
	flushGrace = 20 * time.Millisecond
)

// Options are what a Table needs.
type Options struct {
	// Open opens a session; the table calls it at once and again after a
	// session was lost. It bounds its own time by ctx.
	Open func(ctx context.Context) (backends.Session, error)
	// Alone reports whether the process is single-threaded and no other
	// process has the lock file open; nil: never. Called without locks held, rarely.
	Alone func(pid uint32, name string) bool
	// UnavailableAfter: how long a request that is not to wait tries, while
	// no session can be had, and how long an unlock waits for the back end.
	// 0: five seconds.
	UnavailableAfter time.Duration
	// Log takes what nobody can be returned: lost locks and sessions. nil discards.
	Log *slog.Logger
	// Watcher may be nil.
	Watcher Watcher
}

// Table is the node's lock table. It is safe for use by many goroutines.
type Table struct {
	options Options
	log     *slog.Logger
	stop    context.CancelFunc // ends run
	ended   chan struct{}      // closed when run has ended

	// mu guards all that follows, and what hangs on it. It is never held
	// while the back end is asked.
	mu      sync.Mutex
	names   map[string]*name
	session backends.Session // nil while there is none
	// news is closed, and replaced, whenever session changes.
	news     chan struct{}
	arrivals uint64
	// waiting are the waits of processes, over all names: who could be part
	// of a circle.
	waiting map[Owner][]*waiter
	// lost are the handles that held a lock when a session was lost, until they are released.
	lost map[uint64]bool
	// flushed are the handles of which a descriptor was closed, and nothing heard since.
	flushed map[uint64]time.Time
	closed  bool
	asks    sync.WaitGroup
	changes sync.WaitGroup
}

// name is one name that somebody on this node holds or wants.
type name struct {
	name string
	core
	claims
	watcher Watcher   // the table's
	told    []Holding // what it was told of this name
	// change is closed when the running Change has been carried out; nil when none runs.
	change chan struct{}
	// again: when the running Change is done, look what else there is to give back.
	again chan struct{}
	// freed is closed, and replaced, when a lock comes free here; nil when nobody listens.
	freed chan struct{}
}

// New opens a session and returns a table. ctx bounds the opening. The caller
// closes the table.
func New(ctx context.Context, options Options) (*Table, error) {
	session, err := options.Open(ctx)
	if err != nil {
		return nil, err
	}
	if options.UnavailableAfter == 0 {
		options.UnavailableAfter = 5 * time.Second
	}
	log := options.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	run, stop := context.WithCancel(context.Background())
	t := &Table{
		options: options, log: log, stop: stop, ended: make(chan struct{}),
		names: map[string]*name{}, session: session, news: make(chan struct{}),
		waiting: map[Owner][]*waiter{}, lost: map[uint64]bool{}, flushed: map[uint64]time.Time{},
	}
	t.until(session)
	go t.run(run, session)
	return t, nil
}

// name returns the entry for a name, made where there is none. forget drops it again.
func (t *Table) name(s string) *name {
	n := t.names[s]
	if n == nil {
		n = &name{name: s, watcher: t.options.Watcher}
		if n.watcher != nil {
			n.teller = n
		}
		t.names[s] = n
	}
	return n
}

// forget drops a name that nobody has or wants any more.
func (t *Table) forget(n *name) {
	if len(n.held)+len(n.queue)+len(n.outside)+len(n.list) == 0 && n.change == nil {
		delete(t.names, n.name)
	}
}

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
	deadline := time.Now().Add(flushGrace)
	for {
		w, done, freed, err := t.begin(&r)
		switch {
		case freed != nil && time.Now().Before(deadline):
			// Only handles that were just closed are in the way.
			waitFor(ctx, freed, time.Until(deadline))
			if ctx.Err() != nil {
				return ctx.Err()
			}
		case err != nil:
			return err
		case w != nil:
			return t.await(ctx, w)
		default:
			waitFor(ctx, done, t.options.UnavailableAfter)
			return nil
		}
	}
}

// begin starts a request. Of what it returns, w is the waiter where it is not
// decided yet; done, if not nil, is closed when the back end knows what changed;
// freed comes with ErrWouldBlock where trying again soon makes sense.
func (t *Table) begin(r *Request) (w *waiter, done, freed <-chan struct{}, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, nil, nil, ErrClosed
	}
	if t.lost[r.Handle] {
		return nil, nil, nil, ErrLost
	}
	delete(t.flushed, r.Handle)
	n := t.name(r.Name)
	defer t.forget(n)
	if w := n.resume(r); w != nil {
		t.settle(n)
		return w, nil, nil, nil
	}
	valid := t.valid()
	if valid && n.has(r) {
		n.take(r)
		return nil, t.settle(n), nil, nil
	}
	if r.Door == Flock {
		t.letGo(n, r)
	}
	t.arrivals++
	w = &waiter{Request: *r, arrival: t.arrivals, done: make(chan struct{})}
	if valid && n.admit(r.Lock) && !n.blockedByOutside(r) {
		n.queue = append(n.queue, w)
		done = t.settle(n)
		if w.decided() {
			return nil, done, nil, w.err
		}
	} else if n.yields(r) {
		return nil, nil, nil, backends.ErrYield
	} else if r.Wait || len(n.inTheWay(r)) == 0 || r.YieldTo != backends.ByOpen {
		// An open asks even where an owner here is in its way: one on another node may be one to yield to.
		n.outside = append(n.outside, w)
	}
	return t.enlist(n, w)
}

// enlist decides whether a request that can't be granted yet may wait, and
// starts the asking where it is outside.
func (t *Table) enlist(n *name, w *waiter) (_ *waiter, done, freed <-chan struct{}, err error) {
	outside := slices.Contains(n.outside, w)
	switch {
	case !w.Wait && !outside:
		t.drop(n, w)
		return nil, nil, t.soonFree(n, &w.Request), backends.ErrWouldBlock
	case w.Wait && w.Owner.Kind == Process && t.closesCircle(n, w):
		t.drop(n, w)
		return nil, nil, nil, backends.ErrDeadlock
	}
	if w.Owner.Kind == Process {
		t.waiting[w.Owner] = append(t.waiting[w.Owner], w)
	}
	if outside {
		t.startAsk(n, w)
	}
	return w, nil, nil, nil
}

// soonFree returns a channel that is closed when a lock on the name comes
// free, if all that is in the way belongs to handles that were just closed.
func (t *Table) soonFree(n *name, r *Request) <-chan struct{} {
	inTheWay := n.inTheWay(r)
	if len(inTheWay) == 0 {
		return nil // other waiters are
	}
	for _, h := range inTheWay {
		if since, ok := t.flushed[h.handle]; !ok || time.Since(since) > flushGrace {
			return nil
		}
	}
	if n.freed == nil {
		n.freed = make(chan struct{})
	}
	return n.freed
}

// letGo carries out the first step of a flock conversion: the existing lock is
// removed, then the new one established (flock(2)). The node's claim goes with it,
// so that two nodes that convert at the same time do not wait for each other.
func (t *Table) letGo(n *name, r *Request) {
	if n.freeAll(func(h *held) bool { return h.owner == r.Owner && h.Overlaps(r.Lock.Range) }) {
		t.settle(n)
	}
}

// resume finds the place that an interrupted caller of the same request left.
func (c *core) resume(r *Request) *waiter {
	for _, w := range c.all() {
		if w.suspended && w.Owner == r.Owner && w.Handle == r.Handle && w.Lock == r.Lock && w.Door == r.Door && r.Wait {
			w.suspended = false
			return w
		}
	}
	return nil
}

// await waits for the decision or the caller's end.
func (t *Table) await(ctx context.Context, w *waiter) error {
	if err := t.waitsForItself(w); err != nil {
		return err
	}
	defer t.watchWait(w)()
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
	n := t.name(w.Name)
	if w.Wait && w.Door != Open {
		w.suspended, w.until = true, time.Now().Add(keepPlace)
		time.AfterFunc(keepPlace, func() { t.expire(w) })
	} else {
		t.drop(n, w)
	}
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
	t.unlist(w)
	t.settle(n)
	t.forget(n)
}

// unlist ends what a waiter that is out of the lists has running.
func (t *Table) unlist(w *waiter) {
	if w.ask != nil {
		w.ask.cancel()
		w.ask = nil
	}
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
	before := n.all()
	n.core.settle()
	for _, w := range before {
		if w.decided() {
			t.unlist(w)
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
	if len(n.list) == 0 {
		return nil
	}
	changes := n.claims.trim(n.needs(), n.hintOn)
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

// Unlock gives up what the owner has on the bytes of r.Lock, and what the
// handle holds by its open alone. It returns when the back end has let go, or
// is out of reach and the session goes on trying; the unlock itself is never undone.
func (t *Table) Unlock(ctx context.Context, r Request) error {
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
	r.Lock.Mode = backends.None
	n.free(&r)
	done := t.released(n)
	t.mu.Unlock()
	waitFor(ctx, done, t.options.UnavailableAfter)
	return nil
}

// released follows up on locks that came free.
func (t *Table) released(n *name) <-chan struct{} {
	done := t.settle(n)
	if n.freed != nil {
		close(n.freed)
		n.freed = nil
	}
	t.forget(n)
	return done
}

// releaseAll gives up what matches on a name, and the places of interrupted
// callers that match.
func (t *Table) releaseAll(n *name, of func(owner Owner, handle uint64) bool) <-chan struct{} {
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
	done := t.releaseAll(n, func(o Owner, _ uint64) bool { return o == process })
	t.mu.Unlock()
	waitFor(context.Background(), done, t.options.UnavailableAfter)
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
		t.releaseAll(n, func(_ Owner, h uint64) bool { return h == handle })
	}
}

// Test returns the first lock in the way of r, as F_GETLK does.
func (t *Table) Test(ctx context.Context, r Request) (c Conflict, found bool, err error) {
	t.mu.Lock()
	n := t.name(r.Name)
	here := n.inTheWay(&r)
	ours := n.claims.have(r.Lock) // then no other node has it
	session := t.session
	t.forget(n)
	t.mu.Unlock()
	for _, h := range here {
		if !found || h.First < c.Lock.First {
			c, found = Conflict{Lock: h.Lock, PID: h.pid}, true
		}
	}
	if ours || found {
		return c, found, nil
	}
	if session == nil {
		return c, false, backends.ErrUnavailable
	}
	holders, err := session.Holders(ctx, r.Name, r.Lock)
	if err != nil {
		if errors.Is(err, backends.ErrSessionOver) {
			err = errors.Join(backends.ErrUnavailable, err)
		}
		return c, false, err
	}
	if len(holders) == 0 {
		return c, false, nil
	}
	return Conflict{Lock: holders[0].Lock}, true, nil
}

// Lost reports whether a lock that was held through the handle was lost with
// its session: every call on the descriptor is to fail with EIO.
func (t *Table) Lost(handle uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lost[handle]
}

// Held reports whether an owner on this node has a lock on the name.
func (t *Table) Held(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.names[name]
	return n != nil && len(n.held) > 0
}

// Token returns the fencing token under which this node holds the name now.
func (t *Table) Token(name string) (token uint64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.names[name]; n != nil && len(n.held) > 0 {
		return n.claims.token()
	}
	return 0, false
}
