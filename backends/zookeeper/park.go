package zookeeper

import "lockfs/backends"

// Many requests of one session may stand in a line, each for one who waits on this node. Those that want the same write lock can be
// granted only one after the other. So only the first of them is looked after: it watches the znode in front of it. The others are
// parked. They cost the server one create each, however long the line is.
//
// Invariant: before a parked request there is one of the same session, waiting for the same write lock, and not granted when the
// line was looked at last; and who is parked is looked at again when that one is granted or gone: each round decides about all
// requests that wait, and left has a round made. A parked request holds up no one else's news: who is in its way is in the way of the one before
// it too, and has been called.

// park reports whether a request that has just come into the line is to be parked unseen; s.mu is held. Not while a round is under way, which
// may be granting the one before it.
func (g *group) park(o *own) bool {
	if g.running || !parks(&o.node) {
		return false
	}
	for _, p := range g.mine {
		if p != o && p.state == waiting && p.called && p.seq < o.seq && sameWrite(&p.node, &o.node) {
			return true
		}
	}
	return false
}

// behindOwn reports whether the waiting entry i is to be parked as a look has shown it; s.mu is held.
func (g *group) behindOwn(v *view, i int) bool {
	if !parks(&v.nodes[i]) {
		return false
	}
	for j := range i {
		n := &v.nodes[j]
		if v.state[j].Granted || n.session != g.s.id || !sameWrite(n, &v.nodes[i]) {
			continue
		}
		// One that is not known here, or twice in the line, is about to be removed, and nobody is told of that.
		if p := g.mine[n.id]; p != nil && p.state == waiting && v.own[n.id] == j {
			return true
		}
	}
	return false
}

// unparked returns the parked requests that are granted: of those it has yet to be learnt when they were created; s.mu is held.
func (g *group) unparked(v *view, known []*own) (granted []*own) {
	for _, o := range known {
		if i, there := v.own[o.id]; there && o.parked && o.czxid == 0 && v.state[i].Granted {
			granted = append(granted, o)
		}
	}
	return granted
}

// parks reports whether a request may be parked: one that yields has to see who comes, one whose owner has locks may go ahead of
// those before it, and one that is not to wait has to be answered.
func parks(n *node) bool { return n.kind == waits && n.yieldTo == 0 && len(n.held) == 0 }

func sameWrite(a, b *node) bool {
	return a.kind == waits && b.kind == waits && a.Mode == backends.Write && a.Lock == b.Lock
}
