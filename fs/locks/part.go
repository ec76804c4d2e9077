package locks

import (
	"context"
	"time"

	"lockfs/backends"
)

// briefly is how long a claim is kept that needs no more than that nobody waits for the back end (Table.brief).
const briefly = 5 * time.Millisecond

// brief is how long a claim is kept that may be idle for all that other nodes know, where this node is not likely to be the next that wants it: the
// caller of its unlock has its answer by then, and those that came free meanwhile can be given back together.
func (t *Table) brief() time.Duration { return min(briefly, t.options.KeepIdle) }

// parting is a name whose claim is kept for a moment, since it came out of use.
type parting struct {
	n     *name
	since time.Duration
}

// part gives back what was kept for a moment.
func (t *Table) part() {
	t.mu.Lock()
	defer t.mu.Unlock()
	var due []*change
	for len(t.parting) > 0 && clock()-t.parting[0].since >= t.brief() {
		p := t.parting[0]
		t.parting = t.parting[1:]
		if t.names[p.n.name] == p.n && p.n.unused() && p.n.idleSince == p.since {
			if w := t.settle(p.n); w.change != nil {
				due = append(due, w.change)
			}
			t.forget(p.n)
		}
	}
	t.dropAside(due)
	if len(t.parting) > 0 {
		t.departure.Reset(t.parting[0].since + t.brief() - clock())
	} else {
		t.parting = nil
	}
}

// dropAside is aside for changes that give up a claim each, in one request where the session can do that.
func (t *Table) dropAside(changes []*change) {
	bulk, ok := t.session.(backends.Bulk)
	if !ok || len(changes) < 2 {
		for _, c := range changes {
			go t.carryOut(c)
		}
		return
	}
	var claims []backends.Named
	for _, c := range changes {
		for _, ch := range c.changes {
			claims = append(claims, backends.Named{Name: c.n.name, ID: ch.ID})
		}
	}
	go func() {
		err := bulk.Drop(context.Background(), claims)
		for _, c := range changes {
			t.carriedOut(c, nil, err)
		}
	}()
}
