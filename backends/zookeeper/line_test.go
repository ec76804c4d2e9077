package zookeeper

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"lockfs/backends"
)

func FuzzEscape(f *testing.F) {
	for _, s := range []string{"", ".", "..", "a/b", "n", "%2f", "\x00\xff", "Straße", "zookeeper"} {
		f.Add(s, s+"x")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		ea, eb := escape(a), escape(b)
		if (a == b) != (ea == eb) {
			t.Errorf("%q and %q are escaped as %q and %q", a, b, ea, eb)
		}
		if back, ok := unescape(ea); !ok || back != a {
			t.Errorf("%q comes back as %q, %v", a, back, ok)
		}
		for _, c := range []byte(ea) {
			if c <= ' ' || c >= 0x7f || c == '/' {
				t.Errorf("%q is escaped as %q", a, ea)
			}
		}
		// What is not escape's work is not accepted, so two znodes never have one name.
		if name, ok := unescape(b); ok && escape(name) != b {
			t.Errorf("%q is taken for %q", b, name)
		}
	})
}

func FuzzParseNode(f *testing.F) {
	f.Add("01_a_q_w_00___0000000001")
	f.Add("01_a_k_r1-2_12_r+w3-4_ff_-2147483648")
	f.Fuzz(func(t *testing.T, name string) {
		n, err := parseNode(name)
		if err != nil {
			return
		}
		m, err := parseNode(n.prefix() + "0000000007")
		if err != nil {
			t.Fatalf("%q is read as %+v, whose name %q is not read: %v", name, n, n.prefix(), err)
		}
		m.name, m.seq = n.name, n.seq
		if m.session != n.session || m.id != n.id || m.Lock != n.Lock || !slices.Equal(m.held, n.held) || m.token != n.token || m.kind != n.kind {
			t.Errorf("%+v became %+v", n, m)
		}
	})
}

// The claim of a marker may be the first of its line, with the number 0. Who waits has to see its end, whatever
// the order in which the server lists the two.
func TestMarkerBeforeItsClaim(t *testing.T) {
	claim := node{session: "a", id: "1", kind: waits, Lock: writing}
	marker := node{session: "a", id: markerID("1", time.Second), kind: delayed, Lock: writing}
	request := node{session: "b", id: "1", kind: waits, Lock: writing, seq: 2}
	for _, listed := range [][]node{{claim, marker, request}, {marker, claim, request}} {
		l := newLine(slices.Clone(listed))
		in, _ := l.inTheWay(2)
		if len(in) != 2 || l.nodes[in[1]].kind != waits {
			t.Errorf("listed as %v: the last in the way of the waiting request is at %v of %v, want the claim", listed, in, l.nodes)
		}
	}
}

// A claim that was relabelled stands at the end of the line. Who waits behind another one listens for that one's end all the same, so that a
// release wakes the first only.
func TestRelabelledClaimWakesTheFirst(t *testing.T) {
	l := newLine([]node{
		{session: "b", id: "1", kind: waits, Lock: writing, seq: 2},
		{session: "c", id: "1", kind: waits, Lock: writing, seq: 5},
		{session: "d", id: "1", kind: waits, Lock: writing, seq: 6},
		{session: "a", id: "2", kind: kept, Lock: writing, seq: 9, token: 1},
	})
	for _, c := range []struct {
		session string
		listens string // to whose end
	}{{"b", "a"}, {"c", "b"}, {"d", "c"}} {
		for i, n := range l.nodes {
			if n.session == c.session {
				if at := l.lastInTheWay(i); at < 0 || l.nodes[at].session != c.listens {
					t.Errorf("%s listens to %d of %v, want %s", c.session, at, l.nodes, c.listens)
				}
			}
		}
	}
}

// world is a line and what its sessions have been told, as the package comment tells it.
type world struct {
	rng  *rand.Rand
	line []node
	seq  int64
	told map[int64]bool // by seq: the claim was returned to its session
}

// TestGrantsStay drives lines at random, with sessions that look at different moments, and checks
// the invariant that all rests on: a claim that was returned is granted in every later
// line, and no two returned claims of different sessions conflict.
func TestGrantsStay(t *testing.T) {
	for round := range uint64(1500) {
		w := &world{rng: rand.New(rand.NewPCG(1, round)), told: map[int64]bool{}}
		for step := range 60 {
			w.step()
			if bad := w.check(); bad != "" {
				t.Fatalf("round %d, step %d: %s: %+v", round, step, bad, w.line)
			}
		}
	}
}

func (w *world) step() {
	switch n := w.rng.IntN(10); {
	case n < 4 && len(w.line) < 10:
		w.add(w.request())
	case n < 6 && len(w.line) > 0:
		w.remove(w.rng.IntN(len(w.line)))
	case n < 7 && len(w.line) > 0:
		w.shrink(w.rng.IntN(len(w.line)))
	default:
		w.look()
	}
}

func (w *world) add(n node) node {
	w.seq++
	n.seq = w.seq
	w.line = append(w.line, n)
	return n
}

func (w *world) remove(i int) {
	delete(w.told, w.line[i].seq)
	w.line = slices.Delete(w.line, i, i+1)
}

func (w *world) lock() backends.Lock {
	a, b := uint64(w.rng.IntN(6)), uint64(w.rng.IntN(6))
	return backends.Lock{Range: backends.Range{First: min(a, b), Last: max(a, b)}, Mode: backends.Read + backends.Mode(w.rng.IntN(2))}
}

func (w *world) request() node {
	n := node{session: string(rune('a' + w.rng.IntN(3))), id: "i", kind: waits, Lock: w.lock()}
	for _, m := range w.line {
		if m.session == n.session && w.rng.IntN(2) == 0 {
			n.held = append(n.held, m.Lock) // held, or dropped later, or never granted at all
		}
	}
	return n
}

// shrink is Change.
func (w *world) shrink(i int) {
	old := w.line[i]
	if !w.told[old.seq] {
		return
	}
	part := node{session: old.session, id: "k", kind: kept, Lock: old.Lock}
	part.First += uint64(w.rng.IntN(int(old.Last-old.First) + 1))
	if w.rng.IntN(2) == 0 {
		part.Mode = backends.Read
	}
	w.remove(i)
	w.told[w.add(part).seq] = true
}

// look is a session's round: it sees the line now, and what it does about it comes after others have done something.
func (w *world) look() {
	seen := newLine(slices.Clone(w.line))
	for range w.rng.IntN(6) { // what happens between the look and the transaction
		w.step()
	}
	if len(seen.nodes) == 0 {
		return
	}
	i := w.rng.IntN(len(seen.nodes))
	n := seen.nodes[i]
	at := slices.IndexFunc(w.line, func(m node) bool { return m.seq == n.seq })
	if at < 0 || w.told[n.seq] || !seen.state[i].Granted {
		return
	}
	if seen.firm[i] {
		w.told[n.seq] = true
		return
	}
	for j, m := range seen.nodes { // moveUp's checks
		if (j < i || seen.state[j].Granted) && !slices.ContainsFunc(w.line, func(x node) bool { return x.seq == m.seq }) {
			return
		}
	}
	w.remove(at)
	n.kind, n.held = kept, nil
	w.told[w.add(n).seq] = true
}

func (w *world) check() string {
	l := newLine(slices.Clone(w.line))
	for i, n := range l.nodes {
		if !w.told[n.seq] {
			continue
		}
		if !l.state[i].Granted {
			return "a claim that was returned is not granted any more"
		}
		for j, m := range l.nodes[:i] {
			if w.told[m.seq] && m.session != n.session && l.state[i].Conflicts(l.state[j].Lock) {
				return "two sessions have claims that conflict"
			}
		}
	}
	return ""
}
