package zookeeper

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"

	"lockfs/backends"
)

// BenchmarkZooKeeper prints medians (µs) beside the floors of the same server: exists, and create and delete of an
// ephemeral sequential znode; and how many packets each takes.
func BenchmarkZooKeeper(b *testing.B) {
	r := newRig(b)
	cluster := r.newCluster()
	backend := r.open(b, cluster, r.Addr())
	one, two := newSession(b, backend, time.Minute), newSession(b, backend, time.Minute)
	if _, err := r.conn.Create("/floor", nil, 0, zk.WorldACL(zk.PermAll)); err != nil {
		b.Fatal(err)
	}
	cycle := func(s *session, name string, req backends.Request) {
		c, err := s.Acquire(b.Context(), name, req)
		if err == nil {
			_, err = s.Change(b.Context(), name, []backends.Change{{ID: c.ID}})
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	b.Run("floor/exists", func(b *testing.B) {
		r.measure(b, func() { _, _, _ = r.conn.Exists("/floor") })
	})
	b.Run("floor/create+delete", func(b *testing.B) {
		r.measure(b, func() {
			path, err := r.conn.Create("/floor/x", nil, zk.FlagEphemeralSequential, zk.WorldACL(zk.PermAll))
			if err != nil || r.conn.Delete(path, -1) != nil {
				b.Fatal(err)
			}
		})
	})
	b.Run("cycle/wait", func(b *testing.B) {
		r.measure(b, func() { cycle(one, "w", backends.Request{Lock: writing, Wait: true}) })
	})
	b.Run("cycle/try", func(b *testing.B) {
		r.measure(b, func() { cycle(one, "t", backends.Request{Lock: writing}) })
	})
	b.Run("refused", func(b *testing.B) {
		if _, err := two.Acquire(b.Context(), "r", backends.Request{Lock: writing}); err != nil {
			b.Fatal(err)
		}
		r.measure(b, func() { _, _ = one.Acquire(b.Context(), "r", backends.Request{Lock: writing}) })
	})
	b.Run("hand-over", func(b *testing.B) { benchHandOver(b, r, cluster, one, two) })
}

// benchHandOver measures from the call that lets go to the return of the one who waits.
func benchHandOver(b *testing.B, r *rig, cluster string, one, two *session) {
	const name = "h"
	held, err := one.Acquire(b.Context(), name, backends.Request{Lock: writing, Wait: true})
	if err != nil {
		b.Fatal(err)
	}
	var took []time.Duration
	for b.Loop() {
		queued := make(chan struct{})
		got := make(chan backends.Claim)
		go func() {
			c, err := two.Acquire(b.Context(), name, backends.Request{Lock: writing, Wait: true, Queued: func() { close(queued) }})
			if err != nil {
				b.Error(err)
			}
			got <- c
		}()
		<-queued
		time.Sleep(2 * time.Millisecond) // what sets its watch has been sent by then
		start := time.Now()
		if _, err := one.Change(b.Context(), name, []backends.Change{{ID: held.ID}}); err != nil {
			b.Fatal(err)
		}
		held = <-got
		took = append(took, time.Since(start))
		one, two = two, one
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
}

// measure runs f and reports the median time and the packets that the server got.
func (r *rig) measure(b *testing.B, f func()) {
	before := r.packets(b)
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		f()
		took = append(took, time.Since(start))
	}
	n := float64(len(took))
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(r.packets(b)-before)/n, "packets/op")
	b.ReportMetric(0, "ns/op")
}

// packets is how many packets the server has got from clients, our own question among them.
func (r *rig) packets(b testing.TB) int {
	for line := range strings.Lines(r.Command("mntr")) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "zk_packets_received" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				b.Fatal(err)
			}
			return n
		}
	}
	b.Fatal("mntr does not say how many packets were received")
	return 0
}
