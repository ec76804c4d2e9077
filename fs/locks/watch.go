package locks

import (
	"slices"
	"time"

	"lockfs/backends"
	"lockfs/backends/lease"
)

// Watcher is told who holds what, so that somebody outside can know it when this process is dead or stands
// still, or when the session is lost. Its methods must be quick and must not block: all
// but Lost are called with the table locked.
type Watcher interface {
	// Holds: a handle has a lock on a name, or has it in another way than before. It is called before the caller
	// is told.
	Holds(h Holding)
	// Frees: it has none any more. It is called after the table has struck it out, before the back end is told.
	Frees(handle uint64)
	// Waits: a process waits for a lock through a handle; the call in which it does so is the
	// number. It is told of once more when the wait is over, whatever came of it.
	Waits(call uint64, w Holding)
	WaitsNoMore(call uint64)
	// Until says until when the session is sure to last, on CLOCK_BOOTTIME; again and again, and before
	// anything is granted by a session. backends.NoDeadline: nothing is held that could be lost by time.
	Until(deadline time.Duration)
	// Lost: the session is lost, and with it all that Holds told of and Frees did not; this is told before the table
	// frees it. The table grants nothing until it returns.
	Lost(reason error)
}

// Holding is what a handle has on its name.
type Holding struct {
	Name   string
	Handle uint64
	// PID is the process whose call it was.
	PID   uint32
	Mode  backends.Mode
	Token uint64
}

// told is what the watcher knows of a handle and a name.
type told struct {
	handle, token uint64
	pid           uint32
	mode          backends.Mode
}

func (h told) holding(name string) Holding {
	return Holding{Name: name, Handle: h.handle, PID: h.pid, Mode: h.mode, Token: h.token}
}

// tell compares what the handles hold on a name with what the watcher was
// told, and tells it what is new. The caller holds the table's mutex.
//
// Invariant: n.told is what the handles in n.held have, whenever the table is
// unlocked, and, as for what has been granted, before the one who waits for it is told.
func (n *name) tell() {
	watcher := n.table.options.Watcher
	if watcher == nil || len(n.held)+len(n.told) == 0 {
		return
	}
	now := n.holdings(n.table.holds[:0])
	for _, before := range n.told {
		if !slices.ContainsFunc(now, func(h told) bool { return h.handle == before.handle }) {
			watcher.Frees(before.handle)
		}
	}
	for _, h := range now {
		if !slices.Contains(n.told, h) {
			watcher.Holds(h.holding(n.name))
		}
	}
	n.told, n.table.holds = append(n.told[:0], now...), now
}

// holdings sums up what is held, by handle.
func (n *name) holdings(all []told) []told {
	for i := range n.held {
		h := &n.held[i]
		at := slices.IndexFunc(all, func(o told) bool { return o.handle == h.handle })
		if at < 0 {
			all = append(all, told{handle: h.handle, token: h.token, pid: h.pid, mode: h.Mode})
			continue
		}
		all[at].pid, all[at].mode, all[at].token = h.pid, max(all[at].mode, h.Mode), max(all[at].token, h.token)
	}
	return all
}

// watchWait tells the watcher of a wait through a handle; the function returned tells it of the end.
func (t *Table) watchWait(w *waiter) (end func()) {
	if t.options.Watcher == nil {
		return func() {}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	call := w.arrival // it may get a new one
	t.options.Watcher.Waits(call, Holding{Name: w.Name, Handle: w.Handle, PID: w.PID})
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.options.Watcher.WaitsNoMore(call)
	}
}

const (
	minUntil = 50 * time.Millisecond
	maxUntil = time.Second
)

// until tells the watcher how long the session lasts, and returns when to do so again:
// often enough that a renewal is told of long before the deadline that it moves.
func (t *Table) until(session backends.Session) time.Duration {
	if t.options.Watcher == nil {
		return time.Hour
	}
	t.mu.Lock() // were somebody stuck with it, the watcher should see that
	defer t.mu.Unlock()
	deadline := session.Deadline()
	t.options.Watcher.Until(deadline)
	if deadline == backends.NoDeadline {
		return maxUntil
	}
	return min(maxUntil, max(minUntil, (deadline-lease.Now())/16))
}
