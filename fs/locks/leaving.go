package locks

import (
	"slices"

	"lockfs/backends"
)

// leaveAsk takes a waiter out of its ask, if it has one, which ends with the last.
func (t *Table) leaveAsk(w *waiter) {
	a := w.ask
	if a == nil {
		return
	}
	a.waiters = slices.DeleteFunc(a.waiters, func(o *waiter) bool { return o == w })
	w.ask = nil
	if len(a.waiters) > 0 {
		return
	}
	a.cancel()
	if a.sent && !a.over {
		a.gone = make(chan struct{})
		t.leaving[a.name] = append(t.leaving[a.name], a)
	}
}

// takenBack notes that the back end has nothing of a request any more.
func (t *Table) takenBack(a *ask) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.isOver(a)
}

// isOver is takenBack with the table locked.
func (t *Table) isOver(a *ask) {
	a.over = true
	if a.gone == nil || closed(a.gone) {
		return
	}
	close(a.gone)
	rest := slices.DeleteFunc(t.leaving[a.name], func(o *ask) bool { return o == a })
	if len(rest) == 0 {
		delete(t.leaving, a.name)
	} else {
		t.leaving[a.name] = rest
	}
}

// inOthersWay returns the requests on a name that are being taken back and for which another node could be refused what nobody
// here has: all but those whose bytes somebody here has a write lock on.
func (t *Table) inOthersWay(n *name) (leaving []<-chan struct{}) {
	if len(t.leaving) == 0 {
		return nil
	}
	for _, a := range t.leaving[n.name] {
		if !slices.ContainsFunc(n.held, func(h held) bool { return h.Mode == backends.Write && h.Contains(a.request.Range) }) {
			leaving = append(leaving, a.gone)
		}
	}
	return leaving
}

// allOver forgets what was being taken back: its session is over.
func (t *Table) allOver() {
	for _, asks := range t.leaving {
		for _, a := range slices.Clone(asks) {
			t.isOver(a)
		}
	}
}
