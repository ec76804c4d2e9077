package zookeeper

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/go-zookeeper/zk"

	"lockfs/backends"
)

// swap replaces one claim by others that are no greater.
type swap struct {
	old *own
	to  []*own
}

// Change shrinks, relabels and drops claims in one transaction.
//
// What replaces a claim is granted (kind kept), wherever it stands. For it is no greater than the old one, which was granted
// up to the moment of the transaction; so nobody has been granted what conflicts with it.
func (s *session) Change(ctx context.Context, name string, changes []backends.Change) ([]backends.Claim, error) {
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return nil, fmt.Errorf("changing locks on %q: %w", name, s.overError())
	}
	g, swaps := s.prepare(name, changes)
	done := make(chan error, 1)
	if len(swaps) > 0 {
		s.work.Go(func() { done <- g.change(swaps) })
	} else {
		done <- nil
	}
	s.mu.Unlock()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-s.done:
		err = s.overError()
	}
	if err != nil {
		return nil, fmt.Errorf("changing locks on %q: %w", name, err)
	}
	var claims []backends.Claim
	for _, sw := range swaps {
		for _, o := range sw.to {
			claims = append(claims, o.claim)
		}
	}
	return claims, nil
}

// prepare takes the claims to change out of reach of other changes, and makes what replaces them known; s.mu is held.
func (s *session) prepare(name string, changes []backends.Change) (*group, []swap) {
	g := s.groups[escape(name)]
	if g == nil {
		return nil, nil
	}
	var swaps []swap
	for _, c := range changes {
		var old *own
		for _, o := range g.mine {
			if o.state == held && o.claim.ID == c.ID {
				old = o
			}
		}
		if old == nil {
			continue
		}
		old.state = leaving
		sw := swap{old: old}
		for _, keep := range c.To {
			o := &own{node: node{session: s.id, id: s.newID(), kind: kept, Lock: keep.Lock, hint: keep.Hint,
				token: old.claim.Token}, done: make(chan result, 1), shout: keep.Hint > old.hint, marked: s.delay > 0}
			o.claim = old.claim
			o.claim.ID, o.claim.Lock, o.claim.Hint = claimID(s.id, o.id), keep.Lock, keep.Hint
			s.join(name, o)
			sw.to = append(sw.to, o)
		}
		swaps = append(swaps, sw)
	}
	return g, swaps
}

// change carries swaps out, and goes on trying until the session is over.
func (g *group) change(swaps []swap) error {
	conn := g.s.link.conn
	for {
		err := g.transact(conn, swaps)
		switch {
		case g.s.ctx.Err() != nil, errors.Is(err, zk.ErrSessionExpired):
			return g.s.overErrorSoon()
		case err == nil:
			g.changed(swaps)
			return nil
		case !transient(err) && !errors.Is(err, zk.ErrNoNode):
			return kinded(err)
		}
		gone := errors.Is(err, zk.ErrNoNode)
		// Done, not done, or a claim is gone that should be there: look.
		done, err := g.wasDone(conn, swaps)
		if err == nil && done {
			g.changed(swaps)
			return nil
		}
		if err != nil {
			pause(g.s.ctx, 20*1e6)
			continue
		}
		for _, sw := range swaps { // a marker that somebody removed is not missed
			sw.old.marked = sw.old.marked && !gone
		}
	}
}

// transact is one attempt. It notes the names of what it has created. Who may yield to it is told by it.
func (g *group) transact(conn *zk.Conn, swaps []swap) error {
	markers := g.markers(swaps)
	if len(swaps) == 1 && len(swaps[0].to) == 0 && len(markers) == 0 {
		return conn.Delete(g.dir+"/"+swaps[0].old.name, -1)
	}
	var ops []any
	var made []*own
	for _, sw := range swaps {
		for _, o := range sw.to {
			ops = append(ops, &zk.CreateRequest{Path: g.dir + "/" + o.prefix(), Acl: g.s.b.acl, Flags: zk.FlagEphemeralSequential})
			made = append(made, o)
		}
	}
	for _, sw := range swaps {
		ops = append(ops, &zk.DeleteRequest{Path: g.dir + "/" + sw.old.name, Version: -1})
	}
	if slices.ContainsFunc(made, func(o *own) bool { return o.shout }) {
		ops = append(ops, &zk.SetDataRequest{Path: g.dir, Version: -1}) // as callOut does
	}
	done, err := conn.Multi(append(ops, markers...)...)
	if err != nil {
		return err
	}
	g.s.mu.Lock()
	defer g.s.mu.Unlock()
	for k, o := range made {
		if o.node, err = parseNode(done[k].String[len(g.dir)+1:]); err != nil {
			return err
		}
	}
	return nil
}

// wasDone looks up what has become of an attempt without an answer, by the ids of what it creates. A
// claim that is gone although it was not done means that the session has lost it.
func (g *group) wasDone(conn *zk.Conn, swaps []swap) (bool, error) {
	if _, err := conn.Sync(g.dir); err != nil {
		return false, err
	}
	kids, _, err := conn.Children(g.dir)
	if err != nil && !errors.Is(err, zk.ErrNoNode) {
		return false, err
	}
	byID := map[string]node{}
	for _, n := range g.parse(kids) {
		if n.session == g.s.id {
			byID[n.id] = n
		}
	}
	g.s.mu.Lock()
	defer g.s.mu.Unlock()
	there, made, want := 0, 0, 0
	for _, sw := range swaps {
		if _, ok := byID[sw.old.id]; ok {
			there++
		}
		for _, o := range sw.to {
			want++
			if n, ok := byID[o.id]; ok {
				o.node = n
				made++
			}
		}
	}
	if there == 0 && made == want {
		return true, nil
	}
	if there < len(swaps) {
		g.lost(swaps[0].old)
		return false, backends.ErrSessionOver
	}
	return false, nil
}

// changed enters the new claims and forgets the old.
func (g *group) changed(swaps []swap) {
	g.s.mu.Lock()
	defer g.s.mu.Unlock()
	for _, sw := range swaps {
		for _, o := range sw.to {
			o.state = held
			g.kick() // is it wanted by others, who are not in the way of the old one's rest?
		}
	}
	for _, sw := range swaps {
		g.forget(sw.old)
	}
}

// Holders returns the claims of others in the way of a lock.
func (s *session) Holders(ctx context.Context, name string, lock backends.Lock) ([]backends.Holder, error) {
	if !s.Valid() {
		return nil, fmt.Errorf("holders of %q: %w", name, s.overErrorSoon())
	}
	limit, cancel := context.WithTimeoutCause(ctx, s.b.cfg.Timeout, fmt.Errorf("%w: no answer within %v", backends.ErrUnavailable, s.b.cfg.Timeout))
	defer cancel()
	g := &group{s: s, name: name, dir: s.b.lockDir(name)}
	found := make(chan []backends.Holder, 1)
	err := s.link.call(limit, func() error {
		return s.insist(func(c *zk.Conn) error {
			holders, err := g.holders(c, lock)
			if err == nil {
				found <- holders
			}
			return err
		})
	})
	if err != nil {
		select {
		case <-s.done:
			err = s.overError()
		default:
			err = kinded(err)
		}
		return nil, fmt.Errorf("holders of %q: %w", name, err)
	}
	return <-found, nil
}

func (g *group) holders(c *zk.Conn, lock backends.Lock) ([]backends.Holder, error) {
	if _, err := c.Sync(g.dir); err != nil {
		return nil, err
	}
	kids, _, err := c.Children(g.dir)
	if errors.Is(err, zk.ErrNoNode) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var holders []backends.Holder
	l := newLine(g.parse(kids))
	for i, n := range l.nodes {
		if n.session == g.s.id || !l.state[i].Granted || !n.Conflicts(lock) || n.kind == delayed && hasClaim(l.nodes, n) {
			continue
		}
		h := backends.Holder{Session: n.session, Claim: backends.Claim{ID: claimID(n.session, n.id), Lock: n.Lock, Hint: n.hint}}
		there, err := g.describe(c, n, &h)
		if err != nil {
			return nil, err
		}
		if there {
			holders = append(holders, h)
		}
	}
	slices.SortStableFunc(holders, func(a, b backends.Holder) int { return cmp.Compare(a.First, b.First) })
	return holders, nil
}

// describe adds the token and the node's name. A claim that has gone meanwhile is not there.
func (g *group) describe(c *zk.Conn, n node, h *backends.Holder) (there bool, err error) {
	there, stat, err := c.Exists(g.dir + "/" + n.name)
	if err != nil || !there {
		return false, err
	}
	if h.Token = n.token; h.Token == 0 {
		h.Token = uint64(stat.Mzxid)
	}
	h.Seq = h.Token
	if n.kind == delayed {
		return true, nil // of a dead node
	}
	data, _, err := c.Get(g.s.b.sessionNode(n.session))
	if errors.Is(err, zk.ErrNoNode) {
		return false, nil
	}
	h.Node = string(data)
	return true, err
}
