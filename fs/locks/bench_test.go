package locks

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"lockfs/backends"
)

// What the table itself costs, over a back end in the same process that answers at once:
//
//	go test -run '^$' -bench . ./fs/locks

func benchTable(b *testing.B) *Table {
	b.Helper()
	return benchTableWith(b, Options{})
}

func benchTableWith(b *testing.B, options Options) *Table {
	b.Helper()
	options.Open = newMemory().open
	t, err := New(b.Context(), options)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := t.Close(context.Background()); err != nil {
			b.Error(err)
		}
	})
	b.ReportAllocs()
	return t
}

// on is a flock by a handle of its own on a name.
func on(name string, handle uint64, mode backends.Mode) Request {
	r := flock(handle, mode, true)
	r.Name = name
	return r
}

func lockAndUnlock(b *testing.B, t *Table, r Request) {
	if err := t.Lock(b.Context(), r); err != nil {
		b.Error(err)
		return
	}
	r.Lock.Mode = backends.None
	if err := t.Unlock(b.Context(), r); err != nil {
		b.Error(err)
	}
}

// The same owner takes one name again and again.
func BenchmarkRepeated(b *testing.B) {
	t := benchTable(b)
	for r := on("x", 1, backends.Write); b.Loop(); {
		lockAndUnlock(b, t, r)
	}
}

// The same where the node keeps the claim.
func BenchmarkKept(b *testing.B) {
	t := benchTableWith(b, Options{KeepIdle: time.Hour})
	for r := on("x", 1, backends.Write); b.Loop(); {
		lockAndUnlock(b, t, r)
	}
}

// Each time a name that the table does not know.
func BenchmarkFirst(b *testing.B) {
	t := benchTable(b)
	names := make([]string, 1<<16)
	for i := range names {
		names[i] = fmt.Sprint("name-", i)
	}
	for i := 0; b.Loop(); i++ {
		lockAndUnlock(b, t, on(names[i%len(names)], uint64(i+1), backends.Write))
	}
}

// The same beside 100,000 names that are held.
func BenchmarkBeside100000(b *testing.B) {
	t := benchTable(b)
	for i := range 100000 {
		if err := t.Lock(b.Context(), on(fmt.Sprint("held-", i), uint64(i+10), backends.Write)); err != nil {
			b.Fatal(err)
		}
	}
	b.ResetTimer()
	for r := on("x", 1, backends.Write); b.Loop(); {
		lockAndUnlock(b, t, r)
	}
}

// Every processor with a name of its own.
func BenchmarkParallel(b *testing.B) {
	t := benchTable(b)
	var next atomic.Uint64
	b.RunParallel(func(pb *testing.PB) {
		id := next.Add(1)
		for r := on(fmt.Sprint("name-", id), id, backends.Write); pb.Next(); {
			lockAndUnlock(b, t, r)
		}
	})
}

// Many owners on one name: readers, who never wait, and writers, who hand it on.
func BenchmarkCrowd(b *testing.B) {
	for _, mode := range []backends.Mode{backends.Read, backends.Write} {
		b.Run(mode.String(), func(b *testing.B) {
			t := benchTable(b)
			var next atomic.Uint64
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				for r := on("x", next.Add(1), mode); pb.Next(); {
					lockAndUnlock(b, t, r)
				}
			})
		})
	}
}

// Writers on two nodes, who hand a name on among themselves in their node's turn.
func BenchmarkTurns(b *testing.B) {
	m := newMemory()
	m.prompt = false
	var tables []*Table
	for range 2 {
		t, err := New(b.Context(), Options{Open: m.open, Turn: 5 * time.Millisecond})
		if err != nil {
			b.Fatal(err)
		}
		tables = append(tables, t)
		b.Cleanup(func() {
			if err := t.Close(context.Background()); err != nil {
				b.Error(err)
			}
		})
	}
	b.ReportAllocs()
	b.SetParallelism(8)
	var next atomic.Uint64
	b.RunParallel(func(pb *testing.PB) {
		id := next.Add(1)
		for r := on("x", id, backends.Write); pb.Next(); {
			lockAndUnlock(b, tables[id%2], r)
		}
	})
}
