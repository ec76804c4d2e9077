package backendtest

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"lockfs/backends"
)

var cancelTests = []test{
	{"at once, leaving nothing", testCancel},
	{"the next in line gets in", testCancelLetsIn},
	{"crossing with a grant", testCancelCrossing},
	{"told when nothing is left", testTakenBack},
	{"a context that has ended", testCancelledBefore},
	{"hammer", testHammer},
}

// prompt is how long an Acquire may take to return after its context's end.
const prompt = 50 * time.Millisecond

func testCancel(e *env) {
	const name = "cancel"
	p := e.peers(2)
	c := p[0].get(name, writing)
	var took []time.Duration
	for range 11 {
		q := p[1].queue(name, writing)
		start := time.Now()
		q.cancel()
		err := q.returns()
		took = append(took, time.Since(start))
		if !errors.Is(err, context.Canceled) {
			e.Fatalf("a cancelled Acquire returned %v", err)
		}
		e.entries(name, 1)
	}
	slices.Sort(took)
	if median := took[len(took)/2]; median > prompt {
		e.Errorf("a cancelled Acquire returns after %v (median), want at most %v", median, prompt)
	}
	p[0].drop(name, c)
	p[1].drop(name, p[1].get(name, writing))
	e.empty(name)
}

func testCancelLetsIn(e *env) {
	const name = "let in"
	p := e.peers(3)
	c := p[0].get(name, reading)
	w, r := p[1].queue(name, writing), p[2].queue(name, reading)
	w.cancel()
	if err := w.returns(); !isCancelled(err) {
		e.Fatalf("a cancelled Acquire returned %v", err)
	}
	p[2].drop(name, r.granted())
	p[0].drop(name, c)
	e.empty(name)
}

// testCancelCrossing races a waiter's cancellation against the release that
// lets it in: either it has the claim, or nothing of it stays.
func testCancelCrossing(e *env) {
	const name = "crossing"
	p := e.peers(3)
	got := 0
	for i := range 150 {
		c := p[0].get(name, writing)
		q := p[1].queue(name, writing)
		third := p[2].queue(name, reading)
		var both sync.WaitGroup
		spin := time.Duration(rand.IntN(400)) * time.Microsecond
		both.Go(func() {
			if i%2 == 0 {
				time.Sleep(spin)
			}
			q.cancel()
		})
		if i%2 == 1 {
			time.Sleep(spin)
		}
		p[0].drop(name, c)
		both.Wait()
		if err := q.returns(); err == nil {
			got++
			p[1].drop(name, q.claim)
		} else if !isCancelled(err) {
			e.Fatal(err)
		}
		p[2].drop(name, third.granted())
		e.empty(name)
	}
	e.Logf("of 150 cancelled requests %d were granted first", got)
}

// testTakenBack: when TakenBack is called, once, nothing of the request is in anybody's way, wherever it was when its context ended.
func testTakenBack(e *env) {
	const name = "taken back"
	p := e.peers(3)
	var cancelled int
	for range 150 {
		c := p[0].get(name, writing)
		told := make(chan struct{}, 10)
		q := p[1].ask(name, backends.Request{Lock: writing, TakenBack: func() { told <- struct{}{} }})
		time.Sleep(time.Duration(rand.IntN(1000)) * time.Microsecond)
		var dropped sync.WaitGroup
		dropped.Go(func() { p[0].drop(name, c) })
		time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond << rand.IntN(6)) // some engines take longer
		q.cancel()
		err := q.returns()
		dropped.Wait()
		switch {
		case err == nil:
			p[1].drop(name, q.claim)
		case errors.Is(err, backends.ErrGivenUp):
			cancelled++
			select {
			case <-told:
			case <-time.After(patience):
				e.Fatal("TakenBack was not called")
			}
		case isCancelled(err): // before it was asked
		default:
			e.Fatal(err)
		}
		p[2].drop(name, p[2].get(name, writing))
		if len(told) > 0 {
			e.Fatalf("TakenBack was called too often, for a request that ended with %v", err)
		}
	}
	e.empty(name)
	e.Logf("%d of 150 requests were taken back, the others granted", cancelled)
}

func testCancelledBefore(e *env) {
	const name = "never asked"
	p := e.peers(2)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	c := p[0].get(name, writing)
	for _, wait := range []bool{true, false} {
		if _, err := p[1].Acquire(ctx, name, backends.Request{Lock: writing, Wait: wait}); err == nil {
			e.Fatal("Acquire of a held name succeeded with a context that had ended")
		}
	}
	e.entries(name, 1)
	p[0].drop(name, c)
	e.empty(name)
}

// inside counts who is in the critical section, by session.
type inside struct {
	mu      sync.Mutex
	readers map[string]int
	writers map[string]int
	entered int
}

// enter reports whether one of another session is inside that excludes this one.
func (in *inside) enter(session string, m backends.Mode) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.entered++
	clash := false
	for s, n := range in.writers {
		clash = clash || s != session && n > 0
	}
	if m == backends.Write {
		for s, n := range in.readers {
			clash = clash || s != session && n > 0
		}
		in.writers[session]++
		return clash
	}
	in.readers[session]++
	return clash
}

func (in *inside) leave(session string, m backends.Mode) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if m == backends.Write {
		in.writers[session]--
	} else {
		in.readers[session]--
	}
}

// testHammer: 4 sessions, 3 goroutines each, take and let go of one name,
// some of them giving up while they wait.
func testHammer(e *env) {
	const name = "hammer"
	in := &inside{readers: map[string]int{}, writers: map[string]int{}}
	until := time.Now().Add(1500 * time.Millisecond)
	var all sync.WaitGroup
	for i, p := range e.peers(4) {
		for g := range 3 {
			rng := rand.New(rand.NewPCG(uint64(i), uint64(g)))
			all.Go(func() {
				for time.Now().Before(until) && !e.Failed() {
					e.hammer(p, name, rng, in)
				}
			})
		}
	}
	all.Wait()
	e.empty(name)
	if in.entered < 20 {
		e.Errorf("only %d grants", in.entered)
	}
	e.Logf("%d grants", in.entered)
}

func (e *env) hammer(p *peer, name string, rng *rand.Rand, in *inside) {
	l := writing
	if rng.IntN(3) == 0 {
		l = reading
	}
	limit := patience
	if rng.IntN(4) == 0 {
		limit = time.Duration(rng.IntN(5000)) * time.Microsecond
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c, err := p.Acquire(ctx, name, backends.Request{Lock: l, Wait: rng.IntN(5) > 0})
	switch {
	case err == nil:
	case limit < patience && isCancelled(err), errors.Is(err, backends.ErrWouldBlock):
		return
	default:
		e.Errorf("Acquire: %v", err)
		return
	}
	if in.enter(p.ID(), l.Mode) {
		e.Errorf("session %s has a %v lock together with another session", p.ID(), l.Mode)
	}
	in.leave(p.ID(), l.Mode)
	if _, err := p.Change(context.Background(), name, []backends.Change{{ID: c.ID}}); err != nil {
		e.Errorf("Change: %v", err)
	}
}
