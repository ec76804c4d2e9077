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

// witness knows byte by byte who has what, over all nodes, from what the
// tables told their callers.
type witness struct {
	t  *testing.T
	mu sync.Mutex
	// off: sessions get lost, and who lost a lock is told by its next call only.
	off bool
	// has[name][byte][owner] is the mode
	has map[string]map[uint64]map[string]backends.Mode
}

func (w *witness) set(name, owner string, lock backends.Lock) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.off {
		return
	}
	for _, b := range inRange(lock.Range) {
		if w.has[name] == nil {
			w.has[name] = map[uint64]map[string]backends.Mode{}
		}
		if w.has[name][b] == nil {
			w.has[name][b] = map[string]backends.Mode{}
		}
		owners := w.has[name][b]
		delete(owners, owner)
		if lock.Mode == backends.None {
			continue
		}
		for other, mode := range owners {
			if mode == backends.Write || lock.Mode == backends.Write {
				w.t.Errorf("byte %d of %q: %s gets %v while %s has %v", b, name, owner, lock.Mode, other, mode)
			}
		}
		owners[owner] = lock.Mode
	}
}

// worker is one owner that locks and unlocks at random.
type worker struct {
	table *Table
	w     *witness
	label string
	owner uint64
	base  uint64 // of its handle numbers
	count *counts
}

type counts struct {
	mu                                          sync.Mutex
	granted, blocked, deadlock, timeouts, yield int
}

func (c *counts) add(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		c.granted++
	case errors.Is(err, backends.ErrWouldBlock):
		c.blocked++
	case errors.Is(err, backends.ErrDeadlock):
		c.deadlock++
	case errors.Is(err, backends.ErrYield):
		c.yield++
	default:
		c.timeouts++
	}
}

// flocks takes and gives up whole-name locks through a handle of its own, with
// conversions; it sometimes opens for writing first.
func (k *worker) flocks(rounds int) {
	for i := range rounds {
		handle := k.base + uint64(i)
		if rand.IntN(2) == 0 {
			k.try(open(handle, []backends.Hint{never, backends.ByCall, backends.ByCallOnWritable}[rand.IntN(3)], rand.IntN(3) > 0))
		}
		for range 1 + rand.IntN(3) {
			r := flock(handle, anyMode(), rand.IntN(3) > 0)
			r.Writable = rand.IntN(2) == 0
			if !k.try(r) {
				continue
			}
			time.Sleep(rand.N(3 * time.Millisecond))
		}
		if rand.IntN(2) == 0 {
			k.w.set("x", k.label, whole(backends.None))
			k.table.Unlock(context.Background(), flock(handle, backends.None, false))
		}
		k.w.set("x", k.label, whole(backends.None))
		k.table.ReleaseHandle("x", handle)
	}
}

// fcntls takes and gives up ranges, with upgrades, over some names.
func (k *worker) fcntls(rounds int) {
	for i := range rounds {
		name := []string{"x", "y"}[rand.IntN(2)]
		for range 1 + rand.IntN(4) {
			r := fcntl(k.owner, k.base+uint64(i), backends.Lock{Range: anyRange(), Mode: anyMode()}, rand.IntN(3) > 0)
			r.Name = name
			if k.try(r) {
				time.Sleep(rand.N(3 * time.Millisecond))
			}
			if rand.IntN(3) == 0 {
				part := backends.Lock{Range: anyRange()}
				k.w.set(name, k.label, part)
				r.Lock = part
				k.table.Unlock(context.Background(), r)
			}
		}
		k.w.set(name, k.label, whole(backends.None))
		k.table.ReleaseProcess(name, k.owner)
	}
}

// try makes one request with a time limit and tells the witness.
func (k *worker) try(r Request) bool {
	if r.Door == Flock {
		// A flock conversion may let go first. The witness must not be told
		// later than the table does it.
		k.w.set(r.Name, k.label, whole(backends.None))
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(1+rand.IntN(40))*time.Millisecond)
	defer cancel()
	if r.Door == Fcntl && r.Lock.Mode == backends.Read {
		k.downgrade(r)
	}
	err := lock(k.table, ctx, r)
	k.count.add(err)
	if err == nil {
		k.w.set(r.Name, k.label, r.Lock)
	}
	return err == nil
}

// downgrade tells the witness beforehand where a read lock may replace a write lock.
func (k *worker) downgrade(r Request) {
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	for _, b := range inRange(r.Lock.Range) {
		if k.w.has[r.Name][b][k.label] == backends.Write {
			k.w.has[r.Name][b][k.label] = backends.Read
		}
	}
}

func TestCrowd(t *testing.T) {
	for range 20 {
		crowd(t, false)
	}
}

func TestCrowdWithLostSessions(t *testing.T) {
	for range 20 {
		crowd(t, true)
	}
}

// crowd lets owners of several nodes lock at random and checks that no two
// ever have what excludes each other, that everything ends, and that nothing is left.
func crowd(t *testing.T, lose bool) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.prompt = rand.IntN(2) == 0
		options := Options{KeepIdle: time.Duration(rand.IntN(3)) * 50 * time.Millisecond, Turn: time.Duration(rand.IntN(3)) * time.Millisecond}
		m.delay = time.Duration(rand.IntN(3)) * time.Millisecond
		if lose {
			options.Watcher = &lingering{time.Duration(rand.IntN(5)) * time.Millisecond}
		}
		w := &witness{t: t, off: lose, has: map[string]map[uint64]map[string]backends.Mode{}}
		c := &counts{}
		var tables []*Table
		var all sync.WaitGroup
		for node := range 3 {
			table := newTableWith(t, m, options)
			tables = append(tables, table)
			for i := range 4 {
				k := &worker{table: table, w: w, label: string(rune('a'+node)) + string(rune('0'+i)),
					owner: uint64(i + 1), base: uint64(i+1) * 1000, count: c}
				if i%2 == 0 {
					all.Go(func() { k.flocks(60) })
				} else {
					all.Go(func() { k.fcntls(60) })
				}
			}
		}
		if lose {
			loseSome(m)
		}
		all.Wait()
		for _, table := range tables {
			table.mu.Lock()
			left := len(table.waiting) + len(table.lost)
			table.mu.Unlock()
			if left > 0 && !lose {
				t.Errorf("%d waits or lost handles are left", left)
			}
		}
		time.Sleep(time.Second) // virtual: interrupted waiters' places expire
		m.requireEmpty(t)
		for _, table := range tables {
			table.mu.Lock()
			for name, n := range table.names {
				t.Errorf("%q is left in a table: %+v", name, n)
			}
			table.mu.Unlock()
			if err := table.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if c.granted == 0 || c.blocked == 0 || c.timeouts == 0 {
			t.Errorf("a crowd that tests little: %+v", c)
		}
	})
}

// loseSome ends sessions without a goodbye, a few milliseconds apart.
func loseSome(m *memory) {
	for range 10 {
		time.Sleep(rand.N(20 * time.Millisecond))
		m.mu.Lock()
		var victim *memorySession
		for _, victim = range m.sessions {
			break
		}
		m.mu.Unlock()
		if victim != nil {
			victim.end()
		}
	}
}
