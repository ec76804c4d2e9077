package locks

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"lockfs/backends"
)

// TestLostWhileGivingBack: a Change that is under way when the session is lost ends while on_lost is being done.
func TestLostWhileGivingBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{T: t, m: newMemory()}
		s.m.gate = make(chan struct{})
		s.nodes = append(s.nodes, newTableWith(t, s.m, Options{Watcher: &lingering{time.Second}}))
		for owner := range uint64(3) {
			s.now(0, fcntl(owner+1, owner+1, bytesOf(10*owner, 10*owner, backends.Write), false), nil)
		}
		for owner := range uint64(2) { // the second is to follow the first
			go s.nodes[0].Unlock(context.Background(), fcntl(owner+1, owner+1, bytesOf(10*owner, 10*owner, backends.None), false))
			synctest.Wait()
		}
		for _, session := range s.m.sessions {
			session.end()
		}
		synctest.Wait()
		close(s.m.gate)
		time.Sleep(2 * time.Second)
		s.now(0, fcntl(9, 9, bytesOf(0, 50, backends.Write), false), nil)
		s.nodes[0].ReleaseProcess("x", 9)
		if err := s.nodes[0].Close(t.Context()); err != nil {
			t.Error(err)
		}
		s.m.requireEmpty(t)
	})
}

// lingering takes its time when a session is lost.
type lingering struct{ most time.Duration }

func (*lingering) Holds(Holding)         {}
func (*lingering) Frees(uint64)          {}
func (*lingering) Waits(uint64, Holding) {}
func (*lingering) WaitsNoMore(uint64)    {}
func (*lingering) Until(time.Duration)   {}
func (l *lingering) Lost(error)          { time.Sleep(l.most) }
