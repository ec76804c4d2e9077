package redis

import (
	"errors"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"time"

	"lockfs/backends"
	"lockfs/backends/testserver"
	"lockfs/config"
)

// openBy opens a session by a configuration.
func openBy(t *testing.T, conf config.Redis, ttl time.Duration) *session {
	t.Helper()
	conf.Network, conf.Timeout = "tcp", time.Second
	b, err := Open(t.Context(), conf, "test", slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return openOn(t, b, ttl)
}

// TestSentinel: the Sentinels promote a replica that lacks the last writes, twice: the master is
// dead, and then it is frozen and comes back as one who believes that it is the master. Who holds
// goes on holding, nobody else gets in, and nobody is granted anything by the old one.
func TestSentinel(t *testing.T) {
	t.Parallel()
	const ttl = 7 * time.Second
	sentinel := testserver.Sentinel(t)
	conf := config.Redis{Sentinels: sentinel.Addrs(), MasterName: testserver.MasterName}
	holder, other := openBy(t, conf, ttl), openBy(t, conf, ttl)
	kept := acquire(t, holder, "kept", writing)
	for _, fault := range []string{"killed", "frozen"} {
		epoch := holder.knownNow()
		if fault == "frozen" {
			sentinel.AwaitReplica()
		}
		old, next := sentinel.Master(), sentinel.Replica()
		sentinel.Deafen()
		last := acquire(t, holder, "last", writing)
		if fault == "killed" {
			old.Stop()
		} else if err := syscall.Kill(old.PID(), syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		sentinel.AwaitFailover(old)
		if fault == "killed" {
			old.Start()
		} else if err := syscall.Kill(old.PID(), syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		saysAnew(t, holder, epoch)
		saysAnew(t, other, epoch)
		for _, name := range []string{"kept", "last"} {
			if _, err := other.Acquire(t.Context(), name, now()); !errors.Is(err, backends.ErrWouldBlock) {
				t.Errorf("%s: %q, when it was said anew: %v", fault, name, err)
			}
		}
		got := asked(t, other, "last")
		raw := rawClient(t, next)
		testserver.Within(t, 5*time.Second, "it waits at the new master", func() bool { return entries(t, raw, "test", "last") == 2 })
		drop(t, holder, "last", last)
		c := received(t, 3*ttl, "the lock after the grace period", got)
		if c.Token <= last.Token {
			t.Errorf("%s: token %d after %d", fault, c.Token, last.Token)
		}
		if n := entries(t, raw, "test", "last"); n != 1 {
			t.Errorf("%s: the new master has %d entries of the lock", fault, n)
		}
		drop(t, other, "last", c)
	}
	if !holder.Valid() || !other.Valid() {
		t.Errorf("a session is over: %v, %v", holder.Err(), other.Err())
	}
	drop(t, holder, "kept", kept)
}

// TestDemoted: a master becomes a replica while sessions are connected to it: it grants nothing any more, renews
// no lease, and no new connection to it is taken.
func TestDemoted(t *testing.T) {
	const ttl = 2 * time.Second
	server, other := testserver.Redis(t), testserver.Redis(t)
	s := open(t, server.Addr(), ttl)
	drop(t, s, "x", acquire(t, s, "x", writing))
	raw := rawClient(t, server)
	if err := raw.Do(t.Context(), "REPLICAOF", "127.0.0.1", portOf(t, other.Addr())).Err(); err != nil {
		t.Fatal(err)
	}
	if c, err := s.Acquire(t.Context(), "x", now()); !errors.Is(err, backends.ErrUnavailable) {
		t.Errorf("a replica: %+v, %v; want ErrUnavailable", c, err)
	}
	select {
	case <-s.Done():
	case <-time.After(2 * ttl):
		t.Error("the lease goes on at a replica")
	}
}

// TestSentinelsDisagree: a Sentinel that is left behind leads nobody away, nor does one alone lead anybody anywhere.
func TestSentinelsDisagree(t *testing.T) {
	t.Parallel()
	sentinel := testserver.Sentinel(t)
	b, err := Open(t.Context(), config.Redis{Network: "tcp", Sentinels: sentinel.Addrs(), MasterName: testserver.MasterName, Timeout: time.Second}, "test", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	old := sentinel.Master()
	left := sentinel.Sentinels()[0]
	if err := syscall.Kill(left.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	old.Stop()
	sentinel.AwaitFailover(old)
	if addr, err := b.guide.find(t.Context()); err != nil || addr != sentinel.Master().Addr() {
		t.Errorf("with one of three Sentinels frozen: %s, %v", addr, err)
	}
	for _, each := range sentinel.Sentinels()[1:] {
		each.Stop()
	}
	if err := syscall.Kill(left.PID(), syscall.SIGCONT); err != nil { // it knows the old master alone
		t.Fatal(err)
	}
	for range 5 {
		if addr, err := b.guide.find(t.Context()); err != nil || addr == old.Addr() {
			t.Errorf("led by one Sentinel that was left behind: %s, %v", addr, err)
		}
	}
	_, err = Open(t.Context(), config.Redis{Network: "tcp", Sentinels: sentinel.Addrs(), MasterName: testserver.MasterName, Timeout: time.Second}, "test", nil)
	if !errors.Is(err, backends.ErrUnavailable) || !strings.Contains(err.Error(), "too few") {
		t.Errorf("a new node that reaches one Sentinel of three: %v", err)
	}
}

// TestSentinelRefuses: what is wrong with a Sentinel, or with its name of the master, is said.
func TestSentinelRefuses(t *testing.T) {
	const secret = "s3cret-pass"
	plain := testserver.Redis(t, "--requirepass", secret)
	for what, row := range map[string]struct {
		conf config.Redis
		kind error
		says string
	}{
		"no Sentinel":    {config.Redis{Sentinels: []string{plain.Addr()}, MasterName: "m", SentinelPassword: secret}, backends.ErrForeign, "no Sentinel"},
		"wrong password": {config.Redis{Sentinels: []string{plain.Addr()}, MasterName: "m", SentinelPassword: "wr0ng-pass"}, backends.ErrRefused, "check sentinel_username"},
		"nobody there":   {config.Redis{Sentinels: []string{"127.0.0.1:1"}, MasterName: "m"}, backends.ErrUnavailable, "refused"},
		"no cluster":     {config.Redis{ClusterNodes: []string{plain.Addr()}, Password: secret}, backends.ErrForeign, "no node of a Redis Cluster"},
	} {
		row.conf.Network, row.conf.Timeout = "tcp", time.Second
		b, err := Open(t.Context(), row.conf, "test", nil)
		if err == nil {
			_ = b.Close()
		}
		if !errors.Is(err, row.kind) || !strings.Contains(err.Error(), row.says) || strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "wr0ng") {
			t.Errorf("%s: %v; want %q and %v", what, err, row.says, row.kind)
		}
		t.Log(err)
	}
}

// TestCluster: on a Redis Cluster, to which nodes are led by any of its nodes, all goes on when the keys
// move to another node, and when their master dies.
func TestCluster(t *testing.T) {
	t.Parallel()
	const ttl = 7 * time.Second
	cluster := testserver.Cluster(t, prefix("test"))
	conf := config.Redis{ClusterNodes: cluster.Addrs()}
	holder, other := openBy(t, conf, ttl), openBy(t, conf, ttl)
	held := acquire(t, holder, "x", writing)
	goesOn := func(what, epoch string) {
		t.Helper()
		saysAnew(t, holder, epoch)
		saysAnew(t, other, epoch)
		if _, err := other.Acquire(t.Context(), "x", now()); !errors.Is(err, backends.ErrWouldBlock) {
			t.Errorf("%s: what is held, when it was said anew: %v", what, err)
		}
		got := asked(t, other, "x")
		raw := rawClient(t, cluster.Owner())
		testserver.Within(t, 10*time.Second, what+": it waits", func() bool { return entries(t, raw, "test", "x") == 2 })
		drop(t, holder, "x", held)
		c := received(t, 3*ttl, what+": the lock after the grace period", got)
		if c.Token <= held.Token {
			t.Errorf("%s: token %d after %d", what, c.Token, held.Token)
		}
		drop(t, other, "x", c)
		held = acquire(t, holder, "x", writing)
	}
	epoch := holder.knownNow()
	cluster.Move(func() {
		if c, err := other.Acquire(t.Context(), "x", now()); !errors.Is(err, backends.ErrUnavailable) {
			t.Errorf("while the keys move: %+v, %v; want ErrUnavailable", c, err)
		}
		if c, err := other.Acquire(t.Context(), "y", now()); !errors.Is(err, backends.ErrUnavailable) {
			t.Errorf("a free lock while the keys move: %+v, %v; want ErrUnavailable", c, err)
		}
	})
	goesOn("moved", epoch)

	epoch = holder.knownNow()
	cluster.ReplicateOwner()
	cluster.Owner().Stop()
	testserver.Within(t, 20*time.Second, "the replica is promoted", func() bool { return cluster.Owner() != nil })
	goesOn("failed over", epoch)
	if !holder.Valid() || !other.Valid() {
		t.Errorf("a session is over: %v, %v", holder.Err(), other.Err())
	}
}
