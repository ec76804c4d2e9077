package backendtest

import (
	"context"
	"time"

	"lockfs/backends"
	"lockfs/backends/lease"
)

var sessionTests = []test{
	{"close frees at once", testClose},
	{"a closed session", testClosed},
	{"close ends its waits", testCloseEndsWaits},
	{"a dead holder", testDeadHolder},
	{"a dead waiter", testDeadWaiter},
	{"a dead waiter behind a holder that lives", testDeadWaiterStays},
	{"the dead node knows first", testDeadKnows},
	{"lock delay", testLockDelay},
	{"lock delay of a dead waiter", testLockDelayOfWaiter},
	{"outlives its lease by renewing", testRenews},
	{"sessions of one back end", testSessionsOfOne},
	{"identity", testIdentity},
}

func testClose(e *env) {
	p := e.peers(3)
	p[0].get("one", writing)
	p[0].get("two", reading)
	q1, q2 := p[1].queue("one", writing), p[2].queue("two", writing)
	own := p[0].queue("two", writing) // its queue entries go too
	start := time.Now()
	e.must(p[0].Close(e.ctx()))
	q1.granted()
	q2.granted()
	if took := time.Since(start); took > ttl/4 {
		e.Errorf("the next in line got in %v after Close", took)
	}
	e.want(own.returns(), backends.ErrSessionOver)
	e.entries("one", 1)
	e.entries("two", 1)
}

func testClosed(e *env) {
	p := e.peer()
	c := p.get("x", writing)
	if !p.Valid() || p.Err() != nil {
		e.Fatalf("a session just opened: valid %v, error %v", p.Valid(), p.Err())
	}
	if p.Deadline() <= lease.Now() {
		e.Errorf("a session just opened has a deadline of %v, at %v", p.Deadline(), lease.Now())
	}
	select {
	case <-p.Done():
		e.Fatal("Done before Close")
	default:
	}
	e.must(p.Close(e.ctx()))
	select {
	case <-p.Done():
	case <-time.After(patience):
		e.Fatal("Close has returned but Done is not closed")
	}
	if p.Valid() || p.Err() != nil || p.Deadline() > lease.Now() {
		e.Errorf("after Close: valid %v, error %v, deadline %v; want false, nil, the past", p.Valid(), p.Err(), p.Deadline())
	}
	for _, wait := range []bool{true, false} {
		_, err := p.Acquire(e.ctx(), "y", backends.Request{Lock: writing, Wait: wait})
		e.want(err, backends.ErrSessionOver)
	}
	_, err := p.Change(e.ctx(), "x", []backends.Change{{ID: c.ID}})
	e.want(err, backends.ErrSessionOver)
	_, err = p.Holders(e.ctx(), "x", writing)
	e.want(err, backends.ErrSessionOver)
	if err := p.Close(e.ctx()); err != nil {
		e.Errorf("a second Close: %v", err)
	}
	e.empty("x")
	e.empty("y")
}

func testCloseEndsWaits(e *env) {
	const name = "waits"
	p := e.peers(3)
	c := p[0].get(name, reading)
	w, r := p[1].queue(name, writing), p[2].queue(name, reading)
	e.must(p[1].Close(e.ctx()))
	e.want(w.returns(), backends.ErrSessionOver)
	r.granted()
	p[0].drop(name, c)
	e.entries(name, 1)
}

// grace is how long after its lease a dead session may still be in the way.
const grace = time.Second

func testDeadHolder(e *env) {
	p := e.peer()
	dying := e.peerOn(e.Node(e.T), e.shortTTL())
	dying.get("one", writing)
	dying.get("two", lock(backends.Read, 7, 7))
	q := p.queue("one", writing)
	killed := time.Now()
	dying.node.Kill()
	q.granted()
	e.tookAtMost(killed, "the lock of a dead session came free")
	// Who does not wait finds it free too, and its other names as well.
	p.get("two", writing)
	if h, err := p.Holders(e.ctx(), "two", writing); err != nil || len(h) != 0 {
		e.Errorf("Holders names a dead session: %+v, %v", h, err)
	}
	e.entries("two", 1)
}

// tookAtMost checks that a dead session's traces went in time. Half a second more is for a busy machine.
func (e *env) tookAtMost(killed time.Time, what string) {
	e.Helper()
	took, limit := time.Since(killed), e.shortTTL()+grace
	e.Logf("%s after %v", what, took)
	if took > limit+500*time.Millisecond {
		e.Errorf("%s after %v, want at most %v", what, took, limit)
	}
}

// testLockDelay: what a dead session held stays closed for its lock delay; what a closed one held does not.
func testLockDelay(e *env) {
	const delay = 2 * time.Second
	options := backends.SessionOptions{TTL: e.shortTTL(), LockDelay: delay}
	p, leaving, dying := e.peer(), e.peerWith(e.Node(e.T), options), e.peerWith(e.Node(e.T), options)
	leaving.get("left", writing)
	e.must(leaving.Close(e.ctx()))
	p.get("left", writing)

	c := dying.get("let go", writing)
	dying.drop("let go", c)
	c = dying.get("shrunk", writing)
	dying.change("shrunk", backends.Change{ID: c.ID, To: []backends.Keep{{Lock: lock(backends.Read, 5, 6)}}})
	dying.get("one", writing)
	q := p.queue("one", writing)
	killed := time.Now()
	dying.node.Kill()
	p.get("let go", writing)
	for !q.isDone() {
		if time.Since(killed) > patience {
			e.Fatal("the lock never comes free")
		}
		time.Sleep(10 * time.Millisecond)
	}
	q.granted()
	took, limit := time.Since(killed), e.shortTTL()+delay+grace+time.Second
	e.Logf("the lock came free after %v, the delay is %v", took, delay)
	if took < delay || took > limit {
		e.Errorf("the lock of a dead session came free after %v, want %v to %v", took, delay, limit)
	}
	p.get("shrunk", lock(backends.Write, 0, 4))
	r := p.ask("shrunk", backends.Request{Lock: writing})
	r.granted()
	e.entries("one", 1)
	e.entries("shrunk", 2)
}

// testLockDelayOfWaiter: a request that the dead had made is not kept.
func testLockDelayOfWaiter(e *env) {
	const name = "delayed waiter"
	p := e.peers(2)
	dying := e.peerWith(e.Node(e.T), backends.SessionOptions{TTL: e.shortTTL(), LockDelay: time.Minute})
	p[0].get(name, reading)
	dying.queue(name, writing)
	q := p[1].queue(name, reading)
	killed := time.Now()
	dying.node.Kill()
	q.granted()
	e.tookAtMost(killed, "the one behind a dead waiter got in")
}

// testDeadWaiter: the dead one is next in line when the lock is let go.
func testDeadWaiter(e *env) {
	const name = "dead waiter"
	p := e.peers(2)
	dying := e.peerOn(e.Node(e.T), e.shortTTL())
	c := p[0].get(name, writing)
	dead := dying.queue(name, writing)
	q := p[1].queue(name, writing)
	killed := time.Now()
	dying.node.Kill()
	p[0].drop(name, c) // may hand the lock to the dead
	d := q.granted()
	e.tookAtMost(killed, "the one behind a dead waiter got in")
	e.want(dead.returns(), backends.ErrSessionOver)
	p[1].drop(name, d)
	e.entries(name, 0)
}

// testDeadWaiterStays: nobody lets go; the one behind a dead writer can share
// with the holder and is let in without anybody's help.
func testDeadWaiterStays(e *env) {
	const name = "dead waiter in between"
	p := e.peers(2)
	dying := e.peerOn(e.Node(e.T), e.shortTTL())
	p[0].get(name, reading)
	dying.queue(name, writing)
	q := p[1].queue(name, reading)
	killed := time.Now()
	dying.node.Kill()
	q.granted()
	e.tookAtMost(killed, "the one behind a dead waiter got in")
	e.entries(name, 2)
}

// testDeadKnows: a cut-off session considers its locks lost before another can have them.
func testDeadKnows(e *env) {
	const name = "knows"
	p := e.peer()
	for range 2 {
		dying := e.peerOn(e.Node(e.T), e.shortTTL())
		dying.get(name, writing)
		ctx, cancel := context.WithCancel(e.ctx())
		type result struct {
			c     backends.Claim
			err   error
			valid bool
		}
		got := make(chan result, 1)
		go func() {
			c, err := p.Acquire(ctx, name, backends.Request{Lock: writing, Wait: true})
			got <- result{c, err, dying.Valid()}
		}()
		e.entries(name, 2)
		dying.node.Kill()
		r := <-got
		cancel()
		e.must(r.err)
		if r.valid {
			e.Error("two sessions have the lock: the dead one's lease is still valid")
		}
		select {
		case <-dying.Done():
		case <-time.After(patience):
			e.Fatal("a cut-off session is never done")
		}
		e.want(dying.Err(), backends.ErrSessionOver)
		_, err := dying.Acquire(e.ctx(), name, backends.Request{Lock: writing, Wait: true})
		e.want(err, backends.ErrSessionOver)
		p.drop(name, r.c)
		e.empty(name)
	}
}

func testRenews(e *env) {
	const name = "renewed"
	p := e.peer()
	short := e.peerOn(e.Node(e.T), e.shortTTL())
	c := short.get(name, writing)
	q := p.queue(name, writing)
	for until := time.Now().Add(2*e.shortTTL() + grace); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		q.waits()
		if !short.Valid() {
			e.Fatalf("the lease of a session that renews ended: %v", short.Err())
		}
	}
	short.drop(name, c)
	q.granted()
}

// testSessionsOfOne: sessions of one Backend are as apart as those of two.
func testSessionsOfOne(e *env) {
	const name = "same node"
	node := e.Node(e.T)
	a, b := e.peerOn(node, ttl), e.peerOn(node, ttl)
	c := a.get(name, writing)
	b.refused(name, reading)
	q := b.queue(name, writing)
	e.must(a.Close(e.ctx()))
	d := q.granted()
	if d.Token <= c.Token {
		e.Errorf("token %d after %d", d.Token, c.Token)
	}
	b.drop(name, d)
	e.empty(name)
}

func testIdentity(e *env) {
	node := e.Node(e.T)
	if node.String() == "" {
		e.Error("String is empty")
	}
	seen := map[string]bool{}
	for range 5 {
		p := e.peerOn(node, ttl)
		if p.ID() == "" || seen[p.ID()] {
			e.Fatalf("session ID %q is empty or was there before", p.ID())
		}
		seen[p.ID()] = true
		e.must(p.Close(e.ctx()))
	}
}
