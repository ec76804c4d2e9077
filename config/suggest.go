package config

import (
	"maps"
	"slices"
	"strings"
)

// suggest is the way out for an unknown key: the known key that is most like
// it, else all of them.
func suggest[T any](name string, known map[string]T) string {
	names := sortedKeys(known)
	plain := strings.ReplaceAll(strings.ToLower(name), "-", "_")
	best, bestDistance := "", 1+max(1, len(plain)/3)
	for _, candidate := range names {
		if d := distance(plain, candidate); d < bestDistance {
			best, bestDistance = candidate, d
		}
	}
	if best != "" {
		return "did you mean " + best + "?"
	}
	const few = 14
	if len(names) > few {
		return "config/lockfs.example.yml lists the keys"
	}
	return "known are " + strings.Join(names, ", ")
}

// distance is the number of insertions, deletions, replacements and swaps of
// neighbours that turn a into b.
func distance(a, b string) int {
	const tooLong = 64
	if len(a) > tooLong || len(b) > tooLong {
		return tooLong
	}
	var before []int // the row before last, for swaps
	last := make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}

func sortedKeys[T any](m map[string]T) []string { return slices.Sorted(maps.Keys(m)) }
