package faults

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// This file holds the promise that a lock which nobody holds is never refused to a call that does not wait, anywhere in the
// cluster. Nobody means: nobody holds it, and nobody is in a call that could have got it, or that could have let it go. So of each
// lock call it asks how long it may have been in the way of others at the most: to the return of the unlock, which is visible
// everywhere then, whatever the node keeps idle; and where the end is not that sure (a close, a kill, an error) for as long as a lease and
// a little more, or until somebody else has got what it excludes.

// presence is a lock call with the time in which it may have been in the way of others.
type presence struct {
	Owner string
	Name  string
	Write bool
	// First and Last are its cells, both included.
	First, Last int
	From, To    int64
	// shrinks: from here on it asks for nothing more, so that it is gone when another has what it excludes; never: not known.
	shrinks int64
	// unsure: the end began at To, and takes its time.
	unsure bool
}

func (p *presence) String() string {
	return fmt.Sprintf("%s of %s on %s, cells %d to %d, from %d to %d", map[bool]string{false: "read", true: "write"}[p.Write], p.Owner, p.Name, p.First, p.Last, p.From, p.To)
}

// try is a lock call that did not wait, from its beginning to its return.
type try struct {
	presence
	errno int
}

// surely is how long an unlock may take that has not just given up waiting for the back end's answer.
const surely = 900 * time.Millisecond

// visit is an attempt while its record is read: what is in the way of others for its sake.
type visit struct {
	parts []presence
	try   try
	since int64 // the release began
}

func (v *visit) come(e event, owner string) {
	v.parts = append(v.parts, presence{Owner: fmt.Sprintf("%s#%d", owner, e.Attempt), Name: e.Name, Write: e.Write, First: e.First, Last: e.Last, From: e.At, shrinks: never})
}

// shrink notes that none of its parts asks for more.
func (v *visit) shrink(at int64) {
	for i := range v.parts {
		v.parts[i].shrinks = min(v.parts[i].shrinks, at)
	}
}

// leave returns the parts as they have ended.
func (v *visit) leave(at int64, unsure bool) []presence {
	all := v.parts
	for i := range all {
		all[i].To, all[i].unsure = at, unsure
	}
	v.parts = nil
	return all
}

// calls turns a record into presences, and the calls that did not wait.
func (r record) calls() (present []presence, tries []try) {
	var v visit
	for _, e := range r.events {
		switch e.Kind {
		case evOpens:
			v.come(e, r.owner)
		case evInvoke:
			v.shrink(e.At) // what an open before it has taken
			v.come(e, r.owner)
			v.try = try{presence: v.parts[len(v.parts)-1]}
		case evShut:
			present = append(present, v.leave(e.At, true)...)
		case evOK, evFail:
			if strings.TrimPrefix(e.How, opening) == trying {
				v.try.To, v.try.errno = e.At, e.Errno
				tries = append(tries, v.try)
			}
			v.shrink(e.At)
			if e.Kind == evFail {
				// Who is told that the lock is held has left nothing behind. Else the request may be on its way yet.
				refused := e.Errno == int(unix.EAGAIN)
				if !refused {
					v.shrinkNever()
				}
				present = append(present, v.leave(e.At, !refused)...)
			}
		case evRelease:
			v.since = e.At
		case evReleased:
			present = append(present, v.leave(e.At, e.How == closing || e.At-v.since > int64(surely))...)
		case evLost:
			present = append(present, v.leave(e.At, true)...)
		}
	}
	return append(present, v.leave(r.ended, true)...), tries
}

// shrinkNever: it may be granted yet.
func (v *visit) shrinkNever() {
	for i := range v.parts {
		v.parts[i].shrinks = never
	}
}

// outage is a time in which what has ended may stay longer than a lease: on one node, or everywhere.
type outage struct {
	node     string // "": all
	from, to int64
}

// outlast gives each presence whose end is not sure the time that its traces may stay: so long that no outage is in it.
func outlast(present []presence, stay time.Duration, outages []outage) {
	slices.SortFunc(outages, func(a, b outage) int { return cmp.Compare(a.from, b.from) })
	for i := range present {
		p := &present[i]
		if !p.unsure || p.To > math.MaxInt64-int64(stay) {
			continue
		}
		ended := p.To
		p.To += int64(stay)
		node, _, _ := strings.Cut(p.Owner, "/")
		for _, o := range outages {
			if (o.node == "" || o.node == node) && o.to >= ended && o.from <= p.To {
				p.To = max(p.To, o.to+int64(stay))
			}
		}
	}
}

// tried is what came of the calls that did not wait.
type tried struct {
	all int
	// free: nobody had or wanted the lock in all of the call; elsewhere: and the last who had it was on another node;
	// unavailable: such a call ended with another error, for the back end was out of reach.
	free, elsewhere, unavailable int
	wrong                        []string
}

// refusals looks for calls that were told that a lock was held, in whose whole time nobody had or wanted it.
func refusals(present []presence, tries []try, grants []grant) (sum tried) {
	byName := byCell(grants)
	all := map[string][]presence{}
	for _, p := range present {
		for cell := p.First; cell <= p.Last; cell++ {
			key := cellKey(p.Name, cell)
			one := p
			one.First, one.Last, one.To = cell, cell, min(p.To, p.replaced(byName[key]))
			all[key] = append(all[key], one)
		}
	}
	for i := range tries {
		t := &tries[i]
		sum.all++
		if slices.ContainsFunc(t.keys(), func(key string) bool { return slices.ContainsFunc(all[key], t.mayMeet) }) {
			continue
		}
		sum.free++
		switch before := t.before(byName); {
		case t.errno == int(unix.EAGAIN):
			sum.wrong = append(sum.wrong, fmt.Sprintf("a lock refused that nobody held: %v; before it:\n\t%v", t, before))
		case t.errno != 0:
			sum.unavailable++
		case before != nil && nodeOf(before.Owner) != nodeOf(t.Owner):
			sum.elsewhere++
		}
	}
	return sum
}

func cellKey(name string, cell int) string { return fmt.Sprintf("%s cell %d", name, cell) }

func nodeOf(owner string) string {
	node, _, _ := strings.Cut(owner, "/")
	return node
}

// keys are those of its cells.
func (p *presence) keys() (all []string) {
	for cell := p.First; cell <= p.Last; cell++ {
		all = append(all, cellKey(p.Name, cell))
	}
	return all
}

// excludes reports whether two owners can't both have the cell that they share.
func (p *presence) excludes(owner string, write bool) bool {
	return p.Owner != owner && (p.Write || write)
}

// replaced is when somebody else was first seen with what a presence excludes, after it asked for no more. list is its cell's.
func (p *presence) replaced(list []grant) int64 {
	if p.shrinks == never {
		return never
	}
	i := sort.Search(len(list), func(i int) bool { return list[i].From > p.shrinks })
	for _, g := range list[i:] {
		if p.excludes(g.Owner, g.Write) {
			return g.From
		}
	}
	return never
}

// mayMeet reports whether a presence may have been in the way of the try at some time in it.
func (t *try) mayMeet(p presence) bool {
	return t.excludes(p.Owner, p.Write) && p.From <= t.To && p.To >= t.From
}

// before is the last grant before the try that it excludes, or nil.
func (t *try) before(cells map[string][]grant) (last *grant) {
	for _, key := range t.keys() {
		list := cells[key]
		for i := sort.Search(len(list), func(i int) bool { return list[i].From > t.From }) - 1; i >= 0; i-- {
			if g := &list[i]; t.excludes(g.Owner, g.Write) {
				if last == nil || g.From > last.From {
					last = g
				}
				break
			}
		}
	}
	return last
}

// keptOn counts the grants for which the node did not ask the back end: under the claim of the one before it.
func keptOn(all []grant) (n int) {
	const tokensOfClaim = 1 << 12 // docs/design.md, 'Tokens'
	claims := map[string]bool{}
	for _, g := range all {
		key := fmt.Sprint(nodeOf(g.Owner), " ", g.Name, " ", g.Token/tokensOfClaim)
		if g.Token != 0 && claims[key] {
			n++
		}
		claims[key] = true
	}
	return n
}
