//go:build soak

package faults

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// TestInTime counts: with on_lost KILL no holder runs on after its lock was given away, nor after the lease's end, be the node
// cut off from its server, or its server process frozen; on the file back end, where there is no lease, be that process killed. make soak has it.
func TestInTime(t *testing.T) {
	goal := goalOf(t, soakLosses)
	program := build(t, "")
	for backend, ways := range map[string][]string{"redis": {"cut off", "frozen"}, "zookeeper": {"cut off", "frozen"}, onFile: {"killed"}} {
		t.Run(backend, func(t *testing.T) {
			r := newLosses(t, backend, program)
			began := time.Now()
			var all []loss
			for len(all) < len(ways)*goal && !t.Failed() {
				for _, what := range ways {
					all = append(all, r.round(what)...)
				}
			}
			for _, what := range ways {
				summarize(t, backend, what, all)
			}
			t.Logf("%s: in %v", backend, time.Since(began).Round(time.Second))
		})
	}
}

// summarize prints the count, how many were late and the smallest margins, and fails the test where one was late.
func summarize(t *testing.T, backend, what string, all []loss) {
	t.Helper()
	n, late, over := 0, 0, time.Duration(0)
	var grants, leases []time.Duration
	for _, l := range all {
		if l.what != what {
			continue
		}
		n++
		if l.toGrant <= 0 || l.toLease <= 0 {
			late++
		}
		grants, leases, over = append(grants, l.toGrant), append(leases, l.toLease), max(over, l.overtime)
	}
	t.Logf("%s, %s: %d losses, %d late; the holders' last sign of life was before another node had the lock by %s, before the lease's end by %s; the next waited at most %v longer than the lease",
		backend, what, n, late, spread(grants), spread(leases), over.Round(time.Millisecond))
	if late > 0 {
		t.Errorf("%s, %s: %d of %d holders ran for too long", backend, what, late, n)
	}
}

// spread is the least and the median.
func spread(all []time.Duration) string {
	if len(all) == 0 {
		return "(none)"
	}
	slices.Sort(all)
	return fmt.Sprintf("%v at least (median %v)", all[0].Round(100*time.Microsecond), all[len(all)/2].Round(100*time.Microsecond))
}
