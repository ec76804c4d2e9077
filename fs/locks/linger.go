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

// linger waits for a newcomer, with the table unlocked meanwhile, if that makes sense. The caller has taken its lock out of n, and gets the name's entry
// as it is then. done: another unlock lingers, or the table is closed, so that nothing is left to do.
//
// Invariant: what nobody uses is given back by the unlock that was the last to linger over it, before that returns. To other nodes it is as if
// the unlock had been called so much later; and it never outlasts the node's turn.
func (t *Table) linger(n *name, handle uint64) (now *name, done bool) {
	newcomer := n.expects(handle)
	left := n.turn - clock()
	if newcomer == nil || left <= 0 || !t.valid() {
		return n, false
	}
	c := n.company
	c.left()
	c.newcomer = newcomer
	t.mu.Unlock()
	waitFor(context.Background(), newcomer, min(lingerFor, left))
	t.mu.Lock()
	c.lingered(newcomer)
	now = t.name(n.name) // a lost session may have taken the entry along
	return now, t.closed || now.company != nil && now.company.newcomer != nil
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
