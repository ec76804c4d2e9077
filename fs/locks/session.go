package locks

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"lockfs/backends"
)

// run serves the session's events, and opens a new session when one is lost.
func (t *Table) run(ctx context.Context, session backends.Session) {
	defer close(t.ended)
	for session != nil {
		tick := time.NewTimer(t.until(session))
		select {
		case <-tick.C:
		case <-t.idle.C:
			t.sweep()
		case <-t.departure.C:
			t.part()
		case <-t.looking.C:
			t.lookAround()
		case event := <-session.Events():
			t.wanted(event)
		case <-session.Done():
			t.lose(session)
			session = t.reopen(ctx)
		case <-ctx.Done():
			tick.Stop()
			return
		}
		tick.Stop()
	}
}

// wanted notes that another node waits for what this one has. What is kept idle is given up.
func (t *Table) wanted(event backends.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if event.Name != "" {
		if n := t.names[event.Name]; n != nil {
			n.wanted = max(n.wanted, event.Seq)
			t.giveUp(n)
		}
		return
	}
	for _, n := range t.names {
		for i := range n.list {
			n.list[i].Contended = true
		}
		for _, w := range n.all() {
			if w.ask != nil {
				w.ask.suspect = true
			}
		}
		t.giveUp(n)
	}
}

// lose carries out the loss of a session: what was held is lost, who waits
// goes on waiting for the next session. What holds is told to the watcher before
// it is forgotten, and nothing is granted in between, for there is no session.
func (t *Table) lose(session backends.Session) {
	lost, ok := t.markLost(session)
	if !ok {
		return
	}
	if t.options.Watcher != nil {
		t.options.Watcher.Lost(session.Err())
	}
	t.logLost(session, lost) // not before: the log may take its time, the other nodes don't wait
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range t.names {
		n.held, n.list = nil, nil
		n.othersAsk()
		n.tell()
		t.leave(n)
		n.company.left()
		t.forget(n)
	}
	t.allOver()
	if t.options.Watcher != nil {
		t.options.Watcher.Until(backends.NoDeadline)
	}
}

// markLost makes every call on a descriptor that holds a lock fail from now on, and returns what is lost. ok is
// false where the table is closed.
func (t *Table) markLost(session backends.Session) (lost []lostLock, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, false
	}
	t.announce(nil)
	for _, n := range t.names {
		for i := range n.held {
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", n.held[i].pid)) // may be gone already
			lost = append(lost, lostLock{n.name, n.held[i], strings.TrimSpace(string(comm))})
			t.lost[n.held[i].handle] = true
		}
	}
	return lost, true
}

// lostLock is what the log says of a lost lock: command is that of its process, which may be dead by the time when it is written.
type lostLock struct {
	name string
	held
	command string
}

// leave puts all who wait for a name outside, to ask again in their order, and
// ends those whose descriptor lost a lock.
func (t *Table) leave(n *name) {
	waiters := n.all()
	slices.SortFunc(waiters, func(a, b *waiter) int { return cmp.Compare(a.arrival, b.arrival) })
	n.queue, n.outside = nil, nil
	for _, w := range waiters {
		t.leaveAsk(w)
		w.asked, w.inTurn = false, false
		if t.lost[w.Handle] {
			w.decide(ErrLost)
			t.unlist(w)
			continue
		}
		n.outside = append(n.outside, w)
		if a := t.startAsk(n, w); a != nil {
			go t.pursue(a)
		}
	}
}

// logLost writes what was lost, a line for each lock.
func (t *Table) logLost(session backends.Session, lost []lostLock) {
	t.log.Error("session lost, and all locks with it", "session", session.ID(), "reason", session.Err())
	for _, l := range lost {
		t.log.Error("lock lost", "name", l.name, "mode", l.Mode.String(), "pid", l.pid,
			"command", l.command, "token", l.token, "reason", session.Err())
	}
}

// reopen opens a new session, however long it takes. nil: ctx ended.
func (t *Table) reopen(ctx context.Context) backends.Session {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		attempt, cancel := context.WithTimeout(ctx, t.options.UnavailableAfter)
		session, err := t.options.Open(attempt)
		cancel()
		if err == nil {
			t.log.Info("new session", "session", session.ID())
			t.until(session)
			t.mu.Lock()
			t.announce(session)
			t.mu.Unlock()
			return session
		}
		t.log.Warn("no new session yet", "reason", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// announce sets the session (nil: none) and tells those who wait for one.
func (t *Table) announce(session backends.Session) {
	t.session = session
	close(t.news)
	t.news = make(chan struct{})
}

// Close releases everything, says goodbye to the back end and ends all waits
// with ErrClosed. ctx bounds it.
func (t *Table) Close(ctx context.Context) error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	for _, n := range t.names {
		for _, w := range n.all() {
			n.remove(w)
			w.decide(ErrClosed)
			t.unlist(w)
		}
	}
	t.mu.Unlock()
	t.stop()
	<-t.ended
	t.asks.Wait()
	t.mu.Lock()
	session := t.session
	t.mu.Unlock()
	if session == nil {
		return nil
	}
	err := session.Close(ctx)
	t.changes.Wait() // each ends with the session
	t.mu.Lock()
	t.allOver()
	t.mu.Unlock()
	if err == nil && t.options.Watcher != nil {
		t.options.Watcher.Until(backends.NoDeadline)
	}
	return err
}
