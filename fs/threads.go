package fs

import (
	"bytes"
	"context"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// catchUpLimit bounds catchUp on a machine where some thread is never given a processor.
const catchUpLimit = time.Second

// catchUp returns when the requests that the kernel has made so far have been read, and each thread of this process that was ready to run has
// run. On a busy machine a thread that has read a
// request can stand there for long before it gets to it, and requests that came later are served before.
func (f *FileSystem) catchUp(ctx context.Context, done <-chan struct{}) {
	ctx, cancel := context.WithTimeout(ctx, catchUpLimit)
	defer cancel()
	for conn := f.conn.Load(); conn != nil && conn.Pending(); {
		if !aMoment(ctx, done) {
			return
		}
	}
	threadsCatchUp(ctx, done)
}

// threadsCatchUp is catchUp for the threads alone. It is done twice: what the threads found to do may be for another one.
func threadsCatchUp(ctx context.Context, done <-chan struct{}) {
	for range 2 {
		ready := readyThreads()
		for len(ready) > 0 {
			if !aMoment(ctx, done) {
				return
			}
			for thread, before := range ready {
				if ran, err := ranSoFar(thread); err != nil || ran != before || !isReady(thread) {
					delete(ready, thread)
				}
			}
		}
	}
}

// aMoment waits for a millisecond; false: done is closed, or ctx ended.
func aMoment(ctx context.Context, done <-chan struct{}) bool {
	select {
	case <-time.After(time.Millisecond):
		return true
	case <-done:
	case <-ctx.Done():
	}
	return false
}

// readyThreads returns the threads that are ready to run, but for the caller's, and how long each has run so far.
func readyThreads() map[string]string {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own := strconv.Itoa(unix.Gettid())
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil
	}
	ready := map[string]string{}
	for _, t := range threads {
		if t.Name() == own || !isReady(t.Name()) {
			continue
		}
		if ran, err := ranSoFar(t.Name()); err == nil {
			ready[t.Name()] = ran
		}
	}
	return ready
}

// isReady reports whether a thread runs or would, were there a processor for it.
func isReady(thread string) bool {
	data, err := os.ReadFile("/proc/self/task/" + thread + "/stat")
	state := data[bytes.LastIndexByte(data, ')')+1:] // the name before it may hold anything
	return err == nil && strings.HasPrefix(string(state), " R")
}

// ranSoFar is how long a thread has run, in nanoseconds; kernels without it have nothing to tell apart.
func ranSoFar(thread string) (string, error) {
	data, err := os.ReadFile("/proc/self/task/" + thread + "/schedstat")
	ran, _, _ := strings.Cut(string(data), " ")
	return ran, err
}
