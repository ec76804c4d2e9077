package backendtest

import (
	"lockfs/backends"
)

var eventTests = []test{
	{"a waiter makes a claim wanted", testWanted},
	{"every holder in the way is told", testWantedAll},
	{"claims granted later are not wanted", testWantedLater},
	{"contended", testContended},
	{"a burst of names", testWantedBurst},
}

func testWanted(e *env) {
	const name = "wanted"
	p := e.peers(3)
	c := p[0].get(name, writing)
	p[2].refused(name, writing) // who does not wait wants nothing
	q := p[1].queue(name, writing)
	e.eventually("the holder is told that its claim is wanted", func() bool { return p[0].wanted(name, c) })
	if c.Contended {
		e.Error("a claim is Contended that nobody waited for")
	}
	p[0].drop(name, c)
	d := q.granted()
	if d.Contended {
		e.Error("the waiter's claim is Contended though nobody else waits")
	}
	p[1].drop(name, d)
}

func testWantedAll(e *env) {
	const name = "wanted by all"
	p := e.peers(4)
	a, b := p[0].get(name, lock(backends.Read, 0, 9)), p[1].get(name, lock(backends.Read, 5, 19))
	apart := p[2].get(name, lock(backends.Write, 30, 39))
	own := p[3].get(name, lock(backends.Read, 5, 5))
	q := p[3].queue(name, lock(backends.Write, 8, 12))
	e.eventually("both holders are told", func() bool { return p[0].wanted(name, a) && p[1].wanted(name, b) })
	// A part of a claim that was wanted is wanted still.
	parts := p[1].change(name, backends.Change{ID: b.ID, To: []backends.Keep{keep(backends.Read, 12, 12)}})
	if !p[1].wanted(name, parts[0]) {
		e.Error("what Change left of a wanted claim has a stamp that is not wanted")
	}
	p[0].drop(name, a)
	q.waits()
	p[1].drop(name, parts...)
	p[3].drop(name, q.granted(), own)
	p[2].drop(name, apart)
	e.empty(name)
}

// testWantedLater: an event that comes late is not taken for a claim that was
// granted after it. The name stays in use meanwhile, as an idle name's stamps may begin anew.
func testWantedLater(e *env) {
	const name = "later"
	p := e.peers(3)
	p[2].get(name, lock(backends.Read, 100, 100))
	c := p[0].get(name, lock(backends.Write, 0, 9))
	q := p[1].queue(name, lock(backends.Write, 0, 9))
	e.eventually("wanted", func() bool { return p[0].wanted(name, c) })
	p[0].drop(name, c)
	d := q.granted()
	p[1].drop(name, d)
	again := p[0].get(name, lock(backends.Write, 0, 9))
	if again.Seq <= c.Seq || again.Seq <= d.Seq || d.Seq <= c.Seq {
		e.Errorf("stamps do not grow: %d, %d, %d", c.Seq, d.Seq, again.Seq)
	}
	if p[0].wanted(name, again) || again.Contended {
		e.Error("a claim is wanted by who waited and left before it was granted")
	}
	// And it is, as soon as somebody waits again.
	r := p[1].queue(name, lock(backends.Read, 9, 9))
	e.eventually("wanted again", func() bool { return p[0].wanted(name, again) })
	p[0].drop(name, again)
	p[1].drop(name, r.granted())
}

func testContended(e *env) {
	const name = "contended"
	p := e.peers(4)
	c := p[0].get(name, writing)
	q1, q2 := p[1].queue(name, writing), p[2].queue(name, reading)
	q3 := p[1].queue(name, lock(backends.Read, 0, 0))
	p[0].drop(name, c)
	d := q1.granted()
	if !d.Contended {
		e.Error("a claim granted while another session waits is not Contended")
	}
	p[1].drop(name, d)
	if r := q2.granted(); r.Contended {
		e.Error("a read claim is Contended by a reader")
	}
	q3.granted()
}

// testWantedBurst: nothing is dropped, however many names are wanted at once.
func testWantedBurst(e *env) {
	const names = 300
	p := e.peers(2)
	claims := map[string]backends.Claim{}
	var waiting []*pending
	for i := range names {
		n := nameOf(i)
		claims[n] = p[0].get(n, writing)
		waiting = append(waiting, p[1].ask(n, backends.Request{Lock: writing}))
	}
	e.eventually("all of a burst of wanted events arrive", func() bool {
		for n, c := range claims {
			if !p[0].wanted(n, c) {
				return false
			}
		}
		return true
	})
	for n, c := range claims {
		p[0].drop(n, c)
	}
	for _, q := range waiting {
		q.granted()
	}
}
