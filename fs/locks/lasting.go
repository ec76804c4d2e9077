package locks

import (
	"cmp"
	"slices"
	"time"

	"lockfs/backends"
)

// lasting is after how long, about, a node tells the back end that a lock is held whose claim may be idle for all that other nodes know. From then on who
// tries it is refused without asking here, be this node alive or not; and its unlock waits for the back end, as after any other claim.
const lasting = time.Second

// look is a name that somebody here had at some time, under a claim that may be idle.
type look struct {
	n *name
	// token is that of the lock that was there the longest.
	token uint64
	due   time.Duration
}

// lookLater has a name looked at when a lock on it may have lasted.
func (t *Table) lookLater(n *name) {
	if n.looked || len(n.held) == 0 || !n.mayBeIdle() {
		return
	}
	n.looked = true
	if len(t.looks) == 0 {
		t.looking.Reset(lasting)
	}
	t.looks = append(t.looks, look{n, n.oldest(), clock() + lasting})
}

// mayBeIdle reports whether there is a claim of which other nodes can't tell whether it is in use.
func (c *claims) mayBeIdle() bool {
	return slices.ContainsFunc(c.list, func(k backends.Claim) bool { return k.Hint == backends.Kept })
}

// oldest is the token of the lock that has been held for the longest.
func (c *core) oldest() uint64 {
	return slices.MinFunc(c.held, func(a, b held) int { return cmp.Compare(a.token, b.token) }).token
}

// lookAround tells the back end of the locks that have lasted. Of a name that is locked again and again it says nothing.
func (t *Table) lookAround() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.looks) > 0 && t.looks[0].due <= clock() {
		l := t.looks[0]
		t.looks = t.looks[1:]
		l.n.looked = false
		switch {
		case t.names[l.n.name] != l.n || len(l.n.held) == 0: // whoever takes it has it looked at again
		case l.n.change != nil || l.n.oldest() != l.token || !t.valid():
			t.lookLater(l.n)
		default:
			t.aside(t.begins(l.n, l.n.claims.trim(l.n.needs(), l.n.hintOn, spareNone)))
		}
	}
	if len(t.looks) > 0 {
		t.looking.Reset(t.looks[0].due - clock())
	} else {
		t.looks = nil
	}
}
