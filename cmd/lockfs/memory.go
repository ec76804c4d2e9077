package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// Go's collector runs when the heap has grown to twice what was live after the last time. What is live here are the names that are held,
// many megabytes perhaps, and using them makes next to no garbage; so most of the other half would be memory for nothing.

const (
	// garbage is how much there may be of it on top of what is live.
	garbage = 20 << 20
	// mostGrowth and leastGrowth, in percent of what is live, bound what that comes to: Go's own setting, and one
	// with which collecting takes a few microseconds of each lock and unlock, however much is live (docs/performance.md).
	mostGrowth, leastGrowth = 100, 15
)

// growth is the collector's setting (debug.SetGCPercent) for so many bytes that are live.
func growth(live uint64) int {
	return int(min(max(garbage*100/max(live, 1), leastGrowth), mostGrowth))
}

// boundGarbage adapts the collector's setting to what is live, after each time that it ran. The user's own setting stays.
func boundGarbage() {
	if os.Getenv("GOGC") != "" {
		return
	}
	afterCollection(func() { setGrowth(growth(liveBytes())) })
}

// setGrowth does nothing about small differences, for it stops the program for a moment.
func setGrowth(percent int) {
	is := readMetric("/gc/gogc:percent")
	if percent != int(is) && (percent == mostGrowth || percent < int(is)*9/10 || percent > int(is)*11/10) {
		debug.SetGCPercent(percent)
	}
}

// afterCollection calls f after each collection: one who sees that nobody has this object any more.
func afterCollection(f func()) {
	runtime.AddCleanup(new([64]byte), func(int) {
		f()
		afterCollection(f)
	}, 0)
}

// liveBytes is what the last collection left.
func liveBytes() uint64 { return readMetric("/gc/heap/live:bytes") }

func readMetric(name string) uint64 {
	sample := []metrics.Sample{{Name: name}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
