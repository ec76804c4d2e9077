package integration

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"lockfs/backends/testserver"
)

// What locks cost Redis, by its own count of commands (INFO commandstats). Each test has a server to itself.

// commands returns how often each command has been called.
func commands(t testing.TB, c *goredis.Client) map[string]int {
	t.Helper()
	info, err := c.Info(context.Background(), "commandstats").Result()
	must(t, err)
	calls := map[string]int{}
	for line := range strings.Lines(info) {
		name, rest, ok := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":calls=")
		if n, _, good := strings.Cut(rest, ","); ok && good {
			calls[name], err = strconv.Atoi(n)
			must(t, err)
		}
	}
	return calls
}

// during returns which commands Redis served while f ran, without those of the counting and those inside of scripts.
func during(t testing.TB, c *goredis.Client, f func()) map[string]int {
	t.Helper()
	before := commands(t, c)
	f()
	after := commands(t, c)
	maps.DeleteFunc(after, func(name string, n int) bool {
		after[name] -= before[name]
		return after[name] == 0
	})
	delete(after, "info")
	return after
}

// requests are the round trips among the commands: scripts are one each, whatever they do inside.
func requests(calls map[string]int) int { return calls["evalsha"] + calls["eval"] + calls["ping"] }

// quietRedis is a cluster on a server of its own, whose nodes send no heartbeat within a test.
func quietRedis(t testing.TB, nodes int, options ...string) (*env, *goredis.Client) {
	t.Helper()
	server := testserver.Redis(t)
	e := newRedisEnv(t, server)
	for range nodes {
		e.mount(append(options, "session_ttl: 5m")...)
	}
	return e, newRedisClient(t, server)
}

// TestSpeedOneRoundTrip: an uncontended lock is one request to Redis, an unlock too; and none while the node keeps the name.
func TestSpeedOneRoundTrip(t *testing.T) {
	for keep, most := range map[string]int{"keep_idle: 0s": 2, "keep_idle: 10m": 0} {
		t.Run(keep, func(t *testing.T) { costOfCycles(t, keep, most) })
	}
}

func costOfCycles(t *testing.T, keep string, most int) {
	e, redis := quietRedis(t, 1, keep)
	x := e.client(t, 0).open("x", rdonly|creat)
	for range 2 { // for the scripts to be loaded, and the node to see what it is used for
		want(t, "lock", x.flock(ex), 0)
		want(t, "unlock", x.flock(un), 0)
	}
	const rounds = 100
	calls := during(t, redis, func() {
		for range rounds {
			want(t, "lock", x.flock(ex), 0)
			want(t, "unlock", x.flock(un), 0)
		}
	})
	t.Logf("%d locks and unlocks: %d requests, %v", rounds, requests(calls), calls)
	if n := requests(calls); n > most*rounds {
		t.Errorf("%d locks and unlocks took %d requests to Redis, want %d at most", rounds, n, most*rounds)
	}
}

// TestSpeedIdleWaiters: 200 blocked processes cost Redis nothing but heartbeats.
func TestSpeedIdleWaiters(t *testing.T) {
	const (
		waiters = 200
		ttl     = 10 * time.Second
		watch   = 4 * time.Second
	)
	server := testserver.Redis(t)
	e, redis := newRedisEnv(t, server), newRedisClient(t, server)
	for range 2 {
		e.mount(fmt.Sprintf("session_ttl: %v", ttl))
	}
	x := e.client(t, 0).open("x", rdonly|creat)
	want(t, "the holder's lock", x.flock(ex), 0)
	// One shell a node starts them all, and waits for them.
	script := `i=0; while [ $i -lt $2 ]; do flock "$1" true & i=$((i+1)); done; wait; echo all`
	var crowds []*process
	for node := range 2 {
		crowds = append(crowds, start(t, "/bin/sh", "-c", script, "sh", e.on(node, "x"), fmt.Sprint(waiters/2)))
	}
	for _, c := range crowds {
		eventually(t, "all wait", func() bool { return childrenInFUSE(t, c.cmd.Process.Pid) == waiters/2 })
	}
	e.queued(t, "x", e.entriesWhenSettled(t, "x"))
	calls := during(t, redis, func() { time.Sleep(watch) }) // what is measured is what happens in this time
	delete(calls, "scan")
	// A heartbeat is one script every fifth of the lease, which comes back as one message.
	most := 2 * int(watch/(ttl/5)+2)
	t.Logf("%d waiters on 2 nodes for %v: %d requests, %v", waiters, watch, requests(calls), calls)
	if n := requests(calls); n > most {
		t.Errorf("%d blocked processes cost %d requests in %v, want at most the %d heartbeats", waiters, n, watch, most)
	}
	if calls["publish"] > requests(calls) {
		t.Errorf("%d messages for %d heartbeats", calls["publish"], requests(calls))
	}
	want(t, "the holder lets go", x.flock(un), 0)
	for _, c := range crowds {
		c.code(0)
	}
	e.empty(t, patience)
}

// entriesWhenSettled returns how many claims and requests there are once their number stays the same.
func (e *env) entriesWhenSettled(t testing.TB, name string) int {
	t.Helper()
	last, same := -1, 0
	eventually(t, "the queue settles", func() bool {
		n := e.entries(t, name)
		if n != last {
			last, same = n, 0
		}
		same++
		return same > 100
	})
	return last
}

// childrenInFUSE counts the children of a process that wait for a FUSE server.
func childrenInFUSE(t testing.TB, pid int) int {
	t.Helper()
	n := 0
	for _, child := range children(t, pid) {
		if inFUSE(child) {
			n++
		}
	}
	return n
}

// TestSpeedHandOver: a hand-over between two nodes takes no polling interval, on any back end: it is shorter
// than any interval that polls could have without being a load.
func TestSpeedHandOver(t *testing.T) {
	oneByOne(t, func(t *testing.T, e *env) {
		times := handOvers(t, e, 50)
		p50, p99 := times[len(times)/2], times[len(times)*99/100]
		t.Logf("hand-over between two nodes: p50 %v, p99 %v", p50, p99)
		if p50 > 100*time.Millisecond {
			t.Errorf("p50 is %v", p50)
		}
	})
}

// handOvers measures from the unlock call to the return of the waiter's call, on the other node; sorted.
func handOvers(t testing.TB, e *env, n int) []time.Duration {
	t.Helper()
	x, y := e.client(t, 0).open("x", rdonly|creat), e.client(t, 1).open("x", rdonly|creat)
	want(t, "the first lock", x.flock(ex), 0)
	var times []time.Duration
	for range n {
		waits := y.beginFlock(ex)
		eventually(t, "it waits", func() bool { return inFUSE(y.c.pid()) })
		e.queued(t, "x", 2)
		unlocked := x.c.call("flock", x.fd, syscall.LOCK_UN)
		want(t, "unlock", unlocked.err(), 0)
		got := waits.wait()
		want(t, "the waiter", got.err(), 0)
		times = append(times, got.Ended-unlocked.Began)
		x, y = y, x
	}
	slices.Sort(times)
	return times
}
