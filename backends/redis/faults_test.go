package redis

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"lockfs/backends"
	"lockfs/backends/testserver"
)

// TestLateAttempts: an attempt that was held up on its way takes nothing that
// nobody waits for any more.
func TestLateAttempts(t *testing.T) {
	server := testserver.Redis(t)
	raw, s := rawClient(t, server), open(t, server.Addr(), time.Minute)
	ask := func(id string, attempt int, wait bool) string {
		t.Helper()
		a, err := s.b.eval(t.Context(), s.b.client, acquireScript, s.knownNow()+s.id, "x", id, attempt, flag(wait), encodeRequest(writing))
		if err != nil {
			t.Fatal(err)
		}
		return a.outcome
	}
	want := func(got, wanted string) {
		t.Helper()
		if got != wanted {
			t.Errorf("the server answers %q, want %q", got, wanted)
		}
	}
	number := s.numbers.Add(1)
	id := s.full(claimID(number))
	want(ask(id, 2, true), "granted") // attempt 1 is on its way, and overtaken
	want(ask(id, 3, true), "granted") // the reply was lost: the same claim
	if n := entries(t, raw, "test", "x"); n != 1 {
		t.Errorf("%d entries of one request", n)
	}
	drop(t, s, "x", backends.Claim{ID: claimID(number)})
	want(ask(id, 1, true), "late")

	id = s.full(claimID(s.numbers.Add(1)))
	s.takeBack(&waiter{id: id, name: "x"}, true) // taken back before it arrives
	want(ask(id, 1, true), "late")
	if n := entries(t, raw, "test", "x"); n != 0 {
		t.Errorf("%d entries are left that nobody waits for", n)
	}
}

// TestLostMessage: the subscription breaks while a waiter waits, and the lock
// comes free before it is back.
func TestLostMessage(t *testing.T) {
	server := testserver.Redis(t)
	raw := rawClient(t, server)
	holder, next := open(t, server.Addr(), time.Minute), open(t, server.Addr(), time.Minute)
	drop(t, holder, "x", acquire(t, holder, "x", writing)) // the server has the scripts
	for range 10 {
		held := acquire(t, holder, "x", writing)
		var wait sync.WaitGroup
		got := make(chan backends.Claim, 1)
		wait.Go(func() {
			if c, err := next.Acquire(t.Context(), "x", writing); err == nil {
				got <- c
			}
		})
		testserver.Within(t, 5*time.Second, "it waits", func() bool { return entries(t, raw, "test", "x") == 2 })
		pipe := raw.TxPipeline() // in one step: the message goes to nobody
		pipe.ClientKillByFilter(t.Context(), "TYPE", "pubsub")
		pipe.EvalSha(t.Context(), changeScript.Hash(), holder.b.keys, holder.knownNow()+holder.id, "x", holder.full(held.ID), 0)
		if _, err := pipe.Exec(t.Context()); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		select {
		case c := <-got:
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("the waiter got in after %v", took)
			}
			drop(t, next, "x", c)
		case <-time.After(10 * time.Second):
			t.Fatal("the waiter sleeps on")
		}
		wait.Wait()
		select {
		case e := <-holder.Events(): // the holder may have missed a 'wanted'
			if e.Name != "" && e.Name != "x" {
				t.Errorf("event %+v", e)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("no event says that messages may be lost")
		}
	}
}

// TestDeafSession: the channel looks alive, but nothing arrives on it.
func TestDeafSession(t *testing.T) {
	server := testserver.Redis(t)
	raw := rawClient(t, server)
	line := newLine(t, server.Addr())
	s := openOn(t, connect(t, line.addr(), "test"), 2*time.Second)
	line.swallow(t, raw) // the connection that has subscribed
	testserver.Within(t, 5*time.Second, "it subscribes anew", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.confirmed > 0
	})
	if !s.Valid() {
		t.Error("the session is over, though its lease could be renewed")
	}
}

// TestFrozenServer: callers come back in time from a server that does not
// answer, and nothing of what they asked for stays when it goes on.
func TestFrozenServer(t *testing.T) {
	server := testserver.Redis(t)
	raw := rawClient(t, server)
	s, other := open(t, server.Addr(), 20*time.Second), open(t, server.Addr(), 20*time.Second)
	drop(t, s, "warm", acquire(t, s, "warm", writing))
	mine := acquire(t, s, "mine", writing)
	if err := syscall.Kill(server.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Millisecond)
		start := time.Now()
		_, err := s.Acquire(ctx, "x"+strconv.Itoa(i), writing)
		cancel()
		if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took > 500*time.Millisecond {
			t.Errorf("a wait of 60 ms ended after %v with %v", took, err)
		}
	}
	now := writing
	now.Wait = false
	start := time.Now()
	if _, err := s.Acquire(t.Context(), "now", now); !errors.Is(err, backends.ErrUnavailable) {
		t.Errorf("without waiting: %v, want ErrUnavailable", err)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("without waiting it took %v", took)
	}
	if _, err := s.b.Stat(t.Context(), "f"); !errors.Is(err, backends.ErrUnavailable) {
		t.Errorf("Stat: %v, want ErrUnavailable", err)
	}
	// A release that its caller gave up is carried out all the same.
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Millisecond)
	defer cancel()
	if _, err := s.Change(ctx, "mine", []backends.Change{{ID: mine.ID}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Change: %v", err)
	}
	if err := syscall.Kill(server.PID(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"x0", "x1", "x2", "x3", "x4", "now", "mine"} {
		testserver.Within(t, 10*time.Second, name+" is free", func() bool { return entries(t, raw, "test", name) == 0 })
		drop(t, other, name, acquire(t, other, name, writing))
	}
	if !s.Valid() {
		t.Error("the session is over after a few seconds of its lease")
	}
}

// TestRestart: the server comes back with its data. Sessions live on, and who
// waits gets in, after the grace period: nobody can tell that nothing is lost.
func TestRestart(t *testing.T) {
	server := testserver.Redis(t, "--appendonly", "yes", "--appendfsync", "always")
	raw := rawClient(t, server)
	const ttl = 6 * time.Second
	holder, next := open(t, server.Addr(), ttl), open(t, server.Addr(), ttl)
	held := acquire(t, holder, "x", writing)
	got := make(chan backends.Claim, 1)
	var wait sync.WaitGroup
	wait.Go(func() {
		if c, err := next.Acquire(t.Context(), "x", writing); err == nil {
			got <- c
		}
	})
	testserver.Within(t, 5*time.Second, "it waits", func() bool { return entries(t, raw, "test", "x") == 2 })
	for range 2 {
		server.Stop()
		late := make(chan error, 1)
		wait.Go(func() {
			_, err := holder.Acquire(t.Context(), "y", writing)
			late <- err
		})
		server.Start()
		if err := <-late; err != nil {
			t.Errorf("a wait that began while the server was away: %v", err)
		}
	}
	drop(t, holder, "x", held)
	select {
	case c := <-got:
		if c.Token <= held.Token {
			t.Errorf("token %d after %d", c.Token, held.Token)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the waiter sleeps on after the restart")
	}
	wait.Wait()
}

// TestGone: without a server a session is over by its own clock, before the
// server could give its locks to others.
func TestGone(t *testing.T) {
	server := testserver.Redis(t)
	const ttl = 5 * time.Second
	s := open(t, server.Addr(), ttl)
	waits := make(chan error, 1)
	held := acquire(t, s, "x", writing)
	start := time.Now()
	server.Stop()
	go func() {
		_, err := s.Acquire(context.Background(), "y", writing)
		waits <- err
	}()
	_, err := s.Change(t.Context(), "x", []backends.Change{{ID: held.ID}})
	if !errors.Is(err, backends.ErrSessionOver) {
		t.Errorf("Change: %v, want ErrSessionOver", err)
	}
	if err := <-waits; !errors.Is(err, backends.ErrSessionOver) {
		t.Errorf("Acquire: %v, want ErrSessionOver", err)
	}
	if took := time.Since(start); s.Valid() || took > ttl {
		t.Errorf("the session was over after %v of a lease of %v, valid %v", took, ttl, s.Valid())
	}
}

// TestMemoryFull: a server without memory grants no more locks, but leases go
// on, and what is let go goes to the next in line.
func TestMemoryFull(t *testing.T) {
	server := testserver.Redis(t)
	raw := rawClient(t, server)
	holder, next := open(t, server.Addr(), 2*time.Second), open(t, server.Addr(), 2*time.Second)
	held := acquire(t, holder, "x", writing)
	got := make(chan backends.Claim, 1)
	var wait sync.WaitGroup
	wait.Go(func() {
		if c, err := next.Acquire(t.Context(), "x", writing); err == nil {
			got <- c
		}
	})
	testserver.Within(t, 5*time.Second, "one waits", func() bool { return entries(t, raw, "test", "x") == 2 })
	ctx, cancel := context.WithCancel(t.Context())
	wait.Go(func() { _, _ = next.Acquire(ctx, "x", writing) })
	testserver.Within(t, 5*time.Second, "they wait", func() bool { return entries(t, raw, "test", "x") == 3 })
	if err := raw.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	beats := holder.beat.Load()
	testserver.Within(t, 5*time.Second, "the lease is renewed for longer than it lasts", func() bool { return holder.beat.Load() > beats+6 })
	if _, err := holder.Acquire(t.Context(), "y", writing); !errors.Is(err, backends.ErrNoSpace) {
		t.Errorf("a new lock: %v, want ErrNoSpace", err)
	}
	cancel() // the second of the two is taken back
	testserver.Within(t, 5*time.Second, "one waits", func() bool {
		n, err := raw.ZCard(t.Context(), prefix("test")+"q:x").Result()
		return err == nil && n == 1
	})
	drop(t, holder, "x", held)
	if err := next.Drop(t.Context(), []backends.Named{{Name: "x", ID: (<-got).ID}}); err != nil {
		t.Error(err)
	}
	wait.Wait()
	testserver.Within(t, 5*time.Second, "nothing is left", func() bool {
		n, err := raw.Exists(t.Context(), prefix("test")+"g:x", prefix("test")+"q:x", prefix("test")+"w:x", prefix("test")+"m:x").Result()
		return err == nil && n == 0
	})
	if !holder.Valid() || !next.Valid() {
		t.Error("a session is over for want of memory")
	}
}
