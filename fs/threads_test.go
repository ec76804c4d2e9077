package fs

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

// When catchUp returns, each thread that was ready has run since; there are more of them than processors.
func TestCatchUp(t *testing.T) {
	crowd := 3 * runtime.NumCPU()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(crowd + 2))
	var stop atomic.Bool
	var all sync.WaitGroup
	defer all.Wait()
	defer stop.Store(true)
	for range crowd {
		all.Go(func() {
			for !stop.Load() { // computes
			}
		})
	}
	waited := 0
	for range 5 {
		ready := readyThreads()
		threadsCatchUp(t.Context(), nil)
		for thread, before := range ready {
			if ran, err := ranSoFar(thread); err == nil && ran == before && isReady(thread) {
				t.Errorf("thread %s has not run: %s ns", thread, ran)
			}
			waited++
		}
	}
	if waited == 0 {
		t.Error("no thread was ever ready: nothing was tested")
	}
	done := make(chan struct{})
	close(done)
	threadsCatchUp(t.Context(), done)
}
