package locks

import (
	"slices"
	"time"

	"lockfs/backends"
)

// habit is what a node knows about the use of a name, to judge whether it will be the next to want it. A claim that
// is kept idle makes the next lock here free, and the next lock elsewhere dearer by two messages.
//
// Invariant: a claim is idle only while it says so to the back end (backends.Kept), from before the unlock
// returns that made it idle; so no node is refused a lock that nobody holds.
type habit struct {
	// streak counts how often in a row owners here took the name when it was free, without any other node having
	// asked for it.
	streak uint8
	// patience is the streak from which on the claim is kept; it grows when keeping it was in vain.
	patience uint8
	// served counts the takings since the claim is kept.
	served uint8
	// shared: another node asked for it, or had it, since the name was last left alone for a while.
	shared bool
	// looked: it is among the table's looks.
	looked bool
	// busy: some owner has or wants it; idleSince (see clock) counts when not.
	busy      bool
	idleSince time.Duration
}

// began is when this process did, more or less.
var began = time.Now()

// clock is the time since then. Where the table keeps a time for each name, this takes a third of time.Time's room.
func clock() time.Duration { return time.Since(began) }

const (
	leastPatience = 2
	mostPatience  = 64
	// worthwhile is how many takings make up for one that was in vain.
	worthwhile = 8
	// maxWarm bounds the names that are kept idle, and those remembered for it.
	maxWarm = 1024
)

// taking notes that an owner here is about to take a name.
func (t *Table) taking(n *name) {
	n.company.came()
	if n.busy || !n.unused() {
		return
	}
	n.busy = true
	if clock()-n.idleSince > t.options.KeepIdle {
		n.streak = 0
	}
	n.streak = min(n.streak+1, mostPatience) // more says no more
	if len(n.list) > 0 {
		n.served = min(n.served+1, worthwhile)
	}
}

// othersAsk notes that another node wants the name or had it.
func (h *habit) othersAsk() { h.streak, h.served, h.shared = 0, 0, true }

// label is what a waiter's request tells other nodes of its claim. As long as none of them has asked for the name it is Kept from the beginning, as if the
// claim had been kept before: then the unlock need not wait until the back end knows of it. A node that asks costs two messages more, once; and
// where a relabelling is a message to those who wait, it is not so from the beginning.
func (t *Table) label(n *name, w *waiter) backends.Hint {
	if _, quiet := t.session.(backends.Quiet); quiet && t.options.KeepIdle > 0 && !n.shared {
		return backends.Kept
	}
	return w.hint()
}

// giveUp is called when another node may wait for what this one has: from here on nothing is kept idle for it, and what is
// in use is labelled so.
func (t *Table) giveUp(n *name) {
	n.startTurn(t.options.Turn)
	if len(n.list) > 0 && n.unused() { // kept in vain, or not
		if n.served >= worthwhile {
			n.patience = leastPatience
		} else {
			n.patience = min(2*max(n.patience, leastPatience), mostPatience)
		}
	}
	n.othersAsk()
	if c := t.mayBeGone(n); c != nil {
		t.asks.Go(func() { t.giveUpLater(n.name, c) })
		return
	}
	t.settleAside(n)
	t.forget(n)
}

// mayBeGone is not nil where another node asks whether a claim is in use, and those who hold it have closed a descriptor: a program that has
// ended, perhaps. Its RELEASE is waited for, as it is where the one who asks is on this node.
func (t *Table) mayBeGone(n *name) *closing {
	if t.closed || !n.mayBeIdle() {
		return nil
	}
	c := t.closing(n, n.held)
	if c == nil || time.Since(slices.MinFunc(c.since, time.Time.Compare)) > flushLimit {
		return nil
	}
	return c
}

// giveUpLater is the rest of giveUp, when a RELEASE has come or is not to be expected any more.
func (t *Table) giveUpLater(name string, c *closing) {
	t.awaitRelease(t.life, c)
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.name(name)
	t.settleAside(n)
	t.forget(n)
}

// keeps reports whether what the node has on a name is kept now that no owner here needs it.
func (t *Table) keeps(n *name) bool {
	if t.options.KeepIdle <= 0 || t.closed || !n.unused() || len(n.list) != 1 {
		return false
	}
	if n.staying() {
		return t.warmUp(n)
	}
	return n.list[0].Hint == backends.Kept && len(t.parting) < maxWarm && (n.busy || clock()-n.idleSince < t.brief())
}

// staying reports whether this node is likely to be the next that wants the name.
func (h *habit) staying() bool { return h.streak >= max(h.patience, leastPatience) }

// warmUp has a name looked at when it has been idle for a while; false: there are too many.
func (t *Table) warmUp(n *name) bool {
	if t.warm[n] {
		return true
	}
	if len(t.warm) >= maxWarm {
		return false
	}
	if len(t.warm) == 0 {
		t.idle.Reset(t.options.KeepIdle)
	}
	t.warm[n] = true
	return true
}

// cool notes when a name came out of use, and reports whether it is to be remembered for a while.
func (t *Table) cool(n *name) bool {
	if n.busy {
		n.busy, n.idleSince = false, clock()
		if len(n.list) > 0 && !n.staying() {
			if len(t.parting) == 0 {
				t.departure.Reset(t.brief())
			}
			t.parting = append(t.parting, parting{n, n.idleSince})
		}
	}
	return t.options.KeepIdle > 0 && (n.streak > 0 || n.shared || n.patience > leastPatience || n.company.inVain()) && !t.closed && t.warmUp(n)
}

// sweep gives back what was kept idle for long enough, and forgets.
func (t *Table) sweep() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for n := range t.warm {
		switch {
		case !n.unused():
			delete(t.warm, n) // it comes back with the unlock
		case clock()-n.idleSince >= t.options.KeepIdle:
			delete(t.warm, n)
			n.streak, n.patience, n.shared = 0, 0, false
			n.company.forgive()
			t.settleAside(n)
			t.forget(n)
		}
	}
	if len(t.warm) > 0 {
		t.idle.Reset(max(t.options.KeepIdle/4, time.Millisecond))
	}
}
