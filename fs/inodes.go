package fs

import (
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/backends"
)

// node is what a FUSE nodeid stands for: a name and the inode that it had.
// Other nodes can remove or replace the name while the kernel still knows the
// nodeid; open then answers ESTALE and the kernel looks the name up again.
type node struct {
	id, ino uint64
	// private: looked up for one open only; see retry.go.
	private bool
	// blind: looked up while the store was out of reach, for this open; see reach.go.
	blind *opening
	// wrote: the last open here was for writing; see looks.go.
	wrote atomic.Bool

	// Guarded by nodes.mu.
	name    string // what Rename on this mount made of it
	lookups uint64 // as counted by the kernel, until FORGET
	last    *attrs // as last told to the kernel; shared, so it is replaced and never changed
	next    *node  // another inode that the name had, or has
}

// nodes is the table of nodeids. Invariant: of the nodes in it that are not
// private no two have the same name and inode, and byName holds just these: of each name the first,
// the others behind it.
type nodes struct {
	mu     sync.RWMutex
	last   uint64 // greatest nodeid given; none is ever given again
	byID   map[uint64]*node
	byName map[string]*node
	// private are those that are, for rename; they are few and short-lived.
	private map[uint64]*node

	looks looks // see looks.go
}

func newNodes() *nodes {
	root := &node{id: fuse.FUSE_ROOT_ID, ino: backends.RootIno, lookups: 1, last: &attrs{}}
	return &nodes{last: root.id,
		byID:    map[uint64]*node{root.id: root},
		byName:  map[string]*node{"": root},
		private: map[uint64]*node{}}
}

// find returns a node and its name now. An id that is not known was made by
// an earlier server: ESTALE.
func (t *nodes) find(id uint64) (*node, string, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n := t.byID[id]
	if n == nil {
		return nil, "", syscall.ESTALE
	}
	return n, n.name, nil
}

// child returns the name of a component in a directory.
func (t *nodes) child(parent uint64, component string) (string, error) {
	_, dir, err := t.find(parent)
	if err != nil {
		return "", err
	}
	return join(dir, component)
}

func join(dir, component string) (string, error) {
	name := component
	if dir != "" {
		name = dir + "/" + component
	}
	if len(component) > backends.MaxComponent || len(name) > backends.MaxName {
		return "", syscall.ENAMETOOLONG
	}
	return name, nil
}

// enter counts one more lookup of a name and returns its node.
func (t *nodes) enter(name string, ino uint64, last *attrs, private bool) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.shared(name, ino)
	if n == nil || private {
		t.last++
		n = &node{id: t.last, ino: ino, name: name, private: private}
		t.byID[n.id] = n
		if private {
			t.private[n.id] = n
		} else {
			t.byName[name], n.next = n, t.byName[name]
		}
	}
	n.lookups++
	if n.last == nil || *n.last != *last {
		n.last = last
	}
	return n
}

// enterBlind makes a node for an open that goes on blindly.
func (t *nodes) enterBlind(name string, info *backends.Info, o opening) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last++
	n := &node{id: t.last, name: name, private: true, blind: &o, lookups: 1, last: newAttrs(*info)}
	t.byID[n.id], t.private[n.id] = n, n
	return n
}

// known returns what the kernel was told last of a name that it has not forgotten.
func (t *nodes) known(name string) (info backends.Info, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if n := t.byName[name]; n != nil {
		return n.last.info(n.ino), true
	}
	return info, false
}

// shared is called with t.mu held.
func (t *nodes) shared(name string, ino uint64) *node {
	for n := t.byName[name]; n != nil; n = n.next {
		if n.ino == ino {
			return n
		}
	}
	return nil
}

// told notes the attributes that the kernel has been told.
func (t *nodes) told(n *node, info *backends.Info) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n.last = n.last.or(attrsOf(*info))
}

// share lets a node and the file that is open use one copy of what both remember.
func (t *nodes) share(n *node, c *file) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if last := c.last.Load(); *last == *n.last {
		n.last = last
	}
}

// lastTold returns the attributes that the kernel was told last: of a directory, those against which it
// has checked the caller's permission to create something there.
func (t *nodes) lastTold(id uint64) backends.Info {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if n := t.byID[id]; n != nil {
		return n.last.info(n.ino)
	}
	return backends.Info{}
}

// forget takes back lookups. The root stays for ever.
func (t *nodes) forget(id, lookups uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil || id == fuse.FUSE_ROOT_ID {
		return
	}
	n.lookups -= min(lookups, n.lookups)
	if n.lookups == 0 {
		delete(t.byID, id)
		delete(t.private, id)
		t.unname(n)
	}
}

// unname is called with t.mu held.
func (t *nodes) unname(n *node) {
	first := t.byName[n.name]
	if first == n {
		first = n.next
	}
	for o := first; o != nil; o = o.next {
		if o.next == n {
			o.next = n.next
		}
	}
	n.next = nil
	if first == nil {
		delete(t.byName, n.name)
	} else {
		t.byName[n.name] = first
	}
}

// rename gives the nodes of one inode their new name. Handles keep the old
// one, for it names their lock.
func (t *nodes) rename(from, to string, ino uint64) {
	t.looks.removals.Add(1)
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range t.private {
		if n.name == from && n.ino == ino {
			n.name = to
		}
	}
	n := t.shared(from, ino)
	if n == nil {
		return
	}
	t.unname(n)
	n.name = to
	if t.shared(to, ino) == nil {
		t.byName[to], n.next = n, t.byName[to]
	}
}

// inodesOf returns the inodes that the kernel knows, or knew, under a name.
func (t *nodes) inodesOf(name string) []uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var inos []uint64
	for n := t.byName[name]; n != nil; n = n.next {
		inos = append(inos, n.ino)
	}
	return inos
}

// Forget implements fuse.RawFileSystem.
func (f *FileSystem) Forget(nodeid, nlookup uint64) { f.nodes.forget(nodeid, nlookup) }
