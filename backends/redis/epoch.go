package redis

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"lockfs/backends"
	"lockfs/backends/lease"
)

// A server may forget: it restarts without its latest data, or a replica takes over
// that had not heard them. The scripts see it (lua/epoch.lua), begin a new epoch
// and grant nothing in its grace period, while the sessions that live say
// anew what they have. This file is the session's side of it.
//
// Invariant: what the session says anew is what its callers have been told, no
// more and no less. So from the moment when it is written down (snapshot) until
// all of it is said, no request is sent (known waits), and an answer or a
// message of an older epoch counts as one that was lost (current).

// epochLength is the length of an epoch's id.
const epochLength = 16

// noEpoch is the id of no epoch.
const noEpoch = "----------------"

func newEpochID() string {
	var b [epochLength / 2]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// errForgetful is what a caller gets who is not to wait, in a grace period.
func errForgetful(left time.Duration) error {
	return fmt.Errorf("%w: it has started anew or was replaced, and may have forgotten who holds which lock; it grants locks again in %v",
		backends.ErrUnavailable, left.Round(time.Millisecond))
}

// check is what every connection begins with: it makes the server recognise
// that it is not the one that the data say.
func (b *Backend) check(ctx context.Context, c *goredis.Conn) error {
	return checkScript.Run(ctx, c, b.keys, "").Err()
}

// saw notes a stamp, and how long a session of the cluster may hold what it has
// after its last renewal (0: not known), to tell them to a server that forgot.
func (b *Backend) saw(stamp uint64, hold time.Duration) {
	for old := b.stamp.Load(); stamp > old && !b.stamp.CompareAndSwap(old, stamp); old = b.stamp.Load() {
	}
	for old := b.hold.Load(); int64(hold) > old && !b.hold.CompareAndSwap(old, int64(hold)); old = b.hold.Load() {
	}
}

// held is a claim that a caller has been told of. There is one for each name that the node holds, so it is kept small.
type held struct {
	name        string
	first, last uint64
	token       uint64
	mode        backends.Mode
	hint        backends.Hint
	contended   bool
}

// value is what the server has of a claim (lua/head.lua).
func (h *held) value() string {
	lock := backends.Lock{Range: backends.Range{First: h.first, Last: h.last}, Mode: h.mode}
	return encodeLock(lock, h.hint) + flag(h.contended) + strconv.FormatUint(h.token, 10)
}

// who is what all scripts take first.
func (s *session) who(epoch string, args ...any) []any {
	return append([]any{epoch + s.id}, args...)
}

// known returns the epoch in which the server knows what the session has; it
// waits while that is being said.
func (s *session) known(ctx context.Context) (string, error) {
	for {
		s.mu.Lock()
		epoch, news := s.epoch, s.news
		s.mu.Unlock()
		if epoch != "" {
			return epoch, nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-s.done:
			return "", errClosed
		}
	}
}

// knownNow is known for those who can't wait: "" where they would have to.
func (s *session) knownNow() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.epoch
}

// current reports whether answers and messages of an epoch count. mu is held.
func (s *session) current(epoch string) bool { return epoch == s.said }

// forgotten takes the outcome "new" of a script that was run in an epoch: what
// the session has is said anew, once.
func (s *session) forgotten(epoch string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch != epoch || s.over {
		return
	}
	s.epoch = ""
	s.crew.do(s.sayAnew)
}

// probe looks whether the server still knows the session, when something says
// that it may not: a broken connection, another session's message.
func (s *session) probe() {
	epoch := s.knownNow()
	if epoch == "" {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.b.timeout)
	defer cancel()
	a, err := s.b.eval(ctx, s.b.client, renewScript, s.who(epoch, s.ttl.Milliseconds(), s.beat.Load())...)
	if err == nil && a.outcome == "new" {
		s.forgotten(epoch)
	}
	// All else is the heartbeats' business.
}

// sayAnew says what the session has until the server has it all, or the lease
// has ended: then somebody else may have it already.
func (s *session) sayAnew() {
	s.log.Warn("the server has started anew or was replaced; saying anew which locks are held", "backend", s.b.where)
	for pause := firstPause; s.lease.Valid(); pause = min(2*pause, longPause) {
		sent := lease.Now()
		a, err := s.sayOnce()
		if err == nil {
			s.lease.Renewed(sent)
			s.box.lost() // who waits here may want any of it
			s.reapSoon(time.Duration(a.number(0)) * time.Millisecond)
			s.crew.do(s.recheckAll) // the grace period may be over already
			return
		}
		if errors.Is(err, backends.ErrSessionOver) {
			return
		}
		if !errors.Is(err, errAgain) {
			s.log.Warn("the locks that are held could not be said anew", "backend", s.b.where, "left", s.lease.Left(), "error", err)
		}
		if !sleep(s.ctx, pause) {
			return
		}
	}
}

// errAgain: the server has changed once more, or lost a part of what was said.
var errAgain = errors.New("to be said again")

// sayOnce makes one attempt, and lets requests go on when it succeeds.
func (s *session) sayOnce() (answer, error) {
	attempt := strconv.FormatUint(s.numbers.Add(1), 36)
	epoch, done, a, err := s.beginSaying(attempt)
	if err != nil {
		return a, err
	}
	if !done {
		for part := range slices.Chunk(s.snapshot(epoch), 4*250) {
			if _, err := s.say(epoch, append([]any{"take", attempt}, part...)...); err != nil {
				return a, err
			}
		}
		if a, err = s.say(epoch, "end", attempt, s.ttl.Milliseconds()); err != nil {
			return a, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epoch = epoch
	close(s.news)
	s.news = make(chan struct{})
	return a, nil
}

// beginSaying returns the server's epoch. done: all has been said in it before,
// and only the answer was lost.
func (s *session) beginSaying(attempt string) (epoch string, done bool, a answer, err error) {
	s.mu.Lock()
	said := s.said
	s.mu.Unlock()
	for {
		a, err = s.say(said, "begin", attempt, s.ttl.Milliseconds(), s.b.hold.Load()/int64(time.Millisecond), newEpochID(), s.b.stamp.Load(), s.delay.Milliseconds())
		if err != nil {
			return "", false, a, err
		}
		epoch = a.text(0)
		if len(epoch) != epochLength {
			return "", false, a, fmt.Errorf("%w: epoch %q", backends.ErrForeign, epoch)
		}
		if a.outcome == "done" {
			return epoch, true, answer{"ok", a.fields[1:]}, nil
		}
		if a.outcome == "ok" {
			return epoch, false, a, nil
		}
		// "more": a bounded piece of the work was done.
	}
}

// say makes one call, if the lease still holds.
func (s *session) say(epoch string, args ...any) (answer, error) {
	if !s.lease.Valid() {
		return answer{}, s.overError()
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.b.timeout)
	defer cancel()
	a, err := s.b.eval(ctx, s.b.beats, assertScript, s.who(epoch, args...)...)
	switch {
	case err != nil:
		return a, fmt.Errorf("saying anew which locks are held: %w", err)
	case s.ended(a):
		return a, s.overError()
	case a.outcome == "new":
		return a, errAgain
	}
	return a, nil
}

// snapshot writes down what the session has, as the assert script takes it.
// From here on answers and messages of older epochs count as lost.
func (s *session) snapshot(epoch string) []any {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.said = epoch
	entries := make([]any, 0, 4*(len(s.claims)+len(s.waiters)))
	for n, h := range s.claims {
		entries = append(entries, s.full(claimID(n)), h.name, "", h.value())
	}
	for _, w := range s.waiters {
		w.early = nil
		if w.phase == queued {
			entries = append(entries, w.id, w.name, w.arrival, w.request)
		}
	}
	return entries
}
