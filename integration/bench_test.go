package integration

import (
	"context"
	"fmt"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"
)

// The benchmark. It measures the floors (what a trip into a mount, to Redis, to ZooKeeper costs on this machine) and
// lockfs on each back end, in one run, so that ratios can be compared. As a test it does a little of everything, to
// show that the benchmark still works. Whole, it takes some minutes and writes docs/performance.md:
//
//	make bench
//
// bench_test.go has what one or two programs at a time come to, benchcrowd_test.go many, benchclient_test.go the programs
// themselves, benchmeter_test.go what the servers count, benchreport_test.go the bounds, the tables and the picture.

// benchScale is how much to measure.
type benchScale struct {
	rounds, slowRounds int // of what takes microseconds, and of what takes many of them
	crowdTime          time.Duration
	crowds             []int // processes
	waiters            []int
	idle               time.Duration
	inTurn             int // waiters on one mount
	names, nameHolders int
}

var (
	wholeBench = benchScale{rounds: 5000, slowRounds: 500, crowdTime: 2 * time.Second, crowds: []int{2, 8, 32},
		waiters: []int{1000, 10000}, idle: 10 * time.Second, inTurn: 500, names: 100000, nameHolders: 8}
	quickBench = benchScale{rounds: 50, slowRounds: 10, crowdTime: 200 * time.Millisecond, crowds: []int{2},
		waiters: []int{40}, idle: 300 * time.Millisecond, inTurn: 20, names: 200, nameHolders: 2}
)

// benchEnv has the word "docs" where the whole benchmark is to run and write the page.
const benchEnv = "LOCKFS_BENCH"

// bench is a run and its figures.
type bench struct {
	scale     benchScale
	floors    floors
	latencies []latency
	crowds    []crowdFigure
	waits     []waitFigure
	turns     []turnFigure
	names     []namesFigure
}

// floors are medians.
type floors struct {
	server map[string]latency       // a trip to the server, by back end
	fuse   map[string]time.Duration // a trip into a mount, by back end
}

// latency is how long one thing takes.
type latency struct {
	what, kind    string // kind: the back end, or "" for a floor
	p50, p90, p99 time.Duration
	requests      float64 // that the server got, for each; negative: not known
}

func TestBench(t *testing.T) {
	b := &bench{scale: quickBench, floors: floors{server: map[string]latency{}, fuse: map[string]time.Duration{}}}
	whole := os.Getenv(benchEnv) == "docs"
	if whole {
		if raced {
			t.Fatal("with -race the figures are worth nothing")
		}
		b.scale = wholeBench
	}
	machine := benchMachine()
	t.Run("floors", b.measureFloors)
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Run("one or two", func(t *testing.T) { b.measureFew(t, kind) })
			t.Run("crowds", func(t *testing.T) { b.measureCrowds(t, kind) })
			t.Run("waiters", func(t *testing.T) { b.measureWaiters(t, kind) })
			t.Run("in turn", func(t *testing.T) { b.measureInTurn(t, kind) })
		})
	}
	t.Run("names held", b.measureNames)
	t.Logf("\n%s", b.text(machine))
	if whole && !t.Failed() {
		b.write(t, machine)
	}
}

// newBenchEnv is newEnv, with the file back end's directory in memory: what is measured is lockfs, and not how a disk's day is.
func newBenchEnv(t *testing.T, kind string) *env {
	t.Helper()
	if kind != "file" {
		return newEnv(t, kind)
	}
	dir, err := os.MkdirTemp("/dev/shm", "lockfs-bench-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	return newFileEnvIn(t, dir)
}

// summary makes percentiles of many times.
func summary(what, kind string, times []time.Duration, requests float64) latency {
	slices.Sort(times)
	return latency{what, kind, percentile(times, 50), percentile(times, 90), percentile(times, 99), requests}
}

func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[min(len(sorted)*p/100, len(sorted)-1)]
}

func (b *bench) measureFloors(t *testing.T) {
	path := fmt.Sprint("/dev/shm/lockfs-bench-", os.Getpid())
	t.Cleanup(func() { os.Remove(path) })
	c := newBenchClient(t, path)
	b.latencies = append(b.latencies, summary("flock + unlock on tmpfs", "", c.ask("cycle", b.scale.rounds).Times, -1))
}

// serverTrip is a trip to the server and back by its client library, and what it is called; nil: there is no server.
func serverTrip(t *testing.T, kind string) (what string, trip func() error) {
	t.Helper()
	switch kind {
	case "redis":
		c := newRedisClient(t, redisServer(t))
		return "Redis: PING by the client library", func() error { return c.Ping(context.Background()).Err() }
	case "zookeeper":
		c := zooKeeperClient(t, zooKeeperServer(t))
		return "ZooKeeper: exists by the client library", func() error { _, _, err := c.Exists("/"); return err }
	}
	return "", nil
}

// here times f in this process.
func here(t testing.TB, n int, f func() error) []time.Duration {
	t.Helper()
	a, err := rounds(n, f)
	must(t, err)
	return a.Times
}

// The rows of the table.
const (
	tripRow     = "FUSE round trip: statfs"
	repeatedRow = "lock + unlock, again and again"
	firstRow    = "lock + unlock, a name's first"
	openRow     = "open + flock + close"
	handRow     = "hand-over between two mounts"
)

// fewRuns is how often one program does each thing in a row, in turn with the others: where the kernel happens to put its thread and the
// server's makes them twice as fast or slow for a while, and ratios are to compare the same.
const fewRuns = 10

// measureFew measures one program on one mount, and two on two.
func (b *bench) measureFew(t *testing.T, kind string) {
	e, meter := newBenchEnv(t, kind), newMeter(t, kind)
	e.mount()
	e.mount()
	handed := b.handOvers(t, e)
	c := newBenchClient(t, e.on(0, "x"))
	floor, trip := serverTrip(t, kind)
	var trips []time.Duration
	rows := []struct {
		what, verb string
		n          int
		args       func(run int) []any
		times      []time.Duration
		requests   int
	}{
		{what: tripRow, verb: "statfs", n: b.scale.rounds / fewRuns},
		{what: repeatedRow, verb: "cycle", n: b.scale.rounds / fewRuns},
		{what: firstRow, verb: "first", n: b.scale.slowRounds / fewRuns, args: func(run int) []any { return []any{e.on(0, fmt.Sprint("first", run, "-"))} }},
		{what: openRow, verb: "reopen", n: b.scale.slowRounds / fewRuns, args: func(int) []any { return []any{e.on(0, "x")} }},
	}
	for run := range fewRuns {
		if trip != nil {
			trips = append(trips, here(t, b.scale.rounds/fewRuns, trip)...)
		}
		for i := range rows {
			row, args := &rows[i], []any(nil)
			if row.args != nil {
				args = row.args(run)
			}
			before := meter.requests()
			row.times = append(row.times, c.ask(row.verb, slices.Concat([]any{row.n}, args)...).Times...)
			row.requests += meter.requests() - before
		}
	}
	if trip != nil {
		b.floors.server[kind] = summary(floor, "", trips, 1)
		b.latencies = append(b.latencies, b.floors.server[kind])
	}
	for _, row := range rows {
		requests := float64(row.requests) / float64(fewRuns*(row.n+warmUp(row.n)))
		if row.what == firstRow || !meter.counts() {
			requests = -1 // the creation of the names would be counted too
		}
		b.latencies = append(b.latencies, summary(row.what, kind, row.times, requests))
	}
	b.floors.fuse[kind] = b.latency(tripRow, kind).p50
	b.latencies = append(b.latencies, summary(handRow, kind, handed, -1))
}

// latency returns a row that has been measured.
func (b *bench) latency(what, kind string) latency {
	for _, l := range b.latencies {
		if l.what == what && l.kind == kind {
			return l
		}
	}
	return latency{}
}

// handOvers measures from the unlock call to the return of the waiter's call, on the other mount.
func (b *bench) handOvers(t *testing.T, e *env) []time.Duration {
	holder, waiter := newBenchClient(t, e.on(0, "handed")), newBenchClient(t, e.on(1, "handed"))
	holder.ask("lock")
	var times []time.Duration
	for range b.scale.slowRounds {
		waiter.begin("lock")
		eventually(t, "it waits", func() bool { return inFUSE(waiter.cmd.Process.Pid) })
		e.queued(t, "handed", 2)
		unlocked := holder.ask("unlock")
		times = append(times, waiter.answer().Ended-unlocked.Began)
		holder, waiter = waiter, holder
	}
	holder.ask("unlock")
	return times
}

// turnFigure is waiters who are served in turn: each takes the lock and lets it go.
type turnFigure struct {
	kind            string
	waiters, served int
	took            time.Duration // from the beginning to the end of the last one's unlock, or as long as there was patience
}

// turnPatience is how long there is patience with waiters who are to be served in turn.
const turnPatience = 20 * time.Second

func (b *bench) measureInTurn(t *testing.T, kind string) {
	e := newBenchEnv(t, kind)
	e.mount()
	holder, waiters := newBenchClient(t, e.on(0, "x")), newBenchClient(t, "")
	holder.ask("lock")
	waiters.ask("wait", b.scale.inTurn, e.on(0, "x"))
	settled(e, []*benchClient{waiters}, b.scale.inTurn)
	waiters.ask("drain") // nobody stops on the way
	began := holder.ask("unlock").Began
	b.turns = append(b.turns, inTurn(kind, began, b.scale.inTurn, []*benchClient{waiters}))
}

// inTurn returns when all have been served.
func inTurn(kind string, began time.Duration, waiters int, clients []*benchClient) turnFigure {
	f := turnFigure{kind: kind, waiters: waiters}
	for monotonic()-began < turnPatience {
		f.served, f.took = 0, 0
		for _, c := range clients {
			a := c.ask("served")
			f.served, f.took = f.served+a.Count, max(f.took, a.Ended-began)
		}
		if f.served == waiters {
			return f
		}
		time.Sleep(20 * time.Millisecond) // to look costs, too
	}
	f.took = turnPatience
	return f
}

// namesFigure is a mount that holds many locks.
type namesFigure struct {
	kind           string
	names          int
	idle, resident int64   // bytes, without and with them
	took           float64 // seconds to take them, opens and creations included
	before, after  int     // requests that the server got, in a time without anything to do
}

// measureNames is on a Redis of its own.
func (b *bench) measureNames(t *testing.T) {
	e, redis := quietRedis(t, 0)
	n := e.mount("session_ttl: 5s") // a heartbeat a second
	window := max(b.scale.idle/2, time.Second)
	f := namesFigure{kind: "redis", names: b.scale.names, idle: resident(t, n.server())}
	f.before = requests(during(t, redis, func() { time.Sleep(window) })) // what comes in this time is what is measured
	began := time.Now()
	var all []*benchClient
	for i := range b.scale.nameHolders {
		c := newBenchClient(t, "")
		c.begin("hold", b.scale.names/b.scale.nameHolders, e.on(0, fmt.Sprint("n", i, "-")))
		all = append(all, c)
	}
	for _, c := range all {
		c.answer()
	}
	f.took = time.Since(began).Seconds()
	time.Sleep(3 * time.Second) // until the server has been told of each that it lasts
	f.after = requests(during(t, redis, func() { time.Sleep(window) }))
	f.resident = resident(t, n.server())
	for _, c := range all {
		c.end()
	}
	b.names = append(b.names, f)
}

// resident is the memory of a process that is in RAM.
func resident(t testing.TB, pid int) int64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	must(t, err)
	var size, rss int64
	_, err = fmt.Sscan(string(data), &size, &rss)
	must(t, err)
	return rss * int64(syscall.Getpagesize())
}
