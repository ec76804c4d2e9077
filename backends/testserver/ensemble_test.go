package testserver

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// An ensemble elects a leader, another when that is killed or cut off, and takes everybody back.
func TestEnsemble(t *testing.T) {
	e := Ensemble(t, 5)
	waitFor := func(what string, ok func() bool) {
		t.Helper()
		if !Until(60*time.Second, ok) {
			t.Fatalf("waited in vain for %s; leader %d", what, e.Leader())
		}
	}
	first := e.Leader()
	if first < 0 {
		t.Fatal("all serve, and nobody leads")
	}
	e.Server(first).Stop()
	waitFor("another leader", func() bool { return e.Leader() >= 0 && e.Leader() != first })
	e.Server(first).Start()
	for _, reset := range []bool{false, true} {
		cut := e.Leader()
		began := time.Now()
		e.Cut(cut, reset)
		serves := func(i int) bool { return strings.Contains(e.Server(i).Command("srvr"), "Mode: ") }
		waitFor("the cut-off leader to notice", func() bool { return !serves(cut) })
		waitFor("another leader", func() bool { return e.Leader() >= 0 && e.Leader() != cut })
		t.Logf("reset %v: another leader after %v", reset, time.Since(began))
		if serves(cut) {
			t.Error("one of three serves by itself")
		}
		e.Heal()
		waitFor("the cut-off server to be back", func() bool { return serves(cut) })
	}
	if addrs := e.Addrs(); len(slices.Compact(slices.Sorted(slices.Values(addrs)))) != Members {
		t.Errorf("addresses %v", addrs)
	}
}
