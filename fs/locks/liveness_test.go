package locks

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lockfs/backends"
)

// TestEveryWaitEnds: whoever waits without a limit is served, or told that it has lost a lock, as long as holders let go: whatever
// nodes serve in their turns, however long locks are held, and whenever sessions end.
func TestEveryWaitEnds(t *testing.T) {
	for range 60 {
		synctest.Test(t, func(t *testing.T) { everyWaitEnds(t, rand.IntN(2) == 0) })
	}
}

func everyWaitEnds(t *testing.T, lose bool) {
	m := newMemory()
	m.prompt = rand.IntN(2) == 0
	m.delay = time.Duration(rand.IntN(3)) * time.Millisecond
	options := Options{KeepIdle: time.Duration(rand.IntN(2)) * 50 * time.Millisecond, Turn: time.Duration(rand.IntN(4)) * 3 * time.Millisecond}
	longest := time.Duration(1+rand.IntN(12)) * time.Millisecond // a lock is held for so long
	var tables []*Table
	var all sync.WaitGroup
	for range 3 {
		table := newTableWith(t, m, options)
		tables = append(tables, table)
		for owner := range uint64(4) {
			all.Go(func() { waitOften(t, table, (owner+1)*1000, longest) })
		}
	}
	if lose {
		loseSome(m)
	}
	ended := make(chan struct{})
	go func() { all.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(time.Hour): // virtual
		for i, table := range tables {
			table.mu.Lock()
			for name, n := range table.names {
				t.Errorf("node %d, %q: held %+v, claims %+v", i, name, n.held, n.list)
				for _, w := range n.all() {
					t.Errorf("   waits: handle %d, %v, arrival %d, asked %v, ask %+v", w.Handle, w.Lock, w.arrival, w.asked, w.ask)
				}
			}
			table.mu.Unlock()
		}
		t.Fatalf("some wait for ever; the queue is %+v", m.names["x"])
	}
	time.Sleep(time.Second)
	m.requireEmpty(t)
	for _, table := range tables {
		if err := table.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// waitOften takes a lock and lets it go again and again, with pauses now and then.
func waitOften(t *testing.T, table *Table, base uint64, longest time.Duration) {
	for i := range uint64(30) {
		handle := base + i
		r := flock(handle, anyMode(), true)
		if rand.IntN(4) == 0 {
			r = open(handle, never, true)
		}
		switch err := lock(table, context.Background(), r); {
		case err == nil:
			time.Sleep(rand.N(longest))
			r.Lock.Mode = backends.None
			table.Unlock(context.Background(), r) // lost or not, it is over
		case !errors.Is(err, ErrLost):
			t.Error(err)
		}
		table.ReleaseHandle("x", handle)
		if rand.IntN(3) == 0 {
			time.Sleep(rand.N(20 * time.Millisecond))
		}
	}
}
