package locks

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lockfs/backends"
)

// diary is a watcher that keeps what it was told.
type diary struct {
	t     *testing.T
	block chan struct{} // Lost waits for it, where not nil

	mu sync.Mutex // the table's goroutines write in it at any time
	pages
}

// pages are what stands in a diary.
type pages struct {
	holds, waits map[uint64]Holding
	until        time.Duration
	// lost is what was held when Lost was called.
	lost []map[uint64]Holding
}

func newDiary(t *testing.T) *diary {
	return &diary{t: t, pages: pages{holds: map[uint64]Holding{}, waits: map[uint64]Holding{}}}
}

// read copies what stands in it now.
func (d *diary) read() pages {
	d.mu.Lock()
	defer d.mu.Unlock()
	return pages{maps.Clone(d.holds), maps.Clone(d.waits), d.until, slices.Clone(d.lost)}
}

func (d *diary) do(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

func (d *diary) Holds(h Holding) { d.do(func() { d.holds[h.Handle] = h }) }

func (d *diary) Frees(handle uint64) {
	d.do(func() {
		if _, ok := d.holds[handle]; !ok {
			d.t.Errorf("told that %d, which holds nothing, holds nothing any more", handle)
		}
		delete(d.holds, handle)
	})
}
func (d *diary) Waits(call uint64, h Holding) { d.do(func() { d.waits[call] = h }) }
func (d *diary) WaitsNoMore(call uint64)      { d.do(func() { delete(d.waits, call) }) }
func (d *diary) Until(deadline time.Duration) { d.do(func() { d.until = deadline }) }
func (d *diary) Lost(error) {
	d.do(func() { d.lost = append(d.lost, maps.Clone(d.holds)) })
	if d.block != nil {
		<-d.block
	}
}

func (d *diary) holding(handle uint64) (h Holding, ok bool) {
	h, ok = d.read().holds[handle]
	return h, ok
}

func watched(t *testing.T, m *memory) (*Table, *diary) {
	t.Helper()
	d := newDiary(t)
	table, err := New(t.Context(), Options{Open: m.open, Watcher: d})
	if err != nil {
		t.Fatal(err)
	}
	return table, d
}

// TestWatcher: it knows of a lock before its owner does, and of its end.
func TestWatcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		table, d := watched(t, m)
		if until := d.read().until; until != backends.NoDeadline {
			t.Errorf("deadline %v", until)
		}
		r := flock(1, backends.Read, true)
		r.PID = 11
		if err := table.Lock(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		first, _ := d.holding(1)
		if first.Name != "x" || first.PID != 11 || first.Mode != backends.Read || first.Token == 0 {
			t.Errorf("told of %+v", first)
		}
		r.Lock.Mode = backends.Write
		if err := table.Lock(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		if h, _ := d.holding(1); h.Mode != backends.Write || h.Token <= first.Token {
			t.Errorf("upgraded, told of %+v", h)
		}
		second := make(chan error, 1)
		go func() { second <- lock(table, context.Background(), flock(2, backends.Write, true)) }()
		synctest.Wait()
		now := d.read()
		if _, held := now.holds[2]; held || len(now.waits) != 1 {
			t.Errorf("while one waits: %+v", now)
		}
		table.ReleaseHandle("x", 1)
		if err := <-second; err != nil {
			t.Fatal(err)
		}
		now = d.read()
		if _, two := now.holds[2]; !two || len(now.holds) != 1 || len(now.waits) != 0 {
			t.Errorf("handed on: %+v", now)
		}
		if err := table.Unlock(t.Context(), flock(2, backends.None, true)); err != nil || len(d.read().holds) != 0 {
			t.Errorf("unlocked (%v): %+v", err, d.read())
		}
		if err := table.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// TestWatcherAtALoss: while it is at it, the descriptor fails, nothing is granted, and nothing that was held is forgotten.
func TestWatcherAtALoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		table, d := watched(t, m)
		d.block = make(chan struct{})
		if err := table.Lock(t.Context(), flock(1, backends.Write, true)); err != nil {
			t.Fatal(err)
		}
		waiter, other := make(chan error, 1), make(chan error, 1)
		go func() { waiter <- lock(table, context.Background(), flock(2, backends.Write, true)) }()
		synctest.Wait()
		m.sessions["session1"].end()
		synctest.Wait()
		go func() {
			other <- lock(table, context.Background(), Request{Name: "y", Owner: Owner{Description, 3}, Handle: 3, Door: Flock, Lock: whole(backends.Read), Wait: true})
		}()
		time.Sleep(time.Minute)
		now := d.read()
		if _, held := now.holds[1]; !held || len(now.lost) != 1 || len(now.lost[0]) != 1 || len(waiter)+len(other) != 0 || !table.Lost(1) {
			t.Errorf("%+v, decided %d, Lost %v", now, len(waiter)+len(other), table.Lost(1))
		}
		close(d.block)
		if err := errors.Join(<-waiter, <-other); err != nil {
			t.Error(err)
		}
		_, one := d.holding(1)
		_, two := d.holding(2)
		if _, three := d.holding(3); one || !two || !three {
			t.Errorf("in the new session: %+v", d.read())
		}
		if err := table.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// TestWatcherAtRandom: whatever happens, what the watcher was told is what is held.
func TestWatcherAtRandom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.delay = time.Millisecond
		table, d := watched(t, m)
		var all sync.WaitGroup
		for handle := uint64(1); handle <= 8; handle++ {
			all.Go(func() {
				for range 200 {
					ctx, cancel := context.WithTimeout(context.Background(), rand.N(3*time.Millisecond))
					switch r := fcntl(handle, handle, backends.Lock{Range: anyRange(), Mode: anyMode()}, rand.IntN(2) == 0); rand.IntN(5) {
					case 0:
						_ = lock(table, ctx, flock(handle, anyMode(), true))
					case 1, 2:
						_ = lock(table, ctx, r)
					case 3:
						_ = table.Unlock(ctx, r)
					default:
						table.ReleaseProcess("x", handle)
						table.ReleaseHandle("x", handle)
					}
					cancel()
				}
			})
		}
		all.Wait()
		time.Sleep(time.Second)
		want := map[uint64]Holding{}
		table.mu.Lock()
		for _, n := range table.names {
			for _, h := range n.holdings(nil) {
				want[h.handle] = h.holding(n.name)
			}
		}
		table.mu.Unlock()
		if now := d.read(); !maps.Equal(want, now.holds) || len(now.waits) != 0 {
			t.Errorf("told of %+v; held is %+v", now, slices.Collect(maps.Values(want)))
		}
		if err := table.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}
