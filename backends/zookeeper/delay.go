package zookeeper

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/go-zookeeper/zk"

	"lockfs/backends"
)

// A session with a lock delay leaves a marker beside each of its claims: a
// persistent znode of kind delayed, which counts as a claim of the session. It
// is created before the claim is told to anybody and deleted in the same
// transaction as the claim. So a marker without its claim says that the session
// has died. Whoever sees that first waits for the delay and deletes it; when the
// death was nobody knows, so the delay counts from the first who saw it.

// markerID makes a marker's id of its claim's, with the delay in it.
func markerID(id string, delay time.Duration) string {
	return id + "." + strconv.FormatInt(delay.Milliseconds(), 36)
}

// ofMarker undoes markerID.
func ofMarker(id string) (claim string, delay time.Duration) {
	claim, ms, _ := strings.Cut(id, ".")
	n, err := strconv.ParseInt(ms, 36, 64)
	if err != nil || n < 0 {
		n = 0
	}
	return claim, time.Duration(n) * time.Millisecond
}

// marker is the name of a claim's marker. It is the same each time it is made, so
// creating it can be repeated. All stand at the front of the line.
func (s *session) marker(o *own) string {
	m := node{session: s.id, id: markerID(o.id, s.delay), kind: delayed, Lock: o.Lock, hint: o.hint}
	return m.prefix() + "0"
}

// mark creates the marker of a claim that is granted, and then lets finish tell of it.
func (g *group) mark(o *own, finish func() []func()) func() {
	o.state, o.marked = settling, true
	path := g.dir + "/" + g.s.marker(o)
	return func() {
		err := g.s.insist(func(c *zk.Conn) error {
			_, err := c.Create(path, nil, 0, g.s.b.acl)
			return err
		})
		g.s.mu.Lock()
		var acts []func()
		switch {
		case err != nil && !errors.Is(err, zk.ErrNodeExists):
			g.leave(o, kinded(err))
		case o.gaveUp:
			g.leave(o, nil)
		default:
			acts = finish()
		}
		g.s.mu.Unlock()
		for _, act := range acts {
			act()
		}
	}
}

// unmark deletes a marker; it may be gone.
func (g *group) unmark(name string) { _ = g.remove(name) }

// markers are the operations on markers that belong to the swaps' transaction.
func (g *group) markers(swaps []swap) (ops []any) {
	for _, sw := range swaps {
		if sw.old.marked {
			ops = append(ops, &zk.DeleteRequest{Path: g.dir + "/" + g.s.marker(sw.old), Version: -1})
		}
		for _, o := range sw.to {
			if o.marked {
				ops = append(ops, &zk.CreateRequest{Path: g.dir + "/" + g.s.marker(o), Acl: g.s.b.acl})
			}
		}
	}
	return ops
}

// mourn looks for markers of the dead, and has each deleted after its delay.
func (g *group) mourn(nodes []node) {
	for _, m := range nodes {
		if m.kind != delayed || m.session == g.s.id || hasClaim(nodes, m) {
			continue
		}
		_, delay := ofMarker(m.id)
		g.s.deleteAfter(g, m.name, delay)
	}
}

// hasClaim reports whether a marker's claim is in the line.
func hasClaim(nodes []node, m node) bool {
	id, _ := ofMarker(m.id)
	for _, n := range nodes {
		if n.session == m.session && n.id == id {
			return true
		}
	}
	return false
}

// deleteAfter deletes a marker of the dead, once.
func (s *session) deleteAfter(g *group, name string, delay time.Duration) {
	path := g.dir + "/" + name
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mourned[path] {
		return
	}
	s.mourned[path] = true
	s.goLocked(func() {
		pause(s.ctx, delay)
		if s.ctx.Err() == nil {
			g.unmark(name)
		}
		s.mu.Lock()
		delete(s.mourned, path)
		s.mu.Unlock()
	})
}

// unmarkAll deletes the markers of a session that is closed. Nothing of it runs any more.
func (s *session) unmarkAll(ctx context.Context) error {
	s.mu.Lock()
	var paths []string
	for _, g := range s.groups {
		for _, o := range g.mine {
			if o.marked {
				paths = append(paths, g.dir+"/"+s.marker(o))
			}
		}
	}
	s.mu.Unlock()
	for _, path := range paths {
		err := s.b.retry(ctx, func(c *zk.Conn) error { return c.Delete(path, -1) })
		if err != nil && !errors.Is(err, zk.ErrNoNode) && !errors.Is(err, backends.ErrNotExist) {
			return err
		}
	}
	return nil
}
