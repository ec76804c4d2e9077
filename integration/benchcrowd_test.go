package integration

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"
)

// crowdFigure is many processes that lock and unlock one name as fast as they can.
type crowdFigure struct {
	kind              string
	how               string // "write" or "read"
	processes, mounts int
	rate              float64 // locks a second
	least, most       int
	violations        int
}

func (b *bench) measureCrowds(t *testing.T, kind string) {
	e, program := newBenchEnv(t, kind), buildCrowd(t)
	for range 4 {
		e.mount()
	}
	for _, mounts := range []int{2, 4} {
		for _, processes := range b.scale.crowds {
			b.crowd(t, e, program, "write", processes, mounts, 1)
		}
	}
	b.crowd(t, e, program, "write", 16, 2, 3) // there is a bound on it
	b.crowd(t, e, program, "read", 16, 2, 1)
}

// buildCrowd builds testdata/crowd.c.
func buildCrowd(t *testing.T) (program string) {
	t.Helper()
	program = filepath.Join(t.TempDir(), "crowd")
	if out, err := exec.Command("gcc", "-O2", "-Wall", "-Werror", "-o", program, "testdata/crowd.c").CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	return program
}

// crowd adds the run in the middle of so many, by locks a second.
func (b *bench) crowd(t *testing.T, e *env, program, how string, processes, mounts, runs int) {
	var all []crowdFigure
	for range runs {
		all = append(all, b.runCrowd(t, e, program, how, processes, mounts))
	}
	slices.SortFunc(all, func(x, y crowdFigure) int { return cmp.Compare(x.rate, y.rate) })
	b.crowds = append(b.crowds, all[runs/2])
}

// crowdWarmUp is how long a crowd runs before it is counted: the kernel takes some tenths of a second to find out where on two cores so many
// that wake each other run best, and a fifth fewer have locks meanwhile.
const crowdWarmUp = 500 * time.Millisecond

func (b *bench) runCrowd(t *testing.T, e *env, program, how string, processes, mounts int) crowdFigure {
	shared := fmt.Sprintf("/dev/shm/lockfs-bench-%d-crowd", os.Getpid())
	must(t, os.WriteFile(shared, make([]byte, pageSize), 0o600))
	defer os.Remove(shared)
	name := fmt.Sprint(how, processes, "on", mounts)
	flag := map[string]int{"write": ex, "read": sh}[how]
	from := monotonic() + 500*time.Millisecond + time.Duration(processes)*20*time.Millisecond // by then all have been started, or say so
	begin := from + crowdWarmUp
	var all []*benchClient
	for i := range processes {
		all = append(all, startBenchClient(t, exec.Command(program, e.on(i%mounts, name), strconv.Itoa(flag),
			strconv.FormatInt(int64(from), 10), strconv.FormatInt(int64(begin), 10), strconv.FormatInt(int64(begin+b.scale.crowdTime), 10), shared)))
	}
	f := crowdFigure{kind: e.kind, how: how, processes: processes, mounts: mounts, least: 1 << 62}
	sum := 0
	for _, c := range all {
		a := c.answer()
		sum += a.Count
		f.least, f.most = min(f.least, a.Count), max(f.most, a.Count)
		f.violations += a.Violations
		c.end()
	}
	f.rate = float64(sum) / b.scale.crowdTime.Seconds()
	if f.violations > 0 {
		t.Errorf("%d times somebody else was inside", f.violations)
	}
	return f
}

// waitFigure is many who wait for one name, which nobody lets go of for a time.
type waitFigure struct {
	kind            string
	waiters, mounts int
	came            int // how many waited when patience ended; what follows is known only where that is all
	idle            time.Duration
	counted         bool          // there is a server that counts
	requests        int           // besides those that come without waiters too
	processor       float64       // of the daemon that used most of it, in parts of a core
	turn            time.Duration // from the unlock to the return of the one who is next
	woken           int           // how many got the lock
	messages        int           // that the server sent meanwhile
	turns           turnFigure    // of all of them
}

// waitMounts is over how many mounts they are spread.
const waitMounts = 4

func (b *bench) measureWaiters(t *testing.T, kind string) {
	e, meter := newBenchEnv(t, kind), newMeter(t, kind)
	for range waitMounts {
		e.mount("session_ttl: 60s") // ZooKeeper's longest: few heartbeats in what is counted
	}
	before := meter.requests()
	time.Sleep(b.scale.idle) // what comes in this time is what is measured
	alone := meter.requests() - before
	for _, waiters := range b.scale.waiters {
		f := b.wait(t, e, meter, waiters)
		f.requests = max(f.requests-alone, 0) // a heartbeat less falls into one of the two times
		b.waits = append(b.waits, f)
		if f.turns.served < waiters {
			// More of them would take longer, and so may the nodes' goodbye.
			for _, n := range e.nodes {
				n.kill()
			}
			return
		}
	}
}

func (b *bench) wait(t *testing.T, e *env, meter meter, waiters int) waitFigure {
	f := waitFigure{kind: e.kind, waiters: waiters, mounts: waitMounts, idle: b.scale.idle, counted: meter.counts()}
	name := fmt.Sprint("waiters", waiters)
	holder := newBenchClient(t, e.on(0, name))
	holder.ask("lock")
	var all []*benchClient
	for i := range waitMounts {
		// The holder's own mount comes last, so that the one who is next is on another.
		c := newBenchClient(t, "")
		c.ask("wait", waiters/waitMounts, e.on((i+1)%waitMounts, name))
		within(t, benchPatience, "the first of them waits", func() bool { return c.waitingThreads() > 0 })
		all = append(all, c)
	}
	if f.came = settled(e, all, waiters); f.came < waiters {
		return f
	}
	f.requests, f.processor = idle(e, meter, b.scale.idle)

	messages := meter.messages()
	began := holder.ask("unlock").Began
	granted := func() (n int) {
		for _, c := range all {
			a := c.ask("granted")
			n += a.Count
			f.turn = max(f.turn, a.Ended-began)
		}
		return n
	}
	eventually(t, "one gets the lock", func() bool { return granted() > 0 })
	time.Sleep(b.scale.idle / 20) // more would come now
	f.woken, f.messages = granted(), meter.messages()-messages
	began = monotonic()
	for _, c := range all {
		c.ask("drain")
	}
	f.turns = inTurn(e.kind, began, waiters, all)
	return f
}

// idle lets time go by and returns what the server was asked, and the processor's part that the busiest daemon had.
func idle(e *env, meter meter, span time.Duration) (requests int, processor float64) {
	before, requests := make([]time.Duration, len(e.nodes)), -meter.requests()
	for i, n := range e.nodes {
		before[i] = n.processor()
	}
	time.Sleep(span) // what comes in this time is what is measured
	for i, n := range e.nodes {
		processor = max(processor, float64(n.processor()-before[i])/float64(span))
	}
	return requests + meter.requests(), processor
}

// comePatience is how long there is patience with waiters who are to come to the wait.
const comePatience = 45 * time.Second

// settled returns when so many threads wait in the kernel, and the nodes have done with it; it returns how many do.
func settled(e *env, clients []*benchClient, waiters int) (waiting int) {
	for until := monotonic() + comePatience; waiting < waiters && monotonic() < until; {
		time.Sleep(50 * time.Millisecond) // to look costs, too
		waiting = 0
		for _, c := range clients {
			waiting += c.waitingThreads()
		}
	}
	// What follows is an attempt: daemons that are never quiet are a finding, which idle shows.
	const look = 300 * time.Millisecond
	for until := monotonic() + comePatience/3; monotonic() < until; {
		if _, processor := idle(e, noMeter{}, look); processor < 0.05 {
			break
		}
	}
	return waiting
}
