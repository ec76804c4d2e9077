package queue

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"lockfs/backends"
)

// The model says the rule again in other words and another way: byte by byte
// on a universe of 8, by definition and without any cleverness.

const universe = 8

type modelEntry struct {
	id, session string
	bytes       [universe]backends.Mode
	held        [universe]backends.Mode
	hint, yield backends.Hint
	granted     bool
}

type model []*modelEntry

func fill(into *[universe]backends.Mode, l backends.Lock) {
	for b := l.First; b <= l.Last; b++ {
		into[b] = max(into[b], l.Mode)
	}
}

func newModelEntry(e Entry) *modelEntry {
	m := &modelEntry{id: e.ID, session: e.Session, hint: e.Hint, yield: e.YieldTo}
	fill(&m.bytes, e.Lock)
	for _, l := range e.Held {
		fill(&m.held, l)
	}
	return m
}

func clash(a, b [universe]backends.Mode) bool {
	for i := range universe {
		if a[i] != backends.None && b[i] != backends.None && (a[i] == backends.Write || b[i] == backends.Write) {
			return true
		}
	}
	return false
}

// waitsForOwner: y can't go on before the owner behind x lets go of what it
// keeps: because of that itself, or because of one before y that can't, unless y passes that one.
func (m model) waitsForOwner(y, x int) bool {
	if m[y].granted || y == x {
		return false
	}
	if clash(m[y].bytes, m[x].held) {
		return true
	}
	for k := range y {
		if m.waitsForOwner(k, x) && clash(m[y].bytes, m[k].bytes) && !m.waitsForOwner(k, y) {
			return true
		}
	}
	return false
}

func (m model) mayGoIn(i int) bool {
	for j := range m {
		switch {
		case j == i || !clash(m[i].bytes, m[j].bytes):
		case m[j].granted && m[j].session != m[i].session:
			return false
		case !m[j].granted && j < i && !m.waitsForOwner(j, i):
			return false
		}
	}
	return true
}

func (m model) yieldsTo(i int) bool {
	if m[i].yield > 0 && slices.ContainsFunc(m, func(h *modelEntry) bool {
		return h.granted && h.session != m[i].session && h.hint >= m[i].yield && clash(h.bytes, m[i].bytes)
	}) {
		return true
	}
	for j := range i {
		if m[i].yield == backends.ByOpen && !m[j].granted && clash(m[i].bytes, m[j].bytes) && !m.waitsForOwner(j, i) {
			return true
		}
	}
	return false
}

// settle lets in one after the other, and when nobody more can come in takes
// out one who yields, until neither is possible.
func (m *model) settle() {
	for {
		i := slices.IndexFunc(*m, func(e *modelEntry) bool { return !e.granted && m.mayGoIn(slices.Index(*m, e)) })
		if i >= 0 {
			(*m)[i].granted = true
			continue
		}
		before := len(*m)
		for i := 0; i < len(*m); {
			if !(*m)[i].granted && m.yieldsTo(i) {
				*m = slices.Delete(*m, i, i+1)
			} else {
				i++
			}
		}
		if len(*m) == before {
			return
		}
	}
}

func (m *model) ask(e Entry) bool {
	next := append(slices.Clone(*m), newModelEntry(e))
	last := len(next) - 1
	for i := range last {
		if next.waitsForOwner(i, last) && next.waitsForOwner(last, i) {
			return false
		}
	}
	*m = next
	return true
}

func (m *model) drop(id string) {
	*m = slices.DeleteFunc(*m, func(e *modelEntry) bool { return e.id == id })
}

// driver makes the same changes to a State and to the model. Its choices come from choose.
type driver struct {
	t      testing.TB
	choose func(n int) int
	st     State
	m      model
	ids    int
	trace  []string
}

func (d *driver) fail(format string, args ...any) {
	d.t.Helper()
	for _, line := range d.trace {
		d.t.Log(line)
	}
	d.t.Fatalf(format, args...)
}

func (d *driver) id() string {
	d.ids++
	return fmt.Sprint(d.ids)
}

func (d *driver) lock() backends.Lock {
	a, b := uint64(d.choose(universe)), uint64(d.choose(universe))
	return backends.Lock{Range: backends.Range{First: min(a, b), Last: max(a, b)}, Mode: backends.Read + backends.Mode(d.choose(2))}
}

func (d *driver) step() {
	switch n := d.choose(8); {
	case n < 4 && len(d.st) < 10:
		d.ask()
	case len(d.st) > 0:
		e := d.st[d.choose(len(d.st))]
		if n < 6 && e.Granted {
			d.replace(e)
			break
		}
		d.trace = append(d.trace, "drop "+e.ID)
		d.st.Drop(e.ID)
		d.m.drop(e.ID)
	}
	d.settle()
}

func (d *driver) ask() {
	e := Entry{ID: d.id(), Session: string(rune('A' + d.choose(3))), Lock: d.lock(), Hint: backends.Hint(d.choose(4))}
	if d.choose(4) == 0 {
		e.YieldTo = backends.Hint(1 + d.choose(3))
	}
	if d.choose(3) == 0 {
		for _, h := range d.st {
			if h.Granted && h.Session == e.Session && d.choose(2) == 0 {
				e.Held = append(e.Held, h.Lock)
			}
		}
	}
	d.trace = append(d.trace, fmt.Sprintf("ask %+v", e))
	was := show(d.st)
	got, want := d.st.Ask(e), d.m.ask(e)
	if got != want {
		d.fail("Ask says %v, the model %v", got, want)
	}
	if !got && show(d.st) != was {
		d.fail("a refused Ask changed the state")
	}
}

func (d *driver) replace(e Entry) {
	d.trace = append(d.trace, "replace "+e.ID)
	var to []backends.Keep
	var ids []string
	parts := model{}
	for range d.choose(3) {
		l := backends.Lock{Range: e.Range, Mode: min(e.Mode, backends.Read+backends.Mode(d.choose(2)))}
		l.First += uint64(d.choose(int(l.Last - l.First + 1)))
		l.Last -= uint64(d.choose(int(l.Last - l.First + 1)))
		hint := backends.Hint(d.choose(4))
		to, ids = append(to, backends.Keep{Lock: l, Hint: hint}), append(ids, d.id())
		part := newModelEntry(Entry{ID: ids[len(ids)-1], Session: e.Session, Lock: l, Hint: hint})
		part.granted = true
		parts = append(parts, part)
	}
	if !d.st.Replace(e.ID, ids, to) {
		d.fail("Replace(%s) says that it is not there", e.ID)
	}
	i := slices.IndexFunc(d.m, func(o *modelEntry) bool { return o.id == e.ID })
	d.m = slices.Replace(d.m, i, i+1, parts...)
}

func (d *driver) settle() {
	waited := map[string]bool{}
	for _, e := range d.st {
		waited[e.ID] = !e.Granted
	}
	granted, yielded := d.st.Settle(nil)
	d.m.settle()
	if len(d.st) != len(d.m) {
		d.fail("%d entries, the model has %d", len(d.st), len(d.m))
	}
	for i, e := range d.st {
		if e.ID != d.m[i].id || e.Granted != d.m[i].granted {
			d.fail("entry %d is %s granted %v, in the model %s %v", i, e.ID, e.Granted, d.m[i].id, d.m[i].granted)
		}
	}
	for _, e := range slices.Concat(granted, yielded) {
		if !waited[e.ID] {
			d.fail("%s was decided and did not wait", e.ID)
		}
	}
	d.inOrder(granted)
	d.invariants()
	if g, y := d.st.Settle(nil); len(g)+len(y) > 0 {
		d.fail("settling again grants %v and takes out %v", g, y)
	}
}

// inOrder checks that who keeps nothing has overtaken nobody.
func (d *driver) inOrder(granted []Entry) {
	for _, g := range granted {
		for _, before := range d.st[:max(0, d.st.Find(g.ID))] {
			if len(g.Held) == 0 && !before.Granted && before.Conflicts(g.Lock) {
				d.fail("%s was let in before %s", g.ID, before.ID)
			}
		}
	}
}

// invariants checks, byte by byte, that nobody shares who must not.
func (d *driver) invariants() {
	for b := range universe {
		for _, x := range d.m {
			for _, y := range d.m {
				if x.granted && y.granted && x.session != y.session && x.bytes[b] == backends.Write && y.bytes[b] != backends.None {
					d.fail("%s and %s both have byte %d", x.id, y.id, b)
				}
			}
		}
	}
}

func TestAgainstModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for round := range 1500 {
		rng := rand.New(rand.NewPCG(seed, uint64(round)))
		d := &driver{t: t, choose: rng.IntN}
		for range 60 {
			d.step()
		}
	}
}

// FuzzAgainstModel is the same with choices made by the fuzzer.
func FuzzAgainstModel(f *testing.F) {
	f.Add([]byte("0000111122223333444455556666777788889999"))
	f.Fuzz(func(t *testing.T, choices []byte) {
		d := &driver{t: t}
		d.choose = func(n int) int {
			if len(choices) == 0 {
				return 0
			}
			c := int(choices[0])
			choices = choices[1:]
			return c % n
		}
		for range 60 {
			if len(choices) == 0 {
				return
			}
			d.step()
		}
	})
}

// TestNobodyWaitsForEver: with requests of flock's kind and upgrades of whole
// read locks, everybody comes in if everybody who is in and does not wait lets go some time.
func TestNobodyWaitsForEver(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for round := range 1500 {
		rng := rand.New(rand.NewPCG(seed, uint64(round)))
		var st State
		for id := range 14 {
			st.Settle(nil)
			e := Entry{ID: fmt.Sprint(id), Session: string(rune('A' + rng.IntN(4)))}
			a, b := uint64(rng.IntN(universe)), uint64(rng.IntN(universe))
			e.Lock = backends.Lock{Range: backends.Range{First: min(a, b), Last: max(a, b)}, Mode: backends.Read + backends.Mode(rng.IntN(2))}
			if i := rng.IntN(len(st) + 1); i < len(st) && st[i].Granted && st[i].Mode == backends.Read && !kept(st, st[i]) {
				e.Session, e.Range, e.Mode, e.Held = st[i].Session, st[i].Range, backends.Write, []backends.Lock{st[i].Lock}
			}
			st.Ask(e) // one that is refused is not there
		}
		for st.Settle(nil); len(st) > 0; st.Settle(nil) {
			i := slices.IndexFunc(st, func(e Entry) bool { return e.Granted && !kept(st, e) })
			if i < 0 {
				t.Fatalf("round %d: nobody who is in could let go: %s", round, show(st))
			}
			st.Drop(st[i].ID)
		}
	}
}

// kept reports whether the owner of a claim waits for an upgrade of it.
func kept(st State, claim Entry) bool {
	return slices.ContainsFunc(st, func(e Entry) bool {
		return !e.Granted && e.Session == claim.Session && slices.Contains(e.Held, claim.Lock)
	})
}

func BenchmarkUncontended(b *testing.B) {
	whole := backends.Lock{Range: backends.Whole, Mode: backends.Write}
	for b.Loop() {
		var st State
		st.Ask(Entry{ID: "a", Session: "A", Lock: whole})
		st.Settle(nil)
		st.Drop("a")
	}
}

func BenchmarkHandOver100(b *testing.B) {
	var st State
	for i := range 100 {
		st.Ask(Entry{ID: fmt.Sprint(i), Session: fmt.Sprint(i % 4), Lock: backends.Lock{Range: backends.Whole, Mode: backends.Write}})
	}
	for i := 100; b.Loop(); i++ {
		st.Drop(st[0].ID)
		st.Settle(nil)
		st.Ask(Entry{ID: fmt.Sprint(i), Session: fmt.Sprint(i % 4), Lock: backends.Lock{Range: backends.Whole, Mode: backends.Write}})
	}
}
