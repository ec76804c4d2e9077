// Package queue says who holds a name and who waits for whom: the rule that
// every back end follows, as a pure data structure without I/O.
//
// The state of a name is one list of entries in the order of their arrival,
// each a claim that is granted or waits. The engines that keep this list
// themselves use the package as it is; the Redis engine's Lua scripts follow
// it to the letter, and the conformance suite holds them to it.
//
// Invariant: two granted entries of different sessions never conflict.
package queue

import (
	"slices"

	"lockfs/backends"
)

// Entry is a claim, granted or waiting.
type Entry struct {
	ID      string
	Session string
	backends.Lock
	// Held are locks that the owner behind a waiting entry keeps meanwhile.
	Held    []backends.Lock
	Hint    backends.Hint
	YieldTo backends.Hint
	Granted bool
	// Token and Seq are set by the engine when it grants.
	Token, Seq uint64
}

// State is the entries of one name in the order of their arrival. The zero
// value is a name that nobody wants.
type State []Entry

// Find returns the index of the entry with this id, or -1.
func (s State) Find(id string) int {
	return slices.IndexFunc(s, func(e Entry) bool { return e.ID == id })
}

// Ask appends an entry; Settle then decides. It returns false, and changes
// nothing, where the entry's wait and that of one who waits already would be
// for each other.
func (s *State) Ask(e Entry) bool {
	e.Granted = false
	if len(e.Held) > 0 {
		all := append(slices.Clone(*s), e)
		last := len(all) - 1
		o := order{state: all}
		for i, waits := range o.waitingFor(last) {
			if waits && o.waitingFor(i)[last] {
				return false
			}
		}
	}
	*s = append(*s, e)
	return true
}

// order answers who waits for whom in a state that does not change meanwhile.
type order struct {
	state State
	known map[int][]bool // what ahead returned
}

// waitingFor says for each entry whether it waits for what the owner behind
// the waiting entry x keeps meanwhile (its Held): because it conflicts with
// that, or because it stands behind one that waits so and does not go ahead of
// it. It is all false where x.Held is empty, so nothing is computed for the
// entries of flock and open.
func (o *order) waitingFor(x int) []bool { return o.waiting(x, len(o.state)) }

// ahead is waitingFor for the entries before x: those that x goes ahead of.
func (o *order) ahead(x int) []bool {
	if waits, ok := o.known[x]; ok {
		return waits
	}
	waits := o.waiting(x, x)
	if o.known == nil {
		o.known = map[int][]bool{}
	}
	o.known[x] = waits
	return waits
}

// waiting is waitingFor for the first n entries.
func (o *order) waiting(x, n int) []bool {
	waits := make([]bool, n)
	held := o.state[x].Held
	for j := 0; j < n && len(held) > 0; j++ {
		y := o.state[j]
		if j != x && !y.Granted {
			waits[j] = slices.ContainsFunc(held, y.Conflicts) || o.behind(j, waits)
		}
	}
	return waits
}

// behind reports whether the waiting entry j stands behind one of these, and
// does not go ahead of it.
func (o *order) behind(j int, these []bool) bool {
	for k := range j {
		if these[k] && o.state[j].Conflicts(o.state[k].Lock) && !o.ahead(j)[k] {
			return true
		}
	}
	return false
}

// Blocked reports whether the waiting entry at index i has to wait: because
//
//   - another session's granted claim conflicts with it, or
//   - an entry that came before it and conflicts with it waits, of whatever
//     session. The exception is one who waits for a lock that this entry's
//     own owner keeps, or stands behind one who does: behind it this entry
//     would wait for ever.
func (s State) Blocked(i int) bool {
	x := s[i]
	for j, y := range s {
		if j != i && y.Granted && y.Session != x.Session && x.Conflicts(y.Lock) {
			return true
		}
	}
	return s.behindAnother(i)
}

// yields reports whether the waiting entry at index i gives up: because of
// the kind of a claim in its way, or, where it yields to all that is in use,
// because it stands behind one who waits.
func (s State) yields(i int) bool {
	x := s[i]
	if x.YieldTo == 0 {
		return false
	}
	if slices.ContainsFunc(s, func(y Entry) bool {
		return y.Granted && y.Session != x.Session && y.Hint >= x.YieldTo && x.Conflicts(y.Lock)
	}) {
		return true
	}
	return x.YieldTo == backends.ByOpen && s.behindAnother(i)
}

// behindAnother reports whether the waiting entry at index i stands behind one who waits.
func (s State) behindAnother(i int) bool {
	o := order{state: s}
	for j, y := range s[:i] {
		if !y.Granted && s[i].Conflicts(y.Lock) && !o.ahead(i)[j] {
			return true
		}
	}
	return false
}

// Settle grants what can be granted and takes out those that yield, in the
// order of the list. It returns copies of both; grant is called for each
// entry granted, to set Token and Seq, and may be nil.
func (s *State) Settle(grant func(*Entry)) (granted, yielded []Entry) {
	for i := range *s {
		if (*s)[i].Granted || s.Blocked(i) {
			continue
		}
		(*s)[i].Granted = true
		if grant != nil {
			grant(&(*s)[i])
		}
		granted = append(granted, (*s)[i])
	}
	for i := 0; i < len(*s); {
		if !(*s)[i].Granted && s.yields(i) {
			yielded = append(yielded, (*s)[i])
			*s = slices.Delete(*s, i, i+1)
			continue
		}
		i++
	}
	if len(yielded) == 0 {
		return granted, nil
	}
	// Who yields may have been in the way of others.
	more, yieldedToo := s.Settle(grant)
	return append(granted, more...), append(yielded, yieldedToo...)
}

// Drop takes out the entries with these ids, granted or waiting.
func (s *State) Drop(ids ...string) {
	*s = slices.DeleteFunc(*s, func(e Entry) bool { return slices.Contains(ids, e.ID) })
}

// DropSession takes out all entries of a session.
func (s *State) DropSession(session string) {
	*s = slices.DeleteFunc(*s, func(e Entry) bool { return e.Session == session })
}

// Replace puts smaller granted claims in the place of a granted one. They
// keep its token and stamp. It returns false where there is no such claim.
func (s *State) Replace(id string, ids []string, to []backends.Keep) bool {
	i := s.Find(id)
	if i < 0 || !(*s)[i].Granted {
		return false
	}
	old := (*s)[i]
	parts := make([]Entry, len(to))
	for k, keep := range to {
		parts[k] = Entry{ID: ids[k], Session: old.Session, Lock: keep.Lock, Hint: keep.Hint,
			Granted: true, Token: old.Token, Seq: old.Seq}
	}
	*s = slices.Replace(*s, i, i+1, parts...)
	return true
}

// Contended reports whether an entry of another session waits for something
// that conflicts with this lock of this session.
func (s State) Contended(session string, lock backends.Lock) bool {
	return slices.ContainsFunc(s, func(e Entry) bool {
		return !e.Granted && e.Session != session && e.Conflicts(lock)
	})
}

// InTheWay returns the sessions other than its own whose granted claims
// conflict with a waiting entry: those who are to be told that they are wanted.
func (s State) InTheWay(of Entry) []string {
	var sessions []string
	for _, e := range s {
		if e.Granted && e.Session != of.Session && e.Conflicts(of.Lock) && !slices.Contains(sessions, e.Session) {
			sessions = append(sessions, e.Session)
		}
	}
	return sessions
}
