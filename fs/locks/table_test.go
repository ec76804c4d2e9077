package locks

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lockfs/backends"
)

// script runs requests on a few nodes in virtual time.
type script struct {
	*testing.T
	m     *memory
	nodes []*Table
	mu    sync.Mutex
	order []string // labels of started requests in the order of their grants
}

// onNodes runs a test on so many nodes of a cluster in this process.
func onNodes(t *testing.T, nodes int, test func(s *script)) {
	t.Helper()
	onNodesWith(t, nodes, Options{}, test)
}

// onNodesWith is onNodes with tables that have these options. The sessions make the first attempt in the caller's
// goroutine, or not.
func onNodesWith(t *testing.T, nodes int, options Options, test func(s *script)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &script{T: t, m: newMemory()}
		s.m.prompt = rand.IntN(2) == 0
		for range nodes {
			s.nodes = append(s.nodes, newTableWith(t, s.m, options))
		}
		test(s)
		time.Sleep(time.Second) // virtual: what was given up is taken back
		for _, n := range s.nodes {
			if err := n.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
		s.m.requireEmpty(t)
	})
}

// call is a request under way.
type call struct {
	label  string
	done   bool
	err    error
	signal context.CancelFunc
}

// lock is Lock, or the same by Begin.
func lock(t *Table, ctx context.Context, r Request) error {
	if r.Door == Open || rand.IntN(2) == 0 {
		return t.Lock(ctx, r)
	}
	answer := make(chan error, 1)
	begun := t.Begin(r, func(err error) {
		answer <- err
		close(answer) // there is no second one
	})
	if begun.Rest != nil {
		return begun.Rest(ctx)
	}
	if begun.Interrupt == nil {
		return begun.Err
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		begun.Interrupt()
		begun.Interrupt() // and no more
		return <-answer
	}
}

// start makes a request in the background and waits until it is decided or waits.
func (s *script) start(node int, label string, r Request) *call {
	ctx, cancel := context.WithCancel(context.Background())
	c := &call{label: label, signal: cancel}
	go func() {
		c.err = lock(s.nodes[node], ctx, r)
		c.done = true
		if c.err == nil {
			s.mu.Lock()
			s.order = append(s.order, label)
			s.mu.Unlock()
		}
		cancel()
	}()
	time.Sleep(time.Millisecond)
	synctest.Wait()
	return c
}

// now makes a request that has to be decided at once.
func (s *script) now(node int, r Request, want error) {
	s.Helper()
	c := s.start(node, "", r)
	if !c.done {
		s.Fatalf("waits: %+v", r)
	}
	if !errors.Is(c.err, want) {
		s.Fatalf("got %v, want %v: %+v", c.err, want, r)
	}
}

// waits checks that calls are undecided.
func (s *script) waits(calls ...*call) {
	s.Helper()
	for _, c := range calls {
		if c.done {
			s.Fatalf("%s does not wait: %v", c.label, c.err)
		}
	}
}

// ended checks how calls were decided.
func (s *script) ended(want error, calls ...*call) {
	s.Helper()
	time.Sleep(time.Millisecond)
	synctest.Wait()
	for _, c := range calls {
		if !c.done || !errors.Is(c.err, want) {
			s.Fatalf("%s: done %v with %v, want %v", c.label, c.done, c.err, want)
		}
	}
}

func (s *script) release(node int, handle uint64) {
	s.nodes[node].ReleaseHandle("x", handle)
	time.Sleep(time.Millisecond)
	synctest.Wait()
}

func TestFirstComeFirstServed(t *testing.T) {
	onNodes(t, 3, func(s *script) {
		s.now(0, flock(1, backends.Write, false), nil)
		nodes := []int{0, 1, 0, 2, 2, 1, 0, 1, 1, 0}
		for i, node := range nodes {
			s.waits(s.start(node, fmt.Sprint(i), flock(uint64(10+i), backends.Write, true)))
		}
		s.release(0, 1)
		for i, node := range nodes {
			s.release(node, uint64(10+i))
		}
		if want := []string{"", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}; !slices.Equal(s.order, want) {
			s.Errorf("served in the order %q", s.order)
		}
	})
}

func TestReadersDoNotOvertakeWriter(t *testing.T) {
	for _, nodes := range [][4]int{{0, 0, 0, 0}, {0, 1, 0, 1}, {0, 1, 1, 0}, {0, 0, 1, 1}, {1, 0, 1, 0}} {
		onNodes(t, 2, func(s *script) {
			s.now(nodes[0], flock(1, backends.Read, false), nil)
			w := s.start(nodes[1], "writer", flock(2, backends.Write, true))
			r1 := s.start(nodes[2], "reader 1", flock(3, backends.Read, true))
			r2 := s.start(nodes[3], "reader 2", flock(4, backends.Read, true))
			s.waits(w, r1, r2)
			s.now(nodes[2], flock(5, backends.Read, false), backends.ErrWouldBlock)
			s.release(nodes[0], 1)
			s.ended(nil, w)
			s.waits(r1, r2)
			s.release(nodes[1], 2)
			s.ended(nil, r1, r2) // let in together
			s.release(nodes[2], 3)
			s.release(nodes[3], 4)
		})
	}
}

func TestSignalEndsWait(t *testing.T) {
	for _, next := range []int{0, 1} {
		onNodes(t, 2, func(s *script) {
			s.now(0, flock(1, backends.Read, false), nil)
			w := s.start(1, "writer", flock(2, backends.Write, true))
			r := s.start(next, "reader", flock(3, backends.Read, true))
			s.waits(w, r)
			w.signal()
			s.ended(context.Canceled, w)
			time.Sleep(keepPlace)
			s.ended(nil, r)
			s.release(0, 1)
			s.release(next, 3)
		})
	}
}

func TestInterruptedCallKeepsItsPlace(t *testing.T) {
	onNodes(t, 2, func(s *script) {
		s.now(0, flock(1, backends.Write, false), nil)
		first := s.start(1, "first", flock(2, backends.Write, true))
		second := s.start(0, "second", flock(3, backends.Write, true))
		for range 6 {
			first.signal()
			s.ended(context.Canceled, first)
			time.Sleep(keepPlace / 2)
			first = s.start(1, "first", flock(2, backends.Write, true))
			s.waits(first, second)
		}
		first.signal()
		s.ended(context.Canceled, first)
		s.release(0, 1) // while the place is kept, it is not lost, nor granted to nobody
		s.waits(second)
		first = s.start(1, "first", flock(2, backends.Write, true))
		s.ended(nil, first)
		s.waits(second)
		s.release(1, 2)
		s.ended(nil, second)
		s.release(0, 3)
	})
}

func TestPlaceOfAClosedDescriptorIsGone(t *testing.T) {
	onNodes(t, 1, func(s *script) {
		s.now(0, flock(1, backends.Read, false), nil)
		w := s.start(0, "writer", flock(2, backends.Write, true))
		r := s.start(0, "reader", flock(3, backends.Read, true))
		w.signal()
		s.ended(context.Canceled, w)
		s.waits(r)
		s.release(0, 2)
		s.ended(nil, r)
		s.release(0, 1)
		s.release(0, 3)
	})
}

func TestUpgradeOfTwoDeadlocks(t *testing.T) {
	for _, nodes := range [][2]int{{0, 0}, {0, 1}} {
		onNodes(t, 2, func(s *script) {
			s.now(nodes[0], fcntl(1, 1, bytesOf(0, 5, backends.Read), false), nil)
			s.now(nodes[1], fcntl(2, 2, bytesOf(3, 9, backends.Read), false), nil)
			first := s.start(nodes[0], "first", fcntl(1, 1, bytesOf(0, 5, backends.Write), true))
			s.waits(first)
			s.now(nodes[1], fcntl(2, 2, bytesOf(3, 9, backends.Write), false), backends.ErrWouldBlock)
			s.now(nodes[1], fcntl(2, 2, bytesOf(3, 9, backends.Write), true), backends.ErrDeadlock)
			s.nodes[nodes[1]].ReleaseProcess("x", 2)
			s.ended(nil, first)
			s.nodes[nodes[0]].ReleaseProcess("x", 1)
		})
	}
}

func TestUpgradeGoesAheadOfThoseWhoWaitForIt(t *testing.T) {
	for _, nodes := range [][3]int{{0, 0, 0}, {0, 1, 0}, {0, 1, 1}, {0, 0, 1}} {
		onNodes(t, 2, func(s *script) {
			s.now(nodes[0], fcntl(1, 1, whole(backends.Read), false), nil)
			w := s.start(nodes[1], "writer", flock(2, backends.Write, true))
			r := s.start(nodes[2], "reader behind it", flock(3, backends.Read, true))
			s.waits(w, r)
			s.now(nodes[0], fcntl(1, 1, whole(backends.Write), true), nil)
			s.nodes[nodes[0]].ReleaseProcess("x", 1)
			s.ended(nil, w)
			s.waits(r)
			s.release(nodes[1], 2)
			s.ended(nil, r)
			s.release(nodes[2], 3)
		})
	}
}

func TestFlockUpgradeLetsGoFirst(t *testing.T) {
	for _, nodes := range [][2]int{{0, 0}, {0, 1}} {
		onNodes(t, 2, func(s *script) {
			s.now(nodes[0], flock(1, backends.Read, false), nil)
			s.now(nodes[1], flock(2, backends.Read, false), nil)
			first := s.start(nodes[0], "first", flock(1, backends.Write, true))
			s.waits(first)
			second := s.start(nodes[1], "second", flock(2, backends.Write, true))
			s.ended(nil, first)
			s.waits(second)
			s.release(nodes[0], 1)
			s.ended(nil, second)
			s.release(nodes[1], 2)
		})
	}
}

func TestCircleOfWaits(t *testing.T) {
	onNodes(t, 1, func(s *script) {
		on := func(name string, owner uint64) Request {
			r := fcntl(owner, owner, whole(backends.Write), true)
			r.Name = name
			return r
		}
		names := []string{"a", "b", "c"}
		for i, name := range names {
			s.now(0, on(name, uint64(i)), nil)
		}
		one := s.start(0, "one", on("b", 0))
		two := s.start(0, "two", on("c", 1))
		s.waits(one, two)
		s.now(0, on("a", 2), backends.ErrDeadlock)
		s.nodes[0].ReleaseProcess("c", 2)
		s.ended(nil, two)
		s.nodes[0].ReleaseProcess("b", 1)
		s.ended(nil, one)
		for owner, name := range map[uint64]string{0: "a", 1: "c"} {
			s.nodes[0].ReleaseProcess(name, owner)
		}
		s.nodes[0].ReleaseProcess("b", 0)
	})
}

func TestOpenAndExplicitCallsOfOneDescriptor(t *testing.T) {
	for _, other := range []int{0, 1} {
		onNodes(t, 2, func(s *script) {
			try := func(want error) {
				s.Helper()
				s.now(other, flock(9, backends.Read, false), want)
				s.release(other, 9)
			}
			s.now(0, open(1, never, true), nil)
			try(backends.ErrWouldBlock)
			s.now(0, flock(1, backends.Write, false), nil)
			try(backends.ErrWouldBlock)
			s.now(0, flock(1, backends.Read, false), nil) // takes over: a read lock now
			try(nil)
			s.now(0, fcntl(1, 1, bytesOf(0, 5, backends.Write), false), nil) // no collision with its own flock
			try(backends.ErrWouldBlock)
			s.nodes[0].ReleaseProcess("x", 1)
			try(nil)
			s.release(0, 1)

			s.now(0, open(2, never, true), nil)
			s.now(0, fcntl(1, 2, bytesOf(0, 5, backends.Write), false), nil) // takes over from the open
			s.now(other, fcntl(7, 9, bytesOf(6, 9, backends.Write), false), nil)
			s.nodes[other].ReleaseProcess("x", 7)
			s.now(other, fcntl(7, 9, bytesOf(5, 5, backends.Read), false), backends.ErrWouldBlock)
			s.nodes[0].ReleaseProcess("x", 1)
			try(nil)
			s.release(0, 2)

			s.now(0, open(3, never, true), nil)
			unlock := flock(3, backends.None, false)
			if err := s.nodes[0].Unlock(s.Context(), unlock); err != nil {
				s.Fatal(err)
			}
			try(nil)
			s.release(0, 3)
		})
	}
}

// TestOpenYields: an open for writing is let through beside those who lock by explicit calls.
func TestOpenYields(t *testing.T) {
	const plain, appending, always = backends.ByCallOnWritable, backends.ByCall, never
	for _, tc := range []struct {
		name     string
		byOpen   bool // the holder opened for writing
		explicit bool // and called flock
		open     backends.Hint
		yields   bool
	}{
		{"holder by open, plain write", true, false, plain, false},
		{"holder by open, appending", true, false, appending, false},
		{"holder by call on a reader, plain write", false, true, plain, false},
		{"holder by call on a reader, appending", false, true, appending, true},
		{"holder by call on a writer, plain write", true, true, plain, true},
		{"holder by call on a writer, appending", true, true, appending, true},
		{"holder by call on a writer, lock_on_open: always", true, true, always, false},
	} {
		for _, node := range []int{0, 1} {
			for _, waiting := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, on node %d, waiting already %v", tc.name, node, waiting), func(t *testing.T) {
					onNodes(t, 2, func(s *script) {
						holder := flock(1, backends.Write, true)
						holder.Writable = tc.byOpen
						var early *call
						if tc.byOpen {
							s.now(0, open(1, never, true), nil)
							if waiting {
								early = s.start(node, "early", open(2, tc.open, true))
								s.waits(early)
							}
						}
						if tc.explicit {
							s.now(0, holder, nil)
						}
						late := s.start(node, "late", open(3, tc.open, true))
						for _, c := range []*call{early, late} {
							switch {
							case c == nil:
							case tc.yields:
								s.ended(backends.ErrYield, c)
							default:
								s.waits(c)
							}
						}
						nonblock := backends.ErrWouldBlock
						if tc.yields {
							nonblock = backends.ErrYield
						}
						s.now(node, open(4, tc.open, false), nonblock)
						s.release(0, 1)
						s.release(node, 2)
						s.release(node, 3)
					})
				})
			}
		}
	}
}

func TestOpenThatWaitsForItself(t *testing.T) {
	onNodes(t, 1, func(s *script) {
		alone := map[uint32]bool{7: true}
		s.nodes[0].options.Alone = func(pid uint32, _ string) bool { return alone[pid] }
		for pid, want := range map[uint32]error{7: backends.ErrDeadlock, 8: nil} {
			first, second := open(1, backends.ByCall, true), open(2, backends.ByCall, true)
			first.PID, second.PID = pid, pid
			s.now(0, first, nil)
			c := s.start(0, "second", second)
			if want == nil {
				s.waits(c)
				s.release(0, 1)
			}
			s.ended(want, c)
			s.release(0, 1)
			s.release(0, 2)
		}
	})
}

func TestOpenOfAFileThatItsProcessMade(t *testing.T) {
	onNodes(t, 1, func(s *script) {
		s.nodes[0].options.Alone = func(uint32, string) bool { return true }
		first := open(1, backends.ByCall, true)
		first.Created = true
		s.now(0, first, nil)
		s.now(0, open(2, backends.ByCall, true), backends.ErrYield)
		s.now(0, open(3, backends.ByCallOnWritable, true), backends.ErrDeadlock)
		s.release(0, 1)
	})
}

func TestJustClosedDescriptor(t *testing.T) {
	onNodes(t, 1, func(s *script) {
		s.now(0, flock(1, backends.Write, false), nil)
		s.nodes[0].Flushed("x", 1)
		c := s.start(0, "next", flock(2, backends.Write, false))
		s.waits(c)
		s.release(0, 1) // RELEASE comes a moment after FLUSH
		s.ended(nil, c)
		s.nodes[0].Flushed("x", 2) // a duplicate was closed, and no RELEASE follows
		start := time.Now()
		c = s.start(0, "third", flock(3, backends.Write, false))
		time.Sleep(flushGrace)
		s.ended(backends.ErrWouldBlock, c)
		if waited := time.Since(start); waited > 2*flushGrace {
			s.Errorf("waited %v for a RELEASE", waited)
		}
		s.release(0, 2)
	})
}

// TestReleaseThatIsLate: a try waits for what the process has read and not begun, however long that takes, and only once for a descriptor
// that was closed while another lives.
func TestReleaseThatIsLate(t *testing.T) {
	onNodes(t, 1, func(s *script) {
		turns := make(chan struct{})
		asked := 0
		s.nodes[0].options.CatchUp = func(_ context.Context, done <-chan struct{}) {
			asked++
			select {
			case <-turns:
			case <-done:
			}
		}
		s.now(0, flock(1, backends.Write, false), nil)
		s.nodes[0].Flushed("x", 1)
		time.Sleep(10 * flushGrace)
		c := s.start(0, "next", flock(2, backends.Write, false))
		time.Sleep(10 * flushGrace)
		s.waits(c)
		s.release(0, 1)
		s.ended(nil, c)

		s.nodes[0].Flushed("x", 2)
		c = s.start(0, "third", flock(3, backends.Write, false))
		time.Sleep(10 * flushGrace)
		s.waits(c)
		turns <- struct{}{} // all is done, and there was no RELEASE
		s.ended(backends.ErrWouldBlock, c)
		s.now(0, flock(3, backends.Write, false), backends.ErrWouldBlock)
		if asked != 2 {
			s.Errorf("asked %d times whether all is done", asked)
		}
		s.release(0, 2)
	})
}

func TestGetlk(t *testing.T) {
	onNodes(t, 2, func(s *script) {
		s.now(0, fcntl(1, 1, bytesOf(2, 3, backends.Write), false), nil)
		s.now(0, fcntl(1, 1, bytesOf(5, 6, backends.Read), false), nil)
		for _, tc := range []struct {
			node  int
			lock  backends.Lock
			found bool
			want  Conflict
		}{
			{0, bytesOf(0, 9, backends.Write), true, Conflict{bytesOf(2, 3, backends.Write), 1}},
			{1, bytesOf(0, 9, backends.Write), true, Conflict{bytesOf(2, 3, backends.Write), 0}},
			{0, bytesOf(4, 9, backends.Read), false, Conflict{}},
			{1, bytesOf(4, 9, backends.Read), false, Conflict{}},
			{1, bytesOf(4, 9, backends.Write), true, Conflict{bytesOf(5, 6, backends.Read), 0}},
		} {
			got, found, err := s.nodes[tc.node].Test(s.Context(), fcntl(2, 2, tc.lock, false))
			if err != nil || found != tc.found || got != tc.want {
				s.Errorf("node %d, %v: got %+v, %v, %v", tc.node, tc.lock, got, found, err)
			}
		}
		s.nodes[0].ReleaseProcess("x", 1)
	})
}

func TestLostSession(t *testing.T) {
	onNodes(t, 2, func(s *script) {
		s.now(0, flock(1, backends.Read, false), nil)
		s.now(0, fcntl(5, 2, bytesOf(0, 1, backends.Read), false), nil)
		upgrade := s.start(0, "upgrade", fcntl(5, 2, bytesOf(0, 1, backends.Write), true))
		waiter := s.start(0, "waiter", flock(3, backends.Write, true))
		other := s.start(1, "other node", flock(9, backends.Write, true))
		s.waits(upgrade, waiter, other)
		memorySessionOf(s.nodes[0]).end()
		s.ended(ErrLost, upgrade)
		s.ended(nil, other)
		if !s.nodes[0].Lost(1) || !s.nodes[0].Lost(2) || s.nodes[0].Lost(3) {
			s.Error("the wrong descriptors lost their locks")
		}
		s.now(0, flock(1, backends.Read, false), ErrLost)
		s.waits(waiter)
		s.release(1, 9)
		s.ended(nil, waiter)
		s.release(0, 1)
		s.release(0, 2)
		s.release(0, 3)
		s.now(0, flock(1, backends.Read, false), nil) // closed and opened again: a new description
		s.release(0, 1)
	})
}

func TestUncontendedCallsAskOnce(t *testing.T) {
	onNodes(t, 2, func(s *script) {
		s.now(0, flock(1, backends.Write, false), nil)
		first, _ := s.nodes[0].Token("x", 0)
		s.release(0, 1)
		if _, ok := s.nodes[0].Token("x", 0); ok {
			s.Error("a token of a name that nobody holds")
		}
		s.now(1, flock(1, backends.Write, false), nil)
		second, ok := s.nodes[1].Token("x", 0)
		if !ok || second <= first {
			s.Errorf("tokens %d, then %d", first, second)
		}
		s.release(1, 1)
		s.m.requireEmpty(t)
	})
}
