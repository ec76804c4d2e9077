package zookeeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lockfs/backends"
	"lockfs/backends/testserver"
	"lockfs/config"
)

const regular = 0o100000

// testCuts has the connections of all nodes break at random while they lock, unlock, create and
// append: exclusion holds, everything is done exactly once, and nothing is left.
func testCuts(t *testing.T, r *rig) {
	const name, nodes = "cut", 3
	cluster := r.newCluster()
	var proxies []*proxy
	for range nodes {
		proxies = append(proxies, newProxy(t, r.Addr()))
	}
	ctx, stop := context.WithCancel(t.Context())
	var cutter sync.WaitGroup
	file, err := r.open(t, cluster, r.Addr()).Create(t.Context(), "log", backends.Info{Mode: regular | 0o644})
	if err != nil {
		t.Fatal(err)
	}
	var inside, grants atomic.Int64
	var appended [nodes]int
	var work sync.WaitGroup
	until := time.Now().Add(4 * time.Second)
	for n, p := range proxies {
		b := r.open(t, cluster, p.addr())
		s := newSession(t, b, 20*time.Second)
		for range 2 {
			work.Go(func() {
				for i := 0; time.Now().Before(until) && !t.Failed(); i++ {
					lockOnce(t, s, name, &inside, &grants)
				}
			})
		}
		work.Go(func() {
			for i := 0; time.Now().Before(until) && !t.Failed(); i++ {
				if _, err := b.Create(t.Context(), fmt.Sprintf("f%d.%d", n, i), backends.Info{Mode: regular | 0o600}); err != nil {
					t.Errorf("a name that nobody else creates: %v", err)
				}
				if _, err := b.Write(t.Context(), file.Ino, backends.Append, fmt.Appendf(nil, "%d.%d\n", n, i), time.Now()); err != nil {
					t.Errorf("append: %v", err)
				}
				appended[n]++
			}
		})
	}
	cuts := 0
	cutter.Go(func() {
		for ctx.Err() == nil {
			pause(ctx, time.Duration(20+rand.IntN(200))*time.Millisecond)
			proxies[rand.IntN(nodes)].cut()
			cuts++
		}
	})
	work.Wait()
	stop()
	cutter.Wait()
	b := r.open(t, cluster, r.Addr())
	content, err := b.Read(t.Context(), file.Ino, 0, backends.MaxContent)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.Fields(content)
	seen := map[string]bool{}
	for _, line := range lines {
		if seen[string(line)] {
			t.Errorf("%s was appended twice", line)
		}
		seen[string(line)] = true
	}
	if want := appended[0] + appended[1] + appended[2]; len(lines) != want {
		t.Errorf("the file has %d lines, want %d", len(lines), want)
	}
	eventually(t, "the line to be empty", func() bool { return r.entries(t, cluster, name) == 0 })
	t.Logf("%d grants, %d appends, %d cuts", grants.Load(), len(lines), cuts)
	if grants.Load() < 5 || cuts < 5 {
		t.Error("that is too few to tell anything")
	}
}

// lockOnce takes the lock, checks that nobody else has it, and lets go.
func lockOnce(t *testing.T, s *session, name string, inside, grants *atomic.Int64) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	if rand.IntN(4) == 0 {
		ctx, cancel = context.WithTimeout(t.Context(), time.Duration(rand.IntN(20))*time.Millisecond)
	}
	defer cancel()
	c, err := s.Acquire(ctx, name, backends.Request{Lock: writing, Wait: true})
	if err != nil {
		if deadline, _ := ctx.Deadline(); !errors.Is(err, context.DeadlineExceeded) || time.Until(deadline) > 0 {
			t.Errorf("Acquire: %v", err)
		}
		return
	}
	grants.Add(1)
	// Two of one session may be inside together: a claim excludes other sessions only.
	id := int64(s.link.session.Load())
	if was := inside.Swap(id); was != 0 && was != id {
		t.Error("two sessions have the lock")
	}
	if rand.IntN(2) == 0 {
		time.Sleep(time.Millisecond)
	}
	inside.CompareAndSwap(id, 0)
	if _, err := s.Change(t.Context(), name, []backends.Change{{ID: c.ID}}); err != nil {
		t.Errorf("Change: %v", err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	testserver.Within(t, 20*time.Second, what, ok)
}

// testRestart: sessions, claims, waits and contents outlive a server that is killed and comes back within the lease.
func testRestart(t *testing.T, r *rig) {
	cluster := r.newCluster()
	b := r.open(t, cluster, r.Addr())
	holder, waiter := newSession(t, b, 60*time.Second), newSession(t, b, 60*time.Second)
	c, err := holder.Acquire(t.Context(), "x", backends.Request{Lock: writing})
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	var token uint64
	go func() {
		d, err := waiter.Acquire(t.Context(), "x", backends.Request{Lock: writing, Wait: true})
		token = d.Token
		got <- err
	}()
	eventually(t, "the waiter", func() bool { return r.entries(t, cluster, "x") == 2 })
	if _, err := b.Create(t.Context(), "kept", backends.Info{Mode: regular | 0o644}); err != nil {
		t.Fatal(err)
	}
	r.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := b.Stat(ctx, "kept"); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > time.Second {
		t.Errorf("Stat without a server: %v after %v", err, time.Since(start))
	}
	r.Start()
	if _, err := b.Stat(t.Context(), "kept"); err != nil {
		t.Error(err)
	}
	if !holder.Valid() || !waiter.Valid() {
		t.Fatalf("a session was lost: %v, %v", holder.Err(), waiter.Err())
	}
	if _, err := holder.Change(t.Context(), "x", []backends.Change{{ID: c.ID}}); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-got:
		if err != nil || token <= c.Token {
			t.Errorf("after the restart: %v, token %d after %d", err, token, c.Token)
		}
	case <-time.After(20 * time.Second):
		t.Error("the waiter was forgotten")
	}
}

// testDelays: the locks of a dead node come free after its delay, all of them, though their claims and markers are
// listed in an order that depends on their names.
func testDelays(t *testing.T, r *rig) {
	const names, delay = 12, 500 * time.Millisecond
	cluster := r.newCluster()
	p := newProxy(t, r.Addr())
	cfg := r.config(p.addr())
	cfg.Timeout = time.Second
	b, err := Open(t.Context(), cfg, cluster, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	dying, err := b.Open(t.Context(), backends.SessionOptions{TTL: 4 * time.Second, LockDelay: delay})
	if err != nil {
		t.Fatal(err)
	}
	waiter := newSession(t, r.open(t, cluster, r.Addr()), time.Minute)
	var waits sync.WaitGroup
	for i := range names {
		name := fmt.Sprint("delayed ", i)
		if _, err := dying.Acquire(t.Context(), name, backends.Request{Lock: writing}); err != nil {
			t.Fatal(err)
		}
		queued := make(chan struct{})
		waits.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if _, err := waiter.Acquire(ctx, name, backends.Request{Lock: writing, Wait: true, Queued: func() { close(queued) }}); err != nil {
				t.Error(err)
			}
		})
		<-queued
	}
	p.kill()
	waits.Wait()
	if err := dying.Close(t.Context()); err != nil && !errors.Is(err, backends.ErrUnavailable) {
		t.Error(err)
	}
}

// testLag: answers that take longer than it is from one renewal to the next renew the lease all the same.
func testLag(t *testing.T, r *rig) {
	const ttl = 4 * time.Second
	p := newProxy(t, r.Addr())
	s := newSession(t, r.open(t, r.newCluster(), p.addr()), ttl)
	lag := s.lease.Interval() * 3 / 2
	p.lag.Store(int64(lag))
	for until := time.Now().Add(3 * ttl / 2); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		if !s.Valid() {
			t.Fatalf("with answers that take %v the session was lost: %v", lag, s.Err())
		}
	}
	p.lag.Store(0)
}

// testUnavailable: with the server out of reach, requests that do not wait fail in time.
func testUnavailable(t *testing.T, r *rig) {
	p := newProxy(t, r.Addr())
	cfg := r.config(p.addr())
	cfg.Timeout = time.Second
	b, err := Open(t.Context(), cfg, r.newCluster(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	s := newSession(t, b, 30*time.Second)
	p.kill()
	start := time.Now()
	if _, err := s.Acquire(t.Context(), "x", backends.Request{Lock: writing}); !errors.Is(err, backends.ErrUnavailable) {
		t.Errorf("Acquire: %v", err)
	}
	if _, err := s.Holders(t.Context(), "x", writing); !errors.Is(err, backends.ErrUnavailable) {
		t.Errorf("Holders: %v", err)
	}
	if _, err := b.Stat(t.Context(), "x"); !errors.Is(err, backends.ErrUnavailable) {
		t.Errorf("Stat: %v", err)
	}
	if _, err := b.Open(t.Context(), backends.SessionOptions{TTL: time.Second}); !errors.Is(err, backends.ErrUnavailable) {
		t.Errorf("Open: %v", err)
	}
	if took := time.Since(start); took < 4*cfg.Timeout*9/10 || took > 4*cfg.Timeout+3*time.Second {
		t.Errorf("four calls with a time-out of %v took %v", cfg.Timeout, took)
	}
}

// testAuth: what one user's cluster holds another can't touch; and says so.
func testAuth(t *testing.T, r *rig) {
	cluster := r.newCluster()
	cfg := r.config(r.Addr())
	cfg.Chroot, cfg.Username, cfg.Password = "/some/where", "kirk", "NCC-1701"
	b, err := Open(t.Context(), cfg, cluster, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	s := newSession(t, b, 10*time.Second)
	if _, err := s.Acquire(t.Context(), "x", backends.Request{Lock: writing}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Create(t.Context(), "f", backends.Info{Mode: regular}); err != nil {
		t.Fatal(err)
	}
	for _, password := range []string{"wrong one", ""} {
		cfg.Password = password
		if password == "" {
			cfg.Username = ""
		}
		_, err = Open(t.Context(), cfg, cluster, nil)
		if !errors.Is(err, backends.ErrRefused) || strings.Contains(err.Error(), "wrong one") {
			t.Errorf("Open as %q: %v", cfg.Username, err)
		}
	}
	other, err := Open(t.Context(), cfg, cluster+" other", nil)
	if err != nil {
		t.Fatalf("another cluster beside it: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
}

// TestNotZooKeeper: what answers is something else, says nothing, or is not there.
func TestNotZooKeeper(t *testing.T) {
	redis := testserver.Redis(t)
	silent := listen(t, func(c net.Conn) { _, _ = c.Read(make([]byte, 100)); time.Sleep(50 * time.Millisecond) })
	http := listen(t, func(c net.Conn) {
		_, _ = c.Read(make([]byte, 4))
		_, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	})
	noQuorum := listen(t, func(c net.Conn) {
		word := make([]byte, 4)
		if _, _ = c.Read(word); string(word) == "ruok" {
			_, _ = c.Write([]byte("imok"))
		}
	})
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = gone.Close()
	for _, row := range []struct {
		what, addr string
		kind       error
		says       string
	}{
		{"Redis", redis.Addr(), backends.ErrForeign, "does not speak ZooKeeper's protocol"},
		{"a web server", http, backends.ErrForeign, "does not speak ZooKeeper's protocol"},
		{"one that says nothing", silent, backends.ErrUnavailable, "no session within"},
		{"no quorum", noQuorum, backends.ErrUnavailable, "quorum"},
		{"nobody", gone.Addr().String(), backends.ErrUnavailable, "connection refused"},
	} {
		start := time.Now()
		_, err := Open(t.Context(), config.ZooKeeper{Hosts: []string{row.addr}, Timeout: 500 * time.Millisecond}, "c", nil)
		if !errors.Is(err, row.kind) || !strings.Contains(err.Error(), row.says) || !strings.Contains(err.Error(), row.addr) {
			t.Errorf("%s: %v", row.what, err)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("%s: after %v", row.what, took)
		}
	}
}

// listen serves connections one by one until the test ends.
func listen(t *testing.T, serve func(net.Conn)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c)
			_ = c.Close()
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		work.Wait()
	})
	return l.Addr().String()
}
