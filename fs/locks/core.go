package locks

import (
	"slices"
	"time"

	"lockfs/backends"
)

// core is the pure part: who on this node holds which bytes of one name, and
// who is next. It does no I/O and knows neither clock nor back end.
//
// Invariant: two held locks never collide (see collide).
type core struct {
	held []held
	// queue are the admitted waiters: the node's claims on the name cover
	// what they want, and only owners on this node are in their way. In the
	// order of their admission.
	queue []*waiter
	// outside are the waiters that the node asks the back end for, in the
	// order of their arrival, which is that of their requests. The back end decides in which order they are
	// admitted; they block nobody who is inside.
	outside []*waiter
	// of, where not nil, is the name that it belongs to: which gives each new lock its fencing token, and tells
	// the watcher what is held.
	of *name
}

// held is a lock that an owner has.
type held struct {
	owner Owner
	// handle is the open file description through which it was taken.
	handle uint64
	backends.Lock
	token uint64
	pid   uint32
	hint  backends.Hint
	// created: by the open that made the file.
	created bool
}

// waiter is a request that waits. Its fields are guarded by the table's mutex.
type waiter struct {
	Request
	// arrival grows from each waiter to the next; of one that is asked for, it is so in the order of the requests.
	arrival uint64
	// suspended: its caller was interrupted; the place is kept until then,
	// and nothing is granted meanwhile.
	suspended bool
	until     time.Time
	// ask is the running request to the back end, nil when there is none.
	ask *ask
	// asked: the back end granted it; wentAhead: it was asked with locks that its owner keeps.
	asked, wentAhead bool
	// inTurn: it is in the queue for the node's turn only (endTurn).
	inTurn bool
	// done is closed when the request is decided; then err says how.
	done chan struct{}
	err  error
	// later, where not nil, is told then; else somebody waits for done.
	later *answering
}

func (w *waiter) decided() bool { return closed(w.done) }

func (w *waiter) decide(err error) {
	w.err = err
	close(w.done)
	if w.later != nil {
		w.later.table.mu.due = append(w.later.table.mu.due, w)
	}
}

// hint says what kind of call a request is.
func (r *Request) hint() backends.Hint {
	switch {
	case r.Door == Open:
		return backends.ByOpen
	case r.Writable:
		return backends.ByCallOnWritable
	}
	return backends.ByCall
}

// same reports whether locks of the two owners, taken through these handles,
// belong together and never collide: those of one owner, and those of one
// description, unless both are of processes (two processes that share a
// description exclude each other by classic fcntl locks).
func same(a Owner, handleA uint64, b Owner, handleB uint64) bool {
	return a == b || handleA == handleB && (a.Kind != Process || b.Kind != Process)
}

// ours reports whether a held lock belongs to the owner of the request.
func (h *held) ours(r *Request) bool { return same(h.owner, h.handle, r.Owner, r.Handle) }

// collide reports whether a held lock is in the way of a request.
func (h *held) collides(r *Request) bool { return h.Conflicts(r.Lock) && !h.ours(r) }

// collides reports whether two requests can't both be granted.
func (w *waiter) collides(r *Request) bool {
	return w.Lock.Conflicts(r.Lock) && !same(w.Owner, w.Handle, r.Owner, r.Handle)
}

// inTheWay returns the held locks that collide with a request.
func (c *core) inTheWay(r *Request) []held {
	var all []held
	for i := range c.held {
		if c.held[i].collides(r) {
			all = append(all, c.held[i])
		}
	}
	return all
}

// free reports whether no held lock collides with a request.
func (c *core) free(r *Request) bool {
	return !slices.ContainsFunc(c.held, func(h held) bool { return h.collides(r) })
}

// heldBy reports whether anything was taken through a handle and is held.
func (c *core) heldBy(handle uint64) bool {
	return slices.ContainsFunc(c.held, func(h held) bool { return h.handle == handle })
}

// has reports whether the request's owner has what it asks for already, or more, and
// under which token.
func (c *core) has(r *Request) (token uint64, ok bool) {
	var own []backends.Lock
	for i := range c.held {
		if c.held[i].ours(r) && c.held[i].Overlaps(r.Lock.Range) {
			own = append(own, c.held[i].Lock)
			token = max(token, c.held[i].token)
		}
	}
	return token, covers(own, r.Lock)
}

// token is that of a new lock: what its owner has already is no new grant. What it has through another handle is: the owner of
// an OFD lock may be the next one at the same place (fs.Release), and then it is another holder.
func (c *core) token(r *Request) uint64 {
	token, ok := c.has(r)
	another := func(h held) bool { return h.ours(r) && h.handle != r.Handle && h.Overlaps(r.Lock.Range) }
	if c.of != nil && (!ok || slices.ContainsFunc(c.held, another)) {
		return c.of.next(r.Lock)
	}
	return token
}

// set carries out a request whose turn it is, for any mode: it replaces what
// the owner had on those bytes, and an explicit call takes over from what the
// handle's open took.
func (c *core) set(r *Request) {
	token := uint64(0)
	if r.Lock.Mode != backends.None {
		token = c.token(r)
	}
	if slices.ContainsFunc(c.held, func(h held) bool { return h.owner == r.Owner && h.Overlaps(r.Lock.Range) || h.byOpenOf(r.Handle) }) {
		c.clear(r)
	}
	if r.Lock.Mode != backends.None {
		c.insert(held{owner: r.Owner, handle: r.Handle, Lock: r.Lock, hint: r.hint(), token: token, pid: r.PID, created: r.Created})
	}
}

// clear takes away what a request replaces.
func (c *core) clear(r *Request) {
	kept := c.held[:0:0]
	for _, h := range c.held {
		if r.Door != Open && h.byOpenOf(r.Handle) {
			continue
		}
		if h.owner != r.Owner || !h.Overlaps(r.Lock.Range) {
			kept = append(kept, h)
			continue
		}
		if h.First < r.Lock.First {
			left := h
			left.Last = r.Lock.First - 1
			kept = append(kept, left)
		}
		if h.Last > r.Lock.Last {
			right := h
			right.First = r.Lock.Last + 1
			kept = append(kept, right)
		}
	}
	if len(kept) == 0 {
		kept = c.held[:0] // most often, and the room is needed again
	}
	c.held = kept
}

// byOpenOf reports whether the lock was taken by the open of a handle, and
// by no explicit call since.
func (h *held) byOpenOf(handle uint64) bool {
	return h.handle == handle && h.owner.Kind == Description && h.hint == backends.ByOpen
}

// insert adds a lock and joins it with its owner's adjacent ones of the same
// kind, so that a file locked byte by byte does not grow the list.
func (c *core) insert(n held) {
	for i := 0; i < len(c.held); {
		h := c.held[i]
		adjacent := h.Last+1 == n.First || n.Last+1 == h.First
		if adjacent && h.owner == n.owner && h.handle == n.handle && h.Mode == n.Mode && h.hint == n.hint && h.pid == n.pid {
			n.First, n.Last, n.token = min(h.First, n.First), max(h.Last, n.Last), max(h.token, n.token)
			c.held = slices.Delete(c.held, i, i+1)
			continue
		}
		i++
	}
	c.held = append(c.held, n)
}

// freeAll takes away all locks that match.
func (c *core) freeAll(match func(*held) bool) (freed bool) {
	kept := c.held[:0]
	for i := range c.held {
		if !match(&c.held[i]) {
			kept = append(kept, c.held[i])
		}
	}
	freed = len(kept) < len(c.held)
	c.held = kept
	return freed
}

// settle grants what can be granted, in the order of the queue, and ends the
// opens that yield. It appends the waiters decided to a list and returns that; they are out of the core's.
func (c *core) settle(decided []*waiter) []*waiter {
	for {
		n := len(c.queue)
		c.queue = slices.DeleteFunc(c.queue, func(w *waiter) bool { return w.decided() })
		for i, w := range c.queue {
			if !w.suspended && !c.blocked(i) {
				c.set(&w.Request)
				c.queue = slices.Delete(c.queue, i, i+1)
				if c.of != nil {
					c.of.tell() // before the caller, who goes off with it
				}
				w.decide(nil)
				decided = append(decided, w)
				break
			}
		}
		if len(c.queue) == n {
			break
		}
	}
	before := len(c.queue)
	if decided = c.yield(&c.queue, decided); len(c.queue) < before {
		return c.settle(decided) // who yielded may have been in the way of others
	}
	return c.yield(&c.outside, decided)
}

// yield ends the opens in a list that yield to a lock held here, and appends them to those decided. Those that wait
// for the back end learn of other nodes' locks from it.
func (c *core) yield(list *[]*waiter, decided []*waiter) []*waiter {
	*list = slices.DeleteFunc(*list, func(w *waiter) bool {
		if !c.yields(&w.Request) {
			return false
		}
		w.decide(backends.ErrYield)
		decided = append(decided, w)
		return true
	})
	return decided
}

// yields reports whether an open yields to a lock held here.
func (c *core) yields(r *Request) bool {
	if r.Door != Open || r.YieldTo == 0 {
		return false
	}
	return slices.ContainsFunc(c.held, func(h held) bool { return h.hint >= r.YieldTo && h.collides(r) })
}

// blocked reports whether the waiter at index i of the queue has to wait: for
// a held lock, or behind one who came before. It goes ahead of those who wait
// for its own owner, for behind them it would wait for ever.
func (c *core) blocked(i int) bool {
	w := c.queue[i]
	if slices.ContainsFunc(c.held, func(h held) bool { return h.collides(&w.Request) }) || c.awaitsEarlier(w) {
		return true
	}
	o := c.order(c.queue)
	for k, before := range c.queue[:i] {
		if before.collides(&w.Request) && !o.ahead(i)[k] {
			return true
		}
	}
	return false
}

// letIn puts a waiter that the back end has granted into the queue: ahead of
// those who came later, whose grants have only been heard of earlier.
func (c *core) letIn(w *waiter) {
	c.remove(w)
	c.queue = insertBefore(c.queue, w, func(o *waiter) bool { return o.asked && o.arrival > w.arrival })
}

// insertBefore puts a waiter before the first that matches, else at the end.
func insertBefore(list []*waiter, w *waiter, match func(*waiter) bool) []*waiter {
	at := slices.IndexFunc(list, match)
	if at < 0 {
		at = len(list)
	}
	return slices.Insert(list, at, w)
}

// awaitsEarlier reports whether the grant of one who came before w to the
// back end, and excludes it, must be under way: the back end served it first, for
// requests that collide are sent one after the other (startAsk). Only who went ahead
// of others by what its owner keeps may have been served before them.
func (c *core) awaitsEarlier(w *waiter) bool {
	return w.asked && !w.wentAhead && slices.ContainsFunc(c.outside, func(o *waiter) bool {
		return o.Wait && o.arrival < w.arrival && o.collides(&w.Request) && (o.ask == nil || !o.ask.again)
	})
}

// order answers who of a list of waiters waits for whom, while nothing changes.
type order struct {
	*core
	list  []*waiter
	known map[int][]bool // what ahead returned
}

func (c *core) order(list []*waiter) *order { return &order{core: c, list: list} }

// ahead says of each waiter before number k whether k goes ahead of it.
func (o *order) ahead(k int) []bool {
	if waits, ok := o.known[k]; ok {
		return waits
	}
	waits := o.waitingFor(&o.list[k].Request, k)
	if o.known == nil {
		o.known = map[int][]bool{}
	}
	o.known[k] = waits
	return waits
}

// waitingFor says of each of the first n waiters whether it waits for a lock
// of the request's owner, or behind one who does.
func (o *order) waitingFor(r *Request, n int) []bool {
	waits := make([]bool, n)
	var own []*held
	for i := range o.held {
		if o.held[i].ours(r) {
			own = append(own, &o.held[i])
		}
	}
	if len(own) == 0 {
		return waits
	}
	for k, w := range o.list[:n] {
		if !same(w.Owner, w.Handle, r.Owner, r.Handle) {
			waits[k] = slices.ContainsFunc(own, func(h *held) bool { return h.collides(&w.Request) }) || o.behind(k, waits)
		}
	}
	return waits
}

// behind reports whether waiter k stands behind one of these, and does not go ahead of it.
func (o *order) behind(k int, these []bool) bool {
	for j := range k {
		if these[j] && o.list[j].collides(&o.list[k].Request) && !o.ahead(k)[j] {
			return true
		}
	}
	return false
}

// all returns all waiters: who is inside, then who is outside.
func (c *core) all() []*waiter { return slices.Concat(c.queue, c.outside) }

// before returns the waiters before w: all who are inside where w is outside.
func (c *core) before(w *waiter) []*waiter {
	all := c.all()
	if i := slices.Index(all, w); i >= 0 {
		return all[:i]
	}
	return all
}

// waitsFor returns the owners that a waiter waits for: those who hold what it
// wants, and those who stand before it.
func (c *core) waitsFor(w *waiter) []Owner {
	var owners []Owner
	for _, h := range c.inTheWay(&w.Request) {
		owners = append(owners, h.owner)
	}
	before := c.before(w)
	ahead := c.order(before).waitingFor(&w.Request, len(before))
	for k, b := range before {
		if b.collides(&w.Request) && !ahead[k] && !b.suspended {
			owners = append(owners, b.Owner)
		}
	}
	return owners
}

// kept returns the locks on this name that can't come free before the
// request's owner goes on: its own, and those of the waiters inside who wait for it.
// The back end lets the request go ahead of those who wait for them.
func (c *core) kept(r *Request) []backends.Lock {
	var locks []backends.Lock
	for i := range c.held {
		if c.held[i].ours(r) {
			locks = append(locks, c.held[i].Lock)
		}
	}
	if len(locks) == 0 {
		return nil
	}
	for k, waits := range c.order(c.queue).waitingFor(r, len(c.queue)) {
		if waits {
			locks = append(locks, c.queue[k].Lock)
		}
	}
	return locks
}

// blockedByOutside reports whether a newcomer would overtake a waiter that
// the node asks the back end for.
func (c *core) blockedByOutside(r *Request) bool {
	if len(c.outside) == 0 {
		return false
	}
	all := c.all()
	ahead := c.order(all).waitingFor(r, len(all))
	for k, w := range all[len(c.queue):] {
		if w.collides(r) && !ahead[len(c.queue)+k] {
			return true
		}
	}
	return false
}

// remove takes a waiter out of the lists.
func (c *core) remove(w *waiter) {
	is := func(o *waiter) bool { return o == w }
	c.queue = slices.DeleteFunc(c.queue, is)
	c.outside = slices.DeleteFunc(c.outside, is)
}

// needs returns what the owners on this node need the node to have: what
// they hold, and what the waiters inside have been admitted for.
func (c *core) needs() []backends.Lock {
	locks := make([]backends.Lock, 0, len(c.held)+len(c.queue))
	for i := range c.held {
		locks = append(locks, c.held[i].Lock)
	}
	for _, w := range c.queue {
		locks = append(locks, w.Lock)
	}
	return union(locks)
}

// hintOn says what kind of call stands behind the held locks on a range;
// ok is false where nothing is held.
func (c *core) hintOn(r backends.Range) (hint backends.Hint, ok bool) {
	for i := range c.held {
		if c.held[i].Overlaps(r) {
			hint, ok = max(hint, c.held[i].hint), true
		}
	}
	return hint, ok
}
