package locks

import (
	"cmp"
	"slices"

	"lockfs/backends"
)

// union returns disjoint locks in order of their bytes that say for each byte
// the greatest mode that any of the locks has there. Bytes without a lock are
// left out; neighbours of one mode are joined.
func union(locks []backends.Lock) []backends.Lock {
	if len(locks) <= 1 {
		return locks
	}
	type edge struct {
		at    uint64 // the first byte for which it counts
		mode  backends.Mode
		delta int
	}
	edges := make([]edge, 0, 2*len(locks))
	for _, l := range locks {
		edges = append(edges, edge{l.First, l.Mode, 1}, edge{l.Last + 1, l.Mode, -1})
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Compare(a.at, b.at) })
	var out []backends.Lock
	var count [3]int // by mode
	for i, e := range edges {
		count[e.mode] += e.delta
		if i+1 == len(edges) || edges[i+1].at == e.at {
			continue
		}
		mode := backends.None
		if count[backends.Write] > 0 {
			mode = backends.Write
		} else if count[backends.Read] > 0 {
			mode = backends.Read
		}
		if mode == backends.None {
			continue
		}
		next := backends.Lock{Range: backends.Range{First: e.at, Last: edges[i+1].at - 1}, Mode: mode}
		if n := len(out); n > 0 && out[n-1].Last+1 == next.First && out[n-1].Mode == mode {
			out[n-1].Last = next.Last
		} else {
			out = append(out, next)
		}
	}
	return out
}

// covers reports whether the locks have every byte of want in at least its mode.
func covers(locks []backends.Lock, want backends.Lock) bool {
	overlaps := false
	for _, l := range locks { // most often one is enough, or none is there
		if l.Mode >= want.Mode && l.Contains(want.Range) {
			return true
		}
		overlaps = overlaps || l.Overlaps(want.Range)
	}
	return overlaps && len(uncovered(locks, want)) == 0
}

// uncovered returns the parts of want that the locks do not have in at least its mode.
func uncovered(locks []backends.Lock, want backends.Lock) []backends.Lock {
	rest := []backends.Lock{want}
	for _, l := range locks {
		if l.Mode < want.Mode || !l.Overlaps(want.Range) {
			continue
		}
		var next []backends.Lock
		for _, r := range rest {
			next = append(next, subtract(r, l.Range)...)
		}
		rest = next
	}
	return rest
}

// subtract returns what is left of a lock without the bytes of r.
func subtract(l backends.Lock, r backends.Range) []backends.Lock {
	if !l.Overlaps(r) {
		return []backends.Lock{l}
	}
	var out []backends.Lock
	if l.First < r.First {
		left := l
		left.Last = r.First - 1
		out = append(out, left)
	}
	if l.Last > r.Last {
		right := l
		right.First = r.Last + 1
		out = append(out, right)
	}
	return out
}
