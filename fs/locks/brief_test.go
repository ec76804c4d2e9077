package locks

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"lockfs/backends"
)

// shut holds up what the nodes tell the back end of their claims, until the function that it returns is called.
func (s *script) shut() (reopen func()) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	gate := make(chan struct{})
	s.m.gate = gate
	return func() { close(gate) }
}

// TestUnlockNeedNotBeSeen: an unlock of a name that no other node has asked for returns before the back end knows of it, and so does
// the close(2) after it, whenever it comes. In no way to ask is anybody refused the lock meanwhile.
func TestUnlockNeedNotBeSeen(t *testing.T) {
	for what, r := range map[string]Request{
		"flock": flock(9, backends.Write, false), "flock, shared": flock(9, backends.Read, false), "flock that waits": flock(9, backends.Write, true),
		"open": open(9, never, false), "open that yields": open(9, backends.ByCall, true), "bytes": fcntl(9, 9, bytesOf(5, 6, backends.Write), false),
	} {
		for when, pause := range map[string]time.Duration{"at once": 0, "late": 2 * briefly} {
			t.Run(what+" "+when, func(t *testing.T) {
				keeping(t, 2, func(s *script) {
					s.now(0, flock(1, backends.Write, false), nil)
					reopen := s.shut()
					began := time.Now()
					s.unlock(0, 1)
					time.Sleep(pause)
					s.nodes[0].ReleaseProcess("x", 1)
					if took := time.Since(began); took > pause {
						t.Errorf("took %v while the back end does not answer", took-pause)
					}
					theirs := s.start(1, "theirs", r)
					s.waits(theirs)
					reopen()
					s.ended(nil, theirs)
					s.nodes[1].ReleaseProcess("x", 9)
					s.release(1, 9)
				})
			})
		}
	}
}

// TestUnlockIsSeenWhereOthersAsked: where another node has asked for the name a moment ago, its unlock returns when the back end knows, so that
// tries need no answer from this node.
func TestUnlockIsSeenWhereOthersAsked(t *testing.T) {
	keeping(t, 2, func(s *script) {
		returns := func(want time.Duration) {
			t.Helper()
			s.now(0, flock(1, backends.Write, false), nil)
			reopen := s.shut()
			time.AfterFunc(time.Second, reopen)
			began := time.Now()
			s.unlock(0, 1)
			if took := time.Since(began); took != want {
				t.Errorf("the unlock took %v, want %v", took, want)
			}
			time.Sleep(time.Second - want)
			synctest.Wait()
		}
		returns(0)
		s.now(0, flock(1, backends.Write, false), nil)
		s.now(1, flock(9, backends.Write, false), backends.ErrWouldBlock)
		s.unlock(0, 1)
		returns(time.Second)
		returns(0) // long after
	})
}

// TestHeldUnderAFirstLock: a lock that a node has just taken for the first time is held as any other, however it is asked for elsewhere.
func TestHeldUnderAFirstLock(t *testing.T) {
	for what, ask := range map[string]func(s *script){
		"flock":  func(s *script) { s.now(1, flock(9, backends.Read, false), backends.ErrWouldBlock) },
		"open":   func(s *script) { s.now(1, open(9, never, false), backends.ErrWouldBlock) },
		"yields": func(s *script) { s.now(1, open(9, backends.ByCall, true), backends.ErrYield) },
		"waits": func(s *script) {
			w := s.start(1, "w", flock(9, backends.Write, true))
			s.waits(w)
			s.unlock(0, 1)
			s.ended(nil, w)
		},
		"F_GETLK": func(s *script) {
			c, found, err := s.nodes[1].Test(s.Context(), flock(9, backends.Read, false))
			if !found || err != nil || c.Lock != whole(backends.Write) {
				s.Errorf("finds %+v, %v, %v", c, found, err)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			keeping(t, 2, func(s *script) {
				s.now(0, flock(1, backends.Write, false), nil)
				ask(s)
				s.release(0, 1)
				s.release(1, 9)
			})
		})
	}
}

// TestLostWhileParting: a session that ends before the back end knows of an unlock is no loss to who has unlocked.
func TestLostWhileParting(t *testing.T) {
	keeping(t, 2, func(s *script) {
		session := memorySessionOf(s.nodes[0])
		reopen := s.shut()
		s.cycles(0, 1, 1)
		time.Sleep(2 * briefly)
		session.end()
		synctest.Wait()
		if s.nodes[0].Lost(1) {
			t.Error("the one who had unlocked has lost a lock")
		}
		s.now(1, flock(9, backends.Write, false), nil)
		s.release(1, 9)
		reopen()
		s.cycles(0, 1, 1)
	})
}

// TestManyPart: however many names come out of use at once, none stays behind, and one that is used again does not go.
func TestManyPart(t *testing.T) {
	keeping(t, 1, func(s *script) {
		const names = 2 * maxWarm
		use := func(i int, mode backends.Mode) Request {
			r := flock(uint64(i+1), mode, false)
			r.Name = fmt.Sprint(i)
			return r
		}
		for i := range names {
			s.now(0, use(i, backends.Write), nil)
		}
		for i := range names {
			if err := s.nodes[0].Unlock(s.Context(), use(i, backends.None)); err != nil {
				t.Fatal(err)
			}
		}
		s.now(0, use(0, backends.Write), nil)
		before := s.m.requests()
		time.Sleep(2 * briefly)
		synctest.Wait()
		if s.m.entries("0") != 1 {
			t.Error("who holds a lock has no claim")
		}
		for i := 1; i < names; i++ {
			if n := s.m.entries(fmt.Sprint(i)); n != 0 {
				t.Fatalf("name %d has %d entries left", i, n)
			}
		}
		if n := s.m.requests() - before; n > 2 {
			t.Errorf("%d requests to give back what was kept for a moment, want 1, and 1 for the first name", n)
		}
		s.nodes[0].ReleaseHandle("0", 1)
	})
}

// TestTriedWhileClosing: who tries on another node what a program had that has just ended is not refused because RELEASE has not come yet; where
// none comes, it is refused a moment later.
func TestTriedWhileClosing(t *testing.T) {
	for _, ended := range []bool{true, false} {
		keeping(t, 2, func(s *script) {
			s.now(0, flock(1, backends.Write, false), nil)
			s.nodes[0].Flushed("x", 1)
			theirs := s.start(1, "theirs", flock(9, backends.Write, false))
			if ended {
				time.Sleep(flushGrace / 2)
				synctest.Wait()
				s.waits(theirs)
				s.nodes[0].ReleaseHandle("x", 1)
				s.ended(nil, theirs)
			} else {
				time.Sleep(flushGrace)
				s.ended(backends.ErrWouldBlock, theirs)
				s.release(0, 1)
			}
			s.release(1, 9)
		})
	}
}

// TestUnlockAfterAConversion: a conversion lets go first. When it was interrupted, the unlock that follows has nothing to let go of any more, and yet
// returns when the back end knows of what the conversion did.
func TestUnlockAfterAConversion(t *testing.T) {
	onNodes(t, 2, func(s *script) {
		s.now(0, flock(1, backends.Read, false), nil)
		s.now(1, flock(9, backends.Read, false), nil)
		reopen := s.shut()
		converts := s.start(0, "converts", flock(1, backends.Write, true))
		s.waits(converts)
		converts.signal()
		s.ended(context.Canceled, converts)
		time.AfterFunc(time.Second, reopen)
		began := time.Now()
		s.unlock(0, 1)
		if took := time.Since(began); took < time.Second {
			t.Errorf("an unlock returned after %v, and nobody could see it", took)
		}
		time.Sleep(2 * keepPlace)
		s.release(0, 1)
		s.release(1, 9)
	})
}
