package locks

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lockfs/backends"
)

// unlocking is an unlock under way.
type unlocking struct {
	began time.Time
	took  chan time.Duration
}

// unlocks begins to unlock, and returns when that has ended or lingers. No time passes.
func (s *script) unlocks(node int, handle uint64) unlocking {
	u := unlocking{time.Now(), make(chan time.Duration, 1)}
	go func() {
		if err := s.nodes[node].Unlock(context.Background(), flock(handle, backends.None, false)); err != nil {
			s.Error(err)
		}
		u.took <- time.Since(u.began)
	}()
	synctest.Wait()
	return u
}

// lingers checks that an unlock has not returned.
func (s *script) lingers(u unlocking) {
	s.Helper()
	if len(u.took) > 0 {
		s.Fatalf("the unlock does not linger, it took %v", <-u.took)
	}
}

// returns checks after which time it returned.
func (s *script) returns(u unlocking, after time.Duration) {
	s.Helper()
	if took := <-u.took; took != after {
		s.Fatalf("the unlock took %v, want %v", took, after)
	}
}

// comesNow is a request that has to be granted without any time passing.
func (s *script) comesNow(node int, handle uint64) {
	s.Helper()
	done := make(chan error, 1)
	go func() { done <- lock(s.nodes[node], context.Background(), flock(handle, backends.Write, true)) }()
	synctest.Wait()
	select {
	case err := <-done:
		if err != nil {
			s.Fatal(err)
		}
	default:
		s.Fatalf("handle %d on node %d waits", handle, node)
	}
}

// takeInTurn has handles 1 and 2 on node 0 take the lock one after the other, which 2 has then, and somebody on node 1 wait for it.
func (s *script) takeInTurn() (other *call) {
	s.Helper()
	s.now(0, flock(1, backends.Write, true), nil)
	other = s.start(1, "other", flock(9, backends.Write, true))
	second := s.start(0, "second", flock(2, backends.Write, true))
	s.waits(other, second)
	s.returns(s.unlocks(0, 1), 0)
	s.ended(nil, second)
	return other
}

// TestUnlockLingers: where owners of a node take a name in turn, an unlock gives a newcomer of the node a moment to come.
func TestUnlockLingers(t *testing.T) {
	const turn = 100 * time.Millisecond
	onNodesWith(t, 2, Options{Turn: turn}, func(s *script) {
		other := s.takeInTurn()
		u := s.unlocks(0, 2)
		s.lingers(u)
		if err := s.nodes[1].Lock(context.Background(), flock(8, backends.Write, false)); err == nil {
			t.Error("the lock was free for another node though its unlock had not returned")
		}
		s.comesNow(0, 1)
		s.returns(u, 0)
		s.waits(other)

		u = s.unlocks(0, 1) // nobody comes
		s.lingers(u)
		s.returns(u, lingerFor)
		s.ended(nil, other)
		s.unlock(1, 9)
	})
}

// TestLingeringEndsWithTheTurn: it never makes others wait for longer than the node's turn.
func TestLingeringEndsWithTheTurn(t *testing.T) {
	const turn = 100 * time.Millisecond
	onNodesWith(t, 2, Options{Turn: turn}, func(s *script) {
		other := s.takeInTurn()
		ends := s.nodes[0].names["x"].turn
		time.Sleep(ends - clock() - lingerFor/4)
		s.returns(s.unlocks(0, 2), lingerFor/4)
		s.ended(nil, other)
		s.unlock(1, 9)
	})
}

// TestNoLingering: not where one owner comes back again and again, where nobody on another node waits, where nobody has let go, or for long in vain.
func TestNoLingering(t *testing.T) {
	options := Options{Turn: time.Second}
	t.Run("one owner", func(t *testing.T) {
		onNodesWith(t, 2, options, func(s *script) {
			for range 5 {
				s.now(0, flock(1, backends.Write, true), nil)
				other := s.start(1, "other", flock(9, backends.Write, true))
				s.waits(other)
				s.returns(s.unlocks(0, 1), 0)
				s.ended(nil, other)
				s.unlock(1, 9)
			}
		})
	})
	t.Run("nobody waits", func(t *testing.T) {
		onNodesWith(t, 2, options, func(s *script) {
			for i := range uint64(6) {
				s.now(0, flock(1+i%2, backends.Write, true), nil)
				s.returns(s.unlocks(0, 1+i%2), 0)
			}
		})
	})
	t.Run("nothing was held", func(t *testing.T) {
		onNodesWith(t, 2, options, func(s *script) {
			other := s.takeInTurn()
			u := s.unlocks(0, 2)
			s.lingers(u)
			s.returns(s.unlocks(0, 7), 0)
			s.lingers(u)
			s.returns(u, lingerFor)
			s.ended(nil, other)
			s.unlock(1, 9)
		})
	})
	t.Run("in vain", func(t *testing.T) {
		options.KeepIdle = time.Second // so long is it remembered
		onNodesWith(t, 2, options, func(s *script) {
			var lingered int
			const rounds = 100
			for range rounds {
				other := s.takeInTurn()
				u := s.unlocks(0, 2)
				if took := <-u.took; took == lingerFor {
					lingered++
				} else if took != 0 {
					t.Errorf("an unlock took %v", took)
				}
				s.ended(nil, other)
				s.unlock(1, 9)
				time.Sleep(time.Millisecond)
			}
			if lingered < 3 || lingered > 8 {
				t.Errorf("%d of %d unlocks lingered in vain", lingered, rounds)
			}
		})
	})
}

// TestEndWhileLingering: a table that closes, or loses its session, while an unlock lingers.
func TestEndWhileLingering(t *testing.T) {
	onNodesWith(t, 2, Options{Turn: time.Second}, func(s *script) {
		other := s.takeInTurn()
		u := s.unlocks(0, 2)
		s.lingers(u)
		if err := s.nodes[0].Close(context.Background()); err != nil {
			t.Error(err)
		}
		s.returns(u, lingerFor)
		s.ended(nil, other)
		s.unlock(1, 9)
	})
	onNodesWith(t, 2, Options{Turn: time.Second}, func(s *script) {
		other := s.takeInTurn()
		session := memorySessionOf(s.nodes[0])
		done := make(chan error, 1)
		go func() { done <- s.nodes[0].Unlock(context.Background(), flock(2, backends.None, false)) }()
		synctest.Wait()
		session.end()
		if err := <-done; err == nil {
			t.Error("the unlock of a lock whose lease ended before it was free did not say so")
		}
		s.ended(nil, other)
		s.unlock(1, 9)
		s.release(0, 2)
	})
}

// TestNodesOutOfStep: owners on one node are in step, so that one always waits when the other lets go; those on the others come a
// little too late. The least served owner gets at least half of what the most served gets.
func TestNodesOutOfStep(t *testing.T) {
	const hold = 50 * time.Microsecond
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.delay = 300 * time.Microsecond
		var counts [8]atomic.Int64
		var tables []*Table
		var all sync.WaitGroup
		end := time.Now().Add(2 * time.Second)
		for node := range 4 {
			table := newTableWith(t, m, Options{Turn: 5 * time.Millisecond})
			tables = append(tables, table)
			for i := range 2 {
				all.Go(func() {
					handle := uint64(i + 1)
					for time.Now().Before(end) {
						if err := lock(table, t.Context(), flock(handle, backends.Write, true)); err != nil {
							t.Error(err)
							return
						}
						counts[node*2+i].Add(1)
						time.Sleep(hold)
						if err := table.Unlock(t.Context(), flock(handle, backends.None, false)); err != nil {
							t.Error(err)
							return
						}
						if node > 0 {
							time.Sleep(hold + rand.N(hold/2))
						}
					}
				})
			}
		}
		all.Wait()
		least, most, list := counts[0].Load(), counts[0].Load(), ""
		for i := range counts {
			n := counts[i].Load()
			least, most, list = min(least, n), max(most, n), list+fmt.Sprint(" ", n)
		}
		if 2*least < most {
			t.Errorf("least and most served got %d and %d of%s", least, most, list)
		}
		for _, table := range tables {
			if err := table.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
}
