package faults

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// byCell sorts the grants of each cell of each name by the time when their owners knew of them. Each cell is a lock of its own:
// what is right of the ranges as a whole is right of each, and two ranges that overlap meet in a cell.
func byCell(all []grant) map[string][]grant {
	cells := map[string][]grant{}
	for _, g := range all {
		for cell := g.First; cell <= g.Last; cell++ {
			key := cellKey(g.Name, cell)
			cells[key] = append(cells[key], g)
		}
	}
	for _, list := range cells {
		slices.SortFunc(list, func(a, b grant) int { return int(min(max(a.From-b.From, -1), 1)) })
	}
	return cells
}

// check returns what is wrong with a history.
func check(all []grant) []string {
	wrong := repeated(all)
	for cell, list := range byCell(all) {
		wrong = append(wrong, overlaps(list)...)
		wrong = append(wrong, tokens(list)...)
		if s := linearizable(cell, list); s != "" {
			wrong = append(wrong, s)
		}
	}
	slices.Sort(wrong) // what is wrong in several cells is said once
	return slices.Compact(wrong)
}

// repeated: no two writers of a name have the same token, whatever bytes they have.
func repeated(all []grant) (wrong []string) {
	type token struct {
		name string
		n    uint64
	}
	writers := map[token]grant{}
	for _, g := range all {
		if !g.Write || g.Token == 0 {
			continue
		}
		if before, ok := writers[token{g.Name, g.Token}]; ok {
			wrong = append(wrong, fmt.Sprintf("a token that is repeated:\n\t%v\n\t%v", before, g))
		}
		writers[token{g.Name, g.Token}] = g
	}
	return wrong
}

// furthest keeps the grant that has most of something, of all and of the writers.
type furthest struct{ any, writer *grant }

func (f *furthest) add(g *grant, of func(*grant) int64) {
	if f.any == nil || of(g) > of(f.any) {
		f.any = g
	}
	if g.Write && (f.writer == nil || of(g) > of(f.writer)) {
		f.writer = g
	}
}

// against is the one that counts for g, or nil.
func (f *furthest) against(g *grant) *grant {
	if g.Write {
		return f.any
	}
	return f.writer
}

// overlaps: no writer is inside with anybody else.
func overlaps(list []grant) (wrong []string) {
	var last furthest
	for i := range list {
		g := &list[i]
		if before := last.against(g); before != nil && g.From <= before.To {
			wrong = append(wrong, fmt.Sprintf("two holders for %v:\n\t%v\n\t%v", time.Duration(min(before.To, g.To)-g.From), *before, *g))
		}
		last.add(g, func(g *grant) int64 { return g.To })
	}
	return wrong
}

// tokens: each is greater than those before it that it excludes, on the same node too.
func tokens(list []grant) (wrong []string) {
	var greatest furthest
	for i := range list {
		g := &list[i]
		if g.Token == 0 {
			continue // it was gone before it could ask
		}
		if before := greatest.against(g); before != nil && g.Token <= before.Token {
			wrong = append(wrong, fmt.Sprintf("a token that is not greater:\n\t%v\n\t%v", *before, *g))
		}
		greatest.add(g, func(g *grant) int64 { return int64(g.Token) })
	}
	return wrong
}

// operation is what the model is asked: a grant, or its release.
type operation struct {
	owner   string
	write   bool
	release bool
	token   uint64
}

// lockState is the model's state: who holds, and the greatest tokens given out.
type lockState struct {
	writer  string
	readers string // "owner,owner,", sorted
	token   uint64
	written uint64 // of write locks alone
}

// readWriteLock is the model: what one lock without any fault does. A lease makes no
// difference to it but this: the release of who lost a lock may take effect at any time from the loss on.
var readWriteLock = porcupine.Model{
	Init: func() any { return lockState{} },
	Step: func(state, input, _ any) (bool, any) { return state.(lockState).step(input.(operation)) },
	DescribeOperation: func(input, _ any) string {
		return fmt.Sprintf("%+v", input)
	},
}

func (s lockState) step(o operation) (bool, any) {
	switch {
	case o.release && o.write:
		ok := s.writer == o.owner
		s.writer = ""
		return ok, s
	case o.release:
		before := s.readers
		s.readers = strings.Replace(","+s.readers, ","+o.owner+",", ",", 1)[1:]
		return s.readers != before, s
	case s.writer != "" || o.write && s.readers != "":
		return false, s
	case o.token != 0 && (o.token <= s.written || o.write && o.token <= s.token):
		return false, s
	}
	s.token = max(s.token, o.token)
	if o.write {
		s.writer, s.written = o.owner, max(s.written, o.token)
		return true, s
	}
	owners := append(strings.Split(strings.TrimSuffix(s.readers, ","), ","), o.owner)
	slices.Sort(owners)
	s.readers = strings.TrimPrefix(strings.Join(owners, ",")+",", ",")
	return true, s
}

// decideWithin bounds the search. A history that is right is decided in a moment.
const decideWithin = 30 * time.Second

// linearizable says what is wrong with a name's history, if anything.
func linearizable(name string, list []grant) string {
	var ops []porcupine.Operation
	for i, g := range list {
		o := operation{owner: g.Owner, write: g.Write, token: g.Token}
		ops = append(ops, porcupine.Operation{ClientId: 2 * i, Input: o, Call: g.Invoked, Return: g.From})
		o.release = true
		// At To it held still.
		ops = append(ops, porcupine.Operation{ClientId: 2*i + 1, Input: o, Call: g.To + 1, Return: max(g.Gone, g.To+1)})
	}
	switch result := porcupine.CheckOperationsTimeout(readWriteLock, ops, decideWithin); result {
	case porcupine.Ok:
		return ""
	case porcupine.Unknown:
		return fmt.Sprintf("%s: no order of %d grants was found within %v, nor that there is none", name, len(list), decideWithin)
	default:
		return fmt.Sprintf("%s: %d grants are in no order that a read-write lock could give", name, len(list))
	}
}

// margins returns how long after each kind of end the next grant that it excluded came, at least; never where none came.
func margins(all []grant) map[ending]time.Duration {
	least := map[ending]time.Duration{}
	for _, list := range byCell(all) {
		for i, g := range list {
			for _, next := range list[i+1:] {
				if next.From <= g.To || !next.Write && !g.Write {
					continue
				}
				if d := time.Duration(next.From - g.To); least[g.End] == 0 || d < least[g.End] {
					least[g.End] = d
				}
				break
			}
		}
	}
	return least
}
