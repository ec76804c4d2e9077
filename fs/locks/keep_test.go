package locks

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"lockfs/backends"
)

const keepIdle = 100 * time.Millisecond

// keeping runs a test on nodes that keep claims idle.
func keeping(t *testing.T, nodes int, test func(s *script)) {
	t.Helper()
	onNodesWith(t, nodes, Options{KeepIdle: keepIdle}, test)
}

// cycles locks and unlocks n times through a handle.
func (s *script) cycles(node int, handle uint64, n int) {
	s.Helper()
	for range n {
		s.now(node, flock(handle, backends.Write, false), nil)
		s.unlock(node, handle)
	}
}

func (s *script) unlock(node int, handle uint64) {
	s.Helper()
	if err := s.nodes[node].Unlock(context.Background(), flock(handle, backends.None, false)); err != nil {
		s.Fatal(err)
	}
}

func (m *memory) entries(name string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(*m.state(name))
}

// requests is how many verbs the cluster has carried out.
func (m *memory) requests() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.verbs
}

// TestRepeatedLockAsksNobody: from the third time on, lock and unlock cost the back end nothing.
func TestRepeatedLockAsksNobody(t *testing.T) {
	keeping(t, 2, func(s *script) {
		s.cycles(0, 1, 2)
		before := s.m.requests()
		s.cycles(0, 1, 50)
		s.cycles(0, 2, 50) // another description
		if n := s.m.requests() - before; n != 0 {
			s.Errorf("%d requests for 100 cycles, want 0", n)
		}
		time.Sleep(2 * keepIdle)
		synctest.Wait()
		s.m.requireEmpty(s.T) // idle for long enough
		if n := s.m.requests() - before; n != 1 {
			s.Errorf("%d requests to give up an idle claim, want 1", n)
		}
	})
}

// TestRareUseKeepsNothing: a lock that is taken now and then is given back each time.
func TestRareUseKeepsNothing(t *testing.T) {
	keeping(t, 1, func(s *script) {
		for range 5 {
			s.cycles(0, 1, 1)
			time.Sleep(2 * briefly)
			synctest.Wait()
			s.m.requireEmpty(s.T)
			time.Sleep(2 * keepIdle)
		}
	})
}

// TestIdleClaimIsNeverInTheWay: what a node keeps idle is free to others at once, in every way to ask.
func TestIdleClaimIsNeverInTheWay(t *testing.T) {
	for _, r := range []Request{
		flock(9, backends.Write, false), flock(9, backends.Read, false), flock(9, backends.Write, true),
		open(9, never, false), open(9, backends.ByCall, false), open(9, backends.ByCallOnWritable, true),
		fcntl(9, 9, bytesOf(5, 6, backends.Write), false),
	} {
		keeping(t, 2, func(s *script) {
			s.cycles(0, 1, 3)
			if _, found, err := s.nodes[1].Test(s.Context(), r); found || err != nil {
				s.Errorf("F_GETLK finds a lock: %v, %v", found, err)
			}
			s.cycles(0, 1, 3)
			s.now(1, r, nil)
			s.nodes[1].ReleaseProcess("x", 9)
			s.release(1, 9)
		})
	}
}

// TestKeptClaimInUse: a lock under a kept claim is held like any other.
func TestKeptClaimInUse(t *testing.T) {
	keeping(t, 2, func(s *script) {
		s.cycles(0, 1, 3)
		s.now(0, flock(1, backends.Write, false), nil)
		if c, found, err := s.nodes[1].Test(s.Context(), flock(9, backends.Read, false)); !found || err != nil || c.Lock != whole(backends.Write) {
			s.Errorf("F_GETLK finds %+v, %v, %v", c, found, err)
		}
		s.now(1, flock(9, backends.Read, false), backends.ErrWouldBlock)
		s.now(1, open(8, never, false), backends.ErrWouldBlock)
		s.now(1, open(8, backends.ByCall, false), backends.ErrYield)
		s.now(1, open(8, backends.ByCall, true), backends.ErrYield)
		w := s.start(1, "w", flock(9, backends.Write, true))
		s.waits(w)
		s.unlock(0, 1)
		s.ended(nil, w)
		s.release(1, 9)
	})
}

// TestOpenBetweenUseAndIdle: an open that is not to wait is not refused what comes free between the two questions that it asks, and stays with its node idle.
func TestOpenBetweenUseAndIdle(t *testing.T) {
	for what, again := range map[string]func(s *script) (want error){
		"idle": func(*script) error { return nil },
		"taken again": func(s *script) error {
			if err := s.nodes[0].Lock(s.Context(), flock(1, backends.Write, false)); err != nil { // without the back end
				s.Error(err)
			}
			return backends.ErrYield
		},
	} {
		t.Run(what, func(t *testing.T) {
			keeping(t, 2, func(s *script) {
				s.now(0, flock(1, backends.Write, false), nil)
				s.now(1, flock(9, backends.Write, false), backends.ErrWouldBlock) // from here on claims say what they are
				s.unlock(0, 1)
				s.cycles(0, 1, 1)
				s.now(0, flock(1, backends.Write, false), nil) // the second time in a row: it will be kept
				s.m.acquires = make(chan struct{})
				asks := s.start(1, "asks", open(8, backends.ByCall, false))
				s.m.acquires <- struct{}{}
				s.pass(time.Millisecond)
				s.waits(asks) // it was refused, and is about to ask by whom
				s.unlock(0, 1)
				if n := s.m.entries("x"); n != 1 {
					t.Fatalf("%d claims, want one that is kept", n)
				}
				want := again(s)
				close(s.m.acquires)
				s.ended(want, asks)
				s.release(0, 1)
				s.release(1, 8)
			})
		})
	}
}

// TestTakingTurnsKeepsLittle: nodes that use a name in turn do not pay for claims kept in vain again and again.
func TestTakingTurnsKeepsLittle(t *testing.T) {
	keeping(t, 2, func(s *script) {
		const rounds = 200
		before := s.m.requests()
		for range rounds {
			s.cycles(0, 1, 1)
			s.cycles(1, 1, 1)
		}
		// Lock and unlock are two each; one kept in vain costs two more.
		if n := s.m.requests() - before; n > 4*rounds+4*rounds/10 {
			s.Errorf("%d requests for %d cycles, want little more than two each", n, 2*rounds)
		}
	})
}

// TestNeverRefusedWhileFree: whatever nodes keep, a call that does not wait gets the lock exactly when nobody has one in its way.
func TestNeverRefusedWhileFree(t *testing.T) {
	for range 50 {
		keeping(t, 3, func(s *script) {
			s.m.delay = time.Duration(rand.IntN(2)) * time.Millisecond
			type held struct {
				node   int
				handle uint64
				mode   backends.Mode
			}
			var holders []held
			for step := range 150 {
				switch rand.IntN(16) {
				case 0, 1:
					time.Sleep(rand.N(2 * briefly))
				case 2:
					time.Sleep(rand.N(long))
				}
				if len(holders) > 0 && rand.IntN(2) == 0 {
					i := rand.IntN(len(holders))
					s.unlock(holders[i].node, holders[i].handle)
					holders = append(holders[:i], holders[i+1:]...)
					continue
				}
				node := rand.IntN(3)
				if rand.IntN(3) > 0 {
					node = 0
				}
				h := held{node, uint64(1000*node + step), anyMode()}
				free := true
				for _, o := range holders {
					free = free && o.mode == backends.Read && h.mode == backends.Read
				}
				err := lock(s.nodes[node], s.Context(), flock(h.handle, h.mode, false))
				if free != (err == nil) || err != nil && !errors.Is(err, backends.ErrWouldBlock) {
					s.Fatalf("step %d: node %d gets %v, with %v held", step, node, err, holders)
				}
				if err == nil {
					holders = append(holders, h)
				}
			}
			for _, h := range holders {
				s.unlock(h.node, h.handle)
			}
		})
	}
}

// TestTurn: while another node waits, newcomers here go first only as long as the node's turn lasts.
func TestTurn(t *testing.T) {
	const turn = 10 * time.Millisecond
	onNodesWith(t, 2, Options{Turn: turn}, func(s *script) {
		s.now(0, flock(1, backends.Write, true), nil)
		other := s.start(1, "other", flock(1, backends.Write, true))
		s.waits(other)
		early := s.start(0, "early", flock(2, backends.Write, true))
		s.waits(other, early)
		s.unlock(0, 1)
		s.ended(nil, early)
		missed := s.start(0, "missed", flock(3, backends.Write, true)) // its turn to come is over before it has come
		s.waits(other, missed)
		time.Sleep(turn)
		late := s.start(0, "late", flock(4, backends.Write, true))
		s.waits(other, missed, late)
		s.unlock(0, 2)
		s.ended(nil, other)
		s.waits(missed, late)
		s.unlock(1, 1)
		s.ended(nil, missed)
		s.waits(late)
		s.unlock(0, 3)
		s.ended(nil, late)
		s.unlock(0, 4)
	})
}

// TestWaitersShareARequest: those who come shortly after each other stand in the back end's queue once, and go when the last goes.
func TestWaitersShareARequest(t *testing.T) {
	onNodesWith(t, 2, Options{Turn: time.Second}, func(s *script) {
		s.now(0, flock(1, backends.Write, true), nil)
		var calls []*call
		for i := range 20 {
			calls = append(calls, s.start(1, fmt.Sprint(i), flock(uint64(i+1), backends.Write, true)))
		}
		if n := s.m.entries("x"); n != 2 {
			t.Errorf("%d entries, want the holder and one for all waiters", n)
		}
		calls[0].signal() // the one that asked
		s.ended(context.Canceled, calls[0])
		time.Sleep(2 * keepPlace)
		s.waits(calls[1:]...)
		s.unlock(0, 1)
		for i := 1; i < 20; i++ {
			s.ended(nil, calls[i])
			s.unlock(1, uint64(i+1))
		}
		s.now(0, flock(1, backends.Write, true), nil)
		again := s.start(1, "again", flock(1, backends.Write, true))
		s.waits(again)
		again.signal()
		s.ended(context.Canceled, again)
		time.Sleep(time.Second)
		if n := s.m.entries("x"); n != 1 {
			t.Errorf("%d entries, want the holder only", n)
		}
		s.unlock(0, 1)
	})
}

// TestWaitersShareWhileTheBackEndIsSlow: those who come while the one before them has not got its answer stand in the queue once.
func TestWaitersShareWhileTheBackEndIsSlow(t *testing.T) {
	onNodes(t, 2, func(s *script) {
		s.now(0, flock(1, backends.Write, true), nil)
		s.m.acquires = make(chan struct{})
		var calls []*call
		for i := range 20 {
			calls = append(calls, s.start(1, fmt.Sprint(i), flock(uint64(i+1), backends.Write, true)))
			time.Sleep(time.Second)
		}
		close(s.m.acquires)
		time.Sleep(time.Second)
		s.waits(calls...)
		if n := s.m.entries("x"); n != 3 {
			t.Errorf("%d entries, want the holder, one for the first waiter and one for those who came before it was answered", n)
		}
		late := s.start(1, "late", flock(21, backends.Write, true))
		time.Sleep(time.Second)
		s.waits(late)
		if n := s.m.entries("x"); n != 4 {
			t.Errorf("%d entries, want one more for who came later", n)
		}
		s.unlock(0, 1)
		for i, c := range append(calls, late) {
			s.ended(nil, c)
			s.unlock(1, uint64(i+1))
		}
	})
}

// queueInTurn has node 0 hold the lock, and nodes 1, 0, 1, 0 in the back end's queue in this order.
func (s *script) queueInTurn(turn time.Duration) (calls []*call) {
	s.Helper()
	s.now(0, flock(1, backends.Write, true), nil)
	for i, node := range []int{1, 0, 1, 0} {
		calls = append(calls, s.start(node, fmt.Sprint("waiter ", i), flock(uint64(10+i), backends.Write, true)))
		time.Sleep(2 * turn)
	}
	return calls
}

// TestTurnIsForAllOfANode: a newcomer that goes first in its node's turn takes those with it who came before it on the node, and
// had to be asked for.
func TestTurnIsForAllOfANode(t *testing.T) {
	const turn = 10 * time.Millisecond
	onNodesWith(t, 2, Options{Turn: turn}, func(s *script) {
		calls := s.queueInTurn(turn)
		s.waits(calls...)
		s.unlock(0, 1)
		s.ended(nil, calls[0])
		s.unlock(1, 10)
		s.ended(nil, calls[1])
		newcomer := s.start(0, "newcomer", flock(20, backends.Write, true))
		s.waits(newcomer, calls[2], calls[3])
		s.unlock(0, 11)
		s.ended(nil, calls[3])
		s.waits(newcomer, calls[2])
		s.unlock(0, 13)
		s.ended(nil, newcomer)
		s.waits(calls[2])
		s.unlock(0, 20)
		s.ended(nil, calls[2])
		s.unlock(1, 12)
	})
}

// TestTurnEnds: who was let in for a node's turn and has not been served in it goes back to where it stood.
func TestTurnEnds(t *testing.T) {
	const turn = 10 * time.Millisecond
	onNodesWith(t, 2, Options{Turn: turn}, func(s *script) {
		calls := s.queueInTurn(turn)
		s.unlock(0, 1)
		s.ended(nil, calls[0])
		s.unlock(1, 10)
		s.ended(nil, calls[1])
		newcomer := s.start(0, "newcomer", flock(20, backends.Write, true))
		s.waits(newcomer, calls[2], calls[3])
		time.Sleep(2 * turn) // the lock is held for longer than the turn lasts
		s.unlock(0, 11)
		s.ended(nil, calls[2])
		s.waits(newcomer, calls[3])
		s.unlock(1, 12)
		s.ended(nil, calls[3])
		s.waits(newcomer)
		s.unlock(0, 13)
		s.ended(nil, newcomer)
		s.unlock(0, 20)
	})
}
