package locks

import (
	"testing"
	"testing/synctest"
	"time"

	"lockfs/backends"
)

// TestTryHasATimeOut: a call that is not to wait ends with ErrUnavailable where a node that keeps the name does not say whether
// it is in use, with sessions that answer in the caller's goroutine and with others.
func TestTryHasATimeOut(t *testing.T) {
	for _, prompt := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := &script{T: t, m: newMemory()}
			s.m.prompt = prompt
			for range 2 {
				s.nodes = append(s.nodes, newTableWith(t, s.m, Options{KeepIdle: time.Hour, UnavailableAfter: 3 * time.Second}))
			}
			s.cycles(0, 1, 3)
			s.m.gate = make(chan struct{}) // nothing is given up from now on
			c := s.start(1, "try", flock(1, backends.Write, false))
			if n := s.m.entries("x"); n != 2 {
				t.Errorf("%d entries, want the kept claim and the try", n)
			}
			time.Sleep(3100 * time.Millisecond)
			synctest.Wait()
			s.ended(backends.ErrUnavailable, c)
			close(s.m.gate)
			time.Sleep(time.Second)
			s.now(1, flock(1, backends.Write, false), nil)
			s.release(1, 1)
			for _, n := range s.nodes {
				if err := n.Close(t.Context()); err != nil {
					t.Error(err)
				}
			}
			s.m.requireEmpty(t)
		})
	}
}
