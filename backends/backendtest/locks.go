package backendtest

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"time"

	"lockfs/backends"
)

var lockTests = []test{
	{"exclusion between sessions", testExclusion},
	{"never within a session", testWithinSession},
	{"exact byte ranges", testRanges},
	{"names are apart", testLockNames},
	{"holders", testHolders},
	{"tokens grow", testTokens},
	{"a lock needs no file", testLockNeedsNoFile},
}

var queueTests = []test{
	{"first come first served", testFIFO},
	{"readers together", testReadersTogether},
	{"no overtaking", testNoOvertaking},
	{"waiting within a session", testQueueWithinSession},
	{"parts of the range", testQueueRanges},
	{"many waiters in turn", testManyWaiters},
	{"who waits is told that it stands in the queue", testQueued},
}

func testExclusion(e *env) {
	const name = "a/lock"
	p := e.peers(2)
	for _, held := range []backends.Lock{reading, writing} {
		c := p[0].get(name, held)
		if held.Mode == backends.Read {
			p[1].drop(name, p[1].get(name, reading))
		} else {
			p[1].refused(name, reading)
		}
		p[1].refused(name, writing)
		p[0].drop(name, c)
		p[1].drop(name, p[1].get(name, writing))
	}
	e.empty(name)
}

func testWithinSession(e *env) {
	const name = "mine"
	p := e.peers(2)
	a, b, c := p[0].get(name, writing), p[0].get(name, writing), p[0].get(name, reading)
	if a.ID == b.ID || b.ID == c.ID || a.ID == c.ID {
		e.Fatalf("claims share an ID: %q, %q, %q", a.ID, b.ID, c.ID)
	}
	p[0].drop(name, a)
	p[1].refused(name, reading)
	p[0].drop(name, b)
	r := p[1].get(name, reading)
	p[1].refused(name, writing)
	p[0].drop(name, c)
	w := p[1].get(name, writing)
	p[1].drop(name, r, w)
	e.empty(name)
}

func testRanges(e *env) {
	const name = "bytes"
	const top = backends.MaxByte
	p := e.peers(2)
	for _, r := range []backends.Range{
		{First: 0, Last: 0}, {First: 10, Last: 19}, {First: 1<<53 - 1, Last: 1<<53 + 1}, {First: 1 << 62, Last: 1<<62 + 5},
		{First: top - 1, Last: top - 1}, {First: top, Last: top}, {First: 5, Last: top}, {First: 1<<32 + 1, Last: top - 2},
	} {
		held := p[0].get(name, backends.Lock{Range: r, Mode: backends.Write})
		for _, edge := range []uint64{r.First, r.Last} {
			p[1].refused(name, lock(backends.Read, edge, edge))
		}
		p[1].refused(name, writing)
		if r.First > 0 {
			p[1].drop(name, p[1].get(name, lock(backends.Write, 0, r.First-1)))
			p[1].refused(name, lock(backends.Read, 0, r.First))
		}
		if r.Last < top {
			p[1].drop(name, p[1].get(name, lock(backends.Write, r.Last+1, top)))
			p[1].refused(name, lock(backends.Read, r.Last, top))
		}
		p[0].drop(name, held)
	}
	e.empty(name)
}

// trickyNames are names that a careless encoding merges, mangles or lets out of its directory.
func trickyNames() []string {
	var all []byte
	for b := 1; b < 256; b++ {
		if b != '/' {
			all = append(all, byte(b))
		}
	}
	names := []string{
		"a%2fb", "a%2Fb", "a%252fb", "a\\b", "a:b", "a{b}c", "{x}", "}{", "*", "[a-z]", "?", " ", "  ", "\t", "\n", "a\r\nb",
		"..a", "...", ".a", ".. ", "a..", ".lock", "~", "-", "--help", "$HOME", "%", "%%", "%00", "%s", "=", "=00", "_", "__",
		"x", "X", "xx", "xX", "Straße", "STRASSE", "é", "e\u0301", "日本語", "🔒", "\u202e", "\u2028", "\xff", "\xfe\xff", "\xc3\x28", "\xed\xa0\x80",
		string(all), strings.Repeat("\xff", 255), strings.Repeat("a", 255), strings.Repeat("a", 254), strings.Repeat("%", 255),
		strings.Repeat("A", 255), strings.Repeat("é", 127), strings.Repeat("\x01", 255), "ino", "names", "zookeeper", "lock-0000000001",
	}
	return names
}

func testLockNames(e *env) {
	p := e.peers(2)
	names := append(trickyNames(), "", "x/x", "x/xx", "xx/x", "x/X", "x%2fx", "x:x",
		strings.Repeat(strings.Repeat("\xfe", 255)+"/", 3)+strings.Repeat("\xfe", 255))
	claims := map[string]backends.Claim{}
	for _, n := range names {
		claims[n] = p[0].get(n, writing) // refused if it were merged with another, by p[1] below
	}
	for _, n := range names {
		p[1].refused(n, reading)
		p[0].drop(n, claims[n])
		p[1].get(n, writing) // no other name's claim is in the way
	}
	for _, n := range names {
		p[0].refused(n, reading)
	}
}

func testHolders(e *env) {
	const name = "who"
	p := e.peers(3)
	if h, err := p[2].Holders(e.ctx(), name, writing); err != nil || len(h) != 0 {
		e.Fatalf("Holders of a free name: %v, %v", h, err)
	}
	b := p[1].getWith(name, backends.Request{Lock: lock(backends.Read, 50, 59), Hint: backends.ByCall})
	a := p[0].getWith(name, backends.Request{Lock: lock(backends.Write, 10, 19), Hint: backends.ByCallOnWritable})
	p[2].get(name, lock(backends.Write, 100, 109))
	for _, row := range []struct {
		by   *peer
		lock backends.Lock
		want []string
	}{
		{p[2], writing, []string{a.ID, b.ID}},
		{p[2], reading, []string{a.ID}},
		{p[2], lock(backends.Write, 20, 49), nil},
		{p[2], lock(backends.Write, 59, 70), []string{b.ID}},
		{p[2], lock(backends.Read, 0, 10), []string{a.ID}},
		{p[0], lock(backends.Write, 0, 99), []string{b.ID}},
		{p[1], lock(backends.Read, 0, 99), []string{a.ID}},
	} {
		holders, err := row.by.Holders(e.ctx(), name, row.lock)
		e.must(err)
		if len(holders) != len(row.want) {
			e.Fatalf("Holders(%v) = %+v, want claims %v", row.lock, holders, row.want)
		}
		for i, h := range holders {
			want, session := a, p[0].ID()
			if h.Session == p[1].ID() {
				want, session = b, p[1].ID()
			}
			if h.ID != row.want[i] || h.Session != session || !strings.HasPrefix(h.Node, "node-of-") ||
				h.Lock != want.Lock || h.Hint != want.Hint || h.Token != want.Token || h.Seq != want.Seq {
				e.Fatalf("Holders(%v)[%d] = %+v, want %+v of session %s", row.lock, i, h, want, session)
			}
		}
	}
}

// testTokens: each grant's token is greater than all before, whoever gets it
// and although the name was free, its session closed and the back end opened anew in between.
func testTokens(e *env) {
	const name = "fenced"
	last := uint64(0)
	check := func(c backends.Claim) {
		e.Helper()
		if c.Token <= last {
			e.Fatalf("token %d after %d", c.Token, last)
		}
		last = c.Token
	}
	for range 3 {
		node := e.Node(e.T)
		for range 2 {
			p := e.peerOn(node, ttl)
			c := p.get(name, reading)
			check(c)
			d := p.get(name, reading)
			check(d)
			p.drop(name, c, d)
			e.empty(name)
			check(p.get(name, writing))
			e.must(p.Close(e.ctx()))
		}
		e.must(node.Close())
	}
	a, b := e.peer(), e.peer()
	held := a.get(name, writing)
	check(held)
	q := b.queue(name, writing)
	a.drop(name, held)
	check(q.granted())
}

func testLockNeedsNoFile(e *env) {
	const name = "no/such/file"
	p := e.peer()
	c := p.get(name, writing)
	_, err := p.node.Stat(e.ctx(), name)
	e.want(err, backends.ErrNotExist)
	_, err = p.node.Create(e.ctx(), "f", backends.Info{Mode: regular | 0o644})
	e.must(err)
	f := p.get("f", writing)
	e.must(p.node.Remove(e.ctx(), "f", false))
	e.peer().refused("f", writing) // removing the file does not remove the lock
	p.drop("f", f)
	p.drop(name, c)
}

func testFIFO(e *env) {
	const name = "line"
	p := e.peers(4)
	holder := p[0].get(name, writing)
	waiting := []*pending{p[1].queue(name, writing), p[2].queue(name, writing), p[3].queue(name, writing), p[1].queue(name, writing)}
	p[0].drop(name, holder)
	for i, q := range waiting {
		c := q.granted()
		for _, later := range waiting[i+1:] {
			later.waits()
		}
		q.p.drop(name, c)
	}
	e.empty(name)
}

func testReadersTogether(e *env) {
	const name = "readers"
	p := e.peers(6)
	holder := p[0].get(name, writing)
	r1, r2, r3 := p[1].queue(name, reading), p[2].queue(name, reading), p[3].queue(name, reading)
	w, r4 := p[4].queue(name, writing), p[5].queue(name, reading)
	p[0].drop(name, holder)
	c1, c2, c3 := r1.granted(), r2.granted(), r3.granted()
	e.entries(name, 5)
	w.waits()
	r4.waits()
	p[1].drop(name, c1)
	p[3].drop(name, c3)
	e.entries(name, 3)
	w.waits()
	p[2].drop(name, c2)
	c := w.granted()
	r4.waits()
	p[4].drop(name, c)
	p[5].drop(name, r4.granted())
	e.empty(name)
}

func testNoOvertaking(e *env) {
	const name = "fair"
	p := e.peers(4)
	r := p[0].get(name, reading)
	w := p[1].queue(name, writing)
	p[2].refused(name, reading) // it could share with p[0], but the writer came first
	p[0].refused(name, reading) // not even one who has a claim
	q := p[3].queue(name, reading)
	p[0].drop(name, r)
	c := w.granted()
	q.waits()
	p[1].drop(name, c)
	p[3].drop(name, q.granted())
	e.empty(name)
}

// testQueueWithinSession: a session's claims don't exclude each other, but its
// requests keep the order of the queue, for each waits for an owner of its own.
func testQueueWithinSession(e *env) {
	const name = "own queue"
	p := e.peers(2)
	held := p[0].get(name, writing)
	q1, q2, q3 := p[1].queue(name, writing), p[1].queue(name, writing), p[1].queue(name, reading)
	p[0].drop(name, held)
	c1, c2, c3 := q1.granted(), q2.granted(), q3.granted() // none of them excludes another
	p[0].refused(name, reading)
	p[1].drop(name, c1, c2, c3)
	e.empty(name)
}

func testQueueRanges(e *env) {
	const name = "ranges"
	p := e.peers(4)
	a := p[0].get(name, lock(backends.Write, 0, 9))
	b := p[1].get(name, lock(backends.Write, 20, 29))
	w := p[2].queue(name, lock(backends.Write, 5, 24))
	p[3].refused(name, lock(backends.Read, 15, 15)) // nobody holds it, but w waits for it
	p[3].drop(name, p[3].get(name, lock(backends.Write, 30, 40)))
	q := p[3].queue(name, lock(backends.Read, 10, 12))
	p[0].drop(name, a)
	w.waits()
	q.waits()
	p[1].drop(name, b)
	c := w.granted()
	q.waits()
	p[2].drop(name, c)
	p[3].drop(name, q.granted())
	e.empty(name)
}

func testManyWaiters(e *env) {
	const name, each = "crowd", 10
	p := e.peers(4)
	held := p[0].get(name, writing)
	var waiting []*pending
	for range each {
		for _, peer := range p[1:] {
			waiting = append(waiting, peer.queue(name, writing))
		}
	}
	p[0].drop(name, held)
	last := held.Token
	for _, q := range waiting {
		c := q.granted()
		if c.Token <= last {
			e.Fatalf("token %d after %d", c.Token, last)
		}
		last = c.Token
		q.p.drop(name, c)
	}
	e.empty(name)
}

// testQueued: Queued is called once, by who waits only, and when it stands in the queue.
func testQueued(e *env) {
	const name = "queued"
	p := e.peers(2)
	var calls atomic.Int32
	queued := make(chan struct{}, 10)
	tell := func() { calls.Add(1); queued <- struct{}{} }
	c := p[0].getWith(name, backends.Request{Lock: reading, Queued: tell})
	d := p[1].getWith(name, backends.Request{Lock: reading, Wait: true, Queued: tell})
	p[1].drop(name, d)
	_, err := p[1].Acquire(e.ctx(), name, backends.Request{Lock: writing, Queued: tell})
	e.want(err, backends.ErrWouldBlock)
	up := p[0].ask(name, backends.Request{Lock: reading, YieldTo: backends.ByCall, Queued: tell})
	own := up.granted()
	if n := calls.Load(); n != 0 {
		e.Fatalf("Queued was called %d times by requests that were decided at once", n)
	}
	w := p[1].ask(name, backends.Request{Lock: writing, Queued: tell})
	select {
	case <-queued:
	case <-time.After(patience):
		e.Fatal("Queued is not called though the request waits")
	}
	if n := e.Entries(e.T, name); n != 3 {
		e.Fatalf("Queued was called with %d entries in the back end, want 3", n)
	}
	p[0].refused(name, reading) // it stands behind the one that waits
	p[0].drop(name, c, own)
	p[1].drop(name, w.granted())
	if n := calls.Load(); n != 1 {
		e.Fatalf("Queued was called %d times for one wait", n)
	}
	e.empty(name)
}

// isCancelled reports whether an error says that the caller's context ended.
func isCancelled(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
