package main

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestGrowth(t *testing.T) {
	for live, want := range map[uint64]int{0: 100, 4 << 20: 100, 20 << 20: 100, 40 << 20: 50, 100 << 20: 20, 1 << 30: 15} {
		if got := growth(live); got != want {
			t.Errorf("with %d bytes live: %d %%, want %d", live, got, want)
		}
	}
}

// TestBoundGarbage: the setting follows what is live, both ways.
func TestBoundGarbage(t *testing.T) {
	t.Setenv("GOGC", "")
	before := debug.SetGCPercent(mostGrowth)
	t.Cleanup(func() { debug.SetGCPercent(before) })
	boundGarbage()
	settles := func(what string, ok func(percent uint64) bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !ok(readMetric("/gc/gogc:percent")); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %d %%", what, readMetric("/gc/gogc:percent"))
			}
			runtime.GC()
		}
	}
	names := make([]byte, 200<<20)
	settles("with much that is live", func(percent uint64) bool { return percent == leastGrowth })
	runtime.KeepAlive(names)
	settles("with little", func(percent uint64) bool { return percent == mostGrowth })
}
