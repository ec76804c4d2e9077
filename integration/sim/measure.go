package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"lockfs/integration/report"
)

// figures are what a simulation comes to.
type figures struct {
	kind                string
	sessions            int
	opened              time.Duration
	idle, alone, shared rates
	turn                rates
	memory              string
	locks               int
}

// rates are what happened in a span of time; the first three are for a second.
type rates struct {
	grants, requests float64
	processor        float64 // of the server, in parts of a core
	messages         float64 // from the server, for each grant
	least, most      int     // grants of a session
}

// each is the server's time for a grant and its release.
func (r rates) each() string {
	return report.Micros(time.Duration(r.processor/max(r.grants, 1)*float64(time.Second))) + " µs"
}

func (r rates) asked() string { return fmt.Sprintf("%.2f", r.requests/max(r.grants, 1)) }

// quiet is a lease whose heartbeats stay out of what is counted.
const quiet = 5 * time.Minute

func measure(ctx context.Context, s *server, p plan) (f figures, err error) {
	f = figures{kind: s.kind, sessions: p.sessions}
	began := time.Now()
	ns, err := open(ctx, s, p.sessions, p.ttl)
	if err != nil {
		return f, fmt.Errorf("opening the sessions: %w", err)
	}
	f.opened = time.Since(began)
	if err := f.measureRates(ctx, s, ns, p); err != nil {
		return f, errors.Join(err, ns.close())
	}
	if err := ns.close(); err != nil {
		return f, fmt.Errorf("closing the sessions: %w", err)
	}
	if ns, err = open(ctx, s, p.sessions, quiet); err != nil {
		return f, fmt.Errorf("opening the sessions anew: %w", err)
	}
	f.turn, err = inTurn(ctx, s, ns)
	return f, errors.Join(err, ns.close())
}

func (f *figures) measureRates(ctx context.Context, s *server, ns *nodes, p plan) (err error) {
	f.idle, err = s.during(func() (int, error) { return 0, sleep(ctx, p.span) })
	if err != nil {
		return fmt.Errorf("idle: %w", err)
	}
	if f.alone, err = cycles(ctx, s, ns, p.span, len(ns.all)); err != nil {
		return fmt.Errorf("each a name of its own: %w", err)
	}
	if f.shared, err = cycles(ctx, s, ns, p.span, max(len(ns.all)/10, 1)); err != nil {
		return fmt.Errorf("ten to a name: %w", err)
	}
	if err := f.measureMemory(ctx, s, ns, p.each); err != nil {
		return fmt.Errorf("holding many locks: %w", err)
	}
	return nil
}

// during runs f, which returns how many grants there were, and says what the server did meanwhile.
func (s *server) during(f func() (int, error)) (r rates, err error) {
	requests, messages, err := s.counts()
	if err != nil {
		return r, err
	}
	processor, err := s.processor()
	if err != nil {
		return r, err
	}
	began := time.Now()
	grants, err := f()
	if err != nil {
		return r, err
	}
	seconds := time.Since(began).Seconds()
	used, err := s.processor()
	if err != nil {
		return r, err
	}
	asked, sent, err := s.counts()
	if err != nil {
		return r, err
	}
	return rates{grants: float64(grants) / seconds, requests: float64(asked-requests) / seconds,
		processor: (used - processor).Seconds() / seconds, messages: float64(sent-messages) / float64(max(grants, 1))}, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// cycles lets every session lock and unlock one of so many names, again and again.
func cycles(ctx context.Context, s *server, ns *nodes, span time.Duration, names int) (rates, error) {
	locks := make([]name, names)
	for i := range locks {
		locks[i].name = fmt.Sprintf("of-%d/%d", names, i)
	}
	counts := make([]int, len(ns.all))
	r, err := s.during(func() (total int, err error) {
		var done atomic.Bool
		defer time.AfterFunc(span, func() { done.Store(true) }).Stop()
		err = each(len(ns.all), len(ns.all), func(i int) error {
			for l := &locks[i%names]; !done.Load(); counts[i]++ {
				claim, err := ns.all[i].take(ctx, l, nil)
				if err == nil {
					err = ns.all[i].drop(ctx, l, claim)
				}
				if err != nil {
					done.Store(true)
					return err
				}
			}
			return nil
		})
		for _, n := range counts {
			total += n
		}
		return total, err
	})
	r.least = counts[0]
	for _, n := range counts {
		r.least, r.most = min(r.least, n), max(r.most, n)
	}
	return r, err
}

// measureMemory lets every session hold some locks.
func (f *figures) measureMemory(ctx context.Context, s *server, ns *nodes, perSession int) error {
	before, err := s.memory()
	if err != nil {
		return err
	}
	err = each(len(ns.all), 64, func(i int) error {
		for j := range perSession {
			// The names are as long as names are.
			if _, err := ns.all[i].take(ctx, &name{name: fmt.Sprintf("held/by-node-%d/number-%d", i, j)}, nil); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	after, err := s.memory()
	f.locks = len(ns.all) * perSession
	f.memory = report.Thousands(float64(after-before) / float64(f.locks))
	return err
}

// inTurn lets all sessions but one wait for what that one holds; when all are in the queue it lets go, and so does each in its turn.
func inTurn(ctx context.Context, s *server, ns *nodes) (r rates, err error) {
	l := &name{name: "all/wait"}
	claim, err := ns.all[0].take(ctx, l, nil)
	if err != nil {
		return r, err
	}
	waiters := ns.all[1:]
	all := make(chan struct{})
	var queued atomic.Int64
	inQueue := func() {
		if queued.Add(1) == int64(len(waiters)) {
			close(all)
		}
	}
	outcome := make(chan error, 1)
	go func() {
		outcome <- each(len(waiters), len(waiters), func(i int) error {
			c, err := waiters[i].take(ctx, l, inQueue)
			if err != nil {
				return err
			}
			return waiters[i].drop(ctx, l, c)
		})
	}()
	select {
	case <-all:
	case err := <-outcome:
		return r, fmt.Errorf("before all wait: %w", err)
	}
	if err := s.settled(ctx); err != nil {
		return r, err
	}
	return s.during(func() (int, error) {
		if err := ns.all[0].drop(ctx, l, claim); err != nil {
			return 0, err
		}
		return len(waiters), <-outcome
	})
}

// settled returns when the server has sent no message for a while: what the waiters' coming brought is over.
func (s *server) settled(ctx context.Context) error {
	last := -1
	for same := 0; same < 5; same++ {
		_, messages, err := s.counts()
		if err != nil {
			return err
		}
		if messages != last {
			last, same = messages, 0
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}
