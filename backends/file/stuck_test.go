package file

import (
	"context"
	"errors"
	"testing"
	"time"

	"lockfs/backends"
)

// TestStuckPeer: a process was stopped in the middle of a change. Whoever
// gives up comes back at once; what must be done is done when it goes on.
func TestStuckPeer(t *testing.T) {
	dir := newDir(t)
	b, other := openBackend(t, dir), openBackend(t, dir)
	s := openSession(t, b)
	c := acquire(t, s, "x")
	unlock, err := areaOf(t, other).lockShard(areaOf(t, other).shardOf("x"))
	if err != nil {
		t.Fatal(err)
	}
	brief := func(what string, call func(context.Context) error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		defer cancel()
		start := time.Now()
		err := call(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > time.Second {
			t.Errorf("%s returned %v after %v", what, err, time.Since(start))
		}
	}
	for _, wait := range []bool{true, false} {
		brief("Acquire", func(ctx context.Context) error {
			_, err := s.Acquire(ctx, "x", backends.Request{Lock: writeAll, Wait: wait})
			return err
		})
	}
	brief("Holders", func(ctx context.Context) error { _, err := s.Holders(ctx, "x", writeAll); return err })
	brief("Change", func(ctx context.Context) error {
		_, err := s.Change(ctx, "x", []backends.Change{{ID: c.ID}})
		return err
	})
	brief("Close", s.Close)
	unlock()
	eventually(t, "nothing is left of the requests given up and the claim let go", func() bool { return entries(t, b, "x") == 0 })

	unlock, err = other.lock(false)
	if err != nil {
		t.Fatal(err)
	}
	brief("Stat", func(ctx context.Context) error { _, err := b.Stat(ctx, ""); return err })
	unlock()
}

// TestManyWaiters: what a queue of hundreds costs.
func TestManyWaiters(t *testing.T) {
	const n = 500
	dir := newDir(t)
	one, two := openSession(t, openBackend(t, dir)), openSession(t, openBackend(t, dir))
	c := acquire(t, one, "x")
	type grant struct {
		claim backends.Claim
		err   error
	}
	grants := make(chan grant, n)
	start := time.Now()
	for range n {
		queued := make(chan struct{})
		go func() {
			c, err := two.Acquire(bounded(t), "x", backends.Request{Lock: writeAll, Wait: true, Queued: func() { close(queued) }})
			grants <- grant{c, err}
		}()
		<-queued
	}
	asked := time.Since(start)
	drop(t, one, "x", c) // all are of one session, so all come in with this
	for range n {
		g := <-grants
		if g.err != nil {
			t.Fatal(g.err)
		}
		drop(t, two, "x", g.claim)
	}
	t.Logf("%d requests queued in %v, granted and dropped in %v", n, asked, time.Since(start)-asked)
}
