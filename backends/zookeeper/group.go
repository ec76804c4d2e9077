package zookeeper

import (
	"strings"

	"github.com/go-zookeeper/zk"

	"lockfs/backends"
)

// group is what a session has to do with one name. All of its claims and
// requests are decided together, from one look at the line, by one goroutine
// at a time (refresh). Everything in it is guarded by session.mu.
type group struct {
	s    *session
	name string // the lock's
	dir  string // its directory's path
	mine map[string]*own

	running bool // refresh runs
	dirty   bool // and is to look once more

	// Which watches the server has for us. They are set before the request that sets them is sent, for the
	// event may come before the answer; each fires once.
	kids  bool            // the line has changed
	data  bool            // somebody has called out to all: see group.callOut
	nodes map[string]bool // a znode in front of us has gone
}

type state uint8

const (
	entering state = iota // its znode is being created
	waiting               // stands in the line
	settling              // granted, but not yet for good: see moveUp and mark
	held
	leaving // its znode is being deleted
)

// own is a claim or a request of this session.
type own struct {
	node
	state state
	// gaveUp: whoever asked has gone; what becomes of it is to be taken back.
	gaveUp bool
	// takenBack is to be called then (backends.Request); it may be nil.
	takenBack func()
	czxid     int64 // of its znode, 0 while unknown
	asked     bool  // whether it deadlocks has been looked at
	called    bool  // the holders in its way know of it
	followed  bool  // others wait behind it, as the last look has shown
	parked    bool  // stands behind another request of this session: see park
	queued    func()
	done      chan result

	claim backends.Claim // state held
	told  bool           // an event or Contended has said that it is wanted
	// marked: it has a marker, or may have.
	marked bool
	shout  bool // others may yield to its hint, which is greater than before
}

// placed adds what is to be done when a request has its place in the line, the first time; s.mu is held.
func (o *own) placed(acts []func()) []func() {
	if o.queued == nil {
		return acts
	}
	queued := o.queued
	o.queued = nil
	return append(acts, queued)
}

type result struct {
	claim backends.Claim
	err   error
}

// join adds a claim or request to its name's group; s.mu is held.
func (s *session) join(name string, o *own) *group {
	key := escape(name)
	g := s.groups[key]
	if g == nil {
		g = &group{s: s, name: name, dir: s.b.locksDir() + "/" + key, mine: map[string]*own{}, nodes: map[string]bool{}}
		s.groups[key] = g
	}
	g.mine[o.id] = o
	return g
}

// forget takes a claim or request out of the group; s.mu is held.
func (g *group) forget(o *own) {
	delete(g.mine, o.id)
	key := g.dir[len(g.s.b.locksDir())+1:]
	if len(g.mine) == 0 && g.s.groups[key] == g {
		delete(g.s.groups, key)
	}
}

// onWatch is told of the server's notifications.
func (s *session) onWatch(e zk.Event) {
	rest, ok := strings.CutPrefix(e.Path, s.b.locksDir()+"/")
	if !ok {
		return
	}
	key, node, isNode := strings.Cut(rest, "/")
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.groups[key]
	if g == nil {
		return
	}
	switch {
	case isNode:
		delete(g.nodes, node)
		g.kick()
	case e.Type == zk.EventNodeChildrenChanged:
		g.kids = false
		if g.untold() {
			g.kick()
		}
	case e.Type == zk.EventNodeDataChanged:
		g.data = false
		g.kick()
	case e.Type == zk.EventNodeDeleted:
		g.kids, g.data = false, false
		g.kick()
	}
}

// untold reports whether the session holds a claim of which it is not yet known that others want it.
func (g *group) untold() bool {
	for _, o := range g.mine {
		if o.state == held && !o.told {
			return true
		}
	}
	return false
}

// inState reports whether something of the group is in this state; s.mu is held.
func (g *group) inState(st state) bool {
	for _, o := range g.mine {
		if o.state == st {
			return true
		}
	}
	return false
}

// kick has the group looked at; s.mu is held.
func (g *group) kick() {
	g.dirty = true
	if !g.running && len(g.mine) > 0 {
		g.running = g.s.goLocked(g.work)
	}
}

// refresh is kick for a goroutine that has the time to do it itself.
func (g *group) refresh() {
	g.s.mu.Lock()
	g.dirty = true
	mine := !g.running
	g.running = true
	g.s.mu.Unlock()
	if mine {
		g.work()
	}
}

// work looks at the line until nothing has happened since the last look.
func (g *group) work() {
	s := g.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for g.dirty && !s.over {
		g.dirty = false
		s.mu.Unlock()
		acts := g.round()
		for _, act := range acts {
			act()
		}
		s.mu.Lock()
	}
	g.running = false
}

// strayed has the line looked at for znodes that nobody knows of, though
// nothing else of this session may be in it, and calls then, which may be nil, when they are gone; s.mu is held.
func (g *group) strayed(then func()) {
	g.s.goLocked(func() {
		var kids []string
		err := g.s.insist(func(c *zk.Conn) (err error) {
			if _, err = c.Sync(g.dir); err != nil {
				return err
			}
			kids, _, err = c.Children(g.dir)
			return err
		})
		if err != nil {
			return // no line, or the session is over
		}
		v := &view{line: newLine(g.parse(kids))}
		g.s.mu.Lock()
		acts := g.strays(v)
		g.s.mu.Unlock()
		for _, act := range acts {
			act()
		}
		if then != nil {
			then()
		}
	})
}
