package backendtest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"lockfs/backends"
	"lockfs/backends/queue"
)

var randomTests = []test{
	{"against the model", testAgainstModel},
}

// SeedVariable names the environment variable that repeats a random test.
const SeedVariable = "LOCKFS_TEST_SEED"

// testAgainstModel drives sessions with random requests, one at a time, and
// compares with queue.State after each: who is granted, who waits, who yields,
// and what the holders are.
func testAgainstModel(e *env) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv(SeedVariable); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		e.must(err)
	}
	e.Logf("%s=%d", SeedVariable, seed)
	for round := range 4 {
		r := &rig{env: e, rng: rand.New(rand.NewPCG(seed, uint64(round))), name: fmt.Sprintf("model %d", round),
			peers: e.peers(4), observer: e.peer(), calls: map[string]*pending{}, claims: map[string]backends.Claim{}, tokens: map[uint64]bool{}}
		for range 80 {
			r.step()
		}
		r.finish()
	}
}

// rig is a running comparison.
type rig struct {
	*env
	rng      *rand.Rand
	name     string
	peers    []*peer
	observer *peer
	model    queue.State
	calls    map[string]*pending       // by model ID, those that wait
	claims   map[string]backends.Claim // by model ID, what the back end granted
	last     int                       // model IDs
	token    uint64                    // the greatest so far
	before   uint64                    // the greatest before this step
	tokens   map[uint64]bool
	trace    []string
}

func (r *rig) say(format string, args ...any) {
	r.trace = append(r.trace, fmt.Sprintf(format, args...))
}

func (r *rig) fail(format string, args ...any) {
	r.Helper()
	r.Fatalf("%s\nafter:\n%s\nmodel: %+v", fmt.Sprintf(format, args...), strings.Join(r.trace, "\n"), r.model)
}

func (r *rig) newID() string {
	r.last++
	return "m" + strconv.Itoa(r.last)
}

func (r *rig) step() {
	r.before = r.token
	waiting := r.pick(func(e queue.Entry) bool { return !e.Granted })
	granted := r.pick(func(e queue.Entry) bool { return e.Granted })
	switch n := r.rng.IntN(10); {
	case n < 5 && len(r.model) < 12:
		r.acquire()
	case n < 8 && granted != nil:
		r.alter(*granted)
	case waiting != nil:
		r.cancelOne(*waiting)
	}
	r.compare()
}

// pick returns a random entry of the model for which ok holds, or nil.
func (r *rig) pick(ok func(queue.Entry) bool) *queue.Entry {
	var found []queue.Entry
	for _, e := range r.model {
		if ok(e) {
			found = append(found, e)
		}
	}
	if len(found) == 0 {
		return nil
	}
	return &found[r.rng.IntN(len(found))]
}

func (r *rig) randomRange(within backends.Range) backends.Range {
	points := []uint64{0, 1, 2, 3, 4, 5, 6, 7, 1 << 53, 1<<53 + 1, backends.MaxByte - 1, backends.MaxByte}
	points = slices.DeleteFunc(points, func(p uint64) bool { return p < within.First || p > within.Last })
	if len(points) == 0 {
		return within
	}
	a, b := points[r.rng.IntN(len(points))], points[r.rng.IntN(len(points))]
	return backends.Range{First: min(a, b), Last: max(a, b)}
}

func (r *rig) randomRequest(p *peer) backends.Request {
	req := backends.Request{
		Lock: backends.Lock{Range: r.randomRange(backends.Whole), Mode: backends.Read + backends.Mode(r.rng.IntN(2))},
		Wait: r.rng.IntN(4) > 0, Hint: backends.Hint(r.rng.IntN(4))}
	if r.rng.IntN(4) == 0 {
		req.YieldTo = backends.Hint(1 + r.rng.IntN(3))
	}
	if r.rng.IntN(2) == 0 {
		for _, e := range r.model {
			if e.Granted && e.Session == p.ID() && r.rng.IntN(2) == 0 {
				req.Held = append(req.Held, e.Lock)
			}
		}
	}
	return req
}

// acquire sends one request to both.
func (r *rig) acquire() {
	p := r.peers[r.rng.IntN(len(r.peers))]
	req := r.randomRequest(p)
	entry := queue.Entry{ID: r.newID(), Session: p.ID(), Lock: req.Lock, Held: req.Held, Hint: req.Hint, YieldTo: req.YieldTo}
	r.say("%s: session %s acquires %+v", entry.ID, p.ID(), req)
	if !req.Wait {
		r.tryNow(p, entry, req)
		return
	}
	call := p.ask(r.name, req)
	if !r.model.Ask(entry) {
		if err := call.returns(); !errors.Is(err, backends.ErrDeadlock) {
			r.fail("%s returned %+v, %v; want ErrDeadlock", entry.ID, call.claim, err)
		}
		return
	}
	r.calls[entry.ID] = call
	r.settle()
}

// tryNow is a request that does not wait.
func (r *rig) tryNow(p *peer, entry queue.Entry, req backends.Request) {
	c, err := p.Acquire(r.ctx(), r.name, req)
	next := slices.Clone(r.model)
	if !next.Ask(entry) {
		if !errors.Is(err, backends.ErrWouldBlock) && !errors.Is(err, backends.ErrDeadlock) {
			r.fail("%s returned %+v, %v; want ErrWouldBlock or ErrDeadlock", entry.ID, c, err)
		}
		return
	}
	granted, yielded := next.Settle(nil)
	isEntry := func(o queue.Entry) bool { return o.ID == entry.ID }
	switch {
	case slices.ContainsFunc(granted, isEntry):
		if err != nil {
			r.fail("%s returned %v, want a claim", entry.ID, err)
		}
		r.model = next
		r.took(entry, c)
		r.settled(slices.DeleteFunc(granted, isEntry), yielded) // others may yield to it
	case slices.ContainsFunc(yielded, isEntry):
		if !errors.Is(err, backends.ErrYield) {
			r.fail("%s returned %+v, %v; want ErrYield", entry.ID, c, err)
		}
	case !errors.Is(err, backends.ErrWouldBlock):
		r.fail("%s returned %+v, %v; want ErrWouldBlock", entry.ID, c, err)
	}
}

// alter changes one claim in both.
func (r *rig) alter(old queue.Entry) {
	i := slices.IndexFunc(r.peers, func(p *peer) bool { return p.ID() == old.Session })
	var to []backends.Keep
	var ids []string
	for range r.rng.IntN(3) {
		to = append(to, backends.Keep{Hint: backends.Hint(r.rng.IntN(4)), Lock: backends.Lock{
			Range: r.randomRange(old.Range), Mode: backends.Read + backends.Mode(r.rng.IntN(int(old.Mode)))}})
		ids = append(ids, r.newID())
	}
	r.say("%s: session %s changes to %v %+v", old.ID, old.Session, ids, to)
	was := r.claims[old.ID]
	got, err := r.peers[i].Change(r.ctx(), r.name, []backends.Change{{ID: was.ID, To: to}})
	if err != nil || len(got) != len(to) {
		r.fail("Change of %s: %+v, %v", old.ID, got, err)
	}
	r.model.Replace(old.ID, ids, to)
	delete(r.claims, old.ID)
	for k, c := range got {
		if c.Token != was.Token || c.Seq != was.Seq || c.Lock != to[k].Lock || c.Hint != to[k].Hint {
			r.fail("Change of %s returned %+v at %d", old.ID, c, k)
		}
		r.claims[ids[k]] = c
	}
	r.settle()
}

// cancelOne ends one wait in both.
func (r *rig) cancelOne(e queue.Entry) {
	r.say("%s: session %s gives up", e.ID, e.Session)
	call := r.calls[e.ID]
	call.cancel()
	if err := call.returns(); !isCancelled(err) {
		r.fail("%s was cancelled and returned %+v, %v", e.ID, call.claim, err)
	}
	delete(r.calls, e.ID)
	r.model.Drop(e.ID)
	r.settle()
}

// settle lets the model decide, and the back end follow.
func (r *rig) settle() {
	r.settled(r.model.Settle(nil))
}

// settled waits until the back end has granted and taken out the same.
func (r *rig) settled(granted, yielded []queue.Entry) {
	for _, e := range granted {
		call := r.calls[e.ID]
		delete(r.calls, e.ID)
		if err := r.end(e, call); err != nil {
			r.fail("%s returned %v, want a claim", e.ID, err)
		}
		r.took(e, call.claim)
		if want := r.model.Contended(e.Session, e.Lock); len(yielded) == 0 && call.claim.Contended != want {
			r.fail("%s: Contended is %v, want %v", e.ID, call.claim.Contended, want)
		}
	}
	for _, e := range yielded {
		call := r.calls[e.ID]
		delete(r.calls, e.ID)
		if err := r.end(e, call); !errors.Is(err, backends.ErrYield) {
			r.fail("%s returned %+v, %v; want ErrYield", e.ID, call.claim, err)
		}
	}
}

// end waits for a call's end, telling the whole story where it does not come.
func (r *rig) end(e queue.Entry, call *pending) error {
	select {
	case <-call.done:
	case <-time.After(patience):
		r.fail("%s still waits after %v; it should not", e.ID, patience)
	}
	return call.err
}

// took notes a claim.
func (r *rig) took(e queue.Entry, c backends.Claim) {
	if c.Lock != e.Lock || c.Hint != e.Hint {
		r.fail("%s was granted %+v", e.ID, c)
	}
	r.say("%s: granted, token %d", e.ID, c.Token)
	// Of what one step grants to several nodes at once, none was granted before another.
	if c.Token <= r.before || r.tokens[c.Token] {
		r.fail("%s was granted with token %d after %d", e.ID, c.Token, r.before)
	}
	r.token, r.tokens[c.Token] = max(r.token, c.Token), true
	r.claims[e.ID] = c
}

// compare checks that the back end is where the model is.
func (r *rig) compare() {
	deadline := time.Now().Add(patience)
	for r.Entries(r.T, r.name) != len(r.model) {
		if time.Now().After(deadline) {
			r.fail("the back end has %d entries, want %d", r.Entries(r.T, r.name), len(r.model))
		}
		time.Sleep(time.Millisecond)
	}
	for id, call := range r.calls {
		if call.isDone() {
			r.fail("%s returned %+v, %v; it has to wait", id, call.claim, call.err)
		}
	}
	holders, err := r.observer.Holders(r.ctx(), r.name, writing)
	r.must(err)
	var got, want []string
	for _, h := range holders {
		got = append(got, fmt.Sprint(h.Session, h.ID, h.Lock, h.Hint, h.Token))
	}
	for _, e := range r.model {
		if e.Granted {
			c := r.claims[e.ID]
			want = append(want, fmt.Sprint(e.Session, c.ID, e.Lock, e.Hint, c.Token))
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		r.fail("holders are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if !slices.IsSortedFunc(holders, func(a, b backends.Holder) int {
		if a.First < b.First {
			return -1
		}
		return int(min(a.First-b.First, 1))
	}) {
		r.fail("holders are not in the order of their first byte: %+v", holders)
	}
}

// finish lets go of everything, after which nothing is left.
func (r *rig) finish() {
	for _, call := range r.calls {
		call.cancel()
		_ = call.returns() // cancelled, or granted by another's end
	}
	for _, p := range r.peers {
		r.must(p.Close(r.ctx()))
	}
	r.empty(r.name)
}
