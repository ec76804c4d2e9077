package file

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"lockfs/backends"
	"lockfs/backends/queue"
)

// txn is one change of a name's state, its shard locked.
type txn struct {
	s    *session
	sh   *shard
	name string
	st   queue.State
	// stale: the entries are not as they are written.
	stale bool
	// written are called after the change is written, the shard still locked.
	written []func()

	granted, yielded []queue.Entry
	err              error // of the token file, during Settle
}

// transact changes a name's state by fn, serves the queue and tells whom it
// concerns. Sessions that died are taken out first, so each change also
// tidies up. On an error nothing has changed. It may wait for a process that is
// stopped while it holds the shard; see run.
func (s *session) transact(name string, fn func(t *txn) error) error {
	sh := s.a.shardOf(name)
	unlock, err := s.a.lockShard(sh)
	if err != nil {
		return fmt.Errorf("change the state of %q: %w", name, err)
	}
	defer unlock()
	if err := s.check(); err != nil {
		return err
	}
	t := &txn{s: s, sh: sh, name: name}
	var was stored
	if t.st, was, err = s.a.readState(name); err != nil {
		return err
	}
	before := slices.Clone(t.st)
	if t.dropDead() {
		t.settle()
	}
	if err := fn(t); err != nil {
		return err
	}
	t.settle()
	if t.err != nil {
		return t.err
	}
	if t.stale || !sameIDs(before, t.st) {
		if err := s.a.writeState(sh, name, was, t.st); err != nil {
			return err
		}
	}
	s.count(name, t.st)
	for _, f := range t.written {
		f()
	}
	t.tell()
	return nil
}

// sameIDs reports whether two states have the same entries in the same
// order. An entry that changes gets another ID, or sets stale.
func sameIDs(a, b queue.State) bool {
	return slices.EqualFunc(a, b, func(x, y queue.Entry) bool { return x.ID == y.ID })
}

// dropDead takes out the entries of sessions that died, but for claims that
// their lock delay keeps.
func (t *txn) dropDead() bool {
	var seen, dead []string
	before := len(t.st)
	for _, e := range t.st {
		if e.Session != t.s.id && !slices.Contains(seen, e.Session) {
			seen = append(seen, e.Session)
			if !alive(t.s.a.sessionPath(e.Session)) {
				dead = append(dead, e.Session)
			}
		}
	}
	for _, id := range dead {
		if left := t.s.a.delayLeft(id); left > 0 {
			dropDelayed(&t.st, id)
			t.s.wakeAfter(id, left)
			continue
		}
		t.st.DropSession(id)
	}
	return len(t.st) < before
}

// settle serves the queue.
func (t *txn) settle() {
	granted, yielded := t.st.Settle(func(e *queue.Entry) {
		token, err := t.s.a.nextToken(t.sh)
		if err != nil {
			t.err = err
		}
		e.Token, e.Seq = token, token
	})
	t.stale = t.stale || len(granted)+len(yielded) > 0
	t.granted, t.yielded = append(t.granted, granted...), append(t.yielded, yielded...)
}

// tell says to each whose entry was decided what became of it.
func (t *txn) tell() {
	for _, e := range t.granted {
		if t.st.Find(e.ID) < 0 {
			continue // decided and gone in the same change
		}
		t.s.tell(e.Session, message{Kind: kindGrant, ID: e.ID, Token: e.Token, Seq: e.Seq, Contended: t.st.Contended(e.Session, e.Lock)})
	}
	for _, e := range t.yielded {
		t.s.tell(e.Session, message{Kind: kindYield, ID: e.ID})
	}
}

// count notes on which names the session has entries, for Close.
func (s *session) count(name string, st queue.State) {
	n := 0
	for _, e := range st {
		if e.Session == s.id {
			n++
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n == 0 {
		delete(s.names, name)
	} else {
		s.names[name] = n
	}
}

// patience is how long an operation may take before the back end counts as
// out of reach: only where a process was stopped in the middle of a change, or the disk hangs.
const patience = 10 * time.Second

// run carries out an operation in a goroutine, and waits until it is done or
// ctx ends or it takes too long; the operation itself goes on.
func (s *session) run(ctx context.Context, fn func() error) error {
	if err := s.begin(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		err := fn()
		s.endOp()
		done <- err
	}()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.Done():
		return s.overErr()
	case <-timer.C:
		return fmt.Errorf("not done after %v (the disk hangs, or a process was stopped while it held a lock in %s): %w",
			patience, s.a.root, backends.ErrUnavailable)
	}
}

func (s *session) overErr() error {
	if err := s.Err(); err != nil {
		return err
	}
	return errClosed
}

// persist repeats an operation until it succeeds, or the session is over, or it never can succeed.
func (s *session) persist(fn func() error) error {
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		err := fn()
		if err == nil || errors.Is(err, backends.ErrSessionOver) || errors.Is(err, backends.ErrForeign) {
			return err
		}
		if wait > 500*time.Millisecond {
			s.log.Warn("a change of a lock's state fails and is tried again", "error", err)
		}
		if !s.pause(s.life, wait) {
			return s.overErr()
		}
	}
}

// pause waits; it returns false when ctx or the session has ended.
func (s *session) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
	case <-s.Done():
	}
	return false
}

// Change replaces claims by smaller ones. See backends.Session.
func (s *session) Change(ctx context.Context, name string, changes []backends.Change) ([]backends.Claim, error) {
	var claims []backends.Claim
	err := s.run(ctx, func() error {
		return s.persist(func() error {
			made := make([]backends.Claim, 0, len(changes))
			err := s.transact(name, func(t *txn) error {
				made = t.replace(changes)
				return nil
			})
			if err == nil {
				claims = made
			}
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("change claims on %q: %w", name, err)
	}
	return claims, nil
}

func (t *txn) replace(changes []backends.Change) []backends.Claim {
	var claims []backends.Claim
	for _, c := range changes {
		i := t.st.Find(c.ID)
		if i < 0 || t.st[i].Session != t.s.id || !t.st[i].Granted {
			continue
		}
		old, ids := t.st[i], make([]string, len(c.To))
		for k, keep := range c.To {
			ids[k] = rand.Text()
			claims = append(claims, backends.Claim{ID: ids[k], Lock: keep.Lock, Hint: keep.Hint, Token: old.Token, Seq: old.Seq})
		}
		t.st.Replace(c.ID, ids, c.To)
	}
	return claims
}

// Holders returns other sessions' claims in the way of a lock. See backends.Session.
func (s *session) Holders(ctx context.Context, name string, lock backends.Lock) ([]backends.Holder, error) {
	var holders []backends.Holder
	err := s.run(ctx, func() error {
		unlock, err := s.a.lockShard(s.a.shardOf(name))
		if err != nil {
			return err
		}
		defer unlock()
		if err := s.check(); err != nil {
			return err
		}
		t := &txn{s: s, name: name}
		if t.st, _, err = s.a.readState(name); err != nil {
			return err
		}
		t.dropDead() // from what is answered; the next change drops it from the file
		holders = t.holders(lock)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find the holders of %q: %w", name, err)
	}
	return holders, nil
}

func (t *txn) holders(lock backends.Lock) []backends.Holder {
	var holders []backends.Holder
	for _, e := range t.st {
		if e.Granted && e.Session != t.s.id && e.Conflicts(lock) {
			holders = append(holders, backends.Holder{Session: e.Session, Node: t.s.a.nodeOf(e.Session),
				Claim: backends.Claim{ID: e.ID, Lock: e.Lock, Hint: e.Hint, Token: e.Token, Seq: e.Seq}})
		}
	}
	slices.SortStableFunc(holders, func(a, b backends.Holder) int {
		switch {
		case a.First < b.First:
			return -1
		case a.First > b.First:
			return 1
		}
		return 0
	})
	return holders
}
