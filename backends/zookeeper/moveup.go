package zookeeper

import (
	"slices"
	"strings"

	"github.com/go-zookeeper/zk"

	"lockfs/backends/queue"
)

// moveUp makes a grant firm that went ahead of those who wait for another
// claim of its owner: in one transaction its znode is replaced by one that
// ranks with that claim, before those who wait. nil where there is no such
// claim; then the request has to wait. s.mu is held.
//
// The transaction checks that all of those are still there who make the grant right: the
// session's claims in the way of the waiters, for without them the waiters would be first and perhaps
// granted already, and the waiters themselves, for others stand behind them. As long as they are, everyone
// whom the request goes ahead of waits, so putting it before them takes nothing from anybody; and
// those between who do not conflict with it are not touched.
func (g *group) moveUp(v *view, o *own, i int) func() {
	ahead := v.state.WaitingFor(i)
	first, present := -1, map[string]bool{}
	for j := range i {
		if !ahead[j] {
			continue
		}
		claim := g.claimInTheWay(v, j)
		if claim < 0 && first < 0 {
			return nil
		}
		if claim >= 0 {
			present[v.nodes[claim].name] = true
		}
		if first < 0 {
			first = claim
		}
		present[v.nodes[j].name] = true
	}
	if first < 0 {
		return nil // what is in front of it is of this session, and being moved up itself
	}
	up := o.node
	up.kind, up.held, up.token, up.rank = kept, nil, 0, v.nodes[first].rank
	var ops []any
	for name := range present {
		ops = append(ops, &zk.CheckVersionRequest{Path: g.dir + "/" + name, Version: -1})
	}
	ops = append(ops,
		&zk.SetDataRequest{Path: g.dir, Version: -1}, // the mark: it is granted out of order
		&zk.CreateRequest{Path: g.dir + "/" + up.prefix(), Acl: g.s.b.acl, Flags: zk.FlagEphemeralSequential},
		&zk.DeleteRequest{Path: g.dir + "/" + o.name, Version: -1})
	o.state = settling
	return func() { g.runMoveUp(v, o, i, ops) }
}

func (g *group) runMoveUp(v *view, o *own, i int, ops []any) {
	var done []zk.MultiResponse
	err := g.s.insistOnce(func(c *zk.Conn) (err error) {
		done, err = c.Multi(ops...)
		return err
	})
	n := node{}
	if err == nil {
		path := done[len(ops)-2].String
		n, err = parseNode(path[strings.LastIndexByte(path, '/')+1:])
	}
	g.settled(v, o, i, err, func() uint64 {
		o.node = n
		// Requests of this session behind it were waiting for it to be firm.
		g.dirty = true
		return uint64(done[len(ops)-3].Stat.Mzxid)
	})
}

// claimInTheWay returns a claim that this session holds, before entry j and in its way, or -1.
func (g *group) claimInTheWay(v *view, j int) int {
	return slices.IndexFunc(v.state[:j], func(e queue.Entry) bool {
		o := g.mine[e.ID]
		return e.Session == g.s.id && o != nil && o.state == held && e.Granted && e.Conflicts(v.state[j].Lock)
	})
}
