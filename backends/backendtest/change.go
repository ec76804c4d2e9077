package backendtest

import (
	"context"
	"fmt"
	"slices"

	"lockfs/backends"
)

var changeTests = []test{
	{"drop", testDrop},
	{"shrink and split", testSplit},
	{"downgrade", testDowngrade},
	{"relabel", testRelabel},
	{"several at once", testSeveralChanges},
	{"many names at once", testDropMany},
	{"what is gone is passed over", testIdempotent},
	{"ends with the caller's context only for the caller", testChangeCancelled},
}

func keep(m backends.Mode, first, last uint64) backends.Keep {
	return backends.Keep{Lock: lock(m, first, last)}
}

// same checks that Change returned these locks, made from old.
func (e *env) same(got []backends.Claim, old backends.Claim, want ...backends.Keep) {
	e.Helper()
	if len(got) != len(want) {
		e.Fatalf("Change returned %+v, want %+v", got, want)
	}
	for i, c := range got {
		if c.Lock != want[i].Lock || c.Hint != want[i].Hint || c.Token != old.Token || c.Seq != old.Seq || c.ID == "" {
			e.Fatalf("Change returned %+v at %d, want %+v with the token and stamp of %+v", c, i, want[i], old)
		}
		if slices.ContainsFunc(got[:i], func(o backends.Claim) bool { return o.ID == c.ID }) {
			e.Fatalf("two claims have the ID %q", c.ID)
		}
	}
}

func testDrop(e *env) {
	const name = "drop"
	p := e.peers(3)
	c := p[0].get(name, writing)
	w, r := p[1].queue(name, writing), p[2].queue(name, reading)
	e.same(p[0].change(name, backends.Change{ID: c.ID}), c)
	d := w.granted() // the next in line, not whoever asks first
	p[0].refused(name, reading)
	r.waits()
	p[1].drop(name, d)
	p[2].drop(name, r.granted())
	e.empty(name)
}

// dropAll gives up claims on many names, in one request where the session can do that (backends.Bulk).
func (p *peer) dropAll(claims []backends.Named) {
	p.e.Helper()
	bulk, ok := p.Session.(backends.Bulk)
	if ok {
		p.e.must(bulk.Drop(p.e.ctx(), claims))
		return
	}
	for _, c := range claims {
		p.drop(c.Name, backends.Claim{ID: c.ID})
	}
}

func testDropMany(e *env) {
	p := e.peers(3)
	var claims []backends.Named
	for i := range 120 {
		name := fmt.Sprint("many ", i)
		claims = append(claims, backends.Named{Name: name, ID: p[0].get(name, writing).ID})
	}
	stays := p[0].get(claims[5].Name, reading)
	var lines [][]*pending
	for _, i := range []int{0, 5, 77, 119} {
		name := claims[i].Name
		lines = append(lines, []*pending{p[1].queue(name, reading), p[2].queue(name, reading), p[1].queue(name, writing)})
	}
	claims = append(claims, backends.Named{Name: "many 3", ID: "gone"}, claims[4])
	for range 2 { // a repetition changes nothing
		p[0].dropAll(claims)
	}
	for i, line := range lines {
		name := line[0].name
		for _, q := range line[:2] {
			q.p.drop(name, q.granted())
		}
		if i == 1 {
			line[2].waits()
			p[0].drop(name, stays)
		}
		line[2].p.drop(name, line[2].granted())
	}
	for _, c := range claims {
		e.empty(c.Name)
	}
}

func testSplit(e *env) {
	const name = "split"
	p := e.peers(3)
	c := p[0].get(name, lock(backends.Write, 0, 99))
	q := p[1].queue(name, lock(backends.Write, 40, 49))
	r := p[2].queue(name, lock(backends.Read, 39, 50))
	to := []backends.Keep{keep(backends.Write, 50, 99), keep(backends.Write, 0, 39)}
	parts := p[0].change(name, backends.Change{ID: c.ID, To: to})
	e.same(parts, c, to...)
	d := q.granted()
	r.waits()
	p[1].drop(name, d)
	e.entries(name, 3)
	r.waits()
	p[0].drop(name, parts[0])
	r.waits()
	less := p[0].change(name, backends.Change{ID: parts[1].ID, To: []backends.Keep{keep(backends.Write, 0, 38)}})
	e.same(less, c, keep(backends.Write, 0, 38))
	p[2].drop(name, r.granted())
	p[1].refused(name, lock(backends.Read, 38, 38))
	p[1].drop(name, p[1].get(name, lock(backends.Write, 39, backends.MaxByte)))
	p[0].drop(name, less...)
	e.empty(name)
}

func testDowngrade(e *env) {
	const name = "down"
	p := e.peers(4)
	c := p[0].get(name, writing)
	r1, w, r2 := p[1].queue(name, reading), p[2].queue(name, writing), p[3].queue(name, reading)
	e.same(p[0].change(name, backends.Change{ID: c.ID, To: []backends.Keep{{Lock: reading}}}), c, backends.Keep{Lock: reading})
	d := r1.granted() // a downgrade wakes the readers in front
	w.waits()
	r2.waits()
	p[1].drop(name, d)
	w.waits()
	e.must(p[0].Close(e.ctx()))
	p[2].drop(name, w.granted())
	p[3].drop(name, r2.granted())
	e.empty(name)
}

func testRelabel(e *env) {
	const name = "label"
	p := e.peers(2)
	c := p[0].get(name, writing)
	to := backends.Keep{Lock: writing, Hint: backends.ByCallOnWritable}
	got := p[0].change(name, backends.Change{ID: c.ID, To: []backends.Keep{to}})
	e.same(got, c, to)
	holders, err := p[1].Holders(e.ctx(), name, reading)
	e.must(err)
	if len(holders) != 1 || holders[0].Hint != backends.ByCallOnWritable || holders[0].ID != got[0].ID {
		e.Fatalf("after a relabel Holders = %+v", holders)
	}
	p[0].drop(name, got...)
	e.empty(name)
}

func testSeveralChanges(e *env) {
	const name = "several"
	p := e.peers(2)
	a := p[0].get(name, lock(backends.Write, 0, 9))
	b := p[0].get(name, lock(backends.Write, 10, 19))
	c := p[0].get(name, lock(backends.Read, 20, 29))
	q := p[1].queue(name, lock(backends.Write, 0, 29))
	got := p[0].change(name,
		backends.Change{ID: c.ID, To: []backends.Keep{keep(backends.Read, 25, 29), keep(backends.Read, 20, 21)}},
		backends.Change{ID: a.ID},
		backends.Change{ID: b.ID, To: []backends.Keep{keep(backends.Read, 12, 13)}})
	if len(got) != 3 {
		e.Fatalf("Change returned %+v", got)
	}
	e.same(got[:2], c, keep(backends.Read, 25, 29), keep(backends.Read, 20, 21))
	e.same(got[2:], b, keep(backends.Read, 12, 13))
	q.waits()
	p[0].drop(name, got[1], got[0])
	q.waits()
	p[0].drop(name, got[2])
	p[1].drop(name, q.granted())
	e.empty(name)
}

func testIdempotent(e *env) {
	const name = "gone"
	p := e.peers(2)
	a, b := p[0].get(name, reading), p[0].get(name, lock(backends.Read, 3, 4))
	other := p[1].get(name, reading)
	p[0].drop(name, a)
	all := []backends.Keep{{Lock: reading}}
	got := p[0].change(name, backends.Change{ID: a.ID, To: all}, backends.Change{ID: b.ID, To: []backends.Keep{keep(backends.Read, 3, 3)}},
		backends.Change{ID: "never was", To: all}, backends.Change{ID: other.ID, To: nil})
	e.same(got, b, keep(backends.Read, 3, 3))
	e.entries(name, 2) // nor has it touched the other session's claim, which has an ID that is its own at most within that session
	p[0].drop(name, got[0], got[0], a, b)
	if claims := p[0].change("a name that nobody has", backends.Change{ID: a.ID, To: all}); len(claims) != 0 {
		e.Fatalf("Change of nothing returned %+v", claims)
	}
	if claims := p[0].change(name); len(claims) != 0 {
		e.Fatalf("no changes returned %+v", claims)
	}
	p[1].drop(name, other)
	e.empty(name)
}

// testChangeCancelled: a release is never cancelled by the caller's signal.
func testChangeCancelled(e *env) {
	const name = "signal"
	p := e.peers(2)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for range 20 {
		c := p[0].get(name, writing)
		q := p[1].queue(name, writing)
		if _, err := p[0].Change(ctx, name, []backends.Change{{ID: c.ID}}); err != nil && !isCancelled(err) {
			e.Fatal(err)
		}
		p[1].drop(name, q.granted())
		e.empty(name)
	}
}
