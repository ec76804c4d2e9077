//go:build soak

package faults

import (
	"cmp"
	"slices"
	"strings"
	"testing"
	"time"
)

// A lockfs with a bug planted is found out, within a few runs.
func TestPlanted(t *testing.T) {
	for name, p := range plants {
		t.Run(name, func(t *testing.T) {
			program := build(t, p.overlay(t))
			if p.losses {
				seek(t, newLosses(t, "redis", program))
				return
			}
			for round := range 5 {
				res := perform(t, plan{backend: cmp.Or(p.backend, "redis"), alone: round > 0 || p.backend != "", special: p.backend != "", program: program, mixed: 15 * time.Second, patience: 15 * time.Second}, newSeed(t))
				for _, w := range res.wrong {
					if slices.ContainsFunc(p.found, func(s string) bool { return strings.Contains(w, s) }) {
						t.Logf("found in run %d, seed %d, of %d acquisitions: %s", round+1, res.seed, res.grants, w)
						return
					}
				}
			}
			t.Error("not found")
		})
	}
}

// seek lets nodes lose their leases until a holder runs on for too long.
func seek(t *testing.T, r *losses) {
	n, late := 0, 0
	for round := range 6 {
		for _, l := range r.round([]string{"frozen", "cut off"}[round%2]) {
			n++
			if l.toGrant <= 0 {
				t.Logf("found, of %d losses: %s, two holders for %v", n, l.what, -l.toGrant)
				return
			}
			if l.toLease <= 0 {
				late++
			}
		}
	}
	if late == 0 {
		t.Errorf("not found in %d losses", n)
	}
	t.Logf("found: %d of %d holders ran on after the lease's end, though none after another node had the lock", late, n)
}
