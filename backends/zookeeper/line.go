package zookeeper

import (
	"cmp"
	"slices"

	"lockfs/backends/queue"
)

// line is the claims and requests of one name in their order, and what
// follows from it. It is a pure function of the names of the znodes, so all
// sessions that see the same znodes decide the same.
type line struct {
	nodes []node
	state queue.State // index by index the same entries; Granted is decided
	firm  []bool      // granted for good, see verdict
}

// newLine orders nodes and decides who is granted: what is of kind kept, and then from the front to the
// back whoever is not blocked (queue.State.Blocked).
//
// Unlike queue.Settle it does not take out entries that yield: they are in
// the way until their session has deleted them, for others may not see the
// reason any more when it does.
func newLine(nodes []node) *line {
	slices.SortFunc(nodes, inLine)
	l := &line{nodes: nodes, state: make(queue.State, len(nodes)), firm: make([]bool, len(nodes))}
	for i, n := range nodes {
		l.state[i] = n.entry()
		l.firm[i] = n.kind == kept || n.kind == delayed
	}
	for i := range l.state {
		if l.state[i].Granted || l.state.Blocked(i) {
			continue
		}
		l.state[i].Granted = true
		l.firm[i] = l.isFirm(i)
	}
	return l
}

// inLine compares two places in the line. Markers of lock delays come first, in the order of their names: they have
// no number of their own. The claim of one may be the first of its line and have the number 0 itself. It
// stands behind its marker then too, so that who waits for both watches the claim and learns of its end.
func inLine(a, b node) int {
	switch {
	case a.kind == delayed && b.kind == delayed:
		return cmp.Compare(a.name, b.name)
	case a.kind == delayed:
		return -1
	case b.kind == delayed:
		return 1
	}
	return cmp.Compare(a.seq, b.seq)
}

// isFirm reports whether nothing that can happen takes the grant of entry i
// back: nobody before it waits for its bytes (later arrivals come behind it, and
// who leaves only clears the way), and those of its own session before it are firm too.
// A grant that is not firm went ahead of somebody, see group.moveUp.
func (l *line) isFirm(i int) bool {
	for j := range i {
		if l.state[i].Conflicts(l.state[j].Lock) && !(l.state[j].Granted && l.firm[j]) {
			return false
		}
	}
	return true
}

// entries returns where the entries of a session are, by id: of two with the same id the first.
func (l *line) entries(session string) map[string]int {
	at := map[string]int{}
	for i := len(l.nodes) - 1; i >= 0; i-- {
		if l.nodes[i].session == session {
			at[l.nodes[i].id] = i
		}
	}
	return at
}

// inTheWay returns the entries of other sessions behind which the waiting
// entry i stands, first to last. i can't be granted before each of them has gone:
// who waits before it will be granted before it. solid: at least one is a claim or a request
// that stays, rather than one that is about to be taken back.
//
// It is empty where only requests of the own session are in the way; those
// wait for others themselves, and are decided in the same pass as i.
func (l *line) inTheWay(i int) (in []int, solid bool) {
	behind := l.behind(i)
	for j := range l.state {
		if !behind(j) {
			continue
		}
		solid = solid || l.state[j].Granted || l.nodes[j].kind == waits
		if l.state[j].Session != l.state[i].Session {
			in = append(in, j)
		}
	}
	return in, solid
}

// lastInTheWay returns which of inTheWay goes last, or -1: mostly the one just before i, however long the line is. A claim that was
// relabelled stands at the end of the line, and yet goes before all who wait.
func (l *line) lastInTheWay(i int) int {
	behind, claim := l.behind(i), -1
	for j := len(l.state) - 1; j >= 0; j-- {
		switch {
		case l.state[j].Session == l.state[i].Session || !behind(j):
		case !l.state[j].Granted:
			return j
		case claim < 0:
			claim = j
		}
	}
	return claim
}

// behind returns what reports whether the waiting entry i stands behind entry j.
func (l *line) behind(i int) func(j int) bool {
	x := &l.state[i]
	var ahead []bool // asked for when it matters
	return func(j int) bool {
		y := &l.state[j]
		if j == i || !y.Granted && j > i || y.Granted && y.Session == x.Session || !x.Conflicts(y.Lock) {
			return false
		}
		if y.Granted || len(x.Held) == 0 {
			return true
		}
		if ahead == nil {
			ahead = l.state.WaitingFor(i)
		}
		return !ahead[j]
	}
}

// deadlock reports whether entry i and one that waits before it wait for each other.
func (l *line) deadlock(i int) bool {
	if len(l.state[i].Held) == 0 {
		return false
	}
	before := slices.Clone(l.state[:i])
	return !before.Ask(l.state[i])
}

// inOrder reports whether nobody who came before entry i still waits.
func (l *line) inOrder(i int) bool {
	for j, y := range l.state {
		if !y.Granted && l.nodes[j].seq < l.nodes[i].seq {
			return false
		}
	}
	return true
}

// wanted reports whether a request of another session waits for what entry i has.
func (l *line) wanted(i int) bool {
	x := l.state[i]
	for j, y := range l.state {
		if !y.Granted && l.nodes[j].kind == waits && y.Session != x.Session && y.Conflicts(x.Lock) {
			return true
		}
	}
	return false
}

// followed reports whether a request of another session stands behind the waiting entry i, and for it.
func (l *line) followed(i int) bool {
	x := l.state[i]
	for j := len(l.state) - 1; j > i; j-- {
		if y := l.state[j]; l.nodes[j].kind == waits && y.Session != x.Session && y.Conflicts(x.Lock) {
			return true
		}
	}
	return false
}

// hintMatters reports whether a request of another session yields to the claim at i.
func (l *line) hintMatters(i int) bool {
	x := l.state[i]
	for _, y := range l.state {
		if !y.Granted && y.Session != x.Session && y.YieldTo > 0 && x.Hint >= y.YieldTo && y.Conflicts(x.Lock) {
			return true
		}
	}
	return false
}
