package locks

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"lockfs/backends"
)

// model says byte by byte which owner has which mode, as plainly as can be.
type model map[uint64]map[Owner]backends.Mode

// apply gives the owner the mode on the bytes of the request.
func (m model) apply(r *Request) {
	for _, b := range inRange(r.Lock.Range) {
		if m[b] == nil {
			m[b] = map[Owner]backends.Mode{}
		}
		if r.Lock.Mode == backends.None {
			delete(m[b], r.Owner)
		} else {
			m[b][r.Owner] = r.Lock.Mode
		}
	}
}

// FuzzCore runs lock and unlock calls of five processes on a core and compares
// what is held with the model, byte by byte, after each; and that a waiter is
// granted exactly when nothing that the model knows is in its way.
func FuzzCore(f *testing.F) {
	for range 50 {
		seed := make([]byte, 400)
		for i := range seed {
			seed[i] = byte(rand.IntN(256))
		}
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, ops []byte) {
		var c core
		m := model{}
		var waiting []*waiter
		for len(ops) >= 4 {
			owner, mode, a, b := uint64(ops[0]%5), backends.Mode(ops[1]%3), universe[int(ops[2])%len(universe)], universe[int(ops[3])%len(universe)]
			ops = ops[4:]
			r := fcntl(owner, owner, backends.Lock{Range: backends.Range{First: min(a, b), Last: max(a, b)}, Mode: mode}, true)
			switch {
			case mode == backends.None:
				c.set(&r)
				m.apply(&r)
			case slices.ContainsFunc(waiting, func(w *waiter) bool { return w.Owner == r.Owner }):
				continue // a process waits for one thing at a time
			default:
				w := &waiter{Request: r, done: make(chan struct{})}
				c.queue = append(c.queue, w)
				waiting = append(waiting, w)
			}
			c.settle(nil)
			waiting = slices.DeleteFunc(waiting, func(w *waiter) bool {
				if w.decided() {
					m.apply(&w.Request)
				}
				return w.decided()
			})
			compare(t, &c, m)
			for _, w := range waiting {
				requireReason(t, &c, m, w)
			}
		}
	})
}

// compare checks that core and model agree and that nobody excludes another.
func compare(t *testing.T, c *core, m model) {
	t.Helper()
	got := model{}
	for _, h := range c.held {
		for _, b := range inRange(h.Range) {
			if _, twice := got[b][h.owner]; twice {
				t.Fatalf("byte %d is held twice by %v: %+v", b, h.owner, c.held)
			}
		}
		got.apply(&Request{Owner: h.owner, Lock: h.Lock})
	}
	for _, b := range universe {
		if fmt.Sprint(got[b]) != fmt.Sprint(m[b]) && len(got[b])+len(m[b]) > 0 {
			t.Fatalf("byte %d: held %v, the model says %v", b, got[b], m[b])
		}
		for owner, mode := range m[b] {
			if mode == backends.Write && len(m[b]) > 1 {
				t.Fatalf("byte %d: %v has a write lock beside others: %v", b, owner, m[b])
			}
		}
	}
	for _, need := range c.needs() {
		for _, b := range inRange(need.Range) {
			if len(m[b]) == 0 && !slices.ContainsFunc(c.queue, func(w *waiter) bool { return w.Lock.Range.Overlaps(backends.Range{First: b, Last: b}) }) {
				t.Fatalf("byte %d is needed by nobody: %+v", b, need)
			}
		}
	}
}

// requireReason checks that a waiter waits for a lock that another has, or for a waiter before it.
func requireReason(t *testing.T, c *core, m model, w *waiter) {
	t.Helper()
	for _, b := range inRange(w.Lock.Range) {
		for owner, mode := range m[b] {
			if owner != w.Owner && (mode == backends.Write || w.Lock.Mode == backends.Write) {
				return
			}
		}
	}
	for _, before := range c.queue[:slices.Index(c.queue, w)] {
		if before.collides(&w.Request) {
			return
		}
	}
	t.Fatalf("%+v waits for nothing; held %+v", w.Request, c.held)
}

// TestRanges checks the arithmetic of ranges against sets of bytes.
func TestRanges(t *testing.T) {
	for range 20000 {
		var locks []backends.Lock
		modes := map[uint64]backends.Mode{}
		for range rand.IntN(6) {
			l := backends.Lock{Range: anyRange(), Mode: anyMode()}
			locks = append(locks, l)
			for _, b := range inRange(l.Range) {
				modes[b] = max(modes[b], l.Mode)
			}
		}
		got := map[uint64]backends.Mode{}
		all := union(slices.Clone(locks))
		for i, l := range all {
			if i > 0 && (all[i-1].Last >= l.First || all[i-1].Last+1 == l.First && all[i-1].Mode == l.Mode) {
				t.Fatalf("union of %v overlaps or is not joined: %v", locks, all)
			}
			for _, b := range inRange(l.Range) {
				got[b] = l.Mode
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(modes) {
			t.Fatalf("union of %v is %v", locks, all)
		}
		want := backends.Lock{Range: anyRange(), Mode: anyMode()}
		missing := map[uint64]bool{}
		for _, l := range uncovered(locks, want) {
			for _, b := range inRange(l.Range) {
				missing[b] = true
			}
		}
		for _, b := range inRange(want.Range) {
			// A byte has a mode if one lock has it: modes are not added up.
			if missing[b] != (modes[b] < want.Mode) {
				t.Fatalf("%v: byte %d of %v: missing is %v", locks, b, want, missing[b])
			}
		}
	}
}

// TestTrim checks that what stays of the claims is at least what is needed,
// never more than there was, and nothing that is needed by nobody.
func TestTrim(t *testing.T) {
	for range 20000 {
		var c claims
		for i := range rand.IntN(4) {
			c.list = append(c.list, backends.Claim{ID: fmt.Sprint(i), Hint: backends.ByCall, Lock: backends.Lock{Range: anyRange(), Mode: anyMode()}})
		}
		before := slices.Clone(c.list)
		var needed []backends.Lock
		for _, claim := range c.list { // what owners can have is within the claims
			for range rand.IntN(3) {
				if part, ok := anyRange().Intersect(claim.Range); ok {
					needed = append(needed, backends.Lock{Range: part, Mode: min(claim.Mode, anyMode())})
				}
			}
		}
		needs := union(slices.Clone(needed))
		changes := c.trim(needs, func(backends.Range) (backends.Hint, bool) { return 0, false }, spareInUse)
		for _, ch := range changes {
			old := before[slices.IndexFunc(before, func(k backends.Claim) bool { return k.ID == ch.ID })]
			for _, keep := range ch.To {
				if keep.Mode > old.Mode || !old.Contains(keep.Range) {
					t.Fatalf("%v grows to %v", old.Lock, keep.Lock)
				}
			}
		}
		c.begin(changes)
		for _, need := range needs {
			if !c.have(need) {
				t.Fatalf("%v is needed, of %v there is left %v", needs, before, c.list)
			}
		}
		for _, claim := range c.list {
			if !covers(needs, claim.Lock) {
				t.Fatalf("%v is needed, but kept is %v", needs, claim.Lock)
			}
		}
	}
}
