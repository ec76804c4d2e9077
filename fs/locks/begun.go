package locks

import (
	"context"
	"sync"
	"time"
)

// Begun is what has become of a call without waiting for anything, be it the back end, be it another owner.
type Begun struct {
	// Err is what came of it, where the two below are nil.
	Err error
	// Rest, if not nil, goes on with it, takes its time, and returns what comes of it; ctx is as Lock and Unlock say. It is to be called, once.
	Rest func(ctx context.Context) error
	// Interrupt, if not nil, says that the call waits for other owners on this node: its answer is given by who lets it in. Interrupt is
	// what the end of Lock's context is: the caller is told at once if he has not been.
	Interrupt func()
}

// Begin is Lock for a caller who does not want to stand still: whoever lets the request in calls answer, once, with the table unlocked, as part of what it does
// itself; so answer must not wait for anything. It is called, perhaps before Begin returns, only if Interrupt is not nil.
// Door Open is for Lock only.
func (t *Table) Begin(r Request, answer func(error)) Begun {
	s, err := t.begin(&r, answer)
	if s.closing == nil && s.w == nil && (err != nil || s.work.nothing()) {
		t.aside(s.work)
		return Begun{Err: err}
	}
	return t.restOfLock(r, s)
}

func (t *Table) restOfLock(r Request, s begun) Begun {
	switch {
	case s.closing != nil:
		return Begun{Rest: func(ctx context.Context) error { return t.Lock(ctx, r) }}
	case s.call != nil:
		t.aside(s.work)
		return Begun{Interrupt: func() { t.interrupt(s.w, s.call) }}
	case s.w == nil:
		return Begun{Rest: func(ctx context.Context) error { t.perform(ctx, s.work); return nil }}
	}
	return Begun{Rest: func(ctx context.Context) error { return t.wait(ctx, &r, s) }}
}

// answering is who is to be told of a waiter's decision, where that one does not stand and wait for it.
type answering struct {
	table  *Table
	answer func(error)
	// call is the number under which the watcher knows of the wait.
	call uint64
}

// answerLater has the decision of a waiter told to answer.
func (t *Table) answerLater(w *waiter, answer func(error)) {
	w.later = &answering{table: t, answer: answer, call: w.arrival}
	if t.options.Watcher != nil {
		t.options.Watcher.Waits(w.arrival, Holding{Name: w.Name, Handle: w.Handle, PID: w.PID})
	}
}

// watchNoMore tells the watcher of a wait's end.
func (a *answering) watchNoMore() {
	if watcher := a.table.options.Watcher; watcher != nil {
		watcher.WaitsNoMore(a.call)
	}
}

// tell is what wait does when its waiter has been decided.
func (t *Table) tell(w *waiter) {
	t.mu.Lock()
	a := w.later
	a.watchNoMore()
	todo := work{}
	if w.err == nil {
		todo = t.roomMade(&w.Request)
	}
	t.mu.Unlock()
	if todo.nothing() {
		a.answer(w.err)
		return
	}
	go func() {
		t.perform(context.Background(), todo)
		a.answer(w.err)
	}()
}

// interrupt ends a call that waits; its place is kept for a moment. A waiter may have become another call's, by resume.
func (t *Table) interrupt(w *waiter, call *answering) {
	t.mu.Lock()
	if w.decided() || w.later != call {
		t.mu.Unlock()
		return
	}
	w.later = nil
	call.watchNoMore()
	t.giveUpWait(w)
	t.mu.Unlock()
	call.answer(context.Canceled)
}

// giveUpWait takes an undecided waiter's place away, for a signal came: in a moment, or at once.
func (t *Table) giveUpWait(w *waiter) {
	if w.Wait && w.Door != Open {
		w.suspended, w.until = true, time.Now().Add(keepPlace)
		time.AfterFunc(keepPlace, func() { t.expire(w) })
		return
	}
	t.drop(t.name(w.Name), w)
}

// mutex guards a Table. Who unlocks it gives the answers that have become due meanwhile.
//
// Invariant: no answer is given, nor anything waited for, with the table locked.
type mutex struct {
	sync.Mutex
	due []*waiter
}

func (m *mutex) Unlock() {
	due := m.due
	m.due = nil
	m.Mutex.Unlock()
	for _, w := range due {
		w.later.table.tell(w)
	}
}

// nothing reports whether there is nothing to perform.
func (w work) nothing() bool { return w.change == nil && w.done == nil && len(w.leaving) == 0 }
