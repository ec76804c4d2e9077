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
	// whose descriptor was just closed to be released (RELEASE comes after close(2)), on a machine that isn't busy.
	flushGrace = 20 * time.Millisecond
	// flushLimit bounds what a request that is not to wait spends on such handles.
	flushLimit = time.Second
)

// Options are what a Table needs.
type Options struct {
	// Open opens a session; the table calls it at once and again after a
	// session was lost. It bounds its own time by ctx.
	Open func(ctx context.Context) (backends.Session, error)
	// Alone reports whether the process is single-threaded and no other
	// process has the lock file open; nil: never. Called without locks held, rarely.
	Alone func(pid uint32, name string) bool
	// CatchUp returns when all that this process had begun has had its turn on the processor: a RELEASE that it has
	// read, for one. It returns early at the end of ctx and when done is closed. nil: that can't be known.
	CatchUp func(ctx context.Context, done <-chan struct{})
	// UnavailableAfter: how long a request that is not to wait tries, while
	// no session can be had, and how long an unlock waits for the back end.
	// 0: five seconds.
	UnavailableAfter time.Duration
	// KeepIdle is how long a claim that no owner here needs any more is kept where this node is likely to be
	// the next that wants it, and nobody else does. 0: it is given back at once.
	KeepIdle time.Duration
	// Turn is how long a node that another one waits for still serves newcomers first, so that
	// owners on one node can follow each other without the back end. 0: first come, first served to the letter.
	Turn time.Duration
	// Log takes what nobody can be returned: lost locks and sessions. nil discards.
	Log *slog.Logger
	// Watcher may be nil.
	Watcher Watcher
}

// Table is the node's lock table. It is safe for use by many goroutines.
type Table struct {
	options Options
	log     *slog.Logger
	life    context.Context    // ends with Close
	stop    context.CancelFunc // ends life
	ended   chan struct{}      // closed when run has ended

	// mu guards all that follows, and what hangs on it. It is never held
	// while the back end is asked.
	mu      mutex
	names   map[string]*name
	session backends.Session // nil while there is none
	// news is closed, and replaced, whenever session changes.
	news     chan struct{}
	arrivals uint64
	// waiting are the waits of processes, over all names: who could be part
	// of a circle.
	waiting map[Owner][]*waiter
	// leaving are the requests that are being taken back from the back end, by name.
	leaving map[string][]*ask
	// lost are the handles that held a lock when a session was lost, until they are released.
	lost map[uint64]bool
	// flushed are the handles of which a descriptor was closed, and nothing heard since; nor is it known that
	// the description lives on.
	flushed map[uint64]time.Time
	// warm are the names that may be kept idle, and those that were used a moment ago; idle is the time to
	// look which have been so for too long.
	warm map[*name]bool
	idle *time.Timer
	// parting are the names whose claims are kept for a moment, the first to go first; departure is its time.
	parting   []parting
	departure *time.Timer
	// looks are the names to be looked at whether a lock on them lasts, the first that is due first; looking is its time.
	looks   []look
	looking *time.Timer
	// holds is room for what the watcher is to be told of a name.
	holds []told

	closed  bool
	asks    sync.WaitGroup
	changes sync.WaitGroup
}

// name is one name that somebody on this node holds or wants. There may be many thousands, so it is kept small.
type name struct {
	name  string
	table *Table
	core
	claims
	habit
	// company is nil where none has been of use yet (withCompany).
	company *company
	told    []told // what the watcher was told of it
	// change is the Change that runs; nil when none does.
	change *change
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
	life, stop := context.WithCancel(context.Background())
	t := &Table{
		options: options, log: log, life: life, stop: stop, ended: make(chan struct{}),
		names: map[string]*name{}, session: session, news: make(chan struct{}),
		waiting: map[Owner][]*waiter{}, leaving: map[string][]*ask{}, lost: map[uint64]bool{}, flushed: map[uint64]time.Time{},
		warm: map[*name]bool{}, idle: time.NewTimer(time.Hour), departure: time.NewTimer(time.Hour),
		looking: time.NewTimer(time.Hour),
	}
	t.idle.Stop()
	t.departure.Stop()
	t.looking.Stop()
	t.until(session)
	go t.run(life, session)
	return t, nil
}

// name returns the entry for a name, made where there is none. forget drops it again.
func (t *Table) name(s string) *name {
	n := t.names[s]
	if n == nil {
		n = &name{name: s, table: t}
		n.of = n
		t.names[s] = n
	}
	return n
}

// forget drops a name that nobody has or wants any more, or notes since when that is so.
func (t *Table) forget(n *name) {
	if !n.unused() || t.cool(n) || len(n.list) > 0 || n.change != nil {
		return
	}
	delete(t.names, n.name)
	delete(t.warm, n)
}

// unused reports whether no owner here has or wants the name.
func (c *core) unused() bool { return len(c.held)+len(c.queue)+len(c.outside) == 0 }

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
	h, found, err := elsewhere(ctx, session, &r)
	if errors.Is(err, backends.ErrSessionOver) {
		err = errors.Join(backends.ErrUnavailable, err)
	}
	return Conflict{Lock: h.Lock}, found, err
}

// elsewhere returns the first lock of another node in the way of r. Of claims that may be idle it finds out by a try, whose
// claim it gives back at once.
func elsewhere(ctx context.Context, session backends.Session, r *Request) (h backends.Holder, found bool, err error) {
	for range 2 {
		holders, err := session.Holders(ctx, r.Name, r.Lock)
		if err != nil || len(holders) == 0 {
			return h, false, err
		}
		if i := slices.IndexFunc(holders, func(h backends.Holder) bool { return h.Hint != backends.Kept }); i >= 0 {
			return holders[i], true, nil
		}
		h = holders[0]
		claim, err := session.Acquire(ctx, r.Name, try(backends.Request{Lock: r.Lock, Hint: backends.Kept}))
		switch {
		case err == nil:
			_, err = session.Change(ctx, r.Name, []backends.Change{{ID: claim.ID}})
			return h, false, err
		case !errors.Is(err, backends.ErrYield):
			return h, false, err
		}
	}
	return h, true, nil // one that changes all the time
}

// Lost reports whether a lock that was held through the handle was lost with
// its session: every call on the descriptor is to fail with EIO. It is so from the moment when
// the lease has run out, be its end noticed yet or not.
func (t *Table) Lost(handle uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lost[handle] || t.valid() {
		return t.lost[handle]
	}
	for _, n := range t.names {
		if n.heldBy(handle) {
			return true
		}
	}
	return false
}

// Held reports whether an owner on this node has a lock on the name.
func (t *Table) Held(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.names[name]
	return n != nil && len(n.held) > 0
}

// Token returns the fencing token under which a process holds the name now; of one that
// does not hold it itself (getfattr in a script, say), that of the last lock given on this node. ok is false where
// nobody on this node holds it.
func (t *Table) Token(name string, pid uint32) (token uint64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.names[name]
	if n == nil || len(n.held) == 0 {
		return 0, false
	}
	for i := range n.held {
		if n.held[i].pid == pid {
			token = max(token, n.held[i].token)
		}
	}
	if token == 0 {
		token = n.last
	}
	return token, true
}
