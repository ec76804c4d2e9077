package redis

import (
	"errors"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"lockfs/backends"
	"lockfs/backends/testserver"
	"lockfs/config"
)

// TestReplicas: a grant counts when a replica knows it, be it made at once or by
// another session's release; where none does, nobody is told of it.
func TestReplicas(t *testing.T) {
	master := testserver.Redis(t)
	replica := testserver.Redis(t, "--replicaof", "127.0.0.1", portOf(t, master.Addr()))
	raw, copied := rawClient(t, master), rawClient(t, replica)
	connected := func() *session {
		b, err := Open(t.Context(), config.Redis{Network: "tcp", Address: master.Addr(), Timeout: time.Second, Replicas: 1}, "test", nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = b.Close() })
		return openOn(t, b, 20*time.Second)
	}
	s, next := connected(), connected()
	online := func() bool {
		info := parseInfo(copied.Info(t.Context(), "replication").Val())
		return info["master_link_status"] == "up"
	}
	testserver.Within(t, 15*time.Second, "the replica is in sync", online)
	known := func(name, id string) bool {
		return copied.HExists(t.Context(), prefix("test")+"g:"+name, id).Val()
	}
	for range 20 {
		held := acquire(t, s, "x", writing)
		if !known("x", s.full(held.ID)) {
			t.Fatal("a grant was reported that the replica does not know")
		}
		got := asked(t, next, "x")
		testserver.Within(t, 5*time.Second, "it waits", func() bool { return entries(t, raw, "test", "x") == 2 })
		drop(t, s, "x", held)
		c := received(t, 5*time.Second, "the lock that was let go", got)
		if !known("x", next.full(c.ID)) {
			t.Fatal("a grant by message was reported that the replica does not know")
		}
		drop(t, next, "x", c)
	}
	calls := roundTrips(t, raw, func() { drop(t, s, "x", acquire(t, s, "x", writing)) })
	if calls["evalsha"] != 2 || calls["wait"] != 1 {
		t.Errorf("a lock and an unlock took %v", calls)
	}

	replica.Stop()
	testserver.Within(t, 10*time.Second, "the master knows that its replica is gone", func() bool {
		return parseInfo(raw.Info(t.Context(), "replication").Val())["connected_slaves"] == "0"
	})
	if _, err := s.Acquire(t.Context(), "y", now()); !errors.Is(err, backends.ErrUnavailable) {
		t.Errorf("without a replica: %v, want ErrUnavailable", err)
	}
	testserver.Within(t, 5*time.Second, "nothing is left of it", func() bool { return entries(t, raw, "test", "y") == 0 })
	waits := asked(t, s, "z")
	testserver.Within(t, 5*time.Second, "it is there", func() bool { return entries(t, raw, "test", "z") == 1 })
	select {
	case c := <-waits:
		t.Fatalf("granted without a replica: %+v", c)
	case <-time.After(1500 * time.Millisecond): // longer than the back end's time-out
	}
	replica.Start()
	c := received(t, 15*time.Second, "the one who waited for a replica", waits)
	if !known("z", s.full(c.ID)) {
		t.Error("a grant was reported that the replica does not know")
	}
	drop(t, s, "z", c)
}

// roundTrips returns the calls that the server has got meanwhile.
func roundTrips(t *testing.T, raw *goredis.Client, do func()) map[string]int {
	t.Helper()
	if err := raw.ConfigResetStat(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	do()
	return stats(t, raw)
}
