package locks

import (
	"context"
	"time"
)

// lingerFor is how long an unlock waits, at most, for a newcomer on this node to whom the lock can go on while the node's turn lasts. One who has just
// been let go is back after some 50 µs, if it comes back; a hand-over between nodes takes several hundred.
const lingerFor = 200 * time.Microsecond

// company is what owners on one node are to each other on a name, besides being in each other's way.
//
// Lingering is for where few owners here take a name in turn, and another node waits: each is often a few microseconds late, and would find the
// turn ended by the other one's unlock, for nobody was waiting at that moment. Nodes whose owners happen to be in step would be served
// all their turn, and the others once or twice in theirs.
type company struct {
	// freed is closed when a lock comes free here; nil while nobody listens.
	freed chan struct{}
	// newcomer is closed when somebody comes; nil while no unlock lingers.
	newcomer chan struct{}
	// last is the handle that was unlocked last.
	last uint64
	// vain counts how often in a row nobody came, patience how many unlocks are still not to linger.
	vain, patience uint8
}

func (n *name) withCompany() *company {
	if n.company == nil {
		n.company = &company{}
	}
	return n.company
}

// left tells those who listen that a lock came free.
func (c *company) left() {
	if c != nil && c.freed != nil {
		close(c.freed)
		c.freed = nil
	}
}

// came tells the unlock that lingers that there is a newcomer.
func (c *company) came() {
	if c != nil && c.newcomer != nil {
		close(c.newcomer)
		c.newcomer, c.vain = nil, 0
	}
}

const mostVain = 7

// lingers decides whether an unlock is to wait for a newcomer. The caller has taken its lock out of n, and calls linger then. nil: it is not to.
//
// Invariant: what nobody uses is given back by the unlock that was the last to linger over it, before that returns. To other nodes it is as if
// the unlock had been called so much later; and it never outlasts the node's turn.
func (t *Table) lingers(n *name, handle uint64) (newcomer chan struct{}, most time.Duration) {
	newcomer = n.expects(handle)
	most = min(lingerFor, n.turn-clock())
	if newcomer == nil || most <= 0 || !t.valid() {
		return nil, 0
	}
	n.company.left()
	n.company.newcomer = newcomer
	return newcomer, most
}

// linger waits for the newcomer, and returns what the unlock leaves to be done: nothing, where another one lingers now.
func (t *Table) linger(u unlockCall) work {
	waitFor(context.Background(), u.newcomer, u.linger)
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.name(u.name) // a lost session may have taken the entry along
	if n.company != nil {
		n.company.lingered(u.newcomer)
	}
	if t.closed || n.company != nil && n.company.newcomer != nil {
		return work{}
	}
	return t.released(n)
}

// expects notes an unlock, and returns a channel to wait with for a newcomer; nil where none is to be expected.
func (n *name) expects(handle uint64) chan struct{} {
	if n.turn == 0 {
		return nil // no other node waits
	}
	c := n.withCompany()
	alone := c.last == handle || c.last == 0
	c.last = handle
	switch {
	case alone, c.newcomer != nil, len(n.held)+len(n.queue) > 0:
		return nil
	case c.patience > 0:
		c.patience--
		return nil
	}
	return make(chan struct{})
}

// lingered notes that the lingering has ended.
func (c *company) lingered(newcomer chan struct{}) {
	if c.newcomer == newcomer { // in vain
		c.newcomer, c.patience, c.vain = nil, 1<<c.vain-1, min(c.vain+1, mostVain)
	}
}

// forgive forgets what was in vain.
func (c *company) forgive() {
	if c != nil {
		c.vain, c.patience = 0, 0
	}
}

// inVain reports whether there is something to remember.
func (c *company) inVain() bool { return c != nil && c.vain > 0 }
