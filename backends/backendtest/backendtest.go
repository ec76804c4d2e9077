// Package backendtest is the conformance suite of package backends: every
// sentence of the contract that can be seen from outside, asked of a real
// server.
//
// An engine's test says how to get a fresh cluster and calls Run:
//
//	func TestConformance(t *testing.T) {
//		server := startServer(t)
//		backendtest.Run(t, func(t *testing.T) backendtest.Cluster {
//			cluster := server.newCluster()
//			return backendtest.Cluster{
//				Node:    func(t *testing.T) backendtest.Node { … },
//				Entries: func(t *testing.T, name string) int { … },
//			}
//		})
//	}
//
// Queues can't be seen through the contract, on purpose. The suite sees them
// through Entries, so that it waits for 'the request stands in the queue' and
// never sleeps and hopes.
package backendtest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"lockfs/backends"
)

// Cluster is a fresh cluster: nobody holds anything, no name exists. It may
// live on a server that it shares with others of the suite's clusters.
type Cluster struct {
	// Node returns another Backend connected to the cluster, as another node
	// would have it. What it starts it ends by t.Cleanup.
	Node func(t *testing.T) Node
	// Entries returns the number of entries that the back end keeps for a
	// name: claims granted and requests that wait.
	Entries func(t *testing.T, name string) int
	// MinTTL is the shortest lease that the server grants; 0: one second.
	MinTTL time.Duration
}

// Node is one node's connection.
type Node struct {
	backends.Backend
	// Kill makes the node's sessions vanish without a goodbye: from now on
	// nothing that they send reaches the cluster, and nothing reaches them. It need not
	// wait for the lease to end.
	Kill func()
}

// Run runs the whole suite; start is called once for each test in it.
func Run(t *testing.T, start func(t *testing.T) Cluster) {
	for _, group := range []struct {
		name  string
		tests []test
	}{
		{"Locks", lockTests}, {"Queue", queueTests}, {"Change", changeTests}, {"Held", heldTests},
		{"Cancel", cancelTests}, {"Events", eventTests}, {"Sessions", sessionTests},
		{"Kept", keptTests}, {"Random", randomTests}, {"Names", nameTests}, {"Links", linkTests}, {"Contents", contentTests},
	} {
		t.Run(group.name, func(t *testing.T) {
			for _, test := range group.tests {
				t.Run(test.name, func(t *testing.T) {
					test.run(&env{T: t, Cluster: start(t)})
				})
			}
		})
	}
}

type test struct {
	name string
	run  func(e *env)
}

// env is what one test of the suite works with.
type env struct {
	*testing.T
	Cluster
}

// patience bounds everything that the contract says happens, but not when. It
// is far longer than any of it takes: a failure here is a lost wake-up.
const patience = 20 * time.Second

// ttl is the lease of sessions that are not made to die.
const ttl = 20 * time.Second

// shortTTL is the lease of sessions that are.
func (e *env) shortTTL() time.Duration { return max(time.Second, e.MinTTL) }

// ctx is the context of calls that have to come back.
func (e *env) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	e.Cleanup(cancel)
	return ctx
}

// must fails the test on an error.
func (e *env) must(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

// want checks the kind of an error.
func (e *env) want(err, kind error) {
	e.Helper()
	if !errors.Is(err, kind) {
		e.Fatalf("error is %v, want one that wraps %q", err, kind)
	}
}

// eventually waits for a condition.
func (e *env) eventually(what string, condition func() bool) {
	e.Helper()
	e.within(patience, what, condition)
}

func (e *env) within(limit time.Duration, what string, condition func() bool) {
	e.Helper()
	for deadline := time.Now().Add(limit); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			e.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// empty waits until nothing is left of a name.
func (e *env) empty(name string) {
	e.Helper()
	e.entries(name, 0)
}

// entries waits until a name has so many claims and requests.
func (e *env) entries(name string, n int) {
	e.Helper()
	got := 0
	defer func() {
		if e.Failed() {
			e.Logf("%q has %d entries in the back end, want %d", name, got, n)
		}
	}()
	e.eventually(fmt.Sprintf("%d entries of %q in the back end", n, name), func() bool {
		got = e.Entries(e.T, name)
		return got == n
	})
}

// peer is a session, its events read and kept.
type peer struct {
	backends.Session
	e    *env
	node Node

	mu     sync.Mutex
	events []backends.Event
}

// peer opens a session on a node of its own.
func (e *env) peer() *peer {
	e.Helper()
	return e.peerOn(e.Node(e.T), ttl)
}

// peers opens n sessions on nodes of their own.
func (e *env) peers(n int) []*peer {
	e.Helper()
	peers := make([]*peer, n)
	for i := range peers {
		peers[i] = e.peer()
	}
	return peers
}

func (e *env) peerOn(node Node, ttl time.Duration) *peer {
	e.Helper()
	return e.peerWith(node, backends.SessionOptions{TTL: ttl})
}

func (e *env) peerWith(node Node, options backends.SessionOptions) *peer {
	e.Helper()
	options.Node = "node-of-" + e.Name()
	s, err := node.Open(e.ctx(), options)
	e.must(err)
	p := &peer{Session: s, e: e, node: node}
	var reader sync.WaitGroup
	reader.Go(p.read)
	e.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_ = s.Close(ctx) // of a killed session it may fail
		select {
		case <-s.Done():
			reader.Wait()
		case <-time.After(patience):
			e.Error("session neither closes nor is over")
		}
	})
	return p
}

// read keeps the session's events until it is over.
func (p *peer) read() {
	for {
		select {
		case ev, ok := <-p.Events():
			if !ok {
				return
			}
			p.mu.Lock()
			p.events = append(p.events, ev)
			p.mu.Unlock()
		case <-p.Done():
			return
		}
	}
}

// wanted reports whether an event has come that says this claim is wanted.
func (p *peer) wanted(name string, c backends.Claim) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, ev := range p.events {
		if (ev.Name == name || ev.Name == "") && c.Seq < ev.Seq {
			return true
		}
	}
	return false
}

// get acquires without waiting, and has to succeed.
func (p *peer) get(name string, l backends.Lock) backends.Claim {
	p.e.Helper()
	return p.getWith(name, backends.Request{Lock: l})
}

func (p *peer) getWith(name string, req backends.Request) backends.Claim {
	p.e.Helper()
	c, err := p.Acquire(p.e.ctx(), name, req)
	if err != nil {
		p.e.Fatalf("Acquire(%q, %v): %v", name, req.Lock, err)
	}
	if c.ID == "" || c.Lock != req.Lock || c.Hint != req.Hint || c.Token == 0 {
		p.e.Fatalf("Acquire(%q, %+v) returned %+v", name, req, c)
	}
	return c
}

// refused checks that a request that is not to wait is refused, and leaves nothing behind.
func (p *peer) refused(name string, l backends.Lock) {
	p.e.Helper()
	before := p.e.Entries(p.e.T, name)
	if c, err := p.Acquire(p.e.ctx(), name, backends.Request{Lock: l}); !errors.Is(err, backends.ErrWouldBlock) {
		p.e.Fatalf("Acquire(%q, %v): %+v, %v; want ErrWouldBlock", name, l, c, err)
	}
	if after := p.e.Entries(p.e.T, name); after != before {
		p.e.Fatalf("a refused request changed the number of entries from %d to %d", before, after)
	}
}

// drop gives claims on a name up.
func (p *peer) drop(name string, claims ...backends.Claim) {
	p.e.Helper()
	changes := make([]backends.Change, len(claims))
	for i, c := range claims {
		changes[i].ID = c.ID
	}
	p.change(name, changes...)
}

func (p *peer) change(name string, changes ...backends.Change) []backends.Claim {
	p.e.Helper()
	claims, err := p.Change(p.e.ctx(), name, changes)
	if err != nil {
		p.e.Fatalf("Change(%q, %+v): %v", name, changes, err)
	}
	return claims
}

// pending is an Acquire that waits.
type pending struct {
	p      *peer
	name   string
	req    backends.Request
	cancel context.CancelFunc
	done   chan struct{} // closed when claim and err are set
	claim  backends.Claim
	err    error
}

// ask starts an Acquire that may wait.
func (p *peer) ask(name string, req backends.Request) *pending {
	ctx, cancel := context.WithCancel(context.Background())
	req.Wait = true
	q := &pending{p: p, name: name, req: req, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(q.done)
		q.claim, q.err = p.Acquire(ctx, name, req)
	}()
	p.e.Cleanup(func() {
		cancel()
		<-q.done
	})
	return q
}

// queue starts an Acquire and returns when it stands in the queue.
func (p *peer) queue(name string, l backends.Lock) *pending {
	p.e.Helper()
	return p.queueWith(name, backends.Request{Lock: l})
}

func (p *peer) queueWith(name string, req backends.Request) *pending {
	p.e.Helper()
	before := p.e.Entries(p.e.T, name)
	q := p.ask(name, req)
	p.e.entries(name, before+1)
	q.waits()
	return q
}

// isDone reports whether the Acquire has returned.
func (q *pending) isDone() bool {
	select {
	case <-q.done:
		return true
	default:
		return false
	}
}

// waits checks that the Acquire has not returned.
func (q *pending) waits() {
	q.p.e.Helper()
	if q.isDone() {
		q.p.e.Fatalf("Acquire(%q, %v) has returned %+v, %v; it has to wait", q.name, q.req.Lock, q.claim, q.err)
	}
}

// returns waits for the Acquire's end.
func (q *pending) returns() error {
	q.p.e.Helper()
	select {
	case <-q.done:
	case <-time.After(patience):
		q.p.e.Fatalf("Acquire(%q, %v) still waits after %v", q.name, q.req.Lock, patience)
	}
	return q.err
}

// granted waits for the grant.
func (q *pending) granted() backends.Claim {
	q.p.e.Helper()
	if err := q.returns(); err != nil {
		q.p.e.Fatalf("Acquire(%q, %v): %v", q.name, q.req.Lock, err)
	}
	if q.claim.Lock != q.req.Lock || q.claim.Hint != q.req.Hint {
		q.p.e.Fatalf("Acquire(%q, %+v) returned %+v", q.name, q.req, q.claim)
	}
	return q.claim
}

// lock is a lock on the bytes from first to last.
func lock(m backends.Mode, first, last uint64) backends.Lock {
	return backends.Lock{Range: backends.Range{First: first, Last: last}, Mode: m}
}

// The whole name, for reading and for writing.
var (
	reading = backends.Lock{Range: backends.Whole, Mode: backends.Read}
	writing = backends.Lock{Range: backends.Whole, Mode: backends.Write}
)
