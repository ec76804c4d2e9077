package redis

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lockfs/backends"
	"lockfs/backends/testserver"
)

// now is a request that is not to wait.
func now() backends.Request { return backends.Request{Lock: writing.Lock} }

// asked starts an Acquire that waits; its claim comes on the channel.
func asked(t *testing.T, s *session, name string) <-chan backends.Claim {
	got := make(chan backends.Claim, 1)
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		if c, err := s.Acquire(ctx, name, writing); err == nil {
			got <- c
		}
	})
	t.Cleanup(func() { cancel(); all.Wait() })
	return got
}

func received(t *testing.T, limit time.Duration, what string, got <-chan backends.Claim) backends.Claim {
	t.Helper()
	select {
	case c := <-got:
		return c
	case <-time.After(limit):
		t.Fatalf("not within %v: %s", limit, what)
		panic("not reached")
	}
}

// inGrace checks that a server grants nothing yet, and says so.
func inGrace(t *testing.T, s *session, name string) {
	t.Helper()
	if c, err := s.Acquire(t.Context(), name, now()); !errors.Is(err, backends.ErrUnavailable) {
		t.Fatalf("%q in the grace period: %+v, %v; want ErrUnavailable", name, c, err)
	}
}

// saysAnew waits until the server knows a session again.
func saysAnew(t *testing.T, s *session, than string) {
	t.Helper()
	testserver.Within(t, 10*time.Second, "the session says anew what it has", func() bool {
		epoch := s.knownNow()
		return epoch != "" && epoch != than
	})
}

// TestForgets: the server comes back without its data. Who holds goes on
// holding, who waits keeps their place, and nobody else gets in; what a dead node
// held is free after the grace period. Tokens grow.
func TestForgets(t *testing.T) {
	const ttl = 4 * time.Second
	server := testserver.Redis(t)
	raw := rawClient(t, server)
	wire := newLine(t, server.Addr())
	dying := openOn(t, connect(t, wire.addr(), "test"), ttl)
	holder, first, second := open(t, server.Addr(), ttl), open(t, server.Addr(), ttl), open(t, server.Addr(), ttl)
	epoch := holder.knownNow()
	held, dead := acquire(t, holder, "x", writing), acquire(t, dying, "dead", writing)
	one := asked(t, first, "x")
	testserver.Within(t, 5*time.Second, "one waits", func() bool { return entries(t, raw, "test", "x") == 2 })
	two := asked(t, second, "x")
	testserver.Within(t, 5*time.Second, "two wait", func() bool { return entries(t, raw, "test", "x") == 3 })
	wire.cut()
	server.Stop()
	server.Start()
	restarted := time.Now()

	fresh := open(t, server.Addr(), ttl) // knows nothing of what was
	inGrace(t, fresh, "free")
	inGrace(t, fresh, "dead")
	if c, err := fresh.Acquire(t.Context(), "x", now()); err == nil {
		t.Fatalf("a second holder: %+v", c)
	}
	for _, s := range []*session{holder, first, second} {
		saysAnew(t, s, epoch)
	}
	if _, err := fresh.Acquire(t.Context(), "x", now()); !errors.Is(err, backends.ErrWouldBlock) {
		t.Errorf("what is held, when it was said anew: %v", err)
	}
	next := received(t, 3*ttl, "the dead node's lock", asked(t, fresh, "dead"))
	if took := time.Since(restarted); took < ttl-time.Second || next.Token <= dead.Token {
		t.Errorf("the dead node's lock came free after %v; token %d after %d", took, next.Token, dead.Token)
	}
	if !holder.Valid() || !first.Valid() || !second.Valid() {
		t.Fatal("a session is over")
	}
	drop(t, holder, "x", held)
	c1 := received(t, 5*time.Second, "the first who waits", one)
	select {
	case <-two:
		t.Fatal("two holders")
	default:
	}
	drop(t, first, "x", c1)
	c2 := received(t, 5*time.Second, "the second who waits", two)
	if !(held.Token < c1.Token && c1.Token < c2.Token) {
		t.Errorf("tokens %d, %d, %d", held.Token, c1.Token, c2.Token)
	}
	drop(t, second, "x", c2)
	drop(t, fresh, "dead", next)
	testserver.Within(t, 5*time.Second, "nothing is left", func() bool {
		return entries(t, raw, "test", "x")+entries(t, raw, "test", "dead") == 0
	})
}

// TestFlushed: somebody empties the database of a running server.
func TestFlushed(t *testing.T) {
	const ttl = 3 * time.Second
	server := testserver.Redis(t)
	raw, holder := rawClient(t, server), open(t, server.Addr(), ttl)
	held, epoch := acquire(t, holder, "x", writing), holder.knownNow()
	waits := asked(t, holder, "y")
	drop(t, holder, "y", received(t, time.Second, "a free lock", waits))
	for _, fresh := range []bool{true, false} {
		if err := raw.FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		if fresh {
			inGrace(t, open(t, server.Addr(), ttl), "z")
		} else { // the holder itself is the first to see it
			inGrace(t, holder, "z")
		}
		saysAnew(t, holder, epoch)
		epoch = holder.knownNow()
		other := open(t, server.Addr(), ttl)
		if _, err := other.Acquire(t.Context(), "x", now()); !errors.Is(err, backends.ErrWouldBlock) {
			t.Errorf("what is held: %v", err)
		}
	}
	other := open(t, server.Addr(), ttl)
	got := asked(t, other, "x")
	testserver.Within(t, 5*time.Second, "it waits", func() bool { return entries(t, raw, "test", "x") == 2 })
	if err := holder.Drop(t.Context(), []backends.Named{{Name: "x", ID: held.ID}}); err != nil { // in the grace period
		t.Fatal(err)
	}
	if c := received(t, 3*ttl, "the lock after the grace period", got); c.Token <= held.Token {
		t.Errorf("token %d after %d", c.Token, held.Token)
	}
}

// TestPromotion: a replica takes over that lacks the last writes: a grant, and a
// release of what somebody else has by now.
func TestPromotion(t *testing.T) {
	const ttl = 4 * time.Second
	master := testserver.Redis(t)
	replica := testserver.Redis(t, "--replicaof", "127.0.0.1", portOf(t, master.Addr()))
	rawReplica := rawClient(t, replica)
	way := newLine(t, master.Addr())
	var s [4]*session
	for i := range s {
		s[i] = openOn(t, connect(t, way.addr(), "test"), ttl)
	}
	before := acquire(t, s[0], "moved", writing)
	kept := acquire(t, s[3], "kept", writing)
	key := prefix("test") + "g:"
	testserver.Within(t, 10*time.Second, "the replica has it", func() bool {
		return rawReplica.Exists(t.Context(), key+"moved", key+"kept").Val() == 2
	})
	if err := rawReplica.Do(t.Context(), "REPLICAOF", "NO", "ONE").Err(); err != nil { // it hears no more
		t.Fatal(err)
	}
	drop(t, s[0], "moved", before)
	moved, last := acquire(t, s[1], "moved", writing), acquire(t, s[2], "last", writing)
	epoch := s[0].knownNow()
	master.Stop()
	way.lead(replica.Addr())

	fresh := openOn(t, connect(t, way.addr(), "test"), ttl)
	for _, name := range []string{"moved", "last", "kept"} {
		if c, err := fresh.Acquire(t.Context(), name, now()); err == nil {
			t.Fatalf("a second holder of %q: %+v", name, c)
		}
	}
	for i := range s {
		saysAnew(t, s[i], epoch)
		if !s[i].Valid() {
			t.Fatalf("session %d is over: %v", i, s[i].Err())
		}
	}
	for i, c := range map[int]backends.Claim{1: moved, 2: last, 3: kept} {
		name := map[int]string{1: "moved", 2: "last", 3: "kept"}[i]
		if n := entries(t, rawReplica, "test", name); n != 1 {
			t.Errorf("%q has %d entries", name, n)
		}
		got := asked(t, fresh, name)
		testserver.Within(t, 5*time.Second, "it waits", func() bool { return entries(t, rawReplica, "test", name) == 2 })
		drop(t, s[i], name, c)
		if d := received(t, 3*ttl, name, got); d.Token <= c.Token {
			t.Errorf("%q: token %d after %d", name, d.Token, c.Token)
		}
	}
}

// TestConflictingClaims: a server was wrongly said to be new, and has granted what
// somebody holds. The older one loses it, visibly.
func TestConflictingClaims(t *testing.T) {
	server := testserver.Redis(t)
	raw := rawClient(t, server)
	way := newLine(t, server.Addr())
	holder := openOn(t, connect(t, way.addr(), "test"), time.Minute)
	acquire(t, holder, "x", writing)
	server.Stop()
	way.lead("127.0.0.1:1") // the session stays away
	server.Start()
	run := parseInfo(raw.Info(t.Context(), "server").Val())["run_id"]
	if err := raw.Set(t.Context(), "lockfs:new", run, 0).Err(); err != nil {
		t.Fatal(err)
	}
	other := open(t, server.Addr(), time.Minute)
	c := acquire(t, other, "x", now())
	way.lead(server.Addr())
	select {
	case <-holder.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("two sessions hold the lock, and neither is told")
	}
	if !errors.Is(holder.Err(), backends.ErrSessionOver) || !other.Valid() {
		t.Errorf("the older session: %v; the newer is valid: %v", holder.Err(), other.Valid())
	}
	saysAnew(t, other, "")
	drop(t, other, "x", c)
}

// TestForgetsAgainAndAgain: nodes lock and let go while the server loses its
// data, or is replaced by a replica that lacks the last writes, over and over.
func TestForgetsAgainAndAgain(t *testing.T) {
	const (
		nodes, names = 4, 3
		faults       = 5
		ttl          = 2500 * time.Millisecond
	)
	rng := rand.New(rand.NewPCG(seed(t), 0))
	server := testserver.Redis(t)
	way := newLine(t, server.Addr())
	var inside [names]atomic.Int32
	var last [names]atomic.Uint64
	var grants, lost atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for n := range nodes {
		b := connect(t, way.addr(), "test")
		random := rand.New(rand.NewPCG(rng.Uint64(), 0))
		all.Go(func() {
			for ctx.Err() == nil {
				raw, err := b.Open(ctx, backends.SessionOptions{Node: strconv.Itoa(n), TTL: ttl})
				if err != nil {
					sleep(ctx, 50*time.Millisecond)
					continue
				}
				s := raw.(*session)
				for ctx.Err() == nil && s.Valid() {
					i := random.IntN(names)
					c, err := s.Acquire(ctx, strconv.Itoa(i), writing)
					if err != nil {
						continue
					}
					s.occupy(ctx, t, &inside[i], &last[i], c, int32(n+1), time.Duration(random.IntN(60))*time.Millisecond)
					grants.Add(1)
					_, _ = s.Change(t.Context(), strconv.Itoa(i), []backends.Change{{ID: c.ID}})
				}
				if ctx.Err() == nil {
					lost.Add(1)
				}
				closing, done := context.WithTimeout(context.Background(), time.Second)
				_ = s.Close(closing)
				done()
			}
		})
	}
	for f := range faults {
		sleep(ctx, time.Duration(300+rng.IntN(500))*time.Millisecond)
		if f%2 == 0 {
			server.Stop()
			server.Start()
		} else {
			next := testserver.Redis(t)
			rawNext := rawClient(t, next)
			_ = rawNext.Do(ctx, "REPLICAOF", "127.0.0.1", portOf(t, server.Addr())).Err()
			testserver.Within(t, 15*time.Second, "the replica is in sync", func() bool {
				return parseInfo(rawNext.Info(ctx, "replication").Val())["master_link_status"] == "up"
			})
			_ = rawNext.Do(ctx, "REPLICAOF", "NO", "ONE").Err()
			sleep(ctx, 200*time.Millisecond) // it lacks what happens now
			server.Stop()
			server = next
			way.lead(server.Addr())
		}
		was := grants.Load()
		testserver.Within(t, 10*ttl, "locks are granted again", func() bool { return grants.Load() > was })
	}
	cancel()
	all.Wait()
	t.Logf("%d grants over %d faults, %d sessions lost", grants.Load(), faults, lost.Load())
	left := rawClient(t, server)
	for i := range names {
		testserver.Within(t, 3*ttl, "nothing is left", func() bool { return entries(t, left, "test", strconv.Itoa(i)) == 0 })
	}
}

// occupy is in the critical section for a time, or until the session is over.
func (s *session) occupy(ctx context.Context, t *testing.T, inside *atomic.Int32, last *atomic.Uint64, c backends.Claim, node int32, d time.Duration) {
	if !s.Valid() {
		return
	}
	if !inside.CompareAndSwap(0, node) {
		t.Errorf("nodes %d and %d are in together", node, inside.Load())
		return
	}
	if before := last.Swap(c.Token); before >= c.Token {
		t.Errorf("token %d after %d", c.Token, before)
	}
	for until := time.Now().Add(d); s.Valid() && time.Now().Before(until) && ctx.Err() == nil; {
		time.Sleep(time.Millisecond)
	}
	inside.Store(0)
}
