package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"lockfs/backends"
	"lockfs/backends/all"
	"lockfs/config"
)

// nodes are the sessions, each with a connection of its own, as mounts have.
type nodes struct {
	all    []*node
	events atomic.Int64 // 'another node wants this'
}

type node struct {
	backend backends.Backend
	session backends.Session
}

// open opens all, some at a time. The caller closes them.
func open(ctx context.Context, s *server, n int, ttl time.Duration) (*nodes, error) {
	ns := &nodes{all: make([]*node, n)}
	cluster := "sim-" + rand.Text()[:10]
	err := each(n, 32, func(i int) (err error) {
		ns.all[i], err = ns.openOne(ctx, s, cluster, fmt.Sprint("node", i), ttl)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, ns.close())
	}
	return ns, nil
}

func (ns *nodes) openOne(ctx context.Context, s *server, cluster, name string, ttl time.Duration) (*node, error) {
	c := &config.Config{Cluster: cluster, Node: name, SessionTTL: ttl, Backends: []config.Backend{s.config}}
	backend, err := all.Open(ctx, c, nil)
	if err != nil {
		return nil, err
	}
	session, err := backend.Open(ctx, backends.SessionOptions{Node: name, TTL: ttl})
	if err != nil {
		return nil, errors.Join(err, backend.Close())
	}
	go func() { // ends with the session
		for {
			select {
			case <-session.Events():
				ns.events.Add(1)
			case <-session.Done():
				return
			}
		}
	}()
	return &node{backend, session}, nil
}

func (ns *nodes) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return each(len(ns.all), 32, func(i int) error {
		n := ns.all[i]
		if n == nil {
			return nil
		}
		return errors.Join(n.session.Close(ctx), n.backend.Close())
	})
}

// each runs f for 0 to n-1, so many at once.
func each(n, atOnce int, f func(i int) error) error {
	var next atomic.Int64
	var mu sync.Mutex
	var all []error
	var working sync.WaitGroup
	for range min(atOnce, n) {
		working.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := f(i); err != nil {
					mu.Lock()
					all = append(all, err)
					mu.Unlock()
					return
				}
			}
		})
	}
	working.Wait()
	return errors.Join(all...)
}

// name is a lock and who is inside, as the nodes see it: the simulation is a test, too.
type name struct {
	name   string
	inside atomic.Bool
	token  uint64 // the last one; only who is inside looks
}

var errTwoInside = errors.New("two writers inside")

// enter checks that nobody is inside and that the token has grown.
func (l *name) enter(c backends.Claim) error {
	if !l.inside.CompareAndSwap(false, true) {
		return fmt.Errorf("%q: %w", l.name, errTwoInside)
	}
	if c.Token <= l.token {
		return fmt.Errorf("%q: token %d after %d", l.name, c.Token, l.token)
	}
	l.token = c.Token
	return nil
}

func (l *name) leave() { l.inside.Store(false) }

var write = backends.Request{Lock: backends.Lock{Range: backends.Whole, Mode: backends.Write}, Wait: true}

// take waits for the lock.
func (n *node) take(ctx context.Context, l *name, queued func()) (backends.Claim, error) {
	r := write
	r.Queued = queued
	claim, err := n.session.Acquire(ctx, l.name, r)
	if err != nil {
		return claim, err
	}
	return claim, l.enter(claim)
}

// drop lets go of it.
func (n *node) drop(ctx context.Context, l *name, c backends.Claim) error {
	l.leave()
	_, err := n.session.Change(ctx, l.name, []backends.Change{{ID: c.ID}})
	return err
}
