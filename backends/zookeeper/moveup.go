package zookeeper

import (
	"strings"

	"github.com/go-zookeeper/zk"
)

// moveUp makes a grant firm that went ahead of requests which came before: in one
// transaction its znode is replaced by one of kind kept, which is granted whatever
// is before it.
//
// The transaction checks that everything is still there that the grant follows from: all znodes before
// it, and all claims. Newcomers come behind and change nothing for those before them. So at the moment of the
// transaction all whom the request goes ahead of wait, and nobody has been granted what conflicts with
// it. If something has gone, the transaction fails, and the next look decides. s.mu is held.
func (g *group) moveUp(v *view, o *own, i int) func() {
	up := o.node
	up.kind, up.held, up.token = kept, nil, 0
	var ops []any
	for j, n := range v.nodes {
		if j < i || j > i && v.state[j].Granted {
			ops = append(ops, &zk.CheckVersionRequest{Path: g.dir + "/" + n.name, Version: -1})
		}
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
		return uint64(done[len(ops)-3].Stat.Mzxid)
	})
}
