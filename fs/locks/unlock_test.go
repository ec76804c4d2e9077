package locks

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"lockfs/backends"
)

// TestUnlockIsVisible: an unlock has not returned before the back end knows of it, also where its caller gets a signal; one
// that would last for too long returns.
func TestUnlockIsVisible(t *testing.T) {
	onNodes(t, 2, func(s *script) {
		unlock := func(r Request) <-chan error {
			ctx, signal := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- s.nodes[0].Unlock(ctx, r) }()
			synctest.Wait()
			signal()
			synctest.Wait()
			return done
		}
		s.now(0, flock(1, backends.Write, false), nil)
		s.m.gate = make(chan struct{})
		done := unlock(flock(1, backends.None, false))
		time.Sleep(time.Second)
		if len(done) > 0 {
			s.Error("an unlock returned and nobody could see it")
		}
		close(s.m.gate)
		if err := <-done; err != nil {
			s.Error(err)
		}
		s.now(1, flock(2, backends.Write, false), nil)
		s.release(1, 2)

		s.now(0, flock(1, backends.Write, false), nil)
		s.m.gate = make(chan struct{})
		done = unlock(flock(1, backends.None, false))
		time.Sleep(s.nodes[0].options.UnavailableAfter)
		if err := <-done; err != nil {
			s.Error(err)
		}
		close(s.m.gate)
	})
}

// TestLapsedLease: from the moment when the lease has run out every call on a descriptor that holds a lock fails, though the
// session's end is not noticed yet; what is let go by one that fails like this is not said to be free.
func TestLapsedLease(t *testing.T) {
	lapse := func(s *script) {
		for _, session := range s.m.live() {
			session.lapse()
		}
	}
	end := func(s *script) {
		for _, session := range s.m.live() {
			session.end()
		}
		synctest.Wait()
	}
	onNodes(t, 1, func(s *script) {
		s.now(0, flock(1, backends.Write, false), nil)
		s.now(0, flock(2, backends.Write, false), backends.ErrWouldBlock)
		lapse(s)
		if !s.nodes[0].Lost(1) || s.nodes[0].Lost(2) {
			s.Error("the holder has lost its lock, and nobody else")
		}
		s.now(0, flock(1, backends.Read, false), ErrLost)
		if err := s.nodes[0].Unlock(s.Context(), flock(1, backends.None, false)); err != ErrLost {
			s.Errorf("the unlock returns %v", err)
		}
		end(s)
		if !s.nodes[0].Lost(1) {
			s.Error("what is lost has come back")
		}
		s.now(0, flock(2, backends.Write, false), nil)
		s.release(0, 2)
	})
	onNodes(t, 1, func(s *script) {
		s.now(0, flock(1, backends.Write, false), nil)
		s.m.gate = make(chan struct{})
		done := make(chan error, 1)
		go func() { done <- s.nodes[0].Unlock(context.Background(), flock(1, backends.None, false)) }()
		synctest.Wait()
		end(s)
		close(s.m.gate)
		if err := <-done; err != ErrLost {
			s.Errorf("an unlock that nobody has heard of returns %v", err)
		}
	})
}
