package backendtest

import "lockfs/backends"

var keptTests = []test{
	{"a try waits to be told whether a kept claim is in use", testKeptInUse},
	{"a try gets what was kept idle", testKeptIdle},
	{"a claim is kept from the beginning", testKeptFromTheBeginning},
	{"a try stands behind nobody", testTryBehind},
	{"a kept claim is in the way of others", testKeptHolds},
}

// trying is a request that waits for nothing but to be told whether claims are in use.
func trying(l backends.Lock) backends.Request {
	return backends.Request{Lock: l, Hint: backends.ByCall, YieldTo: backends.ByOpen}
}

// kept makes a claim one that its node keeps.
func (p *peer) kept(name string, c backends.Claim) backends.Claim {
	return p.change(name, backends.Change{ID: c.ID, To: []backends.Keep{{Lock: c.Lock}}})[0]
}

func testKeptInUse(e *env) {
	const name = "in use"
	p := e.peers(3)
	c := p[0].getWith(name, backends.Request{Lock: writing, Hint: backends.ByOpen})
	e.want(p[1].ask(name, trying(reading)).returns(), backends.ErrYield)
	e.entries(name, 1)
	c = p[0].kept(name, c)
	q := p[1].queueWith(name, trying(reading))
	q.waits()
	e.eventually("the holder is told that its claim is wanted", func() bool { return p[0].wanted(name, c) })
	c = p[0].change(name, backends.Change{ID: c.ID, To: []backends.Keep{{Lock: writing, Hint: backends.ByOpen}}})[0]
	e.want(q.returns(), backends.ErrYield)
	e.want(p[2].ask(name, trying(writing)).returns(), backends.ErrYield)
	e.entries(name, 1)
	p[0].drop(name, c)
	e.empty(name)
}

func testKeptIdle(e *env) {
	const name = "idle"
	p := e.peers(2)
	c := p[0].kept(name, p[0].getWith(name, backends.Request{Lock: writing, Hint: backends.ByCall}))
	q := p[1].queueWith(name, trying(writing))
	e.eventually("the holder is told that its claim is wanted", func() bool { return p[0].wanted(name, c) })
	p[0].drop(name, c)
	d := q.granted()
	if d.Token <= c.Token {
		e.Errorf("token %d after %d", d.Token, c.Token)
	}
	p[1].drop(name, d)
	d = p[1].ask(name, trying(writing)).granted() // at once, where nobody has it
	p[1].drop(name, d)
	e.empty(name)
}

// testKeptFromTheBeginning: a request can ask for a claim that may be idle, granted at once or after a wait.
func testKeptFromTheBeginning(e *env) {
	const name = "beginning"
	p := e.peers(3)
	kept := backends.Request{Lock: writing, Hint: backends.Kept}
	wanted := func(holder *peer, c backends.Claim) {
		e.Helper()
		e.eventually("the holder is told that its claim is wanted", func() bool { return holder.wanted(name, c) })
	}
	atOnce := p[0].getWith(name, kept)
	wait := p[1].queueWith(name, kept)
	wanted(p[0], atOnce)
	e.want(p[2].ask(name, trying(reading)).returns(), backends.ErrYield) // behind one who waits
	p[0].drop(name, atOnce)
	c := wait.granted()
	try := p[2].queueWith(name, trying(reading))
	wanted(p[1], c)
	try.waits()
	p[1].drop(name, c)
	p[2].drop(name, try.granted())
	e.empty(name)
}

func testTryBehind(e *env) {
	const name = "behind"
	p := e.peers(3)
	c := p[0].kept(name, p[0].getWith(name, backends.Request{Lock: reading, Hint: backends.ByCall}))
	q := p[1].queue(name, writing)
	e.want(p[2].ask(name, trying(reading)).returns(), backends.ErrYield)
	q.waits()
	p[0].drop(name, c)
	d := q.granted()
	p[1].drop(name, d)
	e.empty(name)
}

func testKeptHolds(e *env) {
	const name = "holds"
	p := e.peers(2)
	c := p[0].kept(name, p[0].getWith(name, backends.Request{Lock: writing, Hint: backends.ByCall}))
	p[1].refused(name, reading)
	holders, err := p[1].Holders(e.ctx(), name, writing)
	e.must(err)
	if len(holders) != 1 || holders[0].Hint != backends.Kept || holders[0].Lock != writing || holders[0].Token != c.Token {
		e.Errorf("Holders returns %+v, want the kept claim %+v", holders, c)
	}
	q := p[1].queueWith(name, backends.Request{Lock: writing, YieldTo: backends.ByCall})
	q.waits()
	c = p[0].change(name, backends.Change{ID: c.ID, To: []backends.Keep{{Lock: writing, Hint: backends.ByCall}}})[0]
	e.want(q.returns(), backends.ErrYield)
	p[0].drop(name, c)
	e.empty(name)
}
