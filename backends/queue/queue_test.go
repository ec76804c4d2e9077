package queue

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"lockfs/backends"
)

// A state is written as one line: "A r0-9! B w0-9 C r5 ^ …": session, mode,
// range, and
//
//	!      granted
//	^      the owner keeps a read lock on the same bytes meanwhile (an upgrade)
//	^r3-4  the owner keeps this
//	#2     its hint
//	?2     it yields to this hint
func parse(t *testing.T, text string) State {
	t.Helper()
	var st State
	fields := strings.Fields(text)
	for i := 0; i < len(fields); i += 2 {
		st = append(st, parseEntry(t, fmt.Sprint(len(st)), fields[i], fields[i+1]))
	}
	return st
}

func parseEntry(t *testing.T, id, session, text string) Entry {
	t.Helper()
	e := Entry{ID: id, Session: session}
	cut := strings.IndexAny(text, "!^#?")
	lock, marks := text, ""
	if cut >= 0 {
		lock, marks = text[:cut], text[cut:]
	}
	e.Lock = parseLock(t, lock)
	for marks != "" {
		mark := marks[0]
		next := strings.IndexAny(marks[1:], "!^#?") + 1
		if next == 0 {
			next = len(marks)
		}
		value := marks[1:next]
		marks = marks[next:]
		switch mark {
		case '!':
			e.Granted = true
		case '^':
			held := backends.Lock{Range: e.Range, Mode: backends.Read}
			if value != "" {
				held = parseLock(t, value)
			}
			e.Held = append(e.Held, held)
		case '#':
			e.Hint = backends.Hint(value[0] - '0')
		case '?':
			e.YieldTo = backends.Hint(value[0] - '0')
		}
	}
	return e
}

func parseLock(t *testing.T, text string) backends.Lock {
	t.Helper()
	var l backends.Lock
	first, last, isRange := strings.Cut(text[1:], "-")
	if !isRange {
		last = first
	}
	if _, err := fmt.Sscan(first+" "+last, &l.First, &l.Last); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	l.Mode = map[byte]backends.Mode{'r': backends.Read, 'w': backends.Write}[text[0]]
	return l
}

// show writes a state as parse reads it, without what a granted entry no longer needs.
func show(st State) string {
	var words []string
	for _, e := range st {
		mark := ""
		if e.Granted {
			mark = "!"
		}
		words = append(words, fmt.Sprintf("%s %c%d-%d%s", e.Session, e.Mode.String()[0], e.First, e.Last, mark))
	}
	return strings.Join(words, " ")
}

func TestSettle(t *testing.T) {
	for _, row := range []struct{ why, before, after string }{
		{"nobody is in the way", "A w0-9", "A w0-9!"},
		{"another session holds", "A w0-9! B r9", "A w0-9! B r9-9"},
		{"next to each other", "A w0-9! B w10-19", "A w0-9! B w10-19!"},
		{"the last byte there is", "A w5-9223372036854775807! B r9223372036854775807 B w0-4", "A w5-9223372036854775807! B r9223372036854775807-9223372036854775807 B w0-4!"},
		{"readers share", "A r0-9! B r0-9", "A r0-9! B r0-9!"},
		{"never against oneself", "A w0-9! A w0-9", "A w0-9! A w0-9!"},
		{"readers next to each other go in together", "A r0 B r0 C w0 D r0", "A r0-0! B r0-0! C w0-0 D r0-0"},
		{"nobody overtakes a writer who waits", "A r0! B w0 C r0", "A r0-0! B w0-0 C r0-0"},
		{"not even a session that holds", "A r0! B w0 A r0", "A r0-0! B w0-0 A r0-0"},
		{"not even of the same session", "A w0! B w0 B w0", "A w0-0! B w0-0 B w0-0"},
		{"who waits is in the way on all its bytes", "A w0-4! B w4-9 C r9", "A w0-4! B w4-9 C r9-9"},
		{"and on no other", "A w0-4! B w4-9 C r10", "A w0-4! B w4-9 C r10-10!"},
		{"one after another of a session", "B w0 B r0 C r0", "B w0-0! B r0-0! C r0-0"},
		{"an upgrade goes ahead of who waits for it", "A r0! B w0 A w0^", "A r0-0! B w0-0 A w0-0!"},
		{"but waits for other readers", "A r0! C r0! B w0 A w0^", "A r0-0! C r0-0! B w0-0 A w0-0"},
		{"and goes ahead of nobody else", "A r0! C w1! B w1 A w0-1^r0", "A r0-0! C w1-1! B w1-1 A w0-1"},
		{"but of who stands behind one whom it goes ahead of", "A r0! B w0-1 C r1 A w0-1^r0", "A r0-0! B w0-1 C r1-1 A w0-1!"},
		{"yields to a hint that is great enough", "A w0!#2 B w0?2", "A w0-0!"},
		{"not to a smaller one", "A w0!#1 B w0?2", "A w0-0! B w0-0"},
		{"not on other bytes", "A w0!#2 C w1! B w1?2", "A w0-0! C w1-1! B w1-1"},
		{"not to itself", "A w0!#2 A w0?1", "A w0-0! A w0-0!"},
		{"who yields is out of the way", "A r0!#1 B w0?1 C r0", "A r0-0! C r0-0!"},
		{"and who is let in by that makes others yield", "A r0-1!#1 B w0-1?1 C r0#2 D w0?2", "A r0-1! C r0-0!"},
		{"a new holder makes others yield", "A w0#2 B w0?2", "A w0-0!"},
	} {
		t.Run(row.why, func(t *testing.T) {
			st := parse(t, row.before)
			want := map[string]bool{}
			granted, yielded := st.Settle(func(e *Entry) { want[e.ID] = true; e.Token = 7 })
			if got := show(st); got != row.after {
				t.Errorf("%s\nbecame %s\nwant   %s", row.before, got, row.after)
			}
			for _, e := range granted {
				if !want[e.ID] || e.Token != 7 || !st[st.Find(e.ID)].Granted {
					t.Errorf("granted has %+v, which grant was not called for, or which is not in the state", e)
				}
			}
			if len(granted) != len(want) || len(yielded)+len(st) != len(parse(t, row.before)) {
				t.Errorf("granted %d of %d, yielded %d, left %d", len(granted), len(want), len(yielded), len(st))
			}
			if g, y := st.Settle(nil); len(g)+len(y) != 0 {
				t.Errorf("settling again grants %v and takes out %v", g, y)
			}
		})
	}
}

func TestAsk(t *testing.T) {
	for _, row := range []struct {
		why, state, session, entry string
		ok                         bool
	}{
		{"the second upgrade", "A r0! B r0! A w0^", "B", "w0^", false},
		{"of the same session too", "A r0! A r0! A w0^", "A", "w0^", false},
		{"on other bytes", "A r0! B r1! C r0-1! A w0^", "B", "w1^", true},
		{"who keeps nothing", "A r0! B r0! A w0^", "B", "w0", true},
		{"crosswise", "A w0! B w1! A w1^w0", "B", "w0^w1", false},
		{"one way only", "A w0! B w1! A w1^w0", "B", "w2^w1", true},
		{"through one who stands between", "A r0! B r1! C w0-1 A w1^r0", "B", "w0^r1", false},
		{"one who has been granted no longer waits", "A r0! B r0! A w0!^", "B", "w0^", true},
	} {
		t.Run(row.why, func(t *testing.T) {
			st := parse(t, row.state)
			before := slices.Clone(st)
			e := parseEntry(t, "new", row.session, row.entry)
			if ok := st.Ask(e); ok != row.ok {
				t.Errorf("Ask(%s %s) of %s is %v", row.session, row.entry, row.state, ok)
			}
			switch {
			case !row.ok && show(st) != show(before):
				t.Errorf("a refused Ask changed the state to %s", show(st))
			case row.ok && (len(st) != len(before)+1 || st[len(st)-1].ID != "new" || st[len(st)-1].Granted):
				t.Errorf("Ask left %s", show(st))
			}
		})
	}
}

func TestDropAndReplace(t *testing.T) {
	st := parse(t, "A w0-9! B w0 A r3 C r5")
	st[0].Token, st[0].Seq = 11, 12
	keep := []backends.Keep{{Lock: parseLock(t, "r0-1"), Hint: 2}, {Lock: parseLock(t, "w4")}}
	if st.Replace("1", []string{"x", "y"}, keep) || st.Replace("nobody", nil, nil) {
		t.Error("Replace of an entry that waits or is not there")
	}
	if !st.Replace("0", []string{"x", "y"}, keep) || show(st) != "A r0-1! A w4-4! B w0-0 A r3-3 C r5-5" {
		t.Fatalf("Replace left %s", show(st))
	}
	for _, e := range st[:2] {
		if e.Token != 11 || e.Seq != 12 {
			t.Errorf("Replace lost the token: %+v", e)
		}
	}
	if st[0].ID != "x" || st[0].Hint != 2 || st[1].ID != "y" || st[1].Hint != 0 {
		t.Errorf("Replace left %+v", st[:2])
	}
	st.Drop("x", "1", "nobody")
	if show(st) != "A w4-4! A r3-3 C r5-5" {
		t.Errorf("Drop left %s", show(st))
	}
	st.DropSession("A")
	if show(st) != "C r5-5" {
		t.Errorf("DropSession left %s", show(st))
	}
}

func TestWhoIsWanted(t *testing.T) {
	st := parse(t, "A r0-4! B r3-9! C w20! A w0 B r5 D w4-5")
	if got := st.InTheWay(st[5]); !slices.Equal(got, []string{"A", "B"}) {
		t.Errorf("in D's way are %v", got)
	}
	if got := st.InTheWay(st[3]); len(got) != 0 {
		t.Errorf("in A's way are %v", got)
	}
	for text, want := range map[string]bool{"r4": true, "r6": false, "w20": false, "r0": true} {
		if got := st.Contended("E", parseLock(t, text)); got != want {
			t.Errorf("Contended(%s) is %v", text, got)
		}
	}
	if st.Contended("A", parseLock(t, "r0")) {
		t.Error("a session's own request makes its claim contended")
	}
}

// TestManyEntries: the rule stays cheap with a queue full of upgrades, which is its worst case.
func TestManyEntries(t *testing.T) {
	var st State
	const n = 120
	for i := range n {
		st = append(st, parseEntry(t, fmt.Sprint("h", i), fmt.Sprint("S", i), fmt.Sprintf("r%d!", i)))
	}
	for i := range n { // all wait for byte 1000, each keeps a byte of its own
		e := parseEntry(t, fmt.Sprint("u", i), fmt.Sprint("S", i), fmt.Sprintf("w%d-1000^r%d", i, i))
		st.Ask(e) // those that would deadlock are refused, which is as costly
		st.Settle(nil)
	}
	if len(st) <= n {
		t.Error("nobody waits")
	}
}
