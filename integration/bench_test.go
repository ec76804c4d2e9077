package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The benchmarks print percentiles, as µs, and the ratio of the median to the floor that it stands on:
//
//	go test -run '^$' -bench . ./integration
//
// Without -race lockfs is built as users have it. Compare ratios of one run: machines are noisy.

// sample runs f for each of the benchmark's rounds and reports the percentiles; floor is the median to compare with, 0 for none.
func sample(b *testing.B, floor time.Duration, f func() time.Duration) time.Duration {
	b.Helper()
	var times []time.Duration
	for range 20 { // to warm up
		f()
	}
	for b.Loop() {
		times = append(times, f())
	}
	slices.Sort(times)
	p50 := times[len(times)/2]
	micros := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
	b.ReportMetric(micros(p50), "p50-µs")
	b.ReportMetric(micros(times[len(times)*99/100]), "p99-µs")
	b.ReportMetric(0, "ns/op") // the mean, with the waits in between: of no use
	if floor > 0 {
		b.ReportMetric(float64(p50)/float64(floor), "x-floor")
	}
	return p50
}

// timed is how long f takes.
func timed(b *testing.B, f func() error) func() time.Duration {
	return func() time.Duration {
		began := time.Now()
		err := f()
		took := time.Since(began)
		if err != nil {
			b.Fatal(err)
		}
		return took
	}
}

func cycle(fd int) func() error {
	return func() error {
		if _, err := again(func() (int, error) { return 0, syscall.Flock(fd, ex) }); err != nil {
			return err
		}
		return syscall.Flock(fd, un)
	}
}

func openFlockClose(path string) func() error {
	return func() error {
		fd, err := syscall.Open(path, rdonly|syscall.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if _, err := again(func() (int, error) { return 0, syscall.Flock(fd, ex) }); err != nil {
			return err
		}
		return syscall.Close(fd)
	}
}

// BenchmarkFloors measures what lockfs stands on.
func BenchmarkFloors(b *testing.B) {
	b.Run("tmpfs flock", func(b *testing.B) {
		path := filepath.Join("/dev/shm", fmt.Sprint("lockfs-bench-", os.Getpid()))
		fd, err := syscall.Open(path, rdwr|creat|syscall.O_CLOEXEC, 0o600)
		must(b, err)
		defer os.Remove(path)
		defer syscall.Close(fd)
		sample(b, 0, timed(b, cycle(fd)))
	})
	b.Run("Redis PING", func(b *testing.B) {
		c := newRedisClient(b, redisServer(b))
		sample(b, 0, timed(b, func() error { return c.Ping(context.Background()).Err() }))
	})
	b.Run("ZooKeeper exists", func(b *testing.B) {
		c := zooKeeperClient(b, zooKeeperServer(b))
		sample(b, 0, timed(b, func() error { _, _, err := c.Exists("/"); return err }))
	})
}

// BenchmarkLocks measures lockfs on each back end; the floor is a round trip into the same mount (statfs).
func BenchmarkLocks(b *testing.B) {
	for _, kind := range kinds {
		b.Run(kind, func(b *testing.B) {
			e := newEnv(b, kind)
			e.mount()
			e.mount()
			path := e.on(0, "x")
			fd, err := syscall.Open(path, rdonly|creat|syscall.O_CLOEXEC, 0o666)
			must(b, err)
			defer syscall.Close(fd)
			var floor time.Duration
			b.Run("statfs", func(b *testing.B) {
				var st unix.Statfs_t
				floor = sample(b, 0, timed(b, func() error { return unix.Fstatfs(fd, &st) }))
			})
			b.Run("lock+unlock", func(b *testing.B) { sample(b, floor, timed(b, cycle(fd))) })
			b.Run("open+flock+close", func(b *testing.B) { sample(b, floor, timed(b, openFlockClose(path))) })
			b.Run("hand-over", func(b *testing.B) { benchmarkHandOver(b, e, floor) })
		})
	}
}

// benchmarkHandOver measures from the unlock call to the waiter's return, between the two mounts.
func benchmarkHandOver(b *testing.B, e *env, floor time.Duration) {
	var fds [2]int
	for i := range fds {
		var err error
		fds[i], err = syscall.Open(e.on(i, "handed"), rdonly|creat|syscall.O_CLOEXEC, 0o666)
		must(b, err)
		defer syscall.Close(fds[i])
	}
	must(b, syscall.Flock(fds[0], ex))
	holder := 0
	sample(b, floor, func() time.Duration {
		got := make(chan time.Time, 1)
		next := 1 - holder
		go func() {
			if _, err := again(func() (int, error) { return 0, syscall.Flock(fds[next], ex) }); err != nil {
				b.Error(err)
			}
			got <- time.Now()
		}()
		e.queued(b, "handed", 2)
		began := time.Now()
		if err := syscall.Flock(fds[holder], un); err != nil {
			b.Fatal(err)
		}
		holder = next
		return (<-got).Sub(began)
	})
	must(b, syscall.Flock(fds[holder], un))
}
