package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"lockfs/backends"
)

// waiter is an Acquire on its way. The session's mu guards what changes.
//
// Its caller may go at any time. Whoever has the last word from the server
// then takes the request back: ask, as long as an attempt is without an
// answer, else the one who gave up. So no attempt is on its way any more when
// the outcome is delivered, or the request was taken back for good.
type waiter struct {
	s        *session
	number   uint64
	id, name string // id is the server's, of number
	request  string // as the scripts read it
	backends.Request
	// ready is closed when out is set.
	ready chan struct{}
	out   outcome

	phase   phase
	gone    bool    // the caller has; whoever takes the request back then calls tellTakenBack
	told    bool    // Queued was called
	attempt int     // the last one sent
	arrival string  // its place in the queue, where it has one
	early   *answer // a message that came before the attempt's answer
}

type phase uint8

const (
	asking  phase = iota // an attempt is without an answer: ask runs
	queued               // it stands in the queue: a message will come
	settled              // it has its outcome
)

type outcome struct {
	claim backends.Claim
	err   error
	epoch string // of the answer or message; "" where it does not matter
}

// Acquire asks for a claim, as backends.Session says.
func (s *session) Acquire(ctx context.Context, name string, req backends.Request) (backends.Claim, error) {
	if ctx.Err() != nil {
		return backends.Claim{}, s.called(locking, name, context.Cause(ctx))
	}
	return s.BeginAcquire(name, req).Result(ctx)
}

const locking = "locking"

// BeginAcquire is as backends.Prompt says.
func (s *session) BeginAcquire(name string, req backends.Request) backends.Pending[backends.Claim] {
	n := s.numbers.Add(1)
	w := &waiter{s: s, number: n, id: s.full(claimID(n)), name: name, request: encodeRequest(req), Request: req, ready: make(chan struct{})}
	switch err := check(req); {
	case err != nil:
		w.settle(outcome{err: err})
	case !s.enter(w):
		w.settle(outcome{err: errClosed})
	case !s.askQuickly(w):
		s.crew.do(func() { s.ask(w) }) // else the session is over, which Result sees
	}
	return w
}

// settle is for one who is not, or not any more, in the session's list, or with mu held.
func (w *waiter) settle(out outcome) {
	w.out = out
	close(w.ready)
}

func (w *waiter) Ready() <-chan struct{} { return w.ready }

func (w *waiter) Decided() bool {
	select {
	case <-w.ready:
		return true
	default:
		return false
	}
}

// Result waits for the outcome, or takes the request back.
func (w *waiter) Result(ctx context.Context) (backends.Claim, error) {
	var out outcome
	select {
	case <-w.ready: // the most frequent case, without the rest
		out = w.out
	default:
		select {
		case <-w.ready:
			out = w.out
		case <-w.s.done:
			out.err = errClosed
		case <-ctx.Done():
			out = w.s.leave(w, context.Cause(ctx))
		}
	}
	if out.err != nil {
		return backends.Claim{}, w.s.called(locking, w.name, out.err)
	}
	return out.claim, nil
}

// check refuses what no engine could grant.
func check(req backends.Request) error {
	for _, l := range append([]backends.Lock{req.Lock}, req.Held...) {
		if l.Mode != backends.Read && l.Mode != backends.Write || l.First > l.Last || l.Last > backends.MaxByte {
			return fmt.Errorf("no lock: %v on bytes %d to %d", l.Mode, l.First, l.Last)
		}
	}
	return nil
}

// claimID is the ID of the session's claim with this number, or of the request for it.
func claimID(number uint64) string { return strconv.FormatUint(number, 36) }

// numberOf is the number of a claim's ID; 0 where it is none of ours.
func numberOf(id string) uint64 {
	n, err := strconv.ParseUint(id, 36, 64)
	if err != nil {
		return 0
	}
	return n
}

// full is the id by which the server knows a claim of the session.
func (s *session) full(id string) string { return s.id + "/" + id }

func (s *session) enter(w *waiter) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		s.waiters[w.id] = w
	}
	return !s.over
}

// leave is the caller's going: the request is taken back, unless it has its outcome.
func (s *session) leave(w *waiter, cause error) outcome {
	s.mu.Lock()
	if w.phase == settled {
		s.mu.Unlock()
		return w.out
	}
	w.gone = true
	waits := w.phase == queued
	delete(s.waiters, w.id)
	s.mu.Unlock()
	if waits { // else ask runs, and will see it
		s.crew.do(func() { s.takeBack(w, false) })
	}
	return outcome{err: fmt.Errorf("%w: %w", backends.ErrGivenUp, cause)}
}

// askQuickly makes the first attempt, and reports whether it was answered.
func (s *session) askQuickly(w *waiter) bool {
	epoch := s.knownNow()
	if epoch == "" || !s.b.mayBeQuick() {
		return false
	}
	attempt, confirmed := s.nextAttempt(w)
	a, ok, err := s.b.quick(s.ctx, acquireScript, s.attempt(w, epoch, attempt)...)
	switch {
	case !ok:
		return false
	case err != nil:
		s.deliver(w, outcome{err: err}) // refused: it was not carried out
		return true
	}
	return a.outcome != "grace" && s.answered(w, a, epoch, confirmed)
}

// ask sends the request until an attempt has been answered.
func (s *session) ask(w *waiter) {
	begin := time.Now()
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		final, err := s.askOnce(w)
		if final {
			return
		}
		if err != nil && !errors.Is(err, backends.ErrUnavailable) {
			s.deliver(w, outcome{err: err})
			s.takeBack(w, true) // it may have been an earlier one's answer that was lost
			return
		}
		if err != nil && !w.Wait && time.Since(begin) >= s.b.timeout {
			s.deliver(w, outcome{err: err})
			s.takeBack(w, true)
			return
		}
		if s.isGone(w) {
			s.takeBack(w, true)
			return
		}
		if !sleep(s.ctx, pause) {
			return
		}
	}
}

// askOnce makes one attempt, and reports whether it was answered for good. Without
// an error it is to be repeated all the same.
func (s *session) askOnce(w *waiter) (final bool, err error) {
	ctx, cancel := context.WithTimeout(s.ctx, s.b.timeout)
	defer cancel()
	epoch, err := s.known(ctx)
	if err != nil {
		return false, fmt.Errorf("%w: it may have forgotten the session's locks, and has not yet heard of them again: %w", backends.ErrUnavailable, err)
	}
	attempt, confirmed := s.nextAttempt(w)
	a, err := s.b.eval(ctx, s.b.client, acquireScript, s.attempt(w, epoch, attempt)...)
	if err != nil {
		return false, err
	}
	if a.outcome == "grace" {
		return false, errForgetful(time.Duration(a.number(0)) * time.Millisecond)
	}
	return s.answered(w, a, epoch, confirmed), nil
}

func (s *session) nextAttempt(w *waiter) (attempt int, confirmed uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.attempt++
	return w.attempt, s.confirmed
}

func (s *session) isGone(w *waiter) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return w.gone
}

// attempt is what the acquire script takes.
func (s *session) attempt(w *waiter, epoch string, n int) []any {
	return []any{epoch + s.id, w.name, w.id, n, flag(w.Wait), w.request}
}

// answered takes the answer to the last attempt, and reports whether it counts:
// not where it is of an epoch that is over. confirmed is the subscription
// at its sending: a message of an earlier one may be lost.
func (s *session) answered(w *waiter, a answer, epoch string, confirmed uint64) bool {
	if s.ended(a) {
		return true
	}
	if a.outcome == "new" {
		s.forgotten(epoch)
		return false
	}
	if a.outcome == "queued" {
		s.tellQueued(w) // before the outcome can be delivered: messages wait as long as ask runs
	}
	s.mu.Lock()
	if !s.current(epoch) {
		s.mu.Unlock()
		return false
	}
	gone := w.gone
	recheck := false
	if a.outcome == "queued" {
		w.arrival = a.text(1)
	}
	if a.outcome == "queued" && w.early != nil {
		a, w.early = *w.early, nil
		if s.toBeCopied(a) {
			s.mu.Unlock()
			return false // another attempt waits for the replicas
		}
	}
	waits := a.outcome == "queued"
	if waits && !gone {
		w.phase = queued
		recheck = s.confirmed != confirmed
	}
	s.mu.Unlock()
	if waits {
		s.reapSoon(time.Duration(a.number(0)) * time.Millisecond) // who is in the way may have a shorter lease
	}
	switch {
	case gone && (waits || a.outcome == "granted"):
		s.takeBack(w, false)
	case recheck:
		s.crew.do(func() { s.recheck([]*waiter{w}) }) // not here: this may be the caller's goroutine
	case !waits:
		out := w.result(a)
		out.epoch = epoch
		switch delivered, stale := s.deliver(w, out); {
		case stale:
			return false
		case !delivered && a.outcome == "granted":
			s.takeBack(w, false)
		case !delivered:
			s.tellTakenBack(w)
		}
	}
	return true
}

// tellQueued calls Queued once, without mu: it is not ours.
func (s *session) tellQueued(w *waiter) {
	s.mu.Lock()
	tell := w.Queued != nil && !w.told && !w.gone && w.early == nil
	w.told = w.told || tell
	s.mu.Unlock()
	if tell {
		w.Queued()
	}
}

// result turns a script's final word into what Acquire returns.
func (w *waiter) result(a answer) outcome {
	switch a.outcome {
	case "granted":
		token, err := strconv.ParseUint(a.text(0), 10, 64)
		if err != nil {
			return outcome{err: fmt.Errorf("%w: token %q", backends.ErrForeign, a.text(0))}
		}
		return outcome{claim: backends.Claim{ID: claimID(w.number), Lock: w.Lock, Hint: w.Hint,
			Token: token, Seq: token, Contended: a.text(1) == "1"}}
	case "blocked":
		return outcome{err: backends.ErrWouldBlock}
	case "yield":
		return outcome{err: backends.ErrYield}
	case "deadlock":
		return outcome{err: backends.ErrDeadlock}
	}
	return outcome{err: fmt.Errorf("%w: a script answers %q", backends.ErrForeign, a.outcome)}
}

// deliver hands the outcome to the caller. Not delivered: the caller has gone.
// stale: it does not count, for its epoch is over.
func (s *session) deliver(w *waiter, out outcome) (delivered, stale bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if out.epoch != "" && !s.current(out.epoch) {
		return false, true
	}
	return s.hand(w, out), false
}

// hand is deliver with mu held, of an outcome that counts.
func (s *session) hand(w *waiter, out outcome) bool {
	if w.gone || s.over {
		return false
	}
	if w.phase != settled {
		w.phase = settled
		delete(s.waiters, w.id)
		if out.err == nil {
			s.hold(w.number, w.name, &out.claim)
		}
		w.settle(out)
	}
	return true
}

// hold notes a claim that a caller is told of. mu is held.
func (s *session) hold(number uint64, name string, c *backends.Claim) {
	s.claims[number] = &held{name: name, first: c.First, last: c.Last, mode: c.Mode, hint: c.Hint, contended: c.Contended, token: c.Token}
	s.b.saw(c.Token, 0)
}

// outcome takes a message about the request with this id. One that
// comes before the attempt's answer waits for that: the attempt may have been
// carried out and its answer lost, and then a further attempt is on its way.
func (s *session) outcome(epoch, id string, a answer) {
	s.mu.Lock()
	w := s.waiters[id]
	if !s.current(epoch) {
		w = nil
	}
	if w != nil && w.phase == asking {
		w.early = &a
		w = nil
	}
	s.mu.Unlock()
	if w != nil && s.toBeCopied(a) {
		s.askAgain(w)
		return
	}
	if w != nil {
		out := w.result(a)
		out.epoch = epoch
		s.deliver(w, out) // where the caller has gone, who noticed takes it back
	}
}

// takeBack sees to it that nothing of the request stays behind, as long as the
// session lives. late: an attempt may still be on its way.
func (s *session) takeBack(w *waiter, late bool) {
	if _, err := s.try(s.ctx, nil, dropScript, w.name, w.id, flag(late)); err != nil && !errors.Is(err, backends.ErrSessionOver) {
		s.log.Error("a lock request could not be taken back", "backend", s.b.where, "lock", w.name, "error", err)
	}
	s.tellTakenBack(w)
}

// tellTakenBack is for a request that nothing is left of, without mu.
func (s *session) tellTakenBack(w *waiter) {
	if w.TakenBack != nil && s.isGone(w) {
		w.TakenBack()
	}
}

// recheckAll asks what became of all requests in queues.
func (s *session) recheckAll() {
	s.mu.Lock()
	var waiting []*waiter
	for _, w := range s.waiters {
		if w.phase == queued {
			waiting = append(waiting, w)
		}
	}
	s.mu.Unlock()
	for some := range slices.Chunk(waiting, 500) {
		s.recheck(some)
	}
}

// recheck asks what became of requests in queues, and delivers what was missed.
func (s *session) recheck(waiting []*waiter) {
	args := make([]any, len(waiting))
	for i, w := range waiting {
		args[i] = w.id
	}
	var lost []*waiter
	_, err := s.try(s.ctx, func(a answer) { lost = s.rechecked(waiting, a) }, recheckScript, args...)
	if err != nil {
		if !errors.Is(err, backends.ErrSessionOver) {
			s.log.Error("asking what became of lock requests", "backend", s.b.where, "error", err)
		}
		return
	}
	for _, w := range lost {
		s.askAgain(w)
	}
}

// rechecked takes the recheck script's answer, with mu held. It returns those of
// whom the server does not know.
func (s *session) rechecked(waiting []*waiter, a answer) (lost []*waiter) {
	for i, w := range waiting {
		switch token := a.text(2 * i); {
		case token == "q" || w.phase != queued:
		case token != "" && s.b.replicas > 0:
			lost = append(lost, w)
		case token != "":
			s.hand(w, w.result(answer{"granted", []any{token, a.text(2*i + 1)}}))
		case w.YieldTo != 0:
			s.hand(w, outcome{err: backends.ErrYield}) // only that ends a wait without a grant
		default:
			lost = append(lost, w)
		}
	}
	return lost
}

// toBeCopied reports whether the message of a grant is to be followed by an attempt
// that waits for replicas.
func (s *session) toBeCopied(a answer) bool { return s.b.replicas > 0 && a.outcome == "granted" }

// askAgain is for a request that the server has lost although it knows the session, or
// whose grant has to be waited for.
func (s *session) askAgain(w *waiter) {
	s.mu.Lock()
	lost := w.phase == queued && !w.gone
	if lost {
		w.phase, w.early = asking, nil
	}
	s.mu.Unlock()
	if lost {
		s.crew.do(func() { s.ask(w) })
	}
}
