package zookeeper

import (
	"strings"
	"testing"
	"time"

	"lockfs/backends"
	"lockfs/backends/testserver"
	"lockfs/config"
)

// TestStaleLeader: a leader that has been deposed and does not know it yet renews no lease. It answers a sync, for
// that needs nobody else.
func TestStaleLeader(t *testing.T) {
	e := testserver.Ensemble(t, 100) // the leader does without the others for 20 s
	open := func(cluster string, servers ...int) *Backend {
		cfg := config.ZooKeeper{Timeout: 10 * time.Second}
		for _, i := range servers {
			cfg.Hosts = append(cfg.Hosts, e.Server(i).Addr())
		}
		b, err := Open(t.Context(), cfg, cluster, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = b.Close() })
		return b
	}
	old := e.Leader()
	others := []int{(old + 1) % testserver.Members, (old + 2) % testserver.Members}
	holder := newSession(t, open("c", old), 2*time.Second)
	waiter := newSession(t, open("c", others...), time.Minute)
	if _, err := holder.Acquire(t.Context(), "x", backends.Request{Lock: writing}); err != nil {
		t.Fatal(err)
	}
	// The others forget the old leader at once; it hears nothing of that.
	e.Cut(old, false)
	for _, i := range others {
		e.Server(i).Stop()
	}
	got := make(chan error, 1)
	go func() {
		_, err := waiter.Acquire(t.Context(), "x", backends.Request{Lock: writing, Wait: true})
		if err == nil && holder.Valid() {
			t.Error("two sessions have the lock: the lease of the one on the old leader is still valid")
		}
		got <- err
	}()
	e.StartSome(others...)
	select {
	case err := <-got:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Error("the new leader never gives the dead session's lock away")
	}
	if !strings.Contains(e.Server(old).Command("srvr"), "Mode: leader") {
		t.Error("the old leader has noticed, so this shows nothing")
	}
	e.Heal()
}
