package backendtest

import (
	"lockfs/backends"
)

var heldTests = []test{
	{"an upgrade goes ahead of who waits for its read lock", testUpgrade},
	{"but of nobody else", testUpgradeOthers},
	{"two upgrades deadlock", testTwoUpgrades},
	{"no deadlock on different bytes", testUpgradesApart},
	{"yield at once", testYieldNow},
	{"yield while waiting, the holder's hint rises", testYieldRises},
	{"yield while waiting, a new holder comes in", testYieldNewHolder},
	{"who yields is out of the way", testYieldUnblocks},
}

func upgrade(l backends.Lock, held ...backends.Lock) backends.Request {
	return backends.Request{Lock: l, Held: held}
}

func testUpgrade(e *env) {
	const name = "up"
	p := e.peers(3)
	a, b := p[0].get(name, reading), p[1].get(name, reading)
	w := p[2].queue(name, writing)
	up := p[0].queueWith(name, upgrade(writing, reading))
	p[1].drop(name, b)
	c := up.granted()
	w.waits()
	if !c.Contended {
		e.Error("the upgrade was granted while another session waits, but is not Contended")
	}
	p[0].drop(name, a)
	w.waits()
	p[0].drop(name, c)
	p[2].drop(name, w.granted())

	// The same without anybody else in the way: it need not wait at all.
	a = p[0].get(name, reading)
	w = p[2].queue(name, writing)
	c = p[0].getWith(name, upgrade(writing, reading))
	w.waits()
	p[0].drop(name, a, c)
	p[2].drop(name, w.granted())
	e.empty(name)
}

// testUpgradeOthers: the exception is for those who wait for what the owner keeps.
func testUpgradeOthers(e *env) {
	const name = "up others"
	p := e.peers(4)
	b := p[1].get(name, lock(backends.Write, 10, 19))
	a := p[0].get(name, lock(backends.Read, 0, 9))
	w := p[2].queue(name, lock(backends.Write, 10, 19)) // does not wait for bytes 0 to 9
	up := p[0].queueWith(name, upgrade(lock(backends.Write, 0, 19), a.Lock))
	p[1].drop(name, b)
	c := w.granted()
	up.waits()
	p[2].drop(name, c)
	d := up.granted()
	p[0].drop(name, a, d)
	e.empty(name)
}

func testTwoUpgrades(e *env) {
	const name = "two ups"
	p := e.peers(2)
	a, b := p[0].get(name, reading), p[1].get(name, reading)
	up := p[0].queueWith(name, upgrade(writing, reading))
	for range 3 {
		second := p[1].ask(name, upgrade(writing, reading))
		e.want(second.returns(), backends.ErrDeadlock)
		up.waits()
		e.entries(name, 3)
	}
	p[1].drop(name, b)
	p[0].drop(name, a, up.granted())
	e.empty(name)
}

func testUpgradesApart(e *env) {
	const name = "ups apart"
	p := e.peers(3)
	third := p[2].get(name, reading)
	low, high := lock(backends.Read, 0, 9), lock(backends.Read, 10, 19)
	a, b := p[0].get(name, low), p[1].get(name, high)
	one := p[0].queueWith(name, upgrade(lock(backends.Write, 0, 9), low))
	two := p[1].queueWith(name, upgrade(lock(backends.Write, 10, 19), high))
	p[2].drop(name, third)
	p[0].drop(name, a, one.granted())
	p[1].drop(name, b, two.granted())
	e.empty(name)
}

func testYieldNow(e *env) {
	const name = "yield"
	p := e.peers(3)
	c := p[0].getWith(name, backends.Request{Lock: lock(backends.Write, 0, 9), Hint: backends.ByCall})
	yielding := func(l backends.Lock, to backends.Hint) backends.Request {
		return backends.Request{Lock: l, YieldTo: to}
	}
	e.want(p[1].ask(name, yielding(writing, backends.ByCall)).returns(), backends.ErrYield)
	// A request that is not to wait yields too: what holds is the other kind's.
	_, err := p[1].Acquire(e.ctx(), name, yielding(writing, backends.ByCall))
	e.want(err, backends.ErrYield)
	e.entries(name, 1)
	// The holder's hint is too small, the bytes are others, or the holder is the same session.
	_, err = p[1].Acquire(e.ctx(), name, yielding(writing, backends.ByCallOnWritable))
	e.want(err, backends.ErrWouldBlock)
	q := p[1].queueWith(name, yielding(writing, backends.ByCallOnWritable))
	d := p[2].getWith(name, backends.Request{Lock: lock(backends.Read, 10, 19), Hint: backends.ByCallOnWritable, Held: []backends.Lock{lock(backends.Read, 10, 19)}})
	e.want(q.returns(), backends.ErrYield)
	p[2].drop(name, d)
	own := p[0].getWith(name, yielding(writing, backends.ByCall))
	p[0].drop(name, c, own)
	e.empty(name)
}

func testYieldRises(e *env) {
	const name = "rises"
	p := e.peers(2)
	c := p[0].get(name, writing)
	q := p[1].queueWith(name, backends.Request{Lock: reading, YieldTo: backends.ByCallOnWritable})
	got := p[0].change(name, backends.Change{ID: c.ID, To: []backends.Keep{{Lock: writing, Hint: backends.ByCall}}})
	e.entries(name, 2)
	q.waits()
	got = p[0].change(name, backends.Change{ID: got[0].ID, To: []backends.Keep{{Lock: writing, Hint: backends.ByCallOnWritable}}})
	e.want(q.returns(), backends.ErrYield)
	e.entries(name, 1)
	p[0].drop(name, got...)
	e.empty(name)
}

func testYieldNewHolder(e *env) {
	const name = "new holder"
	p := e.peers(3)
	c := p[0].get(name, writing)
	next := p[1].queueWith(name, backends.Request{Lock: writing, Hint: backends.ByCallOnWritable})
	q := p[2].queueWith(name, backends.Request{Lock: writing, YieldTo: backends.ByCallOnWritable})
	p[0].drop(name, c)
	d := next.granted()
	e.want(q.returns(), backends.ErrYield)
	p[1].drop(name, d)
	e.empty(name)
}

func testYieldUnblocks(e *env) {
	const name = "unblocks"
	p := e.peers(3)
	c := p[0].get(name, reading)
	w := p[1].queueWith(name, backends.Request{Lock: writing, YieldTo: backends.ByCall})
	r := p[2].queue(name, reading) // waits for the writer in front only
	got := p[0].change(name, backends.Change{ID: c.ID, To: []backends.Keep{{Lock: reading, Hint: backends.ByCall}}})
	e.want(w.returns(), backends.ErrYield)
	p[2].drop(name, r.granted())
	p[0].drop(name, got...)
	e.empty(name)
}
