//go:build soak

package faults

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// soakGoal is how many acquisitions there are to be on each back end; soakLosses how many cut-offs and freezes in TestInTime.
const soakGoal, soakLosses = 10000, 100

// soakRound is how long a run may take; none is begun so shortly before the test's deadline (-timeout).
const soakRound = 150 * time.Second

// soaks are the set-ups that count as a back end's, in turn: each twice, with eio and with KILL.
var soaks = map[string][]string{
	"redis":     {"redis", onSentinel, onSmallDisk},
	"zookeeper": {"zookeeper", onEnsemble},
	onFile:      {onFile},
}

// goalOf is how much of all that there is to be, LOCKFS_FAULT_GOAL being so many acquisitions.
func goalOf(t *testing.T, all int) int {
	t.Helper()
	text := os.Getenv("LOCKFS_FAULT_GOAL")
	if text == "" {
		return all
	}
	goal, err := strconv.Atoi(text)
	if err != nil || goal <= 0 {
		t.Fatalf("LOCKFS_FAULT_GOAL: not a number of acquisitions: %q", text)
	}
	return (all*goal + soakGoal - 1) / soakGoal
}

// TestSoak breaks all back ends, on new seeds, until the goal is reached, and each set-up has been broken with eio and with KILL.
// LOCKFS_FAULT_GOAL is another goal, with so many runs less; LOCKFS_FAULT_SETUPS names the set-ups to use, with commas between.
func TestSoak(t *testing.T) {
	program := build(t, "")
	for backend, setUps := range soaks {
		if only := os.Getenv("LOCKFS_FAULT_SETUPS"); only != "" {
			setUps = slices.DeleteFunc(slices.Clone(setUps), func(s string) bool { return !slices.Contains(strings.Split(only, ","), s) })
		}
		if len(setUps) == 0 {
			continue
		}
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			soak(t, program, setUps)
		})
	}
}

func soak(t *testing.T, program string, setUps []string) {
	goal, rounds := goalOf(t, soakGoal), goalOf(t, 2*len(setUps))
	deadline, limited := t.Deadline()
	sum, faults, began := 0, map[string]int{}, time.Now()
	for round := 0; (sum < goal || round < rounds) && !t.Failed(); round++ {
		if limited && time.Until(deadline) < soakRound {
			t.Errorf("only %d of %d acquisitions, in %d of %d runs, before the test's deadline", sum, goal, round, rounds)
			break
		}
		p := plan{backend: setUps[round/2%len(setUps)], kills: round%2 == 1, alone: round%2 == 0 && round < 2*len(setUps), program: program, mixed: 40 * time.Second}
		res := perform(t, p, newSeed(t))
		res.expect(t)
		sum += res.grants
		for kind, n := range res.counts {
			faults[kind] += n
		}
	}
	t.Logf("%d acquisitions in %v; %s", sum, time.Since(began).Round(time.Second), sorted(faults))
}
