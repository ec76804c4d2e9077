package faults

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"lockfs/backends/testserver"
)

const nodesOfRun, workersOfNode = 3, 3

// plan is what a run is to do.
type plan struct {
	backend string
	kills   bool   // on_lost: KILL
	alone   bool   // each fault alone before they are mixed
	special bool   // of those only that are not for any back end
	program string // lockfs
	mixed   time.Duration
	// patience is how long requests may take after the last fault; 0: patience.
	patience time.Duration
}

// run is a cluster that is broken and watched.
type run struct {
	plan
	seed    uint64
	dir     string
	cluster *cluster
	nodes   []*node
	crew    *crew

	serverBusy sync.Mutex

	mu     sync.Mutex
	counts map[string]int
	wrong  []string
	// outages are the times in which what has ended may stay for longer than a lease.
	outages []outage
}

// result is what came of a run.
type result struct {
	seed   uint64
	grants int
	counts map[string]int
	wrong  []string
	text   string
}

func (r *run) report(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wrong = append(r.wrong, fmt.Sprintf(format, args...))
}

func (r *run) count(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts[what]++
}

// newSeed is a random one, or the one to repeat.
func newSeed(t testing.TB) uint64 {
	text := os.Getenv("LOCKFS_FAULT_SEED")
	if text == "" {
		return rand.Uint64()
	}
	seed, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("LOCKFS_FAULT_SEED: %v", err)
	}
	return seed
}

// perform carries a plan out. The test fails only where the harness itself can't go on.
func perform(t testing.TB, p plan, seed uint64) result {
	t.Helper()
	r := &run{plan: p, seed: seed, dir: t.TempDir(), cluster: newCluster(t, p.backend), counts: map[string]int{}}
	if r.patience == 0 {
		r.patience = patience
	}
	began := time.Now()
	r.crew = newCrew(r, seed)
	onLost := "eio"
	if p.kills {
		onLost = "KILL"
	}
	for i := range nodesOfRun {
		r.nodes = append(r.nodes, newNode(t, r.cluster, p.program, r.dir, fmt.Sprint("n", i), onLost))
	}
	t.Cleanup(func() { r.crew.stop(0) }) // where it breaks off
	for _, n := range r.nodes {
		for place := range workersOfNode {
			r.crew.keepOne(n, place)
		}
	}
	rng := rand.New(rand.NewPCG(seed, 3))
	r.settle("the start")
	if p.alone {
		r.eachAlone(rng)
	}
	r.mix(rng)
	r.settle("the mix")
	r.crew.stop(r.patience)
	r.empty()
	for _, n := range r.nodes {
		if err := n.stop(); err != nil {
			r.report("%v", err)
		}
		r.wrong = append(r.wrong, n.complaints()...)
	}
	res := r.judge(time.Since(began))
	if len(res.wrong) > 0 {
		res.text += r.logs()
	}
	return res
}

// apply does one fault, if its target is free, and counts it.
func (r *run) apply(f fault, n *node, rng *rand.Rand) {
	target := &n.busy
	if f.server {
		target = &r.serverBusy
	}
	if !f.worker {
		if !target.TryLock() {
			return
		}
		defer target.Unlock()
		if f.fatal && !n.mayLoseServer() {
			return
		}
		for _, each := range r.nodes {
			if (f.server || each == n) && !f.calm {
				each.storm.Storm.Add(1)
				defer each.storm.Storm.Add(-1)
			}
		}
		defer r.outage(f, n, now())
		time.Sleep(20 * time.Millisecond) // some begin to hold on
	}
	if f.do(r, n, rng) {
		r.count(f.kind)
	}
}

// outage notes a fault that is over now.
func (r *run) outage(f fault, n *node, from int64) {
	o := outage{node: n.name, from: from, to: now()}
	if f.server {
		o.node = ""
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.outages = append(r.outages, o)
}

// eachAlone does one fault after the other, and waits each time until all nodes take locks again.
func (r *run) eachAlone(rng *rand.Rand) {
	for _, i := range rng.Perm(len(kinds)) {
		f := kinds[i]
		if !f.fits(r.backend, r.special) {
			continue
		}
		r.apply(f, r.nodes[rng.IntN(len(r.nodes))], rand.New(rand.NewPCG(rng.Uint64(), 4)))
		r.settle(f.kind)
	}
}

// settle waits until all nodes take locks.
func (r *run) settle(after string) {
	before := map[*node]int64{}
	for _, n := range r.nodes {
		before[n] = r.crew.grants(n)
	}
	slow := -1
	if !testserver.Until(r.patience, func() bool {
		slow = slices.IndexFunc(r.nodes, func(n *node) bool { return r.crew.grants(n) <= before[n] })
		return slow < 0
	}) {
		r.report("%s has taken no lock for %v after: %s", r.nodes[slow].name, r.patience, after)
	}
}

// mix does faults at random times, several at once.
func (r *run) mix(rng *rand.Rand) {
	var faults sync.WaitGroup
	defer faults.Wait()
	began := time.Now()
	for time.Since(began) < r.mixed {
		f := kinds[rng.IntN(len(kinds))]
		n := r.nodes[rng.IntN(len(r.nodes))]
		own := rand.New(rand.NewPCG(rng.Uint64(), 5))
		pause := between(rng, 0, 3*time.Second)
		if f.fits(r.backend, false) {
			faults.Go(func() { r.apply(f, n, own) })
		}
		time.Sleep(pause)
	}
}

// leftovers is how long what is over may stay in the back end: a lease, and two seconds for machines that are busy. (A node may
// keep idle claims for one.)
func (r *run) leftovers() time.Duration { return r.cluster.lease() + 2*time.Second }

// empty looks that nothing is left in the back end after that.
func (r *run) empty() {
	for deadline := time.Now().Add(r.leftovers()); ; time.Sleep(20 * time.Millisecond) {
		left, err := r.cluster.left()
		if err == nil && len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			r.report("left in the back end: %v (%v)", left, err)
			return
		}
	}
}

// judge puts the records together.
func (r *run) judge(took time.Duration) result {
	var all []grant
	var present []presence
	var tries []try
	failures := map[string]int{}
	known, refused := map[string]int64{}, []event(nil)
	for _, rec := range r.crew.records() {
		grants, failed := rec.grants()
		all = append(all, grants...)
		for what, n := range failed {
			failures[what] += n
		}
		p, t := rec.calls()
		present, tries = append(present, p...), append(tries, t...)
		names, opens := rec.opens()
		refused = append(refused, opens...)
		since(known, names)
	}
	if keepsNames(r.backend) {
		r.wrong = append(r.wrong, refusedOpens(known, refused)...)
	}
	r.wrong = append(r.wrong, check(all)...)
	outlast(present, r.leftovers(), r.outages)
	sum := refusals(present, tries, all)
	r.wrong = append(r.wrong, sum.wrong...)
	for what, n := range failures {
		if !mayFail(what, r.backend) {
			r.report("lock calls failed as they must not, %d times: %s", n, what)
		}
	}
	ends := map[ending]int{}
	for _, g := range all {
		ends[g.End]++
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s, on_lost %v, seed %d, %v: %d acquisitions, %d violations\n", r.backend, map[bool]string{false: "eio", true: "KILL"}[r.kills], r.seed, took.Round(time.Second), len(all), len(r.wrong))
	fmt.Fprintf(&b, "  faults: %s\n  ends: %v\n  errors: %s\n", sorted(r.counts), ends, sorted(failures))
	fmt.Fprintf(&b, "  tries: %d, of them of a lock that nobody held %d (got though another node had had it %d, back end out of reach %d, refused %d); locks under a claim that the node had: %d\n",
		sum.all, sum.free, sum.elsewhere, sum.unavailable, len(sum.wrong), keptOn(all))
	for how, d := range margins(all) {
		fmt.Fprintf(&b, "  smallest margin to the next grant where the lock was %s: %v\n", how, d)
	}
	return result{seed: r.seed, grants: len(all), counts: r.counts, wrong: r.wrong, text: b.String()}
}

// keepsNames reports whether no fault makes a back end lose names: elsewhere any open may be one that creates its name.
func keepsNames(backend string) bool { return backend == "zookeeper" || backend == onEnsemble }

// mayFail reports whether a lock call on a descriptor that is new may end like this (docs/contract.md): one that
// waits goes on waiting, unless its mount has gone; one that does not says that the lock is held, or that it can't tell.
func mayFail(what, backend string) bool {
	how, errno, _ := strings.Cut(what, " ")
	if then, ok := strings.CutPrefix(how, opening); ok {
		// An open looks for the file as well, and says EIO where the back end does not answer. refusedOpens sees to ENOLCK.
		return errno == "EIO" || errno == "ENOLCK" || mayFail(then+" "+errno, backend)
	}
	if then, ok := strings.CutPrefix(how, after); ok {
		return errno == "EIO" || mayFail(then+" "+errno, backend) // what the open took can be lost before
	}
	switch {
	case backend == onFile && (errno == "ENOSPC" || errno == "EROFS") || backend == onSmallDisk && errno == "ENOSPC":
		return true
	case errno == "ECONNABORTED" || errno == "ENOTCONN" || how == "lost":
		return true
	case how == limited:
		return errno == "ETIMEDOUT" || errno == "unknown" // flock(1) does not say
	}
	return how == trying && (errno == "EAGAIN" || errno == "ENOLCK")
}

func sorted(counts map[string]int) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", k, counts[k]))
	}
	return strings.Join(parts, ", ")
}

// logs is the end of what the nodes say.
func (r *run) logs() string {
	var b strings.Builder
	for _, n := range r.nodes {
		text := ""
		for _, log := range n.logs {
			text += log.String()
		}
		fmt.Fprintf(&b, "log of %s:\n%s\n", n.name, text[max(0, len(text)-8000):])
	}
	return b.String()
}

// expect fails the test where something was wrong.
func (res result) expect(t *testing.T) {
	t.Helper()
	t.Log(res.text)
	for _, w := range res.wrong[:min(len(res.wrong), 10)] {
		t.Error(w)
	}
	if res.grants == 0 {
		t.Error("no lock was ever taken")
	}
}

// A short run on each back end: each fault alone, then a mix.
func TestFaults(t *testing.T) {
	program := build(t, "")
	for _, backend := range []string{"redis", "zookeeper"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			perform(t, plan{backend: backend, alone: true, program: program, mixed: 5 * time.Second}, newSeed(t)).expect(t)
			perform(t, plan{backend: backend, kills: true, program: program, mixed: 10 * time.Second}, newSeed(t)).expect(t)
		})
	}
	for _, backend := range []string{onEnsemble, onSentinel, onFile, onSmallDisk} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			perform(t, plan{backend: backend, alone: true, special: true, program: program, mixed: 5 * time.Second}, newSeed(t)).expect(t)
		})
	}
}
