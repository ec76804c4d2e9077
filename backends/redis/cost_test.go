package redis

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"lockfs/backends"
	"lockfs/backends/testserver"
)

var writing = backends.Request{Lock: backends.Lock{Range: backends.Whole, Mode: backends.Write}, Wait: true}

func acquire(t testing.TB, s *session, name string, req backends.Request) backends.Claim {
	t.Helper()
	c, err := s.Acquire(t.Context(), name, req)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func drop(t testing.TB, s *session, name string, claims ...backends.Claim) {
	t.Helper()
	var changes []backends.Change
	for _, c := range claims {
		changes = append(changes, backends.Change{ID: c.ID})
	}
	if _, err := s.Change(t.Context(), name, changes); err != nil {
		t.Fatal(err)
	}
}

// TestOneRoundTrip: a lock and an unlock are one call to the server each.
func TestOneRoundTrip(t *testing.T) {
	server := testserver.Redis(t)
	raw, s := rawClient(t, server), open(t, server.Addr(), time.Minute) // no heartbeat within the test
	drop(t, s, "warm", acquire(t, s, "warm", writing))
	if err := raw.ConfigResetStat(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	const rounds = 10
	for range rounds {
		drop(t, s, "x", acquire(t, s, "x", writing))
	}
	calls := stats(t, raw)
	t.Logf("%d locks and unlocks: %v", rounds, calls)
	if calls["evalsha"] != 2*rounds {
		t.Errorf("%d locks and unlocks took %d script calls, want %d", rounds, calls["evalsha"], 2*rounds)
	}
	for _, other := range []string{"eval", "subscribe", "hello", "ping", "script|load"} {
		if calls[other] != 0 {
			t.Errorf("and %d calls of %s", calls[other], other)
		}
	}
}

// TestIdleWaiters: who waits costs the server nothing but its session's heartbeats.
func TestIdleWaiters(t *testing.T) {
	const (
		waiters = 200
		nodes   = 4
		ttl     = 5 * time.Second
		watch   = 3 * time.Second
	)
	server := testserver.Redis(t)
	raw, holder := rawClient(t, server), open(t, server.Addr(), ttl)
	held := acquire(t, holder, "crowd", writing)
	sessions := []*session{holder}
	for range nodes {
		sessions = append(sessions, open(t, server.Addr(), ttl))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for i := range waiters {
		all.Go(func() { _, _ = sessions[1+i%nodes].Acquire(ctx, "crowd", writing) })
	}
	testserver.Within(t, 10*time.Second, "all wait", func() bool { return entries(t, raw, "test", "crowd") == 1+waiters })
	testserver.Within(t, ttl, "the server has the heartbeat's script", func() bool { return holder.beat.Load() > 0 })
	before := make([]uint64, len(sessions))
	for i, s := range sessions {
		before[i] = s.beat.Load()
	}
	if err := raw.ConfigResetStat(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(watch) // what is measured is what happens in this time
	calls := stats(t, raw)
	beats := 0
	for i, s := range sessions {
		beats += int(s.beat.Load() - before[i])
	}
	t.Logf("%d waiters on %d nodes, %v: %d heartbeats, %v", waiters, nodes, watch, beats, calls)
	if beats == 0 || calls["evalsha"] > beats+len(sessions) || calls["publish"] > calls["evalsha"] {
		t.Errorf("more than heartbeats (%d): %v", beats, calls)
	}
	for command, n := range calls {
		if !slices.Contains([]string{"evalsha", "time", "hget", "hmget", "get", "del", "hset", "zadd", "publish", "zrange", "info", "config|resetstat"}, command) {
			t.Errorf("%d calls of %s while nobody did anything", n, command)
		}
	}
	cancel()
	all.Wait()
	drop(t, holder, "crowd", held)
	testserver.Within(t, 10*time.Second, "nothing is left", func() bool { return entries(t, raw, "test", "crowd") == 0 })
}

// TestLeavesNothing: of locks that are let go nothing stays, nor of closed sessions.
func TestLeavesNothing(t *testing.T) {
	server := testserver.Redis(t)
	raw := rawClient(t, server)
	one, two := open(t, server.Addr(), time.Minute), open(t, server.Addr(), time.Minute)
	held := acquire(t, one, "x", writing)
	var wait sync.WaitGroup
	wait.Go(func() {
		req := writing
		req.Held, req.YieldTo = []backends.Lock{{Range: backends.Range{First: 3, Last: 4}, Mode: backends.Read}}, backends.ByCallOnWritable
		drop(t, two, "x", acquire(t, two, "x", req))
	})
	testserver.Within(t, 5*time.Second, "the second waits", func() bool { return entries(t, raw, "test", "x") == 2 })
	drop(t, one, "x", held)
	wait.Wait()
	acquire(t, two, "y", writing)
	for _, s := range []*session{one, two} {
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	wantKeys(t, raw)
}

// wantKeys checks that no keys are there but those that stay.
func wantKeys(t *testing.T, raw *goredis.Client) {
	t.Helper()
	keys, err := raw.Keys(t.Context(), "*").Result()
	slices.Sort(keys)
	p := prefix("test")
	if err != nil || !slices.Equal(keys, []string{"lockfs:new", p + "epoch", p + "seq", p + "server"}) {
		t.Errorf("keys left: %q, %v", keys, err)
	}
}

// TestQueueIsServedInTurn: many sessions' worth of writers, each let in once, in order.
func TestQueueIsServedInTurn(t *testing.T) {
	const waiters, nodes = 1000, 20
	server := testserver.Redis(t)
	raw, holder := rawClient(t, server), open(t, server.Addr(), time.Minute)
	held := acquire(t, holder, "line", writing)
	b := connect(t, server.Addr(), "test")
	var sessions []*session
	for range nodes {
		sessions = append(sessions, openOn(t, b, time.Minute))
	}
	var mu sync.Mutex
	var tokens []uint64
	inside := 0
	var all sync.WaitGroup
	for i := range waiters {
		s := sessions[i%nodes]
		all.Go(func() {
			c, err := s.Acquire(t.Context(), "line", writing)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			tokens = append(tokens, c.Token)
			inside++
			mu.Unlock()
			if _, err := s.Change(t.Context(), "line", []backends.Change{{ID: c.ID}}); err != nil {
				t.Error(err)
			}
		})
		if i%50 == 49 {
			testserver.Within(t, 10*time.Second, "they queue", func() bool { return entries(t, raw, "test", "line") == i+2 })
		}
	}
	start := time.Now()
	drop(t, holder, "line", held)
	all.Wait()
	t.Logf("%d writers of %d sessions served in turn in %v, %v each", waiters, nodes, time.Since(start), time.Since(start)/waiters)
	if inside != waiters || entries(t, raw, "test", "line") != 0 {
		t.Errorf("%d of %d got in, %d entries left", inside, waiters, entries(t, raw, "test", "line"))
	}
}

// TestReleaseCost: what a release costs the server does not grow with the queue behind.
func TestReleaseCost(t *testing.T) {
	server := testserver.Redis(t)
	raw, holder := rawClient(t, server), open(t, server.Addr(), time.Minute)
	cost := func(name string, waiters int) int {
		held := acquire(t, holder, name, writing)
		b := connect(t, server.Addr(), "test")
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for i := range waiters {
			s := openOn(t, b, time.Minute)
			all.Go(func() { _, _ = s.Acquire(ctx, name, writing) })
			testserver.Within(t, 10*time.Second, "it queues", func() bool { return entries(t, raw, "test", name) == i+2 })
		}
		if err := raw.ConfigResetStat(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		drop(t, holder, name, held)
		calls := stats(t, raw)
		if calls["publish"] != 1 {
			t.Errorf("a release with %d waiters sent %d messages, want 1", waiters, calls["publish"])
		}
		sum := 0
		for _, n := range calls {
			sum += n
		}
		cancel()
		all.Wait()
		return sum
	}
	few, many := cost("few", 10), cost("many", 200)
	t.Logf("commands of one release: %d with 10 waiters, %d with 200", few, many)
	if many > few+2 {
		t.Errorf("a release cost %d commands with 10 waiters and %d with 200", few, many)
	}
}

// TestReleasedTogether: claims on many names are given back by few requests, of some commands for each name.
func TestReleasedTogether(t *testing.T) {
	server := testserver.Redis(t)
	raw, s := rawClient(t, server), open(t, server.Addr(), time.Minute)
	var claims []backends.Named
	for i := range 2 * maxReleased {
		name := strconv.Itoa(i)
		claims = append(claims, backends.Named{Name: name, ID: acquire(t, s, name, writing).ID})
	}
	if err := raw.ConfigResetStat(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	if err := s.Drop(t.Context(), claims); err != nil {
		t.Fatal(err)
	}
	calls := stats(t, raw)
	t.Logf("commands for %d claims: %v", len(claims), calls)
	if calls["evalsha"] > 3 || calls["hdel"]+calls["exists"] > 2*len(claims)+2 { // the first request for a script that the server has not got is made twice
		t.Errorf("%d claims were given back by %v", len(claims), calls)
	}
	for _, c := range claims {
		if n := entries(t, raw, "test", c.Name); n != 0 {
			t.Fatalf("%q has %d entries left", c.Name, n)
		}
	}
}

// TestOneMessageASession: a release that lets in several requests of one session tells it of
// all in one message, those who write one after the other and readers of two sessions alike.
func TestOneMessageASession(t *testing.T) {
	reading := backends.Request{Lock: backends.Lock{Range: backends.Whole, Mode: backends.Read}, Wait: true}
	yielding := writing
	yielding.YieldTo = backends.ByCallOnWritable
	for _, c := range []struct {
		name     string
		requests []backends.Request // for each of the sessions, in turn
		sessions int
	}{
		{"writers", []backends.Request{writing, writing, writing}, 1},
		{"more writers than the short way looks at", slices.Repeat([]backends.Request{writing}, 20), 1},
		{"readers", []backends.Request{reading, reading, reading}, 2},
		{"beside one who would yield", []backends.Request{writing, yielding, writing}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := testserver.Redis(t)
			raw, holder := rawClient(t, server), open(t, server.Addr(), time.Minute)
			held := acquire(t, holder, "x", writing)
			var all sync.WaitGroup
			var mu sync.Mutex
			got := map[string]backends.Claim{}
			waiting := 0
			for range c.sessions {
				s := open(t, server.Addr(), time.Minute)
				for _, req := range c.requests {
					all.Go(func() {
						claim, err := s.Acquire(t.Context(), "x", req)
						if err != nil {
							t.Error(err)
						}
						mu.Lock()
						defer mu.Unlock()
						got[s.full(claim.ID)] = claim
					})
					waiting++
					testserver.Within(t, 10*time.Second, "it queues", func() bool { return entries(t, raw, "test", "x") == 1+waiting })
				}
			}
			if err := raw.ConfigResetStat(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			drop(t, holder, "x", held)
			all.Wait()
			if n := stats(t, raw)["publish"]; n != c.sessions {
				t.Errorf("%d requests of %d sessions were let in by %d messages", waiting, c.sessions, n)
			}
			claims, err := raw.HGetAll(t.Context(), prefix("test")+"g:x").Result()
			if err != nil || len(got) != waiting || len(claims) != waiting {
				t.Fatalf("%d of %d got in, the server has %d claims, %v", len(got), waiting, len(claims), err)
			}
			for id, value := range claims {
				want := encodeLock(got[id].Lock, got[id].Hint) + flag(got[id].Contended) + fmt.Sprint(got[id].Token)
				if value != want {
					t.Errorf("claim %s was told as %s, the server has %s", id, want, value)
				}
			}
		})
	}
}

// BenchmarkCycle measures a lock and an unlock beside the floor, PING.
func BenchmarkCycle(b *testing.B) {
	server := testserver.Redis(b)
	s := open(b, server.Addr(), time.Minute)
	b.Run("ping", func(b *testing.B) {
		percentiles(b, func() { _ = s.b.client.Ping(b.Context()).Err() })
	})
	b.Run("lock+unlock", func(b *testing.B) {
		percentiles(b, func() { drop(b, s, "x", acquire(b, s, "x", writing)) })
	})
}

// BenchmarkHandOver measures from the release's call to the waiter's return.
func BenchmarkHandOver(b *testing.B) {
	server := testserver.Redis(b)
	raw := rawClient(b, server)
	s := []*session{open(b, server.Addr(), time.Minute), open(b, server.Addr(), time.Minute)}
	held, turn := acquire(b, s[0], "x", writing), 0
	var took []time.Duration
	for b.Loop() {
		next := s[1-turn]
		got := make(chan time.Time, 1)
		var claim backends.Claim
		go func() {
			claim = acquire(b, next, "x", writing)
			got <- time.Now()
		}()
		for entries(b, raw, "test", "x") != 2 {
		}
		start := time.Now()
		drop(b, s[turn], "x", held)
		took = append(took, (<-got).Sub(start))
		held, turn = claim, 1-turn
	}
	report(b, took)
}

func percentiles(b *testing.B, f func()) {
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		f()
		took = append(took, time.Since(start))
	}
	report(b, took)
}

func report(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	for _, p := range []int{50, 99} {
		b.ReportMetric(float64(took[len(took)*p/100].Nanoseconds())/1000, fmt.Sprintf("µs-p%d", p))
	}
}
