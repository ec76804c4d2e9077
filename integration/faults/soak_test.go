//go:build soak

package faults

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// soakGoal is how many acquisitions there are to be on each back end.
const soakGoal = 10000

// soakRound is how long a run may take; none is begun so shortly before the test's deadline (-timeout).
const soakRound = 150 * time.Second

// TestSoak breaks all back ends, on new seeds, until the goal is reached (LOCKFS_FAULT_GOAL: another one).
func TestSoak(t *testing.T) {
	goal := int64(soakGoal)
	if text := os.Getenv("LOCKFS_FAULT_GOAL"); text != "" {
		var err error
		if goal, err = strconv.ParseInt(text, 10, 64); err != nil {
			t.Fatalf("LOCKFS_FAULT_GOAL: %v", err)
		}
	}
	deadline, limited := t.Deadline()
	program := build(t, "")
	// The file back end has no network to break, and no lease.
	for backend, goal := range map[string]int64{"redis": goal, "zookeeper": goal, onFile: goal / 5} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			sum, faults, began := 0, map[string]int{}, time.Now()
			for round := 0; sum < int(goal) && !t.Failed(); round++ {
				if limited && time.Until(deadline) < soakRound {
					t.Errorf("only %d of %d acquisitions before the test's deadline", sum, goal)
					break
				}
				p := plan{backend: backend, kills: round%2 == 1, alone: round%4 == 0, program: program, mixed: 40 * time.Second}
				if backend == "zookeeper" && round%4 >= 2 { // both of these count as ZooKeeper's
					p.backend, p.alone = onEnsemble, round%4 == 2
				}
				if backend == "redis" && round%4 >= 2 { // and of these as Redis's
					p.backend, p.alone = []string{onSentinel, onSmallDisk}[round/4%2], round%4 == 2
				}
				res := perform(t, p, newSeed(t))
				res.expect(t)
				sum += res.grants
				for kind, n := range res.counts {
					faults[kind] += n
				}
			}
			t.Logf("%s: %d acquisitions in %v; %s", backend, sum, time.Since(began).Round(time.Second), sorted(faults))
		})
	}
}
