package zookeeper

import (
	"errors"
	"fmt"
	"sync"

	"github.com/go-zookeeper/zk"

	"lockfs/backends"
)

// view is what one look at the line has shown.
type view struct {
	*line
	stat zk.Stat        // of the lock's directory at that moment
	told int32          // the directory's version up to which call-outs are known
	own  map[string]int // where the session's own entries are, by id
}

// round looks at the line once and decides about all of the session's claims and
// requests that were in it before. It returns what is to be done about it, in
// order, without the lock.
func (g *group) round() (acts []func()) {
	s := g.s
	s.mu.Lock()
	known, fresh, watch := g.present()
	s.mu.Unlock()
	if len(known) == 0 {
		return nil
	}
	kids, stat, err := g.look(fresh, watch)
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		if watch {
			g.kids = false
		}
		if !errors.Is(err, backends.ErrSessionOver) {
			g.fail(known, err)
		}
		return nil
	}
	nodes := g.parse(kids)
	g.mourn(nodes)
	v := &view{line: newLine(nodes), stat: *stat, told: stat.Version}
	v.own = v.entries(s.id)
	s.mu.Lock()
	unparked := g.unparked(v, known)
	s.mu.Unlock()
	g.learnAll(unparked)()
	s.mu.Lock()
	defer s.mu.Unlock()
	acts = g.strays(v)
	for _, o := range known {
		acts = append(acts, g.decide(v, o)...)
	}
	return append(acts, g.listen(v)...)
}

// present returns what is in the line for sure, what of it needs learn, and whether to watch the line: it
// costs nothing with a look that may grant, and tells a writer when somebody else comes. One behind whom others wait will be
// told so by that look itself, and its own end would be a message to itself. Those who
// only read are told by a call-out, so that readers who come and go do not wake each other.
func (g *group) present() (known, fresh []*own, watch bool) {
	for _, o := range g.mine {
		if o.state != waiting && o.state != held {
			continue
		}
		known = append(known, o)
		if o.state == waiting && o.czxid == 0 && !o.parked {
			fresh = append(fresh, o)
		}
		switch o.state {
		case waiting:
			watch = watch || !o.followed
		default:
			watch = watch || !o.told && o.Mode == backends.Write
		}
	}
	watch = watch && !g.kids
	g.kids = g.kids || watch
	return known, fresh, watch
}

// look lists the line, and at the same time learns when the znodes of new requests were created.
func (g *group) look(fresh []*own, watch bool) (kids []string, stat *zk.Stat, err error) {
	learnt := g.learnAll(fresh)
	err = g.s.insist(func(c *zk.Conn) (err error) {
		if watch {
			kids, stat, _, err = c.ChildrenW(g.dir)
		} else {
			kids, stat, err = c.Children(g.dir)
		}
		return err
	})
	learnt()
	if errors.Is(err, zk.ErrNoNode) {
		return nil, &zk.Stat{}, nil // and with it all that we had in it, see decide
	}
	return kids, stat, err
}

// learnAll begins to learn when the znodes of requests were created; the function returned waits for the end of that.
func (g *group) learnAll(requests []*own) (wait func()) {
	var all sync.WaitGroup
	for _, o := range requests {
		all.Go(func() { g.learn(o) })
	}
	return all.Wait
}

// learn asks when a request's znode was created. Where that stays unknown, the grant is marked.
func (g *group) learn(o *own) {
	g.s.mu.Lock()
	path := g.dir + "/" + o.name
	g.s.mu.Unlock()
	there, stat, err := g.s.link.conn.Exists(path)
	if err == nil && there {
		g.s.mu.Lock()
		o.czxid = stat.Czxid
		g.s.mu.Unlock()
	}
}

// fail answers all requests with an error that repeating does not mend (no permission); s.mu is held.
func (g *group) fail(known []*own, err error) {
	for _, o := range known {
		if o.state == waiting {
			g.leave(o, kinded(err))
		}
	}
}

// strays are znodes of this session that nobody here knows of: the second of a request that was
// created twice, because the first seemed lost. They are removed. s.mu is held.
func (g *group) strays(v *view) (acts []func()) {
	seen := map[string]bool{}
	for _, n := range v.nodes {
		if n.session != g.s.id {
			continue
		}
		if id, _ := ofMarker(n.id); g.mine[id] == nil || seen[n.id] {
			acts = append(acts, func() { _ = g.remove(n.name) })
		}
		seen[n.id] = true
	}
	return acts
}

// decide says what becomes of one claim or request; s.mu is held.
func (g *group) decide(v *view, o *own) (acts []func()) {
	if o.state != waiting && o.state != held {
		return nil // left in the meantime
	}
	i, there := v.own[o.id]
	switch {
	case !there && o.state == held:
		g.lost(o)
		return nil
	case !there: // somebody has removed it; it stands in line anew
		o.state, o.czxid, o.name = entering, 0, ""
		return []func(){func() { g.enter(o) }}
	case o.name != v.nodes[i].name: // moveUp was carried out, but its answer lost
		o.node, o.czxid = v.nodes[i], 0
	}
	if o.state == held {
		return g.watchClaim(v, o, i)
	}
	first := !o.asked
	o.asked = true
	switch {
	case first && v.deadlock(i):
		g.leave(o, v.refusal(i))
		return nil
	case v.state[i].Granted && v.firm[i]:
		return g.grant(v, o, i)
	case v.state[i].Granted:
		return []func(){g.moveUp(v, o, i)}
	case o.kind == tries:
		if err := v.refusal(i); err != nil {
			g.leave(o, err)
			return nil
		}
	case v.state.Yields(i):
		g.leave(o, backends.ErrYield)
		return nil
	}
	return g.wait(v, o, i)
}

// lost: a claim's znode is gone though nobody here has deleted it. Nothing that the
// session says it has is certain any more. s.mu is held.
func (g *group) lost(o *own) {
	o.state = leaving
	err := fmt.Errorf("session %s: the claim %s on %q was removed from the server by somebody else: %w",
		g.s.id, o.claim.ID, g.name, backends.ErrSessionOver)
	go g.s.end(err) // it takes s.mu, and waits for nothing
}

// grant grants for good: at once where the creation of the znode will do for a token, else
// with a mark (see the package comment). s.mu is held.
func (g *group) grant(v *view, o *own, i int) []func() {
	if o.czxid != 0 && v.inOrder(i) && v.stat.Mzxid < o.czxid {
		return g.granted(v, o, i, uint64(o.czxid))
	}
	o.state = settling
	return []func(){func() {
		var done []zk.MultiResponse
		err := g.s.insistOnce(func(c *zk.Conn) (err error) {
			done, err = c.Multi(&zk.SetDataRequest{Path: g.dir + "/" + o.name, Version: -1},
				&zk.SetDataRequest{Path: g.dir, Version: -1})
			return err
		})
		g.settled(v, o, i, err, func() uint64 { return uint64(done[0].Stat.Mzxid) })
	}}
}

// settled ends the state settling: with a grant or, where the transaction failed or may have failed, with another
// look. token is called after a success only.
func (g *group) settled(v *view, o *own, i int, err error, token func() uint64) {
	s := g.s
	s.mu.Lock()
	var acts []func()
	switch {
	case err == nil:
		t := token() // it sets the znode's name too
		if o.gaveUp {
			g.leave(o, nil)
		} else {
			acts = g.granted(v, o, i, t)
		}
	default:
		o.state = waiting
		if o.gaveUp {
			// Under which name its znode is now may be unknown; the next look finds it.
			o.state = leaving
			g.forget(o)
			g.strayed(o.takenBack)
		}
		g.dirty = true
	}
	s.mu.Unlock()
	for _, act := range acts {
		act()
	}
}

// granted hands a claim to whoever asked, when its marker is there, if it is to have one; s.mu is held.
func (g *group) granted(v *view, o *own, i int, token uint64) (acts []func()) {
	if g.s.delay > 0 && !o.marked {
		return []func(){g.mark(o, func() []func() { return g.granted(v, o, i, token) })}
	}
	o.state = held
	o.claim = backends.Claim{ID: claimID(g.s.id, o.id), Lock: o.Lock, Hint: o.hint, Token: token, Seq: token,
		Contended: v.wanted(i)}
	o.told = o.claim.Contended
	o.done <- result{claim: o.claim}
	if v.hintMatters(i) {
		acts = append(acts, func() { g.callOut(v) })
	}
	return acts
}

// watchClaim tells the node when one of its claims is wanted; s.mu is held.
func (g *group) watchClaim(v *view, o *own, i int) []func() {
	if !o.told && v.wanted(i) {
		o.told = true
		g.s.push(backends.Event{Name: g.name, Seq: uint64(v.stat.Pzxid)})
	}
	return nil
}

// wait sees to it that a request that has to wait learns when it has to no more: it
// watches the znode in its way that goes last, for it can't be granted while that is there. So a
// release wakes those it lets in. s.mu is held.
func (g *group) wait(v *view, o *own, i int) (acts []func()) {
	if o.kind == waits {
		acts = o.placed(acts)
	}
	if o.parked = g.behindOwn(v, i); o.parked {
		return acts
	}
	o.followed = v.followed(i)
	if !o.called && o.kind == waits {
		o.called = true
		if in, _ := v.inTheWay(i); g.unheard(v, i, in) {
			acts = append(acts, func() { g.callOut(v) })
		}
	}
	if o.yieldTo > 0 && !g.data {
		acts = append(acts, func() { g.watchCalls(v) })
	}
	at := v.lastInTheWay(i)
	if at < 0 {
		return acts // it waits for requests of this session only, which wait for others
	}
	if last := v.nodes[at].name; !g.nodes[last] {
		g.nodes[last] = true
		acts = append(acts, func() { g.watchNode(last) })
	}
	return acts
}

// unheard reports whether a read claim in the way of entry i was in nobody's way before: its
// session does not watch the line and has to be called.
func (g *group) unheard(v *view, i int, in []int) bool {
	for _, h := range in {
		if v.state[h].Granted && v.state[h].Mode == backends.Read && !v.wantedBefore(h, i) {
			return true
		}
	}
	return false
}

// wantedBefore reports whether a request in line before entry i waits for the claim h.
func (l *line) wantedBefore(h, i int) bool {
	for j := range i {
		y := l.state[j]
		if !y.Granted && l.nodes[j].kind == waits && y.Session != l.state[h].Session && y.Conflicts(l.state[h].Lock) {
			return true
		}
	}
	return false
}

// watchNode sets a watch on a znode in front. Unlike exists, a failed get leaves no watch behind.
func (g *group) watchNode(name string) {
	err := g.s.insistOnce(func(c *zk.Conn) error {
		_, _, _, err := c.GetW(g.dir + "/" + name)
		return err
	})
	if err == nil {
		return
	}
	g.s.mu.Lock()
	delete(g.nodes, name)
	g.dirty = true
	g.s.mu.Unlock()
}

// listen has readers and those who yield told by call-outs; s.mu is held.
func (g *group) listen(v *view) []func() {
	if g.kids {
		return nil
	}
	readers := false
	for _, o := range g.mine {
		if o.state != held || o.told {
			continue
		}
		if o.Mode == backends.Write { // the line has changed between the look and the grant
			g.dirty = true
			return nil
		}
		readers = true
	}
	if !readers || g.data {
		return nil
	}
	return []func(){func() { g.watchCalls(v) }}
}

// callOut tells all sessions that watch the lock's directory to look at the line: that a claim has come about
// for which some yield (Change says so itself), or that somebody waits for what readers have.
func (g *group) callOut(v *view) {
	err := g.s.insist(func(c *zk.Conn) error {
		stat, err := c.Set(g.dir, nil, -1)
		if err == nil && stat.Version == v.told+1 {
			v.told = stat.Version // our own: no reason to look again
		}
		return err
	})
	if err != nil && !errors.Is(err, backends.ErrSessionOver) {
		g.s.log.Error("waiters were not told", "backend", g.s.b.String(), "name", g.name, "error", err)
	}
}

// watchCalls sets the watch that call-outs fire. One that came since the look means another look.
func (g *group) watchCalls(v *view) {
	g.s.mu.Lock()
	if g.data {
		g.s.mu.Unlock()
		return
	}
	g.data = true
	g.s.mu.Unlock()
	var version int32
	err := g.s.insistOnce(func(c *zk.Conn) error {
		_, stat, _, err := c.GetW(g.dir)
		if err == nil {
			version = stat.Version
		}
		return err
	})
	g.s.mu.Lock()
	defer g.s.mu.Unlock()
	if err != nil {
		g.data = false
	}
	if err != nil || version != v.told {
		g.dirty = true
	}
}
