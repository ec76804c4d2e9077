package redis

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"lockfs/backends"
	"lockfs/backends/backendtest"
	"lockfs/backends/testserver"
	"lockfs/config"
)

func TestMain(m *testing.M) {
	// A pool whose server is dead looks once a second whether it lives again; this ends up to a second after the pool.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial"))
}

func TestConformance(t *testing.T) {
	server := testserver.Redis(t)
	var clusters atomic.Int32
	backendtest.Run(t, func(t *testing.T) backendtest.Cluster {
		cluster := fmt.Sprintf("c}%d{%%", clusters.Add(1))
		raw := rawClient(t, server)
		return backendtest.Cluster{
			Node: func(t *testing.T) backendtest.Node {
				line := newLine(t, server.Addr())
				return backendtest.Node{Backend: connectWithin(t, line.addr(), cluster, 5*time.Second), Kill: line.cut}
			},
			Entries: func(t *testing.T, name string) int { return entries(t, raw, cluster, name) },
			MinTTL:  2 * time.Second, // the configuration's least: a busy machine can't keep shorter ones
		}
	})
}

// rawClient looks into the server behind the back end's back.
func rawClient(t testing.TB, server *testserver.RedisServer) *goredis.Client {
	c := goredis.NewClient(&goredis.Options{Addr: server.Addr(), DisableIdentity: true, Protocol: 2, PipelinePoolSize: -1})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// entries counts the claims and the requests in the queue.
func entries(t testing.TB, raw *goredis.Client, cluster, name string) int {
	t.Helper()
	pipe := raw.TxPipeline()
	claims := pipe.HLen(t.Context(), prefix(cluster)+"g:"+name)
	waiting := pipe.ZCard(t.Context(), prefix(cluster)+"q:"+name)
	if _, err := pipe.Exec(t.Context()); err != nil {
		t.Fatal(err)
	}
	return int(claims.Val() + waiting.Val())
}

func connect(t testing.TB, addr, cluster string) *Backend {
	t.Helper()
	return connectWithin(t, addr, cluster, time.Second)
}

func connectWithin(t testing.TB, addr, cluster string, timeout time.Duration) *Backend {
	t.Helper()
	b, err := Open(t.Context(), config.Redis{Network: "tcp", Address: addr, Timeout: timeout}, cluster, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// open opens a session on a connection of its own.
func open(t testing.TB, addr string, ttl time.Duration) *session {
	t.Helper()
	return openOn(t, connect(t, addr, "test"), ttl)
}

func openOn(t testing.TB, b *Backend, ttl time.Duration) *session {
	t.Helper()
	s, err := b.Open(t.Context(), backends.SessionOptions{Node: "node", TTL: ttl})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_ = s.Close(ctx) // the server may be gone
	})
	return s.(*session)
}

// line is a network between a client and the server that a test can cut.
type line struct {
	listener net.Listener
	target   string

	mu    sync.Mutex
	dead  bool
	conns map[net.Conn]bool // true: what comes is passed on
	wg    sync.WaitGroup
}

func newLine(t testing.TB, target string) *line {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &line{listener: l, target: target, conns: map[net.Conn]bool{}}
	n.wg.Go(n.accept)
	t.Cleanup(func() {
		n.cut()
		n.wg.Wait()
	})
	return n
}

func (n *line) addr() string { return n.listener.Addr().String() }

func (n *line) accept() {
	for {
		client, err := n.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", n.to())
		if err != nil {
			_ = client.Close()
			continue
		}
		if !n.keep(client, server) {
			return
		}
		n.wg.Go(func() { n.copy(client, server) })
		n.wg.Go(func() { n.copy(server, client) })
	}
}

func (n *line) to() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.target
}

// lead makes the line lead to another server, as a fail-over does.
func (n *line) lead(target string) {
	n.mu.Lock()
	n.target = target
	n.mu.Unlock()
	n.reset()
}

func (n *line) keep(conns ...net.Conn) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range conns {
		if n.dead {
			_ = c.Close()
		} else {
			n.conns[c] = true
		}
	}
	return !n.dead
}

func (n *line) copy(to, from net.Conn) {
	_, _ = io.Copy(writer(func(p []byte) (int, error) {
		n.mu.Lock()
		pass := n.conns[from]
		n.mu.Unlock()
		if !pass {
			return len(p), nil
		}
		return to.Write(p)
	}), from)
	_ = to.Close()
	_ = from.Close()
	n.mu.Lock()
	delete(n.conns, to)
	delete(n.conns, from)
	n.mu.Unlock()
}

type writer func(p []byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// swallow passes nothing on any more that the server sends to those who have
// subscribed; the connections stay up.
func (n *line) swallow(t testing.TB, raw *goredis.Client) {
	list, err := raw.Do(t.Context(), "CLIENT", "LIST", "TYPE", "pubsub").Text()
	if err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	found := 0
	for c := range n.conns {
		if strings.Contains(list, " addr="+c.LocalAddr().String()+" ") {
			n.conns[c] = false
			found++
		}
	}
	if found == 0 {
		t.Fatalf("no subscriber comes through the line: %s", list)
	}
}

// reset ends all connections, whatever is on its way through them.
func (n *line) reset() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		_ = c.Close()
	}
}

// cut ends all connections; there will be no new ones.
func (n *line) cut() {
	_ = n.listener.Close()
	n.mu.Lock()
	n.dead = true
	n.mu.Unlock()
	n.reset()
}

// stats returns the calls of each command since the last reset.
func stats(t testing.TB, raw *goredis.Client) map[string]int {
	t.Helper()
	text, err := raw.Info(t.Context(), "commandstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	calls := map[string]int{}
	for key, value := range parseInfo(text) {
		var n int
		if _, err := fmt.Sscanf(value, "calls=%d,", &n); err == nil {
			calls[strings.TrimPrefix(key, "cmdstat_")] = n
		}
	}
	return calls
}
