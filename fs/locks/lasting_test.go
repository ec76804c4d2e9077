package locks

import (
	"testing"
	"testing/synctest"
	"time"

	"lockfs/backends"
)

// long is when a lock that has been held since has been told of.
const long = 2*lasting + time.Millisecond

// pass lets time go by.
func (s *script) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// TestLastingLockIsKnown: of a lock that lasts the back end is told, so that who tries it is refused though its node does not answer; what its
// holder does not have is free to others all the same.
func TestLastingLockIsKnown(t *testing.T) {
	for what, c := range map[string]struct{ mine, theirs, free Request }{
		"the whole name": {flock(1, backends.Write, false), flock(9, backends.Read, false), Request{}},
		"bytes of a kept claim": {fcntl(1, 1, bytesOf(5, 6, backends.Write), false), fcntl(9, 9, bytesOf(6, 6, backends.Read), false),
			fcntl(8, 8, bytesOf(7, 9, backends.Write), false)},
		"a read lock under a kept claim": {flock(1, backends.Read, false), flock(9, backends.Write, false), flock(8, backends.Read, false)},
		"an open":                        {open(1, never, false), open(9, never, false), Request{}},
	} {
		t.Run(what, func(t *testing.T) {
			keeping(t, 2, func(s *script) {
				s.cycles(0, 2, 3)
				s.now(0, c.mine, nil)
				reopen := s.shut()
				early := s.start(1, "early", c.theirs)
				s.waits(early)
				reopen()
				s.ended(backends.ErrWouldBlock, early)
				s.nodes[0].ReleaseProcess("x", 1)
				s.release(0, 1)
				s.pass(2 * keepIdle) // no other node has asked for a while

				s.cycles(0, 2, 3)
				s.now(0, c.mine, nil)
				s.pass(long)
				reopen = s.shut()
				s.now(1, c.theirs, backends.ErrWouldBlock)
				if c.free.Lock.Mode != backends.None {
					s.now(1, c.free, nil)
				}
				reopen()
				s.nodes[0].ReleaseProcess("x", 1)
				s.release(0, 1)
				s.nodes[1].ReleaseProcess("x", 8)
				s.release(1, 8)
				s.now(1, c.theirs, nil)
				s.nodes[1].ReleaseProcess("x", 9)
				s.release(1, 9)
			})
		})
	}
}

// TestUnlockOfALastingLock: as the back end knows that it is held, its unlock returns when that knows of the end.
func TestUnlockOfALastingLock(t *testing.T) {
	keeping(t, 2, func(s *script) {
		s.now(0, flock(1, backends.Write, false), nil)
		s.pass(long)
		time.AfterFunc(time.Second, s.shut())
		began := time.Now()
		s.unlock(0, 1)
		if took := time.Since(began); took != time.Second {
			t.Errorf("the unlock took %v while the back end did not answer for a second", took)
		}
		s.now(1, flock(9, backends.Write, false), nil)
		s.release(1, 9)
	})
}

// TestUnlockWhileItIsTold: an unlock that comes while the back end is told that the lock lasts.
func TestUnlockWhileItIsTold(t *testing.T) {
	keeping(t, 2, func(s *script) {
		s.now(0, flock(1, backends.Write, false), nil)
		reopen := s.shut()
		s.pass(long)
		unlocked := make(chan struct{})
		go func() { defer close(unlocked); s.unlock(0, 1) }()
		synctest.Wait()
		if closed(unlocked) {
			t.Error("the unlock has returned, and the lock may look as if it were in use")
		}
		reopen()
		<-unlocked
		s.now(1, flock(9, backends.Write, false), nil)
		s.release(1, 9)
	})
}

// TestNothingLasts: as long as locks are short the back end hears nothing of them, however many there are; of one that lasts it hears once.
func TestNothingLasts(t *testing.T) {
	keeping(t, 1, func(s *script) {
		s.cycles(0, 1, 3)
		before := s.m.requests()
		for range 100 {
			s.now(0, flock(1, backends.Write, false), nil)
			s.pass(lasting / 20)
			s.unlock(0, 1)
			s.pass(keepIdle / 2)
		}
		if n := s.m.requests() - before; n != 0 {
			t.Errorf("%d requests for locks that are held shortly and taken again", n)
		}
		s.now(0, flock(1, backends.Write, false), nil)
		s.pass(10 * lasting)
		if n := s.m.requests() - before; n != 1 {
			t.Errorf("%d requests for a lock that lasts, want 1", n)
		}
		s.release(0, 1)
	})
}

// TestOneOfManyLasts: a reader that stays is told of, however many come and go beside it.
func TestOneOfManyLasts(t *testing.T) {
	keeping(t, 2, func(s *script) {
		s.now(0, flock(1, backends.Read, false), nil)
		for range 50 {
			s.now(0, flock(2, backends.Read, false), nil)
			s.pass(long / 40)
			s.unlock(0, 2)
		}
		reopen := s.shut()
		s.now(1, flock(9, backends.Write, false), backends.ErrWouldBlock)
		reopen()
		s.release(0, 1)
	})
}
