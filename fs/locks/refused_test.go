package locks

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lockfs/backends"
)

// visitors knows who may have had or wanted what, and when: from before the call to the return of the unlock, or of the call where it
// did not get the lock.
type visitors struct {
	t    *testing.T
	mu   sync.Mutex
	all  []*visit
	free int // tries of what nobody had or wanted
}

type visit struct {
	name     string
	lock     backends.Lock
	from, to time.Time // to is zero as long as it lasts
}

func (v *visitors) come(r Request) *visit {
	v.mu.Lock()
	defer v.mu.Unlock()
	here := &visit{name: r.Name, lock: r.Lock, from: time.Now()}
	v.all = append(v.all, here)
	return here
}

func (v *visitors) went(here *visit) {
	v.mu.Lock()
	defer v.mu.Unlock()
	here.to = time.Now()
}

// tried judges the outcome of a call that did not wait.
func (v *visitors) tried(here *visit, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if slices.ContainsFunc(v.all, func(o *visit) bool {
		return o != here && o.name == here.name && o.lock.Conflicts(here.lock) && (o.to.IsZero() || !o.to.Before(here.from))
	}) {
		return
	}
	v.free++
	if err != nil && !errors.Is(err, backends.ErrYield) {
		v.t.Errorf("%v of %q refused, which nobody had or wanted: %v", here.lock, here.name, err)
	}
}

// visitor takes and lets go locks on a node: some names and bytes again and again, others now and then.
func (v *visitors) visitor(table *Table, owner uint64, rounds int) {
	for i := range rounds {
		handle := owner*1000 + uint64(i)
		var r Request
		switch rand.IntN(4) {
		case 0:
			r = open(handle, []backends.Hint{never, backends.ByCall, backends.ByCallOnWritable}[rand.IntN(3)], rand.IntN(2) == 0)
		case 1:
			r = fcntl(owner, handle, backends.Lock{Range: anyRange(), Mode: anyMode()}, rand.IntN(2) == 0)
		default:
			r = flock(handle, anyMode(), rand.IntN(2) == 0)
		}
		r.Name = []string{"x", "y", "z"}[rand.IntN(3)]
		for range 1 + rand.IntN(5) {
			v.visit(table, r)
			time.Sleep(rand.N(2 * time.Millisecond))
		}
		table.ReleaseHandle(r.Name, handle)
		time.Sleep(rand.N(30 * time.Millisecond))
	}
}

func (v *visitors) visit(table *Table, r Request) {
	here := v.come(r)
	err := lock(table, context.Background(), r)
	defer v.went(here)
	if !r.Wait {
		v.tried(here, err)
	}
	if err == nil {
		time.Sleep(rand.N(3 * time.Millisecond))
		r.Lock.Mode = backends.None
		if err := table.Unlock(context.Background(), r); err != nil {
			v.t.Error(err)
		}
	}
}

// TestFreeLockIsNotRefused: a lock that nobody has or wants is never refused to a call that does not wait, on any node, however
// long messages take and whatever nodes keep idle or serve in their turns.
func TestFreeLockIsNotRefused(t *testing.T) {
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			m := newMemory()
			m.prompt = rand.IntN(2) == 0
			m.delay = time.Duration(rand.IntN(4)) * 5 * time.Millisecond
			options := Options{KeepIdle: time.Duration(rand.IntN(3)) * 50 * time.Millisecond, Turn: time.Duration(rand.IntN(3)) * 3 * time.Millisecond}
			v := &visitors{t: t}
			var tables []*Table
			var all sync.WaitGroup
			for range 3 {
				table := newTableWith(t, m, options)
				tables = append(tables, table)
				for owner := range uint64(3) {
					all.Go(func() { v.visitor(table, owner+1, 60) })
				}
			}
			all.Wait()
			time.Sleep(time.Second)
			m.requireEmpty(t)
			for _, table := range tables {
				if err := table.Close(t.Context()); err != nil {
					t.Error(err)
				}
			}
			if v.free == 0 {
				t.Error("nobody tried what was free")
			}
		})
	}
}
