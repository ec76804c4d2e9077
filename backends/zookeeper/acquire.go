package zookeeper

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-zookeeper/zk"

	"lockfs/backends"
)

// Acquire asks for a claim.
func (s *session) Acquire(ctx context.Context, name string, req backends.Request) (backends.Claim, error) {
	c, err := s.acquire(ctx, name, req)
	if err != nil {
		return backends.Claim{}, fmt.Errorf("%v lock on %q: %w", req.Mode, name, err)
	}
	return c, nil
}

func (s *session) acquire(ctx context.Context, name string, req backends.Request) (backends.Claim, error) {
	if ctx.Err() != nil {
		return backends.Claim{}, context.Cause(ctx)
	}
	o := &own{node: node{session: s.id, kind: waits, Lock: req.Lock, hint: req.Hint, yieldTo: req.YieldTo, held: req.Held},
		queued: req.Queued, done: make(chan result, 1)}
	var limit <-chan time.Time
	if !req.Wait {
		o.kind = tries
		timer := time.NewTimer(s.b.cfg.Timeout)
		defer timer.Stop()
		limit = timer.C
	}
	s.mu.Lock()
	o.id = s.newID()
	var g *group
	if !s.over {
		g = s.join(name, o)
		s.work.Go(func() { g.enter(o) })
	}
	s.mu.Unlock()
	if g == nil {
		return backends.Claim{}, s.overError()
	}
	var err error
	var takenBack func()
	select {
	case r := <-o.done:
		if r.err == nil && !s.Valid() {
			return backends.Claim{}, s.overErrorSoon()
		}
		return r.claim, r.err
	case <-ctx.Done():
		err, takenBack = fmt.Errorf("%w: %w", backends.ErrGivenUp, context.Cause(ctx)), req.TakenBack
	case <-limit:
		err = fmt.Errorf("%w: no answer within %v", backends.ErrUnavailable, s.b.cfg.Timeout)
	case <-s.done:
		return backends.Claim{}, s.overError()
	}
	g.abandon(o, takenBack)
	return backends.Claim{}, err
}

// overErrorSoon is overError where the lease has ended and the session may not have noticed.
func (s *session) overErrorSoon() error {
	select {
	case <-s.done:
		return s.overError()
	default:
		return fmt.Errorf("session %s: its lease has ended: %w", s.id, backends.ErrSessionOver)
	}
}

// abandon takes back a request whose caller has gone, at whatever point it is, and calls takenBack, which may be nil, when that is
// done. Requests on the way (entering, settling, leaving) see gaveUp when they are through.
func (g *group) abandon(o *own, takenBack func()) {
	g.s.mu.Lock()
	o.gaveUp, o.takenBack = true, takenBack
	gone := g.mine[o.id] != o
	if !gone && (o.state == waiting || o.state == held) {
		g.leave(o, nil)
	}
	g.s.mu.Unlock()
	if gone && takenBack != nil {
		takenBack()
	}
}

// tellTakenBack is for one that nothing is left of, without s.mu.
func (g *group) tellTakenBack(o *own) {
	g.s.mu.Lock()
	takenBack := o.takenBack
	g.s.mu.Unlock()
	if takenBack != nil {
		takenBack()
	}
}

// leave has a request's or claim's znode deleted and then err delivered; s.mu is held.
func (g *group) leave(o *own, err error) {
	o.state = leaving
	name, marker := o.name, ""
	if o.marked {
		marker = g.s.marker(o)
	}
	g.s.goLocked(func() {
		if marker != "" {
			g.unmark(marker) // first, so that nobody takes us for dead
		}
		_ = g.remove(name) // it fails when the session is over, and then the server removes it
		g.left(o, err)
	})
}

// left says that a request's znode is gone.
func (g *group) left(o *own, err error) {
	g.s.mu.Lock()
	g.forget(o)
	// It may have been in the way of this session's own requests, which watch only others.
	g.kick()
	if err != nil {
		o.done <- result{err: err}
	}
	g.s.mu.Unlock()
	g.tellTakenBack(o)
}

// remove deletes a znode of the line. No two ever have the same name, so it can be
// repeated; one that has gone already is well. It gives up when the session is over.
func (g *group) remove(name string) error {
	err := g.s.insist(func(c *zk.Conn) error { return c.Delete(g.dir+"/"+name, -1) })
	if errors.Is(err, zk.ErrNoNode) {
		return nil
	}
	return err
}

// enter puts a request into the line.
func (g *group) enter(o *own) {
	var err error
	if o.kind == tries || o.yieldTo == backends.ByOpen {
		err = g.peek(o)
	}
	if err == nil && !g.givenUp(o) {
		err = g.create(o)
	}
	g.s.mu.Lock()
	switch {
	case err != nil:
		g.forget(o)
		o.done <- result{err: kinded(err)}
	case o.gaveUp && o.name == "":
		g.forget(o)
	case o.gaveUp:
		g.leave(o, nil)
		g.s.mu.Unlock()
		return
	default:
		o.state = waiting
		if o.parked = g.park(o); !o.parked {
			g.s.mu.Unlock()
			g.refresh()
			return
		}
		queued := o.placed(nil)
		g.s.mu.Unlock()
		for _, tell := range queued {
			tell()
		}
		return
	}
	g.s.mu.Unlock()
	g.tellTakenBack(o)
}

func (g *group) givenUp(o *own) bool {
	g.s.mu.Lock()
	defer g.s.mu.Unlock()
	return o.gaveUp
}

// peek looks whether a request that is not to wait, or for nothing but to be told whether claims are in use that
// nodes keep, has a chance, so that a program that tries again and again writes nothing. What says no is asked for twice, the second time
// after a sync: a server that lags must not refuse what an unlock elsewhere has freed.
func (g *group) peek(o *own) error {
	for _, synced := range []bool{false, true} {
		var kids []string
		err := g.s.insist(func(c *zk.Conn) (err error) {
			if synced {
				if _, err = c.Sync(g.dir); err != nil {
					return err
				}
			}
			kids, _, err = c.Children(g.dir)
			return err
		})
		if errors.Is(err, zk.ErrNoNode) {
			return nil
		}
		if err != nil {
			return err
		}
		if err = g.refusal(kids, o); err == nil || !synced {
			if err == nil {
				return nil
			}
			continue
		}
		return err
	}
	return nil
}

// refusal is what a try would get at the end of this line, nil where it may be granted.
func (g *group) refusal(kids []string, o *own) error {
	nodes := g.parse(kids)
	g.mourn(nodes)
	last := int64(0)
	for _, n := range nodes {
		last = max(last, n.seq)
	}
	x := o.node
	x.seq = last + 1
	l := newLine(append(nodes, x))
	return l.refusal(len(l.nodes) - 1)
}

// refusal says why entry i is refused; nil where it is granted, or may yet be: because all that is in the way of one
// that is not to wait is about to be taken back, or because one that is to wait need not yield.
func (l *line) refusal(i int) error {
	k := l.nodes[i].kind
	switch {
	case l.deadlock(i) && k == tries:
		return backends.ErrWouldBlock // who does not wait does not deadlock
	case l.deadlock(i):
		return backends.ErrDeadlock
	case l.state[i].Granted:
		return nil
	case l.state.Yields(i):
		return backends.ErrYield
	case k == tries:
		if _, solid := l.inTheWay(i); solid {
			return backends.ErrWouldBlock
		}
	}
	return nil
}

// create creates the request's znode, and its lock's directory where there is none.
func (g *group) create(o *own) error {
	path := g.dir + "/" + o.prefix()
	lost := false
	for {
		var created string
		err := g.s.ctx.Err()
		if err == nil && lost {
			created, err = g.lookUp(o.id)
		}
		if err == nil && created == "" {
			created, err = g.s.link.conn.Create(path, nil, zk.FlagEphemeralSequential, g.s.b.acl)
		}
		switch {
		case g.s.ctx.Err() != nil, errors.Is(err, zk.ErrSessionExpired):
			return g.s.overErrorSoon()
		case err == nil:
			g.s.mu.Lock()
			n, err := parseNode(created[len(g.dir)+1:])
			n.held, o.node = o.held, n
			g.s.mu.Unlock()
			return err
		case errors.Is(err, zk.ErrNoNode):
			if err := g.createDir(); err != nil {
				return err
			}
		case transient(err):
			lost = true
			pause(g.s.ctx, 20*time.Millisecond)
		default:
			return err
		}
	}
}

// createDir creates the lock's directory: a container, which the server removes some time after it is empty.
func (g *group) createDir() error {
	err := g.s.insist(func(c *zk.Conn) error {
		_, err := c.CreateContainer(g.dir, nil, zk.FlagContainer, g.s.b.acl)
		return err
	})
	if errors.Is(err, zk.ErrNodeExists) {
		return nil
	}
	return err
}

// lookUp finds the znode of a request whose creation was not answered; "" where it has none. The sync
// makes sure that a creation which the old connection had passed on is seen.
func (g *group) lookUp(id string) (path string, err error) {
	conn := g.s.link.conn
	if _, err := conn.Sync(g.dir); err != nil {
		return "", err
	}
	kids, _, err := conn.Children(g.dir)
	if errors.Is(err, zk.ErrNoNode) {
		return "", nil
	}
	for _, n := range g.parse(kids) {
		if n.session == g.s.id && n.id == id {
			return g.dir + "/" + n.name, nil
		}
	}
	return "", err
}

// parse reads the names of a line. What does not belong there is told to the log and
// else ignored: it claims nothing.
func (g *group) parse(kids []string) []node {
	nodes := make([]node, 0, len(kids)+1)
	for _, kid := range kids {
		n, err := parseNode(kid)
		if err != nil {
			g.s.log.Error("ignored", "backend", g.s.b.String(), "name", g.name, "error", err)
			continue
		}
		nodes = append(nodes, n)
	}
	return nodes
}
