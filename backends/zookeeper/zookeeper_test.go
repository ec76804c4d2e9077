package zookeeper

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"go.uber.org/goleak"

	"lockfs/backends"
	"lockfs/backends/backendtest"
	"lockfs/backends/testserver"
	"lockfs/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a server and a connection to look into it.
type rig struct {
	*testserver.ZooKeeperServer
	conn     *zk.Conn
	clusters atomic.Int64
}

func newRig(t testing.TB) *rig {
	r := &rig{ZooKeeperServer: testserver.ZooKeeper(t)}
	conn, _, err := zk.Connect([]string{r.Addr()}, time.Minute, zk.WithLogger(libraryLog{discard}))
	if err != nil {
		t.Fatal(err)
	}
	r.conn = conn
	t.Cleanup(conn.Close)
	return r
}

func (r *rig) newCluster() string { return "cluster " + strconv.FormatInt(r.clusters.Add(1), 10) }

func (r *rig) config(addr string) config.ZooKeeper {
	return config.ZooKeeper{Hosts: []string{addr}, Timeout: 10 * time.Second}
}

// open returns a back end of its own.
func (r *rig) open(t testing.TB, cluster, addr string) *Backend {
	t.Helper()
	b, err := Open(t.Context(), r.config(addr), cluster, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// entries counts the znodes of a lock.
func (r *rig) entries(t testing.TB, cluster, name string) int {
	t.Helper()
	b := &Backend{root: "/lockfs/" + escape(cluster)}
	kids, _, err := r.conn.Children(b.lockDir(name))
	if err != nil && !errors.Is(err, zk.ErrNoNode) {
		t.Fatal(err)
	}
	return len(kids)
}

// TestWithServer has all tests that need only one server share it, for a JVM takes its time to start.
func TestWithServer(t *testing.T) {
	r := newRig(t)
	t.Run("Conformance", func(t *testing.T) {
		backendtest.Run(t, func(t *testing.T) backendtest.Cluster {
			cluster := r.newCluster()
			return backendtest.Cluster{
				Node: func(t *testing.T) backendtest.Node {
					p := newProxy(t, r.Addr())
					return backendtest.Node{Backend: r.open(t, cluster, p.addr()), Kill: p.kill}
				},
				Entries: func(t *testing.T, name string) int { return r.entries(t, cluster, name) },
			}
		})
	})
	t.Run("Wakes", func(t *testing.T) { testWakes(t, r) })
	t.Run("Tries", func(t *testing.T) { testTries(t, r) })
	t.Run("Parked", func(t *testing.T) { testParked(t, r) })
}

// testWakes: who waits costs the server nothing, and a release is one request, and
// one of whom it lets in.
func testWakes(t *testing.T, r *rig) {
	const name, waiters = "crowd", 12
	cluster := r.newCluster()
	b := r.open(t, cluster, r.Addr())
	first := newSession(t, b, time.Minute)
	c, err := first.Acquire(t.Context(), name, backends.Request{Lock: writing})
	if err != nil {
		t.Fatal(err)
	}
	type grant struct {
		s *session
		c backends.Claim
	}
	granted := make(chan grant, waiters)
	var all sync.WaitGroup
	for range waiters {
		s := newSession(t, b, time.Minute)
		queued := make(chan struct{})
		all.Go(func() {
			c, err := s.Acquire(t.Context(), name, backends.Request{Lock: writing, Wait: true, Queued: func() { close(queued) }})
			if err != nil {
				t.Error(err)
			}
			granted <- grant{s, c}
		})
		<-queued
	}
	eventually(t, "all watches to be set", func() bool {
		before := r.packets(t)
		time.Sleep(100 * time.Millisecond)
		return r.packets(t) <= before+1 // the question itself counts
	})
	before := r.packets(t)
	holder := grant{first, c}
	for range waiters {
		if _, err := holder.s.Change(t.Context(), name, []backends.Change{{ID: holder.c.ID}}); err != nil {
			t.Fatal(err)
		}
		next := <-granted
		if next.c.Token <= holder.c.Token {
			t.Errorf("token %d after %d", next.c.Token, holder.c.Token)
		}
		holder = next
	}
	all.Wait()
	packets := r.packets(t) - before
	t.Logf("%d releases to %d waiters: %d packets", waiters, waiters, packets)
	if limit := 2*waiters + 8; packets > limit { // some heartbeats may fall in between
		t.Errorf("%d packets, want at most %d", packets, limit)
	}
}

// testTries: who tries again and again writes nothing, and it costs a node one transaction to give up what it
// kept idle, or to say that it is in use.
func testTries(t *testing.T, r *rig) {
	const name = "tried"
	cluster := r.newCluster()
	b := r.open(t, cluster, r.Addr())
	holder, other := newSession(t, b, time.Minute), newSession(t, b, time.Minute)
	look := func() *zk.Stat {
		t.Helper()
		_, stat, err := r.conn.Exists(b.lockDir(name))
		if err != nil {
			t.Fatal(err)
		}
		return stat
	}
	try := backends.Request{Lock: writing, Hint: backends.ByCall, Wait: true, YieldTo: backends.ByOpen}
	c, err := holder.Acquire(t.Context(), name, backends.Request{Lock: writing, Hint: backends.ByCall})
	if err != nil {
		t.Fatal(err)
	}
	before := look()
	for range 100 {
		if _, err := other.Acquire(t.Context(), name, try); !errors.Is(err, backends.ErrYield) {
			t.Fatalf("a try: %v, want ErrYield", err)
		}
	}
	if after := look(); *after != *before {
		t.Errorf("100 refused tries changed the line from %+v to %+v", before, after)
	}
	ask := func() <-chan error {
		queued, done := make(chan struct{}), make(chan error, 1)
		try.Queued = func() { close(queued) }
		go func() {
			c, err := other.Acquire(t.Context(), name, try)
			if err == nil {
				_, err = other.Change(t.Context(), name, []backends.Change{{ID: c.ID}})
			}
			done <- err
		}()
		<-queued
		return done
	}
	change := func(to ...backends.Keep) {
		t.Helper()
		now, err := holder.Change(t.Context(), name, []backends.Change{{ID: c.ID, To: to}})
		if err != nil {
			t.Fatal(err)
		}
		if len(now) > 0 {
			c = now[0]
		}
	}
	for range 2 {
		change(backends.Keep{Lock: writing, Hint: backends.Kept})
		answer := ask()
		before = look()
		change(backends.Keep{Lock: writing, Hint: backends.ByCall})
		if err := <-answer; !errors.Is(err, backends.ErrYield) {
			t.Errorf("a try of what is in use after all: %v, want ErrYield", err)
		}
		kids, _, err := r.conn.Children(b.lockDir(name))
		if err != nil || len(kids) != 1 {
			t.Fatalf("the line is %v, %v; want the claim alone", kids, err)
		}
		_, claim, err := r.conn.Exists(b.lockDir(name) + "/" + kids[0])
		if err != nil {
			t.Fatal(err)
		}
		// The claim's new znode, the old one's end and the call to the one who tries are one transaction; then that one goes.
		after := look()
		if after.Mzxid != claim.Czxid || after.Version != before.Version+1 || after.Cversion != before.Cversion+3 {
			t.Errorf("to say that a claim is in use changed the line from %+v to %+v, the claim is %+v", before, after, claim)
		}
	}
	change(backends.Keep{Lock: writing, Hint: backends.Kept})
	answer := ask()
	before = look()
	change()
	if err := <-answer; err != nil {
		t.Errorf("a try of what was kept idle: %v", err)
	}
	if after := look(); after.Version != before.Version || after.Cversion != before.Cversion+2 {
		t.Errorf("to give up a claim, and the other one its own, changed the line from %+v to %+v", before, after)
	}
}

// TestFaults has a server of its own, which it stops at times.
func TestFaults(t *testing.T) {
	r := newRig(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *rig)
	}{{"cuts", testCuts}, {"restart", testRestart}, {"delays", testDelays}, {"lag", testLag}, {"reconnects", testReconnects}, {"unavailable", testUnavailable}, {"auth", testAuth}} {
		t.Run(test.name, func(t *testing.T) { test.run(t, r) })
	}
}

// proxy stands between a node and the server, to cut the node off.
type proxy struct {
	t        testing.TB
	listener net.Listener
	server   string
	lag      atomic.Int64 // how much later answers arrive, a time.Duration
	mu       sync.Mutex
	dead     bool
	conns    []net.Conn
	work     sync.WaitGroup
}

func newProxy(t testing.TB, server string) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, listener: l, server: server}
	p.work.Go(p.serve)
	t.Cleanup(func() {
		p.kill()
		p.work.Wait()
	})
	return p
}

func (p *proxy) addr() string { return p.listener.Addr().String() }

func (p *proxy) serve() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return // killed
		}
		up, err := net.Dial("tcp", p.server)
		if err != nil {
			_ = c.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, c, up)
		dead := p.dead
		p.mu.Unlock()
		if dead {
			_, _ = c.Close(), up.Close()
			return
		}
		p.work.Go(func() {
			_, _ = io.Copy(up, c)
			_, _ = c.Close(), up.Close()
		})
		p.work.Go(func() {
			p.answers(c, up)
			_, _ = c.Close(), up.Close()
		})
	}
}

// answers carries what the server says, each piece after the lag.
func (p *proxy) answers(to, from net.Conn) {
	type piece struct {
		data []byte
		at   time.Time
	}
	pieces := make(chan piece, 1000)
	p.work.Go(func() {
		defer close(pieces)
		for {
			data := make([]byte, 4096)
			n, err := from.Read(data)
			pieces <- piece{data[:n], time.Now().Add(time.Duration(p.lag.Load()))}
			if err != nil {
				return
			}
		}
	})
	for x := range pieces {
		time.Sleep(time.Until(x.at))
		if _, err := to.Write(x.data); err != nil {
			_ = from.Close()
		}
	}
}

// cut breaks the connections there are.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		_ = c.Close()
	}
	p.conns = nil
}

// kill breaks them for ever.
func (p *proxy) kill() {
	p.mu.Lock()
	p.dead = true
	p.mu.Unlock()
	_ = p.listener.Close()
	p.cut()
}

var writing = backends.Lock{Range: backends.Whole, Mode: backends.Write}

// newSession opens a session and reads its events.
func newSession(t testing.TB, b *Backend, ttl time.Duration) *session {
	t.Helper()
	opened, err := b.Open(t.Context(), backends.SessionOptions{Node: "test", TTL: ttl})
	if err != nil {
		t.Fatal(err)
	}
	s := opened.(*session)
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			select {
			case <-s.Events():
			case <-s.Done():
				return
			}
		}
	})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = s.Close(ctx)
		<-s.ended
		reader.Wait()
	})
	return s
}

var discard = slog.New(slog.DiscardHandler)
