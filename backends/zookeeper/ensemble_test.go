package zookeeper

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"lockfs/backends"
	"lockfs/backends/testserver"
	"lockfs/config"
)

// TestStaleLeader: a leader that has been deposed and does not know it yet renews no lease. It answers a sync, for
// that needs nobody else. A node that reaches other servers goes to one of them in time.
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
	all := open("c", 0, 1, 2)
	mover := newSession(t, all, 20*time.Second)
	for mover.link.conn.Server() != e.Server(old).Addr() { // the library begins at a random one
		mover = newSession(t, all, 20*time.Second)
	}
	if _, err := holder.Acquire(t.Context(), "x", backends.Request{Lock: writing}); err != nil {
		t.Fatal(err)
	}
	cut := time.Now()
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
	for time.Since(cut) < mover.lease.Interval()*5 { // the lease is for four
		if !mover.Valid() {
			t.Fatalf("a session that could reach two of three servers was lost after %v: %v", time.Since(cut), mover.Err())
		}
		time.Sleep(10 * time.Millisecond)
	}
	e.Heal()
}

// TestSessionMoves: sessions, claims, waits and contents outlive the leader and the server that they are connected to.
func TestSessionMoves(t *testing.T) {
	e := testserver.Ensemble(t, 5)
	b, err := Open(t.Context(), config.ZooKeeper{Hosts: e.Addrs(), Timeout: 20 * time.Second}, "c", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	holder, waiter := newSession(t, b, 60*time.Second), newSession(t, b, 60*time.Second)
	c, err := holder.Acquire(t.Context(), "x", backends.Request{Lock: writing})
	if err != nil {
		t.Fatal(err)
	}
	for round, victim := range []func() int{e.Leader, func() int { return slices.Index(e.Addrs(), holder.link.conn.Server()) }} {
		type result struct {
			c   backends.Claim
			err error
		}
		queued, got := make(chan struct{}), make(chan result, 1)
		go func() {
			c, err := waiter.Acquire(t.Context(), "x", backends.Request{Lock: writing, Wait: true, Queued: func() { close(queued) }})
			got <- result{c, err}
		}()
		<-queued
		down := victim()
		e.Server(down).Stop()
		if _, err := b.Create(t.Context(), fmt.Sprint("kept", round), backends.Info{Mode: regular | 0o644}); err != nil {
			t.Errorf("without server %d: %v", down, err)
		}
		if _, err := holder.Change(t.Context(), "x", []backends.Change{{ID: c.ID}}); err != nil {
			t.Fatalf("without server %d: %v", down, err)
		}
		select {
		case r := <-got:
			if r.err != nil || r.c.Token <= c.Token {
				t.Errorf("without server %d: %+v after token %d", down, r, c.Token)
			}
			c = r.c
		case <-time.After(30 * time.Second):
			t.Fatalf("without server %d the waiter was forgotten", down)
		}
		if !holder.Valid() || !waiter.Valid() {
			t.Fatalf("without server %d a session was lost: %v, %v", down, holder.Err(), waiter.Err())
		}
		e.Server(down).Start()
		holder, waiter = waiter, holder
	}
}
